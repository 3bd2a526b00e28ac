"""The classical baseline beside the evidence: whole, on the rows' own test, and what notebook 08 shows of it."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from ser_kd_utils.files import sha256
from ser_kd_utils.metrics import interval
from ser_kd_utils.records import EVIDENCE, predictions, read_runs

FOLDER = EVIDENCE / "emodb-whisper"
PATH = FOLDER / "baselines" / "egemaps_svm.parquet"
RECORD = json.loads(PATH.with_suffix(".json").read_text(encoding="utf-8"))
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "08_comparison_and_efficiency.ipynb"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    found = pd.read_parquet(PATH)
    return found.assign(prediction=[RECORD["labels"][np.argmax(logits)] for logits in found["logits"]])


def test_it_is_as_it_was_made():
    assert RECORD["sha256"] == sha256(PATH) and {*RECORD["C by fold"]} == {*"12345"}
    assert "research" in RECORD["licence of openSMILE"]
    assert {cost for own in RECORD["C by fold"].values() for cost in own.values()} <= {*RECORD["costs tried"]}


def test_it_is_tested_on_what_the_rows_are(table):
    """The same utterances, labels, audio and noise, in each of its conditions."""
    runs = [run for run in read_runs(FOLDER) if run.info["variant"] == "c" and run.info["seed"] == 0]
    for name in ("audio", "noise"):
        assert {run.info[f"{name}_fingerprint"] for run in runs} == {RECORD[f"{name}_fingerprint"]}
    keys = ["utterance", "fold", "condition", "snr_db", "label"]
    rows = predictions(runs)
    rows = rows[rows["snr_db"].isna() | rows["snr_db"].isin(table["snr_db"])]
    for _, own in table.groupby("variant"):
        wanted, found = (each[keys].sort_values(keys, ignore_index=True) for each in (rows, own))
        pd.testing.assert_frame_equal(found, wanted, check_dtype=False)


def test_its_record_has_the_scores_that_the_file_gives(table):
    for name, part in table.groupby("variant"):
        speech = {"clean": part["snr_db"].isna(), "noisy": part["snr_db"].notna(), "0 dB": part["snr_db"] == 0}
        found = {words: [round(100 * each, 1) for each in interval(part[rows])] for words, rows in speech.items()}
        assert found == RECORD["UA with interval"][name]


def test_notebook_08_shows_these_scores(table, tmp_path):
    """Its function, on the file itself with the rows left out."""
    book = nbformat.read(NOTEBOOK, 4)
    (source,) = [cell.source for cell in book.cells if cell.source.startswith("def beside_rows")]

    class Row:
        info = {"title": "itself"}

        def __init__(self):
            self.table = table[table["variant"] == "egemaps-svm"]

    class Tables:
        @staticmethod
        def label_of(name):
            return name

    given = {"json": json, "pd": pd, "np": np, "interval": interval, "samples": {"row": Row()}, "tables": Tables}
    exec(source.partition("\n\n\nbaseline =")[0], given)
    shown = given["beside_rows"](PATH)
    for name, words in RECORD["trained on"].items():
        if name.startswith("egemaps"):
            cells = shown.loc[f"eGeMAPS + SVM, trained on {words}"]
            wanted = ["{:.1f} [{:.1f}, {:.1f}]".format(*ends) for ends in RECORD["UA with interval"][name].values()]
            assert cells.tolist() == wanted
