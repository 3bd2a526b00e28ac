"""Settings of decoupled distillation."""

from typing import Literal

from ser_kd_utils.settings import ASSUMED, CODE, Count, Fraction, Positive, Precision, Settings, Weight, setting, strict

Features = Literal["log filter bank", "mfcc"]
Widths = tuple[Count, Count, Count, Count, Count]


@strict
class DKDFMHSettings(Settings):
    """Decoupled distillation into a CNN with fused multi-head attention, DKDFMH (notebook 04)."""

    group = "dkdfmh"

    features: Features = setting(ASSUMED, "said by a later list of results", "log filter bank")
    frame_step: Positive = setting(CODE, "seconds, of the log filter bank (Head Fusion 10 ms)", 0.02, 0.01)
    segment: Positive = setting(CODE, "seconds (Head Fusion 2); tiny: the demo's utterances last 0.9 to 1.8", 1.0, 2.0)
    train_overlap: Weight = setting(CODE, "seconds, of segments in training (Head Fusion 1)", 0.5, 1.0)
    test_overlap: Weight = setting(CODE, "seconds, of segments in tests (Head Fusion 1.6)", 0.5, 1.6)
    channels: Widths = setting(CODE, "of the convolutions (Head Fusion)", (4, 16, 24, 32, 40), (8, 32, 48, 64, 80))
    num_attention_heads: Count = setting(CODE, "of the student (Head Fusion)", 4)
    head_dim: Count = setting(CODE, "width of a head of the student (Head Fusion 64)", 16, 64)
    teacher_attention_heads: Count = setting(ASSUMED, "a larger scale of the attention set", 8)
    teacher_head_dim: Count = setting(ASSUMED, "of a teacher's head; tiny: best of 16, 32, 64 on dev", 32, 256)
    attention: Literal["code", "text"] = setting(CODE, "of Head Fusion, whose code and text differ", "code")
    loss: Literal["dkd", "kd"] = setting(ASSUMED, "decoupled or classical distillation (weight alpha)", "dkd")
    ce_weight: Weight = setting(CODE, "of cross-entropy beside distillation, DKD", 1.0)
    alpha: Weight = setting(CODE, "weight of TCKD, DKD; of KD where that is the loss", 1.0)
    beta: Weight = setting(ASSUMED, "weight of NCKD, DKD 8; of 0.25 to 8 best on dev speech of EMO-DB", 1.0)
    temperature: Positive = setting(ASSUMED, "of DKD (4; on IEMOCAP in public code 1); best of 1, 2, 4 there", 1.0)
    kd_temperature: Positive = setting(ASSUMED, "of KD; better there than 2, the only other one tried", 4.0)
    kd_warmup_ratio: Fraction = setting(CODE, "epochs in which distillation sets in (DKD 20 of 240)", 0.08)
    alphas: tuple[Weight, ...] = setting(ASSUMED, "of DKD and KD, in equal grids (notebook 05)", (0.5, 2.0))
    betas: tuple[Weight, ...] = setting(ASSUMED, "of DKD; 0.5: not tried", (0.25, 0.5, 2.0, 8.0))
    temperatures: tuple[Positive, ...] = setting(ASSUMED, "of DKD and KD, as alphas", (1.0, 2.0, 4.0))
    head_counts: tuple[Count, ...] = setting(ASSUMED, "the student's, compared in notebook 05", (1, 2, 8))
    epochs: Count = setting(CODE, "Head Fusion (50)", 6, 50, 24)
    batch_size: Count = setting(CODE, "segments a step, Head Fusion", 32)
    lr: Positive = setting(CODE, "Adam, Head Fusion", 1e-3)
    lr_drops: tuple[Fraction, ...] = setting(CODE, "to a tenth each (Head Fusion)", (0.6, 0.85), (0.2, 0.4, 0.6, 0.8))
    weight_decay: Weight = setting(CODE, "Head Fusion", 1e-6)
    max_grad_norm: Weight = setting(CODE, "gradient norm; 0: not clipped (Head Fusion)", 0.0)
    precision: Precision = setting(ASSUMED, "bf16: mixed, where GPU or CPU can", "float32")

    def __post_init__(self) -> None:
        for name in ("train_overlap", "test_overlap"):
            if getattr(self, name) >= self.segment:
                raise ValueError(f"dkdfmh.{name}={getattr(self, name)!r}: less than the segment of {self.segment:g} s")
