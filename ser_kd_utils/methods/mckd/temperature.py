"""Temperatures of distillation, learnt against the student (curriculum) or from held-out speech (meta-knowledge)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

# Keyword arguments of a network -> its output, with given weights.
Call = Callable[..., Any]


def curriculum_factor(epoch: float, ramp: int = 10) -> float:
    """The factor of CTKD's gradient: 0 at epoch 0, along a half cosine to -1 at epoch `ramp`, then -1.

    epoch: epochs done, also a fraction. The released code changes it once an epoch, to its value at the epoch's end.
    """
    return (math.cos(math.pi * min(epoch / ramp, 1)) - 1) / 2


class Temperature(nn.Module):
    """The temperatures of one distillation: a base for both sides, times a factor for each.

    base: "fixed" at `start`, which may be a pair for student and teacher, or "curriculum": T = 1 + 20 sigmoid(theta)
    from `start` on, between 1 and 21, theta learnt by the student's optimiser from the gradient times
    `curriculum_factor`, that is, against the student (CTKD, Li et al., AAAI 2023, its global temperature). learned:
    whether the factors are parameters, for the meta step alone: no other loss reaches them. `log_factors` (2,), the
    logarithms of the student's and the teacher's, start at 0.
    """

    def __init__(self, base: Literal["fixed", "curriculum"], start: float | list[float], learned: bool, ramp: int = 10):
        super().__init__()
        self.start = nn.Buffer(torch.tensor(start))
        self.theta = nn.Parameter(((self.start - 1) / 20).logit()) if base == "curriculum" else None
        self.log_factors = nn.Parameter(torch.zeros(2)) if learned else nn.Buffer(torch.zeros(2))
        self.ramp = ramp

    def forward(self, epoch: float) -> tuple[Tensor, Tensor]:
        """Scalars (T_student, T_teacher) for `kd_loss`; epoch: epochs done, which changes their gradient only."""
        student, teacher = self.base(epoch) * self.log_factors.detach().exp()
        return student, teacher

    def base(self, epoch: float) -> Tensor:
        """The temperature before the factors."""
        if self.theta is None:
            return self.start
        value = self.theta.detach()
        theta = value + curriculum_factor(epoch, self.ramp) * (self.theta - value)  # its value, the factor's gradient
        return 1 + 20 * theta.sigmoid()

    def curriculum_parameters(self) -> list[nn.Parameter]:
        """The parameters that the student's optimiser updates: theta, or none."""
        return [] if self.theta is None else [self.theta]


def meta_gradient(
    network: nn.Module, distill: Callable[[Call, Mapping[str, Tensor]], Tensor], quiz: Callable[[Call], Tensor],
    learned: Mapping[str, Tensor], lr: float,
) -> dict[str, Tensor]:  # fmt: skip
    """The exact gradient, by `learned`, of the quiz loss of a copy of the student after one step of distillation.

    The copy takes an SGD step of length lr on distill(call, learned), a scalar; then quiz(call), a scalar, is its loss
    on held-out items; call: the network with the copy's weights. learned: temperatures (Meta Knowledge Distillation,
    Liu et al., arXiv 2202.07940) or weights of the teacher (MetaDistil, Zhou et al., ACL 2022). Only weights that
    require a gradient change. The copy is in eval mode: dropout would make the gradient noisy and draw random numbers.
    The network itself stays as it is.
    """
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}

    def call_with(weights: dict[str, Tensor]) -> Call:
        return lambda **inputs: functional_call(network, weights, kwargs=inputs)

    def quiz_loss(learned: dict[str, Tensor]) -> Tensor:
        slopes = grad(lambda weights: distill(call_with(weights), learned))(weights)
        return quiz(call_with({name: weight - lr * slopes[name] for name, weight in weights.items()}))

    switched = [module for module in network.modules() if module.training]
    for module in switched:  # one by one: `eval` may be overridden, and would not tell which were in it before
        module.training = False
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            return grad(quiz_loss)(dict(learned))
    finally:
        for module in switched:
            module.training = True
