"""Tables of decoupled distillation from made-up records of two protocols whose scores can be counted by hand."""

from __future__ import annotations

import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from ser_kd_utils.methods import settings_of
from ser_kd_utils.methods.dkdfmh import tables as dkd
from ser_kd_utils.methods.dkdfmh.variants import grids, variants
from ser_kd_utils.records import run_id, write_run
from ser_kd_utils.report import plots, tables, write

matplotlib.use("agg")
LABELS = ("angry", "sad")
SNR = [10.0, -5.0]
NOISY = [(kind, snr_db) for kind in ("buzz", "hum") for snr_db in SNR]
ON_TEST = ("test-UA", "test-WA")
PARTS = ("cnn-tckd", "cnn-nckd", "cnn-kd-same-temperature")
GRIDS = grids(variants(settings_of("tiny")))
NOISE_ROWS = ("cnn-alone-noisy", "cnn-dkd-noisy")


def record(
    folder,
    row,
    wrong,
    fold=1,
    seed=0,
    kind="main",
    noisy=0,
    utterances=None,
    angry="angry",
    apart=True,
    mark="P2",
    dev=None,
    **other,
):
    """A run tested on utterances a0 ... (angry) and s0, s1 (sad) of its fold, that errs on the first `wrong` angry
    ones in clean speech, and on the first `noisy` ones in noise (all six at -5 dB, below the range of training).

    other: how many at the checkpoints last, test_UA and test_WA, where they differ from `wrong`; utterances: other
    names than the fold's; angry: another name of that class.
    """
    names = utterances or [f"f{fold}{name}" for name in ("a0", "a1", "a2", "a3", "a4", "a5", "s0", "s1")]
    labels = [angry, "sad"]
    rows = []
    for checkpoint in ("best", "last", *ON_TEST):
        for condition, snr_db in [("clean", np.nan), *(NOISY if checkpoint == "best" else [])]:
            missed = other.get(checkpoint.replace("-", "_"), wrong) if condition == "clean" else noisy
            for number, name in enumerate(names):
                label = int(name[2] == "s")
                error = label == 0 and (number < missed or snr_db < 0)
                logits = np.eye(2, dtype=np.float16)[label ^ int(error)]
                rows.append((name, fold, seed, condition, snr_db, checkpoint, labels[label], logits))
    columns = ["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]
    info = {"method": "dkdfmh", "variant": row, "fold": fold, "seed": seed, "labels": labels, "kind": kind}
    info |= {"corpus": "emodb", "profile": "tiny", "parameters": 155_636, "title": f"<{row}>", "overrides": ""}
    info |= {"baseline": "cnn-dkd", "held_out_noise": "", "train_noise": ["hum"] if row in NOISE_ROWS else []}
    dev = dev or (0.5 if row == "cnn-teacher" else 0.4)
    info |= {"history": [{"epoch": 1, "dev_UA": dev}], "best_epoch": 1}
    info |= {"question": f"why {row}?", "settings": {"noise": {"train_snr_db": [0.0, 20.0], "test_snr_db": SNR}}}
    protocol = {"mark": mark, "protocol": "any", "rule": "r", "optimistic": False, "test": "all", "test noise": "else"}
    protocol |= {
        "noise": "folder: buzz, hum",
        "speaker_independent": apart,
        "synthetic": False,
        "sizes": {"train": 24, "test": 8},
    }
    info |= {"protocol": protocol | {"selection": "s", "speech level": "active"}, "commit": "c" * 40}
    name = run_id("dkdfmh", row, fold, seed, mark.replace("P2", ""))
    return write_run(folder / "runs" / name, pd.DataFrame(rows, columns=columns), info)


def made(runs, name) -> pd.DataFrame:
    return {table.name: table for table in dkd.tables(runs)}[name].frame


def ladder(*runs) -> pd.DataFrame:
    return made([run for some in runs for run in some], "dkd_optimism_alone")


@pytest.fixture
def one(tmp_path):
    """Of P1: two fifths; the epoch of the best UA misses 0, that of the best WA 3, dev's 6, the last 4 and 6."""
    return [
        record(tmp_path / "1", "cnn-alone", 6, fold, test_UA=0, test_WA=3, last=last, mark="P1")
        for fold, last in ((1, 4), (2, 6))
    ]


@pytest.fixture
def two(tmp_path):
    """Of P2: the same utterances in folds of their own, among them one that P1 dropped; dev's epoch misses both a0."""
    first, second = (["f1a0", "f2a0", "f1a1", "f2a1", "f1s0", "f2s0", "f9a0"], ["f1a2", "f2a2", "f1s1", "f2s1"])
    return [
        record(tmp_path / "2", "cnn-alone", 2, 1, noisy=4, utterances=first, test_UA=0, test_WA=1),
        record(tmp_path / "2", "cnn-alone", 0, 2, noisy=2, utterances=second, last=2),
    ]


def value(text: str) -> float:
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", text)
    return float(text.split()[0])


def test_p1_is_scored_on_its_best_test_epochs_and_p2_on_devs(one, two):
    table = made([*one, *two], "dkd")
    line = table.set_index("row").loc["cnn-alone"]
    assert len(table) == 1 and line[["model", "parameters"]].tolist() == ["<cnn-alone>", "155.6k"]
    assert value(line["WA P1"]) == 62.5 and value(line["UA P1"]) == 100.0  # of another epoch each: 5 of 8, and all
    assert value(line["WA P2"]) == 81.8  # 9 of 11
    assert value(line["UA P2"]) == 85.7  # 5 of 7 angry, 4 of 4 sad
    assert value(line["UA noisy P2"]) == 57.1  # at 10 dB 1 of 7 angry
    assert line[["folds x seeds P1", "folds x seeds P2", "published WA / UA"]].tolist() == ["2 x 1", "2 x 1", ""]
    wanted = "ser-kd reproduce --corpus emodb --data-root DATA --noise-dir NOISE --folds 1,2 --seeds 0"
    assert line["command"] == wanted


def test_a_protocol_that_is_missing_leaves_its_columns_blank(one, two, tmp_path):
    ours = ["WA P1", "UA P1", "folds x seeds P1"], ["WA P2", "UA P2", "UA noisy P2", "folds x seeds P2"]
    for runs, there, blank in ((one, *ours), (two, *ours[::-1])):
        line = made(runs, "dkd").iloc[0]
        assert set(line[blank]) == {""} and "" not in set(line[there])
    assert made([], "dkd").empty and ladder([]).empty
    assert ladder(one)["rung"].tolist() == [1, 2, 3]
    alone = ladder(two)
    assert alone[["rung", "against"]].values.tolist() == [[6, ""], [7, "rung 6"], [8, "rung 6"]]


def test_main_rows_come_in_order_and_the_published_scores_stand_with_dkd_only(tmp_path):
    names = ["cnn-stored", "cnn-dkd", "cnn-teacher", "cnn-whisper", "cnn-kd"]
    runs = [record(tmp_path, name, 0) for name in names] + [record(tmp_path, "cnn-nckd", 0, kind="component")]
    table = made([*runs, record(tmp_path, "cnn-dkd", 0, mark="P1")], "dkd").set_index("row")
    assert list(table.index) == ["cnn-teacher", "cnn-kd", "cnn-dkd", "cnn-whisper", "cnn-stored"]
    published = table["published WA / UA"]
    assert published["cnn-dkd"] == "79.1 / 77.1, IEMOCAP, likely P1 (arXiv 2303.05134 abstract)"
    assert (published == "").sum() == 4 and (table["UA P1"] == "").sum() == 4


def test_the_published_scores_are_read_and_not_typed(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "EVIDENCE", tmp_path / "results")
    folder = tmp_path / "results" / "reference"
    folder.mkdir(parents=True)
    lines = ["paper,table,method,dataset,condition,snr_db,metric,value,source"]
    lines += ["D,abstract,DKDFMH,X,clean,,UA,12.3,there (copy)", "D,list,DKDFMH,X,clean,,UA,99,elsewhere"]
    lines += ["D,abstract,DKDFMH,X,clean,,WA,45.6,there (copy)"]
    (folder / "dkdfmh_results.csv").write_text("\n".join(lines))
    table = made([record(tmp_path, "cnn-dkd", 0)], "dkd")
    assert table["published WA / UA"].tolist() == ["45.6 / 12.3, X, likely P1 (there)"]


def test_the_ladder_of_choices_of_the_epoch_and_of_splits(one, two):
    table = ladder(one, two).set_index("rung")
    assert [value(cell) for cell in table["WA"]] == [62.5, 25.0, 37.5, 40.0, 80.0, 90.9, 81.8, 63.6]
    # angry recalled: P1 12, 0 and 2 of 12; of those both tested 0 and 4 of 6; P2 7, 5 and 3 of 7; sad always
    assert [value(cell) for cell in table["UA"]] == [100.0, 50.0, 58.3, 50.0, 83.3, 100.0, 85.7, 71.4]
    assert table["split"].tolist() == ["P1"] * 4 + ["P2"] * 4
    assert table["utterances"].tolist() == [16, 16, 16, 10, 10, 11, 11, 11]
    assert table["against"].tolist() == ["", "rung 1", "rung 1", "", "rung 4", "", "rung 6", "rung 6"]
    assert table["step, points"].tolist() == ["", -50.0, -41.7, "", 33.3, "", -10.0, -35.0]  # mean of the folds
    assert table["folds x seeds"].tolist() == ["2 x 1"] * 8
    # folds differ at step 5, which has the interval over utterances only
    assert [bool(cell) for cell in table["95 % interval"]] == [False, False, True, False, False, False, True, True]
    assert table["95 % over utterances"][5].startswith("[") and "p" not in table


def test_splits_are_not_compared_on_a_handful_of_utterances(one, two):
    assert ladder(one[:1], two[:1])["rung"].tolist() == [1, 2, 3, 6, 7, 8]


def test_a_split_that_does_not_part_speakers_is_not_said_to(one, tmp_path):
    official = [record(tmp_path / "3", "cnn-alone", 2, fold, apart=fold != 2) for fold in (1, 2)]
    words = ladder(one, official)["evaluation"].tolist()
    assert words[-1] == "own split, last epoch" and not any("independent" in line for line in words)


def test_protocols_are_paired_by_utterance_and_seed_and_a_class_may_have_two_names(two, tmp_path):
    excited = [record(tmp_path / "x", "cnn-alone", 6, fold, angry="excited", mark="P1") for fold in (1, 2)]
    plain = [record(tmp_path / "y", "cnn-alone", 6, fold, mark="P1") for fold in (1, 2)]
    another_seed = [record(tmp_path / "y", "cnn-alone", 0, fold, seed=1, mark="P1") for fold in (1, 2)]
    step = ["UA", "utterances", "step, points", "95 % over utterances"]
    wanted = ladder(plain, two).set_index("rung").loc[5, step].tolist()
    assert wanted[2] == 33.3
    for runs in (excited, plain + another_seed):
        assert ladder(runs, two).set_index("rung").loc[5, step].tolist() == wanted
    assert 5 not in set(ladder(another_seed, two)["rung"])  # nothing in common


MISSED = {  # clean, in noise
    "cnn-teacher": (0, 2),
    "cnn-alone": (6, 6),
    "cnn-kd": (6, 6),
    "cnn-dkd": (3, 6),
    "cnn-whisper": (3, 0),
    "cnn-tckd": (6, 0),
    "cnn-nckd": (0, 0),
    "cnn-kd-same-temperature": (0, 0),
    "cnn-alone-noisy": (6, 0),
    "cnn-dkd-noisy": (6, 3),
}


@pytest.fixture
def rows(tmp_path):
    """Three folds of rows that miss the same number of angry utterances in each."""

    def kind(row):
        return "noise" if row in NOISE_ROWS else "component" if row in PARTS else "main"

    return [
        record(tmp_path, row, clean, fold, noisy=noisy, kind=kind(row))
        for row, (clean, noisy) in MISSED.items()
        for fold in (1, 2, 3)
    ]


def test_main_rows_are_compared_in_clean_speech_and_those_of_noise_in_noise(rows, tmp_path):
    table = made([*rows, record(tmp_path, "cnn-teacher", 6, 4)], "dkd_comparisons").set_index("rows")
    points = {  # an angry utterance is a twelfth of UA
        "(cnn-dkd) - (cnn-alone), clean": 25.0,
        "(cnn-dkd) - (cnn-kd), clean": 25.0,
        "(cnn-dkd) - (cnn-kd-same-temperature), clean": -25.0,
        "(cnn-kd) - (cnn-alone), clean": 0.0,
        "(cnn-nckd) - (cnn-tckd), clean": 50.0,
        "(cnn-dkd) - (cnn-teacher), clean": -25.0,
        "(cnn-whisper) - (cnn-dkd), clean": 0.0,
        "(cnn-dkd-noisy) - (cnn-alone-noisy), noisy": -25.0,
        "(cnn-alone-noisy) - (cnn-alone), noisy": 50.0,
        "(cnn-teacher) - (cnn-alone), clean": 50.0,
        "(cnn-whisper) - (cnn-alone), clean": 25.0,
        "(cnn-dkd) - (cnn-alone), noisy": 0.0,
    }
    assert dict(zip(table.index + ", " + table["speech"], table["UA, points"], strict=True)) == points
    assert set(table["folds x seeds"]) == {"3 x 1"} and set(table["reading"]) == {"undecided"}


def test_ablations_come_in_the_order_of_the_method_against_dkd_on_common_folds(rows, tmp_path):
    names = ["cnn-mfcc", "cnn-heads-8", "cnn-heads-2", "cnn-beta-8", "cnn-beta-0.25", "cnn-alpha-2", "cnn-else"]
    names += ["cnn-temperature-4", "cnn-attention-text"]
    more = [record(tmp_path, name, 6, 1, kind="component") for name in names]
    others = [record(tmp_path, "cnn-heads-1", 0, 9, kind="component")]  # shares no fold
    table = made([*more, *rows, *others], "dkd_ablations").set_index("row")
    order = [
        "tckd",
        "nckd",
        "kd-same-temperature",
        "alpha-2",
        "beta-0.25",
        "beta-8",
        "temperature-4",
        "heads-2",
        "heads-8",
    ]
    order += ["attention-text", "mfcc", "else"]
    assert list(table.index) == [f"<cnn-{name}>" for name in order]
    scores = ["UA clean", "UA noisy", "difference, points"]
    assert table.loc[["<cnn-tckd>", "<cnn-nckd>"], scores].values.tolist() == [[50, 100, -25], [100, 100, 25]]
    assert made(rows, "dkd_ablations")["against"].tolist() == ["cnn-dkd"] * 3
    assert table.loc[["<cnn-tckd>", "<cnn-mfcc>"], "folds x seeds"].tolist() == ["3 x 1", "1 x 1"]


def test_rows_trained_in_noise_are_tested_in_noise_by_snr(rows, tmp_path):
    table = made([*rows, record(tmp_path, "cnn-alone", 0, 8)], "dkd_noise")
    assert list(table.columns[:6]) == ["row", "model", "UA clean", "UA 10 dB", "UA -5 dB", "UA noisy"]
    assert table["row"].tolist() == ["cnn-alone", "cnn-dkd", *NOISE_ROWS]
    assert table["UA clean"].tolist() == [50.0, 75.0, 50.0, 50.0]
    assert table["UA 10 dB"].tolist() == table["UA noisy"].tolist() == [50.0, 50.0, 100.0, 75.0]
    assert set(table["UA -5 dB"]) == {50.0} and set(table["folds x seeds"]) == {"3 x 1"}
    assert made(rows[:6], "dkd_noise")["row"].tolist() == ["cnn-alone"]


def test_claims_have_the_sign_of_the_row_that_should_be_better(rows):
    table = made(rows, "dkd_claims").set_index("claim")
    assert table["points for it"].tolist() == [25.0, 25.0, -25.0, 0.0, 50.0, -25.0, 0.0, -25.0, 50.0]
    assert set(table["verdict"]) == {"undecided"}  # one seed
    beats = table.loc["the student beats its teacher"]
    carries = table.loc["what the teacher says of the other classes carries it"]
    assert beats["tested by"] == "(cnn-dkd) - (cnn-teacher), clean"
    assert carries["tested by"] == "(cnn-nckd) - (cnn-tckd), clean" and set(table["folds x seeds"]) == {"3 x 1"}


def test_decoupled_and_classical_distillation_meet_at_each_temperature(tmp_path):
    """Which variant has which temperature follows from the settings, those that the records were made with."""
    words = "it helps more than classical distillation, at T {}"
    pairs = {
        "": {1: ("cnn-dkd", "cnn-kd-same-temperature"), 2: ("cnn-temperature-2", "cnn-kd-weight-1-temperature-2"),
             4: ("cnn-temperature-4", "cnn-kd")},
        "dkdfmh.temperature=2.0, dkdfmh.kd_temperature=1.0": {
            1: ("cnn-temperature-1", "cnn-kd"), 2: ("cnn-dkd", "cnn-kd-same-temperature"),
            4: ("cnn-temperature-4", "cnn-kd-weight-1-temperature-4")},
    }  # fmt: skip
    for overrides, wanted in pairs.items():
        told = {each.claim: (each.better, each.worse) for each in dkd.claims(settings_of("paper", overrides))}
        assert {t: told[words.format(t)] for t in (1, 2, 4)} == wanted
        runs = [
            record(tmp_path, name, missed, fold)
            for names in wanted.values()
            for name, missed in zip(names, (0, 3), strict=True)
            for fold in (1, 2, 3)
        ]
        for run in runs:
            run.info["overrides"] = overrides
        table = made(runs, "dkd_claims").set_index("claim")
        for t, (better, worse) in wanted.items():
            assert table.loc[words.format(t), "tested by"] == f"({better}) - ({worse}), clean"
            assert table.loc[words.format(t), "points for it"] == 25.0
        shown = made(runs, "dkd_comparisons")
        assert not shown.duplicated(["rows", "speech"]).any() and len(shown) >= 3


def tuned(folder, preferred, folds=(1, 2, 3)):
    """All that both losses are tuned among, with the dev UA of the preferred the highest on the average alone."""
    return [
        record(folder, name, 2 * (name in GRIDS[1]), fold, dev=0.7 if name in preferred else 0.6 + 0.15 * (fold == 1))
        for name in sum(GRIDS, [])
        for fold in folds
    ]


def test_each_loss_is_compared_as_dev_speech_prefers_it_among_as_many_settings(tmp_path):
    words = "it helps more than classical distillation, each as dev speech prefers it"
    best = ("cnn-beta-2", "cnn-kd-weight-0.5-temperature-2")
    runs = tuned(tmp_path, best)
    line = made(runs, "dkd_claims").set_index("claim").loc[words]
    assert line["tested by"] == f"({best[0]}) - ({best[1]}), clean" and line["points for it"] == 16.7
    for grid in GRIDS:  # of one setting nothing recorded, or nothing in a fold that the others have
        for gone in (lambda run: True, lambda run: run.info["fold"] > 1):
            some = [run for run in runs if run.info["variant"] != grid[-1] or not gone(run)]
            told = {claim.claim: claim for claim in dkd.claims(settings_of("tiny"), some)}
            assert (words in told) == any(run.info["variant"] == grid[-1] for run in some)
            if words in told:  # by fold 1 alone
                assert told[words].better not in best and told[words].worse not in best
    assert words not in {claim.claim for claim in dkd.claims(settings_of("tiny"))}


def test_what_both_protocols_have_is_compared_under_the_likely_one_too(rows, tmp_path):
    runs = [
        record(tmp_path, name, missed, fold, mark="P1")
        for name, missed in {"cnn-alone": 3, "cnn-kd": 6, "cnn-dkd": 0}.items()
        for fold in (1, 2)
    ]
    table = made([*rows, *runs], "dkd_likely_comparisons").set_index(["rows", "speech"])
    points = {"(cnn-dkd) - (cnn-alone)": 25.0, "(cnn-dkd) - (cnn-kd)": 50.0, "(cnn-kd) - (cnn-alone)": -25.0}
    assert table["UA, points"].xs("clean", level="speech").to_dict() == points
    assert set(table["folds x seeds"]) == {"2 x 1"}
    pd.testing.assert_frame_equal(made([*rows, *runs], "dkd_comparisons"), made(rows, "dkd_comparisons"))


def test_the_student_of_the_encoder_is_found_under_its_name(tmp_path):
    def named(model_type) -> dict:
        return {"teacher": SimpleNamespace(model_type=model_type), "dkdfmh": settings_of("tiny")["dkdfmh"]}

    for model_type in ("wav2vec2", "whisper"):
        told = {each.claim: each for each in dkd.claims(named(model_type))}
        assert told["a teacher of another architecture serves better"].better == f"cnn-{model_type}"
        assert f"cnn-{model_type}" in variants(named(model_type))
    assert "cnn-whisper" in variants(settings_of("tiny")) and "cnn-wav2vec2" in variants(settings_of("paper"))


@pytest.mark.parametrize("teacher, ending", [(0.5, " +10.0 points"), (0.3, " -10.0 points")])
def test_distillation_is_judged_where_the_teacher_is_better_than_the_student(tmp_path, teacher, ending):
    missed = {"cnn-teacher": (0, 1, 0, 1, 0), "cnn-alone": (6, 6, 5, 6, 6), "cnn-dkd": (0, 1, 0, 0, 1)}
    missed |= {"cnn-alone-noisy": (6, 6, 5, 6, 6), "cnn-dkd-noisy": (6, 6, 6, 6, 5)}
    runs = [
        record(tmp_path, row, miss, fold, seed, noisy=miss)
        for row, misses in missed.items()
        for fold, miss in enumerate(misses, 1)
        for seed in (0, 1, 2)
    ]
    for run in runs:
        if run.info["variant"] == "cnn-teacher":
            run.info["history"][0]["dev_UA"] = teacher
    table = made(runs, "dkd_claims").set_index("claim")
    helps, noisy = (
        table.loc["decoupled distillation helps the student"],
        table.loc["distillation helps in noise, after training in noise"],
    )
    assert helps["verdict"] == ("supported" if teacher > 0.4 else "premise not met")
    assert helps["premise"] == f"(cnn-teacher) - (cnn-alone) on dev:{ending}"
    assert noisy["premise"] == "(cnn-teacher) - (cnn-alone-noisy) on dev: not on the same kind of speech"
    assert noisy["verdict"] == "undecided"
    other = table.loc["training in noise helps in noise"]  # no claim about distillation
    assert other["premise"] == "" and other["points for it"] == 0
    alone = [run for run in runs if run.info["variant"] in ("cnn-alone", "cnn-dkd")]
    (line,) = made(alone, "dkd_claims").to_dict("records")
    assert line["p (Holm)"] == line["p"] < helps["p (Holm)"]  # corrected for the claims that can be tested


def test_all_tables_can_be_written(one, two, rows, tmp_path):
    parts = {table.name: table for table in dkd.tables([*one, *two])}
    for table in [*dkd.tables(rows), parts["dkd_optimism_alone"]]:
        write.write(table, tmp_path)
        assert table.lines or table.name in ("dkd_null", "dkd_likely_comparisons")  # one seed, one protocol
    assert len(list((tmp_path / "tables").iterdir())) == 3 * 7
    for file in (tmp_path / "tables").iterdir():
        assert not re.search(r"\bnan\b", file.read_text(), re.IGNORECASE)
    stored = pd.read_csv(tmp_path / "tables" / "dkd_optimism_alone.csv").set_index("rung")
    assert stored.loc[5, "step, points"] == 33.3 and np.isnan(stored.loc[4, "step, points"])


def test_a_step_is_followed_to_both_protocols(one, two):
    table = {table.name: table for table in dkd.tables([*one, *two])}["dkd_optimism_alone"]
    steps = {table.key(line): line.get("step, points") for line in table.lines}
    step = steps["5"]
    own, other = step.selection.predictions(step.runs)
    assert set(own["utterance"]) == set(other["utterance"]) and own["utterance"].nunique() == 10
    assert 100 * (tables.score(own) - tables.score(other)) == pytest.approx(33.3, abs=0.05)
    assert {tables.mark_of(run) for run in step.runs} == {"P1", "P2"}
    best, chosen = steps["7"].selection.predictions(steps["7"].runs)
    assert (set(best["checkpoint"]), set(chosen["checkpoint"])) == ({"best"}, {"test-UA"})


def test_confusions_wait_for_all_three_students(rows):
    assert dkd.confusion_tables([run for run in rows if run.info["variant"] in ("cnn-alone", "cnn-teacher")])[0] == {}
    tables_of, base = dkd.confusion_tables(rows)
    assert list(tables_of) == ["cnn-kd", "cnn-dkd", "cnn-tckd", "cnn-nckd"] and len(base) == 24


# --- figures


@pytest.fixture
def closed():
    yield
    plt.close("all")


def optimism(runs):
    return {table.name: table for table in dkd.tables(runs)}["dkd_optimism_alone"]


def guesses(*angry: str) -> pd.DataFrame:
    """Ten utterances of each class; the sad ones all right, the angry ones said to be so."""
    label = ["angry"] * 10 + ["sad"] * 10
    return pd.DataFrame({"label": label, "prediction": [*angry, *["angry"] * (10 - len(angry)), *["sad"] * 10]})


def test_changes_of_confusions_are_points_of_the_true_class(closed):
    base = guesses("sad", "sad", "sad")
    figure = plots.confusion_changes({"one": guesses("sad"), "same": base}, base, LABELS)
    one, same = figure.axes
    assert [text.get_text() for text in one.texts] == ["+20", "-20", "+0", "+0"]
    assert [text.get_text() for text in same.texts] == ["+0"] * 4 and same.get_title() == "same"
    assert one.collections[0].get_clim() == same.collections[0].get_clim() == pytest.approx((-20, 20))
    red, _, blue = one.collections[0].cmap(0.0)[:3]
    assert red > blue  # less is red
    outlined = [patch.get_xy() for patch in one.patches if not patch.get_fill()]
    assert outlined == [(0, 0), (1, 1)]


def test_every_rung_has_its_dot_in_its_protocols_colour(one, two, closed):
    figure = plots.optimism_steps(optimism([*one, *two]))
    wa, ua = figure.axes
    assert (wa.get_xlabel(), ua.get_xlabel()) == ("WA (%)", "UA (%)")
    p1, p2 = (group.lines[0] for group in ua.containers)
    np.testing.assert_allclose(p1.get_xdata(), [100, 50, 58.3, 50])
    np.testing.assert_allclose(p2.get_xdata(), [83.3, 100, 85.7, 71.4])
    assert p1.get_ydata().tolist() == [0, 1, 2, 3] and p2.get_ydata().tolist() == [4, 5, 6, 7]
    assert to_hex(p1.get_color()) != to_hex(p2.get_color())
    assert [label.get_text()[-1] for label in wa.get_yticklabels()] == list("12345678")
    assert ua.get_ylim()[0] > ua.get_ylim()[1]  # from the top
    low = min(path.vertices[:, 0].min() for path in ua.containers[1][2][0].get_paths())
    assert low < 71.4  # an interval reaches below its dot
    alone = plots.optimism_steps(optimism(two))
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["P2, the corpus's own split"]
