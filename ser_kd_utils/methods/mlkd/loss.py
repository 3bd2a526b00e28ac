"""MLKD's loss: cross-entropy, and the distance of the student's predictions from several of the teacher's layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_kd_utils.methods.mlkd.settings import MLKDSettings
from ser_kd_utils.training.dataset import hidden_states
from ser_kd_utils.training.loop import Objective
from ser_kd_utils.training.losses import cross_entropy, kd_loss


def feature_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, cosine_weight: float = 1.0, l1_weight: float = 1.0
) -> Tensor:
    r"""Feature distillation from one layer (DistilHuBERT, Chang et al. 2022, eq. 1).

    prediction, target: (batch, frames, width); mask: (batch, frames), true where a frame is speech and not padding.
    Returns the scalar

    $$\frac{1}{|M|}\sum_{t \in M} \Big[ \lambda_1 \frac{1}{D} \lVert \hat h_t - h_t \rVert_1
      - \lambda \log \sigma(\cos(\hat h_t, h_t)) \Big]$$

    with the weights lambda_1 of L1 (1 in DistilHuBERT) and lambda of the cosine. It is averaged over all frames of the
    batch, so that long utterances have more weight.
    """
    l1 = (prediction - target).abs().mean(-1)
    cosine = -F.logsigmoid(F.cosine_similarity(prediction, target, dim=-1))
    weight = mask.to(l1.dtype)
    return ((l1_weight * l1 + cosine_weight * cosine) * weight).sum() / weight.sum()


def multi_level_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor], mask: Tensor, *weights: float) -> Tensor:
    """Mean of `feature_loss` over the teacher's layers (MLKD, Liu et al. 2023; after RobustDistiller).

    predictions, targets: one (batch, frames, width) tensor for each layer, in the same order; weights: of the cosine
    and of L1, 1 each unless given.
    """
    pairs = zip(predictions, targets, strict=True)
    return torch.stack([feature_loss(p, t, mask, *weights) for p, t in pairs]).mean()


@dataclass(frozen=True)
class MultiLevel(Objective):
    """CE + gamma * mean over teacher layers of the feature loss against the teacher's states (+ logit distillation).

    settings: teacher_layers, gamma, l1_weight, cosine_weight, logit_weight, temperature, and stages: "joint", or
    "two-stage", which changes from the feature loss to cross-entropy at half of the training. The batch holds the
    teacher's outputs; where it does not, the teacher is run at each step.
    """

    settings: MLKDSettings
    depth: int  # layers of the teacher
    frame_mask: Callable[[int, Tensor], Tensor]  # (frames, lengths in samples) -> (batch, frames)

    def __call__(self, batch, student, teacher, progress):
        use, predictions = self.settings, student.hidden_states
        if teacher is None:
            targets, logits = batch["teacher_states"].float().unbind(2), batch["teacher_logits"]
        else:
            targets, logits = hidden_states(teacher, use.teacher_layers, self.depth), teacher.logits
        # an encoder may have heard a little beyond the window, and Whisper gives frames of its padding, too
        frames = min(predictions[0].shape[1], targets[0].shape[1])
        predictions, targets = ([each[:, :frames] for each in some] for some in (predictions, targets))
        mask = self.frame_mask(frames, batch["lengths"])
        feature = multi_level_loss(predictions, targets, mask, use.cosine_weight, use.l1_weight)
        terms = {"ce": cross_entropy(student.logits, batch["labels"]), "feature": use.gamma * feature}
        if use.logit_weight:
            terms["logits"] = use.logit_weight * kd_loss(student.logits, logits, use.temperature)
        if use.stages == "two-stage":
            now = {"ce"} if progress >= 0.5 else terms.keys() - {"ce"}
            terms = {name: term * (name in now) for name, term in terms.items()}
        return terms
