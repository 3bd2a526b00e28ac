"""MCKD's variants: a variable-token student alone and with one thing more each, components changed, and in noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ser_kd_utils.methods.base import Variant
from ser_kd_utils.methods.mckd.settings import MCKDSettings

CURRICULUM_START = 1 + 20 / (1 + math.exp(-1))
"""The temperature at which CTKD begins: theta 1."""

FIXED = {"curriculum": False, "meta": "none"}
_taught = partial(Variant, method="mckd", noisy=False, teacher="a")
_alone = partial(Variant, method="mckd", noisy=False)


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """Main variants, components and those trained in noise."""
    own, main = settings["mckd"], {each.name: each for each in _main()}
    return main | {each.name: each for each in (*_components(own), *_noise(main))}


def _main() -> Iterator[Variant]:
    yield _alone(
        "mc-alone", title="student", question="What do variable tokens reach without help?",
        overrides={"supcon_weight": 0.0},
    )  # fmt: skip
    yield _alone(
        "mc-supcon", title="+ SupCon", question="Does it help to draw each class together?", baseline="mc-alone"
    )
    yield _taught(
        "mc-kd", title="+ SupCon + KD", question="Does a teacher help?", overrides=FIXED, baseline="mc-supcon"
    )
    yield _taught(
        "mc-curriculum", title="+ SupCon + curriculum KD", overrides={"meta": "none"}, baseline="mc-kd",
        question="Does a temperature that makes it harder help?",
    )  # fmt: skip
    yield _taught(
        "mc-meta", title="+ SupCon + meta KD", overrides={"curriculum": False}, baseline="mc-kd",
        question="Do temperatures learnt on held-out speech help?",
    )  # fmt: skip
    yield _taught("mc-full", title="+ SupCon + curriculum + meta KD", question="Do both together?", baseline="mc-kd")


def _components(own: MCKDSettings) -> Iterator[Variant]:
    def changed(name: str, title: str, question: str, baseline: str = "mc-full", **overrides: Any) -> Variant:
        more = {"kind": "component", "baseline": baseline, "overrides": overrides}
        return _taught(f"mc-{name}", title=title, question=question, **more)

    yield changed("no-supcon", "without SupCon", "Is SupCon needed beside the teacher?", supcon_weight=0.0)
    for mu in own.supcon_weights:
        if mu != own.supcon_weight:
            yield changed(f"mu-{mu:g}", f"mu {mu:g}", "How much SupCon?", supcon_weight=mu)
    for nu in own.kd_weights:
        if nu != own.kd_weight:
            yield changed(f"nu-{nu:g}", f"nu {nu:g}", "How much distillation?", kd_weight=nu)
    yield changed("time-tokens", "time tokens", "Do the variable tokens matter?", tokens="time")
    log_mel = {"features": "log-mel"}
    yield changed("log-mel", "log-mel", "Must it hear through the teacher's ears?", **log_mel)
    yield changed("z-score", "z-score over time", "Does the student need levels?", z_score=True)
    question, both = "Does it need the levels of log-mel?", {"z_score": True, **log_mel}
    yield changed("log-mel-z-score", "log-mel, z-score over time", question, "mc-log-mel", **both)
    yield changed("unbalanced", "classes as they come", "Must classes count alike?", balance="none")
    title, hot = f"KD at T {CURRICULUM_START:.1f}, fixed", {**FIXED, "temperature": CURRICULUM_START}
    yield changed("kd-start", title, "Does the curriculum's start do it all?", "mc-kd", **hot)
    question = "Does MetaDistil's teacher beat the fixed one?"
    yield changed("taught-teacher", "teacher learns, too", question, "mc-kd", **{**FIXED, "meta": "teacher"})


def _noise(main: Mapping[str, Variant]) -> Iterator[Variant]:
    for name, question, baseline in (
        ("mc-alone", "What is noisy training worth?", "mc-alone"),
        ("mc-kd", "Does a clean teacher help in noise?", "mc-alone-noisy"),
        ("mc-full", "Do curriculum and meta-knowledge?", "mc-kd-noisy"),
    ):
        yield dataclasses.replace(
            main[name], name=f"{name}-noisy", kind="noise", noisy=True, question=question, baseline=baseline,
            title=f"{main[name].title}, trained in noise",
        )  # fmt: skip
