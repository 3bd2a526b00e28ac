"""The rows of the tables: what each model is trained on, and the question it answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ser_kd_utils.settings import DKDSettings, MCKDSettings, MLKDSettings, TeacherSettings

PRETRAINING_EPOCHS = 16


@dataclass(frozen=True)
class Row:
    """One row of a table: what is trained, and the question the row answers."""

    method: str
    variant: str
    title: str
    question: str
    noisy: bool = True
    small: bool = True
    levels: str = "none"  # of the settings' levels: "last", "ends" (first and last), "all"; "every": of the teacher's
    changes: dict[str, Any] = field(default_factory=dict)  # settings other than the profile's
    teacher: str = "a"  # the row whose network it starts from; "" for a teacher itself
    unseen: bool = False  # one noise type, another in each fold, is not heard in training
    unlabelled: bool = False  # distilled on unlabelled speech, too
    group: str = ""  # "part": one part of MLKD changed; "gain": a situation, with and without distillation
    against: str = ""  # the row it is compared with
    situation: str = ""

    @property
    def needs_speech(self) -> bool:
        """Whether it, or the teacher it starts from, uses unlabelled speech."""
        return self.unlabelled or "pretraining_epochs" in self.changes or self.teacher == "a-pretrained"


ROWS = {
    "a": Row(
        "teacher", "clean", "teacher, clean", "How far does a clean-speech model fall in noise?",
        noisy=False, small=False, teacher="",
    ),
    "b": Row("mlkd", "teacher-size-noisy", "teacher size, noisy", "What is noisy training worth?", small=False),
    "c": Row("mlkd", "student-noisy", "student, noisy", "What does a small model reach without distillation?"),
    "d": Row("mlkd", "student-last-level", "student + last level", "Does one teacher level help?", levels="last"),
    "e": Row("mlkd", "student-multi-level", "student + levels", "Do several levels help more?", levels="all"),
}  # fmt: skip
"""The rows that test MLKD's claims: (e) > (d) > (c) on noisy speech, and (e) near (b) at a fraction of its size."""

SITUATIONS = {
    "random-start": ("a student from random weights", {"initial": "random"}),
    "few-labels": ("a quarter of the labels", {"label_share": 0.25}),
    "long": ("twice the epochs", {}),
    "unseen": ("a noise type not heard in training", {}),
    "pretrained": ("a teacher pre-trained on unlabelled speech", {}),
}
"""Where distillation may matter most: a row without it (c-...) and one with it (e-...) under the same conditions."""

CNN_ROWS = {
    "cnn-teacher": Row(
        "dkd", "cnn-teacher", "teacher CNN", "What do more and wider heads reach?", noisy=False, small=False,
        teacher="", group="cnn",
    ),
    "cnn-alone": Row(
        "dkd", "cnn-alone", "student CNN", "What does the small network reach without distillation?", noisy=False,
        teacher="", group="cnn",
    ),
    "cnn-kd": Row(
        "dkd", "cnn-kd", "student + KD", "Does classical distillation help?", noisy=False, teacher="cnn-teacher",
        changes={"loss": "kd"}, group="cnn", against="cnn-alone",
    ),
    "cnn-dkd": Row(
        "dkd", "cnn-dkd", "student + DKD", "Does decoupling it help more?", noisy=False, teacher="cnn-teacher",
        group="cnn", against="cnn-alone",
    ),
    "cnn-wav2vec2": Row(
        "dkd", "cnn-wav2vec2", "student + DKD from wav2vec 2.0", "Does a teacher of another kind serve?",
        noisy=False, teacher="a", group="cnn", against="cnn-alone",
    ),
    "cnn-stored": Row(
        "dkd", "cnn-stored", "student + DKD from stored logits (demonstration: may have seen the test)",
        "What would a far better teacher be worth?", noisy=False, teacher="stored", group="cnn", against="cnn-alone",
    ),
}  # fmt: skip
"""DKDFMH: a CNN with fused attention heads, alone, distilled from a larger one of its kind, and from other teachers."""

P1_ROWS = ("cnn-teacher", "cnn-alone", "cnn-kd", "cnn-dkd")
"""Trained under the paper's likely protocol too; the others under the honest one only."""

_FIXED = {"curriculum": False, "meta": "none"}
CURRICULUM_START = 1 + 20 / (1 + math.exp(-1))
"""The temperature at which CTKD begins: theta 1."""


def _token_row(name: str, title: str, question: str, **others: Any) -> Row:
    return Row(
        "mckd", name, title, question, **{"noisy": False, "group": "mc", "against": "mc-alone"} | others,
    )  # fmt: skip


TOKEN_ROWS = {
    row.variant: row
    for row in (
        _token_row(
            "mc-alone", "student", "What do variable tokens reach without help?", teacher="", against="",
            changes={"supcon_weight": 0.0},
        ),
        _token_row("mc-supcon", "+ SupCon", "Does it help to draw each class together?", teacher=""),
        _token_row("mc-kd", "+ SupCon + KD", "Does a teacher help?", changes=_FIXED, against="mc-supcon"),
        _token_row(
            "mc-curriculum", "+ SupCon + curriculum KD", "Does a temperature that makes it harder help?",
            changes={"meta": "none"}, against="mc-kd",
        ),
        _token_row(
            "mc-meta", "+ SupCon + meta KD", "Do temperatures learnt on held-out speech help?",
            changes={"curriculum": False}, against="mc-kd",
        ),
        _token_row("mc-full", "+ SupCon + curriculum + meta KD", "Do both together?", against="mc-kd"),
    )
}  # fmt: skip
"""The variable-token student: alone, and with one thing more in each row."""

DEMO_ABLATIONS = ("two-stage", "cnn-nckd", "mc-time-tokens")
"""What the demo trains of the ablations: one a notebook, to show how; its numbers mean nothing anyway."""


def cnn_ablations(settings: DKDSettings) -> dict[str, Row]:
    """Rows of notebook 05 by name: row cnn-dkd with one part changed, and both students trained in noise."""

    def part(name: str, title: str, question: str, **changes) -> Row:
        return Row(
            "dkd-ablation", name, title, question, noisy=False, teacher="cnn-teacher", changes=changes,
            group="cnn-part", against="cnn-dkd",
        )  # fmt: skip

    parts = [
        part("cnn-tckd", "TCKD only", "Is it the target class that teaches?", beta=0.0),
        part("cnn-nckd", "NCKD only", "Is it the other classes?", alpha=0.0),
        part(
            "cnn-kd-same-temperature", f"KD at T {settings.temperature:g}", "Is it the decoupling or the temperature?",
            loss="kd", kd_temperature=settings.temperature,
        ),
        *(part(f"cnn-alpha-{a:g}", f"alpha {a:g}", "How much target class?", alpha=a) for a in settings.alphas),
        *(part(f"cnn-beta-{b:g}", f"beta {b:g}", "How much of the others?", beta=b) for b in settings.betas),
        *(
            part(f"cnn-temperature-{t:g}", f"T {t:g}", "How soft?", temperature=t)
            for t in settings.temperatures
        ),
        *(
            part(f"cnn-heads-{n}", f"{n} head{'s' * (n > 1)}", "How many heads must be fused?", heads=n)
            for n in settings.head_counts
        ),
        part("cnn-attention-text", "attention as in the text", "Code or text?", attention="text"),
        part("cnn-mfcc", "MFCC", "Do the features matter?", features="mfcc"),
    ]  # fmt: skip
    noise = [
        Row(
            "dkd-ablation", "cnn-alone-noisy", "student CNN, trained in noise", "What is noisy training worth?",
            teacher="", group="cnn-noise", against="cnn-alone",
        ),
        Row(
            "dkd-ablation", "cnn-dkd-noisy", "student + DKD, trained in noise", "Does a clean teacher help in noise?",
            teacher="cnn-teacher", group="cnn-noise", against="cnn-alone-noisy",
        ),
    ]  # fmt: skip
    chosen = dataclasses.asdict(settings)
    changed = {row.variant: any(chosen[key] != value for key, value in row.changes.items()) for row in parts}
    return {row.variant: row for row in (*parts, *noise) if changed.get(row.variant, True)}


def token_ablations(settings: MCKDSettings) -> dict[str, Row]:
    """Rows of notebook 07 by name: row mc-full with one part changed, the other reading of meta-knowledge, and students
    trained in noise."""

    def part(name: str, title: str, question: str, against: str = "mc-full", **changes: Any) -> Row:
        return Row(
            "mckd-ablation", name, title, question, noisy=False, changes=changes, group="mc-part", against=against,
        )  # fmt: skip

    other_mu = [mu for mu in settings.supcon_weights if mu != settings.supcon_weight]
    other_nu = [nu for nu in settings.kd_weights if nu != settings.kd_weight]
    log_mel = {"features": "log-mel"}
    parts = [
        part("mc-no-supcon", "without SupCon", "Is SupCon needed beside the teacher?", supcon_weight=0.0),
        *(part(f"mc-mu-{mu:g}", f"mu {mu:g}", "How much SupCon?", supcon_weight=mu) for mu in other_mu),
        *(part(f"mc-nu-{nu:g}", f"nu {nu:g}", "How much distillation?", kd_weight=nu) for nu in other_nu),
        part("mc-time-tokens", "time tokens", "Do the variable tokens matter?", tokens="time"),
        part("mc-log-mel", "log-mel", "Must it hear through the teacher's ears?", **log_mel),
        part("mc-z-score", "z-score over time", "Does the student need levels?", z_score=True),
        part(
            "mc-log-mel-z-score", "log-mel, z-score over time", "Does it need the levels of log-mel?", "mc-log-mel",
            z_score=True, **log_mel,
        ),
        part("mc-unbalanced", "classes as they come", "Must classes count alike?", balance="none"),
        part(
            "mc-kd-start", f"KD at T {CURRICULUM_START:.1f}, fixed", "Does the curriculum's start do it all?", "mc-kd",
            **_FIXED | {"temperature": CURRICULUM_START},
        ),
        part(
            "mc-taught-teacher", "teacher learns, too", "Does MetaDistil's teacher beat the fixed one?", "mc-kd",
            **_FIXED | {"meta": "teacher"},
        ),
    ]  # fmt: skip
    noise = [
        dataclasses.replace(
            TOKEN_ROWS[name], method="mckd-ablation", variant=f"{name}-noisy", noisy=True, group="mc-noise",
            title=f"{TOKEN_ROWS[name].title}, trained in noise", question=question, against=against,
        )
        for name, question, against in (
            ("mc-alone", "What is noisy training worth?", "mc-alone"),
            ("mc-kd", "Does a clean teacher help in noise?", "mc-alone-noisy"),
            ("mc-full", "Do curriculum and meta-knowledge?", "mc-kd-noisy"),
        )
    ]  # fmt: skip
    return {row.variant: row for row in (*parts, *noise)}


def ablations(teacher: TeacherSettings, settings: MLKDSettings, speech: bool) -> dict[str, Row]:
    """Rows of notebook 03 by name: parts of MLKD, each against (e), and situations, with and without distillation.

    What the settings make equal to (e) is left out: a teacher of three layers has no more levels than MLKD uses.
    speech: whether there is unlabelled speech for the rows that need it.
    """
    rows = {row.variant: row for row in (*_parts(settings), *_situations(settings)) if speech or not row.needs_speech}
    mlkd = _kind(ROWS["e"], teacher, settings)
    return {name: row for name, row in rows.items() if row.group != "part" or _kind(row, teacher, settings) != mlkd}


def choose(asked: str, rows: Mapping[str, Row], synthetic: bool) -> list[str]:
    """The names listed in `asked`, each with the row it is compared with; "" for all, of the demo DEMO_ABLATIONS.

    Raises ValueError for a name that is none of `rows`.
    """
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in names if name not in rows]:
        message = f"No ablation {', '.join(unknown)}: choose among {', '.join(rows)}"
        raise ValueError(f"{message} (more with --speech-dir: what needs unlabelled speech).")
    names = names or [name for name in rows if name in DEMO_ABLATIONS or not synthetic]
    return [name for name in rows if name in names or any(rows[other].against == name for other in names)]


def _parts(settings: MLKDSettings) -> Iterator[Row]:
    def part(name: str, title: str, question: str, levels: str = "all", unlabelled: bool = False, **changes) -> Row:
        return Row(
            "mlkd-ablation", name, title, question, levels=levels, changes=changes, unlabelled=unlabelled,
            group="part", against="e",
        )  # fmt: skip

    yield part("levels-ends", "first and last level", "Are fewer levels enough?", levels="ends")
    yield part("levels-every", "every level", "Are more levels better?", levels="every")
    for gamma in settings.gammas:
        yield part(f"gamma-{gamma:g}", f"gamma {gamma:g}", "How much feature loss?", gamma=gamma)
    yield part("l1-only", "L1 only", "Is the cosine term needed?", cosine_weight=0.0)
    yield part("cosine-only", "cosine only", "Is the L1 term needed?", l1_weight=0.0)
    yield part("logits", "+ logits", "Do the teacher's logits add to its states?", logit_weight=1.0)
    yield part("two-stage", "two stages", "First the teacher, then the labels?", stages="two-stage")
    for layers in settings.depths:
        yield part(f"depth-{layers}", f"{layers} layers", "How deep must the student be?", student_layers=layers)
    for factor in (0.0, 1.0):
        yield part(f"cnn-gradient-{factor:g}", f"CNN gradient x {factor:g}", "May the CNN learn?", cnn_gradient=factor)
    yield part("clean-and-noisy", "half clean", "Should the student hear clean speech, too?", clean_share=0.5)
    yield part("piece-targets", "teacher hears the piece", "Is the whole utterance needed?", targets="piece")
    yield part("noisy-teacher", "teacher hears the noise", "Do the targets have to be clean?", targets="noisy piece")
    yield part("untuned-teacher", "untuned teacher", "Must the targets know emotion?", target_network="untuned")
    yield part("unlabelled", "+ unlabelled speech", "Does more speech help?", unlabelled=True)


def _situations(settings: MLKDSettings) -> Iterator[Row]:
    yield Row(
        "mlkd-ablation", "a-pretrained", "pre-trained teacher", "Is it a better teacher than (a)?", noisy=False,
        small=False, teacher="", changes={"pretraining_epochs": PRETRAINING_EPOCHS},
    )  # fmt: skip
    for name, (words, changes) in SITUATIONS.items():
        shared = {
            "changes": {"epochs": 2 * settings.epochs} if name == "long" else changes,
            "teacher": "a-pretrained" if name == "pretrained" else "a",
            "unseen": name == "unseen",
            "situation": words,
        }
        yield Row("mlkd-ablation", f"c-{name}", f"(c), {words}", "The control of the next row.", **shared)
        yield Row(
            "mlkd-ablation", f"e-{name}", f"(e), {words}", "What is distillation worth here?", levels="all",
            group="gain", against=f"c-{name}", **shared,
        )  # fmt: skip


def levels_of(row: Row, teacher: TeacherSettings, settings: MLKDSettings) -> tuple[int, ...]:
    """The teacher's layers that supervise the row's student, from 1."""
    levels = settings.levels
    return {
        "none": (),
        "last": levels[-1:],
        "ends": tuple(sorted({levels[0], levels[-1]})),
        "all": levels,
        "every": tuple(range(1, teacher.layers + 1)),
    }[row.levels]


def _kind(row: Row, teacher: TeacherSettings, settings: MLKDSettings) -> tuple:
    """What tells two rows apart."""
    changed = dataclasses.replace(settings if row.teacher else teacher, **row.changes)
    return levels_of(row, teacher, settings), changed, row.noisy, row.small, row.unseen, row.unlabelled, row.teacher


EVERY_ROW = (
    ROWS | CNN_ROWS | cnn_ablations(DKDSettings.of("paper")) | TOKEN_ROWS | token_ablations(MCKDSettings.of("paper"))
)
"""Main rows of all methods and the ablations of those after MLKD, by name."""
