"""Which run goes next, and where: one or several at a time here, or on a Dask cluster; one function for all."""

import logging
import os
import shutil
import sys
import textwrap
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from ser_kd_utils import records
from ser_kd_utils.files import PACKAGE, digest, unfinished
from ser_kd_utils.progress import rewrite
from ser_kd_utils.reproduce import compare, counted
from ser_kd_utils.reproduce.plan import plan
from ser_kd_utils.reproduce.run import BLOCKED, FAILED, NotebookRun, Outcome, execute, one_line, say

# Dask's topic of what workers say.
PROGRESS = "ser-kd"
# Seconds that a scheduler has to answer.
SOON = 30

# An executor, what it does with a run, and how many runs it takes at a time.
Place = tuple[Executor, Callable[[NotebookRun], Outcome], int]


def reproduce(options: Namespace) -> int:
    """Run the plan. Returns 0 when all is done, 1 when a run failed, 3 when the time limit came first."""
    started, runs = time.time(), plan(options)
    folder = runs[0].folder
    print(f"{counted(len(runs), 'notebook run')}, results in {folder}", flush=True)
    for outputs in unfinished(folder).glob("teacher-outputs-*") if options.force else ():
        shutil.rmtree(outputs)
    options.deadline = started + 60 * options.time_limit
    with on_cluster(options, folder) if options.scheduler else here(options) as place:
        ended = run_all(place, runs)
    counts = Counter(outcome.status for outcome in ended.values())
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    say(f"{told}, in {(time.time() - started) / 60:.1f} min.")
    if (records.EVIDENCE / folder.name).is_dir():
        try:
            print(f"\n{textwrap.fill(compare.compared(folder).summary, 80)}")
        except (ValueError, OSError) as error:
            print(f"Not compared with the committed evidence: {error}")
    return max(outcome.code for outcome in ended.values())


def run_all(place: Place, runs: Sequence[NotebookRun]) -> dict[str, Outcome]:
    """Each run after those it needs, first those that most others need; a line is said of each as it ends.

    A run does not begin where one that it needs has failed. A terminal shows each second what the running ones do.
    Raises ConnectionError when the executor is lost.
    """
    executor, work, room = place
    waiting: list[NotebookRun] = list(runs)
    ended: dict[str, Outcome] = {}
    going: dict[Future[Outcome], NotebookRun] = {}
    while waiting or going:
        left = {run.name for run in (*waiting, *going.values())}
        ready = [run for run in waiting if left.isdisjoint(run.needs)]
        needed = Counter(name for run in waiting for name in run.needs)
        for run in sorted(ready, key=lambda run: -needed[run.name])[: room - len(going)]:
            waiting.remove(run)
            failed = [name for name in run.needs if name in ended and ended[name].code == 1 and not run.last]
            task = (Outcome, BLOCKED, 0.0, f"needs {failed[0]}") if failed else (work, run)
            going[executor.submit(*task)] = run
        live = [run.line() for run in going.values()] if sys.stdout.isatty() else []
        rewrite(" | ".join(filter(None, live)), sys.stdout)
        for future in wait(going, timeout=1 if live else None, return_when=FIRST_COMPLETED).done:
            run = going.pop(future)
            ended[run.name] = outcome = _outcome(future)
            say(f"{run.label}  {outcome}")
            _, _, place_of = run.name.partition("__")
            if place_of and not any(other.name.endswith(f"__{place_of}") for other in (*waiting, *going.values())):
                for outputs in unfinished(run.folder).glob(f"teacher-outputs-{place_of}-*"):
                    shutil.rmtree(outputs)  # gigabytes at full size; of this fold and seed nothing is left to do
    return ended


def _outcome(future: Future[Outcome]) -> Outcome:
    if future.cancelled():
        raise ConnectionError("the Dask scheduler is gone; what was recorded stays, and the same command goes on.")
    if error := future.exception():  # no receipt could be written or, of Dask, each worker that tried it died
        return Outcome(FAILED, error=one_line(f"{type(error).__name__}: {error}").partition(". ")[0])
    return future.result()


@contextmanager
def here(options: Namespace) -> Iterator[Place]:
    """On this machine, `options.workers` runs at a time; where there are GPUs one on each, or more that share them.

    Each run's kernel is a process, for which a thread waits: what kills the one leaves the others alone.
    """
    from dask.system import CPU_COUNT  # what a container or an affinity leaves of the machine's
    from torch.cuda import device_count

    there, thread = device_count(), threading.local()
    count = options.workers or there or CPU_COUNT
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(there)))).split(",")
    gpus = cycle(visible if there and count > 1 else [""])

    def work(run: NotebookRun) -> Outcome:
        return execute(run, options, say, thread.gpu)

    yield ThreadPoolExecutor(count, initializer=lambda: setattr(thread, "gpu", next(gpus))), work, count


@contextmanager
def on_cluster(options: Namespace, folder: Path) -> Iterator[Place]:
    """On the workers of a running Dask scheduler, once there is one: a cluster may have a queue.

    A run whose worker dies goes to another; where workers have the resource GPU, a run takes one. Raises
    ConnectionError where no scheduler answers, ValueError where workers differ from this process.
    """
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # its notices would drown the progress
    import distributed

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is said once, by us
    try:
        client = distributed.Client(options.scheduler, timeout=SOON)
    except OSError as error:  # a timeout among them
        raise ConnectionError(f"no Dask scheduler at {options.scheduler}: {error}") from None
    with client:
        say(f"to the workers of {options.scheduler}, as soon as there is one")
        client.wait_for_workers(1)
        unfinished(folder).mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=unfinished(folder)) as token:
            client.run(_check_worker, Path(token.name), this_code())
        client.subscribe_topic(PROGRESS, lambda event: say(event[1]))
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        gpu = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
        yield client.get_executor(pure=False, resources=gpu), partial(_on_worker, options=options), 10**6


def _on_worker(run: NotebookRun, options: Namespace) -> Outcome:
    from distributed import get_worker

    # Dask's for its own processes; a kernel would hand its memory back at each step and be half as fast
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    worker = get_worker()
    return execute(run, options, lambda text: worker.log_event(PROGRESS, f"{text} ({worker.address})"))


def this_code() -> str:
    """Of the package as it is installed, and of the libraries it computes with."""
    sources = [path.read_text("utf-8") for kind in ("py", "toml", "csv") for path in sorted(PACKAGE.rglob(f"*.{kind}"))]
    return digest([sources, records.environment()["versions"]])


def _check_worker(token: Path, code: str, dask_worker: Any) -> None:
    """That it sees the results folder and runs this same code: what is assumed of all workers."""
    if not token.exists():
        raise ValueError(f"worker {dask_worker.address} does not see {token.parents[1]}, which all workers must share")
    if this_code() != code:
        raise ValueError(f"worker {dask_worker.address} has another version of this package or its libraries")
