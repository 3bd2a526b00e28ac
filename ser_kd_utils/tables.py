"""Paper tables from records: one function per table, each written as CSV, Markdown and LaTeX.

An interval is a 95 % percentile bootstrap over the test utterances of all folds, an utterance's correctness averaged
over seeds first. It says how much the choice of utterances matters; the choice of speakers and, with one seed, the luck
of a training are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ser_kd_utils.metrics import holm, interval, paired_test, score
from ser_kd_utils.recipes import ROWS
from ser_kd_utils.records import PACKAGE, Run, predictions

README = PACKAGE.parent / "README.md"
COMPARISONS = (("e", "d"), ("e", "c"), ("d", "c"), ("e", "b"), ("c", "b"), ("b", "a"))
"""Several levels against one, either against none; (e) near the full size (b); what layers and noisy training do."""


def complete(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs whose fold and seed every recorded row has, and the others: only the former can be compared."""
    pairs: dict[str, set[tuple[int, int]]] = {}
    for run in runs:
        pairs.setdefault(run.info["row"], set()).add((run.info["fold"], run.info["seed"]))
    common = set.intersection(*pairs.values())
    whole = [run for run in runs if (run.info["fold"], run.info["seed"]) in common]
    return whole, [run for run in runs if run not in whole]


def by_row(runs: Sequence[Run], checkpoint: str = "best") -> dict[str, pd.DataFrame]:
    """Predictions per recorded row letter, in the order of ROWS."""
    grouped = {letter: [run for run in runs if run.info["row"] == letter] for letter in ROWS}
    return {letter: predictions(some, checkpoint) for letter, some in grouped.items() if some}


def about(run: Run) -> str:
    """What kind of speech and noise the numbers are about: the beginning of every caption."""
    info, protocol = run.info, run.info["protocol"]
    speech = "synthetic speech: says nothing about people" if protocol["synthetic"] else "recorded speech"
    text = f"{info['corpus']}, profile {info['profile']}, {speech}; noise {protocol['noise']}"
    return f"{text}; protocol: {_protocol(run)}"


def _percent(value: tuple[float, float, float]) -> str:
    """`61.2 [55.0, 67.1]`: mean and interval in percent."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * part for part in value))


def _noisy(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["condition"] != "clean"]


def _design(table: pd.DataFrame) -> str:
    """`5 x 2` for five folds with two seeds each; a number of runs where the grid has holes."""
    folds, seeds = table["fold"].nunique(), table["seed"].nunique()
    runs = len(table[["fold", "seed"]].drop_duplicates())
    return f"{folds} x {seeds}" if runs == folds * seeds else f"{runs} runs"


def _command(run: Run, table: pd.DataFrame, changes: str) -> str:
    """What makes these records; DATA and NOISE stand for folders on the reader's machine."""
    info = run.info
    data = "" if info["corpus"] == "demo" else f" --corpus {info['corpus']} --data-root DATA"
    noise = " --noise-dir NOISE" if info["protocol"]["noise"].startswith("folder") else ""
    profile = "" if info["profile"] == "tiny" else f" --profile {info['profile']}"
    folds = ",".join(str(fold) for fold in sorted(table["fold"].unique()))
    seeds = ",".join(str(seed) for seed in sorted(table["seed"].unique()))
    changed = f' --changes "{changes}"' if changes else ""
    return f"ser-kd reproduce{data}{noise}{profile} --folds {folds} --seeds {seeds}{changed}"


def _published(corpus: str, metric: str) -> str:
    """MLKD's published value on this corpus with its source; empty where the paper has none."""
    reference = pd.read_csv(PACKAGE.parent / "results" / "reference" / "mlkd_results.csv")
    found = reference[(reference["dataset"] == corpus.upper()) & (reference["metric"] == metric)]
    values = [f"{row.value:.1f} ({row.source})" for row in found.itertuples() if pd.notna(row.value)]
    return "; ".join(values) or ("not available" if len(found) else "")


def mlkd_table(runs: Sequence[Run], changes: str = "") -> pd.DataFrame:
    """Rows (a) to (e): UA and WA in percent, clean, over the whole noise grid, and at the lowest SNR.

    changes: the settings these records were made with, for the command.
    """
    sizes = {(run.info["method"], run.info["variant"]): run.info["parameters"] for run in runs}
    records = []
    for letter, table in by_row(runs).items():
        row, noisy = ROWS[letter], _noisy(table)
        lowest = noisy["snr_db"].min()
        records.append(
            {
                "row": f"({letter})",
                "model": row.title,
                "parameters": f"{sizes[row.method, row.variant] / 1e6:.2f}M",
                "UA clean": _percent(interval(table[table["condition"] == "clean"])),
                "UA noisy": _percent(interval(noisy)),
                f"UA {lowest:.0f} dB": _percent(interval(noisy[noisy["snr_db"] == lowest])),
                "WA clean": _percent(interval(table[table["condition"] == "clean"], metric="WA")),
                "WA noisy": _percent(interval(noisy, metric="WA")),
                "published UA": _published(runs[0].info["corpus"], "UA") if letter == "e" else "",
                "folds x seeds": _design(table),
                "protocol": _protocol(runs[0]),
                "command": _command(runs[0], table, changes),
            }
        )
    return pd.DataFrame(records)


def _protocol(run: Run) -> str:
    protocol = run.info["protocol"]
    marks = [protocol["protocol"]]
    marks += ["optimistic"] * protocol["optimistic"]
    marks += ["test speakers heard in training"] * (not protocol["speaker_independent"])
    return ", ".join(marks)


def comparison_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Differences of UA over the noise grid in points, with paired permutation tests, Holm-corrected over the table."""
    tables = {letter: _noisy(table) for letter, table in by_row(runs).items()}
    records = []
    for first, second in COMPARISONS:
        if first in tables and second in tables:
            test = paired_test(tables[first], tables[second])
            records.append(
                {
                    "rows": f"({first}) - ({second})",
                    "UA noisy, points": 100 * test["difference"],
                    "95 % interval": f"[{100 * test['low']:.1f}, {100 * test['high']:.1f}]",
                    "p": test["p"],
                }
            )
    columns = ["rows", "UA noisy, points", "95 % interval", "p", "p (Holm)", "reading"]
    result = pd.DataFrame(records, columns=columns[:4])
    result["p (Holm)"] = holm(result["p"])
    result["reading"] = [
        "undecided" if p >= 0.05 else "first is better" if points > 0 else "second is better"
        for points, p in zip(result["UA noisy, points"], result["p (Holm)"], strict=True)
    ]
    return result[columns].round({"UA noisy, points": 1, "p": 4, "p (Holm)": 4})


def selection_table(runs: Sequence[Run]) -> pd.DataFrame:
    """UA of the epoch chosen on dev and of the last epoch, in percent: what the choice of the epoch is worth."""
    best, last = by_row(runs, "best"), by_row(runs, "last")
    records = []
    for letter in best:
        for name, keep in (("clean", lambda t: t[t["condition"] == "clean"]), ("noisy", _noisy)):
            values = [_percent(interval(keep(table[letter]))) for table in (best, last)]
            records.append({"row": f"({letter})", "speech": name, "chosen on dev": values[0], "last epoch": values[1]})
    return pd.DataFrame(records)


def condition_table(runs: Sequence[Run], metric: str = "UA") -> pd.DataFrame:
    """Percent by noise type and SNR, one column per row."""
    records = []
    for letter, table in by_row(runs).items():
        for (condition, snr_db), part in table.groupby(["condition", "snr_db"], dropna=False):
            value = 100 * score(part, metric)
            records.append({"noise": condition, "SNR": snr_db, "row": f"({letter})", "value": value})
    wide = pd.DataFrame(records).pivot_table(index=["noise", "SNR"], columns="row", values="value", dropna=False)
    wide = wide.dropna(how="all").reset_index().sort_values(["noise", "SNR"], ascending=[True, False])
    first = wide["noise"] == "clean"
    return pd.concat([wide[first], wide[~first]]).round(1).rename_axis(columns=None)


def fold_table(runs: Sequence[Run]) -> pd.DataFrame:
    """UA over the noise grid in percent by row and fold, seeds together."""
    records = [
        {"row": f"({letter})", "fold": fold, "UA": 100 * score(part)}
        for letter, table in by_row(runs).items()
        for fold, part in _noisy(table).groupby("fold")
    ]
    return pd.DataFrame(records).pivot(index="row", columns="fold", values="UA").round(1).reset_index()


def write_table(table: pd.DataFrame, folder: Path, name: str, caption: str) -> None:
    """`name`.csv, .md and .tex below `folder`/tables; the caption says what kind of speech the numbers are about.

    In .md and .tex, what all rows share of folds, seeds and command stands in the caption, the protocol being there
    already, and empty columns are left out.
    """
    target = folder / "tables"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.csv").write_text(table.to_csv(index=False), encoding="utf-8")
    shared = [c for c in ("folds x seeds", "command") if c in table and table[c].nunique() == 1]
    caption = "; ".join([caption, *(f"{column}: {table[column].iloc[0]}" for column in shared)])
    empty = [column for column in table if (table[column] == "").all()]
    table = table.drop(columns=[*shared, *empty, "protocol"], errors="ignore")
    (target / f"{name}.md").write_text(f"{caption}\n\n{table.to_markdown(index=False)}\n", encoding="utf-8")
    latex = table.to_latex(index=False, escape=True, caption=caption, label=f"tab:{name}")
    (target / f"{name}.tex").write_text(latex, encoding="utf-8")


def readme_with_tables(text: str) -> str:
    """The README's text with each `<!-- table PATH -->` ... `<!-- end -->` filled from results/PATH."""

    def fill(match: re.Match) -> str:
        table = (PACKAGE.parent / "results" / match[1]).read_text(encoding="utf-8")
        return f"<!-- table {match[1]} -->\n{table}<!-- end -->"

    return re.sub(r"<!-- table (\S+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def update_readme(check: bool = False) -> int:
    """Write the README's tables from results/, or with `check` only compare. Returns 0 when they agree."""
    old = README.read_text(encoding="utf-8")
    new = readme_with_tables(old)
    if new != old and not check:
        README.write_text(new, encoding="utf-8")
    if new != old and check:
        print("The README's tables differ from results/: run `ser-kd readme`.")
        return 1
    return 0
