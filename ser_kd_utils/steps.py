"""One notebook run: what decides it, whether it is done, and how it is executed and accounted for."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ser_kd_utils.reach import by_module, named_in, reached
from ser_kd_utils.records import PACKAGE, fingerprint, is_held, only_one, results_folder, run_name, sha256, unfinished

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
LAST = ("09_paper_tables",)
"""Notebook 09 reads records only; it runs every time, in seconds."""
PATHS = ("data_root", "noise_dir", "speech_dir", "teacher_logits", "results")
"""Parameters that are places of this machine: what lies there counts, not where it lies."""

RECORDED, DONE, FAILED, OUT_OF_TIME, BLOCKED = "recorded", "done", "failed", "out of time", "blocked"


@dataclass(frozen=True)
class Step:
    """One notebook with the parameters papermill gives it, and the steps whose records it starts from."""

    notebook: str
    parameters: Mapping[str, Any]
    source: Path
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return step_name(self.notebook, self.parameters)


def step_name(notebook: str, parameters: Mapping[str, Any]) -> str:
    where = "" if notebook in ONCE + LAST else f"__fold-{parameters['fold']}__seed-{parameters['seed']}"
    return notebook + where


@dataclass(frozen=True)
class Job:
    """A step on its way: where it writes, what it must be made from, and how long it may take."""

    step: Step
    folder: Path  # results/<corpus>-<profile>
    made_from: dict[str, Any]
    force: bool = False
    run_limit: float | None = None  # seconds
    deadline: float | None = None  # time.time() at which all must end

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.folder / "notebooks" / f"{self.step.name}.ipynb"


@dataclass(frozen=True)
class Outcome:
    state: str
    seconds: float = 0.0
    error: str = ""


def made_from(step: Step, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What decides a step's results: the notebook's code, the package's code that it reaches, parameters, inputs."""
    notebook, package = _code_of(step.source)
    return {
        "notebook": notebook,
        "package": package,
        "parameters": {name: value for name, value in step.parameters.items() if name not in PATHS},
        "inputs": dict(inputs),
    }


@cache
def _code_of(source: Path) -> tuple[str, dict[str, str]]:
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return fingerprint(code)[:12], by_module(reached(named_in("\n".join(code))))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In words, what made a step's results stale; "" where nothing did."""
    found = ["the notebook's code"] if old["notebook"] != new["notebook"] else []
    for part, title in (("package", ""), ("parameters", "parameter "), ("inputs", "the ")):
        names = sorted({*old[part], *new[part]})
        differ = [name for name in names if old[part].get(name) != new[part].get(name)]
        found += [f"{title}{name}" + (".py" if part == "package" else "") for name in differ]
    return ", ".join(found) + (" changed" if found else "")


class Account:
    """`reproduce.json`: what was run, from what, for how long, and how it ended. Ours, since papermill's metadata can
    call cells after a timeout completed."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "reproduce.json"

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """By name. Raises ValueError where the file is damaged."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        except ValueError:
            message = f"{self.path} is damaged: restore it, or delete it; records and weights are kept, and found again"
            raise ValueError(message) from None

    def set(self, step: Step, **entry: Any) -> None:
        entry["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        with only_one(self.folder, "reproduce.json"):
            text = json.dumps(dict(sorted((self.steps | {step.name: entry}).items())), indent=1)
            fresh = unfinished(self.folder) / "reproduce.json"
            fresh.write_text(f"{text}\n", encoding="utf-8")
            fresh.replace(self.path)


def folders(step: Step) -> list[Path]:
    """Where its records lie: of the corpus's own protocol, and of DKDFMH's P1."""
    use = step.parameters
    own = (use["results"], use["corpus"], use["profile"])
    return [results_folder(*own, protocol, use["changes"]) for protocol in ("", "P1")]


def run_folders(step: Step) -> Iterator[Path]:
    """The records of the step's method, fold and seed, under both protocols."""
    if step.notebook in EACH_FOLD_AND_SEED:
        use, method = step.parameters, EACH_FOLD_AND_SEED[step.notebook]
        name = f"runs/{run_name(method, '*', use['fold'], use['seed'])}"
        for folder in folders(step):
            yield from sorted(folder.glob(name))


def state_of(job: Job, entry: Mapping[str, Any]) -> tuple[str, str]:
    """Of a step, by its entry in the account: `recorded`, or "running", "interrupted", "failed", "stale", "elsewhere",
    "not run", and why."""
    step, status = job.step, entry.get("status", "not run")
    if status == "running" and not is_held(job.folder, step.name):
        status = "interrupted"
    if status in ("running", "interrupted"):
        return status, f"{entry['by']}, since {entry['at']}"
    if status != DONE:
        return status, entry.get("error", "")
    if "made_from" not in entry or (why := changes(entry["made_from"], job.made_from)):
        return "stale", why if "made_from" in entry else "recorded by an earlier version"
    if not job.output.exists():
        return "elsewhere", "its executed notebook is not on this machine"
    for name, digest in entry["records"].items():
        predictions = job.folder.parent / name / "predictions.parquet"
        if not predictions.exists() or sha256(predictions) != digest:
            return "stale", f"{name} is {'damaged' if predictions.exists() else 'gone'}"
        if not predictions.with_name("model").is_dir():
            return "elsewhere", f"the weights of {name} are not on this machine"
    return RECORDED, ""


def blocked(needed: Mapping[str, Outcome]) -> Outcome | None:
    """What becomes of a step when one that it needs did not end well."""
    for name, outcome in needed.items():
        if outcome.state == OUT_OF_TIME:
            return Outcome(OUT_OF_TIME)
        if outcome.state in (FAILED, BLOCKED):
            return Outcome(BLOCKED, error=f"needs {name}")
    return None


def run(job: Job, say: Callable[[str], None]) -> Outcome:
    """Execute the step, unless it is recorded; wait where another process is at it."""
    step, account = job.step, Account(job.folder)
    with only_one(job.folder, step.name, lambda: say(f"waits: {account.steps[step.name]['by']} runs it")):
        skip = not job.force and step.notebook not in LAST
        if skip and state_of(job, account.steps.get(step.name, {}))[0] == RECORDED:
            return Outcome(RECORDED)
        if job.deadline is not None and time.time() >= job.deadline:
            return Outcome(OUT_OF_TIME)
        say("running ...")
        if job.force:  # weights go: what is trained again replaces the old record once it is whole
            for folder in run_folders(step):
                shutil.rmtree(folder / "model", ignore_errors=True)
        by = f"process {os.getpid()} on {socket.gethostname()}"
        account.set(step, status="running", by=by)
        began = time.monotonic()
        error, state = _execute(job)
        seconds = round(time.monotonic() - began, 1)
        if state == DONE:
            digests = {
                folder.relative_to(job.folder.parent).as_posix(): sha256(folder / "predictions.parquet")
                for folder in run_folders(step)
                if (folder / "predictions.parquet").exists()
            }
            account.set(step, status=DONE, seconds=seconds, made_from=job.made_from, records=digests)
        else:
            account.set(step, status=state, error=error)
        return Outcome(state, seconds, error)


def _execute(job: Job) -> tuple[str, str]:
    """(what went wrong, state)."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    job.output.parent.mkdir(parents=True, exist_ok=True)
    own = None if job.run_limit is None else time.time() + job.run_limit
    ends = [end for end in (own, job.deadline) if end is not None]
    try:
        papermill.execute_notebook(
            str(job.step.source),
            str(job.output),
            parameters=dict(job.step.parameters),
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=["--log-level=50"],  # of the kernel, whose notices would land in the terminal
            timeout_func=(lambda _cell: max(1, min(ends) - time.time())) if ends else None,
        )
    except PapermillExecutionError as error:
        said = re.sub(r"\x1b\[[0-9;]*m", "", f"{error.ename}: {error.evalue}")
        return f"cell {error.cell_index}: {said}", FAILED
    except DeadKernelError:
        return "its kernel was killed, perhaps for want of memory", FAILED
    except CellTimeoutError:
        if own is not None and time.time() >= own:
            return f"longer than {job.run_limit / 60:g} minutes (--run-limit)", FAILED
        return "stopped by --time-limit", OUT_OF_TIME
    return "", DONE
