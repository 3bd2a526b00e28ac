"""Settings of decoupled distillation."""

from typing import Literal

from pydantic.dataclasses import dataclass

from ser_kd_utils.settings import ASSUMED, CODE, STRICT, Count, Fraction, Positive, Precision, Settings, Weight, setting

Features = Literal["log filter bank", "mfcc"]
Widths = tuple[Count, Count, Count, Count, Count]


@dataclass(frozen=True, config=STRICT)
class DKDFMHSettings(Settings):
    """Decoupled distillation into a CNN with fused multi-head attention, DKDFMH (notebook 04)."""

    group = "dkdfmh"

    features: Features = setting("log filter bank", "log filter bank", ASSUMED, "said by a later list of results")
    frame_step: Positive = setting(0.02, 0.01, CODE, "seconds, of the log filter bank (Head Fusion 10 ms)")
    segment: Positive = setting(1.0, 2.0, CODE, "seconds (Head Fusion 2); tiny: the demo's utterances last 0.9 to 1.8")
    train_overlap: Weight = setting(0.5, 1.0, CODE, "seconds, of segments in training (Head Fusion 1)")
    test_overlap: Weight = setting(0.75, 1.6, CODE, "seconds, of segments in tests (Head Fusion 1.6)")
    channels: Widths = setting((4, 16, 24, 32, 40), (8, 32, 48, 64, 80), CODE, "of the convolutions (Head Fusion)")
    num_attention_heads: Count = setting(4, 4, CODE, "of the student (Head Fusion)")
    head_dim: Count = setting(16, 64, CODE, "width of a head of the student (Head Fusion 64)")
    teacher_attention_heads: Count = setting(8, 8, ASSUMED, "a larger scale of the attention set")
    teacher_head_dim: Count = setting(64, 256, ASSUMED, "width of a head of the teacher")
    attention: Literal["code", "text"] = setting("code", "code", CODE, "of Head Fusion, whose code and text differ")
    loss: Literal["dkd", "kd"] = setting("dkd", "dkd", ASSUMED, "decoupled or classical distillation (weight alpha)")
    ce_weight: Weight = setting(1.0, 1.0, CODE, "of cross-entropy beside distillation, DKD")
    alpha: Weight = setting(1.0, 1.0, CODE, "weight of TCKD, DKD; of KD where that is the loss")
    beta: Weight = setting(1.0, 1.0, ASSUMED, "weight of NCKD, DKD 8; of 0.25 to 8 best on dev speech of EMO-DB")
    temperature: Positive = setting(1.0, 1.0, ASSUMED, "of DKD (4; on IEMOCAP in public code 1); best of 1, 2, 4 there")
    kd_temperature: Positive = setting(4.0, 4.0, ASSUMED, "of KD; better there than 2, the only other one tried")
    kd_warmup_ratio: Fraction = setting(0.08, 0.08, CODE, "epochs in which distillation sets in (DKD 20 of 240)")
    alphas: tuple[Weight, ...] = setting((0.5, 2.0), (0.5, 2.0), ASSUMED, "of DKD and KD, in equal grids (notebook 05)")
    betas: tuple[Weight, ...] = setting((0.25, 0.5, 2.0, 8.0), (0.25, 0.5, 2.0, 8.0), ASSUMED, "of DKD; 0.5: not tried")
    temperatures: tuple[Positive, ...] = setting((1.0, 2.0, 4.0), (1.0, 2.0, 4.0), ASSUMED, "of DKD and KD, as alphas")
    head_counts: tuple[Count, ...] = setting((1, 2, 8), (1, 2, 8), ASSUMED, "the student's, compared in notebook 05")
    epochs: Count = setting(24, 50, CODE, "Head Fusion (50)")
    batch_size: Count = setting(32, 32, CODE, "segments a step, Head Fusion")
    lr: Positive = setting(1e-3, 1e-3, CODE, "Adam, Head Fusion")
    lr_drops: tuple[Fraction, ...] = setting((0.6, 0.85), (0.2, 0.4, 0.6, 0.8), CODE, "to a tenth each (Head Fusion)")
    weight_decay: Weight = setting(1e-6, 1e-6, CODE, "Head Fusion")
    max_grad_norm: Weight = setting(0.0, 0.0, CODE, "gradient norm; 0: not clipped (Head Fusion)")
    precision: Precision = setting("float32", "float32", ASSUMED, "bf16: mixed, where GPU or CPU can")

    def __post_init__(self) -> None:
        for name in ("train_overlap", "test_overlap"):
            if getattr(self, name) >= self.segment:
                raise ValueError(f"dkdfmh.{name}={getattr(self, name)!r}: less than the segment of {self.segment:g} s")
