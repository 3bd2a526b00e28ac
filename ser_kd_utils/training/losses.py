"""Losses that several methods share: pure functions of tensors, each the only implementation of its formula."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_kd_utils.training.loop import Objective

# The class index of speech that distillation may use and cross-entropy may not.
UNLABELLED = -100


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Supervised training: no teacher."""

    def __call__(self, batch, student, teacher, progress):
        return {"ce": cross_entropy(student.logits, batch["labels"])}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled items of a batch; 0 where it has none."""
    total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp_min(1)


def kd_loss(
    student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    r"""Logit distillation, $\tau_s \tau_t\,\mathrm{KL}(p_\text{teacher} \,\Vert\, p_\text{student})$.

    student, teacher: logits (batch, classes), softened by tau_s = temperature and tau_t = teacher_temperature; mean
    over the batch. teacher_temperature None: the same T for both, T^2 KL (Hinton et al. 2015). Temperatures may be
    scalar tensors that get gradients. In log space and at least float32: finite at any logit gap.
    """
    if teacher_temperature is None:
        scale, teacher_temperature = temperature**2, temperature  # T * T may differ in the last bit
    else:
        scale = temperature * teacher_temperature
    return scale * kl_divergence(soften(student, temperature), soften(teacher, teacher_temperature))


def promote(values: Tensor) -> Tensor:
    """Half precision becomes float32, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def soften(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits over the temperature, at least in float32."""
    return promote(logits) / temperature


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax of teacher || softmax of student) of logits (batch, classes), mean over the batch."""
    ours, theirs = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
