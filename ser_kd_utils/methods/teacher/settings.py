"""Settings of the clean-speech teacher."""

import re
from pathlib import Path
from typing import Any, Literal

from ser_kd_utils.settings import ASSUMED, CODE, Count, Fraction, Positive, Precision, Settings, Weight, setting, strict

# Of wav2vec2-base; known to hold a pickle and no safetensors: convert it once.
BASE_COMMIT = "0b5b8e868dd84f03fd87d01f9c4ff0f080fecfe8"

# Of whisper-tiny.en. Whisper heard much noisy speech in its pre-training, and its states bear noise well (Shi et al.,
# arXiv 2311.07093): a student of it starts from more than one of wav2vec2-base, which heard read speech only.
WHISPER_COMMIT = "87c7102498dcde7456f24cfd30239ca606ed9063"

FAMILIES = ("wav2vec2", "hubert", "wavlm", "whisper")

TINY_NETWORK = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "encoder_ffn_dim": 288,
    "num_mel_bins": 40,
    "classifier_proj_size": 64,
    "dropout": 0.05,
}


@strict
class TeacherSettings(Settings):
    """The clean-speech teacher (notebook 01), shared by the methods."""

    group = "teacher"

    checkpoint: str = setting(
        ASSUMED, "hub name or folder; empty: random weights", "", "facebook/wav2vec2-base", "openai/whisper-tiny.en"
    )
    revision: str = setting(ASSUMED, "commit of a hub name; a folder has none", "", BASE_COMMIT, WHISPER_COMMIT)
    ready: str = setting(ASSUMED, "hub name or folder of a fine-tuned classifier, the teacher as it is", "")
    model_type: Literal[FAMILIES] = setting(
        ASSUMED, "family of the network; a checkpoint of another is refused", "whisper", "wav2vec2"
    )
    network: dict[str, Any] = setting(
        ASSUMED, "of random weights; so small that it learns the demo in a minute", TINY_NETWORK, {}, {}
    )
    num_hidden_layers: Count = setting(ASSUMED, "transformer layers; a checkpoint of other depth is refused", 3, 12, 4)
    freeze_cnn: bool = setting(CODE, "SpeechBrain IEMOCAP recipe; random weights must be trained", False, True)
    tuning: Literal["full", "frozen"] = setting(
        ASSUMED, "frozen: a weighted sum of the encoder's layers and the head learn (SUPERB)", "full"
    )
    label_fraction: Fraction = setting(ASSUMED, "of each class whose labels the teacher is told", 1.0)
    epochs: Count = setting(CODE, "SpeechBrain IEMOCAP recipe (30)", 10, 30, 8)
    batch_size: Count = setting(ASSUMED, "utterances a step", 8, 24)
    lr_encoder: Positive = setting(CODE, "SpeechBrain IEMOCAP recipe (1e-5)", 1e-3, 1e-5, 1e-4)
    lr_head: Positive = setting(CODE, "SpeechBrain IEMOCAP recipe (1e-4)", 1e-3, 1e-4)
    weight_decay: Weight = setting(ASSUMED, "AdamW", 1e-2, 1e-6)
    betas: tuple[Fraction, Fraction] = setting(CODE, "AdamW, as DistilHuBERT", (0.9, 0.98))
    warmup_ratio: Fraction = setting(CODE, "of the steps, linear; then linear decay (DistilHuBERT 7 %)", 0.1, 0.07)
    max_grad_norm: Weight = setting(ASSUMED, "gradient norm; 0: not clipped", 1.0, 5.0)
    max_seconds: Positive = setting(
        ASSUMED, "longest training window, cropped at random; tests take all; Whisper: the first seconds "
        "of an utterance, in training and tests, all that teacher and student hear", 2.0, 10.0, 3.0,
    )  # fmt: skip
    precision: Precision = setting(ASSUMED, "bf16: mixed, where GPU or CPU can", "float32", "bf16", "bf16")

    def __post_init__(self) -> None:
        if self.from_hub and not re.fullmatch("[0-9a-f]{40}", self.revision):
            wanted = "there is no such folder, and a hub name wants as revision the 40 hex digits of a commit"
            raise ValueError(f"teacher.checkpoint={self.source!r}, revision={self.revision!r}: {wanted}.")
        layers = self.network.get("num_hidden_layers", 0)
        if not self.source and layers != self.num_hidden_layers:
            raise ValueError(f"teacher.network has {layers} layers, not {self.num_hidden_layers} (num_hidden_layers).")
        if self.model_type == "whisper" and self.max_seconds % 1:
            raise ValueError(f"teacher.max_seconds={self.max_seconds}: Whisper's window is of whole seconds.")

    @property
    def source(self) -> str:
        """Where the first weights come from; empty: random ones."""
        return self.ready or self.checkpoint

    @property
    def from_hub(self) -> bool:
        """Whether the checkpoint is a hub name, neither a folder nor random weights."""
        return bool(self.source) and not Path(self.source).is_dir()
