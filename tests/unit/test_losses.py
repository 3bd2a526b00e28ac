"""Losses against plain loops and numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ser_kd_utils.losses import feature_loss, kd_loss, multi_level_loss

MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])


def draw(seed: int, width: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(*MASK.shape, width)))


def expected(prediction: torch.Tensor, target: torch.Tensor, cosine_weight: float, l1_weight: float = 1.0) -> float:
    """The formula in words: per valid frame weighted mean |difference| - weighted log sigmoid(cosine), averaged over
    frames."""
    total, frames = 0.0, 0
    for item, frame in zip(*np.nonzero(MASK.numpy()), strict=True):
        p, t = prediction[item, frame].tolist(), target[item, frame].tolist()
        l1 = sum(abs(a - b) for a, b in zip(p, t, strict=True)) / len(p)
        dot = sum(a * b for a, b in zip(p, t, strict=True))
        cosine = dot / (math.hypot(*p) * math.hypot(*t))
        total += l1_weight * l1 + cosine_weight * math.log(1 + math.exp(-cosine))
        frames += 1
    return total / frames


@pytest.mark.parametrize("l1_weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("cosine_weight", [0.0, 1.0, 2.5])
def test_feature_loss_is_the_formula(cosine_weight, l1_weight):
    prediction, target = draw(0), draw(1)
    loss = feature_loss(prediction, target, MASK, cosine_weight, l1_weight)
    assert loss.item() == pytest.approx(expected(prediction, target, cosine_weight, l1_weight), rel=1e-12)


def test_each_term_counts_once_by_default():
    assert feature_loss(draw(0), draw(1), MASK).item() == pytest.approx(expected(draw(0), draw(1), 1.0), rel=1e-12)


def test_multi_level_loss_is_the_mean_over_levels():
    predictions, targets = [draw(0), draw(1), draw(2)], [draw(3), draw(4), draw(5)]
    for weights in ((), (0.7,), (0.7, 0.2)):
        levels = [expected(p, t, *(weights or (1.0,))) for p, t in zip(predictions, targets, strict=True)]
        loss = multi_level_loss(predictions, targets, MASK, *weights)
        assert loss.item() == pytest.approx(np.mean(levels), rel=1e-12)


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


# --- distillation of logits


def logits(seed: int, items: int = 5, classes: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (items, classes)))


def soft(values: torch.Tensor, temperature: float) -> np.ndarray:
    powers = np.exp(values.detach().numpy() / temperature)
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_kd_loss_is_temperature_squared_times_the_divergence_from_the_teacher(temperature):
    student, teacher = logits(0), logits(1)
    ours, theirs = soft(student, temperature), soft(teacher, temperature)
    divergence = (theirs * np.log(theirs / ours)).sum(1).mean()
    loss = kd_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(temperature**2 * divergence, rel=1e-12) and loss.shape == ()


def test_kd_loss_has_temperature_1_by_default():
    assert kd_loss(logits(0), logits(1)) == kd_loss(logits(0), logits(1), 1.0) != kd_loss(logits(0), logits(1), 2.0)


def test_equal_distributions_leave_no_kd_loss():
    assert kd_loss(logits(0), logits(0), 2.0).item() == 0
    shifted = logits(0) + torch.arange(5.0)[:, None]  # the same probabilities
    assert kd_loss(shifted, logits(0), 2.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_kd_gradients_are_differences_of_probabilities_and_do_not_shrink_with_temperature(temperature):
    student, teacher = logits(0).requires_grad_(), logits(1)
    kd_loss(student, teacher, temperature).backward()
    wanted = temperature * (soft(student, temperature) - soft(teacher, temperature)) / len(student)
    np.testing.assert_allclose(student.grad, wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [1e2, 1e4])
def test_kd_loss_is_finite_and_right_at_any_logit_gap(gap, dtype):
    student = torch.tensor([[gap, 0, 0], [0, 0, gap]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0, gap, 0], [0, 0, gap]], dtype=dtype)
    loss = kd_loss(student, teacher, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(2.0**2 * (gap / 2) / 2, rel=1e-2)  # one item wrong by the whole gap, one right
    wanted = torch.tensor([[1.0, -1, 0], [0, 0, 0]], dtype=dtype)  # T / batch is 1
    torch.testing.assert_close(student.grad, wanted)
