"""`ser-kd publish`: finished local runs become committed evidence, a folder of few files that can be read like them."""

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Template

from ser_kd_utils import records
from ser_kd_utils.files import sha256
from ser_kd_utils.methods import tables_of
from ser_kd_utils.report.differences import PLACE, ledger
from ser_kd_utils.report.tables import Table, about, command, mark_of, students
from ser_kd_utils.report.write import claims, write
from ser_kd_utils.reproduce import counted

# A path that only this machine has.
_PLACE = re.compile(r"(?<![\w.-])(/(home|root|tmp|work|Users|data|mnt|media|scratch|var)/|[A-Z]:\\+Users)[^\s\"']*")


def publish(options: Namespace) -> int:
    """Pack the local runs of a corpus and profile into the evidence folder, beside those published there before.

    CLAIMS.md beside that folder is written anew from all evidence of recorded speech there.

    options: corpus, name, profile, results, overrides; to: the evidence folder, "" for the usual one. A run of the same
    id is replaced. Tables are made of all runs; figures are copied where the local folder has all runs, since others
    would show only a part of them. Raises FileNotFoundError without local runs; ValueError for runs that
    cannot stand in one table, for damaged ones, for a path of this machine in what would be published and for a folder
    that holds runs of one's own.
    """
    local, usual = records.folders(options)
    to = Path(options.to) if options.to else usual
    if (to / "runs").exists():
        raise ValueError(f"{to} holds runs of your own: choose another folder (--to), since it is replaced as a whole.")
    own = records.read_runs(local)
    before = records.read_runs(to) if (to / "runs.jsonl").is_file() else []
    runs = sorted({run.id: run for run in (*before, *own)}.values(), key=lambda run: run.id)
    has_all = len(own) == len(runs)
    records.check_together(to.name, runs)
    if changed := [run.id for run in own if "local changes" in (run.info["commit"] or "")]:
        print(f"Trained by code with local changes, which nobody else has: {', '.join(changed)}.")
    with records.replaced(to, to.with_name(f".{to.name}.publishing")) as fresh:
        write_published(runs, fresh)
        for folder in (to, local):
            if has_all and (folder / "figures").exists():
                shutil.copytree(folder / "figures", fresh / "figures", dirs_exist_ok=True)
            if not runs[0].info["protocol"]["synthetic"]:
                _copy_notebooks(folder, fresh / "notebooks")
        tables = tables_of(runs)
        for table in tables.values():
            write(table, fresh)
        (fresh / "README.md").write_text(report(to.name, runs, tables, fresh), encoding="utf-8")
        files = sorted(path for path in fresh.rglob("*") if path.is_file())
        _refuse_places(files, {name for run in runs for name in run.stored["utterance"]})
        sums = "".join(f"{sha256(path)}  {path.relative_to(fresh).as_posix()}\n" for path in files)
        (fresh / "SHA256SUMS").write_text(sums, encoding="utf-8")
        for beside in filter(Path.is_dir, (to / "student", to / "baselines")):  # with checksums of their own
            shutil.copytree(beside, fresh / beside.name)
    if text := claims(to.parent, tables_of):
        (to.parent / "CLAIMS.md").write_text(text, encoding="utf-8")
    if not has_all:
        again = f"--results {to.parent}"
        print(f"No figures of all runs yet: `{command(runs)} --only 09 {again}`, then publish with {again}.")
    print(f"{to.name}: {counted(len(runs), 'run')}, {len(own)} of them your own, in {len(files) + 1} files.")
    return 0


def write_published(runs: Sequence[records.Run], folder: Path) -> None:
    """Both files of a published folder, see `records`: the same bytes for the same runs."""
    columns = ["run", *records.COLUMNS]
    table = pd.concat([run.stored.assign(run=run.id) for run in runs], ignore_index=True)[columns]
    # most of it are logits: their first bytes, then their second ones, take an eighth less
    packing = {"compression": "zstd", "compression_level": 19, "use_byte_stream_split": ["logits.list.element"]}
    table.to_parquet(folder / "predictions.parquet", index=False, use_dictionary=columns[:-1], **packing)
    lines = [{"run": run.id} | {key: value for key, value in run.info.items() if key != "files"} for run in runs]
    (folder / "runs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def _copy_notebooks(folder: Path, target: Path) -> None:
    """Each notebook as it was run on its first fold and seed, up to what was found in all evidence: that changes.

    Papermill's notes are removed, and so is the plain text of what is there as HTML or a picture, too; a folder of this
    machine is replaced by its parameter's name.
    """
    for path in sorted(folder.glob("notebooks/*.ipynb"), reverse=True):  # the first comes last
        content = json.loads(path.read_text(encoding="utf-8"))
        given = content["metadata"].pop("papermill", {}).get("parameters", {})
        ends = (n for n, cell in enumerate(content["cells"]) if "## What we found" in "".join(cell["source"]))
        content["cells"] = content["cells"][: next(ends, None)]
        for cell in content["cells"]:
            cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
            for output in cell.get("outputs", ()):
                if len(output.get("data", ())) > 1:
                    output["data"].pop("text/plain", None)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        places = [name for name, value in given.items() if Path(str(value)).is_absolute()]
        for name in sorted(places, key=lambda name: -len(given[name])):
            text = text.replace(json.dumps(given[name])[1:-1], name.upper())
        target.mkdir(exist_ok=True)
        (target / f"{path.stem.partition('__')[0]}.ipynb").write_text(text, encoding="utf-8")


def report(name: str, runs: Sequence[records.Run], tables: Mapping[str, Table], folder: Path) -> str:
    """The README of a published folder, `report.md` filled: what was found, then all tables and figures."""
    info, table = runs[0].info, students(runs)
    found = ledger({info["profile"]: {info["corpus"]: tables}})
    claimed = found.lines and not info["protocol"]["synthetic"]
    by_row = pd.DataFrame([run.info | {"protocol": mark_of(run)} for run in runs])
    by_row = by_row.groupby(["method", "variant", "title", "protocol"])
    pages = {path.stem: path.read_text(encoding="utf-8").rstrip() for path in sorted(folder.glob("tables/*.md"))}
    template = Path(__file__).with_name("report.md").read_text(encoding="utf-8")
    return Template(template, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).render(
        {kind: sorted(path.stem for path in folder.glob(f"{kind}/*")) for kind in ("figures", "notebooks")},
        name=name, about=about(runs), words=found.words, students=table,
        claims=found.frame.query("verdict != 'not run'").drop(columns=PLACE) if claimed else None,
        best=table.frame.loc[table.frame.groupby("trained on")["dev UA"].idxmax()] if table.lines else None,
        runs=by_row.agg(runs=("fold", "size"), folds=("fold", "nunique"), seeds=("seed", "nunique")).reset_index(),
        tables={each: page.split("\n\n*Protocol.* ") for each, page in pages.items()},
    )  # fmt: skip


def _refuse_places(files: Sequence[Path], utterances: Iterable[str]) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in files if path.suffix not in (".parquet", ".png")}
    for name, text in (texts | {"predictions.parquet": "\n".join(utterances)}).items():
        if found := _PLACE.search(text):
            raise ValueError(f"{name} names a path of this machine, {found[0]}: nothing is published.")
