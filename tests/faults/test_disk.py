"""A full disk, read-only results, damaged files: one clear line, nothing lost, and the same command goes on."""

from __future__ import annotations

import shutil

import pandas as pd
from stand_in import FEW_EPOCHS, TRAIN

from ser_kd_utils.records import Run, write_run


def one_line(done) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ser-kd: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_full_disk_stops_with_one_line_and_goes_on_with_room(suite, small_disk):
    (suite.root / "results").symlink_to(small_disk.place)
    suite.notebook("02", "from pathlib import Path\nPath(results, 'filler').write_bytes(bytes(10**6))")
    done = suite.run("--only", "01,02")
    assert "No space left on device" in done.stdout + one_line(done)
    assert suite.executed == ["teacher 1 0"]
    (small_disk.place / "filler").unlink()
    small_disk("size=20m")
    suite.notebook("02")
    done = suite.run("--only", "01,02")
    assert done.returncode == 0 and "01_teacher_finetuning__fold-1__seed-0  already recorded, skipped" in done.stdout
    assert suite.executed == ["teacher 1 0", "mlkd 1 0"]


def test_a_cache_on_a_full_disk_leaves_nothing_and_goes_on_with_room(suite, small_disk):
    suite.environment["SER_KD_CACHE"] = str(small_disk.place)
    suite.notebook("01", TRAIN.format(rows=[]))
    done = suite.run("--only", "01")
    assert done.returncode == 1 and "No space left on device" in done.stdout
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
    suite.notebook("01", TRAIN.format(rows=["a"]))
    suite.notebook("09", "from pathlib import Path\nfrom ser_kd_utils.records import predictions, read_runs",
                   "folder = Path(results, f'{corpus}-{profile}+{changes}'.replace(', ', ',_'))",
                   "len(predictions(read_runs(folder)))")  # fmt: skip
    options = ("--only", "01,09", "--changes", FEW_EPOCHS)
    assert suite.run(*options).returncode == 0
    (run,) = suite.results.glob("*/runs/*")
    before = (run / "predictions.parquet").read_bytes()
    (run / "predictions.parquet").write_bytes(before[:-100])
    assert (
        f"stale        01_teacher_finetuning__fold-1__seed-0  ({run.parents[1].name}/runs/{run.name} is damaged)"
        in (suite.status(*options))
    )
    only_tables = suite.run("--only", "09", "--changes", FEW_EPOCHS)
    said = (
        f"ValueError: runs/{run.name}/predictions.parquet is damaged: restore that folder, or delete it and reproduce"
    )
    assert only_tables.returncode == 1 and said in only_tables.stdout
    assert suite.run(*options).returncode == 0
    assert (run / "predictions.parquet").read_bytes() == before
    (run / "model" / "model.safetensors").write_bytes(b"other weights")
    shutil.rmtree(suite.results / run.parents[1].name / "notebooks")  # or the step would not be run at all
    assert suite.run(*options).returncode == 0
    assert (run / "model" / "model.safetensors").stat().st_size > 10**5


def test_a_damaged_run_json_or_account_is_one_clear_line(suite, tmp_path):
    folder = tmp_path / "results" / "demo-tiny" / "runs" / "mlkd__x__fold-1__seed-0"
    run = write_run(folder, pd.DataFrame({"x": [1.0]}), {"fingerprint": "f"}, lambda to: to.mkdir())
    assert run.complete("f")
    (folder / "run.json").write_text('{"fingerprint": "f", ')
    assert not Run(folder).complete("f")
    done = suite.run("--only", "01")
    assert done.returncode == 0, done.stdout
    (suite.folder / "reproduce.json").write_text('{"01_tea')
    line = one_line(suite.run("--only", "01"))
    assert "reproduce.json is damaged: restore it, or delete it; records and weights are kept" in line
