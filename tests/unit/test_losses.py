"""Feature losses against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ser_kd_utils.losses import feature_loss, multi_level_loss

MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])


def draw(seed: int, width: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(*MASK.shape, width)))


def expected(prediction: torch.Tensor, target: torch.Tensor, cosine_weight: float) -> float:
    """The formula in words: per valid frame mean |difference| - weight * log sigmoid(cosine), averaged over frames."""
    total, frames = 0.0, 0
    for item, frame in zip(*np.nonzero(MASK.numpy()), strict=True):
        p, t = prediction[item, frame].tolist(), target[item, frame].tolist()
        l1 = sum(abs(a - b) for a, b in zip(p, t, strict=True)) / len(p)
        dot = sum(a * b for a, b in zip(p, t, strict=True))
        cosine = dot / (math.hypot(*p) * math.hypot(*t))
        total += l1 + cosine_weight * math.log(1 + math.exp(-cosine))
        frames += 1
    return total / frames


@pytest.mark.parametrize("cosine_weight", [0.0, 1.0, 2.5])
def test_feature_loss_is_the_formula(cosine_weight):
    prediction, target = draw(0), draw(1)
    loss = feature_loss(prediction, target, MASK, cosine_weight)
    assert loss.item() == pytest.approx(expected(prediction, target, cosine_weight), rel=1e-12)


def test_the_cosine_counts_once_by_default():
    assert feature_loss(draw(0), draw(1), MASK).item() == pytest.approx(expected(draw(0), draw(1), 1.0), rel=1e-12)


def test_multi_level_loss_is_the_mean_over_levels():
    predictions, targets = [draw(0), draw(1), draw(2)], [draw(3), draw(4), draw(5)]
    levels = [expected(p, t, 0.7) for p, t in zip(predictions, targets, strict=True)]
    assert multi_level_loss(predictions, targets, MASK, 0.7).item() == pytest.approx(np.mean(levels), rel=1e-12)


def test_a_prediction_for_every_level():
    with pytest.raises(ValueError):
        multi_level_loss([draw(0)], [draw(1), draw(2)], MASK)


@pytest.mark.parametrize("cosine_weight", [0.0, 1.0, 3.0])
def test_equal_features_leave_the_cosines_floor(cosine_weight):
    loss = feature_loss(draw(0), draw(0), MASK, cosine_weight)
    assert loss.item() == pytest.approx(cosine_weight * math.log(1 + math.exp(-1)), abs=1e-12)


def test_padding_changes_neither_loss_nor_gradient():
    prediction, target = draw(0).requires_grad_(), draw(1)
    loss = feature_loss(prediction, target, MASK)
    loss.backward()
    assert (prediction.grad[~MASK] == 0).all() and (prediction.grad[MASK] != 0).any(-1).all()
    other = torch.where(MASK[..., None], draw(0), 1e3)
    assert torch.equal(feature_loss(other, target, MASK), loss.detach())


def test_gradients():
    prediction, target = draw(0).requires_grad_(), draw(1)
    assert torch.autograd.gradcheck(lambda p: feature_loss(p, target, MASK, 0.7), (prediction,))
    other = draw(2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, q: multi_level_loss([p, q], [target, draw(3)], MASK, 0.7), (prediction, other)
    )
