"""Tables of meta-knowledge and curriculum distillation from made-up records whose scores can be counted by hand."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from ser_kd_utils.methods import METHODS, settings_of
from ser_kd_utils.methods.mckd import tables as mckd
from ser_kd_utils.records import run_id, write_run
from ser_kd_utils.report import tables

SNR = [10.0, -5.0]
VARIANTS = METHODS["mckd"].variants(settings_of("tiny"))


def record(folder, name, wrong, fold=1, seed=0, noisy=0, history=()):
    """A run tested on six angry, two sad utterances that errs on the first `wrong` angry ones, or `noisy` in noise."""
    variant, labels, rows = VARIANTS[name], ["angry", "sad"], []
    for number, utterance in enumerate(("a0", "a1", "a2", "a3", "a4", "a5", "s0", "s1")):
        for condition, snr_db in [("clean", np.nan), *(("hum", snr_db) for snr_db in SNR)]:
            label = int(utterance[0] == "s")
            error = label == 0 and number < (wrong if condition == "clean" else noisy)
            logits = np.eye(2, dtype=np.float16)[label ^ int(error)]
            rows.append((f"f{fold}{utterance}", fold, seed, condition, snr_db, "best", labels[label], logits))
    columns = ["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]
    info = {"method": "mckd", "variant": name, "fold": fold, "seed": seed, "labels": labels, "overrides": ""}
    info |= {"kind": variant.kind, "corpus": "meld", "profile": "tiny", "parameters": 128_612, "title": variant.title}
    info |= {"baseline": variant.baseline, "question": variant.question, "train_noise": []}
    info["protocol"] = {"noise": "folder: hum", "protocol": "meld", "sizes": {"train": 24, "test": 8}}
    info["protocol"] |= {"synthetic": False, "optimistic": False, "speaker_independent": True}
    noise = {"train_snr_db": [0.0, 20.0], "test_snr_db": SNR}
    info |= {"settings": {"noise": noise}, "history": list(history)}
    folder = folder / "runs" / run_id("mckd", name, fold, seed)
    return write_run(folder, pd.DataFrame(rows, columns=columns), info | {"held_out_noise": ""})


def made(runs, name) -> pd.DataFrame:
    return {table.name: table for table in mckd.tables(runs)}[name].frame


MISSED = {  # clean, in noise
    "mc-alone": (3, 3),
    "mc-supcon": (3, 0),
    "mc-kd": (0, 6),
    "mc-full": (1, 0),
    "mc-time-tokens": (2, 0),
    "mc-taught-teacher": (6, 0),
    "mc-alone-noisy": (3, 0),
    "mc-kd-noisy": (3, 3),
}


@pytest.fixture
def runs(tmp_path):
    return [
        record(tmp_path, name, clean, fold, noisy=noisy)
        for name, (clean, noisy) in MISSED.items()
        for fold in (1, 2, 3)
    ]


def value(text: str) -> float:
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", text)
    return float(text.split()[0])


def test_main_rows_come_in_order(runs):
    table = made(runs, "mckd").set_index("row")
    assert list(table.index) == ["mc-alone", "mc-supcon", "mc-kd", "mc-full"]
    assert [value(cell) for cell in table["WA"]] == [62.5, 62.5, 100.0, 87.5]
    assert [value(cell) for cell in table["UA"]] == [75.0, 75.0, 100.0, 91.7]
    # of 3 of 6 angry and 2 of 2 sad: F1 2/3 and 4/7
    assert value(table["WF1"].iloc[0]) == pytest.approx(100 * (6 * 2 / 3 + 2 * 4 / 7) / 8, abs=0.05)
    assert [value(cell) for cell in table["UA noisy"]] == [75.0, 100.0, 50.0, 100.0]  # at 10 dB
    assert set(table["folds x seeds"]) == {"3 x 1"} and table["command"].nunique() == 1


def test_the_published_scores_are_read_and_stand_with_the_whole_method_only(runs, tmp_path, monkeypatch):
    published = made(runs, "mckd").set_index("row")["published"]
    assert published["mc-full"] == "IEMOCAP UA 71.3 / WA 70.2; MELD WA 52.3 / WF1 47.0 (second-hand)"
    assert set(published.drop("mc-full")) == {""}
    monkeypatch.setattr(tables, "EVIDENCE", tmp_path / "results")
    folder = tmp_path / "results" / "reference"
    folder.mkdir(parents=True)
    lines = [
        "paper,table,method,dataset,condition,snr_db,metric,value,source",
        "T,t,m,X,clean,,UA,12.3,s",
        "T,t,,X,,,,,",
    ]
    (folder / "taffc2025_results.csv").write_text("\n".join(lines))
    assert made(runs, "mckd").set_index("row").at["mc-full", "published"] == "X UA 12.3 (second-hand)"


def test_claims_have_the_sign_of_the_row_that_should_be_better(runs):
    table = made(runs, "mckd_claims").set_index("tested by")
    points = {  # an angry utterance is a twelfth of UA
        "(mc-supcon) - (mc-alone), clean": 0.0,
        "(mc-kd) - (mc-supcon), clean": 25.0,
        "(mc-full) - (mc-kd), clean": -8.3,
        "(mc-full) - (mc-alone), clean": 16.7,
        "(mc-taught-teacher) - (mc-kd), clean": -50.0,
        "(mc-full) - (mc-time-tokens), clean": 8.3,
        "(mc-alone-noisy) - (mc-alone), noisy": 25.0,
        "(mc-kd-noisy) - (mc-alone-noisy), noisy": -25.0,
    }
    assert table["points for it"].to_dict() == points
    assert set(table["verdict"]) == {"undecided"}  # one seed
    premise = "(a) - (mc-supcon) on dev: not on the same kind of speech"  # the teacher is not recorded
    assert table.loc["(mc-kd) - (mc-supcon), clean", "premise"] == premise
    assert table.loc["(mc-supcon) - (mc-alone), clean", "premise"] == ""


def test_a_part_is_compared_with_the_row_it_names(runs):
    table = made(runs[::-1], "mckd_ablations").set_index("row")  # in the order of the notebook
    assert list(table.index) == ["time tokens", "teacher learns, too"]
    assert table["against"].to_dict() == {"time tokens": "mc-full", "teacher learns, too": "mc-kd"}
    assert table["difference, points"].tolist() == [-8.3, -50.0]
    assert table["UA clean"].tolist() == [83.3, 50.0] and table["UA noisy"].tolist() == [100.0, 100.0]
    assert set(table["reading"]) == {"undecided"}


def test_rows_in_noise_stand_together_on_the_folds_they_share(runs, tmp_path):
    table = made([*runs, record(tmp_path, "mc-alone", 0, 9)], "mckd_noise").set_index("row")
    assert list(table.index) == ["mc-alone", "mc-full", "mc-alone-noisy", "mc-kd-noisy"]
    assert table["UA 10 dB"].tolist() == [75.0, 100.0, 100.0, 75.0] and set(table["folds x seeds"]) == {"3 x 1"}


@pytest.mark.parametrize("name", ["mckd", "mckd_claims", "mckd_comparisons", "mckd_ablations", "mckd_noise"])
def test_without_records_a_table_is_empty(name):
    assert made([], name).empty
