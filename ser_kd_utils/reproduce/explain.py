"""`ser-kd explain`: from a number in a table to the records, settings, protocol and command behind it."""

import dataclasses
import json
import re
import textwrap
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from ser_kd_utils.methods import METHODS, settings_of, tables_of
from ser_kd_utils.records import Run, folders, read_runs
from ser_kd_utils.report import label_of
from ser_kd_utils.report.tables import BLANK, Cell, command, mark_of
from ser_kd_utils.report.write import card
from ser_kd_utils.reproduce import counted

CHECKPOINTS = {"best": "the epoch with the highest dev UA", "last": "the last epoch"}
CHECKPOINTS |= {f"test-{name}": f"the epoch with the highest {name} on the clean test itself" for name in ("UA", "WA")}


def explain(options: Namespace) -> int:
    """Print what is behind a number of a table; without a row, its rows and columns; without a table, the tables.

    options: table, its name in the results folder of corpus, name, profile, results and overrides or, where that has no
    tables, in the evidence, or the path of its file; row; column, "" for all of the row. Returns 1 where the table's
    file is not what its records say, else 0. Raises ValueError for a table, row or column that is not there and for
    damaged records, FileNotFoundError without records.
    """
    path, places = Path(options.table), folders(options)
    folder = next((place for place in places if (place / "tables").is_dir()), places[0])
    folder = path.absolute().parents[1] if path.suffix else folder
    runs = read_runs(folder)
    written = {file.stem: file for file in folder.glob("tables/*.csv")}
    tables = {name: table for name, table in tables_of(runs).items() if name in written}
    if not options.table:
        print(f"tables in {folder.name}:", *(f"  {name}" for name in tables), sep="\n")
        return 0
    table = tables[_choose("table", path.stem, tables)]
    file, lines = written[table.name], {table.key(each): each for each in table.lines}
    columns = [name for name in table.columns if name not in (*table.keys, "command")]
    if not options.row:
        choices = ["", "rows:", *(f"  {key}" for key in lines), "", "columns:", *(f"  {name}" for name in columns)]
        print(_place(file), _filled(table.caption), *choices, sep="\n")
        return 0
    key = _choose("row", options.row, lines)
    asked = [_choose("column", options.column, columns)] if options.column else columns
    cells = {name: lines[key].get(name, BLANK) for name in asked}
    keys = {name: lines[key][name].text for name in table.keys}
    stored = pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records")
    line = next((each for each in stored if keys.items() <= each.items()), {})
    differs = {name: line.get(name) != cell.text for name, cell in cells.items()}
    print(f"{_place(file)}, row {key}\n")
    for name, cell in cells.items():
        told = f"   DIFFERS from the records: {cell.text or 'nothing'}" * differs[name]
        print(f"  {name:28}{line.get(name) or '-'}{told}")
    print("  computed again from the records:", "NOT EQUAL" if any(differs.values()) else "equal")
    if options.column:
        _tell_what_counts(asked[0], cells[asked[0]])
    behind = list(dict.fromkeys(run for cell in cells.values() for run in cell.runs))
    names = {run.info["fingerprint"]: f"{run.id.partition('__fold')[0]}, same fold and seed" for run in runs}
    for kind in dict.fromkeys((run.info["variant"], mark_of(run)) for run in behind):
        _describe([run for run in behind if (run.info["variant"], mark_of(run)) == kind], names)
    if behind:
        print("", "protocol", _filled(card(behind)), "", "command", _command(behind), sep="\n")
    else:
        print("\nNo run lies behind this value.")
    return int(any(differs.values()))


def _choose(kind: str, asked: str, choices: Collection[str]) -> str:
    """The choice of this name, with or without its parentheses, else those of which it is a part, if that is one."""
    names, wanted = {choice: choice.lower().strip("()") for choice in choices}, asked.lower().strip("()")
    exact = [choice for choice, name in names.items() if wanted == name]
    whole = [choice for choice, name in names.items() if wanted in re.split(r"\W*, \W*", name)]
    found = exact or whole or [choice for choice in choices if asked.lower() in choice.lower()]
    if len(found) != 1:
        trouble = "More than one" if found else "No"
        raise ValueError("\n  ".join([f"{trouble} {kind} {asked!r}: choose among", *(found or choices)]))
    return found[0]


def _place(path: Path) -> str:
    """The path below the results folder, whose own place differs from machine to machine."""
    return "/".join(path.parts[-4:])


def _filled(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, 76, break_on_hyphens=False, break_long_words=False), "  ")


def _named(*names: str) -> str:
    return ", ".join(label_of(name) for name in names if name)


def _tell_what_counts(column: str, cell: Cell) -> None:
    """Print which predictions the cell is computed from."""
    if "published" in column:
        print("  published values: results/reference/, each with its source")
    if not (use := cell.selection):
        return
    print("\npredictions that count")
    sides = [(name, use) for name in use.variants] + [(other.variants[0], other) for other in use.beside]
    for (name, side), some in zip(sides, use.predictions(cell.runs), strict=False):
        levels = ", ".join(f"{snr:g}" for snr in sorted(some["snr_db"].dropna().unique()))
        where = ", ".join(some["condition"].unique()) + (f" at {levels} dB" if levels else "")
        size = f"{some['utterance'].nunique()} utterances, {len(some):,} predictions of {CHECKPOINTS[side.checkpoint]}"
        print(_filled(f"{_named(name, side.protocol)}: {where}: {size}"))


def _describe(group: Sequence[Run], names: Mapping[str, str]) -> None:
    """Print a variant's runs under one protocol, what they share in words; names: of teachers by fingerprint."""
    infos = [run.info for run in group]
    print(f"\n{_named(infos[0]['variant'], infos[0]['title'], mark_of(group[0]))}: {counted(len(group), 'run')}")
    print(re.sub(r"fold-\d+__seed-\d+$", "fold-F__seed-S", f"  {_place(group[0].folder)}"))
    hardware = {info["hardware"]["gpu"] or f"CPU, threads: {info['hardware']['cpu_threads']}" for info in infos}
    wanted = {info["teacher_fingerprint"] for info in infos} - {None}
    teachers = {names.get(each, f"not recorded here: {each[:12]}") for each in wanted}
    heard = ", ".join(sorted({kind for info in infos for kind in info["train_noise"]}))
    told = [f"hardware: {' or '.join(sorted(hardware))}", *(f"teacher: {name}" for name in sorted(teachers))]
    told += [f"trained on {f'speech in {heard}' if heard else 'clean speech'}", _settings(infos[0])]
    print(_filled("; ".join(told)))
    columns = ["fold", "seed", "best_epoch", "predictions_sha256", "finished", "held_out_noise"]
    listed = pd.DataFrame(infos, columns=columns)
    short = dict.fromkeys(("predictions_sha256", "finished"), lambda text: text[:16])
    print(textwrap.indent(listed.loc[:, (listed != "").any()].to_string(index=False, formatters=short), "  "))


def _settings(info: Mapping) -> str:
    settings = settings_of(info["profile"])
    usual = json.loads(json.dumps({group: dataclasses.asdict(use) for group, use in settings.items()}))
    used = [(group, name, value) for group, own in info["settings"].items() for name, value in own.items()]
    other = [f"{name} = {value}" for group, name, value in used if usual.get(group, {}).get(name) != value]
    return f"settings as in profile {info['profile']}" + f", but {', '.join(other)}" * bool(other)


def _command(behind: Sequence[Run]) -> str:
    """The command that trains these variants and makes the tables again."""
    kinds = {(run.info["method"], run.info["kind"]) for run in behind}
    notebooks = {each.name[:2] for name, kind in kinds for each in METHODS[name].notebooks if kind in each.kinds}
    parts = dict.fromkeys(run.info["variant"] for run in behind if run.info["kind"] != "main")
    told = f"{command(behind)} --only {','.join([*sorted(notebooks), '09'])}"
    told += f" --ablations {','.join(parts)}" * bool(parts)
    used = [own for run in behind for own in run.info["settings"].values()]
    told += " --speech-dir SPEECH" * any(own.get("unlabelled_speech") for own in used)
    return _filled(told).replace("\n", " \\\n")
