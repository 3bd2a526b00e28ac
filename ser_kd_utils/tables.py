"""Paper tables from records: one function per table, each written as CSV, Markdown and LaTeX.

An interval is a 95 % percentile bootstrap over the test utterances of all folds, an utterance's correctness averaged
over seeds first. It says how much the choice of utterances matters; the choice of speakers and, with one seed, the luck
of a training are not in it. These are in the columns "by run": the mean over folds x seeds of the difference within
each, with its t-interval, and the smallest true difference in points that a two-sided test at 5 % on so many runs would
detect four times in five. Folds count alike there, however many utterances they have.

"Noisy" means all noise types at the SNRs inside the range heard in training.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from ser_kd_utils.metrics import across_runs, holm, interval, paired_test, score
from ser_kd_utils.records import PACKAGE, Run, predictions
from ser_kd_utils.rows import ROWS

README = PACKAGE.parent / "README.md"
COMPARISONS = (("e", "d"), ("e", "c"), ("d", "c"), ("e", "b"), ("c", "b"), ("b", "a"))
"""Several levels against one, either against none; (e) near the full size (b); what layers and noisy training do."""
CELL = ["fold", "seed", "condition", "snr_db"]
BY_RUN = ["by run, points", "95 % interval by run", "smallest detectable"]


def complete(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs of rows (a) to (e) whose fold and seed every recorded one of these rows has, and their others.

    Only the former can be compared. Ablations may have fewer folds and seeds: their tables take all records. Raises
    FileNotFoundError without any.
    """
    main = [run for run in runs if run.info["row"] in ROWS]
    if not main:
        raise FileNotFoundError("No records of rows (a) to (e): run notebooks 01 and 02, or `ser-kd reproduce`.")
    whole = together(main, ROWS)
    return whole, [run for run in main if run not in whole]


def together(runs: Sequence[Run], names: Iterable[str]) -> list[Run]:
    """The runs of these rows on the folds and seeds that every recorded one of them has."""
    own = [run for run in runs if run.info["row"] in names]
    pairs: dict[str, set[tuple[int, int]]] = {}
    for run in own:
        pairs.setdefault(run.info["row"], set()).add((run.info["fold"], run.info["seed"]))
    return [run for run in own if all((run.info["fold"], run.info["seed"]) in pair for pair in pairs.values())]


def by_row(runs: Sequence[Run], checkpoint: str = "best") -> dict[str, pd.DataFrame]:
    """Predictions per recorded row letter, in the order of ROWS."""
    grouped = {letter: [run for run in runs if run.info["row"] == letter] for letter in ROWS}
    return {letter: predictions(some, checkpoint) for letter, some in grouped.items() if some}


def about(runs: Sequence[Run]) -> str:
    """What kind of speech the numbers are about, which SNRs were heard in training, and each protocol: for captions."""
    info = runs[0].info
    synthetic = info["protocol"]["synthetic"]
    speech = "synthetic speech: says nothing about people" if synthetic else "recorded speech"
    snr = info["settings"]["the noise"]
    low, high = snr["train_snr_db"]
    noisy = f"noisy: {low:g} to {high:g} dB, the range of training"
    below = ", ".join(f"{level:g}" for level in snr["test_snr_db"] if level < low)
    noisy += f" ({below} dB was not trained on)" if below else ""
    protocols = "; ".join(sorted({" ".join(filter(None, (mark_of(run), protocol_of(run)))) for run in runs}))
    return f"{info['corpus']}, profile {info['profile']}, {speech}; {noisy}; protocol: {protocols}"


def mark_of(run: Run) -> str:
    """P1 or P2 where a method has two protocols, else empty."""
    return run.info["protocol"].get("name", "").partition(": ")[0]


def card(runs: Sequence[Run]) -> str:
    """The protocol of these records in a paragraph: who is tested on whom, how the epoch is chosen, in which noise.

    What differs among records is a range; of two protocols each is told by its name.
    """
    protocol = runs[0].info["protocol"]
    told = [_split([run for run in runs if mark_of(run) == mark]) for mark in sorted({mark_of(run) for run in runs})]
    told += [f"Tested: {protocol['test']}", f"Noise {protocol['noise']}; in the test {protocol['test noise']}"]
    told[-1] += f"; speech level: {protocol['speech level']}"
    commits = sorted({run.info["commit"] or "unknown" for run in runs})
    few = ", ".join(commit[:12] + commit[40:] for commit in commits)
    told.append(f"Commit{'s' * (len(commits) > 1)} {few}" if len(commits) < 4 else f"{len(commits)} commits")
    return ". ".join(told) + "."


def _split(runs: Sequence[Run]) -> str:
    """A protocol's part of the card. Methods with two say in their names how the epoch is chosen, P1 the split, too."""
    protocol = runs[0].info["protocol"]
    name, optimistic = protocol.get("name"), protocol["optimistic"]
    told = [name] if name else []
    if not (name and optimistic):
        told.append(protocol["rule"])
    told.append(f"{'' if name or not optimistic else 'optimistic: '}test speakers ")
    told[-1] += f"{'never ' * protocol['speaker_independent']}heard in training"
    sizes = pd.DataFrame([run.info["protocol"]["sizes"] for run in runs]).dropna(axis="columns")
    ends = sizes.agg(["min", "max"]).astype(int)
    spans = (f"{part} {'-'.join(map(str, dict.fromkeys(ends[part])))}" for part in ends)
    rows = pd.DataFrame([{key: run.info[key] for key in ("row", "fold", "seed")} for run in runs]).groupby("row")
    designs = " or ".join(sorted({design(row) for _, row in rows}))
    first, *others = "; ".join(told)
    told = [first.upper() + "".join(others), f"Utterances: {', '.join(spans)}; folds x seeds: {designs}"]
    return ". ".join(told if name else [*told, f"Selection: {protocol['selection']}"])


def percent(value: tuple[float, float, float]) -> str:
    """`61.2 [55.0, 67.1]`: mean and interval in percent."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * part for part in value))


def noisy_part(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["condition"] != "clean") & table["in_range"]]


def clean_part(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["condition"] == "clean"]


def design(table: pd.DataFrame) -> str:
    """`5 x 2` for five folds with two seeds each; a number of runs where the grid has holes."""
    folds, seeds = table["fold"].nunique(), table["seed"].nunique()
    runs = len(table[["fold", "seed"]].drop_duplicates())
    return f"{folds} x {seeds}" if runs == folds * seeds else f"{runs} runs"


def command(run: Run, table: pd.DataFrame, changes: str) -> str:
    """What makes these records; DATA and NOISE stand for folders on the reader's machine."""
    info = run.info
    data = "" if info["corpus"] == "demo" else f" --corpus {info['corpus']} --data-root DATA"
    noise = " --noise-dir NOISE" if info["protocol"]["noise"].startswith("folder") else ""
    profile = "" if info["profile"] == "tiny" else f" --profile {info['profile']}"
    folds = ",".join(str(fold) for fold in sorted(table["fold"].unique()))
    seeds = ",".join(str(seed) for seed in sorted(table["seed"].unique()))
    changed = f' --changes "{changes}"' if changes else ""
    return f"ser-kd reproduce{data}{noise}{profile} --folds {folds} --seeds {seeds}{changed}"


def published_values(name: str) -> pd.DataFrame:
    """The published values of results/reference/`name`.csv."""
    return pd.read_csv(PACKAGE.parent / "results" / "reference" / f"{name}.csv", dtype={"snr_db": float})


def _reference(corpus: str) -> pd.DataFrame:
    """Published values on this corpus, with the letter of the row that stands for the method."""
    table = published_values("mlkd_results")
    return table.assign(row=table["method"].replace("MLKD", "e"))[table["dataset"] == corpus.upper()]


def _published(corpus: str, metric: str) -> str:
    """MLKD's published value over all noise (lines without an SNR) with its source; empty where the paper has none."""
    table = _reference(corpus)
    over_noise = table["snr_db"].isna() & (table["condition"] != "clean")
    found = table[over_noise & (table["row"] == "e") & (table["metric"] == metric)]
    values = [f"{row.value:.1f} ({row.source})" for row in found.itertuples() if pd.notna(row.value)]
    return "; ".join(values) or ("not available" if len(found) else "")


def mlkd_table(runs: Sequence[Run], changes: str = "") -> pd.DataFrame:
    """Rows (a) to (e): UA and WA in percent, clean, noisy, at the lowest SNR of training and at those tested below it.

    The SNRs below were not trained on. changes: the settings these records were made with, for the command.
    """
    sizes = {(run.info["method"], run.info["variant"]): run.info["parameters"] for run in runs}
    records = []
    for letter, table in by_row(runs).items():
        row, noisy = ROWS[letter], noisy_part(table)
        lowest = noisy["snr_db"].min()
        hard = sorted(table.loc[table["snr_db"] <= lowest, "snr_db"].unique(), reverse=True)
        records.append(
            {
                "row": f"({letter})",
                "model": row.title,
                "parameters": f"{sizes[row.method, row.variant] / 1e6:.2f}M",
                "UA clean": percent(interval(clean_part(table))),
                "UA noisy": percent(interval(noisy)),
                **{f"UA {snr:.0f} dB": percent(interval(table[table["snr_db"] == snr])) for snr in hard},
                "WA clean": percent(interval(clean_part(table), metric="WA")),
                "WA noisy": percent(interval(noisy, metric="WA")),
                "published UA": _published(runs[0].info["corpus"], "UA") if letter == "e" else "",
                "folds x seeds": design(table),
                "protocol": protocol_of(runs[0]),
                "command": command(runs[0], table, changes),
            }
        )
    return pd.DataFrame(records)


def protocol_of(run: Run) -> str:
    protocol = run.info["protocol"]
    marks = [protocol["protocol"]]
    marks += ["optimistic"] * protocol["optimistic"]
    marks += ["test speakers heard in training"] * (not protocol["speaker_independent"])
    return ", ".join(marks)


def on_common_cells(*tables: pd.DataFrame) -> list[pd.DataFrame]:
    """The tables on the folds, seeds and conditions that all of them have."""
    cells = reduce(pd.merge, (table[CELL].drop_duplicates() for table in tables))
    return [table.merge(cells) for table in tables]


def _ends(found: Mapping[str, float]) -> str:
    return f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def compared(first: pd.DataFrame, second: pd.DataFrame, points: str, same_folds: bool = True) -> dict[str, Any]:
    """Cells of a comparison of UA, first minus second, over utterances and, where there are several, over runs.

    same_folds: whether fold and seed mean the same on both sides; else there are no runs to compare.
    """
    test = paired_test(first, second)
    cells = {points: 100 * test["difference"], "95 % interval": _ends(test), "p": test["p"]}
    values: tuple = ("", "", "")
    if same_folds and (by_run := across_runs(first, second))["runs"] > 1:
        values = (round(100 * by_run["difference"], 1), _ends(by_run), round(100 * by_run["detectable"], 1))
    return cells | dict(zip(BY_RUN, values, strict=True)) | {"folds x seeds": design(first)}


def verdicts(records: Sequence[Mapping[str, Any]], leading: Sequence[str], better: str, worse: str) -> pd.DataFrame:
    """The table of these comparisons, p corrected for their number (Holm) and read at 5 %.

    leading: the first columns, the last of them the difference in points.
    """
    table = pd.DataFrame(
        records, columns=[*leading, "95 % interval", "p", "p (Holm)", *BY_RUN, "folds x seeds", "reading"]
    )
    points = leading[-1]
    table["p (Holm)"] = holm(table["p"])
    table["reading"] = [
        "undecided" if p >= 0.05 else better if difference > 0 else worse
        for difference, p in zip(table[points], table["p (Holm)"], strict=True)
    ]
    return table.round({points: 1, "p": 4, "p (Holm)": 4})


def comparison_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Differences of UA noisy in points, with paired permutation tests, Holm-corrected over the table, and by run."""
    tables = {letter: noisy_part(table) for letter, table in by_row(runs).items()}
    points = "UA noisy, points"
    records = [
        {"rows": f"({first}) - ({second})", **compared(tables[first], tables[second], points)}
        for first, second in COMPARISONS
        if first in tables and second in tables
    ]
    return verdicts(records, ["rows", points], "first is better", "second is better")


def selection_table(runs: Sequence[Run]) -> pd.DataFrame:
    """UA of the epoch chosen on dev and of the last epoch, in percent: what the choice of the epoch is worth.

    On the conditions in which both epochs were tested.
    """
    last = by_row(runs, "last")
    records = []
    for letter, best in by_row(runs).items():
        both = on_common_cells(best, last[letter])
        for name, keep in (("clean", clean_part), ("noisy", noisy_part)):
            values = [percent(interval(keep(table))) for table in both]
            records.append({"row": f"({letter})", "speech": name, "chosen on dev": values[0], "last epoch": values[1]})
    return pd.DataFrame(records)


def _by_condition(runs: Sequence[Run]) -> pd.DataFrame:
    """WA and UA in percent by row letter, noise type and SNR."""
    records = [
        {"noise": kind, "SNR": snr_db, "row": letter, "WA": 100 * score(part, "WA"), "UA": 100 * score(part)}
        for letter, table in by_row(runs).items()
        for (kind, snr_db), part in table.groupby(["condition", "snr_db"], dropna=False)
    ]
    return pd.DataFrame(records, columns=["noise", "SNR", "row", "WA", "UA"]).astype({"SNR": float})


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Clean speech first, then by noise type with falling SNR."""

    def key(column: pd.Series) -> pd.Series:
        return column.replace("clean", "") if column.name == "noise" else column

    return table.sort_values(["noise", "SNR"], ascending=[True, False], key=key, kind="stable", ignore_index=True)


def condition_table(runs: Sequence[Run], metric: str = "UA") -> pd.DataFrame:
    """Percent by noise type and SNR, one column per row."""
    long = _by_condition(runs)
    long["row"] = "(" + long["row"] + ")"
    wide = long.pivot_table(index=["noise", "SNR"], columns="row", values=metric, dropna=False).dropna(how="all")
    return _in_order(wide.reset_index()).round(1).rename_axis(columns=None)


def paper_table(runs: Sequence[Run]) -> pd.DataFrame:
    """WA and UA in percent by noise type, SNR and row beside the published values; the differences are in points.

    Published: lines of results/reference/mlkd_results.csv whose dataset is the corpus, condition a noise type as named
    here (or `clean`, without snr_db), metric WA or UA, value in percent, and method "MLKD", which is row (e), or the
    letter of another row; other methods have no row here. Raises pandas.errors.MergeError where two lines have values
    for one place.
    """
    table = _in_order(_by_condition(runs))
    table.insert(3, "method", [ROWS[letter].title for letter in table["row"]])
    published = _reference(runs[0].info["corpus"]).dropna(subset="value")
    for metric in ("WA", "UA"):
        names = {"condition": "noise", "snr_db": "SNR", "row": "row", "value": f"published {metric}"}
        values = published.loc[published["metric"] == metric, list(names)].rename(columns=names)
        table = table.merge(values, how="left", validate="many_to_one")
    for metric in ("WA", "UA"):
        table[f"{metric} - published"] = (table[metric] - table[f"published {metric}"]).round(1)
    return table.assign(row="(" + table["row"] + ")").round({"WA": 1, "UA": 1})


def fold_table(runs: Sequence[Run]) -> pd.DataFrame:
    """UA over the noise grid in percent by row and fold, seeds together."""
    records = [
        {"row": f"({letter})", "fold": fold, "UA": 100 * score(part)}
        for letter, table in by_row(runs).items()
        for fold, part in noisy_part(table).groupby("fold")
    ]
    return pd.DataFrame(records).pivot(index="row", columns="fold", values="UA").round(1).reset_index()


def write_table(table: pd.DataFrame, folder: Path, name: str, caption: str, runs: Sequence[Run] = ()) -> None:
    """`name`.csv, .md and .tex below `folder`/tables; the caption says what kind of speech the numbers are about.

    runs: the records behind the table; in .md and .tex their `card` stands below it, with the command where all rows
    share it. Folds x seeds that all rows share, the protocol and columns of empty text are left out there.
    """
    target = folder / "tables"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.csv").write_text(table.to_csv(index=False), encoding="utf-8")
    shared = [c for c in ("folds x seeds", "command") if c in table and table[c].nunique() == 1]
    below = f"*Protocol.* {card(runs)}" if runs else ""
    below += f" Command: `{table['command'].iloc[0]}`" if "command" in shared else ""
    empty = [column for column in table if set(table[column]) == {""}]
    table = table.drop(columns=[*shared, *empty, "protocol"], errors="ignore")
    blank = table.astype(object).where(table.notna(), None)
    below_md = textwrap.fill(below, 120, break_long_words=False, break_on_hyphens=False)
    markdown = "\n\n".join(filter(None, (caption, blank.to_markdown(index=False), below_md)))
    (target / f"{name}.md").write_text(f"{markdown}\n", encoding="utf-8")
    style = {"escape": True, "na_rep": "", "float_format": "{:g}".format}
    latex = table.to_latex(index=False, caption=_tex(caption), label=f"tab:{name}", **style)
    foot = f"\\par\\footnotesize {_tex(below)}\n\\end{{table}}"
    (target / f"{name}.tex").write_text(latex.replace("\\end{table}", foot), encoding="utf-8")


def _tex(text: str) -> str:
    """LaTeX of text with *emphasis* and `code`; the two hyphens of an option would become a dash."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text).replace("--", "-{}-")
    return re.sub(r"`(.+?)`", r"\\texttt{\1}", re.sub(r"\*(.+?)\*", r"\\emph{\1}", text))


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
