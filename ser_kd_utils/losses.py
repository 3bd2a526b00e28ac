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

    student, teacher: logits (batch, classes), softened by T = temperature; mean over the batch. In log space: finite at
    any logit gap.
    """
    ours, theirs = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
