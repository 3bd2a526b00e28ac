"""Several runs at a time, here and on Dask workers: the same records, whatever worker or scheduler fails."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from prewarmed import Prewarmed
from stand_in import record, wait_for

from ser_kd_utils.methods.teacher.settings import TeacherSettings

ROOT = Path(__file__).parents[2]
ONCE_KILLED = """from pathlib import Path
import os, signal, time
if not Path(results, "killed.txt").exists():
    Path(results, "killed.txt").write_text("x")
    os.kill(os.getppid(), signal.SIGKILL)  # the worker that started this kernel
    time.sleep(60)"""


@pytest.fixture
def scheduler():
    """Starts a scheduler and workers as a user does on a cluster, in processes of their own: (address, process).

    nanny: each worker has a process that starts it anew when it dies; before: a command that starts it.
    """
    started = []

    def start(*workers: list[str], nanny: bool = False, before: tuple[str, ...] = ()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        commands = [["scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]]
        one = ["worker", address, "--nthreads", "1", "--no-dashboard", "--nanny" if nanny else "--no-nanny"]
        commands += [[*one, *more] for more in workers]
        for what, *more in commands:
            command = ["-m", "dask", what, *more]
            if what == "worker" and (nanny or before):
                whole = [*before, sys.executable, *command]
                started.append(subprocess.Popen(whole, stderr=subprocess.DEVNULL, start_new_session=True))
            else:
                started.append(Prewarmed(command, os.environ, None, capture=True))
        return address, started[-len(commands)]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("place", ["here", "on a cluster"])
def test_two_at_a_time_leave_the_same_records_and_teachers_come_first(suite, one_at_a_time, scheduler, place):
    spread = ("--workers", "2") if place == "here" else ("--scheduler", scheduler([], [])[0])
    done = suite.run("--seeds", "0-1", "--ablations", "none", *spread)
    assert done.returncode == 0, done.stdout + done.stderr
    assert suite.recorded == one_at_a_time != {}
    for seed in "01":
        first = suite.executed.index(f"a 1 {seed}")
        assert all(first < suite.executed.index(f"{variant} 1 {seed}") for variant in ("e", "cnn-dkd", "mc-full"))
    assert len(suite.executed) == 8 and "11 done" in done.stdout
    where = r"$" if place == "here" else r" \(tcp://"
    running = re.findall(rf"01_teacher_finetuning__fold-1__seed-0  running \.\.\.{where}", done.stdout, re.MULTILINE)
    assert len(running) == 1
    assert done.stderr == ""


def test_two_at_a_time_run_at_the_same_time(suite):
    """Each waits for the other to have begun."""
    for number, other in (("04", "06"), ("06", "04")):
        meet = f"""import time
from pathlib import Path
Path(results, "begun-{number}").touch()
end = time.monotonic() + 60
while not Path(results, "begun-{other}").exists():
    assert time.monotonic() < end, "alone"
    time.sleep(0.05)"""
        suite.notebook(number, meet, record(number))
    done = suite.run("--only", "04,06", "--workers", "2")
    assert done.returncode == 0, done.stdout


def test_each_of_several_runs_has_a_gpu_of_its_own(suite):
    """With a stand-in for the two GPUs that the environment leaves visible."""
    import torch

    show = "import os, time\ntime.sleep(2)\nprint(os.environ['CUDA_VISIBLE_DEVICES'], file=open(results + '/{0}', 'w'))"
    for number in ("04", "06"):
        suite.notebook(number, show.format(number))
    code = suite.command("reproduce", "--only", "04,06", "--workers", "2")
    code[2] = f"import torch; torch.cuda.device_count = lambda: {2}; {code[2]}"
    running = Prewarmed(code[1:], os.environ | {"CUDA_VISIBLE_DEVICES": "3,5"}, None, capture=True)
    said = running.communicate(timeout=120)
    assert running.returncode == 0 and torch.cuda.device_count() == 0, said
    assert {(suite.results / number).read_text().strip() for number in ("04", "06")} == {"3", "5"}


def test_a_run_whose_worker_is_killed_goes_to_another(suite, scheduler):
    suite.notebook("01", ONCE_KILLED, record("01"))
    address, _ = scheduler([], [])
    done = suite.run("--only", "01,02", "--scheduler", address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert suite.executed == ["a 1 0", "e 1 0"]
    lines = [line for line in done.stdout.splitlines() if "01_teacher" in line and "running" in line]
    assert len({line.rpartition("(")[2] for line in lines}) == 2  # two workers


def test_a_run_that_kills_each_worker_fails_alone(suite, scheduler):
    suite.notebook("02", ONCE_KILLED.replace("if not", "if True or not"), record("02"))
    address, _ = scheduler([], [], nanny=True)
    done = suite.run("--only", "01,02,06", "--scheduler", address)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "02_noisy_student_distillation__fold-1__seed-0  failed: KilledWorker: Attempted to run task" in done.stdout
    assert "all those workers died while running it" in done.stdout and "2 done, 1 failed" in done.stdout
    assert suite.executed == ["a 1 0", "mc-full 1 0"]


def test_without_its_scheduler_it_says_so_and_the_next_goes_on(suite, scheduler):
    suite.notebook("02", "import time; time.sleep(120)")
    address, process = scheduler(["--resources", "GPU=1"])
    running = suite.start("--only", "01,02", "--scheduler", address)
    wait_for(lambda: suite.executed == ["a 1 0"] and "running" in suite.status("--only", "02"))
    os.killpg(process.pid, signal.SIGKILL)
    started = time.monotonic()
    out, error = running.communicate(timeout=120)
    assert time.monotonic() - started < 90
    assert running.returncode == 2 and "Traceback" not in out + error
    assert "ser-kd: the Dask scheduler is gone; what was recorded stays, and the same command" in error
    suite.notebook("02")
    done = suite.run("--only", "01,02")
    assert done.returncode == 0 and suite.executed == ["a 1 0", "e 1 0"]


def test_a_worker_that_does_not_see_the_results_is_refused(suite, scheduler):
    hidden = f'mount -t tmpfs none "{suite.root}" && exec "$@"'
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("hiding a folder from a worker needs root")
    address, _ = scheduler([], before=("unshare", "-m", "sh", "-c", hidden, "sh"))
    done = suite.run("--only", "01", "--scheduler", address)
    assert done.returncode == 2
    assert re.search(r"ser-kd: worker tcp://\S+ does not see \S+, which all workers must share", done.stderr)
    assert suite.executed == []


def test_no_scheduler_is_one_clear_line(tmp_path, monkeypatch):
    from ser_kd_utils.reproduce import schedule

    monkeypatch.setattr(schedule, "SOON", 2)
    with (
        pytest.raises(ConnectionError, match="no Dask scheduler at tcp://127.0.0.1:9: "),
        schedule.on_cluster(Namespace(scheduler="tcp://127.0.0.1:9"), tmp_path),
    ):
        pass


def test_processes_of_torchrun_share_each_batch(suite):
    """By gloo on the CPU. Without dropout, which each process draws for itself, the losses are those of one process."""
    network = TeacherSettings.of("tiny").network
    still = {name: 0.0 if "dropout" in name else value for name, value in network.items()}
    given = ["train", "a", "--corpus", "manifest", "--data-root", str(suite.root / "corpus.csv")]
    for each in ("epochs=2", f"network={still!r}", "batch_size=12"):
        given += ["--set", f"teacher.{each}"]
    plain = ["-m", "ser_kd_utils.cli"]
    spread = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *plain]
    found = {}
    for name, command in (("one", plain), ("two", spread)):
        results = suite.root / name
        running = Prewarmed([*command, *given, "--results", str(results)], os.environ, None, capture=True)
        out, error = running.communicate(timeout=300)
        assert running.returncode == 0, error
        assert out.count("a: UA clean") == 1  # said by one of them
        (path,) = results.glob("*/runs/*/run.json")
        found[name] = json.loads(path.read_text())
    assert [found[name]["processes"] for name in ("one", "two")] == [1, 2]
    assert found["one"]["fingerprint"] == found["two"]["fingerprint"]
    one, two = ([epoch["loss"] for epoch in found[name]["history"]] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    assert len({round(loss, 3) for loss in one}) == 2  # it learns at all


def test_the_slurm_example_submits_jobs_whose_workers_do_the_runs(suite, monkeypatch, tmp_path):
    """With stand-ins for sbatch and scancel that start a job on this machine and end it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    start = f"setsid sh {tmp_path}/job.sh >{tmp_path}/job.log 2>&1 & echo Submitted batch job $!"
    commands = {
        "sbatch": f'cp "$1" {tmp_path}/job.sh; {start}',
        "scancel": 'kill -- "-$1"',
    }
    for name, command in commands.items():
        (programs / name).write_text(f"#!/bin/sh\n{command}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    example = str(ROOT / "tests" / "clusters" / "slurm.py")
    stand_in, given = (
        suite.command("reproduce", "--only", "01,02")[2],
        suite.command("reproduce", "--only", "01,02")[4:],
    )
    code = stand_in.partition("from ser_kd_utils.cli")[0]
    code += f"\nimport runpy\nsys.argv[0] = 'slurm.py'\nrunpy.run_path({example!r}, run_name='__main__')"
    command = ["-c", code, "--partition", "gpu", "--memory", "1GB", "--", *given]
    running = Prewarmed(command, os.environ, None, capture=True)
    said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert suite.executed == ["a 1 0", "e 1 0"]
    job = (tmp_path / "job.sh").read_text()
    assert "#SBATCH -p gpu" in job and "#SBATCH --gres=gpu:1" in job and "--resources GPU=1" in job
    assert "--nthreads 1" in job
