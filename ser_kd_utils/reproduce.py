"""Plan notebook runs, execute them headlessly with papermill, and keep an account of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from ser_kd_utils.corpora import Corpus, load_corpus, split, unlabelled
from ser_kd_utils.records import PACKAGE, fingerprint, results_folder, results_root, run_name
from ser_kd_utils.rows import ablations, choose, cnn_ablations, token_ablations
from ser_kd_utils.settings import settings_of

NOTEBOOKS = PACKAGE.parent / "notebooks"

ONCE = ("00_corpora_and_noise",)
EACH_FOLD_AND_SEED = {
    "01_teacher_finetuning": "teacher",
    "02_noisy_student_distillation": "mlkd",
    "03_mlkd_ablations": "mlkd-ablation",
    "04_decoupled_distillation": "dkd",
    "05_decoupled_ablations": "dkd-ablation",
    "06_curriculum_meta_distillation": "mckd",
    "07_curriculum_meta_ablations": "mckd-ablation",
}
"""Notebooks of every fold and seed, with the method whose records they write."""
OWN_OPTIONS = {
    "03_mlkd_ablations": ("speech_dir", "ablations"),
    "04_decoupled_distillation": ("teacher_logits",),
    "05_decoupled_ablations": ("ablations",),
    "07_curriculum_meta_ablations": ("ablations",),
}
"""What a notebook takes beside the parameters of all."""
LAST = ("09_paper_tables",)
"""Notebook 09 reads records only; it runs every time, in seconds."""

DONE, FAILED, OUT_OF_TIME = 0, 1, 3


@dataclass(frozen=True)
class Step:
    """One notebook with the parameters papermill gives it."""

    notebook: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        where = (
            "" if self.notebook in ONCE + LAST else f"__fold-{self.parameters['fold']}__seed-{self.parameters['seed']}"
        )
        return self.notebook + where

    @property
    def source(self) -> Path:
        return NOTEBOOKS / f"{self.notebook}.ipynb"


def plan(options: Namespace, corpus: Corpus) -> list[Step]:
    """The steps in reading order.

    Raises ValueError for an unknown profile, setting or ablation, a fold the corpus does not have, or a notebook number
    that is not in the plan; FileNotFoundError when the notebooks are not beside the package.
    """
    asked = _asked_ablations(options, corpus)
    if not NOTEBOOKS.is_dir():
        raise FileNotFoundError(
            "The notebooks are not beside the package: install it from a clone with `pip install -e .`"
        )
    every = tuple(range(1, corpus.fold_count() + 1))
    folds = every if options.folds is None else options.folds or ((1,) if corpus.synthetic else every)
    for fold in folds:
        split(corpus, None, fold, 0)
    common = {
        "corpus": options.corpus,
        "profile": options.profile,
        "data_root": options.data_root,
        "noise_dir": options.noise_dir,
        "results": options.results,
        "changes": options.changes,
    }
    first = {"fold": folds[0], "seed": options.seeds[0]}
    steps = [Step(name, common | first) for name in ONCE]
    for fold in folds:
        for seed in options.seeds:
            for name in EACH_FOLD_AND_SEED:
                own = {key: getattr(options, key) for key in OWN_OPTIONS.get(name, ())}
                if "ablations" in own:
                    if name not in asked:
                        continue
                    own["ablations"] = asked[name]
                steps.append(Step(name, common | {"fold": fold, "seed": seed} | own))
    reading = {key: common[key] for key in ("corpus", "profile", "results", "changes")}
    steps += [Step(name, reading) for name in LAST]
    return _only(steps, options.only)


def _asked_ablations(options: Namespace, corpus: Corpus) -> dict[str, str]:
    """The list for each notebook of ablations that has something to do; a name goes to the notebook that knows it."""
    use = settings_of(options.profile, options.changes)
    if options.ablations == "none":
        return {}
    known = {
        "03_mlkd_ablations": ablations(use.teacher, use.mlkd, bool(options.speech_dir)),
        "05_decoupled_ablations": cnn_ablations(use.dkd),
        "07_curriculum_meta_ablations": token_ablations(use.mckd),
    }
    chosen = choose(options.ablations, {name: row for rows in known.values() for name, row in rows.items()}, False)
    listed = {name: ",".join(row for row in rows if row in chosen) for name, rows in known.items()}
    return {name: rows if options.ablations.strip() else "" for name, rows in listed.items() if rows}


def _only(steps: list[Step], numbers: str) -> list[Step]:
    wanted = [number.strip().zfill(2) for number in numbers.split(",") if number.strip()]
    known = sorted({step.notebook[:2] for step in steps})
    unknown = [number for number in wanted if number not in known]
    if unknown:
        raise ValueError(f"No notebook {', '.join(unknown)} in the plan: choose among {', '.join(known)}.")
    return [step for step in steps if not wanted or step.notebook[:2] in wanted]


def check_parameters(step: Step) -> None:
    """papermill only warns about a parameter the notebook does not declare: refuse it, and a value of another type."""
    import papermill

    declared = papermill.inspect_notebook(str(step.source))
    for name, value in step.parameters.items():
        if name not in declared:
            raise ValueError(f"{step.notebook} has no parameter {name!r}: it takes {', '.join(declared)}.")
        wanted = declared[name]["inferred_type_name"]
        if type(value).__name__ != wanted:
            raise ValueError(f"{step.notebook}: {name} is declared {wanted}, got {value!r}.")


def step_fingerprint(step: Step, inputs: str) -> str:
    """Of the notebook's code, the package's code, the parameters and the inputs (corpus and noise)."""
    cells = json.loads(step.source.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    package = {str(p.relative_to(PACKAGE)): _sha256(p) for p in sorted(PACKAGE.rglob("*.py"))}
    return fingerprint([code, package, inputs, _public(step)])


def inputs_fingerprint(corpora: Sequence[Corpus], noise_dir: str, teacher_logits: str = "") -> str:
    """Of the corpus, the unlabelled speech, the noise files and the stored logits; no path counts.

    Sound files count by size and time of change: a copy elsewhere runs the notebooks again, but no training, since
    records are found by the sound itself.
    """
    noise = [_sha256(p) for p in sorted(Path(noise_dir).rglob("*")) if p.is_file()] if noise_dir else "generated"
    return fingerprint([noise, _sha256(Path(teacher_logits)) if teacher_logits else "", *map(_contents, corpora)])


def _contents(corpus: Corpus) -> str:
    states = [Path(path).stat() for path in corpus.manifest["path"]]
    table = corpus.manifest.assign(state=[f"{state.st_size} {state.st_mtime_ns}" for state in states])
    return table.drop(columns="path").to_csv(index=False)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Account:
    """`reproduce.json`: what was run, when, for how long, and how it ended. Ours, since papermill's metadata can call
    cells after a timeout completed."""

    def __init__(self, folder: Path):
        self.path = folder / "reproduce.json"

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def set(self, step: Step, **entry: Any) -> None:
        entry["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, suffix=".json") as file:
            json.dump(dict(sorted((self.steps | {step.name: entry}).items())), file, indent=1)
            file.write("\n")
        Path(file.name).chmod(0o644)
        Path(file.name).replace(self.path)


def reproduce(options: Namespace) -> int:
    """Run the plan. Returns 0 when all is done, 1 after a failure, 3 when the time limit came first."""
    corpus = load_corpus(options.corpus, options.data_root or None)
    speech = [unlabelled(options.speech_dir)] if options.speech_dir else []
    if options.teacher_logits and not Path(options.teacher_logits).is_file():
        raise FileNotFoundError(f"no file at {options.teacher_logits}: pass with --teacher-logits a CSV file of logits")
    options.results = str(results_root(options.results).resolve())
    steps = plan(options, corpus)
    for step in steps:
        check_parameters(step)
    folder = results_folder(options.results, options.corpus, options.profile, changes=options.changes)
    account, started = Account(folder), time.monotonic()
    inputs = inputs_fingerprint([corpus, *speech], options.noise_dir, options.teacher_logits)
    print(f"{len(steps)} notebook runs, results in {_short(folder)}", flush=True)
    for number, step in enumerate(steps, 1):
        label = f"[{number}/{len(steps)}] {step.name}"
        wanted = step_fingerprint(step, inputs)
        output = folder / "notebooks" / f"{step.name}.ipynb"
        if _recorded(step, account, wanted, output) and not options.force:
            print(f"{label}  already recorded, skipped", flush=True)
            continue
        if options.dry_run:
            print(f"{label}  would run", flush=True)
            continue
        left = None if options.time_limit is None else options.time_limit * 60 - (time.monotonic() - started)
        if left is not None and left <= 0:
            print(f"{label}  not started: the time limit is reached; the same command goes on from here", flush=True)
            return OUT_OF_TIME
        print(f"{label}  running ...", flush=True)
        if options.force:
            _forget(step, folder)
        status = _execute(step, output, account, wanted, left)
        if status != DONE:
            return status
    if not options.dry_run:
        _summary(folder, time.monotonic() - started)
    return DONE


def _recorded(step: Step, account: Account, wanted: str, output: Path) -> bool:
    """Whether the step ended well with this fingerprint, and what it left is still here."""
    before = account.steps.get(step.name, {})
    if step.notebook in LAST or before.get("status") != "done" or before.get("fingerprint") != wanted:
        return False
    return output.exists() and (step.notebook in ONCE or any(_run_folders(step, output.parents[1])))


def _run_folders(step: Step, folder: Path) -> Iterator[Path]:
    """The records of the step's method, fold and seed, those of protocol P1 among them."""
    use, method = step.parameters, EACH_FOLD_AND_SEED[step.notebook]
    optimistic = results_folder(use["results"], use["corpus"], use["profile"], "P1", use["changes"])
    name = f"runs/{run_name(method, '*', use['fold'], use['seed'])}"
    yield from (*folder.glob(name), *optimistic.glob(name))


def _forget(step: Step, folder: Path) -> None:
    """Drop the weights a step would find: it trains again, and the old record stays until the new one is whole."""
    if step.notebook in EACH_FOLD_AND_SEED:
        for run in _run_folders(step, folder):
            shutil.rmtree(run / "model", ignore_errors=True)


def _execute(step: Step, output: Path, account: Account, wanted: str, left: float | None) -> int:
    import papermill
    from nbclient.exceptions import CellTimeoutError
    from papermill.exceptions import PapermillExecutionError

    output.parent.mkdir(parents=True, exist_ok=True)
    account.set(step, status="running", fingerprint=wanted)
    began = time.monotonic()
    try:
        papermill.execute_notebook(
            str(step.source),
            str(output),
            parameters=step.parameters,
            kernel_name="python3",
            progress_bar=sys.stderr.isatty(),
            extra_arguments=["--log-level=50"],  # of the kernel, whose notices would land in the terminal
            timeout_func=None if left is None else lambda _cell: max(1, began + left - time.monotonic()),
        )
    except PapermillExecutionError as error:
        account.set(step, status="failed", fingerprint=wanted, error=f"{error.ename}: {error.evalue}")
        message = re.sub(r"\x1b\[[0-9;]*m", "", f"{error.ename}: {error.evalue}")
        print(f"ser-kd: {step.name} failed in cell {error.cell_index}: {message}", file=sys.stderr)
        print(f"The notebook as far as it came: {_short(output)}", file=sys.stderr)
        return FAILED
    except CellTimeoutError:
        account.set(step, status="out of time", fingerprint=wanted)
        print(
            f"{step.name} was stopped by the time limit; what was recorded stays, the same command goes on", flush=True
        )
        return OUT_OF_TIME
    seconds = round(time.monotonic() - began, 1)
    account.set(step, status="done", fingerprint=wanted, seconds=seconds, parameters=_public(step))
    print(f"    done in {seconds:.0f} s", flush=True)
    return DONE


def _public(step: Step) -> dict[str, Any]:
    """The parameters less the paths of this machine."""
    return {
        k: v
        for k, v in step.parameters.items()
        if k not in ("data_root", "noise_dir", "speech_dir", "teacher_logits", "results")
    }


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _summary(folder: Path, seconds: float) -> None:
    path = folder / "tables" / "mlkd.csv"
    if path.exists():
        table = pd.read_csv(path)
        columns = ["row", "model", *[name for name in table if name.startswith("UA ")][:3]]  # 80 columns hold no more
        print(f"\nUA in percent [95 % interval]\n{table[columns].to_string(index=False)}\n")
    print(f"Done in {seconds / 60:.1f} min. In {_short(folder)}:")
    print("tables/, figures/, runs/ (predictions and settings), notebooks/ (executed)", flush=True)
