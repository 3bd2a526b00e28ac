"""Settings of the clean-speech teacher."""

import re
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from ser_kd_utils.settings import ASSUMED, CODE, STRICT, Count, Fraction, Positive, Precision, Settings, Weight, setting

BASE_COMMIT = "0b5b8e868dd84f03fd87d01f9c4ff0f080fecfe8"
"""Of wav2vec2-base; known to hold a pickle and no safetensors: convert it once."""

TINY_NETWORK = {
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


@dataclass(frozen=True, config=STRICT)
class TeacherSettings(Settings):
    """The clean-speech teacher (notebook 01), shared by the methods."""

    group = "teacher"

    checkpoint: str = setting("", "facebook/wav2vec2-base", ASSUMED, "hub name or folder; empty: random weights")
    revision: str = setting("", BASE_COMMIT, ASSUMED, "commit of a hub name; a folder has none")
    network: dict[str, Any] = setting(TINY_NETWORK, {}, ASSUMED, "tiny: sized on dev speakers of EMO-DB folds 1 and 2")
    num_hidden_layers: Count = setting(3, 12, ASSUMED, "transformer layers; a checkpoint of another depth is refused")
    freeze_cnn: bool = setting(False, True, CODE, "SpeechBrain IEMOCAP recipe; random weights must be trained")
    epochs: Count = setting(22, 30, CODE, "SpeechBrain IEMOCAP recipe (30)")
    batch_size: Count = setting(8, 24, ASSUMED, "utterances a step")
    lr_encoder: Positive = setting(1e-3, 1e-5, CODE, "SpeechBrain IEMOCAP recipe (1e-5)")
    lr_head: Positive = setting(1e-3, 1e-4, CODE, "SpeechBrain IEMOCAP recipe (1e-4)")
    weight_decay: Weight = setting(1e-2, 1e-6, ASSUMED, "AdamW")
    betas: tuple[Fraction, Fraction] = setting((0.9, 0.98), (0.9, 0.98), CODE, "AdamW, as DistilHuBERT")
    warmup_ratio: Fraction = setting(0.1, 0.07, CODE, "of the steps, linear; then linear decay (DistilHuBERT 7 %)")
    max_grad_norm: Weight = setting(1.0, 5.0, ASSUMED, "gradient norm; 0: not clipped")
    max_seconds: Positive = setting(2.0, 10.0, ASSUMED, "longest training window, cropped at random; tests take all")
    precision: Precision = setting("float32", "bf16", ASSUMED, "bf16: mixed precision where the GPU has it")

    def __post_init__(self) -> None:
        if self.from_hub and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"teacher.checkpoint={self.checkpoint!r}, revision={self.revision!r}: there is no such folder, and a "
                "hub name wants as revision the 40 hex digits of a commit (branches and tags move)."
            )
        layers = self.network.get("num_hidden_layers", 0)
        if not self.checkpoint and layers != self.num_hidden_layers:
            raise ValueError(f"teacher.network has {layers} layers, not {self.num_hidden_layers} (num_hidden_layers).")

    @property
    def from_hub(self) -> bool:
        """Whether the checkpoint is a hub name, neither a folder nor random weights."""
        return bool(self.checkpoint) and not Path(self.checkpoint).is_dir()
