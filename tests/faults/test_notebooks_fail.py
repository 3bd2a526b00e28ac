"""Notebooks that hang, fail or lose their kernel, and two reproductions at once: the others go on, and it is said."""

from __future__ import annotations

import json

from stand_in import RECORD, wait_for


def account(suite) -> dict:
    return json.loads((suite.folder / "reproduce.json").read_text())


def test_a_cell_that_hangs_has_failed_and_the_others_go_on(suite):
    hang = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nfor _ in range(900): time.sleep(1)"
    suite.notebook("06", hang, "print('after it')")
    done = suite.run("--only", "01,06,07,09", "--run-limit", "0.15")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    name = "06_curriculum_meta_distillation__fold-1__seed-0"
    assert f"FAILED {name}: longer than 0.15 minutes (--run-limit)" in done.stdout
    assert f"07_curriculum_meta_ablations__fold-1__seed-0  not run: needs {name}, which failed" in done.stdout
    assert "2 done, 1 failed, 1 blocked" in done.stdout
    assert account(suite)[name]["status"] == "failed"  # whatever papermill wrote into the notebook
    suite.notebook("06")
    done = suite.run("--only", "01,06,07,09")
    assert done.returncode == 0 and done.stdout.count("already recorded, skipped") == 1
    assert suite.executed == ["teacher 1 0", "mckd 1 0", "mckd-ablation 1 0"]


def test_a_kernel_that_is_killed_is_a_failure_of_its_notebook_alone(suite):
    suite.notebook("04", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    done = suite.run("--only", "01,04,06")
    assert done.returncode == 1
    assert "04_decoupled_distillation__fold-1__seed-0: its kernel was killed, perhaps for want of memory" in done.stdout
    assert suite.executed == ["teacher 1 0", "mckd 1 0"]
    assert "failed       04_decoupled_distillation__fold-1__seed-0  (its kernel was killed" in suite.status()


def test_two_reproductions_on_one_folder_take_turns_and_run_nothing_twice(suite):
    suite.notebook("01", "import time; time.sleep(4)", RECORD.format(method="teacher"))
    first = suite.start("--only", "01,02")
    wait_for(lambda: "running" in (suite.folder / "reproduce.json").read_text() if
             (suite.folder / "reproduce.json").exists() else False)  # fmt: skip
    second = suite.start("--only", "01,02")
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert f"01_teacher_finetuning__fold-1__seed-0  waits: process {first.pid} on " in outputs[1]
    assert sorted(suite.executed) == ["mlkd 1 0", "teacher 1 0"]
    assert sum(output.count("already recorded") for output in outputs) == 2
