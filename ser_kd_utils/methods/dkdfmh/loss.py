"""DKDFMH's loss: logit distillation, decoupled into what the teacher says of the target class and of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ser_kd_utils.methods.dkdfmh.settings import DKDFMHSettings
from ser_kd_utils.training.loop import Objective
from ser_kd_utils.training.losses import cross_entropy, kd_loss, kl_divergence, soften


def decoupled_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Target and non-target part of logit distillation, TCKD and NCKD (Zhao et al. 2022), each unweighted.

    student, teacher: logits (batch, classes); labels: (batch,) indices of the target classes t. With probabilities p
    softened by T = temperature, b = [p_t, 1 - p_t] and q = p / (1 - p_t) over the other classes, means over the batch:

    $$\mathrm{TCKD} = T^2\,\mathrm{KL}(b_\text{teacher} \,\Vert\, b_\text{student}), \qquad
      \mathrm{NCKD} = T^2\,\mathrm{KL}(q_\text{teacher} \,\Vert\, q_\text{student})$$

    For one item `kd_loss` is TCKD + (1 - p_t of the teacher) NCKD. In log space and at least float32: finite at any
    logit gap, where the released code takes the logarithm of a probability that has become 0.
    """
    columns = torch.arange(student.shape[1] - 1, device=student.device)
    others = columns + (columns >= labels[:, None])
    b, q = [], []
    for logits in (soften(student, temperature), soften(teacher, temperature)):
        q.append(logits.gather(1, others))
        b.append(torch.cat([logits.gather(1, labels[:, None]), q[-1].logsumexp(1, keepdim=True)], 1))
    return temperature**2 * kl_divergence(*b), temperature**2 * kl_divergence(*q)


@dataclass(frozen=True)
class Decoupled(Objective):
    """ce_weight CE + w (alpha TCKD + beta NCKD), or w alpha KD where settings.loss is "kd".

    w = min(epoch / warm-up epochs, 1), epochs counted from 1 (DKD, Zhao et al. 2022, released code).
    """

    settings: DKDFMHSettings

    def __call__(self, batch, student, teacher, progress):
        use = self.settings
        ours, theirs, labels = student.logits, batch["teacher_logits"], batch["labels"]
        epoch = min(int(progress * use.epochs) + 1, use.epochs)
        weight = min(epoch / max(use.kd_warmup_ratio * use.epochs, 1), 1.0)
        terms = {"ce": use.ce_weight * cross_entropy(ours, labels)}
        if use.loss == "kd":
            return terms | {"kd": weight * use.alpha * kd_loss(ours, theirs, use.kd_temperature)}
        target, others = decoupled_kd(ours, theirs, labels, use.temperature)
        return terms | {"tckd": weight * use.alpha * target, "nckd": weight * use.beta * others}
