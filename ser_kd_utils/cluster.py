"""Runs spread over Dask workers: on this machine, or on any cluster whose scheduler has an address."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import distributed

from ser_kd_utils import steps
from ser_kd_utils.reach import PACKAGE
from ser_kd_utils.records import environment, fingerprint, only_one, unfinished
from ser_kd_utils.steps import FAILED, LAST, Job, Outcome

logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a scheduler that is gone is said once, by us

PROGRESS = "ser-kd"
"""Dask's topic of what workers say."""
SOON = 30
"""Seconds that a scheduler, or a worker on this machine, has to answer."""


@contextmanager
def workers_here(count: int) -> Iterator[distributed.Client]:
    """A cluster on this machine, of workers that do one run at a time, each with a GPU of its own where there are any.

    Raises ValueError for more workers than GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus and count > gpus:
        raise ValueError(f"--workers {count}: this machine has {gpus} GPUs, one for each run; ask for as many.")
    options: dict[str, Any] = {"nthreads": 1, "dashboard_address": None}
    each = {
        number: {
            "cls": distributed.Nanny,
            "options": options
            | ({"resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": str(number)}} if gpus else {}),
        }
        for number in range(count)
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard": False, "host": "127.0.0.1"}}
    with (
        distributed.SpecCluster(workers=each, scheduler=scheduler, silence_logs=logging.ERROR) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(count, timeout=SOON)
        yield client


@contextmanager
def workers_of(address: str) -> Iterator[distributed.Client]:
    """The workers of a running scheduler, once there is one: a cluster may have a queue.

    Raises ConnectionError where no scheduler answers.
    """
    try:
        client = distributed.Client(address, timeout=SOON)
    except OSError as error:  # a timeout among them
        raise ConnectionError(f"no Dask scheduler at {address}: {error}") from None
    with client:
        if not client.scheduler_info()["workers"]:
            print(f"waiting for a worker at {address} ...", flush=True)
            client.wait_for_workers(1)
        yield client


def check(client: distributed.Client, folder: Path) -> None:
    """That all workers see the results folder, can lock in it, and run this same code.

    Raises ValueError for those that do not: a shared file system and one installation are what is assumed.
    """
    token = unfinished(folder) / f"shared-{uuid.uuid4().hex}"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.touch()
    try:
        problems = client.run(_problem, token, this_code())
    finally:
        token.unlink()
    if found := [f"worker {worker} {problem}" for worker, problem in problems.items() if problem]:
        raise ValueError("; ".join(found))


def this_code() -> str:
    """Of the package as it is installed, and of the libraries it computes with."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]
    return fingerprint([sources, environment()["versions"]])


def _problem(token: Path, code: str) -> str:
    if not token.exists():
        return f"does not see {token.parents[1]}: the results folder must be on a file system shared by all workers"
    if this_code() != code:
        return "has another version of this package or its libraries: install the same"
    with only_one(token.parents[1], "shared"):  # raises where the file system has no locks
        return ""


def run_all(
    client: distributed.Client, jobs: Sequence[Job], labels: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[tuple[Job, Outcome]]:
    """Each job as a future that waits for the steps it needs, in the order in which they end.

    labels: by step, what its lines begin with; say: where what workers say goes. A run whose worker dies goes to
    another. Where workers have the resource GPU, a run takes one. Raises ConnectionError when the scheduler is gone.
    """
    client.subscribe_topic(PROGRESS, lambda event: say(event[1]))
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
    futures: dict[str, distributed.Future] = {}
    for number, job in enumerate(jobs):
        before = list(futures) if job.step.notebook in LAST else job.step.needs
        futures[job.step.name] = client.submit(
            _run_on_worker,
            job,
            labels[job.step.name],
            {name: futures[name] for name in before if name in futures},
            key=f"{job.step.name}-{uuid.uuid4().hex[:8]}",
            priority=-number,
            resources=resources,
        )
    job_of = {futures[job.step.name]: job for job in jobs}
    for future in distributed.as_completed(job_of):
        if future.status in ("cancelled", "lost"):
            raise ConnectionError(
                "the Dask scheduler is gone; what was recorded stays, and the same command with another goes on."
            )
        error = future.exception() if future.status == "error" else None
        if isinstance(error, distributed.KilledWorker):
            yield job_of[future], Outcome(FAILED, error="its worker died each time it was tried")
        elif error:
            raise error
        else:
            yield job_of[future], future.result()


def _run_on_worker(job: Job, label: str, needed: dict[str, Outcome]) -> Outcome:
    if job.step.notebook not in LAST and (outcome := steps.blocked(needed)):
        return outcome
    # Dask's for its own processes; a kernel would hand its memory back at each step and be half as fast
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    worker = distributed.get_worker()
    return steps.run(job, lambda text: worker.log_event(PROGRESS, f"{label}  {text} ({worker.address})"))
