"""Temperatures against finite differences, the pilot step against one done by torch.optim."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_kd_utils.methods.mckd.temperature import Temperature, curriculum_factor, meta_gradient
from ser_kd_utils.methods.mckd.variants import PUBLISHED_START
from ser_kd_utils.training.losses import kd_loss


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# --- curriculum


def test_the_factor_goes_down_a_half_cosine():
    assert [curriculum_factor(epoch) for epoch in (0, 5, 10, 11, 200)] == pytest.approx([0, -0.5, -1, -1, -1])
    assert curriculum_factor(0) == 0 and curriculum_factor(10) == curriculum_factor(300.5) == -1
    assert curriculum_factor(2, ramp=4) == pytest.approx(-0.5)
    released = [0.5 * (math.cos(math.pi * epoch / 10) + 1) - 1 for epoch in range(11)]
    assert [curriculum_factor(epoch) for epoch in range(11)] == pytest.approx(released, abs=1e-15)
    assert (np.diff([curriculum_factor(epoch / 7) for epoch in range(7 * 10 + 1)]) < 0).all()


def test_where_the_temperatures_start():
    assert math.isclose(PUBLISHED_START, 15.62, abs_tol=5e-3)
    assert Temperature("curriculum", PUBLISHED_START, False).theta.item() == pytest.approx(1, rel=1e-6)
    for learned in (True, False):
        for base, start in (("curriculum", PUBLISHED_START), ("curriculum", 4.0), ("fixed", 4.0)):
            temperature = Temperature(base, start, learned)
            for tau in (*temperature(0.0), *temperature(3.5)):
                assert tau.shape == () and tau.item() == pytest.approx(start, rel=1e-6)
    assert Temperature("fixed", 4.0, True)(0.0) == (4, 4)
    assert Temperature("fixed", [3.0, 5.0], False)(0.0) == (3, 5)  # of student and teacher


def test_above_the_published_start_the_temperature_hardly_matters_and_at_4_it_does():
    """T^2 KL with 4 classes: the direction of the student's gradient, on logits as large as those of our networks."""
    student, teacher = 3 * draw(0, 32, 4), 3 * draw(1, 32, 4)

    def gradient(temperature):
        logits = student.clone().requires_grad_()
        kd_loss(logits, teacher, temperature).backward()
        return logits.grad.flatten()

    def cosine(one, other):
        return torch.cosine_similarity(gradient(one), gradient(other), dim=0).item()

    assert cosine(PUBLISHED_START, 21.0) > 0.9997  # over all of what is left to a curriculum
    assert cosine(4.0, 21.0) < 0.98 and cosine(1.0, 4.0) < 0.95


def test_factors_multiply_the_base_of_student_and_teacher():
    for base in ("fixed", "curriculum"):
        temperature = Temperature(base, 4.0, True)
        before = temperature.base(2.0).item()
        with torch.no_grad():
            temperature.log_factors += torch.tensor([2.0, 0.5]).log()
        assert [tau.item() for tau in temperature(2.0)] == pytest.approx([2 * before, before / 2])
        assert [tau.item() for tau in temperature(0.0)] == pytest.approx([2 * before, before / 2])
        assert temperature.base(2.0).item() == before


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("base", ["fixed", "curriculum"])
def test_what_is_learnt_by_whom(base, learned):
    temperature = Temperature(base, 4.0, learned)
    students = temperature.curriculum_parameters()
    wanted = ["theta"] * (base == "curriculum") + ["log_factors"] * learned
    assert [name for name, _ in temperature.named_parameters()] == wanted
    assert [p is temperature.theta for p in students] == [True] * (base == "curriculum")
    student = draw(0, 5, 4).requires_grad_()
    kd_loss(student, draw(1, 5, 4), *temperature(20.0)).backward()
    assert temperature.log_factors.grad is None and student.grad.any()
    assert all(p.grad != 0 for p in students)


@pytest.mark.parametrize("epoch", [0.0, 2.5, 5.0, 10.0, 40.0])
def test_the_gradient_of_theta_is_the_factor_times_that_of_the_loss(epoch):
    temperature = Temperature("curriculum", PUBLISHED_START, True).double()
    student, teacher = (3 * draw(0, 6, 4)).requires_grad_(), 3 * draw(1, 6, 4)
    with torch.no_grad():
        temperature.log_factors += torch.tensor([0.3, -0.2])
    loss = kd_loss(student, teacher, *temperature(epoch))
    loss.backward()

    def at(theta: float) -> float:
        powers = np.exp(temperature.log_factors.detach().numpy())
        return kd_loss(student, teacher, *((1 + 20 / (1 + math.exp(-theta))) * powers).tolist()).item()

    assert loss.item() == pytest.approx(at(1.0), rel=1e-12)
    slope = (at(1 + 1e-5) - at(1 - 1e-5)) / 2e-5
    assert abs(slope) > 1e-3
    assert temperature.theta.grad.item() == pytest.approx(curriculum_factor(epoch) * slope, rel=1e-6)
    plain = student.detach().clone().requires_grad_()
    kd_loss(plain, teacher, *(tau.detach() for tau in temperature(0.0))).backward()
    torch.testing.assert_close(student.grad, plain.grad)  # the student still descends


def test_a_step_of_the_optimiser_makes_distillation_harder_once_the_curriculum_is_on():
    student, teacher = 3 * draw(0, 6, 4), 3 * draw(1, 6, 4)
    harder = {}
    for epoch in (0.0, 5.0, 10.0):
        temperature = Temperature("curriculum", PUBLISHED_START, False).double()
        optimiser = torch.optim.SGD(temperature.curriculum_parameters(), 0.1)
        loss = kd_loss(student, teacher, *temperature(epoch))
        loss.backward()
        optimiser.step()
        harder[epoch] = (kd_loss(student, teacher, *temperature(epoch)) - loss).item()
    assert harder[0.0] == 0 < harder[5.0] < harder[10.0]


def test_a_temperature_is_saved_whole():
    learnt, new = (Temperature("curriculum", 4.0, True) for _ in range(2))
    with torch.no_grad():
        learnt.theta.fill_(0.3)
        learnt.log_factors.fill_(-0.1)
    new.load_state_dict(learnt.state_dict())
    assert new(0.0) == learnt(0.0) != Temperature("curriculum", 4.0, True)(0.0)


# --- meta step

ITEMS, WIDTH, CLASSES = 6, 5, 3


class Attentive(nn.Module):
    """As the students of this package: attention and norm layers, with dropout."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[..., None])
        x = self.norm(x + self.dropout(self.attention(x, x, x, need_weights=False)[0]))
        return self.classifier(x.mean(1))


class Layered(Attentive):
    """torch's own layer, which has a fast path of its own in eval mode."""

    def __init__(self):
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(8, 2, 12, 0.3, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.attention(self.embed(x[..., None]))).mean(1))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 7), nn.BatchNorm1d(7), nn.GELU(), nn.Dropout(0.5), nn.Linear(7, 7), nn.Tanh(),
        nn.Linear(7, CLASSES),
    )  # fmt: skip


NETWORKS = {"perceptron": perceptron, "attention": Attentive, "encoder layer": Layered}
LR = 0.5


class Scene:
    """A student and both things it may teach: temperatures, or the head of a teacher; what differs is `distill`."""

    def __init__(self, network: str, reading: str, dtype: torch.dtype = torch.float64):
        torch.manual_seed(0)
        self.network = NETWORKS[network]().to(dtype)
        self.x, self.held_out = draw(1, ITEMS, WIDTH).to(dtype), draw(2, ITEMS, WIDTH).to(dtype)
        self.labels = torch.arange(ITEMS) % CLASSES
        self.states = draw(3, ITEMS, 4).to(dtype)
        head = {"weight": draw(4, CLASSES, 4).to(dtype), "bias": draw(5, CLASSES).to(dtype)}
        self.head = head if reading == "teacher" else {name: 3 * value for name, value in head.items()}
        factors = {"log_factors": torch.tensor([0.2, -0.1], dtype=dtype)}
        self.learned = head if reading == "teacher" else factors

    def distill(self, call, learned):
        head, factors = {**self.head, **learned}, learned.get("log_factors", torch.zeros(2)).exp()
        return kd_loss(self.says(call), F.linear(self.states, head["weight"], head["bias"]), *(2 * factors))

    def says(self, call):
        return call(x=self.x) if isinstance(self.network, Attentive) else call(input=self.x)

    def quiz(self, call):
        logits = call(x=self.held_out) if isinstance(self.network, Attentive) else call(input=self.held_out)
        return F.cross_entropy(logits, self.labels)

    def gradient(self, lr: float = LR) -> dict[str, Tensor]:
        return meta_gradient(self.network, self.distill, self.quiz, self.learned, lr)

    def quiz_after_a_step(self, learned: dict[str, Tensor]) -> float:
        """The same with a real copy and torch's optimiser."""
        copy = deepcopy(self.network).eval()
        optimiser = torch.optim.SGD([p for p in copy.parameters() if p.requires_grad], LR)
        optimiser.zero_grad()
        self.distill(copy, learned).backward()
        optimiser.step()
        return self.quiz(copy).item()

    def differences(self) -> dict[str, Tensor]:
        """Central differences of it."""
        found = {name: torch.zeros_like(value) for name, value in self.learned.items()}
        for name, value in self.learned.items():
            for place in np.ndindex(*value.shape):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = value.detach().clone()
                    moved[place] += step
                    ends.append(self.quiz_after_a_step({**self.learned, name: moved}))
                found[name][place] = (ends[0] - ends[1]) / 2e-5
        return found


@pytest.fixture(params=["temperatures", "teacher"])
def reading(request):
    return request.param


@pytest.mark.parametrize("network", NETWORKS)
def test_the_meta_gradient_is_exact_through_the_pilot_step(network, reading):
    scene = Scene(network, reading)
    found, wanted = scene.gradient(), scene.differences()
    assert found.keys() == scene.learned.keys()
    for name, value in found.items():
        assert value.shape == scene.learned[name].shape and not value.requires_grad
        assert wanted[name].abs().max() > 1e-5
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_frozen_weights_take_no_part(network, reading):
    scene = Scene(network, reading)
    free = scene.gradient()
    next(scene.network.children()).requires_grad_(False)
    found, wanted = scene.gradient(), scene.differences()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-9)
        assert not torch.allclose(value, free[name], rtol=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_meta_step_leaves_everything_as_it_was_and_has_no_noise(network, reading):
    scene = Scene(network, reading)
    quiet = scene.gradient()
    scene.network.train()
    children = list(scene.network.children())
    children[0].requires_grad_(False).requires_grad_(True)
    children[1].eval()
    first, last = children[0].weight, children[-1].weight
    last.grad = torch.ones_like(last)
    scene.learned = {name: value.clone().requires_grad_() for name, value in scene.learned.items()}
    modes = [module.training for module in scene.network.modules()]
    before = deepcopy((scene.network.state_dict(), dict(scene.learned)))
    state = torch.get_rng_state()
    found = scene.gradient()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in scene.network.modules()] == modes
    for old, new in zip(before, (scene.network.state_dict(), scene.learned), strict=True):
        assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert first.grad is None and torch.equal(last.grad, torch.ones_like(last))
    assert all(p.requires_grad for p in scene.network.parameters())
    assert all(value.grad is None for value in scene.learned.values())
    assert all(torch.equal(found[name], quiet[name]) and not found[name].requires_grad for name in quiet)


def test_a_meta_step_that_fails_leaves_the_mode(reading):
    scene = Scene("attention", reading)
    with pytest.raises(ZeroDivisionError):
        meta_gradient(scene.network.train(), scene.distill, lambda call: 1 / 0, scene.learned, LR)
    assert all(module.training for module in scene.network.modules())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_pilot_that_does_not_move_teaches_nothing(network, reading):
    for value in Scene(network, reading).gradient(lr=0.0).values():
        assert not value.any()


def test_the_temperatures_of_a_curriculum_may_be_asked_within_the_meta_step():
    """As where the teacher is learnt: theta stays out of it, and can be read afterwards."""
    scene, temperature = Scene("perceptron", "teacher"), Temperature("curriculum", 4.0, False).double()

    def distill(call, learned):
        theirs = F.linear(scene.states, learned["weight"], learned["bias"])
        return kd_loss(call(input=scene.x), theirs, *temperature(5.0))

    found = meta_gradient(scene.network, distill, scene.quiz, scene.learned, LR)
    assert all(value.any() for value in found.values()) and temperature.theta.grad is None
    assert temperature(0.0)[0].item() == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_in_mixed_precision_the_gradient_is_about_the_same_and_the_networks_own_step_follows(network, reading):
    scene = Scene(network, reading, torch.float32)
    full = scene.gradient()
    with torch.autocast("cpu", torch.bfloat16):
        half = scene.gradient()
        scene.distill(scene.network, scene.learned).backward()
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        assert F.cosine_similarity(half[name].flatten(), value.flatten(), dim=0) > 0.95
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scene.network.parameters())


def test_what_the_quiz_teaches_lowers_its_loss(reading):
    """A linear student that hears only its teacher, which is hesitant (or wrong): with and without meta steps."""
    x, held_out, truth = draw(0, 40, WIDTH), draw(1, 40, WIDTH), draw(2, WIDTH, CLASSES)
    answers = (held_out @ truth).argmax(1)
    loss = {}
    for meta in (False, True):
        torch.manual_seed(0)
        student = nn.Linear(WIDTH, CLASSES).double()
        temperature = Temperature("fixed", 4.0, True).double()
        weight = nn.Parameter(0.2 * truth.T if reading == "temperatures" else draw(3, CLASSES, WIDTH))
        learned = {"log_factors": temperature.log_factors} if reading == "temperatures" else {"weight": weight}
        teach = torch.optim.Adam(learned.values(), 0.05)
        optimiser = torch.optim.SGD(student.parameters(), 0.5)

        def distill(call, learned, temperature=temperature, weight=weight):
            factors = learned.get("log_factors", temperature.log_factors).exp()
            return kd_loss(call(input=x), x @ learned.get("weight", weight).T, *(temperature.base(0.0) * factors))

        def quiz(call):
            return F.cross_entropy(call(input=held_out), answers)

        for _ in range(40):
            if meta:
                for name, gradient in meta_gradient(student, distill, quiz, learned, 0.5).items():
                    learned[name].grad = gradient
                teach.step()
            optimiser.zero_grad()
            kd_loss(student(x), (x @ weight.T).detach(), *temperature(0.0)).backward()
            optimiser.step()
        loss[meta] = quiz(student).item()
    assert loss[True] < 0.8 * loss[False]
