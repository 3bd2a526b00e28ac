"""Tables from made-up records whose scores can be counted by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ser_kd_utils import tables
from ser_kd_utils.recipes import ROWS
from ser_kd_utils.records import run_name, write_run

LABELS = ["angry", "sad"]
TRUTH = ["angry"] * 6 + ["sad"] * 2


def record(folder, row, wrong, fold=1, seed=0):
    """A run that errs on the first `wrong` angry utterances in noise and on none in clean speech."""
    rows = []
    for checkpoint in ("best", "last"):
        for condition, snr_db in (("clean", np.nan), ("hum", 10.0), ("hum", 0.0)):
            for number, label in enumerate(TRUTH):
                miss = condition != "clean" and number < wrong
                guess = LABELS.index(label) ^ int(miss)
                logits = np.eye(2, dtype=np.float16)[guess]
                rows.append((f"f{fold}u{number}", fold, seed, condition, snr_db, checkpoint, label, logits))
    names = ["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]
    kind = ROWS[row]
    info = {"method": kind.method, "variant": kind.variant, "fold": fold, "seed": seed, "labels": LABELS}
    info |= {"corpus": "emodb", "profile": "tiny", "parameters": 1_500_000, "row": row}
    info["protocol"] = {"protocol": "speaker-groups", "optimistic": False, "noise": "folder: hum"}
    info["protocol"] |= {"synthetic": False, "speaker_independent": True}
    name = run_name(kind.method, kind.variant, fold, seed)
    return write_run(folder / "runs" / name, pd.DataFrame(rows, columns=names), info)


@pytest.fixture
def runs(tmp_path):
    return [
        record(tmp_path, row, wrong, fold) for fold in (1, 2) for row, wrong in (("c", 6), ("e", 3), ("b", 6), ("a", 6))
    ]


def test_rows_come_in_order_with_hand_counted_scores(runs):
    table = tables.mlkd_table(runs).set_index("row")
    assert list(table.index) == ["(a)", "(b)", "(c)", "(e)"]
    # (e) misses 3 of 6 angry and none of 2 sad utterances: UA (50 + 100) / 2, WA 5 of 8
    assert table.loc["(e)", "UA clean"].startswith("100.0 [")
    assert table.loc["(e)", "UA noisy"].startswith("75.0 [")
    assert table.loc["(e)", "UA 0 dB"].startswith("75.0 [")
    assert table.loc["(e)", "WA noisy"].startswith("62.5 [")
    assert table.loc["(a)", "UA noisy"].startswith("50.0 [")
    assert table.loc["(e)", "folds x seeds"] == "2 x 1"
    assert table.loc["(e)", "published UA"] == ""  # the paper has no EMO-DB
    command = "ser-kd reproduce --corpus emodb --data-root DATA --noise-dir NOISE --folds 1,2 --seeds 0"
    assert table.loc["(e)", "command"] == command


def test_comparisons_give_points_and_refuse_to_decide_without_evidence(runs):
    table = tables.comparison_table(runs).set_index("rows")
    assert table.loc["(e) - (c)", "UA noisy, points"] == 25.0
    assert table.loc["(b) - (a)", "UA noisy, points"] == 0.0
    assert table.loc["(b) - (a)", "p"] == 1.0 and table.loc["(b) - (a)", "reading"] == "undecided"
    assert (table["p (Holm)"] >= table["p"]).all()


def test_conditions_are_by_noise_and_snr(runs):
    table = tables.condition_table(runs, "WA")
    assert list(table.columns) == ["noise", "SNR", "(a)", "(b)", "(c)", "(e)"]
    assert table["noise"].tolist() == ["clean", "hum", "hum"] and table["SNR"].tolist()[1:] == [10.0, 0.0]
    assert table.iloc[1].tolist()[2:] == [25.0, 25.0, 25.0, 62.5]


def test_only_folds_that_all_rows_have_are_compared(runs, tmp_path):
    more = [*runs, record(tmp_path, "e", 0, fold=3)]
    whole, left_out = tables.complete(more)
    assert whole == runs and [run.info["fold"] for run in left_out] == [3]
    assert tables.comparison_table([run for run in runs if run.info["row"] == "a"]).empty


def test_published_values_stand_on_their_own_corpus_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PACKAGE", tmp_path / "package")
    folder = tmp_path / "results" / "reference"
    folder.mkdir(parents=True)
    (folder / "mlkd_results.csv").write_text(
        "dataset,metric,value,source\nIEMOCAP,UA,61.25,Table 2\nIEMOCAP,WA,,none\n"
    )
    assert tables._published("iemocap", "UA") == "61.2 (Table 2)"
    assert tables._published("iemocap", "WA") == "not available"
    assert tables._published("emodb", "UA") == ""


def test_a_table_is_written_in_three_formats(runs, tmp_path):
    tables.write_table(tables.mlkd_table(runs), tmp_path, "mlkd", "recorded speech")
    assert pd.read_csv(tmp_path / "tables" / "mlkd.csv")["row"].tolist() == ["(a)", "(b)", "(c)", "(e)"]
    shared = "recorded speech; folds x seeds: 2 x 1; command: ser-kd reproduce --corpus emodb"
    markdown = (tmp_path / "tables" / "mlkd.md").read_text()
    assert (
        markdown.startswith(shared)
        and "\n\n| row " in markdown
        and "| protocol" not in markdown
        and "published" not in markdown
    )
    assert r"\caption{recorded speech; folds x seeds" in (tmp_path / "tables" / "mlkd.tex").read_text()


def test_readme_markers_are_filled_and_a_stale_table_is_seen(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tables, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(tables, "README", tmp_path / "README.md")
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "results" / "x" / "t.md").write_text("| a |\n")
    tables.README.write_text("before\n<!-- table x/t.md -->\nold\n<!-- end -->\nafter\n")
    assert tables.update_readme(check=True) == 1 and "old" in tables.README.read_text()
    assert tables.update_readme() == 0
    assert tables.README.read_text() == "before\n<!-- table x/t.md -->\n| a |\n<!-- end -->\nafter\n"
    assert tables.update_readme(check=True) == 0
