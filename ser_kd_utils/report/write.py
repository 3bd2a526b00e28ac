"""Tables as files: CSV, Markdown and LaTeX with the protocol below."""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from ser_kd_utils.records import Run, read_runs
from ser_kd_utils.report.differences import ledger
from ser_kd_utils.report.tables import Table, folds_x_seeds, mark_of


def write(table: Table, folder: Path) -> None:
    """`name`.csv, .md and .tex below `folder`/tables; a table without lines has no files.

    In .md and .tex the caption stands above and the protocol of its records below, with the command where all lines
    share it. Folds x seeds that all lines share, the protocol and blank columns are left out there.
    """
    if not table.lines:
        return
    target, frame = folder / "tables", table.frame
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{table.name}.csv").write_text(frame.to_csv(index=False), encoding="utf-8")
    shared = [name for name in ("folds x seeds", "command") if name in frame and frame[name].nunique() == 1]
    below = f"*Protocol.* {card(table.runs)}"
    below += f" Command: `{frame['command'].iloc[0]}`" if "command" in shared else ""
    blank = [name for name in frame if set(frame[name]) == {""}]
    frame = frame.drop(columns=[*shared, *blank, "protocol"], errors="ignore")
    page = frame.astype(object).where(frame.notna(), None).to_markdown(index=False)
    page = "\n\n".join((table.caption, page, textwrap.fill(below, 120, break_long_words=False, break_on_hyphens=False)))
    (target / f"{table.name}.md").write_text(f"{page}\n", encoding="utf-8")
    style = {"escape": True, "na_rep": "", "float_format": "{:g}".format}
    latex = frame.to_latex(index=False, caption=_tex(table.caption), label=f"tab:{table.name}", **style)
    latex = latex.replace("\\end{table}", f"\\par\\footnotesize {_tex(below)}\n\\end{{table}}")
    (target / f"{table.name}.tex").write_text(latex, encoding="utf-8")


def claims(place: Path, tables_of: Callable[[Sequence[Run]], Mapping[str, Table]]) -> str:
    """The claims of all methods on all recorded speech whose evidence lies in folders of `place`, as Markdown.

    tables_of: see `methods.tables_of`. "" where nothing is claimed.
    """
    evidence = {}
    for path in sorted(place.glob("*/runs.jsonl")):
        info = (runs := read_runs(path.parent))[0].info
        if not info["protocol"]["synthetic"]:
            profile = path.parent.name.removeprefix(f"{info['corpus']}-")  # and the settings that are not its own
            evidence.setdefault(profile, {})[info["corpus"]] = tables_of(runs)
    table = ledger(evidence)
    return f"{table.words}\n\n{table.frame.to_markdown(index=False)}\n" if table.lines else ""


def _tex(text: str) -> str:
    """LaTeX of text with *emphasis* and `code`; the two hyphens of an option would become a dash."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text).replace("--", "-{}-")
    return re.sub(r"`(.+?)`", r"\\texttt{\1}", re.sub(r"\*(.+?)\*", r"\\emph{\1}", text))


def card(runs: Sequence[Run]) -> str:
    """The protocol of these records in a paragraph: who is tested on whom, how the epoch is chosen, in which noise.

    Where records differ, it gives a range; two protocols are described one after the other, each by its name.
    """
    protocol, marks = runs[0].info["protocol"], sorted({mark_of(run) for run in runs})
    told = [_split([run for run in runs if mark_of(run) == mark]) for mark in marks]
    noise = f"Noise {protocol['noise']}; in the test {protocol['test noise']}"
    told += [f"Tested: {protocol['test']}", f"{noise}; speech level: {protocol['speech level']}"]
    commits = sorted({run.info["commit"] or "unknown" for run in runs})
    few = ", ".join(commit[:12] + commit[40:] for commit in commits)
    told.append(f"Commit{'s' * (len(commits) > 1)} {few}" if len(commits) < 4 else f"{len(commits)} commits")
    return ". ".join(told) + "."


def _split(runs: Sequence[Run]) -> str:
    """The part of the card about one protocol. Where a method has two, their names say how the epoch is chosen."""
    protocol = runs[0].info["protocol"]
    name, optimistic = protocol.get("name"), protocol["optimistic"]
    heard = f"test speakers {'never ' * protocol['speaker_independent']}heard in training"
    told = [name, None if name and optimistic else protocol["rule"], "optimistic: " * (optimistic and not name) + heard]
    told = "; ".join(filter(None, told))
    sizes = pd.DataFrame([run.info["protocol"]["sizes"] for run in runs]).dropna(axis="columns")
    ends = sizes.agg(["min", "max"]).astype(int)
    spans = (f"{part} {'-'.join(map(str, dict.fromkeys(ends[part])))}" for part in ends)
    infos = [run.info for run in runs]
    by_variant = pd.DataFrame(infos, columns=["variant", "fold", "seed"]).groupby("variant")[["fold", "seed"]]
    designs = " or ".join(sorted({folds_x_seeds(part.itertuples(index=False)) for _, part in by_variant}))
    told = [told[0].upper() + told[1:], f"Utterances: {', '.join(spans)}; folds x seeds: {designs}"]
    tested = {run.info["fold"]: run.info["protocol"].get("classes", {}).get("test", {}) for run in runs}
    lacking = [f"no {label} in fold {fold}" for fold, own in tested.items() for label in own if not own[label]]
    told += [f"Missing from the test: {', '.join(lacking)}, whose scores leave it out"] if lacking else []
    return ". ".join(told if name else [*told, f"Selection: {protocol['selection']}"])
