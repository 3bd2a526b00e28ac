"""MLKD's variants: rows (b) to (e), MLKD with one component changed, and situations with and without distillation."""

from collections.abc import Mapping
from typing import Any

from ser_kd_utils.methods.base import Variant
from ser_kd_utils.methods.mlkd.settings import MLKDSettings
from ser_kd_utils.methods.teacher.variants import FEW

# The override of a variant without distillation.
NONE: dict[str, Any] = {"teacher_layers": ()}


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """Main variants, components and situations. A component whose settings equal those of (e) is left out.

    Raises ValueError for teacher layers or a student depth that the teacher does not have, and for a student on log-mel
    where the teacher hears log-mel, too, or is asked about what the student is given.
    """
    own, depth = settings["mlkd"], settings["teacher"].num_hidden_layers
    _check_depths(own, depth)
    log_mel = settings["teacher"].model_type != "whisper" and own.targets == "utterance"
    if own.initial == "log-mel" and not log_mel:
        raise ValueError("mlkd.initial=log-mel needs a teacher that hears waveforms, and mlkd.targets=utterance.")
    start = "untuned" if settings["teacher"].source else "random"  # what an untuned teacher is
    components = (each for each in _components(own, depth, start) if own.replace(**each.overrides) != own)
    return {each.name: each for each in (*_main(own), *components, *_situations(own, log_mel))}


def _check_depths(own: MLKDSettings, depth: int) -> None:
    layers, there = own.teacher_layers, {*range(1, depth + 1)}
    if not layers or list(layers) != sorted(there & {*layers}):
        raise ValueError(f"mlkd.teacher_layers={layers!r}: give some of the teacher's layers 1 to {depth}, as (1,).")
    for name, depths in (("student_layers", {own.student_layers}), ("depths", {*own.depths})):
        if not depths <= there:
            raise ValueError(f"mlkd.{name}={getattr(own, name)!r}: the teacher has layers 1 to {depth}.")


def _main(own: MLKDSettings) -> list[Variant]:
    """What tests MLKD's claims: (e) > (d) > (c) on noisy speech, and (e) near (b) at a fraction of its size."""
    rows = (
        ("b", "teacher size, noisy", "What is noisy training worth?", NONE),
        ("c", "student, noisy", "What does a small model reach without distillation?", NONE),
        ("d", "student + last level", "Does one teacher level help?", {"teacher_layers": own.teacher_layers[-1:]}),
        ("e", "student + levels", "Do several levels help more?", {}),
    )
    roles = {"b": "teacher"}
    return [
        Variant(name, "mlkd", title, question, role=roles.get(name, "student"), teacher="a", overrides=overrides)
        for name, title, question, overrides in rows
    ]


def _components(own: MLKDSettings, depth: int, start: str) -> list[Variant]:
    ends, untuned = tuple(sorted({own.teacher_layers[0], own.teacher_layers[-1]})), {"target_network": "untuned"}
    every, half, cnn = tuple(range(1, depth + 1)), "Should the student hear clean speech, too?", "May the CNN learn?"
    rows = (
        ("levels-ends", "first and last level", "Are fewer levels enough?", {"teacher_layers": ends}),
        ("levels-every", "every level", "Are more levels better?", {"teacher_layers": every}),
        *((f"gamma-{value:g}", f"gamma {value:g}", "How much feature loss?", {"gamma": value}) for value in own.gammas),
        ("l1-only", "L1 only", "Is the cosine term needed?", {"cosine_weight": 0.0}),
        ("cosine-only", "cosine only", "Is the L1 term needed?", {"l1_weight": 0.0}),
        ("logits", "+ logits", "Do the teacher's logits add to its states?", {"logit_weight": 1.0}),
        ("two-stage", "two stages", "First the teacher, then the labels?", {"stages": "two-stage"}),
        *((f"depth-{n}", f"{n} layers", "How deep must the student be?", {"student_layers": n}) for n in own.depths),
        ("cnn-gradient-0", "CNN gradient x 0", cnn, {"cnn_gradient": 0.0}),
        ("cnn-gradient-1", "CNN gradient x 1", cnn, {"cnn_gradient": 1.0}),
        ("clean-and-noisy", "half clean", half, {"clean_fraction": 0.5}),
        ("piece-targets", "teacher hears the piece", "Is the whole utterance needed?", {"targets": "piece"}),
        ("noisy-teacher", "teacher hears the noise", "Do the targets have to be clean?", {"targets": "noisy piece"}),
        ("untuned-teacher", f"teacher of {start} weights", "Must the targets know emotion?", untuned),
        ("unlabelled", "+ unlabelled speech", "Does more speech help?", {"unlabelled_speech": True}),
    )
    return [
        Variant(name, "mlkd", title, question, "component", teacher="a", baseline="e", overrides=overrides)
        for name, title, question, overrides in rows
    ]


def _situations(own: MLKDSettings, log_mel: bool) -> list[Variant]:
    """Where distillation may matter most: a variant without it (c-...) and one with it (e-...), otherwise alike."""
    found, front = [], f"a student with two convolutions on log-mel, of the first {own.max_seconds:g} s"
    for name, words, overrides, teacher in (
        ("random-start", "a student from random weights", {"initial": "random"}, "a"),
        ("few-labels", "a quarter of the labels", {"label_fraction": FEW}, "a"),
        ("few-for-both", "a quarter of the labels, for the teacher, too", {"label_fraction": FEW}, "a-few-labels"),
        ("long", "twice the epochs", {"epochs": 2 * own.epochs}, "a"),
        ("unseen", "a noise type not heard in training", {}, "a"),
        *[("log-mel", front, {"initial": "log-mel"}, "a")] * log_mel,
    ):
        for letter, kind, question, baseline, more in (
            ("c", "control", "The control of the next row.", "", NONE),
            ("e", "situation", "What is distillation worth here?", f"c-{name}", {}),
        ):
            about = f"{letter}-{name}", "mlkd", f"({letter}), {words}", question, kind
            shared = {"teacher": teacher, "held_out_noise": name == "unseen", "situation": words}
            found.append(Variant(*about, baseline=baseline, overrides=overrides | more, **shared))
    pseudo = NONE | {"label_fraction": FEW, "pseudo_labels": True}
    words = "a quarter of the labels, the teacher's answers for the others"
    about = {"teacher": "a", "baseline": "c-few-labels", "overrides": pseudo, "situation": words}
    question = "Are the teacher's answers enough?"
    return [*found, Variant("c-pseudo-labels", "mlkd", f"(c), {words}", question, "situation", **about)]
