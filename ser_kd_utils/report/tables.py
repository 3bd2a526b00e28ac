"""Declared tables: lines x columns, each cell with its value, its records and the selection it was computed from.

CSV, Markdown, LaTeX, `explain`, `compare` and the figures read these objects; nothing is read back from text. A method
declares its tables in its module `tables`:

    def tables(runs):
        runs = [run for run in runs if run.info["method"] == "toy"]
        columns = {"row": label, "model": told("title"), "UA clean": Score("clean"), "UA noisy": Score()}
        return [scores("toy", lambda: aligned(runs, ("toy-alone", "toy-kd")), columns)]

Tables of differences and claims are in `report.differences`.

The interval of a score is a 95 % percentile bootstrap over the test utterances of all folds, an utterance's correctness
averaged over seeds first. It says how much the choice of utterances matters.

"Noisy" means all noise types at the SNRs inside the range heard in training.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce

import numpy as np
import pandas as pd

from ser_kd_utils.metrics import interval, score
from ser_kd_utils.records import EVIDENCE, Run, predictions
from ser_kd_utils.report import label_of

Line = dict[str, "Cell"]


@dataclass(frozen=True)
class Selection:
    """Which predictions a number was computed from.

    variants: one or, of a difference, the first and the second; checkpoint: "best", "last", "test-UA" or "test-WA";
    condition: "clean", "noisy", "all" or a noise type; snr_db: one SNR, trained on or not, or the two of an
    interaction; protocol: its mark, "" for records of one protocol. beside: only folds, seeds and conditions that these
    selections have too count, and across protocols only the utterances. difference: whether the score of the second is
    subtracted, of `beside` where there is one variant.
    """

    variants: tuple[str, ...]
    checkpoint: str = "best"
    condition: str = "noisy"
    snr_db: float | tuple[float, ...] | None = None
    metric: str = "UA"
    protocol: str = ""
    beside: tuple["Selection", ...] = ()
    difference: bool = False

    def predictions(self, runs: Sequence[Run]) -> list[pd.DataFrame]:
        """The predictions of `runs` that are selected: one table or, for a difference, the first and the second."""
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
    """A cell that does not depend on predictions: a name, a count, a published value; runs: the records it is about."""
    return Cell(value, "" if value is None else str(value), runs=tuple(runs))


@dataclass(frozen=True)
class Table:
    """A declared table. Its lines are made when they are asked for; without records it has none.

    make: returns the lines, each a cell by column; keys: the columns that tell lines apart; words: before the caption
    that all tables have.
    """

    name: str
    keys: tuple[str, ...]
    make: Callable[[], Iterable[Line]]
    words: str = ""

    @cached_property
    def lines(self) -> list[Line]:
        return [*self.make()]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for line in self.lines for column in line))

    @property
    def cells(self) -> list[Cell]:
        return [cell for line in self.lines for cell in line.values()]

    @property
    def runs(self) -> list[Run]:
        """The records behind any of its cells, by name."""
        runs = {run.id: run for cell in self.cells for run in cell.runs}
        return [runs[name] for name in sorted(runs)]

    @property
    def caption(self) -> str:
        """The caption: `words`, whether scores are pooled over folds, and what kind of records these are."""
        scored = [cell for cell in self.cells if cell.selection and not cell.selection.difference]
        several = any(len({run.info["fold"] for run in cell.runs}) > 1 for cell in scored)
        scores = f"scores: {'pooled over folds' if several else 'one fold each'}; " * bool(scored)
        return self.words + scores + about(self.runs)

    @property
    def frame(self) -> pd.DataFrame:
        """The content of the CSV file; a cell that is only a number stays a number."""
        lines = ([line.get(name, BLANK) for name in self.columns] for line in self.lines)
        told = ([cell.value if cell.text in ("", str(cell.value)) else cell.text for cell in line] for line in lines)
        return pd.DataFrame(told, columns=self.columns)

    def key(self, line: Line) -> str:
        """The words that identify the line: `(e)`, or `hum, 0, (e)`."""
        cells = (line[name] for name in self.keys if line[name].text)
        return ", ".join(f"{cell.value:g}" if isinstance(cell.value, float) else cell.text for cell in cells)


@dataclass(frozen=True)
class Sample:
    """Predictions of one variant, the records they come from, its own first, and what finds them there again."""

    table: pd.DataFrame
    runs: tuple[Run, ...]
    selection: Selection

    @property
    def info(self) -> dict:
        """What is recorded of the variant."""
        return self.runs[0].info

    def at(self, condition: str, snr_db: float | tuple[float, ...] | None = None) -> "Sample":
        """The part in some speech: see `Selection`."""
        table, selection = self.table, replace(self.selection, condition=condition, snr_db=snr_db)
        clean = table["condition"] == "clean"
        if condition != "all":  # clean speech counts as within the range of training
            kinds = {"clean": clean, "noisy": ~clean}.get(condition, table["condition"] == condition)
            snrs = table["in_range"] if snr_db is None else table["snr_db"].isin(np.atleast_1d(snr_db))
            table = table[kinds & snrs]
        return Sample(table, self.runs, selection)


def mark_of(run: Run) -> str:
    """P1 or P2 where a method has two protocols, else empty."""
    return run.info["protocol"].get("mark", "")


def together(runs: Sequence[Run], *selections: Selection) -> list[Sample]:
    """Predictions of one variant each on what all have of folds, seeds and conditions; [] when that is nothing.

    Across protocols, whose folds differ, on the utterances and seeds that all have; a class that has two names there
    takes the first's. Of a run that held a noise type out, this type is all that counts: each fold holds out its own.
    """
    chosen = [
        [run for run in runs if run.info["variant"] in use.variants and use.protocol in ("", mark_of(run))]
        for use in selections
    ]
    if not all(chosen):
        return []
    tables = [_own(some, use.checkpoint) for some, use in zip(chosen, selections, strict=True)]
    across = len({use.protocol for use in selections}) > 1
    by = ["utterance" if across else "fold", "seed", "condition", "snr_db"]
    shared = reduce(pd.merge, (table[by].drop_duplicates() for table in tables))
    if shared.empty:
        return []
    found = [table.merge(shared) for table in tables]
    pairs = [part[["fold", "seed"]].drop_duplicates() for part in found]
    kept = [
        [run for run in some if (run.info["fold"], run.info["seed"]) in met.itertuples(index=False, name=None)]
        for some, met in zip(chosen, pairs, strict=True)
    ]
    samples = []
    for use, whole, part, met, own in zip(selections, tables, found, pairs, kept, strict=True):
        narrowed = len(part) < len(whole.merge(met))  # by what else than missing runs
        others = tuple(other for other in selections if other != use) if narrowed else ()
        runs_behind = tuple(dict.fromkeys(own + sum(kept, []) * narrowed))
        part = _in_words_of(found[0], part, by) if across else part
        samples.append(Sample(part, runs_behind, replace(use, condition="all", beside=others)))
    return samples


def _own(runs: Sequence[Run], checkpoint: str) -> pd.DataFrame:
    table = predictions(runs, checkpoint)
    held_out = table["fold"].map({run.info["fold"]: run.info["held_out_noise"] for run in runs})
    return table[(held_out == "") | (held_out == table["condition"])]


def _in_words_of(first: pd.DataFrame, table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    named = table[[*by, "label"]].merge(first[[*by, "label"]], on=by)
    words = dict(zip(named["label_x"], named["label_y"], strict=True))
    return table.replace({"label": words, "prediction": words})


def sparse(runs: Sequence[Run], names: Collection[str]) -> list[str]:
    """Those of these variants with under two thirds of the median number of runs: few folds would be left to all."""
    counts = Counter(run.info["variant"] for run in runs if run.info["variant"] in names)
    return [name for name in names if 0 < 3 * counts[name] < 2 * np.median([*counts.values()])]


def aligned(runs: Sequence[Run], names: Collection[str]) -> dict[str, Sample]:
    """Predictions of those of these variants that are recorded, on what all but the `sparse` ones have."""
    there = {run.info["variant"] for run in runs}.difference(sparse(runs, names))
    found = [name for name in names if name in there]
    samples = together(runs, *(Selection((name,)) for name in found)) if found else []
    return dict(zip(found, samples, strict=False))  # nothing in common, no sample


def recorded(runs: Sequence[Run], kind: str, known: Collection[str]) -> list[str]:
    """The variants of this kind that are recorded: known ones in their order, then what the code trains no longer."""
    found = {run.info["variant"] for run in runs if run.info["kind"] == kind}
    return [name for name in known if name in found] + sorted(found - {*known})


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
        part = sample.at(self.condition, self.snr_db)
        found = interval(part.table, self.metric) if self.with_interval else [score(part.table, self.metric)]
        value, *ends = (round(100 * each, 1) for each in found)
        selection = replace(part.selection, metric=self.metric)
        return Cell(value, f"{value} {ends}" if ends else str(value), *ends, runs=part.runs, selection=selection)


PointEstimate = partial(Score, with_interval=False)


def label(sample: Sample) -> Cell:
    (name,) = sample.selection.variants
    return word(label_of(name), sample.runs)


def told(key: str) -> Column:
    """A column of what is recorded under this key: "title", "question", "baseline"."""
    return lambda sample: word(sample.info[key], sample.runs)


# The first columns of a table of models.
MODEL: dict[str, Column] = {
    "row": label,
    "model": told("title"),
    "parameters": lambda sample: word(f"{sample.info['parameters'] / 1e6:.2f}M"),
}


def design(sample: Sample) -> Cell:
    return word(folds_x_seeds(zip(sample.table["fold"], sample.table["seed"], strict=True)), sample.runs)


def folds_x_seeds(pairs: Iterable[tuple[int, int]]) -> str:
    """`5 x 2` for five folds with two seeds each; a number of runs where the grid has holes."""
    runs = set(pairs)
    folds, seeds = (len(set(part)) for part in zip(*runs, strict=True))
    return f"{folds} x {seeds}" if len(runs) == folds * seeds else f"{len(runs)} runs"


def command(runs: Sequence[Run]) -> str:
    """The command that makes these records; DATA and NOISE stand for folders on the reader's machine."""
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


def left_out(runs: Sequence[Run], names: Collection[str]) -> str:
    """Which of these variants are `sparse`, for a caption."""
    few = ", ".join(map(label_of, sparse(runs, names)))
    return f"left out, with too few folds and seeds: {few}; " * bool(few)


def scores(
    name: str, samples: Callable[[], Mapping[str, Sample]], columns: Mapping[str, Column], words: str = ""
) -> Table:  # fmt: skip
    """A line for each variant; the first column names it. samples: called when the lines are wanted."""

    def lines() -> list[Line]:
        return [{title: column(sample) for title, column in columns.items()} for sample in samples().values()]

    return Table(name, (next(iter(columns)),), lines, words)


def in_noise(name: str, runs: Sequence[Run], names: Collection[str]) -> Table:
    """UA in percent, clean and by SNR (mean of the noise types), of these variants on what those recorded share."""
    by_snr = {f"UA {snr:.0f} dB": PointEstimate(snr_db=snr) for snr in snrs(runs)}
    columns = {"row": label, "model": told("title"), "UA clean": PointEstimate("clean"), **by_snr}
    columns |= {"UA noisy": PointEstimate(), "folds x seeds": design}
    return scores(name, lambda: aligned(runs, names), columns, left_out(runs, names))


def students(runs: Sequence[Run]) -> Table:
    """All methods' students tested on unheard speakers, UA in percent, on what all of them have in common.

    dev UA: the mean over these folds and seeds at the chosen epoch. A student trained in noise has dev speech in noise,
    another one clean dev speech: only students trained on the same kind of speech can be compared by it.
    """

    def dev(sample: Sample) -> Cell:
        own = [run for run in sample.runs if run.info["variant"] in sample.selection.variants]
        return word(round(float(100 * np.mean([run.history["dev_UA"][run.info["best_epoch"]] for run in own])), 1), own)

    own = [run for run in runs if run.info["role"] == "student" and run.info["kind"] in ("main", "noise")]
    own = [run for run in own if not run.info["protocol"]["optimistic"]]
    columns = MODEL | {"trained on": lambda sample: word("noisy" if sample.info["train_noise"] else "clean")}
    columns |= {"dev UA": dev, "UA clean": Score("clean")}
    columns |= {f"UA {snr:g} dB": Score(snr_db=snr) for snr in snrs(runs) if snr in (10, 0)}
    names = dict.fromkeys(run.info["variant"] for run in own)
    return scores("students", lambda: aligned(own, names), columns | {"folds x seeds": design}, left_out(own, names))


# --- what is said of the records, and what is published


def about(runs: Sequence[Run]) -> str:
    """What kind of speech the numbers are about, which SNRs were heard in training, and each protocol: for captions."""
    info = runs[0].info
    speech = "synthetic speech: says nothing about people" if info["protocol"]["synthetic"] else "recorded speech"
    low, high = info["settings"]["noise"]["train_snr_db"]
    below = [f"{snr:g}" for snr in snrs(runs) if snr < low]
    noisy = f"noisy: {low:g} to {high:g} dB, the range of training"
    noisy += f" ({', '.join(below)} dB was not trained on)" * bool(below)
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
