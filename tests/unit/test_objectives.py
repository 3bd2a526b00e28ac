"""What is minimised: cross-entropy where there are labels, and MLKD's terms with their weights and stages."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ser_kd_utils.methods.mlkd.loss import MultiLevel
from ser_kd_utils.methods.mlkd.settings import MLKDSettings
from ser_kd_utils.training.losses import UNLABELLED, cross_entropy


def test_cross_entropy_is_the_mean_over_labelled_items():
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (5, 4))).requires_grad_()
    labels = torch.tensor([2, UNLABELLED, 0, 3, UNLABELLED])
    loss = cross_entropy(logits, labels)
    loss.backward()
    powers = np.exp(logits.detach().numpy())
    probability = powers / powers.sum(1, keepdims=True)
    assert loss.item() == pytest.approx(-np.log(probability[[0, 2, 3], [2, 0, 3]]).mean(), rel=1e-12)
    wanted = probability / 3
    wanted[[0, 2, 3], [2, 0, 3]] -= 1 / 3
    wanted[[1, 4]] = 0
    np.testing.assert_allclose(logits.grad, wanted, atol=1e-15)


def test_a_batch_without_labels_has_no_cross_entropy_and_a_gradient_of_zero():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((3,), UNLABELLED))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(3, 4))


@pytest.fixture
def given():
    """A batch of two, the student's output for layers 1 and 2 of 2, and the teacher's at this step."""
    torch.manual_seed(0)
    states = tuple(torch.randn(2, 5, 4) for _ in range(5))
    student = SimpleNamespace(logits=torch.randn(2, 2), hidden_states=states[:2])
    teacher = SimpleNamespace(logits=torch.randn(2, 2), hidden_states=states[2:])
    return {"labels": torch.tensor([0, 1]), "lengths": torch.tensor([1600, 1600])}, student, teacher


@pytest.fixture
def terms(given):
    mask = torch.ones(2, 5, dtype=torch.bool)

    def terms(progress=0.0, **changes) -> dict[str, float]:
        objective = MultiLevel(MLKDSettings.of("tiny", teacher_layers=(1, 2), **changes), 2, lambda *_: mask)
        return {name: value.item() for name, value in objective(*given, progress).items()}

    return terms


def test_the_terms_carry_their_weights(terms, given):
    _, student, teacher = given
    once = terms()
    assert once.keys() == {"ce", "feature"}  # no logits without a weight
    powers = np.exp(student.logits.double().numpy())
    probability = powers / powers.sum(1, keepdims=True)
    assert once["ce"] == pytest.approx(-np.log(probability[[0, 1], [0, 1]]).mean(), rel=1e-5)
    pairs = list(zip(student.hidden_states, teacher.hidden_states[1:], strict=True))
    l1 = np.mean([(p - t).abs().mean().item() for p, t in pairs])
    cosine = np.mean([-torch.sigmoid(torch.cosine_similarity(p, t, -1)).log().mean().item() for p, t in pairs])
    assert once["feature"] == pytest.approx(l1 + cosine, rel=1e-5)
    weighed = terms(gamma=3.0, l1_weight=0.5, cosine_weight=4.0)
    assert weighed["feature"] == pytest.approx(3 * (0.5 * l1 + 4 * cosine), rel=1e-5) and weighed["ce"] == once["ce"]
    for temperature in (1.0, 2.0):
        soft = [torch.softmax(logits.double() / temperature, -1).numpy() for logits in (teacher.logits, student.logits)]
        divergence = (soft[0] * np.log(soft[0] / soft[1])).sum(1).mean()
        distilled = terms(logit_weight=0.7, temperature=temperature)
        assert distilled.pop("logits") == pytest.approx(0.7 * temperature**2 * divergence, rel=1e-4)
        assert distilled == once


@pytest.mark.parametrize("progress", [0.0, 0.49, 0.5, 0.99])
def test_two_stages_are_the_teacher_first_and_then_the_labels(terms, progress):
    joint = terms(progress, logit_weight=1.0)
    assert joint == terms(logit_weight=1.0) and min(joint.values()) > 0
    staged = terms(progress, logit_weight=1.0, stages="two-stage")
    now = {"ce"} if progress >= 0.5 else {"feature", "logits"}
    assert staged == {name: value if name in now else 0 for name, value in joint.items()}


def test_a_teacher_that_dropped_a_layer_is_an_error():
    objective = MultiLevel(MLKDSettings.of("tiny", teacher_layers=(1,)), 3, lambda *_: None)
    with pytest.raises(RuntimeError, match="Expected 4 hidden states, the network returned 3"):
        objective(
            {},
            SimpleNamespace(hidden_states=()),
            SimpleNamespace(hidden_states=(torch.zeros(2, 5, 4),) * 3, logits=None),
            0.0,
        )
