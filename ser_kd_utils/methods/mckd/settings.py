"""Settings of meta-knowledge and curriculum distillation."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ser_kd_utils.settings import (
    ASSUMED,
    CODE,
    PUBLISHED,
    STRICT,
    Count,
    Fraction,
    Positive,
    Precision,
    Settings,
    Weight,
    setting,
)

Start = Annotated[float, Field(gt=1, lt=21)]
"""A temperature between the ends of CTKD's T = 1 + 20 sigmoid(theta)."""
Layer = Annotated[int, Field(ge=0)]
Even = Annotated[int, Field(ge=2, multiple_of=2)]
Meta = Literal["none", "temperature", "static", "teacher"]
"""What a held-out meta batch teaches after a pilot step on distillation alone: nothing, the temperatures of student and
teacher (Meta Knowledge Distillation), or the teacher's head (MetaDistil). static: nothing, and the temperatures
stay where those of mc-meta ended on the same fold and seed, whatever `curriculum` says."""


@dataclass(frozen=True, config=STRICT)
class MCKDSettings(Settings):
    """Meta-knowledge and curriculum distillation into a variable-token student (notebook 06).

    pooling: what the classifier reads, and SupCon acts on: all variable tokens in a row, after GELU, or their mean,
    which cannot tell which channel is which. Time tokens, whose number varies, have their mean whatever it says.
    """

    group = "mckd"

    features: Literal["encoder", "log-mel"] = setting("encoder", "encoder", ASSUMED, "the teacher's states, or log-mel")
    feature_layer: Layer = setting(0, 0, ASSUMED, "of the teacher; 0: its CNN and projection", 3)
    noisy_views: Layer = setting(0, 0, ASSUMED, "of an utterance in noise, encoded once; 0: another each epoch", 4)
    tokens: Literal["variable", "time"] = setting("variable", "variable", PUBLISHED, "variable: a channel is a token")
    pooling: Literal["flatten", "mean"] = setting("flatten", "flatten", CODE, "as iTransformer's library classifies")
    frames: Count = setting(150, 326, CODE, "of 20 ms that the student sees: longer cropped, shorter padded (DWFormer)")
    meld_frames: Count = setting(150, 226, CODE, "the same with MELD (DWFormer)")
    hidden_size: Count = setting(64, 512, CODE, "width of the student (iTransformer)")
    num_hidden_layers: Count = setting(2, 2, CODE, "of the student (iTransformer)")
    num_attention_heads: Count = setting(4, 8, CODE, "of the student (iTransformer)")
    intermediate_size: Count = setting(256, 2048, CODE, "width of its feed-forward part (iTransformer)")
    dropout: Fraction = setting(0.1, 0.1, CODE, "iTransformer")
    z_score: bool = setting(False, False, CODE, "each channel over time (iTransformer, optional); removes level cues")
    balance: Literal["inverse", "none"] = setting("inverse", "inverse", ASSUMED, "inverse: weigh rare classes more")
    supcon_weight: Weight = setting(0.5, 0.5, ASSUMED, "mu, of SupCon on what the classifier reads, one view")
    supcon_temperature: Positive = setting(0.07, 0.07, CODE, "SupContrast")
    kd_weight: Weight = setting(1.0, 1.0, ASSUMED, "nu, of distillation beside cross-entropy")
    temperature: Positive = setting(4.0, 4.0, ASSUMED, "of distillation where no curriculum moves it")
    curriculum_start: Start = setting(4.0, 4.0, ASSUMED, "CTKD: 15.6, where 4 classes leave only matching of logits")
    curriculum: bool = setting(True, True, PUBLISHED, "temperature learnt against the student (CTKD)")
    ramp: Count = setting(10, 10, CODE, "epochs over which the curriculum sets in (CTKD)")
    meta: Meta = setting("temperature", "temperature", ASSUMED, "what held-out speech teaches (MKD, MetaDistil)")
    meta_every: Count = setting(5, 10, ASSUMED, "steps from one meta step to the next")
    meta_lr: Positive = setting(0.02, 0.02, ASSUMED, "Adam, of the logarithms of the temperatures")
    meta_teacher_lr: Positive = setting(1e-3, 1e-4, ASSUMED, "Adam, of the teacher's head")
    supcon_weights: tuple[Weight, ...] = setting((0.1, 0.5, 1.0), (0.1, 0.5, 1.0), ASSUMED, "compared in notebook 07")
    kd_weights: tuple[Weight, ...] = setting((0.5, 1.0), (0.5, 1.0), ASSUMED, "compared in notebook 07")
    meta_fraction: Fraction = setting(0.1, 0.1, ASSUMED, "of each class of the training part, held out from students")
    epochs: Count = setting(21, 120, CODE, "DWFormer (IEMOCAP 120, MELD 100)")
    batch_size: Even = setting(32, 32, CODE, "DWFormer; in pairs of one class")
    lr: Positive = setting(2e-2, 5e-4, CODE, "SGD (DWFormer); its highest")
    lowest_lr: Weight = setting(1e-3, 1e-5, CODE, "of a cosine (DWFormer)")
    restart: Count = setting(3, 3, CODE, "epochs of the first cosine, the next twice as long and so on (DWFormer)")
    momentum: Fraction = setting(0.9, 0.9, CODE, "DWFormer")
    max_grad_norm: Weight = setting(1.0, 1.0, ASSUMED, "gradient norm; 0: not clipped, too long a step for a wide head")
    precision: Precision = setting("float32", "float32", ASSUMED, "bf16: mixed, where GPU or CPU can")

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"mckd.hidden_size={self.hidden_size}: no multiple of {self.num_attention_heads} heads")
