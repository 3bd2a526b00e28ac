"""MLKD's variants: rows (b) to (e), MLKD with one component changed, and situations with and without distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ser_kd_utils.methods.base import Variant
from ser_kd_utils.methods.mlkd.settings import MLKDSettings

NONE: dict[str, Any] = {"teacher_layers": ()}
"""The override of a variant without distillation."""

SITUATIONS = {
    "random-start": ("a student from random weights", {"initial": "random"}),
    "few-labels": ("a quarter of the labels", {"label_fraction": 0.25}),
    "long": ("twice the epochs", {}),
    "unseen": ("a noise type not heard in training", {}),
}
"""Where distillation may matter most: a variant without it (c-...) and one with it (e-...) under equal conditions."""


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """Main variants, components and situations. A component whose settings equal those of (e) is left out.

    Raises ValueError for teacher layers or a student depth that the teacher does not have.
    """
    own, depth = settings["mlkd"], settings["teacher"].num_hidden_layers
    _check_depths(own, depth)
    components = {each.name: each for each in _components(own, depth) if own.replace(**each.overrides) != own}
    return _main(own) | components | {each.name: each for each in _situations(own)}


def _check_depths(own: MLKDSettings, depth: int) -> None:
    layers = own.teacher_layers
    if not layers or list(layers) != sorted(set(layers) & set(range(1, depth + 1))):
        raise ValueError(
            f"mlkd.teacher_layers={layers!r}: give some of the teacher's layers 1 to {depth}, such as (1,)."
        )
    for name, depths in (("student_layers", (own.student_layers,)), ("depths", own.depths)):
        if not set(depths) <= set(range(1, depth + 1)):
            raise ValueError(f"mlkd.{name}={getattr(own, name)!r}: the teacher has layers 1 to {depth}.")


def _main(own: MLKDSettings) -> dict[str, Variant]:
    """What tests MLKD's claims: (e) > (d) > (c) on noisy speech, and (e) near (b) at a fraction of its size."""
    last = {"teacher_layers": own.teacher_layers[-1:]}
    rows = (
        ("b", "teacher size, noisy", "What is noisy training worth?", {"role": "teacher", "overrides": NONE}),
        ("c", "student, noisy", "What does a small model reach without distillation?", {"overrides": NONE}),
        ("d", "student + last level", "Does one teacher level help?", {"overrides": last}),
        ("e", "student + levels", "Do several levels help more?", {}),
    )
    return {name: Variant(name, "mlkd", title, question, teacher="a", **more) for name, title, question, more in rows}


def _components(own: MLKDSettings, depth: int) -> Iterator[Variant]:
    def changed(name: str, title: str, question: str, **overrides: Any) -> Variant:
        more = {"kind": "component", "teacher": "a", "baseline": "e", "overrides": overrides}
        return Variant(name, "mlkd", title, question, **more)

    layers = own.teacher_layers
    ends = tuple(sorted({layers[0], layers[-1]}))
    yield changed("levels-ends", "first and last level", "Are fewer levels enough?", teacher_layers=ends)
    every = tuple(range(1, depth + 1))
    yield changed("levels-every", "every level", "Are more levels better?", teacher_layers=every)
    for gamma in own.gammas:
        yield changed(f"gamma-{gamma:g}", f"gamma {gamma:g}", "How much feature loss?", gamma=gamma)
    yield changed("l1-only", "L1 only", "Is the cosine term needed?", cosine_weight=0.0)
    yield changed("cosine-only", "cosine only", "Is the L1 term needed?", l1_weight=0.0)
    yield changed("logits", "+ logits", "Do the teacher's logits add to its states?", logit_weight=1.0)
    yield changed("two-stage", "two stages", "First the teacher, then the labels?", stages="two-stage")
    for count in own.depths:
        yield changed(f"depth-{count}", f"{count} layers", "How deep must the student be?", student_layers=count)
    for factor in (0.0, 1.0):
        title = f"CNN gradient x {factor:g}"
        yield changed(f"cnn-gradient-{factor:g}", title, "May the CNN learn?", cnn_gradient=factor)
    yield changed("clean-and-noisy", "half clean", "Should the student hear clean speech, too?", clean_fraction=0.5)
    yield changed("piece-targets", "teacher hears the piece", "Is the whole utterance needed?", targets="piece")
    yield changed("noisy-teacher", "teacher hears the noise", "Do the targets have to be clean?", targets="noisy piece")
    question = "Must the targets know emotion?"
    yield changed("untuned-teacher", "untuned teacher", question, target_network="untuned")
    yield changed("unlabelled", "+ unlabelled speech", "Does more speech help?", unlabelled_speech=True)


def _situations(own: MLKDSettings) -> Iterator[Variant]:
    for name, (words, overrides) in SITUATIONS.items():
        if name == "long":
            overrides = {"epochs": 2 * own.epochs}
        shared = {"teacher": "a", "held_out_noise": name == "unseen", "situation": words}
        control, worth = "The control of the next row.", "What is distillation worth here?"
        yield Variant(
            f"c-{name}", "mlkd", f"(c), {words}", control, kind="control", overrides=overrides | NONE, **shared
        )
        yield Variant(
            f"e-{name}",
            "mlkd",
            f"(e), {words}",
            worth,
            "situation",
            baseline=f"c-{name}",
            overrides=overrides,
            **shared,
        )
