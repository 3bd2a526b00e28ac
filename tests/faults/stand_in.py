"""A suite of stand-in notebooks of a second each, run as a user runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import numpy as np
import psutil
from nbformat.v4 import new_code_cell, new_notebook
from scipy.io import wavfile

from ser_kd_utils.reproduce import OWN_OPTIONS
from ser_kd_utils.steps import EACH_FOLD_AND_SEED, LAST, ONCE

RATE = 16_000
EACH = """corpus: str = "demo"
profile: str = "tiny"
results: str = ""
changes: str = ""
data_root: str = ""
noise_dir: str = ""
fold: int = 1
seed: int = 0"""
NAMES = EACH_FOLD_AND_SEED | dict.fromkeys(ONCE + LAST, "")
RECORD = """from pathlib import Path
run = Path(results, f"{{corpus}}-{{profile}}", "runs", f"{method}__x__fold-{{fold}}__seed-{{seed}}")
run.joinpath("model").mkdir(parents=True, exist_ok=True)
run.joinpath("predictions.parquet").write_text(f"{method} {{fold}} {{seed}}")
with Path(results, "executed.txt").open("a") as file:
    print(f"{method} {{fold}} {{seed}}", file=file)"""
TRAIN = """from ser_kd_utils.recipes import Experiment
own = Experiment(corpus, profile, fold, seed, data_root, results=results, changes=changes)
for row in {rows!r}:
    own.run(row)"""
FEW_EPOCHS = "epochs=4, teacher__epochs=4"


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@dataclass
class Suite:
    """A corpus, notebooks and a results folder, and the command on them."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def folder(self) -> Path:
        return self.results / "manifest-tiny"

    def notebook(self, number: str, *cells: str) -> None:
        """Other cells for a notebook; without any it leaves a record and a line in executed.txt."""
        (name,) = [name for name in NAMES if name.startswith(number)]
        own = "".join(f'\n{option}: str = ""' for option in OWN_OPTIONS.get(name, ()))
        first = EACH + own if number != "09" else "\n".join(EACH.splitlines()[:4])
        cells = cells or ((RECORD.format(method=NAMES[name]),) if NAMES[name] else ("results",))
        book = new_notebook(cells=[new_code_cell(first, metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (self.root / "notebooks").mkdir(exist_ok=True)
        nbformat.write(book, self.root / "notebooks" / f"{name}.ipynb")

    def command(self, what: str, *extra: str) -> list[str]:
        code = (
            "import sys; from pathlib import Path; from ser_kd_utils import steps; "
            f"steps.NOTEBOOKS = Path({str(self.root / 'notebooks')!r}); "
            "from ser_kd_utils.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        place = ["--corpus", "manifest", "--data-root", str(self.root / "corpus.csv"), "--results", str(self.results)]
        return [sys.executable, "-c", code, what, *place, "--folds", "1", *extra]

    def start(self, *extra: str) -> subprocess.Popen:
        """In a group of processes of its own, so that all of it can be killed."""
        return subprocess.Popen(
            self.command("reproduce", *extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | self.environment,
        )

    def run(self, *extra: str, what: str = "reproduce") -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(what, *extra), capture_output=True, text=True, env=os.environ | self.environment, timeout=300
        )

    def status(self, *extra: str) -> str:
        return self.run(*extra, what="status").stdout

    @property
    def executed(self) -> list[str]:
        """What the stand-in notebooks did, in order."""
        path = self.results / "executed.txt"
        return path.read_text().splitlines() if path.exists() else []


def kill(process: subprocess.Popen) -> None:
    """kill -9 for all of it: the command, its workers and its kernels."""
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        each.kill()
    process.communicate()


def predictions(folder: Path) -> dict[str, bytes]:
    """By record: the predictions' bytes, and run.json less what was measured."""
    found = {}
    for path in sorted(folder.glob("runs/*/run.json")):
        info = json.loads(path.read_text())
        kept = {k: v for k, v in info.items() if not k.endswith(("seconds", "per_second", "memory_mb", "finished"))}
        found[path.parent.name] = path.with_name("predictions.parquet").read_bytes() + json.dumps(kept).encode()
    return found


def write_corpus(root: Path) -> None:
    """Six speakers, four sentences each in three classes: half a second of a tone in noise."""
    rng, time_, lines = np.random.default_rng(0), np.arange(RATE // 2) / RATE, ["utterance,path,label,speaker"]
    for speaker in "ABCDEF":
        for label, hertz in (("angry", 300), ("neutral", 900), ("sad", 2700)):
            for take in range(4):
                name = f"{speaker}-{label}-{take}"
                wave = 0.1 * np.sin(2 * np.pi * hertz * time_) + rng.normal(0, 0.02, len(time_))
                wavfile.write(root / f"{name}.wav", RATE, np.rint(wave * 2**15).astype(np.int16))
                lines.append(f"{name},{name}.wav,{label},{speaker}")
    (root / "corpus.csv").write_text("\n".join(lines))
