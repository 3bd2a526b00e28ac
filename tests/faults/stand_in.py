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
import pandas as pd
import psutil
from nbformat.v4 import new_code_cell, new_notebook
from prewarmed import Prewarmed
from scipy.io import wavfile

from ser_kd_utils.methods import METHODS
from ser_kd_utils.records import COLUMNS
from ser_kd_utils.reproduce.plan import EACH, FIRST, LAST, READING

RATE = 16_000
TYPES = {"fold": "int = 1", "seed": "int = 0"}
NOTEBOOKS = {each.name: (method.name, each) for method in METHODS.values() for each in method.notebooks}
VARIANT = {
    "01": "a", "02": "e", "03": "two-stage", "04": "cnn-dkd", "05": "cnn-nckd", "06": "mc-full", "07": "mc-time-tokens",
}  # fmt: skip
"""The variant whose record a stand-in leaves."""
RECORD = """from pathlib import Path
folder = Path(results, f"{{name or corpus}}-{{profile}}" + (f"+{{overrides}}" if overrides else ""))
run = folder / "runs" / f"{method}__{variant}__fold-{{fold}}__seed-{{seed}}"
run.joinpath("model").mkdir(parents=True, exist_ok=True)
run.joinpath("predictions.parquet").write_text(f"{method} {{fold}} {{seed}}")
with Path(results, "executed.txt").open("a") as file:
    print(f"{variant} {{fold}} {{seed}}", file=file)"""
TRAIN = """from ser_kd_utils.methods import METHODS
given = dict(corpus=corpus, name=name, profile=profile, fold=fold, seed=seed, data_root=data_root, results=results)
own = METHODS[{method!r}].experiment_class(**given, overrides=overrides)
for variant in {variants!r}:
    own.run(variant)"""
FEW_EPOCHS = "mlkd.epochs=4, teacher.epochs=4"


def parameters_of(notebook: str) -> str:
    """The parameters cell that the plan asks for."""
    own = NOTEBOOKS[notebook][1].parameters if notebook in NOTEBOOKS else ()
    names = READING if notebook in LAST else (*EACH, *own)
    return "\n".join(f"{name}: {TYPES.get(name, 'str = ' + repr(''))}" for name in names)


def record(number: str) -> str:
    """The code that leaves the record of a stand-in, and a line in executed.txt."""
    (method,) = [method for name, (method, _) in NOTEBOOKS.items() if name.startswith(number)]
    return RECORD.format(method=method, variant=VARIANT[number])


def write_notebook(path: Path, *cells: str) -> None:
    first = new_code_cell(parameters_of(path.stem), metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[first, *map(new_code_cell, cells)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(book, path)


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
        return self.results / "corpus-tiny"

    def notebook(self, number: str, *cells: str) -> None:
        """Other cells for a notebook; without any it leaves a record and a line in executed.txt."""
        (name,) = [name for name in (FIRST, *NOTEBOOKS, *LAST) if name.startswith(number)]
        usual = record(number) if name in NOTEBOOKS else "results"
        write_notebook(self.root / "notebooks" / f"{name}.ipynb", *(cells or (usual,)))

    def command(self, what: str, *extra: str) -> list[str]:
        code = (
            "import sys; from pathlib import Path; from ser_kd_utils.reproduce import plan; "
            f"plan.NOTEBOOKS = Path({str(self.root / 'notebooks')!r}); "
            "from ser_kd_utils.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        place = ["--corpus", "manifest", "--data-root", str(self.root / "corpus.csv"), "--results", str(self.results)]
        return [sys.executable, "-c", code, what, *place, "--folds", "1", *extra]

    def start(self, *extra: str, what: str = "reproduce") -> Prewarmed:
        """In a group of processes of its own, so that all of it can be killed."""
        return Prewarmed(self.command(what, *extra)[1:], os.environ | self.environment, None, capture=True)

    def run(self, *extra: str, what: str = "reproduce") -> subprocess.CompletedProcess:
        running = self.start(*extra, what=what)
        out, error = running.communicate(timeout=300)
        return subprocess.CompletedProcess((what, *extra), running.returncode, out, error)

    def status(self, *extra: str) -> str:
        return self.run(*extra, what="status").stdout

    def receipt(self, name: str) -> dict:
        """{} where there is none yet."""
        path = self.folder / "receipts" / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def recorded(self) -> dict[str, bytes]:
        """The predictions by the record's name."""
        return {path.parent.name: path.read_bytes() for path in self.folder.glob("runs/*/predictions.parquet")}

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


def table(*logits: float) -> pd.DataFrame:
    """Predictions of as many utterances as there are logits."""
    given = {"condition": "clean", "checkpoint": "best", "label": "sad", "fold": 1, "seed": 0, "snr_db": np.nan}
    rows = [given | {"utterance": f"u{n}", "logits": np.array([x, 0.0], np.float16)} for n, x in enumerate(logits)]
    return pd.DataFrame(rows)[list(COLUMNS)]


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
