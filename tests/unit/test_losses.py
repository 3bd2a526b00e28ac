"""Losses against plain loops and numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ser_kd_utils.methods.dkdfmh.loss import decoupled_kd
from ser_kd_utils.methods.mckd.loss import supervised_contrastive
from ser_kd_utils.methods.mlkd.loss import feature_loss, multi_level_loss
from ser_kd_utils.training.losses import kd_loss

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_float64_stays(dtype):
    student, teacher, labels = logits(0).to(dtype), logits(1).to(dtype), torch.arange(5) % 4
    assert torch.equal(kd_loss(student, teacher, 3.0), kd_loss(student.float(), teacher.float(), 3.0))
    for part, full in zip(
        decoupled_kd(student, teacher, labels, 3.0),
        decoupled_kd(student.float(), teacher.float(), labels, 3.0),
        strict=True,
    ):
        assert part.dtype == torch.float32 and torch.equal(part, full)
    parts = kd_loss(logits(0), logits(1)), *decoupled_kd(logits(0), logits(1), labels)
    assert {part.dtype for part in parts} == {torch.float64}


# --- temperatures of their own


@pytest.mark.parametrize("student_temperature", [0.5, 2.0, 7.0])
@pytest.mark.parametrize("teacher_temperature", [0.8, 2.0, 15.6])
def test_teacher_and_student_may_have_their_own_temperatures(student_temperature, teacher_temperature):
    student, teacher = logits(0), logits(1)
    ours, theirs = soft(student, student_temperature), soft(teacher, teacher_temperature)
    divergence = (theirs * np.log(theirs / ours)).sum(1).mean()
    wanted = pytest.approx(student_temperature * teacher_temperature * divergence, rel=1e-12)
    temperatures = student_temperature, teacher_temperature
    assert kd_loss(student, teacher, *temperatures).item() == wanted
    assert kd_loss(student, teacher, *map(torch.tensor, temperatures)).item() == pytest.approx(
        wanted.expected, rel=1e-6
    )


def test_one_temperature_is_that_of_both():
    rng = np.random.default_rng(0)
    for temperature in rng.uniform(0.01, 20, 1000).tolist():  # T * T is not always T**2
        ours, theirs = (F.log_softmax(values / temperature, 1) for values in (logits(0), logits(1)))
        wanted = temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        assert kd_loss(logits(0), logits(1), temperature).item() == wanted.item()
        both = kd_loss(logits(0), logits(1), temperature, temperature).item()
        assert both == pytest.approx(wanted.item(), rel=1e-14)


def test_temperatures_get_gradients():
    student, teacher = logits(0), logits(1)
    taus = torch.tensor([2.0, 3.0], dtype=torch.float64)
    for start in (taus, taus[:1]):
        values = start.clone().requires_grad_()
        kd_loss(student, teacher, *values).backward()
        for i, slope in enumerate(values.grad.tolist()):
            step = 1e-5 * torch.eye(len(start), dtype=torch.float64)[i]
            ends = [kd_loss(student, teacher, *(start + sign * step).tolist()).item() for sign in (1, -1)]
            assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-7) != 0
    assert torch.autograd.gradcheck(kd_loss, [value.requires_grad_() for value in (student, teacher, *taus)])
    assert torch.autograd.gradgradcheck(kd_loss, [value.requires_grad_() for value in (student, teacher, *taus)])


# --- target and non-target part


def decoupled(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float) -> list[float]:
    """The two divergences from probabilities, item by item."""
    sums = np.zeros(2)
    for ours, theirs, label in zip(
        soft(student, temperature), soft(teacher, temperature), labels.tolist(), strict=True
    ):
        for i, p in enumerate(theirs):
            if i == label:
                sums[0] += p * np.log(p / ours[i]) + (1 - p) * np.log((1 - p) / (1 - ours[i]))
            else:
                p, q = p / (1 - theirs[label]), ours[i] / (1 - ours[label])
                sums[1] += p * np.log(p / q)
    return (temperature**2 * sums / len(labels)).tolist()


def scenes(temperatures: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)):
    """(student, teacher, labels, temperature) over several numbers of classes, every class a target."""
    for seed, (classes, temperature) in enumerate((c, t) for c in (2, 3, 4, 7) for t in temperatures):
        labels = torch.from_numpy(np.random.default_rng(seed).permutation(8) % classes)
        yield logits(2 * seed, 8, classes), logits(2 * seed + 1, 8, classes), labels, temperature


def test_decoupled_parts_are_the_divergences_of_target_and_of_the_other_classes():
    for scene in scenes():
        parts = decoupled_kd(*scene)
        assert [part.item() for part in parts] == pytest.approx(decoupled(*scene), rel=1e-9, abs=1e-12)
        assert all(part.shape == () for part in parts)


def test_decoupled_kd_has_temperature_1_by_default():
    student, teacher, labels, _ = next(scenes())
    assert decoupled_kd(student, teacher, labels) == decoupled_kd(student, teacher, labels, 1.0)


def test_the_parts_add_up_to_kd_loss_item_by_item():
    for student, teacher, labels, temperature in scenes():
        rest = 1 - soft(teacher, temperature)[range(8), labels]
        total = 0.0
        for i, weight in enumerate(rest):
            one = slice(i, i + 1)
            tckd, nckd = (part.item() for part in decoupled_kd(student[one], teacher[one], labels[one], temperature))
            together = tckd + weight * nckd
            assert kd_loss(student[one], teacher[one], temperature).item() == pytest.approx(together, rel=1e-9)
            total += together
        assert kd_loss(student, teacher, temperature).item() == pytest.approx(total / 8, rel=1e-9)


def test_two_classes_have_no_non_target_part():
    student, teacher, labels, temperature = next(scenes((2.0,)))
    tckd, nckd = decoupled_kd(student, teacher, labels, temperature)
    assert nckd.item() == 0 and tckd.item() == pytest.approx(kd_loss(student, teacher, temperature).item(), rel=1e-12)


def test_decoupled_parts_see_differences_of_logits_only():
    for student, teacher, labels, temperature in scenes():
        shift = torch.from_numpy(np.random.default_rng(0).normal(0, 5, (2, 8, 1)))
        same = decoupled_kd(student + shift[0], student + shift[1], labels, temperature)
        assert [part.item() for part in same] == pytest.approx([0, 0], abs=1e-12)
        parts = decoupled_kd(student, teacher, labels, temperature)
        moved = decoupled_kd(student + shift[0], teacher + shift[1], labels, temperature)
        torch.testing.assert_close(moved, parts, rtol=1e-10, atol=1e-12)


def test_decoupled_gradients():
    for student, teacher, labels, temperature in scenes():
        student.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s, *others: decoupled_kd(s, *others), (student, teacher, labels, temperature)
        )
        assert torch.autograd.gradcheck(kd_loss, (student, teacher, temperature))


# logits in gaps, target first: (student, teacher), TCKD and NCKD over T^2, their gradients over T, at a gap g over T
EXTREMES = {
    "student sure of the truth, teacher of another class": (
        ([1, 0, 0, 0], [0, 1, 0, 0]),
        lambda g: (g - math.log(3), math.log(3)),
        ([1, -1 / 3, -1 / 3, -1 / 3], [0, -2 / 3, 1 / 3, 1 / 3]),
    ),
    "teacher sure of the truth, student of another class": (
        ([0, 1, 0, 0], [1, 0, 0, 0]),
        lambda g: (g, 2 / 3 * g - math.log(3)),
        ([-1, 1, 0, 0], [0, 2 / 3, -1 / 3, -1 / 3]),
    ),
    "sure of two wrong classes": (
        ([0, 1, 0, 0], [0, 0, 1, 0]),
        lambda g: (0, g),
        ([0, 0, 0, 0], [0, 1, -1, 0]),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [120.0, 1e3, 1e4])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("case", EXTREMES)
def test_decoupled_parts_are_finite_and_right_at_any_logit_gap(case, temperature, gap, dtype):
    who, values, slopes = EXTREMES[case]
    student, teacher = (gap * torch.tensor([each], dtype=dtype) for each in who)
    parts = decoupled_kd(student.requires_grad_(), teacher, torch.tensor([0]), temperature)
    wanted = [temperature**2 * value for value in values(student.max().item() / temperature)]
    assert [part.item() for part in parts] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    for part, slope in zip(parts, slopes, strict=True):
        (gradient,) = torch.autograd.grad(part, student, retain_graph=True)
        torch.testing.assert_close(gradient, temperature * torch.tensor([slope], dtype=dtype))


def test_the_released_form_fails_where_log_space_does_not():
    """The student at a gap of 120 from the truth of a teacher that doubts: softmax gives it a probability of 0."""
    student, teacher = torch.tensor([[120.0, 0, 0, 0]], requires_grad=True), torch.tensor([[3.0, 1, 0, 0]])
    p, q = (logits.softmax(1)[0, 0] for logits in (teacher, student))
    released = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    released.backward()
    assert released.isinf() and student.grad.isnan().any()
    student.grad = None
    tckd, _ = decoupled_kd(student, teacher, torch.tensor([0]))
    tckd.backward()
    assert tckd.item() == pytest.approx(22.13, abs=5e-3)
    share = teacher.softmax(1)[0, 0].item()
    torch.testing.assert_close(student.grad, torch.tensor([[1 - share] + 3 * [(share - 1) / 3]]))


# --- supervised contrastive loss


def contrast(embeddings: torch.Tensor, labels: list[int], temperature: float) -> float:
    """Item by item, positive by positive, other by other, from ratios of powers."""
    units = [each / math.hypot(*each) for each in embeddings.detach().numpy()]
    total = 0.0
    for i, anchor in enumerate(units):
        terms = []
        for p, positive in enumerate(units):
            if p != i and labels[p] == labels[i]:
                others = sum(math.exp(anchor @ other / temperature) for a, other in enumerate(units) if a != i)
                terms.append(-math.log(math.exp(anchor @ positive / temperature) / others))
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(units)


LABELS = [0, 1, 0, 2, 1, 0, 3, 1]  # 2 and 3 have no other of their kind


def embeddings(seed: int = 0, items: int = len(LABELS)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(items, 5)))


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
@pytest.mark.parametrize("labels", [LABELS, [0] * 8, [0, 1] * 4, [*range(7), 0]])
def test_supervised_contrastive_is_the_formula(labels, temperature):
    loss = supervised_contrastive(embeddings(), torch.tensor(labels), temperature)
    assert loss.item() == pytest.approx(contrast(embeddings(), labels, temperature), rel=1e-10)
    assert loss.shape == () and loss.item() > 0
    default = supervised_contrastive(embeddings(), torch.tensor(labels))
    assert (default.item() == loss.item()) == (temperature == 0.07)


def test_an_item_without_positives_adds_zero_and_counts():
    for items in (1, 2, 5):
        values = embeddings(0, items).requires_grad_()
        loss = supervised_contrastive(values, torch.arange(items))
        loss.backward()
        assert loss.item() == 0 and not values.grad.any()
    pair, alone = embeddings(0, 2), torch.zeros(1, 5, dtype=torch.float64)
    loss = supervised_contrastive(torch.cat([pair, alone]), torch.tensor([0, 0, 1]), 1.0)
    power = math.exp(torch.cosine_similarity(*pair, dim=0).item())
    assert loss.item() == pytest.approx(2 / 3 * math.log((power + 1) / power), rel=1e-12)


def test_the_length_of_embeddings_and_the_order_of_the_batch_do_not_matter():
    labels, rng = torch.tensor(LABELS), np.random.default_rng(1)
    loss = supervised_contrastive(embeddings(), labels)
    lengths = torch.from_numpy(rng.uniform(0.01, 100, (8, 1)))
    torch.testing.assert_close(supervised_contrastive(lengths * embeddings(), labels), loss, rtol=1e-12, atol=0)
    order = rng.permutation(8)
    torch.testing.assert_close(supervised_contrastive(embeddings()[order], labels[order]), loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(supervised_contrastive(embeddings(), 3 - labels), loss)


def test_what_is_alike_pulls_what_is_not_pushes():
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    assert supervised_contrastive(apart, labels).item() == pytest.approx(0, abs=1e-6)
    assert supervised_contrastive(apart, torch.tensor([0, 1, 0, 1])).item() > 10
    values = embeddings(3, 4).requires_grad_()
    before = supervised_contrastive(values, labels)
    before.backward()
    assert supervised_contrastive(values - 0.01 * values.grad, labels) < before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_identical_embeddings_are_as_likely_as_each_other(dtype):
    values = embeddings()[:1].to(dtype).repeat(8, 1).requires_grad_()
    loss = supervised_contrastive(values, torch.tensor(LABELS))
    loss.backward()
    assert loss.item() == pytest.approx(6 / 8 * math.log(7), rel=1e-5) and values.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_contrast_of_half_precision_is_computed_in_float32(dtype, size):
    values, labels = (size * embeddings()).to(dtype).requires_grad_(), torch.tensor(LABELS)
    loss = supervised_contrastive(values, labels)
    loss.backward()
    assert values.grad.isfinite().all()
    assert loss.dtype == torch.float32 and torch.equal(loss, supervised_contrastive(values.float(), labels))
    assert loss.item() == pytest.approx(contrast(values.double(), LABELS, 0.07), rel=1e-4)
    with torch.autocast("cpu", dtype):
        assert torch.equal(supervised_contrastive(values, labels), loss)
    assert supervised_contrastive(embeddings(), labels).dtype == torch.float64


def test_gradients_of_the_contrast():
    for temperature in (0.07, 1.0):
        values = embeddings().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda v, t=temperature: supervised_contrastive(v, torch.tensor(LABELS), t), (values,)
        )
