"""What of a plan is done, running, failed, stale or published, and what the rest will cost."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ser_kd_utils import records
from ser_kd_utils.files import unfinished
from ser_kd_utils.reproduce.plan import plan
from ser_kd_utils.reproduce.run import DONE, RECORDED, NotebookRun, state_of


def say(text: str) -> None:
    """Print a line; in a terminal, what is longer goes on below, indented."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent=8 * " ", break_long_words=False, break_on_hyphens=False)
    print(f"{text}\n", end="", flush=True)  # in one piece, for there are threads


def short(path: Path) -> str:
    """As seen from the current folder, where it is below that."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def status(options: Namespace) -> int:
    """Print the state of each run of the plan, and why; then how far unfinished trainings are."""
    runs = plan(options)
    folder, published = runs[0].folder, {run.id: run for run in evidence(runs[0].folder)}
    counts: Counter[str] = Counter()
    for run in runs:
        state, why = state_of(run)
        if state == "not run" and run.records and published.keys() >= {*run.records}:
            commits = sorted({str(published[name].info["commit"])[:10] for name in run.records})
            state, why = "published", f"not run here; committed evidence, trained at commit {', '.join(commits)}"
        state = DONE if state == RECORDED else state
        counts[state] += 1
        say(f"{state:<12} {run.name}{f'  ({why})' if why else ''}")
    for training in sorted(unfinished(folder).glob("*@*")):
        epochs = sorted(int(path.name.split("-")[1]) for path in training.glob("epoch-*.pt"))
        progress = f"epoch {epochs[-1]} is kept" if epochs else "in its first epoch"
        say(f"{'training':<12} {training.name.partition('@')[0]}  ({progress})")
    print(", ".join(f"{count} {state}" for state, count in counts.items()) + f", in {short(folder)}")
    return 0


def dry_run(runs: Sequence[NotebookRun], options: Namespace) -> int:
    """Print what would be run, and an estimate of its cost from the durations of what was trained before."""
    folder = runs[0].folder
    trained = [*(records.Run(path.parent) for path in folder.glob("runs/[!.]*/run.json")), *evidence(folder)]
    spent: dict[str, list[float]] = defaultdict(list)
    for each in trained:
        spent[_kind(each.id)].append(each.info["seconds"] + each.info.get("test_seconds", 0))
    ends, total, unknown = {}, 0.0, []
    for number, run in enumerate(runs, 1):
        state, why = state_of(run)
        seconds = 0.0
        if state == RECORDED and not (options.force or run.last):
            said = "already recorded, skipped"
        else:
            seconds = sum(fmean(spent[_kind(name)]) for name in run.records if _kind(name) in spent)
            said = "would run" + f", about {seconds / 60:.1f} min" * (seconds > 0) + f" ({state}: {why})" * bool(why)
            unknown += [run.source.stem] * (bool(run.records) and not seconds)
        total += seconds
        ends[run.name] = seconds + max((ends[name] for name in run.needs if name in ends), default=0)
        say(f"[{number}/{len(runs)}] {run.name}  {said}")
    if total:
        spread = max(*ends.values(), total / options.workers)
        hours = f"about {total / 3600:.2f} hours of training and tests"
        print(f"{hours}, {spread / 3600:.2f} with {options.workers} at a time")
        print(f"(from the durations of {len(trained)} recorded trainings)")
    if unknown:
        say(f"no durations recorded yet for {', '.join(dict.fromkeys(unknown))}: run one fold to know more")
    return 0


def evidence(folder: Path) -> list[records.Run]:
    """The committed records of the same corpus, profile and settings."""
    place = records.EVIDENCE / folder.name
    return records.read_runs(place) if place != folder and place.is_dir() else []


def _kind(record: str) -> str:
    """What is trained, in whatever fold and with whatever seed."""
    return record.partition("__fold-")[0]
