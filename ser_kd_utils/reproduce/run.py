"""One notebook run: what decides its results, how it is executed, and the receipt it leaves."""

import json
import logging
import math
import os
import re
import shutil
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ser_kd_utils.files import PACKAGE, digest, is_held, only_one, sha256, unfinished
from ser_kd_utils.fingerprint import code_of_source
from ser_kd_utils.progress import FILE, rewrite

# Parameters that are places of this machine: what lies there counts, not where it lies.
PLACES = ("data_root", "noise_dir", "speech_dir", "results")

RECORDED, DONE, FAILED, BLOCKED, OUT_OF_TIME = "recorded", "done", "failed", "blocked", "out of time"


@dataclass(frozen=True)
class NotebookRun:
    """One notebook with the parameters that papermill gives it.

    folder: where its records lie; provenance: as of `provenance_of`; needs: names of the runs that come before it;
    records: ids of those it can leave; last: whether it reads all records that there are, so that it is run every time,
    whatever became of the others; label: what begins the lines that are said of it.
    """

    name: str
    source: Path
    parameters: Mapping[str, Any]
    folder: Path
    provenance: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    last: bool = False
    label: str = ""

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.folder / "notebooks" / f"{self.name}.ipynb"

    @property
    def receipt_path(self) -> Path:
        return self.folder / "receipts" / f"{self.name}.json"

    @property
    def line_path(self) -> Path:
        """Where it leaves a line about what it does at the moment."""
        return unfinished(self.folder) / f"{self.name}.line"

    def line(self) -> str:
        """What it does at the moment, "" where it has not said."""
        text = self.line_path.read_text(encoding="utf-8") if self.line_path.exists() else ""
        return text and f"{self.label.partition(' ')[0]} {text}"

    def receipt(self) -> dict[str, Any]:
        """What its last execution left: status, by, at, seconds, error, provenance, records; {} without one."""
        with suppress(FileNotFoundError, ValueError):  # of a damaged one the run counts as not run
            return json.loads(self.receipt_path.read_text(encoding="utf-8"))
        return {}

    def weights(self, name: str) -> Path:
        """Where those of one of its records lie."""
        return self.folder / "runs" / name / "model"

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the predictions of those of its records that are there with their weights."""
        paths = {name: self.weights(name).with_name("predictions.parquet") for name in self.records}
        return {name: sha256(path) for name, path in paths.items() if path.exists() and self.weights(name).is_dir()}


@dataclass(frozen=True)
class Outcome:
    """How a run ended, after how long, and what went wrong."""

    status: str
    seconds: float = 0.0
    error: str = ""

    @property
    def code(self) -> int:
        """The exit code of a reproduction in which nothing ended worse."""
        return {FAILED: 1, BLOCKED: 1, OUT_OF_TIME: 3}.get(self.status, 0)

    def __str__(self) -> str:
        return self.status + f" after {self.seconds:.0f} s" * bool(self.seconds) + f": {self.error}" * bool(self.error)


def say(text: str) -> None:
    """Print a line in one piece, for there are threads, in the place of one that rewrites itself."""
    rewrite("", sys.stdout)
    print(f"{text}\n", end="", flush=True)


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
    # tables and texts beside these modules, which read them; those at the top are the command line's
    data = (path for name in found if "." in name for path in PACKAGE.parent.joinpath(*name.split(".")).glob("*.[!p]*"))
    return found | {str(path.relative_to(PACKAGE)): sha256(path)[:12] for path in data}


def code_cells(source: Path) -> list[tuple[list[str], str]]:
    """Tags and text of a notebook's code cells; without papermill, which takes seconds to import."""
    try:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in code]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{source} is damaged, or no notebook: restore it.") from None


def state_of(run: NotebookRun) -> tuple[str, str]:
    """`done`, or "running", "interrupted", "failed", "out of time", "stale", "not run", and why."""
    receipt = run.receipt()
    status = receipt.get("status", "not run")
    if status == "running":
        return status if is_held(run.folder, run.name) else "interrupted", f"{receipt['by']}, since {receipt['at']}"
    if status != DONE:
        return status, receipt.get("error", "")
    old, new, found = receipt["provenance"], run.provenance, run.checksums()
    if changed := [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]:
        return "stale", f"{', '.join(changed)} changed"
    lost = [name for name, checksum in receipt["records"].items() if found.get(name) != checksum]
    lost += [] if run.output.exists() else ["the executed notebook"]
    return ("stale", f"damaged or not here: {', '.join(lost)}") if lost else (DONE, "")


def execute(run: NotebookRun, options: Namespace, tell: Callable[[str], None], gpu: str = "") -> Outcome:
    """Execute the notebook unless its run is recorded; wait where another process is at it.

    options: force, whether what is recorded is run, too; run_limit, minutes of one run; deadline, the time.time() at
    which all must end. gpu: the device that it gets, "" for whatever there is. What goes wrong in the
    notebook is this run's outcome; raises OSError where no receipt can be written, such as on a full disk.
    """
    waits = partial(tell, f"{run.label}  waits: {run.receipt().get('by', 'another')} runs it")
    with only_one(run.folder, run.name, waits):
        if not (options.force or run.last) and state_of(run)[0] == DONE:
            return Outcome(RECORDED)
        if time.time() >= options.deadline:
            return Outcome(OUT_OF_TIME)
        tell(f"{run.label}  running ...")
        for name in run.records if options.force else ():  # the old record goes once the new one is whole
            shutil.rmtree(run.weights(name), ignore_errors=True)
        _write_receipt(run, Outcome("running"))
        began = time.monotonic()
        status, error = _papermill(run, options, gpu)
        outcome = Outcome(status, round(time.monotonic() - began, 1), error)
        _write_receipt(run, outcome)
        return outcome


def _write_receipt(run: NotebookRun, outcome: Outcome) -> None:
    """In one step, so that a receipt is whole at any moment."""
    entry = asdict(outcome) | {"by": f"process {os.getpid()} on {socket.gethostname()}"}
    entry |= {"at": datetime.now(UTC).isoformat(timespec="seconds"), "provenance": run.provenance}
    entry |= {"records": run.checksums() if outcome.status == DONE else {}}
    fresh = unfinished(run.folder) / run.receipt_path.name
    fresh.write_text(json.dumps(entry, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    run.receipt_path.parent.mkdir(exist_ok=True)
    fresh.replace(run.receipt_path)


def _papermill(run: NotebookRun, options: Namespace, gpu: str) -> tuple[str, str]:
    """The status, and what went wrong."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what went wrong is said once, by us
    end = min(time.time() + 60 * options.run_limit, options.deadline)
    # a kernel's notices would land in the terminal, and tornado's errors as it shuts down
    quiet = "__import__('logging').getLogger('tornado').setLevel('CRITICAL')"
    # set in the kernel, since runs of one process get different ones
    own = {FILE: str(run.line_path)} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
    environment = f"__import__('os').environ.update({own!r})"
    kernel = ["--log-level=50", *(f"--IPKernelApp.exec_lines={code}" for code in (quiet, environment))]
    try:
        run.output.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix="ser-kd-") as sockets:
            papermill.execute_notebook(
                *(str(path).replace("{", "{{").replace("}", "}}") for path in (run.source, run.output)),  # formatted
                parameters=dict(run.parameters),
                kernel_name="python3",
                progress_bar=False,
                extra_arguments=kernel,
                timeout_func=(lambda _cell: max(1, end - time.time())) if end < math.inf else None,
                # A TCP port that was free may be taken by another process before the kernel listens on it.
                config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
            )
    except PapermillExecutionError as error:
        return FAILED, one_line(f"cell {error.cell_index}: {error.ename}: {error.evalue}")
    except DeadKernelError:
        return FAILED, "its kernel was killed, perhaps for want of memory"
    except CellTimeoutError:
        too_long = FAILED, f"longer than {options.run_limit:g} minutes (--run-limit)"
        return (OUT_OF_TIME, "stopped by --time-limit") if time.time() >= options.deadline else too_long
    except Exception as error:
        return FAILED, one_line(f"{type(error).__name__}: {error}")
    finally:
        run.line_path.unlink(missing_ok=True)
    return DONE, ""


def one_line(text: str) -> str:
    """Without line breaks and colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
