"""A full disk, read-only results, damaged files: one clear line, nothing lost, and the same command goes on."""

from __future__ import annotations

import json
import re
import shutil

from stand_in import FEW_EPOCHS, TRAIN, table

from ser_kd_utils.records import Run, write_run


def one_line(done) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ser-kd: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_full_disk_fails_the_runs_in_words_and_they_go_on_with_room(suite, small_disk):
    (suite.root / "results").symlink_to(small_disk.place)
    suite.notebook("02", "from pathlib import Path\nPath(results, 'filler').write_bytes(bytes(10**6))")
    done = suite.run("--only", "01,02,06", "--workers", "1")  # 06 after 02 has filled the disk
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    said = r"02_noisy_student_distillation\S+  failed.*: OSError: \[Errno 28\] No space left on device"
    assert re.search(said, done.stdout)
    assert "1 done, 2 failed" in done.stdout and suite.executed == ["a 1 0"]
    (small_disk.place / "filler").unlink()
    small_disk("size=20m")
    suite.notebook("02")
    done = suite.run("--only", "01,02")
    assert done.returncode == 0 and "01_teacher_finetuning__fold-1__seed-0  recorded\n" in done.stdout
    assert suite.executed == ["a 1 0", "e 1 0"]


def test_a_cache_on_a_full_disk_leaves_nothing_and_goes_on_with_room(suite, small_disk):
    suite.environment["SER_KD_CACHE"] = str(small_disk.place)
    suite.notebook("01", TRAIN.format(method="teacher", variants=[]))
    assert "No space left on device" in one_line(suite.run("--only", "01"))  # the sound is looked at before any work
    assert not [path for path in (small_disk.place / "audio").iterdir() if path.suffix != ".lock"]
    small_disk("size=20m")
    done = suite.run("--only", "01")
    assert done.returncode == 0, done.stdout


def test_read_only_results_are_refused_before_anything_runs(suite, small_disk):
    small_disk("ro")
    (suite.root / "results").symlink_to(small_disk.place)
    line = one_line(suite.run("--only", "01"))
    assert "cannot write to" in line and "(Read-only file system): pass another folder with --results" in line


def test_a_damaged_record_is_said_and_only_its_training_is_run_again(suite):
    suite.notebook("01", TRAIN.format(method="teacher", variants=["a"]))
    read = "from ser_kd_utils.records import predictions, read_runs, results_folder"
    folder = "folder = results_folder(results, name, profile, overrides)"
    suite.notebook("09", read, folder, "len(predictions(read_runs(folder)))")
    options = ("--only", "01,09", "--set", FEW_EPOCHS)
    assert suite.run(*options).returncode == 0
    (run,) = suite.results.glob("*/runs/*")
    before = (run / "predictions.parquet").read_bytes()
    (run / "predictions.parquet").write_bytes(before[:-100])
    told = f"stale        01_teacher_finetuning__fold-1__seed-0  damaged or not here: {run.name}; about "
    assert told in suite.status(*options)
    only_tables = suite.run("--only", "09", "--set", FEW_EPOCHS)
    said = f"ValueError: predictions.parquet of {run.name} is damaged: restore it, or delete runs/{run.name}"
    assert only_tables.returncode == 1 and said in only_tables.stdout
    assert suite.run(*options).returncode == 0
    assert (run / "predictions.parquet").read_bytes() == before
    (run / "model" / "model.safetensors").write_bytes(b"other weights")
    shutil.rmtree(suite.results / run.parents[1].name / "notebooks")  # or the step would not be run at all
    assert suite.run(*options).returncode == 0
    assert (run / "model" / "model.safetensors").stat().st_size > 10**5


def test_a_damaged_run_json_or_receipt_counts_as_none_and_only_its_run_is_done_again(suite, tmp_path):
    folder = tmp_path / "results" / "demo-tiny" / "runs" / "mlkd__x__fold-1__seed-0"
    run = write_run(folder, table(1.0), {"fingerprint": "f"}, lambda to: to.mkdir())
    assert run.complete("f")
    (folder / "run.json").write_text('{"fingerprint": "f", ')
    assert not Run(folder).complete("f")
    name = "01_teacher_finetuning__fold-1__seed-0"
    assert suite.run("--only", "01,02").returncode == 0
    receipt = suite.folder / "receipts" / f"{name}.json"
    whole = json.loads(receipt.read_text())
    receipt.write_text('{"status": "do')
    assert f"not run      {name}  " in suite.status()
    done = suite.run("--only", "01,02")
    assert done.returncode == 0 and done.stdout.count("  recorded\n") == 1
    again = json.loads(receipt.read_text())
    assert again["status"] == "done" and again["provenance"] == whole["provenance"]
    assert again["records"] == whole["records"] != {}
