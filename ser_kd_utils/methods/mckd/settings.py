"""Settings of meta-knowledge and curriculum distillation."""

from typing import Annotated, Literal

from pydantic import Field

from ser_kd_utils.settings import ASSUMED, CODE, PUBLISHED, Count, Fraction, Positive, Settings, Weight, setting, strict

# A temperature between the ends of CTKD's T = 1 + 20 sigmoid(theta).
Start = Annotated[float, Field(gt=1, lt=21)]
# Of two utterances or more, one at least is left.
Half = Annotated[float, Field(ge=0, le=0.5)]
Layer = Annotated[int, Field(ge=0)]
Even = Annotated[int, Field(ge=2, multiple_of=2)]
# What a held-out meta batch teaches after a pilot step on distillation alone: nothing, the temperatures of student and
# teacher (Meta Knowledge Distillation), or the teacher's head (MetaDistil). static: nothing, and the temperatures stay
# where those of mc-meta ended on the same fold and seed, whatever `curriculum` says.
Meta = Literal["none", "temperature", "static", "teacher"]


@strict
class MCKDSettings(Settings):
    """Meta-knowledge and curriculum distillation into a variable-token student (notebook 06).

    pooling: what the classifier reads, and SupCon acts on: all variable tokens in a row, after GELU, or their mean,
    which cannot tell which channel is which. Time tokens, whose number varies, have their mean whatever it says.
    """

    group = "mckd"

    features: Literal["encoder", "log-mel"] = setting(ASSUMED, "the teacher's states, or log-mel", "encoder")
    feature_layer: Layer = setting(ASSUMED, "of the teacher; 0: its CNN and projection", 1, 0, 3)
    noisy_views: Layer = setting(ASSUMED, "of an utterance in noise, encoded once; 0: another each epoch", 0, 0, 4)
    tokens: Literal["variable", "time"] = setting(PUBLISHED, "variable: a channel is a token", "variable")
    pooling: Literal["flatten", "mean"] = setting(CODE, "as iTransformer's library classifies", "flatten")
    frames: Count = setting(CODE, "of 20 ms that the student sees: longer cropped, shorter padded (DWFormer)", 150, 326)
    meld_frames: Count = setting(CODE, "the same with MELD (DWFormer)", 150, 226)
    hidden_size: Count = setting(CODE, "width of the student (iTransformer)", 64, 512)
    num_hidden_layers: Count = setting(CODE, "of the student (iTransformer)", 2)
    num_attention_heads: Count = setting(CODE, "of the student (iTransformer)", 4, 8)
    intermediate_size: Count = setting(CODE, "width of its feed-forward part (iTransformer)", 256, 2048)
    dropout: Fraction = setting(CODE, "iTransformer", 0.1)
    z_score: bool = setting(CODE, "each channel over time (iTransformer, optional); removes level cues", False)
    balance: Literal["inverse", "none"] = setting(ASSUMED, "inverse: weigh rare classes more", "inverse")
    supcon_weight: Weight = setting(ASSUMED, "mu, of SupCon on what the classifier reads, one view", 0.5)
    supcon_temperature: Positive = setting(CODE, "SupContrast", 0.07)
    kd_weight: Weight = setting(ASSUMED, "nu, of distillation beside cross-entropy", 1.0)
    temperature: Positive = setting(ASSUMED, "of distillation where no curriculum moves it", 4.0)
    curriculum_start: Start = setting(ASSUMED, "CTKD: 15.6, where 4 classes leave only matching of logits", 4.0)
    curriculum: bool = setting(PUBLISHED, "temperature learnt against the student (CTKD)", True)
    ramp: Count = setting(CODE, "epochs over which the curriculum sets in (CTKD)", 2, 10, 4)
    meta: Meta = setting(ASSUMED, "what held-out speech teaches (MKD, MetaDistil)", "temperature")
    meta_every: Count = setting(ASSUMED, "steps from one meta step to the next", 5, 10)
    meta_lr: Positive = setting(ASSUMED, "Adam, of the logarithms of the temperatures", 0.02)
    meta_teacher_lr: Positive = setting(ASSUMED, "Adam, of the teacher's head", 1e-3, 1e-4)
    supcon_weights: tuple[Weight, ...] = setting(ASSUMED, "compared in notebook 07", (0.1, 0.5, 1.0))
    kd_weights: tuple[Weight, ...] = setting(ASSUMED, "compared in notebook 07", (0.5, 1.0))
    meta_fraction: Half = setting(ASSUMED, "of each class of the training part, held out from students", 0.1)
    epochs: Count = setting(CODE, "DWFormer (IEMOCAP 120, MELD 100)", 4, 120, 9)
    batch_size: Even = setting(CODE, "DWFormer; in pairs of one class", 32)
    lr: Positive = setting(CODE, "SGD (DWFormer); its highest", 5e-3, 5e-4, 2e-2)
    lowest_lr: Weight = setting(CODE, "of a cosine (DWFormer)", 5e-4, 1e-5, 1e-3)
    restart: Count = setting(CODE, "epochs of the first cosine, the next twice as long and so on (DWFormer)", 4, 3, 3)
    momentum: Fraction = setting(CODE, "DWFormer", 0.9)
    max_grad_norm: Weight = setting(ASSUMED, "gradient norm; 0: not clipped, too long a step for a wide head", 1.0)
    precision: Literal["float32", "bf16"] = setting(ASSUMED, "bf16: mixed, where GPU or CPU can", "float32")

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"mckd.hidden_size={self.hidden_size}: no multiple of {self.num_attention_heads} heads")
