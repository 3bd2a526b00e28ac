"""Tables of differences: comparisons, components, claims with their verdicts, and what chance alone looks like.

    CLAIMS = read_claims(__file__)

    def tables(runs):
        family = Family(runs, CLAIMS)
        return [family.comparisons("toy_comparisons", CLAIMS), family.verdicts("toy_claims")]

A difference is the mean over folds of that within each, seeds averaged first, and is tested over folds: see
`metrics.effects`. A verdict takes three seeds in every fold, both intervals on one side of 0, p under 5 % after
correction for the method's claims and, of a claim about distillation, a teacher that is better than its student. A
difference whose 90 % intervals lie within two points of 0 is negligible.
`ledger` sets the claims of all methods on all corpora in one table.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ser_kd_utils.metrics import effects, holm
from ser_kd_utils.metrics.effects import LEAST_SEEDS, Effect
from ser_kd_utils.records import Run
from ser_kd_utils.report import tables as report
from ser_kd_utils.report.tables import BLANK, Cell, Column, Line, PointEstimate, Sample, Selection, Table, word

INTERVAL, OVER_UTTERANCES, CORRECTED = "95 % interval", "95 % over utterances", "p (Holm)"
OVER_FOLDS = [INTERVAL, "p", CORRECTED, "smallest detectable"]  # what one fold cannot fill
POINTS, PLACE = "points for it", "corpus-profile"
UNDECIDED = "undecided is not equal, negligible is within 2 points by 90 % intervals"
LEDGER = ("table", "claim", "tested by", PLACE, POINTS, INTERVAL, CORRECTED, "folds x seeds", "verdict", "reason")
# corpora whose utterances are named after their speaker: which part of 03a01Fa or 03-01-05-01-02-01-16 it is
SPEAKERS = {"emodb": slice(2), "ravdess": slice(-2, None)}


@dataclass(frozen=True)
class Comparison:
    """The variant that should be better, the other, the speech to test on, and what is claimed of them, if anything.

    gate: of a claim about distillation, the teacher and the student without it: the claim presumes that the teacher has
    the higher dev UA. margin: where over 0, the claim is that the first is worse by less than so many points. snrs: of
    an interaction, the SNR in dB at which the first should be better by more, and the other one: the difference at the
    second is subtracted from that at the first.
    """

    better: str
    worse: str
    condition: str = "noisy"
    claim: str = ""
    gate: tuple[str, str] | None = None
    margin: float = 0
    snrs: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        less = " at {:g} dB less at {:g} dB".format(*self.snrs) if self.snrs else ""
        return f"({self.better}) - ({self.worse}){less}"

    @property
    def line(self) -> Line:
        return {"claim": word(self.claim), "tested by": word(f"{self.words}, {self.condition}")}

    @property
    def key(self) -> tuple[Any, ...]:
        """What is tested, either way round."""
        return frozenset((self.better, self.worse)), self.condition, self.margin, self.snrs


def read_claims(module: str, **names: str) -> list[Comparison]:
    """The claims of a method from the claims.csv beside its module: the fields of Comparison, with the gate as teacher
    and student.

    What does not apply is blank; two SNRs stand side by side; `{name}` stands for the variant given as `name`.
    module: the module's `__file__`.
    """
    table = pd.read_csv(Path(module).with_name("claims.csv"), dtype=str, keep_default_na=False).to_dict("records")
    return [
        Comparison(
            *(line[key].format(**names) for key in ("better", "worse", "condition", "claim")),
            gate=(line["teacher"], line["student"]) if line["teacher"] else None,
            margin=float(line["margin"] or 0),
            snrs=tuple(map(float, line["snrs"].split())),
        )
        for line in table
    ]


class Tested(NamedTuple):
    """A comparison on what both variants have. premise: whether it holds, and the words for it; whole: the two in all
    speech; samples: in the speech of the test, of several corpora two of each; corrected: p for the family that it
    belongs to (Holm)."""

    use: Comparison
    premise: tuple[bool, str]
    whole: list[Sample]
    samples: list[Sample]
    effect: Effect
    corrected: float = 1

    @property
    def p(self) -> float:
        """Of what is claimed."""
        return self.effect.p_above(-self.use.margin / 100) if self.use.margin else self.effect.p

    def line(self, points: str) -> Line:
        """The difference in points with its intervals and test; blank is what one fold cannot tell. points: the
        column's name; its cell has the interval over folds or, where there is none, that over utterances."""
        cell, known = partial(_cell, self.samples), bool(np.isfinite(self.effect.error))
        value, detectable, *ends = _points(self.effect.difference, self.effect.detectable, *self.effect.ends().tolist())
        folds, units = ends[:2], ends[2:]
        over_folds = cell(str(folds), folds), cell(round(self.p, 4)), cell(round(self.corrected, 4)), cell(detectable)
        line = {points: cell(value, folds if known else units), INTERVAL: BLANK}
        line |= {OVER_UTTERANCES: cell(str(units), units)}
        line |= dict(zip(OVER_FOLDS, over_folds if known else [BLANK] * 4, strict=True))
        designs = ", ".join(report.design(sample).text for sample in self.samples[::2])
        return line | {"folds x seeds": word(designs, self.samples[0].runs)}

    def judged(self) -> Line:
        """The claim with its test, premise and verdict, and what is missing where that is undecided."""
        verdict = effects.verdict(self.effect, self.corrected, self.premise[0], self.use.margin / 100)
        reason = effects.why_undecided(self.effect) if verdict == "undecided" else ""
        line = self.use.line | self.line(POINTS) | {"premise": word(self.premise[1])}
        return line | {"verdict": _cell(self.samples, verdict), "reason": word(reason)}


@dataclass(frozen=True)
class Differences(Table):
    """A table with a test in each line; family: of a table of verdicts, that whose claims they are."""

    family: "Family | None" = None

    @property
    def caption(self) -> str:
        infos = [run.info for run in self.runs]
        seeds = Counter((info["variant"], info["protocol"].get("mark"), info["fold"]) for info in infos)
        units = "speakers and utterances" if infos[0]["corpus"] in SPEAKERS else "utterances"
        return (
            "differences: mean over folds, seeds averaged within each; 95 % interval and p: corrected t-test over "
            f"folds; over utterances: bootstrap over {units}, given these models; fewest seeds in a fold: "
            f"{min(seeds.values())}, a verdict takes {LEAST_SEEDS}; {UNDECIDED}; {super().caption}"
        )


@dataclass(frozen=True)
class Family:
    """A method's records, those of its teachers among them, and its claims, from which its tables are made.

    Each claim's p is corrected for all of them (Holm), and every table that shows one of these comparisons quotes it.
    """

    runs: Sequence[Run]
    claims: Sequence[Comparison]

    @cached_property
    def claimed(self) -> list[Tested]:
        """The claims of which both variants are recorded."""
        return _corrected(self._tests(self.claims))

    def _tests(self, declared: Iterable[Comparison]) -> Iterator[Tested]:
        for use in declared:
            whole = report.together(self.runs, Selection((use.better,)), Selection((use.worse,)))
            samples = [sample.at(use.condition, use.snrs or None) for sample in whole]
            if whole and {*use.snrs} <= {*samples[0].table["snr_db"]}:
                yield Tested(use, self.premise(use.gate), whole, samples, effect_of(*samples, use.snrs))

    def tested(self, declared: Iterable[Comparison]) -> list[Tested]:
        """Those of which both variants are recorded; p of the others is corrected together with that of the claims."""
        found, claimed = [*self._tests(declared)], {each.use.key for each in self.claimed}
        others = _corrected([*self.claimed, *(each for each in found if each.use.key not in claimed)])
        p = {each.use.key: each.corrected for each in (*others, *self.claimed)}
        return [each._replace(corrected=p[each.use.key]) for each in found]

    def differences(
        self, name: str, declared: Iterable[Comparison], points: str, readings: Sequence[str],
        columns: Mapping[str, tuple[int, Column]],
    ) -> Table:  # fmt: skip
        """A line for each comparison: the columns, the difference in points and the reading.

        readings: the words for a first that is better and for a second that is. columns: each of the
        first (0) or the second (1) in all speech; the first column names the line. Without any, the two are named.
        """
        words = dict(zip(("supported", "contradicted"), readings, strict=True))

        def lines() -> Iterator[Line]:
            for each in self.tested(declared):
                reading = words.get(found := effects.verdict(each.effect, each.corrected), found)
                reading += ": one fold" * (len(each.effect.by_fold) == 1)
                line = {title: column(each.whole[side]) for title, (side, column) in columns.items()}
                line = line or {"rows": word(each.use.words), "speech": word(each.use.condition)}
                yield line | each.line(points) | {"reading": _cell(each.samples, reading)}

        return Differences(name, (*columns,)[:1] or ("rows", "speech"), lines)

    def comparisons(self, name: str, declared: Iterable[Comparison]) -> Table:
        return self.differences(name, declared, "UA, points", ("first is better", "second is better"), {})

    def with_baselines(self, kind: str, known: Collection[str], condition: str) -> list[Comparison]:
        """The recorded variants of a kind, each with its baseline; known: their order."""
        baselines = {run.info["variant"]: run.info["baseline"] for run in self.runs}
        return [Comparison(each, baselines[each], condition) for each in report.recorded(self.runs, kind, known)]

    def components(self, name: str, known: Collection[str], condition: str) -> Table:
        """Variants with one component changed, each against its baseline; UA in percent.

        known: their order; condition: the speech in which the difference is tested.
        """
        columns = {"row": (0, report.told("title")), "question": (0, report.told("question"))}
        columns["against"] = 1, report.label
        columns |= {f"UA {part}": (0, PointEstimate(part)) for part in ("clean", "noisy")}
        declared = self.with_baselines("component", known, condition)
        return self.differences(name, declared, "difference, points", ("better", "worse"), columns)

    def verdicts(self, name: str) -> Table:
        """Each claim of which both variants are recorded, with its test, premise and verdict."""
        return Differences(name, ("claim",), lambda: [each.judged() for each in self.claimed], family=self)

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
        teacher, student = map(_dev_scores, sides)
        points = 100 * (teacher - student).mean()  # over the folds and seeds that both have
        return bool(points > 0), f"{words}: {points:+.1f} points"

    def null(self, name: str, known: Iterable[str], condition: str) -> Table:
        """Each of the known variants that has several seeds, seed against seed through the same test: what chance alone
        looks like. Protocols whose seed decides what is tested have no such pairs."""
        words = "seed against seed of one variant, tested as two are, mean over folds: what chance alone looks like; "
        fixed = [r for r in self.runs if r.info["kind"] == "main" and r.info["protocol"]["protocol"] != "random"]

        def lines() -> Iterator[Line]:
            for sample in (each for name in known for each in report.aligned(fixed, [name]).values()):
                found = [*effects.null(_with_speakers(sample.at(condition)), test_train=_test_train(sample)).values()]
                for largest in sorted(found, key=lambda each: -abs(each.difference))[:1]:
                    line = {"row": report.label(sample), "speech": word(condition), "pairs of seeds": word(len(found))}
                    line["largest difference, points"] = word(*_points(abs(largest.difference)), sample.runs)
                    line["its p"] = word(round(largest.p, 4)) if np.isfinite(largest.p) else BLANK
                    line["pairs with p < 0.05"] = word(sum(each.p < 0.05 for each in found))
                    yield line | {"folds x seeds": report.design(sample)}

        return Table(name, ("row",), lines, words)


def effect_of(first: Sample, second: Sample, snrs: tuple[float, ...] = ()) -> Effect:
    """UA of the first less that of the second; snrs: of an interaction. Two protocols have different folds: across them
    all is one fold."""
    tables = [_with_speakers(first), _with_speakers(second)]
    if first.selection.protocol != second.selection.protocol:
        tables = [table.assign(fold=0) for table in tables]
    return effects.effect(*tables, test_train=max(map(_test_train, (first, second))), snrs=snrs)


def _with_speakers(sample: Sample) -> pd.DataFrame:
    place = SPEAKERS.get(sample.info["corpus"])
    return sample.table.assign(speaker=sample.table["utterance"].str[place]) if place else sample.table


def _test_train(sample: Sample) -> float:
    """Mean over the variant's runs of n_test / n_train. Dev speech trains no weights."""
    own = [run for run in sample.runs if run.info["variant"] in sample.selection.variants]
    sizes = pd.DataFrame([run.info["protocol"]["sizes"] for run in own])
    return float((sizes["test"] / sizes["train"]).mean())


def _corrected(family: Iterable[Tested]) -> list[Tested]:
    """A test that cannot be made, as with one fold, counts as one with p = 1."""
    found = [*family]
    p = holm(np.nan_to_num([each.p for each in found], nan=1.0)).tolist()
    return [each._replace(corrected=corrected) for each, corrected in zip(found, p, strict=True)]


def _dev_scores(runs: Sequence[Run]) -> pd.Series:
    """Dev UA at the chosen epoch by fold and seed."""
    infos = ((run.info, run.history["dev_UA"]) for run in runs)
    return pd.Series({(info["fold"], info["seed"]): dev[info["best_epoch"]] for info, dev in infos})


def _points(*values: float) -> list[float]:
    return [round(100 * value, 1) + 0.0 for value in values]  # no "-0.0"


def _cell(samples: Sequence[Sample], value: float | str, ends: Sequence[float] = (None, None)) -> Cell:
    """A cell of the difference of two samples, or of pooled ones, which no single selection finds again; blank where
    the value is not defined."""
    use, other = replace(samples[0].selection, difference=True), samples[1].selection
    if (use.checkpoint, use.protocol) == (other.checkpoint, other.protocol):
        use = replace(use, variants=use.variants + other.variants)
    else:
        use = replace(use, beside=(replace(other, beside=()),))
    runs = tuple(dict.fromkeys(run for sample in samples for run in sample.runs))
    return BLANK if pd.isna(value) else Cell(value, str(value), *ends, runs, use if len(samples) == 2 else None)


# --- the claims of all methods on all corpora


def ledger(evidence: Mapping[str, Mapping[str, Mapping[str, Table]]]) -> Table:
    """A line for each claim on each corpus on which its method ran, by profile, and one for two with a test over folds.

    evidence: all tables by profile, corpus and name; of recorded speech only, since synthetic speech supports no claim.
    """
    words = (
        "differences of UA: mean over folds, seeds averaged within each; 95 % interval: corrected t-test over folds; "
        "Holm: within a method's claims; pooled: fixed effect over corpora with a test over folds, Holm within the "
        f"pooled claims; not run: not recorded; a verdict takes {LEAST_SEEDS} seeds; {UNDECIDED}"
    )

    def lines() -> Iterator[Line]:
        for profile, corpora in evidence.items():
            for name in (name for name, table in [*corpora.values()][0].items() if getattr(table, "family", None)):
                families = {f"{corpus}-{profile}": tables[name].family for corpus, tables in corpora.items()}
                found = {place: family.claimed for place, family in families.items() if family.claimed}
                found[f"pooled, {profile}"] = _pooled(sum(found.values(), []))
                tested = {(each.use.claim, place): each.judged() for place in found for each in found[place]}
                claims = {use.claim: use for family in families.values() for use in family.claims}
                for claim, place in ((claim, place) for claim in claims for place in found):
                    if place in families or (claim, place) in tested:
                        line = claims[claim].line | tested.get((claim, place), {"verdict": word("not run")})
                        line |= {"table": word(name), PLACE: word(place)}
                        yield {column: line.get(column, BLANK) for column in LEDGER}

    return Table("CLAIMS", ("table", "claim", PLACE), lines, words)


def _pooled(tested: Iterable[Tested]) -> list[Tested]:
    """Those claims of a method that several corpora have tested over folds."""
    pools: dict[str, list[Tested]] = {}
    for each in tested:
        if np.isfinite(each.effect.error):
            pools.setdefault(each.use.claim, []).append(each)
    found = []
    for use, premises, _, samples, tested, _ in (zip(*pool, strict=True) for pool in pools.values() if len(pool) > 1):
        premise = all(holds for holds, _ in premises), ""
        found.append(Tested(use[0], premise, [], sum(samples, []), effects.pooled(tested)))
    return _corrected(found)
