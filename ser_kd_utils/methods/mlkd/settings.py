"""Settings of multi-level distillation."""

from typing import Literal

from ser_kd_utils.settings import ASSUMED, CODE, Count, Fraction, Positive, Precision, Settings, Weight, setting, strict

Stages = Literal["joint", "two-stage"]
Network = Literal["fine-tuned", "untuned"]
# The whole utterance is computed once, a piece at each step.
Targets = Literal["utterance", "piece", "noisy piece"]


@strict
class MLKDSettings(Settings):
    """Multi-level distillation into a small student in noise (notebook 02)."""

    group = "mlkd"

    student_layers: Count = setting(CODE, "DistilHuBERT (2 of 12)", 1, 2)
    teacher_layers: tuple[Count, ...] = setting(
        CODE, "RobustDistiller (of 12 layers); empty: none", (1, 2, 3), (4, 8, 12), (2, 3, 4)
    )
    gamma: Weight = setting(ASSUMED, "weight of the feature loss beside cross-entropy; whisper: of 0.3, 1 and 5", 1.0)
    l1_weight: Weight = setting(CODE, "of the feature loss, DistilHuBERT", 1.0)
    cosine_weight: Weight = setting(CODE, "lambda of DistilHuBERT", 1.0)
    logit_weight: Weight = setting(ASSUMED, "weight of distillation from the teacher's logits", 0.0)
    temperature: Positive = setting(ASSUMED, "of distillation from logits", 2.0)
    stages: Stages = setting(ASSUMED, "two-stage: features only, then, from half on, labels only", "joint")
    initial: Literal["teacher", "random", "log-mel"] = setting(
        CODE, "first weights (DistilHuBERT); log-mel: random ones, behind Whisper's two convolutions on log-mel "
        "(Radford et al. 2022) in place of the teacher's front end (ASSUMED)", "teacher",
    )  # fmt: skip
    target_network: Network = setting(ASSUMED, "untuned: the encoder before fine-tuning", "fine-tuned")
    targets: Targets = setting(ASSUMED, "what the teacher hears, clean unless it says noisy", "utterance")
    clean_fraction: Fraction = setting(ASSUMED, "of the training items that the student hears clean", 0.0)
    label_fraction: Fraction = setting(ASSUMED, "of each class whose labels the student is told", 1.0)
    pseudo_labels: bool = setting(ASSUMED, "what the teacher answers stands for the labels not told", False)
    unlabelled_speech: bool = setting(ASSUMED, "distilled on the speech of --speech-dir, too", False)
    gammas: tuple[Weight, ...] = setting(ASSUMED, "compared in notebook 03", (0.1, 1.0, 10.0))
    depths: tuple[Count, ...] = setting(ASSUMED, "student layers of notebook 03", (1, 2, 3), (1, 2, 4), (1, 2, 4))
    cnn_gradient: Weight = setting(CODE, "scales the gradient into the CNN (DistilHuBERT)", 0.1)
    epochs: Count = setting(ASSUMED, "students start from the teacher's weights; whisper: of 8, 12 and 16", 8, 30, 12)
    batch_size: Count = setting(CODE, "DistilHuBERT (24)", 8, 24)
    lr: Positive = setting(
        ASSUMED, "AdamW, all weights of students and of the teacher-size baseline; whisper: of 1e-4, 3e-4 and 1e-3 "
        "by dev speakers of EMO-DB folds 1 and 2, as all that was tried there", 1e-3, 1e-4, 3e-4,
    )  # fmt: skip
    weight_decay: Weight = setting(CODE, "DistilHuBERT (1e-6)", 1e-2, 1e-6)
    betas: tuple[Fraction, Fraction] = setting(CODE, "DistilHuBERT", (0.9, 0.98))
    warmup_ratio: Fraction = setting(CODE, "of the steps, linear; then linear decay (DistilHuBERT)", 0.07)
    max_grad_norm: Weight = setting(ASSUMED, "gradient norm; 0: not clipped", 1.0, 5.0)
    max_seconds: Positive = setting(
        ASSUMED, "longest training window, cropped at random; Whisper: no longer than the teacher's", 2.0, 10.0, 3.0
    )
    precision: Precision = setting(ASSUMED, "bf16: mixed, where GPU or CPU can", "float32", "bf16", "bf16")
