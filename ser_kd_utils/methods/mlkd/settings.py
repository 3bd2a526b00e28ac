"""Settings of multi-level distillation."""

from typing import Literal

from pydantic.dataclasses import dataclass

from ser_kd_utils.settings import ASSUMED, CODE, STRICT, Count, Fraction, Positive, Precision, Settings, Weight, setting

Stages = Literal["joint", "two-stage"]
Network = Literal["fine-tuned", "untuned"]
Targets = Literal["utterance", "piece", "noisy piece"]
"""The whole utterance is computed once, a piece at each step."""


@dataclass(frozen=True, config=STRICT)
class MLKDSettings(Settings):
    """Multi-level distillation into a small student in noise (notebook 02)."""

    group = "mlkd"

    student_layers: Count = setting(1, 2, CODE, "DistilHuBERT (2 of 12)", 1)
    teacher_layers: tuple[Count, ...] = setting(
        (1, 2, 3), (4, 8, 12), CODE, "RobustDistiller (of 12 layers); empty: none", (2, 3, 4)
    )
    gamma: Weight = setting(1.0, 1.0, ASSUMED, "weight of the feature loss beside cross-entropy; whisper: of 1 and 5")
    l1_weight: Weight = setting(1.0, 1.0, CODE, "of the feature loss, DistilHuBERT")
    cosine_weight: Weight = setting(1.0, 1.0, CODE, "lambda of DistilHuBERT")
    logit_weight: Weight = setting(0.0, 0.0, ASSUMED, "weight of distillation from the teacher's logits")
    temperature: Positive = setting(2.0, 2.0, ASSUMED, "of distillation from logits")
    stages: Stages = setting("joint", "joint", ASSUMED, "two-stage: features only, then, from half on, labels only")
    initial: Literal["teacher", "random"] = setting("teacher", "teacher", CODE, "first weights (DistilHuBERT)")
    target_network: Network = setting("fine-tuned", "fine-tuned", ASSUMED, "untuned: the encoder before fine-tuning")
    targets: Targets = setting("utterance", "utterance", ASSUMED, "what the teacher hears, clean unless it says noisy")
    clean_fraction: Fraction = setting(0.0, 0.0, ASSUMED, "of the training items that the student hears clean")
    label_fraction: Fraction = setting(1.0, 1.0, ASSUMED, "of each class whose labels the student is told")
    pseudo_labels: bool = setting(False, False, ASSUMED, "what the teacher answers stands for the labels not told")
    unlabelled_speech: bool = setting(False, False, ASSUMED, "distilled on the speech of --speech-dir, too")
    gammas: tuple[Weight, ...] = setting((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), ASSUMED, "compared in notebook 03")
    depths: tuple[Count, ...] = setting(
        (1, 2, 3), (1, 2, 4), ASSUMED, "student layers compared in notebook 03", (1, 2, 4)
    )
    cnn_gradient: Weight = setting(0.1, 0.1, CODE, "scales the gradient into the CNN (DistilHuBERT)")
    epochs: Count = setting(16, 30, ASSUMED, "students start from the teacher's weights; whisper: of 8 and 16", 12)
    batch_size: Count = setting(8, 24, CODE, "DistilHuBERT (24)", 8)
    lr: Positive = setting(
        1e-3, 1e-4, ASSUMED, "AdamW, all weights of students and of the teacher-size baseline; whisper: of 1e-4, 3e-4 "
        "and 1e-3 by dev speakers of EMO-DB folds 1 and 2, as all that was tried there", 3e-4,
    )  # fmt: skip
    weight_decay: Weight = setting(1e-2, 1e-6, CODE, "DistilHuBERT (1e-6)", 1e-2)
    betas: tuple[Fraction, Fraction] = setting((0.9, 0.98), (0.9, 0.98), CODE, "DistilHuBERT")
    warmup_ratio: Fraction = setting(0.07, 0.07, CODE, "of the steps, linear; then linear decay (DistilHuBERT)")
    max_grad_norm: Weight = setting(1.0, 5.0, ASSUMED, "gradient norm; 0: not clipped", 1.0)
    max_seconds: Positive = setting(
        2.0, 10.0, ASSUMED, "longest training window, cropped at random; Whisper: no longer than the teacher's", 3.0
    )
    precision: Precision = setting("float32", "bf16", ASSUMED, "bf16: mixed, where GPU or CPU can", "bf16")
