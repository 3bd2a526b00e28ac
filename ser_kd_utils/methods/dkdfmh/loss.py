"""DKDFMH's loss: logit distillation, decoupled into a part about the target class and one about the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ser_kd_utils.methods.dkdfmh.settings import DKDFMHSettings
from ser_kd_utils.training.loop import Objective
from ser_kd_utils.training.losses import cross_entropy, kd_loss, kl_divergence, soften


def decoupled_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Target and non-target part of logit distillation, TCKD and NCKD (Zhao et al. 2022), each unweighted.

    student, teacher: logits (batch, classes); labels: (batch,) indices of the target classes y. With probabilities p
    softened by T = temperature, b = [p_y, 1 - p_y] and q = p / (1 - p_y) over the other classes, means over the batch:

    $$\mathrm{TCKD} = T^2\,\mathrm{KL}(b_\text{teacher} \,\Vert\, b_\text{student}), \qquad
      \mathrm{NCKD} = T^2\,\mathrm{KL}(q_\text{teacher} \,\Vert\, q_\text{student})$$

    For one item `kd_loss` is TCKD + (1 - p_y of the teacher) NCKD. Computed in log space and in float32 or wider, it is
    finite at any logit gap; the released code takes the logarithm of a probability that may have become 0.
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
    """ce_weight CE + kappa (alpha TCKD + beta NCKD), or kappa alpha KD where settings.loss is "kd".

    kappa = min(epoch / warm-up epochs, 1), epochs counted from 1 (DKD, Zhao et al. 2022, released code).
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
