"""`ser-kd explain`: from a number in a table to the records, settings, protocol and command behind it."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path

import pandas as pd

from ser_kd_utils.ablation_tables import PARTS, shared
from ser_kd_utils.paper import PaperTable, tables_of
from ser_kd_utils.records import Run, predictions, read_runs, results_folder, sha256
from ser_kd_utils.rows import CNN_ROWS, EVERY_ROW, ROWS, TOKEN_ROWS, ablations
from ser_kd_utils.settings import settings_of
from ser_kd_utils.steps import EACH_FOLD_AND_SEED, LAST
from ser_kd_utils.tables import card, command, mark_of, on_common_cells

KEYS = ("noise", "SNR", "row", "rows", "situation", "claim", "tested by", "rung", "speech")
"""Columns that tell a table's lines apart."""
UNSCORED = (
    "model",
    "method",
    "parameters",
    "question",
    "split",
    "evaluation",
    "against",
    "folds",
    "protocol",
    "command",
)
"""How the names of columns begin that no prediction decides."""
CHECKPOINTS = {
    "best": "the epoch with the highest dev UA",
    "last": "the last epoch",
    "test-UA": "the epoch with the highest UA on the clean test itself",
    "test-WA": "the epoch with the highest WA on the clean test itself",
}
SAME, DIFFERENT = 0, 1


def explain(options: Namespace) -> int:
    """Print what is behind a table's number; without a row, which rows and columns there are.

    DIFFERENT where the table's file is not what its records say. Raises ValueError for a table, row or column that is
    not there, and for predictions that are not those their record was written with.
    """
    path = Path(options.table)
    folder = results_folder(options.results, options.corpus, options.profile, changes=options.changes)
    if path.suffix:  # of a table's file, which lies in tables/
        folder = path.absolute().parents[1]
    start, plus, changes = folder.name.partition("+")
    other = folder.with_name(f"{start}+P1{plus}{changes}")
    recorded, p1 = read_runs(folder), read_runs(other) if other.exists() else []
    made = tables_of(recorded, p1, options.changes)
    files = {file.stem: file for file in sorted(folder.glob("tables/*.csv")) if file.stem in made}
    table = made[_choose("table", path.stem, files)]
    file = files[table.name]
    lines = _lines(file.read_text(encoding="utf-8"))
    columns = [column for column in next(iter(lines.values())) if column not in (*KEYS, "command")]
    if not options.row:
        print(_place(file), _filled(table.caption), "", "rows:", *(f"  {key}" for key in lines), sep="\n")
        print("", "columns:", *(f"  {column}" for column in columns), sep="\n")
        return SAME
    key = _choose("row", options.row, lines)
    asked = [_choose("column", options.column, columns)] if options.column else columns
    now = _lines(table.table.to_csv(index=False)).get(key, {})
    print(f"{_place(file)}, row {key}\n")
    same = [_compare(column, lines[key][column], now.get(column)) for column in asked]
    print("  made again from the records:", "equal" if all(same) else "NOT EQUAL")
    behind = table.behind(lines[key])
    if options.column and behind:
        behind = _tell_what_counts(table, lines[key], asked[0])
    known = {run.info["fingerprint"]: run for run in [*recorded, *p1]}
    for runs in behind.values():
        for mark in sorted({mark_of(run) for run in runs}):
            _describe([run for run in runs if mark_of(run) == mark], known)
    if runs := [run for some in behind.values() for run in some]:
        print("", "protocol", _filled(card(runs)), "", "command", _command(runs, options.changes), sep="\n")
    else:
        print(f"\nNo run is behind this row: {lines[key].get('model', 'it is not recorded here')}.")
    return SAME if all(same) else DIFFERENT


def _lines(text: str) -> dict[str, dict[str, str]]:
    """A table's lines as text, by what tells them apart."""
    lines = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False).to_dict("records")
    return {", ".join(line[key].removesuffix(".0") for key in KEYS if line.get(key)): line for line in lines}


def _choose(kind: str, asked: str, choices: Iterable[str]) -> str:
    """The choice of this name, with or without its parentheses, else those of which it is a part, if that is one."""
    exact = [choice for choice in choices if asked.lower() in (choice.lower(), choice.lower().strip("()"))]
    whole = [
        choice for choice in choices if asked.lower().strip("()") in re.split(r"\W*, \W*", choice.lower().strip("()"))
    ]
    found = exact or whole or [choice for choice in choices if asked.lower() in choice.lower()]
    if len(found) != 1:
        trouble = "More than one" if found else "No"
        raise ValueError("\n  ".join([f"{trouble} {kind} {asked!r}: choose among", *(found or choices)]))
    return found[0]


def _place(path: Path) -> str:
    """From the results folder on: where that lies is the reader's."""
    return "/".join(path.parts[-4:])


def _filled(text: str, indent: str = "  ") -> str:
    layout = {"initial_indent": indent, "subsequent_indent": indent, "break_on_hyphens": False}
    return textwrap.fill(text, 78, break_long_words=False, **layout)


def _compare(column: str, written: str, now: str | None) -> bool:
    differs = "" if written == now else f"   DIFFERS from the records: {now or 'nothing'}"
    print(f"  {column:28}{written or '-'}{differs}")
    return written == now


def _tell_what_counts(table: PaperTable, line: Mapping[str, str], column: str) -> dict[str, list[Run]]:
    """Print which predictions decide the cell; the runs behind it."""
    runs = _narrowed(table.behind(line), line, column)
    if "published" in column:
        print("  published values: results/reference/, each with its source")
    elif not column.startswith(UNSCORED):
        print("\npredictions that count")
        for name, some in counted(table, line, column).items():
            kinds = ", ".join(some["condition"].unique())
            levels = ", ".join(f"{level:g}" for level in sorted(some["snr_db"].dropna().unique()))
            at = f" at {levels} dB" if levels else ""
            said = CHECKPOINTS[some["checkpoint"].iloc[0]]
            size = f"{some['utterance'].nunique()} utterances, {len(some):,} predictions of {said}"
            print(_filled(f"{_named(name)}: {kinds}{at}: {size}"))
    if line.get("against", "").startswith("rung") and column not in ("WA", "UA"):
        print(f"  less the UA of {line['against']}, a row of its own here")
    return runs


def _named(row: str) -> str:
    return f"({row})" if row in ROWS else row


def _narrowed(behind: Mapping[str, list[Run]], line: Mapping[str, str], column: str) -> dict[str, list[Run]]:
    """Of the runs behind a line those behind one of its cells."""
    names = list(behind)
    if column.strip("()") in names:
        names = [column.strip("()")]
    elif len(names) == 2 and re.match("(UA|control|distilled) (?!.*points)", column):
        names = names[1:] if column in ("control UA noisy", "UA not heard") else names[:1]
    split = line.get("split") if column in ("WA", "UA") else column[-2:]
    split = split if split in ("P1", "P2") else ""
    folds = {int(column)} if column.isdigit() else {run.info["fold"] for runs in behind.values() for run in runs}
    return {
        name: [run for run in behind[name] if split in ("", mark_of(run)) and run.info["fold"] in folds]
        for name in names
    }


def counted(table: PaperTable, line: Mapping[str, str], column: str) -> dict[str, pd.DataFrame]:
    """The predictions that decide a cell, by row of the suite; of a rung's step, those of the rung itself."""
    behind = table.behind(line)
    evaluation, metric = line.get("evaluation", ""), "WA" if column.startswith("WA") else "UA"
    checkpoint = "last" if "last epoch" in column + evaluation else "best"
    if "best test epoch" in evaluation or column in ("WA P1", "UA P1"):
        checkpoint = f"test-{metric}"
    names, texts = list(behind), (column, line.get("speech", ""), line.get("tested by", "").rpartition(", ")[2])
    usual = "noisy" if table.name.startswith("mlkd") or table.name.endswith("_noise") else "clean"
    speech = next((found[0] for text in texts if (found := re.search(r"clean|noisy|-?\d+ dB", text))), usual)
    if len(names) > 1:
        together = dict(zip(names, shared([run for runs in behind.values() for run in runs], *names), strict=True))
    found = {}
    for name, runs in _narrowed(behind, line, column).items():
        own = [run for run in runs if line.get("split", "") in ("", mark_of(run))]
        some = together[name] if len(names) > 1 else predictions(own, checkpoint)
        if "last epoch" in line:
            some = on_common_cells(some, predictions(own, "last" if checkpoint == "best" else "best"))[0]
        if "tested by both" in evaluation:
            others = [run for run in table.runs if run.info["row"] == name and mark_of(run) != line["split"]]
            some = some.merge(predictions(others)[["utterance", "seed"]].drop_duplicates())
        if "noise" in line:
            level = some["snr_db"]
            kept = some[(some["condition"] == line["noise"]) & (level.eq(float(line["SNR"] or 0)) | level.isna())]
        else:
            kept = PARTS[speech](some) if speech in PARTS else some[some["snr_db"] == float(speech.removesuffix(" dB"))]
        found[name] = kept
    return found


def _describe(runs: Sequence[Run], known: Mapping[str, Run]) -> None:
    """Print a row's runs, what they share in words."""
    info, folder = runs[0].info, runs[0].folder
    mark = f", {mark_of(runs[0])}" if mark_of(runs[0]) else ""
    pattern = re.sub(r"fold-\d+__seed-\d+$", "fold-F__seed-S", _place(folder))
    print(f"\n{_named(info['row'])}, {info['title']}{mark}: {len(runs)} run{'s' * (len(runs) > 1)}\n  {pattern}")
    listed = pd.DataFrame(
        {
            "fold": run.info["fold"],
            "seed": run.info["seed"],
            "epoch": run.info["best_epoch"],
            "sha256 of predictions": sha256(run.folder / "predictions.parquet")[:16],
            "finished": run.info["finished"][:16].replace("T", " "),
            "commit": (run.info["commit"] or "unknown")[:12] + (run.info["commit"] or "")[40:],
            "hardware": run.info["hardware"]["gpu"] or f"CPU, threads: {run.info['hardware']['cpu_threads']}",
            "teacher": _teacher(run, known),
            "not heard": run.info["held_out"],
        }
        for run in runs
    )
    alike = [column for column in listed.columns[4:] if listed[column].nunique() == 1]
    heard = ", ".join(sorted({kind for run in runs for kind in run.info["train_noise"]}))
    told = [f"{column}: {listed[column].iloc[0]}" for column in alike if listed[column].iloc[0]]
    told += [f"trained on {f'speech in {heard}' if heard else 'clean speech'}", _settings(runs[0])]
    print(_filled("; ".join(told)))
    print(textwrap.indent(listed.drop(columns=alike).to_string(index=False), "  "))


def _teacher(run: Run, known: Mapping[str, Run]) -> str:
    """The teacher's record, found by its fingerprint."""
    wanted, row = run.info["teacher_fingerprint"], EVERY_ROW.get(run.info["row"])
    if not wanted:
        return ""
    if wanted not in known:
        return f"{'logits file' if row and row.teacher == 'stored' else 'not recorded here:'} {wanted[:12]}"
    its = known[wanted].info
    same = (its["fold"], its["seed"]) == (run.info["fold"], run.info["seed"])
    where = "same fold and seed" if same else f"fold {its['fold']}, seed {its['seed']}"
    return f"{its['method']}__{its['variant']}, {where}"


def _settings(run: Run) -> str:
    usual = {use.title: json.loads(json.dumps(dataclasses.asdict(use))) for use in settings_of(run.info["profile"])}
    used = [(title, key, value) for title, own in run.info["settings"].items() for key, value in own.items()]
    other = [f"{key} = {value}" for title, key, value in used if usual[title].get(key) != value]
    told = f"settings (in run.json): {', '.join([*other, 'the rest '])}" if other else "settings (in run.json) "
    return f"{told}as in profile {run.info['profile']}"


def _command(runs: Sequence[Run], changes: str) -> str:
    """What trains these rows and makes the tables again."""
    use = settings_of(runs[0].info["profile"], changes)
    rows = EVERY_ROW | ablations(use.teacher, use.mlkd, speech=True)
    names = dict.fromkeys(run.info["row"] for run in runs)
    parts = [name for name in names if name not in ROWS | CNN_ROWS | TOKEN_ROWS]
    methods = {run.info["method"] for run in runs}
    numbers = [notebook[:2] for notebook, method in EACH_FOLD_AND_SEED.items() if method in methods]
    also = f" --only {','.join([*numbers, LAST[0][:2]])}" + f" --ablations {','.join(parts)}" * bool(parts)
    also += " --speech-dir SPEECH" * any(name in rows and rows[name].needs_speech for name in names)
    also += " --teacher-logits LOGITS.csv" * ("cnn-stored" in names)
    told = command(runs[0], pd.DataFrame([run.info for run in runs])[["fold", "seed"]], changes) + also
    words = re.sub(r"(--\S+) (?!--)", "\\1\N{NO-BREAK SPACE}", told)  # an option and its value stay together
    return _filled(words).replace("\n", " \\\n").replace("\N{NO-BREAK SPACE}", " ")
