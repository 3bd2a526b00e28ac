"""`ser-kd compare`: the numbers and verdicts of a folder of results beside those of the committed evidence.

Both sides' tables are made anew from the records of the runs that both have. A number is "equal" as it is printed, else
"within" where one side's lies in the other's 95 % interval, else "outside"; one without an interval, such as a p-value,
"differs". A verdict is the "same" or "changed". The interval covers the choice of test utterances: bits that differ
between types of processor, which training amplifies, keep most numbers within it.
"""

import json
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ser_kd_utils.methods import tables_of
from ser_kd_utils.metrics import interval
from ser_kd_utils.records import Run, evidence, folders, read_runs
from ser_kd_utils.report.tables import BLANK, Cell

VERDICTS = ("verdict", "reading")
COLUMNS = ["status", "table", "line", "column", "committed", "here"]
ENDS = [f"{side} {part}" for side in ("committed", "here") for part in ("value", "low", "high")]
STATES = ("equal", "within", "outside", "differs", "same", "changed")


@dataclass(frozen=True)
class Comparison:
    """counts: cells by status, runs of both sides and those committed; machines: what the runs were made with, by side;
    cells: table, line, column, status and, by side, text, value, ends of the interval."""

    name: str
    counts: dict[str, int]
    machines: pd.DataFrame
    cells: pd.DataFrame

    @property
    def summary(self) -> str:
        """The comparison in a sentence."""
        processors = self.machines.loc[["gpu", "processor", "instruction_set"]]
        on = {side: ", ".join(dict.fromkeys(filter(None, values))) for side, values in processors.items()}
        return (
            "{name} compared with the committed evidence ({committed}; here {here}). Numbers: {equal} equal, {within} "
            "within the other's interval, {outside} outside, {differs} differ and have no interval. Verdicts: {same} "
            "the same, {changed} changed. Committed runs: {both} of {runs committed} compared."
        ).format(name=self.name, **on, **self.counts)


def compare(options: Namespace) -> int:
    """Print how a folder compares with the evidence; returns 1 where a number is outside or a verdict changed, else 0.

    options: folder, "" for the local one of corpus, name, profile, results and overrides; json: print one JSON object;
    page: "" or the path of a Markdown page, beside which a picture is written. Raises FileNotFoundError where there are
    no records or none of them is committed; ValueError for damaged records.
    """
    found = compared(Path(options.folder) if options.folder else folders(options)[0])
    if options.json:
        tables = {"machines": found.machines.to_dict(), "cells": json.loads(found.cells.to_json(orient="records"))}
        print(json.dumps({"folder": found.name, "counts": found.counts} | tables, indent=1))
    else:
        failed = found.cells.loc[found.cells["status"].isin(["outside", "changed"]), COLUMNS].to_numpy()
        print(found.machines.to_string(), "", *map(" | ".join, failed), "", textwrap.fill(found.summary, 80), sep="\n")
    if options.page:
        _write_page(found, Path(options.page))
    return int(found.counts["outside"] + found.counts["changed"] > 0)


def compared(folder: Path) -> Comparison:
    """This folder and the committed one of its name. Raises FileNotFoundError where they have no run in common."""
    here, there = ({run.id: run for run in runs} for runs in (read_runs(folder), evidence(folder)))
    if not (both := sorted(here.keys() & there.keys())):
        raise FileNotFoundError(f"No run of {folder.name} is committed: there is nothing to compare it with.")
    sides = {"committed": [there[run] for run in both], "here": [here[run] for run in both]}
    machines = pd.DataFrame({side: _made_with(runs) for side, runs in sides.items()})
    first, second = map(_by_place, sides.values())
    rows = []
    for place, committed in first.items():
        pair = committed, second.get(place, BLANK)
        if status := _status(place[-1], *pair):
            ends = [end for cell in pair for end in (cell.value, cell.low, cell.high)]
            rows.append((status, *place, *(cell.text for cell in pair), *ends))
    cells = pd.DataFrame(rows, columns=COLUMNS + ENDS)
    counts = cells["status"].value_counts().reindex(STATES, fill_value=0).to_dict()
    counts |= {"both": len(both), "runs committed": len(there)}
    return Comparison(folder.name, counts, machines, cells)


def _made_with(runs: Sequence[Run]) -> dict[str, str]:
    """Hardware and versions of the runs; several values where runs differ."""
    found = [run.info["hardware"] | {"python": run.info["python"]} | run.info["versions"] for run in runs]
    return {key: " or ".join(sorted({str(each[key]) for each in found if each[key]})) for key in found[0]}


def _by_place(runs: Sequence[Run]) -> dict[tuple[str, str, str], Cell]:
    lines = [(table, line) for table in tables_of(runs).values() for line in table.lines]
    return {(table.name, table.key(line), column): cell for table, line in lines for column, cell in line.items()}


def _status(column: str, *pair: Cell) -> str:
    """One of STATES; "" for what is neither a verdict nor a number that predictions decide, or only on one side."""
    word, same = column in VERDICTS, pair[0].text == pair[1].text
    if not all(each.text and (word or each.selection and not isinstance(each.value, str)) for each in pair):
        return ""
    if word or same:
        return "changed" if not same else "same" if word else "equal"
    spans = [(one.value, *_ends(other)) for one, other in (pair, pair[::-1])]
    inside = [low <= value <= high for value, low, high in spans if low is not None]
    return ("within" if any(inside) else "outside") if inside else "differs"


def _ends(cell: Cell) -> tuple[float | None, float | None]:
    """The ends of the cell's interval, which is computed now for a score that is printed without one."""
    if cell.low is None and cell.selection and not cell.selection.difference:
        return tuple(100 * end for end in interval(*cell.selection.predictions(cell.runs), cell.selection.metric)[1:])
    return cell.low, cell.high


def _write_page(found: Comparison, path: Path) -> None:
    """Write a page with a figure of all numbers that have an interval, and a table of those that are not equal."""
    import seaborn as sns

    cells = found.cells
    others = cells.loc[~cells["status"].isin(["equal", "same"]), COLUMNS].sort_values("status", kind="stable")
    parts = [f"# {found.name} and the committed evidence", found.summary, f"![committed and here]({path.stem}.png)"]
    parts += [found.machines.to_markdown(), others.to_markdown(index=False)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plotted = cells[cells["status"].isin(STATES[:3])].dropna(subset=["committed low", "here low"])
    look = {"hue": "status", "hue_order": STATES[:3], "palette": "colorblind", "height": 6}
    grid = sns.relplot(plotted.infer_objects(), x="committed value", y="here value", **look)
    grid.ax.axline((0, 0), slope=1, color="0.5", linewidth=0.8)
    grid.savefig(path.with_suffix(".png"), dpi=150)
