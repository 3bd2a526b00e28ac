"""Declared tables: lines x columns, each cell with its value, its records and the selection it was computed from.

CSV, Markdown, LaTeX, `explain`, `compare` and the figures read these objects; nothing is read back from text. A method
declares its tables in its module `tables`:

    def tables(runs):
        runs = [run for run in runs if run.info["method"] == "toy"]
        columns = {"row": label, "model": told("title"), "UA clean": Score("clean"), "UA noisy": Score()}
        claimed = [Comparison("toy-kd", "toy-alone", "noisy", claim="distillation helps in noise")]
        compared = comparisons("toy_comparisons", runs, claimed)
        main = scores("toy", lambda: aligned(runs, ("toy-alone", "toy-kd")), columns)
        return [main, compared, claims("toy_claims", [compared], claimed)]

An interval is a 95 % percentile bootstrap over the test utterances of all folds, an utterance's correctness averaged
over seeds first. It says how much the choice of utterances matters; the choice of speakers and, with one seed, the luck
of a training are not in it. These are in the columns "by run": the mean over folds x seeds of the difference within
each, with its t-interval, and the smallest true difference in points that a two-sided test at 5 % on so many runs would
detect four times in five. Folds count alike there, however many utterances they have.

"Noisy" means all noise types at the SNRs inside the range heard in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any

import pandas as pd

from ser_kd_utils.metrics import across_runs, holm, interval, paired_test, score
from ser_kd_utils.records import EVIDENCE, Run, predictions

BY_RUN = ["by run, points", "95 % interval by run", "smallest detectable"]
Line = dict[str, "Cell"]


@dataclass(frozen=True)
class Selection:
    """Which predictions a number was computed from.

    variants: one or, of a difference, the first and the second; checkpoint: "best", "last", "test-UA" or "test-WA";
    condition: "clean", "noisy", "all" or a noise type; snr_db: one SNR, trained on or not; protocol: its mark, "" for
    records of one protocol. beside: only folds, seeds and conditions that these selections have too count, and across
    protocols only the utterances. difference: whether the score of the second is subtracted, of `beside` where there is
    one variant.
    """

    variants: tuple[str, ...]
    checkpoint: str = "best"
    condition: str = "noisy"
    snr_db: float | None = None
    metric: str = "UA"
    protocol: str = ""
    beside: tuple[Selection, ...] = ()
    difference: bool = False

    def predictions(self, runs: Sequence[Run]) -> list[pd.DataFrame]:
        """What counts of the predictions of `runs`: one table or, of a difference, the first and the second."""
        sides = [replace(self, variants=(name,), beside=()) for name in self.variants]
        found = together(runs, *sides, *self.beside)[: 1 + self.difference]
        return [sample.at(self.condition, self.snr_db).table for sample in found]


@dataclass(frozen=True)
class Cell:
    """One number or word of a table.

    value: a number (percent, points, p) rounded as it is printed, text, or None for one that is not known; text: as
    printed; low, high: the ends of the interval where there is one; runs: the records behind it; selection: None where
    no prediction decides it.
    """

    value: float | int | str | None
    text: str
    low: float | None = None
    high: float | None = None
    runs: tuple[Run, ...] = ()
    selection: Selection | None = None


BLANK = Cell("", "")


def word(value: str | int | float | None, runs: Sequence[Run] = ()) -> Cell:
    """A cell that no prediction decides: a name, a count, a published value; runs: the records it is about."""
    return Cell(value, "" if value is None else str(value), runs=tuple(runs))


@dataclass(frozen=True)
class Table:
    """A declared table. Its lines are made when they are asked for; without records it has none.

    make: returns the lines, each a cell by column; keys: the columns that tell lines apart; words: before the caption
    that all tables have.
    """

    name: str
    keys: tuple[str, ...]
    make: Callable[[], list[Line]]
    words: str = ""

    @cached_property
    def lines(self) -> list[Line]:
        return self.make()

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for line in self.lines for column in line))

    @property
    def runs(self) -> list[Run]:
        """The records behind any of its cells, by name."""
        return unique(run for line in self.lines for cell in line.values() for run in cell.runs)

    @property
    def caption(self) -> str:
        return self.words + about(self.runs)

    @property
    def frame(self) -> pd.DataFrame:
        """What the CSV file holds; a number that stands alone is a number."""
        lines = [{name: line.get(name, BLANK) for name in self.columns} for line in self.lines]
        return pd.DataFrame(lines, columns=self.columns).map(
            lambda cell: cell.value if cell.text in ("", str(cell.value)) else cell.text
        )

    def csv(self) -> str:
        return self.frame.to_csv(index=False)

    def key(self, line: Line) -> str:
        """What tells the line apart, in words: `(e)`, or `hum, 0, (e)`."""
        cells = (line[name] for name in self.keys if line[name].text)
        return ", ".join(f"{cell.value:g}" if isinstance(cell.value, float) else cell.text for cell in cells)

    def cell(self, key: str, column: str) -> Cell:
        """Raises KeyError for a line that is not there."""
        return {self.key(line): line for line in self.lines}[key].get(column, BLANK)


def unique(runs: Iterable[Run]) -> list[Run]:
    """Each of these runs once, by name."""
    return list({run.id: run for run in sorted(runs, key=lambda run: run.id)}.values())


@dataclass(frozen=True)
class Sample:
    """Predictions of one variant, the records they come from, its own first, and what finds them there again."""

    table: pd.DataFrame
    runs: tuple[Run, ...]
    selection: Selection

    @property
    def info(self) -> dict[str, Any]:
        """What is recorded of the variant."""
        return self.runs[0].info

    def at(self, condition: str, snr_db: float | None = None) -> Sample:
        """The part in some speech: see `Selection`."""
        table, selection = self.table, replace(self.selection, condition=condition, snr_db=snr_db)
        clean = table["condition"] == "clean"
        if condition == "clean":
            table = table[clean]
        elif condition != "all":
            kinds = ~clean if condition == "noisy" else table["condition"] == condition
            table = table[kinds & (table["in_range"] if snr_db is None else table["snr_db"] == snr_db)]
        return Sample(table, self.runs, selection)

    def score(self, metric: str = "UA", with_interval: bool = False) -> Cell:
        """`metric` in percent."""
        selection = replace(self.selection, metric=metric)
        if not with_interval:
            value = round(100 * score(self.table, metric), 1)
            return Cell(value, str(value), runs=self.runs, selection=selection)
        value, low, high = (round(100 * part, 1) for part in interval(self.table, metric))
        return Cell(value, f"{value:.1f} {_ends(low, high)}", low, high, self.runs, selection)


def _ends(low: float, high: float) -> str:
    return f"[{low:.1f}, {high:.1f}]"


def mark_of(run: Run) -> str:
    """P1 or P2 where a method has two protocols, else empty."""
    return run.info["protocol"].get("mark", "")


def together(runs: Sequence[Run], *selections: Selection) -> list[Sample]:
    """Predictions of one variant each on what all have of folds, seeds and conditions; [] when that is nothing.

    Across protocols, whose folds differ, on the utterances and seeds that all have; a class that has two names there
    takes the first's. Of a run that held a noise type out, this type is all that counts: each fold holds out its own.
    """
    recorded = [
        [run for run in runs if run.info["variant"] in use.variants and use.protocol in ("", mark_of(run))]
        for use in selections
    ]
    if not all(recorded):
        return []
    tables = [_own(some, use.checkpoint) for some, use in zip(recorded, selections, strict=True)]
    across = len({use.protocol for use in selections}) > 1
    by = ["utterance" if across else "fold", "seed", "condition", "snr_db"]
    shared = reduce(pd.merge, (table[by].drop_duplicates() for table in tables))
    found = [table.merge(shared) for table in tables] if len(shared) else []
    if across:
        found = [_in_words_of(found[0], table, by) for table in found]
    pairs = [table[["fold", "seed"]].drop_duplicates() for table in found]
    there = [set(each.itertuples(index=False, name=None)) for each in pairs]
    kept = [
        [run for run in some if (run.info["fold"], run.info["seed"]) in each]
        for some, each in zip(recorded, there, strict=bool(found))
    ]
    samples = []
    for place, (use, table) in enumerate(zip(selections, found, strict=bool(found))):
        narrowed = len(table) < len(tables[place].merge(pairs[place]))  # by what else than missing runs
        others = tuple(other for other in selections if other != use) if narrowed else ()
        own = dict.fromkeys(kept[place] + sum(kept, []) * narrowed)
        samples.append(Sample(table, tuple(own), replace(use, condition="all", beside=others)))
    return samples


def _own(runs: Sequence[Run], checkpoint: str) -> pd.DataFrame:
    table = predictions(runs, checkpoint)
    held_out = table["fold"].map({run.info["fold"]: run.info["held_out_noise"] for run in runs})
    return table[(held_out == "") | (held_out == table["condition"])]


def _in_words_of(first: pd.DataFrame, table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    named = table[[*by, "label"]].merge(first[[*by, "label"]], on=by)
    words = dict(zip(named["label_x"], named["label_y"], strict=True))
    return table.replace({"label": words, "prediction": words})


def aligned(runs: Sequence[Run], names: Iterable[str]) -> dict[str, Sample]:
    """Predictions of those of these variants that are recorded, on what all of them have."""
    found = [name for name in names if any(run.info["variant"] == name for run in runs)]
    samples = together(runs, *(Selection((name,)) for name in found)) if found else []
    return dict(zip(found, samples, strict=False))  # nothing in common, no sample


def recorded(runs: Sequence[Run], kind: str, known: Iterable[str] = ()) -> list[str]:
    """The variants of this kind that are recorded: known ones in their order, then what the code trains no longer."""
    order = {name: place for place, name in enumerate(known)}
    found = {run.info["variant"] for run in runs if run.info["kind"] == kind}
    return sorted(found, key=lambda name: (order.get(name, len(order)), name))


# --- columns: each makes a cell of a sample

Column = Callable[[Sample], Cell]


@dataclass(frozen=True)
class Score:
    """A column of scores in percent, in some speech: see `Selection`."""

    condition: str = "noisy"
    snr_db: float | None = None
    metric: str = "UA"
    with_interval: bool = True

    def __call__(self, sample: Sample) -> Cell:
        return sample.at(self.condition, self.snr_db).score(self.metric, self.with_interval)


def label(sample: Sample) -> Cell:
    """The variant as tables write it: a single letter stands in parentheses."""
    (name,) = sample.selection.variants
    return word(f"({name})" if len(name) == 1 else name, sample.runs)


def told(key: str) -> Column:
    """What is recorded under this key: "title", "question", "baseline"."""
    return lambda sample: word(sample.info[key], sample.runs)


def design(sample: Sample) -> Cell:
    return word(folds_x_seeds(zip(sample.table["fold"], sample.table["seed"], strict=True)), sample.runs)


def folds_x_seeds(pairs: Iterable[tuple[int, int]]) -> str:
    """`5 x 2` for five folds with two seeds each; a number of runs where the grid has holes."""
    runs = set(pairs)
    folds, seeds = (len(set(part)) for part in zip(*runs, strict=True))
    return f"{folds} x {seeds}" if len(runs) == folds * seeds else f"{len(runs)} runs"


def command(runs: Sequence[Run]) -> str:
    """What makes these records; DATA and NOISE stand for folders on the reader's machine."""
    info = runs[0].info
    data = "" if info["corpus"] == "demo" else f" --corpus {info['corpus']} --data-root DATA"
    noise = " --noise-dir NOISE" if info["protocol"]["noise"].startswith("folder") else ""
    profile = "" if info["profile"] == "tiny" else f" --profile {info['profile']}"
    folds, seeds = (",".join(map(str, sorted({run.info[key] for run in runs}))) for key in ("fold", "seed"))
    changed = f' --set "{info["overrides"]}"' if info.get("overrides") else ""
    return f"ser-kd reproduce{data}{noise}{profile} --folds {folds} --seeds {seeds}{changed}"


def snrs(runs: Sequence[Run]) -> list[float]:
    """Those of the tests in dB, from the highest."""
    return sorted(map(float, runs[0].info["settings"]["noise"]["test_snr_db"]), reverse=True) if runs else []


# --- tables


def scores(name: str, samples: Callable[[], Mapping[str, Sample]], columns: Mapping[str, Column]) -> Table:
    """A line for each variant; the first column names it. samples: called when the lines are wanted."""

    def lines() -> list[Line]:
        return [{title: column(sample) for title, column in columns.items()} for sample in samples().values()]

    return Table(name, (next(iter(columns)),), lines)


@dataclass(frozen=True)
class Comparison:
    """The variant that should be better, the other, the speech to test on, and what is claimed of them, if anything."""

    better: str
    worse: str
    condition: str = "noisy"
    claim: str = ""


def paired(runs: Sequence[Run], first: str, second: str) -> list[list[Sample]]:
    """One pair, of predictions on what both variants have, or none."""
    return [found] if (found := together(runs, Selection((first,)), Selection((second,)))) else []


def differences(
    pairs: Iterable[tuple[Line, Sample, Sample]], points: str, better="first is better", worse="second is better"
) -> list[Line]:
    """Lines of the given first cells and the difference of UA in points, first sample minus second.

    It is tested by a paired permutation test over utterances, p corrected for the number of lines (Holm) and read at
    5 %, and told by run where there are several and a fold means the same on both sides. points: the column's name.
    """
    pairs = list(pairs)
    tests = [paired_test(first.table, second.table) for _, first, second in pairs]
    lines = []
    for (cells, first, second), test, p in zip(pairs, tests, holm([test["p"] for test in tests]), strict=True):
        cell = partial(_difference, first, second)
        line = cells | _spread(cell, test, points, "95 % interval")
        line |= {"p": cell(round(test["p"], 4)), "p (Holm)": cell(round(float(p), 4))} | dict.fromkeys(BY_RUN, BLANK)
        same_folds = first.selection.protocol == second.selection.protocol
        if same_folds and (by_run := across_runs(first.table, second.table))["runs"] > 1:
            line |= _spread(cell, by_run, *BY_RUN[:2]) | {BY_RUN[2]: cell(round(100 * by_run["detectable"], 1))}
        reading = "undecided" if p >= 0.05 else better if test["difference"] > 0 else worse
        lines.append(line | {"folds x seeds": design(first), "reading": cell(reading)})
    return lines


def _difference(first: Sample, second: Sample, value: float | str, low=None, high=None) -> Cell:
    use, other = replace(first.selection, difference=True), second.selection
    if (use.checkpoint, use.protocol) == (other.checkpoint, other.protocol):
        use = replace(use, variants=use.variants + other.variants)
    else:
        use = replace(use, beside=(replace(other, beside=()),))
    return Cell(value, str(value), low, high, tuple(dict.fromkeys(first.runs + second.runs)), use)


def _spread(cell: Callable[..., Cell], found: Mapping[str, float], points: str, ends: str) -> Line:
    value, low, high = (round(100 * found[key], 1) for key in ("difference", "low", "high"))
    return {points: cell(value, low, high), ends: cell(_ends(low, high), low, high)}


def comparisons(
    name: str, runs: Sequence[Run], declared: Iterable[Comparison], points: str = "UA, points", speech: bool = True
) -> Table:
    """Those of which both variants are recorded, on what both have. speech: whether a column tells it."""
    keys = ("rows", "speech")[: 1 + speech]
    pairs = (
        (dict(zip(keys, (word(f"({use.better}) - ({use.worse})"), word(use.condition)), strict=False)), *both)
        for use in declared
        for both in ([sample.at(use.condition) for sample in pair] for pair in paired(runs, use.better, use.worse))
    )
    return Table(name, keys, partial(differences, pairs, points))


def components(name: str, runs: Sequence[Run], known: Iterable[str], condition: str, full: str = "") -> Table:
    """Variants with one component changed, each against its baseline, on what both have; UA in percent.

    known: their order; condition: the speech in which the difference is tested; full: what to call the baseline, ""
    where it is not the same for all and has a column.
    """

    def pairs() -> Iterator[tuple[Line, Sample, Sample]]:
        baselines = {run.info["variant"]: run.info["baseline"] for run in runs}
        for variant in recorded(runs, "component", known):
            for own, other in paired(runs, variant, baselines[variant]):
                cells = {"row": told("title")(own), "question": told("question")(own)}
                cells |= {} if full else {"against": word(baselines[variant])}
                cells |= {f"UA {part}": own.at(part).score() for part in ("clean", "noisy")}
                yield cells, own.at(condition), other.at(condition)

    readings = [f"{found} than {full}" if full else found for found in ("better", "worse")]
    return Table(name, ("row",), lambda: differences(pairs(), "difference, points", *readings))


def in_noise(name: str, runs: Sequence[Run], baselines: Mapping[str, str]) -> Table:
    """UA in percent, clean and by SNR (mean of the noise types), of these variants on what those recorded share.

    baselines: by variant, the one it is tested against on noisy speech, "" for none; Holm-corrected over the table.
    """
    plain = partial(Score, with_interval=False)
    by_snr = {f"UA {snr:.0f} dB": plain(snr_db=snr) for snr in snrs(runs)}
    columns = {"row": label, "model": told("title"), "UA clean": plain("clean"), **by_snr, "UA noisy": plain()}

    def lines() -> list[Line]:
        samples = aligned(runs, baselines)
        noisy = {variant: sample.at("noisy") for variant, sample in samples.items()}
        tested = [variant for variant in noisy if baselines[variant] in noisy]
        pairs = (({"against": word(baselines[it])}, noisy[it], noisy[baselines[it]]) for it in tested)
        tests = dict(zip(tested, differences(pairs, "noisy, points", "better", "worse"), strict=True))
        made = scores("", lambda: samples, columns | {"folds x seeds": design}).lines
        return [line | tests.get(variant, {}) for variant, line in zip(samples, made, strict=True)]

    return Table(name, ("row",), lines)


def difference_of(line: Line) -> Cell:
    """The cell with the difference in points."""
    return next(cell for cell in line.values() if cell.selection and cell.selection.difference)


def claims(name: str, made: Sequence[Table], declared: Iterable[Comparison]) -> Table:
    """Each claim whose comparison stands in one of the tables made, either way round, with its test.

    Points are positive where they speak for the claim. Supported (contradicted) takes both a Holm-corrected p under 5 %
    in the table the comparison stands in and an interval by run that leaves 0 out; with the p alone it is so "for these
    models", with neither it is undecided. That one is not found to beat another does not show that they are equal.
    """

    def lines() -> list[Line]:
        found = {}
        for table, line in ((each, line) for each in made[::-1] for line in each.lines):
            use = line["p"].selection
            for sign, pair in ((1, use.variants), (-1, use.variants[::-1])):
                found[*pair, use.condition] = (table.key(line), line, sign)
        wanted = ((use.claim, found.get((use.better, use.worse, use.condition))) for use in declared)
        return [_claim(claim, *evidence) for claim, evidence in wanted if evidence]

    return Table(name, ("claim",), lines)


def _claim(claim: str, evidence: str, line: Line, sign: int) -> Line:
    points = difference_of(line)

    def turned(cell: Cell, value: str | float | None = None) -> Cell:
        low, high = sorted((sign * cell.low, sign * cell.high))
        value, use = _ends(low, high) if value is None else value, cell.selection
        return Cell(value, str(value), low, high, cell.runs, replace(use, variants=use.variants[::sign]))

    by_run = turned(line[BY_RUN[1]]) if line[BY_RUN[1]].text else BLANK
    verdict = verdict_of(sign * points.value, line["p (Holm)"].value, by_run)
    told = {"claim": word(claim), "tested by": word(evidence), "points for it": turned(points, sign * points.value)}
    told |= {"95 % interval": turned(points), "p (Holm)": line["p (Holm)"], BY_RUN[1]: by_run}
    return told | {"folds x seeds": line["folds x seeds"], "verdict": turned(points, verdict)}


def verdict_of(points: float, p: float, by_run: Cell) -> str:
    """What the test and the interval by run, as they are printed, say of a claim; points: for it."""
    if p >= 0.05:
        return "undecided"
    found = "supported" if points > 0 else "contradicted"
    return found if by_run.text and by_run.low * by_run.high > 0 else f"{found} for these models"


# --- what is said of the records, and what is published


def about(runs: Sequence[Run]) -> str:
    """What kind of speech the numbers are about, which SNRs were heard in training, and each protocol: for captions."""
    info = runs[0].info
    speech = "synthetic speech: says nothing about people" if info["protocol"]["synthetic"] else "recorded speech"
    low, high = info["settings"]["noise"]["train_snr_db"]
    below = ", ".join(f"{snr:g}" for snr in snrs(runs) if snr < low)
    noisy = f"noisy: {low:g} to {high:g} dB, the range of training"
    noisy += f" ({below} dB was not trained on)" if below else ""
    protocols = "; ".join(sorted({f"{mark_of(run)} {protocol_of(run)}".strip() for run in runs}))
    return f"{info['corpus']}, profile {info['profile']}, {speech}; {noisy}; protocol: {protocols}"


def protocol_of(run: Run) -> str:
    protocol = run.info["protocol"]
    heard = not protocol["speaker_independent"]
    marks = ["optimistic"] * protocol["optimistic"] + ["test speakers heard in training"] * heard
    return ", ".join([protocol["protocol"], *marks])


def published_values(name: str) -> pd.DataFrame:
    """The published values of results/reference/`name`.csv."""
    return pd.read_csv(EVIDENCE / "reference" / f"{name}.csv", dtype={"snr_db": float})
