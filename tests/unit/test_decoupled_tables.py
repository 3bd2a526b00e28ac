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
    names = ["cnn-stored", "cnn-dkd", "cnn-teacher", "cnn-wav2vec2", "cnn-kd"]
    runs = [record(tmp_path, name, 0) for name in names] + [record(tmp_path, "cnn-nckd", 0, kind="component")]
    table = made([*runs, record(tmp_path, "cnn-dkd", 0, mark="P1")], "dkd").set_index("row")
    assert list(table.index) == ["cnn-teacher", "cnn-kd", "cnn-dkd", "cnn-wav2vec2", "cnn-stored"]
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


def test_a_step_is_followed_to_both_protocols(one, two):
    lines = {table.name: table for table in dkd.tables([*one, *two])}["dkd_optimism_alone"]
    step = lines.cell("5", "step, points")
    own, other = step.selection.predictions(step.runs)
    assert set(own["utterance"]) == set(other["utterance"]) and own["utterance"].nunique() == 10
    assert 100 * (tables.score(own) - tables.score(other)) == pytest.approx(33.3, abs=0.05)
    assert {tables.mark_of(run) for run in step.runs} == {"P1", "P2"}
    best, chosen = lines.cell("7", "step, points").selection.predictions(lines.cell("7", "step, points").runs)
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
