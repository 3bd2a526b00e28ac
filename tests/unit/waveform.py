"""A small network that hears the waveform, wav2vec 2.0's kind with layer norms in its convolutions: for the tests of
what only such networks have, since the one of profile tiny hears a log-mel spectrogram."""

from ser_kd_utils.methods.teacher.settings import TeacherSettings

NETWORK = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 288,
    "conv_dim": (32, 32, 32, 32, 32, 32),
    "conv_kernel": (20, 3, 3, 3, 3, 2),
    "conv_stride": (10, 2, 2, 2, 2, 2),
    "feat_extract_norm": "layer",
    "feat_extract_activation": "silu",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 64,
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout"), 0.05),
}
TEACHER = TeacherSettings.of("tiny", model_type="wav2vec2", network=NETWORK)
OVERRIDES = f"teacher.model_type='wav2vec2', teacher.network={NETWORK!r}"
