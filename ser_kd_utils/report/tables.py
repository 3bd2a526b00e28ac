"""Declared tables: lines x columns, each cell with its value, its records and the selection it was computed from.

CSV, Markdown, LaTeX, `explain`, `compare` and the figures read these objects; nothing is read back from text.

An interval is a 95 % percentile bootstrap over the test utterances of all folds, an utterance's correctness averaged
over seeds first. It says how much the choice of utterances matters; the choice of speakers and, with one seed, the luck
of a training are not in it. These are in the columns "by run": the mean over folds x seeds of the difference within
each, with its t-interval, and the smallest true difference in points that a two-sided test at 5 % on so many runs would
detect four times in five. Folds count alike there, however many utterances they have.

"Noisy" means all noise types at the SNRs inside the range heard in training.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from io import StringIO

import pandas as pd

from ser_kd_utils.records import Run, predictions

CELL = ["fold", "seed", "condition", "snr_db"]


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
        """The predictions that count among those of `runs`: one table or, of a difference, the first and the second."""
        sides = [dataclasses.replace(self, variants=(name,), beside=()) for name in self.variants]
        found = together(runs, *sides, *self.beside)[: 1 + self.difference]
        return [sample.at(self.condition, self.snr_db).table for sample in found]


@dataclass(frozen=True)
class Cell:
    """One number or word of a table.

    value: a number (percent, points, p) rounded as it is printed, or text; text: as printed; low, high: the ends of the
    interval where there is one; runs: the records behind it.
    """

    value: float | int | str
    text: str
    low: float | None = None
    high: float | None = None
    runs: tuple[Run, ...] = ()
    selection: Selection | None = None


BLANK = Cell("", "")


def word(value: str | int | float, runs: Sequence[Run] = ()) -> Cell:
    """A cell that no prediction decides: a name, a count, a published value; runs: what it was read from, if any."""
    return Cell(value, str(value), runs=tuple(runs))


def unique(runs: Sequence[Run]) -> list[Run]:
    """Each of these runs once, by name."""
    return list({run.id: run for run in sorted(runs, key=lambda run: run.id)}.values())


@dataclass(frozen=True)
class Table:
    """A declared table. Its lines are made when they are asked for; without records it has none.

    make: returns the lines, each a cell by column; keys: the columns that tell lines apart; words: before the caption
    that all tables have.
    """

    name: str
    keys: tuple[str, ...]
    make: Callable[[], list[dict[str, Cell]]]
    words: str = ""

    @cached_property
    def lines(self) -> list[dict[str, Cell]]:
        return self.make()

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for line in self.lines for column in line))

    @property
    def runs(self) -> list[Run]:
        """The records behind any of its cells, by name."""
        return unique([run for line in self.lines for cell in line.values() for run in cell.runs])

    @property
    def frame(self) -> pd.DataFrame:
        """What the CSV file holds; numbers that stand alone are numbers."""
        lines = [
            {name: cell.value if cell.text == str(cell.value) else cell.text for name, cell in line.items()}
            for line in self.lines
        ]
        return pd.DataFrame(lines, columns=self.columns)

    def csv(self) -> str:
        text = StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: cell.text for name, cell in line.items()} for line in self.lines)
        return text.getvalue()

    def key(self, line: dict[str, Cell]) -> str:
        """What tells the line apart, in words: `(e)`, or `hum, 0, (e)`."""
        cells = (line[name] for name in self.keys if line[name].text)
        return ", ".join(f"{cell.value:g}" if isinstance(cell.value, float) else cell.text for cell in cells)

    def cell(self, key: str, column: str) -> Cell:
        """Raises KeyError for a line or column that is not there."""
        return {self.key(line): line for line in self.lines}[key].get(column, BLANK)


@dataclass(frozen=True)
class Sample:
    """Predictions of one variant, with the records they come from and the selection that finds them there again."""

    table: pd.DataFrame
    runs: tuple[Run, ...]
    selection: Selection

    def at(self, condition: str, snr_db: float | None = None) -> Sample:
        """The part in some speech: see `Selection`."""
        return dataclasses.replace(
            self,
            table=_part(self.table, condition, snr_db),
            selection=dataclasses.replace(self.selection, condition=condition, snr_db=snr_db),
        )


def _part(table: pd.DataFrame, condition: str, snr_db: float | None) -> pd.DataFrame:
    if condition == "all":
        return table
    clean = table["condition"] == "clean"
    if condition == "clean":
        return table[clean]
    kinds = ~clean if condition == "noisy" else table["condition"] == condition
    return table[kinds & (table["in_range"] if snr_db is None else table["snr_db"] == snr_db)]


def mark_of(run: Run) -> str:
    """P1 or P2 where a method has two protocols, else empty."""
    return run.info["protocol"].get("mark", "")


def together(runs: Sequence[Run], *selections: Selection) -> list[Sample]:
    """Predictions of one variant each on what all have of folds, seeds and conditions; [] when that is nothing.

    Across protocols, whose folds differ, on the utterances and seeds that all have; a class that has two names there
    takes the first's. Of a run that held a noise type out, this type is all that counts: each fold holds out its own.
    """
    chosen = [
        [run for run in runs if run.info["variant"] == use.variants[0] and use.protocol in ("", mark_of(run))]
        for use in selections
    ]
    if not all(chosen):
        return []
    tables = [_own(some, use.checkpoint) for some, use in zip(chosen, selections, strict=True)]
    across = len({use.protocol for use in selections}) > 1
    by = ["utterance", "seed", "condition", "snr_db"] if across else CELL
    cells = reduce(pd.merge, (table[by].drop_duplicates() for table in tables))
    found = [table.merge(cells) for table in tables]
    if across:
        found = [found[0], *(_renamed(table, found[0], by) for table in found[1:])]
    samples = []
    for use, some, table, aligned in zip(selections, chosen, tables, found, strict=True):
        ran = set(zip(aligned["fold"], aligned["seed"], strict=True))
        own = tuple(run for run in some if (run.info["fold"], run.info["seed"]) in ran)
        kept = sum(pair in ran for pair in zip(table["fold"], table["seed"], strict=True))
        others = tuple(other for other in selections if other != use) if kept > len(aligned) else ()
        own = tuple(unique([run for each in chosen for run in each])) if others else own
        samples.append(Sample(aligned, own, dataclasses.replace(use, condition="all", beside=others)))
    return samples if len(found[0]) else []


def _own(runs: Sequence[Run], checkpoint: str) -> pd.DataFrame:
    table = predictions(runs, checkpoint)
    held_out = table["fold"].map({run.info["fold"]: run.info.get("held_out_noise", "") for run in runs})
    return table[(held_out == "") | (held_out == table["condition"])]


def _renamed(table: pd.DataFrame, first: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    named = table[[*by, "label"]].merge(first[[*by, "label"]], on=by)
    words = dict(zip(named["label_x"], named["label_y"], strict=True))
    return table.replace({"label": words, "prediction": words})
