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


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
) -> Tensor:
    r"""Logit distillation, $\tau_s \tau_t\,\mathrm{KL}(p_\text{teacher} \,\Vert\, p_\text{student})$.

    student, teacher: logits (batch, classes), softened by tau_s = temperature and tau_t = teacher_temperature; mean
    over the batch. teacher_temperature None: the same T for both, T^2 KL (Hinton et al. 2015). Temperatures may be
    scalar tensors that get gradients. In log space and at least float32: finite at any logit gap.
    """
    if teacher_temperature is None:
        scale, teacher_temperature = temperature**2, temperature
    else:
        scale = temperature * teacher_temperature
    return scale * _divergence(_soften(student, temperature), _soften(teacher, teacher_temperature))


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


def supervised_contrastive(embeddings: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    r"""Supervised contrastive loss (SupCon, Khosla et al. 2020, eq. 2: the mean over positives outside the log).

    embeddings: (batch, width), normalised here; labels: (batch,). With cosines c, T = temperature and the positives
    P(i), all other items of the label of i, the scalar

    $$-\frac{1}{B}\sum_i \frac{1}{|P(i)|} \sum_{p \in P(i)}
      \log \frac{\exp(c_{ip} / T)}{\sum_{a \ne i} \exp(c_{ia} / T)}$$

    An item without positives adds zero and counts in B, as in the released code. In log space and at least float32.
    """
    embeddings = _promote(embeddings)
    # not a matrix product, which autocast would compute in half precision
    logits = F.cosine_similarity(embeddings[:, None], embeddings, dim=-1) / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels) & ~itself
    log_p = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    sums = log_p.masked_fill(~positive, 0).sum(1)  # a batch of one item has no finite log_p
    return -(sums / positive.sum(1).clamp_min(1)).mean()


def _promote(values: Tensor) -> Tensor:
    """Half precision becomes float32, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _soften(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return _promote(logits) / temperature


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax of teacher || softmax of student) of logits (batch, classes), mean over the batch."""
    ours, theirs = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
