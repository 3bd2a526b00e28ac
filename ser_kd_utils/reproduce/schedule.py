"""Which run goes next, and where: one or several at a time here, or on a Dask cluster; one function for all."""

from __future__ import annotations

import logging
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from queue import SimpleQueue
from tempfile import NamedTemporaryFile
from typing import Any

import pandas as pd

from ser_kd_utils import records
from ser_kd_utils.files import PACKAGE, digest, only_one, unfinished
from ser_kd_utils.reproduce import compare
from ser_kd_utils.reproduce.plan import plan
from ser_kd_utils.reproduce.run import (
    BLOCKED,
    DONE,
    FAILED,
    OUT_OF_TIME,
    RECORDED,
    Limits,
    NotebookRun,
    Outcome,
    execute,
)
from ser_kd_utils.reproduce.status import dry_run, say, short

EXIT = {RECORDED: 0, DONE: 0, FAILED: 1, BLOCKED: 1, OUT_OF_TIME: 3}
PROGRESS = "ser-kd"
"""Dask's topic of what workers say."""
SOON = 30
"""Seconds that a scheduler has to answer."""

Place = tuple[Executor, Callable[[NotebookRun, str], Outcome], int]
"""An executor, what it does with a run and with the beginning of its lines, and how many runs it takes at a time."""


def reproduce(options: Namespace) -> int:
    """Run the plan. Returns 0 when all is done, 1 when a run failed, 3 when the time limit came first."""
    started, runs = time.time(), plan(options)
    folder = runs[0].folder
    print(f"{len(runs)} notebook runs, results in {short(folder)}", flush=True)
    if options.dry_run:
        return dry_run(runs, options)
    limits = Limits(options.force, 60 * options.run_limit, started + 60 * options.time_limit)
    labels = {run.name: f"[{number}/{len(runs)}] {run.name}" for number, run in enumerate(runs, 1)}
    ended: dict[str, Outcome] = {}
    with on_cluster(options.scheduler, folder, limits) if options.scheduler else here(options.workers, limits) as place:
        for run, outcome in run_all(place, runs, labels):
            ended[run.name] = outcome
            say(f"{labels[run.name]}  {_said(outcome)}")
    _summary(folder, ended, time.time() - started)
    return max(EXIT[outcome.state] for outcome in ended.values())


Ended = Iterator[tuple[NotebookRun, Outcome]]


def run_all(place: Place, runs: Sequence[NotebookRun], labels: Mapping[str, str]) -> Ended:
    """Each run after those it needs, the first of the plan first, in the order in which they end.

    A run does not begin where one that it needs did not end well. Raises ConnectionError when the executor is lost.
    """
    executor, work, room = place
    planned = {run.name: run for run in runs}
    sorter = TopologicalSorter({run.name: planned.keys() & run.needs for run in runs})
    sorter.prepare()
    ready: set[str] = set()
    going: dict[Future[Outcome], NotebookRun] = {}
    ended: dict[str, Outcome] = {}
    while sorter.is_active():
        ready |= {*sorter.get_ready()}
        for run in [run for run in runs if run.name in ready][: room - len(going)]:
            ready.remove(run.name)
            future: Future[Outcome] = Future()
            if outcome := _blocked(run, ended):
                future.set_result(outcome)
            else:
                future = executor.submit(work, run, labels[run.name])
            going[future] = run
        for future in wait(going, return_when=FIRST_COMPLETED).done:
            run = going.pop(future)
            ended[run.name] = _outcome(future)
            yield run, ended[run.name]
            sorter.done(run.name)


def _blocked(run: NotebookRun, ended: Mapping[str, Outcome]) -> Outcome | None:
    needed = {} if run.last else {name: ended[name].state for name in run.needs if name in ended}
    if failed := [name for name, state in needed.items() if state in (FAILED, BLOCKED)]:
        return Outcome(BLOCKED, error=f"needs {failed[0]}")
    return Outcome(OUT_OF_TIME) if OUT_OF_TIME in needed.values() else None


def _outcome(future: Future[Outcome]) -> Outcome:
    if future.cancelled():
        message = "the Dask scheduler is gone; what was recorded stays, and the same command with another goes on."
        raise ConnectionError(message)
    if error := future.exception():  # of Dask: each worker that tried it died
        return Outcome(FAILED, error=f"{error}".partition(". ")[0])
    return future.result()


@contextmanager
def here(count: int, limits: Limits) -> Iterator[Place]:
    """On this machine, `count` runs at a time, each with a GPU of its own where there are any.

    Each run's kernel is a process, for which a thread waits: what kills the one leaves the others alone. Raises
    ValueError for more runs at a time than GPUs.
    """
    free: SimpleQueue[str] = SimpleQueue()
    for gpu in _gpus(count):
        free.put(gpu)

    def work(run: NotebookRun, label: str) -> Outcome:
        gpu = free.get()
        try:
            return execute(run, limits, lambda text: say(f"{label}  {text}"), gpu)
        finally:
            free.put(gpu)

    yield ThreadPoolExecutor(count), work, count


def _gpus(count: int) -> list[str]:
    """A device for each of `count` runs; "" for whatever there is."""
    if count == 1:
        return [""]
    from torch.cuda import device_count

    devices = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(device_count())))).split(",")
    if 0 < device_count() < count:
        raise ValueError(f"--workers {count}: this machine has {device_count()} GPUs, one for each run.")
    return devices[:count] if device_count() else [""] * count


@contextmanager
def on_cluster(address: str, folder: Path, limits: Limits) -> Iterator[Place]:
    """On the workers of a running Dask scheduler, once there is one: a cluster may have a queue.

    A run whose worker dies goes to another; where workers have the resource GPU, a run takes one. Raises
    ConnectionError where no scheduler answers, ValueError where workers differ from this process.
    """
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # its notices would drown the progress
    import distributed

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is said once, by us
    try:
        client = distributed.Client(address, timeout=SOON)
    except OSError as error:  # a timeout among them
        raise ConnectionError(f"no Dask scheduler at {address}: {error}") from None
    with client:
        if not client.scheduler_info()["workers"]:
            print(f"waiting for a worker at {address} ...", flush=True)
            client.wait_for_workers(1)
        _check_workers(client, folder)
        client.subscribe_topic(PROGRESS, lambda event: say(event[1]))
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        gpu = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
        yield client.get_executor(pure=False, resources=gpu), partial(_on_worker, limits=limits), 10**6


def _on_worker(run: NotebookRun, label: str, limits: Limits) -> Outcome:
    from distributed import get_worker

    # Dask's for its own processes; a kernel would hand its memory back at each step and be half as fast
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    worker = get_worker()
    return execute(run, limits, lambda text: worker.log_event(PROGRESS, f"{label}  {text} ({worker.address})"))


def _check_workers(client: Any, folder: Path) -> None:
    """That all workers see the results folder, can lock in it, and run this same code: what is assumed of them."""
    unfinished(folder).mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=unfinished(folder)) as token:
        problems = client.run(_problem, Path(token.name), this_code())
    if found := [f"worker {worker} {problem}" for worker, problem in problems.items() if problem]:
        raise ValueError("; ".join(found))


def this_code() -> str:
    """Of the package as it is installed, and of the libraries it computes with."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]
    return digest([sources, records.environment()["versions"]])


def _problem(token: Path, code: str) -> str:
    if not token.exists():
        return f"does not see {token.parents[1]}: the results folder must be on a file system shared by all workers"
    if this_code() != code:
        return "has another version of this package or its libraries: install the same"
    with only_one(token.parents[1], "shared"):  # raises where the file system has no locks
        return ""


def _said(outcome: Outcome) -> str:
    return {
        RECORDED: "already recorded, skipped",
        DONE: f"done in {outcome.seconds:.0f} s",
        FAILED: f"FAILED: {outcome.error}",
        BLOCKED: f"not run: {outcome.error}, which failed",
        OUT_OF_TIME: "stopped by the time limit" if outcome.seconds else "not started: the time limit is reached",
    }[outcome.state]


def _summary(folder: Path, ended: Mapping[str, Outcome], seconds: float) -> None:
    path = folder / "tables" / "mlkd.csv"
    if path.exists():
        table = pd.read_csv(path)
        columns = [*table.columns[:2], *[name for name in table if name.startswith("UA ")][:3]]  # 80 characters a line
        print(f"\nUA in percent [95 % interval]\n{table[columns].to_string(index=False)}\n")
    states = [outcome.state for outcome in ended.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in EXIT if state in states)
    print(f"{counts}, in {seconds / 60:.1f} min.")
    for name in (name for name, outcome in ended.items() if outcome.state == FAILED):
        say(f"FAILED {name}: {ended[name].error}")
        say(f"  the notebook as far as it came: {short(folder / 'notebooks' / f'{name}.ipynb')}")
    if any(EXIT[state] for state in states):
        print("What was recorded stays; the same command goes on from here.", flush=True)
    say(f"In {short(folder)}: tables/, figures/, runs/ (predictions and settings), notebooks/ (executed)")
    if (records.EVIDENCE / folder.name).is_dir():
        try:
            print(f"\n{compare.summary(folder)[1]}")
        except (ValueError, OSError) as error:
            say(f"Not compared with the committed evidence: {error}")
