"""One notebook run: what decides its results, how it is executed, and the receipt it leaves."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ser_kd_utils.files import digest, is_held, only_one, sha256, unfinished
from ser_kd_utils.fingerprint import code_of_source

PLACES = ("data_root", "noise_dir", "speech_dir", "results")
"""Parameters that are places of this machine: what lies there counts, not where it lies."""

RECORDED, DONE, FAILED, BLOCKED, OUT_OF_TIME = "recorded", "done", "failed", "blocked", "out of time"


@dataclass(frozen=True)
class NotebookRun:
    """One notebook with the parameters that papermill gives it.

    folder: where its records lie; provenance: as of `provenance_of`; needs: names of the runs that come before it;
    records: ids of those it can leave; last: whether it reads all records that there are, so that it is run every time,
    whatever became of the others.
    """

    name: str
    source: Path
    parameters: Mapping[str, Any]
    folder: Path
    provenance: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    last: bool = False

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.folder / "notebooks" / f"{self.name}.ipynb"

    @property
    def receipt_path(self) -> Path:
        return self.folder / "receipts" / f"{self.name}.json"

    def receipt(self) -> dict[str, Any]:
        """What its last execution left: status, by, at, seconds, error, provenance, records; {} before the first."""
        try:
            return json.loads(self.receipt_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            return {"status": "damaged", "error": "its receipt cannot be read; the next run writes another"}

    def record(self, name: str) -> Path:
        return self.folder / "runs" / name

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the predictions of those of its records that are there."""
        paths = {name: self.record(name) / "predictions.parquet" for name in self.records}
        return {name: sha256(path) for name, path in paths.items() if path.exists()}


@dataclass(frozen=True)
class Limits:
    """force: run what is recorded, too; run_limit: seconds of one run; deadline: time.time() at which all must end."""

    force: bool = False
    run_limit: float = math.inf
    deadline: float = math.inf


@dataclass(frozen=True)
class Outcome:
    state: str
    seconds: float = 0.0
    error: str = ""


def provenance_of(source: Path, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """What decides a run's results, by name: the notebook's code, the code it imports, parameters, inputs; no place."""
    kept = {f"parameter {name}": value for name, value in parameters.items() if name not in PLACES}
    return _code_of(source) | kept | {f"the {name}": found for name, found in inputs.items()}


@cache  # a process reads a notebook once
def _code_of(source: Path) -> dict[str, str]:
    code = [text for _, text in code_cells(source)]
    found = {"the notebook's code": digest(code)[:12]}
    for text in code:
        with suppress(SyntaxError):  # which its execution will say
            found |= code_of_source(text)
    return found


def code_cells(source: Path) -> list[tuple[list[str], str]]:
    """Tags and text of a notebook's code cells; without papermill, which takes seconds to import."""
    try:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in code]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{source} is damaged, or no notebook: restore it.") from None


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In words, in what two provenances differ; "" where they are equal."""
    found = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return f"{', '.join(found)} changed" if found else ""


def state_of(run: NotebookRun) -> tuple[str, str]:
    """`recorded`, or "running", "interrupted", "failed", "damaged", "stale", "elsewhere", "not run", and why."""
    receipt = run.receipt()
    status = receipt.get("status", "not run")
    if status == "running":
        return status if is_held(run.folder, run.name) else "interrupted", f"{receipt['by']}, since {receipt['at']}"
    if status != DONE:
        return status, receipt.get("error", "")
    if why := changes(receipt["provenance"], run.provenance):
        return "stale", why
    if not run.output.exists():
        return "elsewhere", "its executed notebook is not on this machine"
    found = run.checksums()
    for name, checksum in receipt["records"].items():
        if found.get(name) != checksum:
            return "stale", f"{name} is {'damaged' if name in found else 'gone'}"
        if not (run.record(name) / "model").is_dir():
            return "elsewhere", f"the weights of {name} are not on this machine"
    return RECORDED, ""


def execute(run: NotebookRun, limits: Limits, say: Callable[[str], None], gpu: str = "") -> Outcome:
    """Execute the notebook unless its run is recorded; wait where another process is at it.

    gpu: the device that it gets, "" for whatever there is. Whatever goes wrong is this run's outcome, no exception.
    """
    try:
        with only_one(run.folder, run.name, lambda: say(f"waits: {run.receipt().get('by', 'another')} runs it")):
            if not (limits.force or run.last) and state_of(run)[0] == RECORDED:
                return Outcome(RECORDED)
            if time.time() >= limits.deadline:
                return Outcome(OUT_OF_TIME)
            say("running ...")
            return _execute(run, limits, gpu)
    except Exception as error:  # such as a disk too full for the receipt
        return Outcome(FAILED, error=_one_line(error))


def _execute(run: NotebookRun, limits: Limits, gpu: str) -> Outcome:
    if limits.force:  # weights go: what is trained again replaces the old record once it is whole
        for name in run.records:
            shutil.rmtree(run.record(name) / "model", ignore_errors=True)
    _write_receipt(run, status="running")
    began = time.monotonic()
    state, error = _papermill(run, limits, gpu)
    outcome = Outcome(state, round(time.monotonic() - began, 1), error)
    records = run.checksums() if state == DONE else {}
    entry = {"seconds": outcome.seconds, "error": error, "provenance": run.provenance, "records": records}
    _write_receipt(run, status=state, **entry)
    return outcome


def _write_receipt(run: NotebookRun, **entry: Any) -> None:
    """In one step, so that a receipt is whole at any moment."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry |= {"by": f"process {os.getpid()} on {socket.gethostname()}", "at": now}
    fresh = unfinished(run.folder) / run.receipt_path.name
    fresh.write_text(json.dumps(entry, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    run.receipt_path.parent.mkdir(exist_ok=True)
    fresh.replace(run.receipt_path)


def _papermill(run: NotebookRun, limits: Limits, gpu: str) -> tuple[str, str]:
    """The state, and what went wrong."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what went wrong is said once, by us
    end = min(time.time() + limits.run_limit, limits.deadline)
    kernel = ["--log-level=50"]  # its notices would land in the terminal
    if gpu:  # set in the kernel, since runs of one process get different ones
        kernel.append(f"--IPKernelApp.exec_lines=__import__('os').environ.update(CUDA_VISIBLE_DEVICES={gpu!r})")
    try:
        run.output.parent.mkdir(exist_ok=True)
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (run.source, run.output)),  # it formats them
            parameters=dict(run.parameters),
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=kernel,
            timeout_func=(lambda _cell: max(1, end - time.time())) if end < math.inf else None,
        )
    except PapermillExecutionError as error:
        return FAILED, _one_line(f"cell {error.cell_index}: {error.ename}: {error.evalue}")
    except DeadKernelError:
        return FAILED, "its kernel was killed, perhaps for want of memory"
    except CellTimeoutError:
        if time.time() >= limits.deadline:
            return OUT_OF_TIME, "stopped by --time-limit"
        return FAILED, f"longer than {limits.run_limit / 60:g} minutes (--run-limit)"
    except Exception as error:
        return FAILED, _one_line(error)
    return DONE, ""


def _one_line(error: Exception | str) -> str:
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
