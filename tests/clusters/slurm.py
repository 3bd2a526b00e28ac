"""Reproduce on a SLURM cluster: each job is a worker with one GPU, and does one run at a time.

On a login node, in the environment that holds this package, with results on a file system that all nodes see:

    pip install -e ".[slurm]"
    python tests/clusters/slurm.py --jobs 4 --partition gpu -- --corpus iemocap --data-root DATA --profile paper

What stands behind the two dashes goes to `ser-kd reproduce`. Jobs that SLURM ends at their wall time are replaced by
new ones; the run that was going on continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys

from dask_jobqueue import SLURMCluster

from ser_kd_utils.cli import main as ser_kd


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--partition", default=None)
    parser.add_argument("--cpus", type=int, default=4, help="of a job")
    parser.add_argument("--memory", default="32GB", help="of a job")
    parser.add_argument("--walltime", default="24:00:00", help="of a job")
    parser.add_argument("--gpu", default="gpu:1", help="SLURM's --gres of a job, empty for none")
    parser.add_argument(
        "--interface", default=None, help="network interface that nodes and this one share, such as ib0"
    )
    parser.add_argument("rest", nargs="*", metavar="-- OPTIONS", help="of ser-kd reproduce")
    asked = parser.parse_args(arguments)
    with SLURMCluster(
        queue=asked.partition,
        cores=1,  # threads of a worker: runs at a time
        processes=1,
        job_cpu=asked.cpus,
        memory=asked.memory,
        walltime=asked.walltime,
        interface=asked.interface,
        python=sys.executable,
        job_extra_directives=[f"--gres={asked.gpu}"] if asked.gpu else [],
        scheduler_options={"dashboard_address": ":0"},
        worker_extra_args=["--resources", "GPU=1"] if asked.gpu else [],
    ) as cluster:
        cluster.adapt(minimum_jobs=asked.jobs, maximum_jobs=asked.jobs)  # a job that ended is replaced
        return ser_kd(["reproduce", "--scheduler", cluster.scheduler_address, *asked.rest])


if __name__ == "__main__":
    sys.exit(main())
