"""Experiments: rows that train on a corpus of their own, records that are read again, and what makes them stale."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from ser_kd_utils import recipes
from ser_kd_utils.recipes import ROWS, Experiment
from ser_kd_utils.settings import MLKDSettings, TeacherSettings

RATE = 16_000
TEACHER, MLKD = TeacherSettings.of("tiny"), MLKDSettings.of("tiny")
LAYERS = TEACHER.layers
OTHER_TEACHER = f"teacher__clip={TEACHER.clip / 2}"
PITCH = {"angry": 300, "happy": 600, "neutral": 1200, "sad": 2400}


class Trained(Exception):
    """Raised in the place of a training."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The CSV file of 4 classes x 6 speakers x 2 utterances: half a second of a tone in noise each."""
    folder, rng, rows = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0), []
    time = np.arange(RATE // 2) / RATE
    for label, hertz in PITCH.items():
        for speaker in range(6):
            for take in range(2):
                name = f"{label}-{speaker}-{take}"
                wave = 0.1 * np.sin(2 * np.pi * (hertz + 10 * speaker) * time) + rng.normal(0, 0.02, len(time))
                soundfile.write(folder / f"{name}.wav", wave, RATE)
                rows.append((name, f"{name}.wav", label, f"s{speaker}"))
    columns = ["utterance", "path", "label", "speaker"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "corpus.csv", index=False)
    return folder / "corpus.csv"


@pytest.fixture(scope="module")
def experiment(corpus, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")

    def experiment(changes: str = "", **options) -> Experiment:
        epochs = "epochs=1, teacher__epochs=1" + (f", {changes}" if changes else "")
        return Experiment("manifest", "tiny", data_root=str(corpus), results=str(results), changes=epochs, **options)

    return experiment


@pytest.fixture(scope="module")
def trained(experiment):
    """Rows a, c and e, and every noise segment that was asked for: (utterance, part, last key)."""
    first, asked = experiment(), []
    segment = first.noise.segment

    def spy(kind, part, samples, utterance, seed, when):
        asked.append((utterance, part, when))
        return segment(kind, part, samples, utterance, seed, when)

    first.noise.segment = spy
    runs = {row: first.run(row) for row in "ace"}
    return first, runs, asked


@pytest.fixture
def no_training(monkeypatch, trained):
    def fit(*_, **__):
        raise Trained

    monkeypatch.setattr(recipes, "fit", fit)


# --- what a row leaves behind


def test_each_row_leaves_a_whole_record(trained):
    experiment, runs, _ = trained
    conditions = 1 + len(experiment.noise.types) * len(experiment.noise_settings.test_snr_db)
    for row, run in runs.items():
        about, table = run.info, run.predictions
        assert (about["row"], about["corpus"], about["profile"], about["fold"], about["seed"]) == (
            row, "manifest", "tiny", 1, 0)  # fmt: skip
        assert about["labels"] == list(PITCH) and about["best_epoch"] == 1
        assert set(table["utterance"]) == set(experiment.test) and len(experiment.test) == 16
        assert len(table) == 2 * 16 * conditions  # best and last
        assert not table.duplicated(["utterance", "condition", "snr_db", "checkpoint"]).any()
        assert (table["label"] == table["utterance"].str.split("-").str[0]).all()
        assert np.isfinite(np.stack(table["logits"]).astype(float)).all()
        assert len(run.history) == 1 and run.history["loss"].gt(0).all()
        assert (run.folder / "model" / "config.json").is_file()
        assert not (run.folder / "checkpoints").exists()


def test_a_student_is_smaller_and_its_heads_are_not_counted(trained):
    experiment, runs, _ = trained
    count = {row: run.info["parameters"] for row, run in runs.items()}
    assert count["c"] == count["e"] < count["a"]
    assert [runs[row].info["levels"] for row in "ace"] == [[], [], list(experiment.settings.levels)]
    assert "feature" in runs["e"].history and "feature" not in runs["c"].history


def test_the_settings_that_were_used_are_recorded(trained):
    _, runs, _ = trained
    assert runs["a"].info["settings"]["the teacher"]["epochs"] == 1
    assert runs["e"].info["settings"]["MLKD"]["gamma"] == MLKD.gamma
    assert runs["e"].info["settings"]["the noise"]["level"] == "active"
    protocol = runs["e"].info["protocol"]
    assert protocol["protocol"] == "speaker-groups" and protocol["sizes"] == {"train": 24, "dev": 8, "test": 16}
    assert not set(protocol["speakers"]["test"]) & {*protocol["speakers"]["train"], *protocol["speakers"]["dev"]}


def test_a_record_holds_no_path(trained, corpus):
    for run in trained[1].values():
        text = (run.folder / "run.json").read_text()
        assert str(corpus.parent) not in text and str(run.folder.parents[2]) not in text
        assert not re.search(r'"(/|~|[A-Z]:\\)', text)


def test_test_speech_hears_the_test_half_of_the_noise_and_nothing_else_does(trained):
    experiment, _, asked = trained
    parts = {}
    for utterance, part, when in asked:
        parts.setdefault((utterance, when == "eval"), set()).add(part)
    assert {key: part for key, part in parts.items() if key[0] in experiment.test} == {
        (utterance, True): {"test"} for utterance in experiment.test
    }
    assert {key: part for key, part in parts.items() if key[0] not in experiment.test} == {
        **{(utterance, True): {"train"} for utterance in experiment.dev},
        **{(utterance, False): {"train"} for utterance in experiment.train},
    }


# --- what is read again, and what is not


@pytest.mark.parametrize("row", "ace")
def test_a_second_run_reads(experiment, trained, no_training, row):
    run = experiment().run(row)
    pd.testing.assert_frame_equal(run.predictions, trained[1][row].predictions)


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("e", {"changes": f"gamma={2 * MLKD.gamma}"}),
        ("a", {"changes": OTHER_TEACHER}),
        ("e", {"changes": OTHER_TEACHER}),
        ("a", {"seed": 1}),
        ("a", {"fold": 2}),
        ("d", {}),
    ],
)
def test_other_settings_train_another_model(experiment, no_training, row, options):
    with pytest.raises(Trained):
        experiment(**options).run(row)


def test_a_record_made_under_other_conditions_is_trained_again(experiment, no_training, monkeypatch):
    monkeypatch.setattr(recipes.records, "code_fingerprint", lambda _: "other code")
    with pytest.raises(Trained):
        experiment().run("a")


def test_a_fingerprint_notices_each_ingredient(experiment, tmp_path, monkeypatch):
    noises = tmp_path / "noise"
    noises.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(noises / "hum_1.wav", rng.normal(0, 0.1, 3 * RATE), RATE)
    recorded = {"noise_dir": str(noises)}  # generated babble depends on the fold, too
    prints = {
        "as is": experiment(**recorded).fingerprint("e"),
        "row": experiment(**recorded).fingerprint("d"),
        "settings": experiment(f"lr={2 * MLKD.lr}", **recorded).fingerprint("e"),
        "teacher": experiment(OTHER_TEACHER, **recorded).fingerprint("e"),
        "fold": experiment(fold=2, **recorded).fingerprint("e"),
        "seed": experiment(seed=1, **recorded).fingerprint("e"),
        "protocol": experiment(protocol="random", **recorded).fingerprint("e"),
        "noise": experiment().fingerprint("e"),
    }
    monkeypatch.setattr(recipes.records, "code_fingerprint", lambda _: "other code")
    prints["code"] = experiment(**recorded).fingerprint("e")
    assert len(set(prints.values())) == len(prints)
    monkeypatch.undo()
    assert experiment(**recorded).fingerprint("e") == prints["as is"]


def test_a_fingerprint_notices_the_audio(experiment, corpus, tmp_path):
    copy = shutil.copytree(corpus.parent, tmp_path / "copy")
    before = Experiment("manifest", data_root=str(copy / "corpus.csv")).fingerprint("a")
    assert before == Experiment("manifest", data_root=str(corpus)).fingerprint("a")  # wherever it lies
    wave, _ = soundfile.read(copy / "sad-5-1.wav")
    soundfile.write(copy / "sad-5-1.wav", -wave, RATE)
    assert before != Experiment("manifest", data_root=str(copy / "corpus.csv")).fingerprint("a")


def test_a_teacher_without_weights_is_trained_again_to_the_same(experiment, trained):
    first, runs, _ = trained
    shape = first.settings.levels, first.settings.student_layers
    teacher = experiment().teacher()
    heads = experiment().student(*shape).heads.state_dict()
    wanted = runs["a"].predictions
    shutil.rmtree(runs["a"].folder / "model")
    student = experiment().student(*shape)  # as in a clone: the record is here, the weights are not
    again = experiment().teacher()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in teacher.state_dict().items())
    pd.testing.assert_frame_equal(experiment().run("a").predictions, wanted)
    # the student's fresh weights do not depend on whether its teacher was read or trained
    assert all(torch.equal(value, heads[name]) for name, value in student.heads.state_dict().items())
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_a_training_killed_before_its_record_leaves_the_old_weights(experiment, trained, monkeypatch):
    own = experiment()
    before = own.teacher().state_dict()
    other = {name: -value for name, value in before.items()}

    def fit(model, *_, **__):
        model.load_state_dict(other)
        return recipes.Fitted(model.eval(), pd.DataFrame({"loss": [1.0]}), 1, other, 1.0, 1.0)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "fit", fit)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", killed)
    monkeypatch.setattr(recipes.records, "code_fingerprint", lambda _: "other code")
    with pytest.raises(KeyboardInterrupt):
        experiment().run("a")
    monkeypatch.undo()
    assert own.run("a").complete(own.fingerprint("a"))
    assert all(torch.equal(value, before[name]) for name, value in own.teacher().state_dict().items())


def test_best_and_last_epoch_are_told_apart(experiment, trained):
    """With a last epoch whose classifier is turned round, its rows are the best epoch's, negated."""
    own = experiment()
    model = own.teacher()
    given = {name: value.clone() for name, value in model.state_dict().items()}
    last = dict(given)
    for name in ("classifier.weight", "classifier.bias"):
        last[name] = -given[name]
    fitted = recipes.Fitted(model, pd.DataFrame({"loss": [1.0, 0.5]}), 1, last, 1.0, 1.0)
    table = own._test(model, fitted).set_index(["utterance", "condition", "snr_db"])
    best, final = (np.stack(table[table["checkpoint"] == name]["logits"]) for name in ("best", "last"))
    np.testing.assert_array_equal(best, -final)
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())  # what will be saved


# --- rows and errors


def test_the_rows_are_mlkds_claims():
    assert [(r.method, r.noisy, r.small) for r in ROWS.values()] == [
        ("teacher", False, False),
        ("mlkd", True, False),
        ("mlkd", True, True),
        ("mlkd", True, True),
        ("mlkd", True, True),
    ]
    assert [row.levels for row in ROWS.values()] == ["none", "none", "none", "last", "all"]
    assert len({(row.method, row.variant) for row in ROWS.values()}) == len(ROWS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 6}, "no fold 6; folds: 1 to 5"),
        ({"fold": 0}, "no fold 0; folds: 1 to 5"),
        ({"changes": "gama=1"}, "gama.*MLKD.*gamma"),
        ({"changes": "teacher__epoch=1"}, "epoch for the teacher.*epochs"),
        ({"protocol": "leave-one-out"}, "no protocol 'leave-one-out'"),
        ({"profile": "huge"}, "'huge'.*tiny, paper"),
        ({"corpus": "iemocop"}, "'iemocop'.*iemocap"),
    ],
)
def test_a_wrong_argument_is_one_error_that_names_the_right_ones(corpus, options, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**{"corpus": "manifest", "data_root": str(corpus)} | options)


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        (f"levels=(1, {LAYERS + 1})", f"levels=(1, {LAYERS + 1})"),
        ("levels=(0, 1)", "levels=(0, 1)"),
        ("levels=(2)", "levels=2"),
        ("levels=()", "levels=()"),
        ("levels=(2, 2)", "levels=(2, 2)"),
        ("levels=(2, 1)", "levels=(2, 1)"),
        (f"student_layers={LAYERS + 1}", f"student_layers={LAYERS + 1}"),
        ("student_layers=0", "student_layers=0"),
    ],
)
def test_a_layer_the_teacher_lacks_is_an_error_before_anything_is_read(monkeypatch, changes, asked):
    def read(*_):
        pytest.fail("the corpus was read first")

    monkeypatch.setattr(recipes, "load_corpus", read)
    with pytest.raises(ValueError, match=f"^{re.escape(asked)}: .*layers 1 to {LAYERS}\\b") as caught:
        Experiment(changes=changes)
    assert caught.value.__context__ is None


def test_the_depth_that_counts_is_the_changed_teachers():
    with pytest.raises(ValueError, match=rf"^levels=.*layers 1 to {LAYERS - 1}\b"):
        Experiment(changes=f"teacher__layers={LAYERS - 1}")
    with pytest.raises(ValueError, match=f"network has {LAYERS} layers, not {LAYERS + 1}"):
        Experiment(changes=f"teacher__layers={LAYERS + 1}")


def test_the_card_is_ready_for_json(experiment):
    card = experiment().card()
    assert json.loads(json.dumps(card)) == card
    assert card["noise"].startswith("generated: ") and card["synthetic"] is False and card["optimistic"] is False
