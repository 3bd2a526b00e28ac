"""Distillation losses: pure functions of tensors, each the only implementation of its formula."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, cosine_weight: float = 1.0, l1_weight: float = 1.0
) -> Tensor:
    r"""One level of feature distillation (DistilHuBERT, Chang et al. 2022, eq. 1).

    prediction, target: (batch, frames, width); mask: (batch, frames), true where a frame is speech and not padding.
    Returns the scalar

    $$\frac{1}{|M|}\sum_{t \in M} \Big[ \mu \frac{1}{D} \lVert \hat h_t - h_t \rVert_1
      - \lambda \log \sigma(\cos(\hat h_t, h_t)) \Big]$$

    with the weights mu of L1 (1 in DistilHuBERT) and lambda of the cosine, averaged over all frames of the batch, so
    that long utterances weigh more.
    """
    l1 = (prediction - target).abs().mean(-1)
    cosine = -F.logsigmoid(F.cosine_similarity(prediction, target, dim=-1))
    weight = mask.to(l1.dtype)
    return ((l1_weight * l1 + cosine_weight * cosine) * weight).sum() / weight.sum()


def multi_level_loss(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    mask: Tensor,
    cosine_weight: float = 1.0,
    l1_weight: float = 1.0,
) -> Tensor:
    """Mean of `feature_loss` over the teacher's levels (MLKD, Liu et al. 2023; after RobustDistiller).

    predictions, targets: one (batch, frames, width) tensor a level, in the same order.
    """
    pairs = zip(predictions, targets, strict=True)
    return torch.stack([feature_loss(p, t, mask, cosine_weight, l1_weight) for p, t in pairs]).mean()


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Logit distillation, $T^2\,\mathrm{KL}(p_\text{teacher} \,\Vert\, p_\text{student})$ (Hinton et al. 2015).

    student, teacher: logits (batch, classes), softened by T = temperature; mean over the batch. In log space and at
    least float32: finite at any logit gap.
    """
    return temperature**2 * _divergence(_soften(student, temperature), _soften(teacher, temperature))


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
    for logits in (_soften(student, temperature), _soften(teacher, temperature)):
        q.append(logits.gather(1, others))
        b.append(torch.cat([logits.gather(1, labels[:, None]), q[-1].logsumexp(1, keepdim=True)], 1))
    return temperature**2 * _divergence(*b), temperature**2 * _divergence(*q)


def _soften(logits: Tensor, temperature: float) -> Tensor:
    """Half precision becomes float32, float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax of teacher || softmax of student) of logits (batch, classes), mean over the batch."""
    ours, theirs = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
