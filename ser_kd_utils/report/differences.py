"""Tables of differences: comparisons, components, claims with their verdicts, and what chance alone looks like.

    CLAIMS = [Comparison("toy-kd", "toy-alone", "noisy", claim="distillation helps in noise", gate=("a", "toy-alone"))]

    def tables(runs):
        family = Family(runs, CLAIMS)
        return [family.comparisons("toy_comparisons", CLAIMS), family.verdicts("toy_claims")]

A difference is the mean over folds of that within each, seeds averaged first, and is tested over folds: see
`metrics.effects`. A verdict takes three seeds in every fold, both intervals on one side of 0, p under 5 % after
correction for the method's claims and, of a claim about distillation, a teacher that is better than its student.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ser_kd_utils.metrics import effects, holm
from ser_kd_utils.metrics.effects import Effect
from ser_kd_utils.records import Run
from ser_kd_utils.report import tables as report
from ser_kd_utils.report.tables import BLANK, Cell, Line, Sample, Selection, Table, word

INTERVAL, OVER_UTTERANCES, DETECTABLE = "95 % interval", "95 % over utterances", "smallest detectable"
OVER_FOLDS = [INTERVAL, "p", "p (Holm)", DETECTABLE]
"""Columns of a difference that one fold cannot fill."""
SPEAKERS = {"emodb": slice(2), "ravdess": slice(-2, None)}
"""Corpora whose utterances are named after their speaker: which part of 03a01Fa or 03-01-05-01-02-01-16 it is."""


@dataclass(frozen=True)
class Comparison:
    """The variant that should be better, the other, the speech to test on, and what is claimed of them, if anything.

    gate: of a claim about distillation, the teacher and the student without it: the claim presumes that the teacher has
    the higher dev UA. margin: where over 0, the claim is that the first is worse by less than so many points.
    """

    better: str
    worse: str
    condition: str = "noisy"
    claim: str = ""
    gate: tuple[str, str] | None = None
    margin: float = 0

    @property
    def words(self) -> str:
        return f"({self.better}) - ({self.worse})"

    @property
    def key(self) -> tuple[Any, ...]:
        """What is tested, either way round."""
        return frozenset((self.better, self.worse)), self.condition, self.margin


class Tested(NamedTuple):
    """A comparison on what both variants have. whole: the two in all speech; samples: in the speech of the test; p: of
    what is claimed; corrected: for the family that it belongs to (Holm)."""

    use: Comparison
    whole: list[Sample]
    samples: list[Sample]
    effect: Effect
    p: float
    corrected: float = 1


class Differences(Table):
    """A table with a test in each line."""

    @property
    def caption(self) -> str:
        infos = [run.info for run in self.runs]
        counted = Counter((info["variant"], info["protocol"].get("mark"), info["fold"]) for info in infos)
        units = "speakers and utterances" if infos[0]["corpus"] in SPEAKERS else "utterances"
        told = "differences: mean over folds, seeds averaged within each; 95 % interval and p: corrected t-test over "
        told += f"folds; over utterances: bootstrap over {units}, given these models; fewest seeds in a fold: "
        return f"{told}{min(counted.values())}, a verdict takes 3; undecided is not equal; {super().caption}"


@dataclass(frozen=True)
class Family:
    """A method's records, those of its teachers among them, and its claims, from which its tables are made.

    Each claim's p is corrected for all of them (Holm), and every table that shows one of these comparisons quotes it.
    """

    runs: Sequence[Run]
    claims: Sequence[Comparison]

    @cached_property
    def claimed(self) -> dict[tuple[Any, ...], float]:
        """The claims' corrected p by `Comparison.key`."""
        return _corrected(self._tests(self.claims))

    def _tests(self, declared: Iterable[Comparison]) -> list[Tested]:
        found = []
        for use in declared:
            if whole := report.together(self.runs, Selection((use.better,)), Selection((use.worse,))):
                samples = [sample.at(use.condition) for sample in whole]
                effect = effect_of(*samples)
                p = effect.p_above(-use.margin / 100) if use.margin else effect.p
                found.append(Tested(use, whole, samples, effect, p))
        return found

    def tested(self, declared: Iterable[Comparison]) -> Iterator[Tested]:
        """Those of which both variants are recorded; other p than of claims are corrected for their number."""
        found = self._tests(declared)
        p = _corrected([each for each in found if each.use.key not in self.claimed]) | self.claimed
        return (each._replace(corrected=p[each.use.key]) for each in found)

    def differences(
        self, name: str, keys: tuple[str, ...], declared: Iterable[Comparison], points: str,
        cells: Callable[[Comparison, Sample, Sample], Line], readings: Sequence[str],
    ) -> Table:  # fmt: skip
        """A line for each comparison: the given cells, made from all speech of the two, the difference in points, and
        the reading: one of two where the first is better and where the second is, or undecided."""
        words = dict(zip(("supported", "contradicted"), readings, strict=True))

        def lines() -> Iterator[Line]:
            for each in self.tested(declared):
                reading = words.get(effects.verdict(each.effect, p=each.corrected), "undecided")
                reading += ": one fold" * (each.effect.folds == 1)
                line = cells(each.use, *each.whole) | line_of(*each[2:], points)
                yield line | {"reading": _cell(*each.samples, reading)}

        return Differences(name, keys, lambda: [*lines()])

    def comparisons(self, name: str, declared: Iterable[Comparison]) -> Table:
        def cells(use: Comparison, *_: Sample) -> Line:
            return {"rows": word(use.words), "speech": word(use.condition)}

        readings = ("first is better", "second is better")
        return self.differences(name, ("rows", "speech"), declared, "UA, points", cells, readings)

    def components(self, name: str, known: Iterable[str], condition: str) -> Table:
        """Variants with one component changed, each against its baseline; UA in percent.

        known: their order; condition: the speech in which the difference is tested.
        """
        baselines = {run.info["variant"]: run.info["baseline"] for run in self.runs}
        names = report.recorded(self.runs, "component", known)

        def cells(use: Comparison, own: Sample, other: Sample) -> Line:
            line = {key: report.told(told)(own) for key, told in (("row", "title"), ("question", "question"))}
            line["against"] = report.label(other)
            return line | {f"UA {part}": own.at(part).score() for part in ("clean", "noisy")}

        declared = [Comparison(variant, baselines[variant], condition) for variant in names]
        return self.differences(name, ("row",), declared, "difference, points", cells, ("better", "worse"))

    def verdicts(self, name: str) -> Table:
        """Each claim of which both variants are recorded, with its test, premise and verdict."""

        def lines() -> Iterator[Line]:
            for each in self.tested(self.claims):
                use, (holds, premise) = each.use, self.premise(each.use.gate)
                decided = partial(effects.near, margin=use.margin / 100) if use.margin else effects.verdict
                line = {"claim": word(use.claim), "tested by": word(f"{use.words}, {use.condition}")}
                line |= line_of(*each[2:], "points for it") | {"premise": word(premise)}
                yield line | {"verdict": _cell(*each.samples, decided(each.effect, p=each.corrected, gate=holds))}

        return Differences(name, ("claim",), lambda: [*lines()])

    def premise(self, gate: tuple[str, str] | None) -> tuple[bool, str]:
        """Whether the teacher has the higher dev UA, and the words for it; True where that cannot be known.

        A variant trained in noise has dev speech in noise, so it is compared with its like only.
        """
        if not gate:
            return True, ""
        sides = [[run for run in self.runs if run.info["variant"] == name] for name in gate]
        kinds = [{bool(run.info["train_noise"]) for run in side} for side in sides]
        words = f"{Comparison(*gate).words} on dev"
        if kinds[0] != kinds[1] or not kinds[0]:
            return True, f"{words}: not on the same kind of speech"
        teacher, student = pd.DataFrame.align(*map(_dev_scores, sides))
        points = 100 * (teacher - student).stack().mean()
        return effects.beats(teacher.to_numpy(), student.to_numpy()), f"{words}: {points:+.1f} points"

    def null(self, name: str, known: Iterable[str], condition: str) -> Table:
        """Each of the known variants that has several seeds, seed against seed through the same test: what chance alone
        looks like. Protocols whose seed decides what is tested have no such pairs."""
        words = "seed against seed of one variant, tested as two variants are: what chance alone looks like; "
        main = (run for run in self.runs if run.info["kind"] == "main")
        fixed = [run for run in main if run.info["protocol"]["protocol"] != "random"]

        def lines() -> Iterator[Line]:
            for sample in (each for name in known for each in report.aligned(fixed, [name]).values()):
                found = [*effects.null(sample.at(condition).table, **_about_test(sample)).values()]
                for largest in sorted(found, key=lambda each: -abs(each.difference))[:1]:
                    line = {"row": report.label(sample), "speech": word(condition), "pairs of seeds": word(len(found))}
                    line["largest difference, points"] = word(*_points(abs(largest.difference)), sample.runs)
                    line["its p"] = word(round(largest.p, 4)) if np.isfinite(largest.p) else BLANK
                    line["pairs with p < 0.05"] = word(sum(each.p < 0.05 for each in found))
                    yield line | {"folds x seeds": report.design(sample)}

        return Table(name, ("row",), lambda: [*lines()], words)


def effect_of(first: Sample, second: Sample) -> Effect:
    """UA of the first less that of the second. Two protocols have different folds: across them all is one fold."""
    tables = [first.table, second.table]
    if first.selection.protocol != second.selection.protocol:
        tables = [table.assign(fold=0) for table in tables]
    return effects.effect(*tables, **_about_test(first, second))


def _about_test(*samples: Sample) -> dict[str, Any]:
    """What `metrics.effects` has to know of their records."""
    own = ([run for run in each.runs if run.info["variant"] in each.selection.variants] for each in samples)
    ratios = [effects.split_ratio(run.info["protocol"]["sizes"] for run in runs) for runs in own]
    place = SPEAKERS.get(samples[0].info["corpus"])
    speakers = {name: name[place] for name in samples[0].table["utterance"].unique()} if place else None
    return {"test_train": max(ratios), "speakers": speakers}


def _corrected(found: Sequence[Tested]) -> dict[tuple[Any, ...], float]:
    """By key; a test that cannot be made, as with one fold, counts as one with p = 1."""
    p = holm(np.nan_to_num([each.p for each in found], nan=1.0)).tolist()
    return {each.use.key: corrected for each, corrected in zip(found, p, strict=True)}


def _dev_scores(runs: Sequence[Run]) -> pd.DataFrame:
    """Dev UA at the chosen epoch, (folds, seeds)."""
    infos = ((run.info, run.history["dev_UA"]) for run in runs)
    return pd.Series({(info["fold"], info["seed"]): dev[info["best_epoch"]] for info, dev in infos}).unstack()


def _points(*values: float) -> list[float]:
    return [round(100 * value, 1) for value in values]


def _cell(first: Sample, second: Sample, value: float | str, ends: Sequence[float] = (None, None)) -> Cell:
    """A cell of the difference; blank where the value is not defined."""
    use, other = replace(first.selection, difference=True), second.selection
    if (use.checkpoint, use.protocol) == (other.checkpoint, other.protocol):
        use = replace(use, variants=use.variants + other.variants)
    else:
        use = replace(use, beside=(replace(other, beside=()),))
    runs = tuple(dict.fromkeys(first.runs + second.runs))
    return BLANK if pd.isna(value) else Cell(value, str(value), *ends, runs, use)


def line_of(samples: Sequence[Sample], found: Effect, p: float, corrected: float, points: str) -> Line:
    """The difference in points with its intervals and test; blank is what one fold cannot tell. points: the column's
    name; its cell has the interval over folds or, where there is none, that over utterances."""
    cell, known = partial(_cell, *samples), bool(np.isfinite(found.low))
    folds, utterances = _points(found.low, found.high), _points(found.boot_low, found.boot_high)
    value, detectable = _points(found.difference, found.detectable)
    over_folds = cell(str(folds), folds), cell(round(p, 4)), cell(round(corrected, 4)), cell(detectable)
    line = {points: cell(value, folds if known else utterances), INTERVAL: BLANK}
    line |= {OVER_UTTERANCES: cell(str(utterances), utterances)}
    line |= dict(zip(OVER_FOLDS, over_folds if known else [BLANK] * 4, strict=True))
    return line | {"folds x seeds": report.design(samples[0])}


def difference_of(line: Line) -> Cell:
    """The cell with the difference in points."""
    return next(cell for cell in line.values() if cell.selection and cell.selection.difference)
