"""Every table of the suite by name: how it is made, its caption, and the records behind it and behind each line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from ser_kd_utils import ablation_tables, decoupled_tables, meta_tables, tables
from ser_kd_utils.records import Run
from ser_kd_utils.rows import ROWS

NAMING = ("row", "rows", "tested by", "situation", "against")
"""Columns that name rows of the suite: by letter, name, title or situation."""
WORDS = {
    "mlkd_paper": "percent; ",
    "mlkd_conditions_UA": "UA in percent; ",
    "mlkd_conditions_WA": "WA in percent; ",
    "mlkd_folds": "UA noisy in percent by fold; ",
}
"""Before the caption that all tables have."""


@dataclass(frozen=True)
class PaperTable:
    """One table: the records it may draw from, and how it is made of them. It is made when it is asked for."""

    name: str
    runs: Sequence[Run]
    make: Callable[[], pd.DataFrame]

    @cached_property
    def table(self) -> pd.DataFrame:
        return self.make()

    @cached_property
    def used(self) -> list[Run]:
        """The records behind any of its lines."""
        lines = [self.behind(line) for line in self.table.to_dict("records")]
        found = {run.folder for line in lines for runs in line.values() for run in runs}
        return [run for run in self.runs if run.folder in found]

    @property
    def caption(self) -> str:
        return WORDS.get(self.name, "") + tables.about(self.used)

    def write(self, folder: Path) -> None:
        """Its files below `folder`; a table without lines has none."""
        if len(self.table):
            tables.write_table(self.table, folder, self.name, self.caption, self.used)

    def behind(self, line: Mapping[str, Any]) -> dict[str, list[Run]]:
        """The runs a line is made from, by row of the suite: of several rows on the folds and seeds all have.

        Empty for a line without a model: what always answering the commonest class scores.
        """
        names, runs = self._names(line), self.runs
        if "tested by" in line and set(names) <= set(ROWS):  # from the table of comparisons, which takes whole folds
            runs = tables.complete(runs)[0]
        if "rung" in line:  # rung 5 is compared with 4, of the other protocol
            splits = {line["split"], "P1" if line["against"] == "rung 4" else line["split"]}
            runs = [run for run in runs if tables.mark_of(run) in splits]
        chosen = tables.together(runs, names)
        return {name: [run for run in chosen if run.info["row"] == name] for name in names}

    def _names(self, line: Mapping[str, Any]) -> list[str]:
        """The rows of the suite that a line is about, as it names them."""
        if "rung" in line:
            return [f"cnn-{self.name.rpartition('_')[2]}"]
        known = {ablation_tables.MAIN_PAIR["situation"]: ["e", "c"]}
        for run in self.runs:
            row, title, against = (run.info[key] for key in ("row", "title", "against"))
            known |= {row: [row], f"({row})": [row]}
            if against:  # a line with an ablation's title or situation compares it
                known |= {name: [row, against] for name in (title, run.info["situation"]) if name and name not in known}
        found = [name for name in line if name in known]  # a column for each row
        for column in NAMING:
            text = str(line.get(column, "")).removesuffix(ablation_tables.SCORED_THERE)
            found += known.get(text) or re.findall(r"\(([\w.-]+)\)", text)
        names = [name.strip("()") for name in found]
        return list(dict.fromkeys([*names, *(f"{name}-unseen" for name in names if "UA not heard" in line)]))


def tables_of(recorded: Sequence[Run], p1: Sequence[Run] = (), changes: str = "") -> dict[str, PaperTable]:
    """Every table by the name of its files.

    recorded: all records of a folder; p1: those of DKDFMH's other protocol; changes: the settings that both were made
    with, for the commands in the tables.
    """
    main, _ = tables.complete(recorded)
    cnn, token = ([run for run in recorded if run.info["group"].startswith(start)] for start in ("cnn", "mc"))
    mlkd = [run for run in recorded if not run.info["group"].startswith(("cnn", "mc"))]
    both = [*p1, *cnn]
    heard = tables.together(mlkd, ("c", "e", "c-unseen", "e-unseen"))
    cnn_noise = tables.together(cnn, decoupled_tables.NOISE_ROWS)
    token_noise = tables.together(token, meta_tables.NOISE_ROWS)
    listed: list[tuple] = [  # name, the records it may draw from, what makes it of which arguments
        ("mlkd", main, tables.mlkd_table, main, changes),
        ("mlkd_comparisons", main, tables.comparison_table, main),
        ("mlkd_paper", main, tables.paper_table, main),
        ("mlkd_conditions_UA", main, tables.condition_table, main, "UA"),
        ("mlkd_conditions_WA", main, tables.condition_table, main, "WA"),
        ("mlkd_selection", main, tables.selection_table, main),
        ("mlkd_folds", main, tables.fold_table, main),
        ("mlkd_ablations", mlkd, ablation_tables.ablation_table, mlkd),
        ("mlkd_gains", mlkd, ablation_tables.gain_table, mlkd),
        ("mlkd_unseen_noise", heard, ablation_tables.unseen_table, mlkd),
        ("mlkd_claims", mlkd, ablation_tables.claims_table, mlkd),
        ("dkd", both, decoupled_tables.dkd_table, p1, cnn, changes),
        ("dkd_claims", cnn, decoupled_tables.dkd_claims_table, cnn),
        ("dkd_comparisons", cnn, decoupled_tables.dkd_comparison_table, cnn),
        ("dkd_optimism_alone", both, decoupled_tables.optimism_table, p1, cnn, "cnn-alone"),
        ("dkd_optimism_dkd", both, decoupled_tables.optimism_table, p1, cnn, "cnn-dkd"),
        ("dkd_ablations", cnn, decoupled_tables.dkd_ablation_table, cnn),
        ("dkd_noise", cnn_noise, decoupled_tables.dkd_noise_table, cnn),
        ("mckd", token, meta_tables.mckd_table, token, changes),
        ("mckd_claims", token, meta_tables.mckd_claims_table, token),
        ("mckd_comparisons", token, meta_tables.comparison_table, token),
        ("mckd_ablations", token, meta_tables.ablation_table, token),
        ("mckd_noise", token_noise, meta_tables.mckd_noise_table, token),
    ]
    return {name: PaperTable(name, runs, partial(make, *given)) for name, runs, make, *given in listed}
