"""Every family of encoders behind one interface: what each is given, its layers and frames, its students, its files."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softmax
from transformers import AutoModelForAudioClassification, WhisperFeatureExtractor, pipeline
from waveform import OVERRIDES, TEACHER

from ser_kd_utils.data.features import HOP, whisper_log_mel
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.methods.mlkd.model import DistilledStudent, scale_cnn_gradient
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.methods.teacher.experiment import TeacherExperiment
from ser_kd_utils.methods.teacher.settings import FAMILIES, TeacherSettings
from ser_kd_utils.training.dataset import hidden_states, teacher_outputs

LABELS = ("angry", "happy", "neutral", "sad")
DEPTH, WIDTH, RATE = 3, 32, 16_000
SMALL = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 24,
}  # fmt: skip
WHISPER = {
    "d_model": WIDTH, "encoder_layers": DEPTH, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "num_mel_bins": 80,
    "max_source_positions": 250, "classifier_proj_size": 24, "decoder_layers": 1, "vocab_size": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
NETWORKS = {family: WHISPER if family == "whisper" else SMALL for family in FAMILIES}

each_family = pytest.mark.parametrize("family", FAMILIES)


def settings(family: str, **more) -> TeacherSettings:
    network = {} if more.get("checkpoint") or more.get("ready") else NETWORKS[family]
    # the settings compare this name with the depth, whatever the family calls it
    network = network | ({"num_hidden_layers": DEPTH} if network else {})
    given = {"model_type": family, "network": network, "num_hidden_layers": DEPTH, "max_seconds": 2.0}
    return TeacherSettings.of("tiny", **given | more)


def build(family: str, **more):
    torch.manual_seed(0)
    return encoders.build_teacher(settings(family, **more), LABELS).eval()


def speech(samples: int = RATE, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, (1, samples)).astype(np.float32))


def given(model, waves: torch.Tensor) -> dict[str, torch.Tensor]:
    return encoders.inputs_of(model.config).prepare_inputs(waves, torch.full((len(waves),), waves.shape[1]))


def plain_answer(folder, wave: torch.Tensor) -> dict[str, float]:
    """What transformers' own pipeline says of the wave, with nothing of this package."""
    scores = pipeline("audio-classification", str(folder))({"raw": wave[0].numpy(), "sampling_rate": RATE})
    return {row["label"]: row["score"] for row in scores}


@each_family
def test_a_pipeline_gives_a_saved_network_what_it_was_trained_on(family, tmp_path):
    teacher = build(family)
    TeacherExperiment.save(teacher, tmp_path)
    for samples in (RATE // 2, RATE + 77, 3 * RATE):  # shorter and longer than Whisper's window of 2 s
        wave = speech(samples)
        wanted = softmax(teacher(**given(teacher, wave)).logits[0], -1).tolist()
        assert plain_answer(tmp_path, wave) == pytest.approx(dict(zip(LABELS, wanted, strict=True)), abs=1e-5)


@each_family
def test_a_checkpoint_of_the_hubs_form_keeps_its_encoder(family, tmp_path):
    """An encoder without a head, of the family that its own config names, in half precision."""
    source = build(family, max_seconds=5.0)
    source.half().save_pretrained(tmp_path)
    loaded = encoders.build_teacher(settings(family, checkpoint=str(tmp_path)), LABELS)
    assert loaded.dtype == torch.float32 and loaded.config.id2label == dict(enumerate(LABELS))
    ours, theirs = (encoders.encoder_of(model).state_dict() for model in (loaded, source))
    for name, value in ours.items():
        assert torch.equal(value, theirs[name][: len(value)].float() if value.dim() else theirs[name])


@each_family
def test_another_family_or_depth_is_refused_with_what_to_do(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    other = FAMILIES[FAMILIES.index(family) - 1]
    for wrong in ({"model_type": other}, {"num_hidden_layers": DEPTH + 1}):
        with pytest.raises(ValueError, match=f"is {family} with {DEPTH} layers.*change teacher.model_type"):
            encoders.build_teacher(settings(family, checkpoint=str(tmp_path), **wrong), LABELS)


@each_family
def test_a_student_is_the_teachers_first_layers(family):
    teacher = build(family)
    kept = DEPTH - 1
    student = encoders.first_layers(teacher, kept).eval()
    inputs = given(teacher, speech())
    theirs = hidden_states(teacher(**inputs, output_hidden_states=True), range(1, DEPTH + 1), DEPTH)
    ours = student(**inputs, output_hidden_states=True).hidden_states
    for layer in range(1, kept):  # the last may come after a final norm
        torch.testing.assert_close(ours[layer], theirs[layer - 1])
    whole = encoders.first_layers(teacher, DEPTH).eval()
    torch.testing.assert_close(whole(**inputs).logits, teacher(**inputs).logits)
    fresh = encoders.first_layers(teacher, kept, "random")
    assert {n: v.shape for n, v in fresh.state_dict().items()} == {n: v.shape for n, v in student.state_dict().items()}
    # Whisper's positions are sines and cosines, and WavLM's gates begin at 1
    same = {n for n, v in fresh.named_parameters() if v.dim() > 1 and torch.equal(v, student.get_parameter(n))}
    assert same == {name for name in same if "embed_positions" in name or "gru_rel_pos_const" in name}


@each_family
def test_the_gradient_into_the_front_end_is_scaled_and_no_other(family):
    inputs, found = None, {}
    for factor in (1.0, 0.1):
        model = build(family)
        inputs = inputs or given(model, speech())
        scale_cnn_gradient(model, factor)
        model(**inputs).logits.square().sum().backward()
        found[factor] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    front = {id(p) for module in encoders.front_end(model) for p in module.parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in front}
    assert names and names < found[1.0].keys()
    for name, whole in found[1.0].items():
        factor = 0.1 if name in names else 1.0
        torch.testing.assert_close(found[0.1][name], factor * whole, rtol=1e-3, atol=1e-9)


@each_family
def test_frames_are_20_ms_apart_and_the_mask_leaves_out_padding(family):
    model, lengths = build(family), torch.tensor([RATE, RATE // 2])
    waves = torch.cat([speech(), speech(seed=1)])
    waves[1, RATE // 2 :] = 0
    inputs = encoders.inputs_of(model.config).prepare_inputs(waves, lengths)
    frames = model(**inputs, output_hidden_states=True).hidden_states[-1].shape[1]
    assert frames == (100 if family == "whisper" else 49)
    mask = encoders.frame_mask(model, frames, lengths)
    assert mask.sum(1).tolist() == ([50, 25] if family == "whisper" else [49, 24])


@each_family
def test_a_teachers_outputs_and_a_students_predictions_fit(family, tmp_path):
    """Frame by frame, also where Whisper gives frames of the silence that fills its window."""
    from ser_kd_utils.methods.mlkd.loss import MultiLevel
    from ser_kd_utils.methods.mlkd.settings import MLKDSettings

    teacher, layers = build(family), (1, DEPTH)
    audio = {"one": speech(RATE)[0].numpy(), "two": speech(RATE // 2, 1)[0].numpy()}
    prepare = encoders.inputs_of(teacher.config).prepare_inputs
    told = teacher_outputs(teacher, prepare, audio, ["one", "two"], layers, tmp_path / "outputs")
    student = DistilledStudent(encoders.first_layers(teacher, 1), layers, WIDTH).eval()
    for name, wave in audio.items():
        wave = torch.from_numpy(wave)[None]
        states = told.window(name, 0, wave.shape[1], layers)[None]
        wanted = hidden_states(teacher(**given(teacher, wave), output_hidden_states=True), layers, DEPTH)
        torch.testing.assert_close(states[0, :, 1].float(), wanted[1][0, : states.shape[1]], rtol=2e-3, atol=2e-3)
        objective = MultiLevel(
            MLKDSettings.of("tiny", teacher_layers=layers), DEPTH, lambda *a: encoders.frame_mask(student.student, *a)
        )
        batch = {"labels": torch.tensor([0]), "lengths": torch.tensor([wave.shape[1]]), "teacher_states": states}
        batch["teacher_logits"] = told.logits[name][None]
        terms = objective(batch, student(**given(teacher, wave)), None, 0.0)
        assert terms["feature"].isfinite() and terms["feature"] > 0


@each_family
def test_a_frozen_encoder_learns_a_weighted_sum_of_its_layers(family):
    model = build(family, tuning="frozen")
    assert model.layer_weights.shape == (DEPTH + 1,)
    known = {*encoders.encoder_of(model).parameters()}
    head = {name.split(".")[0] for name, p in model.named_parameters() if p not in known}
    assert head == {"layer_weights", "projector", "classifier"}


@each_family
def test_a_ready_teacher_is_taken_as_it_is_with_its_classes_in_the_corpus_order(family, tmp_path):
    torch.manual_seed(3)
    theirs = encoders.build_teacher(settings(family), ("SAD", "disgust", "Angry", "neutral", "happy")).eval()
    TeacherExperiment.save(theirs, tmp_path)
    ready = encoders.ready_teacher(settings(family, ready=str(tmp_path)), LABELS).eval()
    inputs = given(ready, speech())
    torch.testing.assert_close(ready(**inputs).logits, theirs(**inputs).logits[:, [2, 4, 3, 0]])
    assert ready.config.id2label == dict(enumerate(LABELS))
    TeacherExperiment.save(ready, tmp_path / "again")
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(again(**inputs).logits, ready(**inputs).logits)
    with pytest.raises(ValueError, match="has no class surprised: it tells sad, disgust, angry"):
        encoders.ready_teacher(settings(family, ready=str(tmp_path)), (*LABELS, "surprised"))


def test_a_ready_whisper_of_another_window_is_refused(tmp_path):
    TeacherExperiment.save(build("whisper"), tmp_path)
    with pytest.raises(ValueError, match="hears 2 s: set teacher.max_seconds=2.0"):
        encoders.ready_teacher(settings("whisper", ready=str(tmp_path), max_seconds=3.0), LABELS)


def test_whispers_log_mel_is_that_of_transformers():
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    for samples in (RATE // 3, 2 * RATE):
        wave = speech(samples)
        wanted = extractor(wave[0].numpy(), sampling_rate=RATE, return_tensors="pt")["input_features"]
        padded = torch.nn.functional.pad(wave, (0, 2 * RATE - samples))
        torch.testing.assert_close(whisper_log_mel(padded), wanted, rtol=1e-4, atol=1e-4)


def test_a_short_window_is_the_beginning_of_the_long_one():
    """The first rows of the table of positions, and the same weights: only what is heard is shorter."""
    torch.manual_seed(0)
    long = encoders.build_teacher(settings("whisper", max_seconds=5.0), LABELS)
    table = long.encoder.embed_positions.weight.clone()
    encoders.cut_window(long, 2 * RATE // HOP)
    assert torch.equal(long.encoder.embed_positions.weight, table[:100]) and long.config.max_source_positions == 100
    assert long(**given(long, speech())).logits.shape == (1, len(LABELS))
    assert sum(p.numel() for p in build("whisper").parameters()) == sum(p.numel() for p in long.parameters())


def test_a_group_norm_hears_padding_alike_in_training_and_tests():
    """wav2vec2-base was pre-trained without a mask, and none is given it; with layer norms there is one."""
    waves, lengths, mask = speech(), torch.tensor([RATE // 2]), torch.ones(1, RATE, dtype=torch.long)
    group, layer = build("wav2vec2"), encoders.build_teacher(TEACHER, LABELS)
    for model, keys in ((group, {"input_values"}), (layer, {"input_values", "attention_mask"})):
        assert encoders.inputs_of(model.config).prepare_inputs(waves, lengths, mask).keys() == keys
        extractor = TeacherExperiment.feature_extractor(model)
        assert extractor.return_attention_mask == ("attention_mask" in keys)


@pytest.mark.parametrize("seconds", [2.5, 0.7])
def test_whispers_window_is_of_whole_seconds(seconds):
    with pytest.raises(ValueError, match="whole seconds"):
        settings("whisper", max_seconds=seconds)


@each_family
def test_a_front_is_the_teachers_first_layers_and_stays_frozen(family):
    """With the final norm, as MLKD's students have it; of padded speech, frame by frame what it is alone."""
    teacher, layers = build(family), 2
    front = encoders.Front(teacher.config, layers)
    front.copy(teacher)
    waves, lengths = torch.cat([speech(), speech(seed=1)]), torch.tensor([RATE, RATE // 2])
    waves[1, RATE // 2 :] = 0
    states = front.train()(waves, lengths)
    student = encoders.first_layers(teacher, layers).eval()
    alone = encoders.encoder_of(student)(**given(student, waves[:1])).last_hidden_state
    torch.testing.assert_close(states[:1], alone)
    assert not front.training and not any(p.requires_grad for p in front.parameters())
    assert states.shape[1] >= front.inputs.frame_counts(lengths).max()


def test_a_front_of_no_layer_is_refused_for_whisper():
    with pytest.raises(ValueError, match="feature_layer=0: of Whisper, take one of its layers"):
        encoders.Front(build("whisper").config, 0)


def test_a_variable_token_student_hears_through_whisper(tmp_path):
    from ser_kd_utils.methods.mckd.model import VariableTokenConfig, VariableTokenForAudioClassification

    teacher = build("whisper")
    config = VariableTokenConfig(front=teacher.config.to_diff_dict(), feature_layer=2, frames=100, hidden_size=16,
                                 num_attention_heads=2, intermediate_size=16, num_labels=4)  # fmt: skip
    model = VariableTokenForAudioClassification(config).eval()
    model.front.copy(teacher)
    features, counts = model.frame_features(torch.cat([speech(), speech()]), torch.tensor([RATE, RATE // 2]))
    assert features.shape == (2, 50, WIDTH) and counts.tolist() == [50, 25]
    model.save_pretrained(tmp_path)
    again = VariableTokenForAudioClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(speech()).logits, model(speech()).logits)


def test_a_student_is_distilled_from_a_ready_teacher_which_nothing_trains(tones, tmp_path):
    """A classifier from elsewhere is row (a): tested like any other, its weights and its answers as they came."""
    torch.manual_seed(5)
    theirs = encoders.build_teacher(settings("hubert"), ("sad", "happy", "angry", "neutral")).eval()
    TeacherExperiment.save(theirs, tmp_path / "theirs")
    ready = f"teacher.ready={tmp_path / 'theirs'}, teacher.model_type=hubert, mlkd.epochs=1, mlkd.student_layers=1"
    options = {"data_root": str(tones), "results": str(tmp_path), "overrides": f"{ready}, noise.test_snr_db=(0,)"}
    experiment = MLKDExperiment("manifest", "tiny", **options)
    teacher, student = experiment.teachers.run("a"), experiment.run("e")
    assert teacher.info["best_epoch"] == 0 and [row["epoch"] for row in teacher.info["history"]] == [0]
    kept = AutoModelForAudioClassification.from_pretrained(teacher.folder / "model").state_dict()
    for name, weight in theirs.state_dict().items():
        if "classifier" not in name:
            assert torch.equal(weight, kept[name]), name
    row = teacher.predictions.query("checkpoint == 'best' and condition == 'clean'").iloc[0]
    wave = torch.from_numpy(experiment.audio[row["utterance"]])[None]
    logits = theirs(**given(theirs, wave)).logits[0]
    np.testing.assert_allclose(row["logits"], logits[[2, 1, 3, 0]].detach(), atol=2e-3)
    assert student.info["teacher_fingerprint"] == experiment.teachers.fingerprint("a")


@pytest.fixture
def on_log_mel(tones, tmp_path):
    """Students of a teacher that hears waveforms, in two steps of half the training set each."""
    short = "teacher.epochs=1, mlkd.epochs=1, mlkd.batch_size=12, noise.test_snr_db=(0,)"
    given = {"data_root": str(tones), "results": str(tmp_path), "overrides": f"{OVERRIDES}, {short}"}
    return MLKDExperiment("manifest", "tiny", **given)


def test_a_student_on_log_mel_is_a_whisper_of_the_teachers_shape(on_log_mel):
    """Trained in noise, recorded and saved as any other; plain transformers gives what the record says."""
    run = on_log_mel.run("e-log-mel")
    assert len(on_log_mel.dataset("e-log-mel")) == 24 and {"ce", "feature"} <= {*run.history}
    student = AutoModelForAudioClassification.from_pretrained(run.folder / "model").eval()
    theirs, own = on_log_mel.teachers.teacher().config, student.config
    assert (own.model_type, own.num_hidden_layers, own.max_source_positions) == ("whisper", 1, 100)
    for name in ("hidden_size", "num_attention_heads", "classifier_proj_size", "id2label"):
        assert getattr(own, name) == getattr(theirs, name), name
    assert own.encoder_ffn_dim == theirs.intermediate_size and own.dropout == theirs.hidden_dropout == 0.05
    row = run.predictions.query("checkpoint == 'best' and condition == 'clean'").iloc[0]
    wave = torch.from_numpy(on_log_mel.audio[row["utterance"]])[None]
    scores = softmax(torch.tensor(np.asarray(row["logits"], np.float32)), -1).tolist()
    labels = on_log_mel.labels
    assert plain_answer(run.folder / "model", wave) == pytest.approx(dict(zip(labels, scores, strict=True)), abs=2e-3)


def test_a_student_on_log_mel_learns_from_the_frames_that_its_teacher_has(on_log_mel, monkeypatch):
    """Of an utterance of 15 times 20 ms the teacher has 14 frames: what pads its states is no target."""
    found = {}

    def keep(name, student, objective, data, **more):
        found.update(student=student.eval(), objective=objective, data=data)

    monkeypatch.setattr(on_log_mel, "_optimise", keep)
    on_log_mel.trained("e-log-mel")
    teacher, student, batch = on_log_mel.teachers.teacher(), found["student"], found["data"].batch([0, 1])
    lengths, waves = torch.tensor([RATE // 2, 15 * HOP]), batch["clean"]
    waves[1, lengths[1] :] = 0
    alone = waves[1:, : lengths[1]]
    frames = teacher(**given(teacher, alone), output_hidden_states=True).hidden_states[-1].shape[1]
    assert frames == 14 and batch["teacher_states"].shape[1] == 24
    output = student(**on_log_mel.inputs_of(student)(waves, lengths))
    assert output.hidden_states[0].shape[1] == 100  # of the window: the rest is silence

    def loss(first: int) -> float:
        states = batch["teacher_states"].clone()
        states[1, first:] += 100
        terms = found["objective"](batch | {"lengths": lengths, "teacher_states": states}, output, None, 0.0)
        return terms["feature"].item()

    assert loss(24) == loss(frames) < loss(frames - 1) - 0.1
