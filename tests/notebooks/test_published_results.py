"""The committed results: tables equal their records, the README equals the tables, and the demo is as promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ser_kd_utils import tables
from ser_kd_utils.metrics import interval
from ser_kd_utils.records import read_runs

RESULTS = Path(__file__).parents[2] / "results"
FOLDERS = sorted(folder for folder in RESULTS.iterdir() if (folder / "runs").is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_are_what_the_records_say(folder, tmp_path):
    runs = read_runs(folder)
    made = {
        "mlkd": tables.mlkd_table(runs),
        "mlkd_comparisons": tables.comparison_table(runs),
        "mlkd_conditions_UA": tables.condition_table(runs, "UA"),
    }
    for name, table in made.items():
        stored = (folder / "tables" / f"{name}.csv").read_text(encoding="utf-8")
        assert table.to_csv(index=False) == stored, name


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_records_are_whole_and_name_no_path(folder):
    for run in read_runs(folder):
        text = (run.folder / "run.json").read_text(encoding="utf-8")
        assert not any(mark in text for mark in ("/home/", "/root/", "/tmp/", "/work/"))
        table = run.predictions
        assert set(table["checkpoint"]) == {"best", "last"}
        assert not table[["utterance", "condition", "label"]].isna().any().any()
        assert np.isfinite(np.stack(table["logits"]).astype(float)).all()
        assert len(table) == 2 * run.info["protocol"]["sizes"]["test"] * (1 + 5 * 5)
        speakers = run.info["protocol"]["speakers"]
        assert not set(speakers["test"]) & {*speakers["train"], *speakers["dev"]}


def test_readme_tables_equal_the_files():
    text = tables.README.read_text(encoding="utf-8")
    assert "<!-- table " in text
    assert tables.readme_with_tables(text) == text


def test_the_demo_teacher_is_above_chance_below_perfect_and_falls_in_noise():
    by_name = {run.info["variant"]: run.predictions for run in read_runs(RESULTS / "demo-tiny")}
    best = by_name["clean"][by_name["clean"]["checkpoint"] == "best"]
    clean, lowest = best[best["condition"] == "clean"], best[best["snr_db"] == 0]
    value, low, _ = interval(clean)
    assert 0.6 <= value <= 0.95 and low > 0.25
    assert interval(lowest)[2] < value
