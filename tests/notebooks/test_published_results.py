"""The committed results: tables equal their records, the README equals the tables, and the demo is as promised.

Judged is what git holds. After a run of one's own, results/ differs from it, and these tests say so and step aside.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ser_kd_utils import tables
from ser_kd_utils.metrics import interval
from ser_kd_utils.paper import tables_of
from ser_kd_utils.records import Run, read_runs

ROOT = Path(__file__).parents[2]


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout


FOLDERS = [ROOT / Path(name).parents[1] for name in git("ls-files", "results/*/tables/mlkd.csv").split()]
pytestmark = pytest.mark.skipif(
    bool(git("status", "--porcelain", "results")), reason="results/ differs from what is committed"
)


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


def test_results_are_committed_for_the_demo_and_for_recorded_speech():
    assert {folder.name for folder in FOLDERS} >= {"demo-tiny", "emodb-tiny"}


def p1_records(folder: Path) -> list[Run]:
    """Of DKDFMH's optimistic protocol."""
    return read_runs(folder.with_name(f"{folder.name}+P1"))


def test_every_table_is_what_the_records_say(folder, tmp_path):
    recorded = read_runs(folder)
    for table in tables_of(recorded, p1_records(folder)).values():
        table.write(tmp_path)
    stored = {path.name: path.read_bytes() for path in (folder / "tables").iterdir()}
    assert stored == {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    assert not tables.complete(recorded)[1]


def test_records_are_whole_and_name_no_path(folder):
    p1 = p1_records(folder)
    for run in (*read_runs(folder), *p1):
        text = (run.folder / "run.json").read_text(encoding="utf-8")
        assert not any(mark in text for mark in ("/home/", "/root/", "/tmp/", "/work/"))
        assert "local changes" not in run.info["commit"]
        table = run.predictions
        assert not table[["utterance", "condition", "label"]].isna().any().any()
        assert np.isfinite(np.stack(table["logits"]).astype(float)).all()
        tested = run.info["protocol"]["sizes"]["test"]
        # clean and five noise types at six SNRs; of the last epoch, at one; of the epochs chosen on the test, clean
        wanted = {"best": tested * (1 + 5 * 6), "last": tested * (1 + 5)}
        if run.info["method"].startswith("dkd"):
            wanted |= {"test-UA": tested, "test-WA": tested}
        assert table["checkpoint"].value_counts().to_dict() == wanted
        speakers = run.info["protocol"]["speakers"]
        heard = bool(set(speakers["test"]) & {*speakers["train"], *speakers["dev"]})
        assert heard == run.info["protocol"]["optimistic"] == (run in p1)


def test_readme_tables_equal_the_files():
    text = tables.README.read_text(encoding="utf-8")
    assert "<!-- table " in text
    assert tables.readme_with_tables(text) == text


def test_the_demo_teacher_is_above_chance_below_perfect_and_falls_in_noise():
    best = tables.by_row(read_runs(ROOT / "results" / "demo-tiny"))["a"]
    clean, lowest = best[best["condition"] == "clean"], best[best["snr_db"] == 0]
    value, low, _ = interval(clean)
    assert 0.5 <= value <= 0.95 and low > 0.25
    assert interval(lowest)[2] < value
