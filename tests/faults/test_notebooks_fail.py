"""Notebooks that hang, fail or lose their kernel, and two reproductions at once: the others go on, and it is said."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

from stand_in import record, wait_for

MCKD = "06_curriculum_meta_distillation__fold-1__seed-0"
TEACHER = "01_teacher_finetuning__fold-1__seed-0"


def test_a_cell_that_hangs_has_failed_and_the_others_go_on(suite):
    hang = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nfor _ in range(900): time.sleep(1)"
    suite.notebook("06", hang, "print('after it')")
    done = suite.run("--only", "01,06,07,09", "--run-limit", "0.15")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert re.search(rf"{MCKD}  failed after \d+ s: longer than 0.15 minutes \(--run-limit\)", done.stdout)
    assert f"07_curriculum_meta_ablations__fold-1__seed-0  blocked: needs {MCKD}\n" in done.stdout
    assert "2 done, 1 failed, 1 blocked" in done.stdout
    assert suite.receipt(MCKD)["status"] == "failed"  # whatever papermill wrote into the notebook
    suite.notebook("06")
    done = suite.run("--only", "01,06,07,09")
    assert done.returncode == 0 and done.stdout.count("  recorded\n") == 1
    assert suite.executed == ["a 1 0", "mc-full 1 0", "mc-time-tokens 1 0"]


def test_a_kernel_that_is_killed_is_a_failure_of_its_notebook_alone(suite):
    suite.notebook("04", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    done = suite.run("--only", "01,04,06")
    assert done.returncode == 1
    assert re.search(
        r"04_decoupled_distillation\S+  failed.*: its kernel was killed, perhaps for want of memory", done.stdout
    )
    assert suite.executed == ["a 1 0", "mc-full 1 0"]
    assert "failed       04_decoupled_distillation__fold-1__seed-0  its kernel was killed" in suite.status()


def test_a_kernel_killed_at_one_worker_leaves_the_healthy_run_of_the_other_alone(suite):
    suite.notebook("04", "import os, signal, time\ntime.sleep(2)\nos.kill(os.getpid(), signal.SIGKILL)")
    suite.notebook("06", "import time\ntime.sleep(6)", record("06"))
    done = suite.run("--only", "01,04,06", "--workers", "2")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "2 done, 1 failed" in done.stdout and suite.executed == ["a 1 0", "mc-full 1 0"]


def test_a_kernel_that_dies_at_start_is_a_failure_of_its_run_and_no_traceback(suite):
    """A kernel that finds no room, or no libraries: here each but the first is started by a Python that only exits."""
    started = suite.root / "started"
    kernels = suite.root / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    script = f'mkdir {started} || exit 1; exec {sys.executable} -m ipykernel_launcher -f "$0"'
    spec = {"argv": ["sh", "-c", script, "{connection_file}"], "display_name": "Python 3", "language": "python"}
    kernels.joinpath("kernel.json").write_text(json.dumps(spec))
    suite.environment["JUPYTER_PATH"] = str(suite.root / "jupyter")
    done = suite.run("--only", "00,01,09", "--workers", "2")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "1 done, 2 failed" in done.stdout and ": RuntimeError: Kernel died" in done.stdout


def test_a_notebook_that_papermill_cannot_read_is_a_failure_of_its_run(suite):
    path = suite.root / "notebooks" / "04_decoupled_distillation.ipynb"
    book = json.loads(path.read_text())
    path.write_text(json.dumps(book | {"nbformat": 99}))
    done = suite.run("--only", "01,04,06")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "2 done, 1 failed" in done.stdout and suite.executed == ["a 1 0", "mc-full 1 0"]
    for damaged in ("{", json.dumps(book | {"cells": [{"cell_type": "code"}]})):  # refused before anything runs
        path.write_text(damaged)
        done = suite.run("--only", "01,04,06")
        assert done.returncode == 2
        assert done.stderr == f"ser-kd: {path} is damaged, or no notebook: restore it.\n"


def test_braces_in_the_name_of_the_results_folder_are_taken_as_they_are(suite):
    odd = suite.root / "odd {name} {0} {"
    done = suite.run("--only", "01", "--results", str(odd))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (odd / "corpus-tiny" / "notebooks" / f"{TEACHER}.ipynb").is_file()


def test_two_reproductions_on_one_folder_take_turns_and_run_nothing_twice(suite):
    suite.notebook("01", "import time; time.sleep(4)", record("01"))
    first = suite.start("--only", "01,02")
    wait_for(lambda: suite.receipt(TEACHER).get("status") == "running")
    second = suite.start("--only", "01,02")
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert f"{TEACHER}  waits: process {first.pid} on " in outputs[1]
    assert sorted(suite.executed) == ["a 1 0", "e 1 0"]
    assert sum(output.count("  recorded\n") for output in outputs) == 2


def test_an_interrupted_command_says_so_at_once_and_leaves_no_kernel(suite):
    suite.notebook("01", "import os, time\nopen(results + '/kernel', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    running = suite.start("--only", "01,02")
    number = suite.results / "kernel"
    wait_for(lambda: number.exists() and number.read_text())
    running.send_signal(signal.SIGINT)
    out, error = running.communicate(timeout=20)
    assert running.returncode == 130 and "Traceback" not in out + error
    assert error == "ser-kd: interrupted; the same command goes on from what was recorded.\n"

    def gone() -> bool:
        try:
            os.kill(int(number.read_text()), 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone, 20)
    assert "interrupted  01_teacher" in suite.status("--only", "01")
