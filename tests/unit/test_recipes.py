"""Experiments: rows that train on a corpus of their own, records that are read again, and what makes them stale."""

from __future__ import annotations

import gc
import json
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from ser_kd_utils import recipes, study
from ser_kd_utils.cli import parser
from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.recipes import ROWS, Experiment
from ser_kd_utils.settings import MLKDSettings, TeacherSettings
from ser_kd_utils.train import _study

RATE = 16_000
TEACHER, MLKD = TeacherSettings.of("tiny"), MLKDSettings.of("tiny")
LAYERS = TEACHER.layers
OTHER_TEACHER = f"teacher__clip={TEACHER.clip / 2}"

pytestmark = pytest.mark.usefixtures("little_garbage")


class Trained(Exception):
    """Raised in the place of a training."""


@pytest.fixture(scope="module")
def experiment(tones, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")

    def experiment(changes: str = "", **options) -> Experiment:
        epochs = "epochs=1, teacher__epochs=1" + (f", {changes}" if changes else "")
        return Experiment("manifest", "tiny", data_root=str(tones), results=str(results), changes=epochs, **options)

    return experiment


@pytest.fixture(scope="module")
def trained(experiment):
    """Some rows, and every noise segment that each of them asked for: (noise type, utterance, part, last key)."""
    first, runs, asked = experiment(), {}, {}
    segment = first.noise.segment

    def spy(kind, part, samples, utterance, seed, when):
        list(asked.values())[-1].append((kind, utterance, part, when))
        return segment(kind, part, samples, utterance, seed, when)

    first.noise.segment = spy
    for row in ("a", "c", "e", "e-unseen"):
        asked[row] = []
        runs[row] = first.run(row)
    return first, runs, asked


@pytest.fixture
def no_training(monkeypatch, trained):
    def fit(*_, **__):
        raise Trained

    monkeypatch.setattr(recipes, "fit", fit)


def test_babble_is_that_of_the_training_speech(experiment):
    one = experiment()
    assert one.noise.fingerprint == NoiseBank.generated([one.audio[utterance] for utterance in one.train]).fingerprint


# --- what a row leaves behind


def test_each_row_leaves_a_whole_record(trained):
    experiment, runs, _ = trained
    grid = {(kind, snr) for kind in experiment.noise.types for snr in experiment.noise_settings.test_snr_db}
    assert len(grid) == 30
    for row, run in runs.items():
        about, table = run.info, run.predictions
        assert (about["row"], about["corpus"], about["profile"], about["fold"], about["seed"]) == (
            row, "manifest", "tiny", 1, 0)  # fmt: skip
        assert about["labels"] == ["angry", "happy", "neutral", "sad"] and about["best_epoch"] == 1
        assert set(table["utterance"]) == set(experiment.test) and len(experiment.test) == 16
        for checkpoint, wanted in (("best", grid), ("last", {(kind, snr) for kind, snr in grid if snr == 10})):
            some = table[table["checkpoint"] == checkpoint]
            assert len(some) == 16 * (1 + len(wanted))
            noisy = some[some["condition"] != "clean"]
            assert set(zip(noisy["condition"], noisy["snr_db"], strict=True)) == wanted
        assert not table.duplicated(["utterance", "condition", "snr_db", "checkpoint"]).any()
        assert (table["label"] == table["utterance"].str.split("-").str[0]).all()
        assert (table["in_range"] == (table["snr_db"] != -5)).all()
        assert np.isfinite(np.stack(table["logits"]).astype(float)).all()
        assert len(run.history) == 1 and run.history["loss"].gt(0).all()
        assert (run.folder / "model" / "config.json").is_file()
        assert not (run.folder / "checkpoints").exists()


def test_a_student_is_smaller_and_its_heads_are_not_counted(trained):
    experiment, runs, _ = trained
    count = {row: run.info["parameters"] for row, run in runs.items()}
    assert count["c"] == count["e"] == count["e-unseen"] < count["a"]
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


def test_a_record_holds_no_path(trained, tones):
    for run in trained[1].values():
        text = (run.folder / "run.json").read_text()
        assert str(tones.parent) not in text and str(run.folder.parents[2]) not in text
        assert not re.search(r'"(/|~|[A-Z]:\\)', text)


def test_test_speech_hears_the_test_half_of_the_noise_and_nothing_else_does(trained):
    experiment, _, asked = trained
    parts = {}
    for row, segments in asked.items():
        for _, utterance, part, when in segments:
            parts.setdefault((row, utterance, when == "eval"), set()).add(part)
    noisy = asked.keys() - {"a"}
    assert parts == {
        **{(row, utterance, True): {"test"} for row in asked for utterance in experiment.test},
        **{(row, utterance, True): {"train"} for row in noisy for utterance in experiment.dev},
        **{(row, utterance, False): {"train"} for row in noisy for utterance in experiment.train},
    }


def test_a_noise_type_that_is_held_out_is_heard_in_the_test_only(trained):
    experiment, runs, asked = trained
    held_out, types = experiment.held_out("e-unseen"), set(experiment.noise.types)
    for row, training in (("e", types), ("e-unseen", types - {held_out})):
        kinds = {part: {kind for kind, _, this, _ in asked[row] if this == part} for part in ("train", "test")}
        assert kinds == {"train": training, "test": types}
        about = runs[row].info
        assert set(about["train_noise"]) == training and about["held_out"] == (held_out if row == "e-unseen" else "")
        assert set(runs[row].predictions["condition"]) == {"clean", *types}
    assert held_out in types


# --- noise, speech and stored targets


def test_each_fold_holds_out_another_noise_type(experiment):
    types = experiment().noise.types
    held_out = []
    for fold in range(1, 6):
        own = experiment(fold=fold)
        held_out.append(own.held_out("e-unseen"))
        assert own.held_out("c-unseen") == held_out[-1] and own.held_out("e") == own.held_out("a") == ""
        assert own.train_noise("c-unseen") == [kind for kind in types if kind != held_out[-1]]
        assert own.train_noise("e") == list(types) and own.train_noise("a") == []
    assert sorted(held_out) == sorted(types)


def test_only_the_noise_types_of_the_settings_are_heard_in_training(experiment):
    own = experiment("noise__train_types=('white', 'pink')")
    assert own.train_noise("e") == ["white", "pink"] and own.train_noise("a") == []
    assert own.pieces("e").types == ("white", "pink") and own.pieces("a").noise is None
    asked, segment = set(), own.noise.segment
    own.noise.segment = lambda kind, *rest: asked.add(kind) or segment(kind, *rest)
    own._dev_scores("e")(recipes.wav2vec2.build_teacher(TEACHER, own.labels))
    assert asked == {"white", "pink"}


def test_speech_that_is_not_used_does_not_count(experiment, speech):
    assert experiment(speech_dir=str(speech)).fingerprint("e") == experiment().fingerprint("e")
    elsewhere = experiment(speech_dir="no such folder")
    assert elsewhere.fingerprint("e") == experiment().fingerprint("e")


def test_a_held_out_type_is_one_that_mlkd_hears(experiment):
    for fold in (1, 2):
        own = experiment("noise__train_types=('white', 'pink')", fold=fold)
        assert sorted([own.held_out("e-unseen"), *own.pieces("e-unseen").types]) == ["pink", "white"]


def test_the_only_noise_type_cannot_be_held_out(experiment):
    own = experiment("noise__train_types=('white',)", fold=2)
    assert "e" in own.rows and not {"c-unseen", "e-unseen"} & own.rows.keys()


def test_stored_targets_go_with_their_experiment(experiment, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes.tempfile, "tempdir", str(tmp_path))
    own = experiment()
    assert len(own.targets("e").states) == 24 and len(list(tmp_path.rglob("states.npy"))) == 1
    del own
    gc.collect()
    assert not list(tmp_path.iterdir())


# --- what is read again, and what is not


@pytest.mark.parametrize("row", ["a", "c", "e", "e-unseen"])
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
        ("e-unseen", {"fold": 2}),
        ("gamma-10", {}),
    ],
)
def test_other_settings_train_another_model(experiment, no_training, row, options):
    with pytest.raises(Trained):
        experiment(**options).run(row)


def test_a_record_made_under_other_conditions_is_trained_again(experiment, no_training, monkeypatch):
    monkeypatch.setattr(study, "reached", lambda *_: "other code")
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
    monkeypatch.setattr(study, "reached", lambda *_: "other code")
    prints["code"] = experiment(**recorded).fingerprint("e")
    assert len(set(prints.values())) == len(prints)
    monkeypatch.undo()
    assert experiment(**recorded).fingerprint("e") == prints["as is"]


def test_a_fingerprint_notices_the_audio(experiment, tones, tmp_path):
    copy = shutil.copytree(tones.parent, tmp_path / "copy")
    before = Experiment("manifest", data_root=str(copy / "corpus.csv")).fingerprint("a")
    assert before == Experiment("manifest", data_root=str(tones)).fingerprint("a")  # wherever it lies
    wave, _ = soundfile.read(copy / "sad-5-1.wav")
    soundfile.write(copy / "sad-5-1.wav", -wave, RATE)
    assert before != Experiment("manifest", data_root=str(copy / "corpus.csv")).fingerprint("a")


def test_a_teacher_without_weights_is_trained_again_to_the_same(experiment, trained):
    _, runs, _ = trained
    teacher = experiment().teacher()
    heads = experiment().student("e").heads.state_dict()
    wanted = runs["a"].predictions
    shutil.rmtree(runs["a"].folder / "model")
    student = experiment().student("e")  # as in a clone: the record is here, the weights are not
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
        return recipes.Fitted(model.eval(), pd.DataFrame({"loss": [1.0]}), 1, other, 1, 1.0, 1.0)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "fit", fit)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", killed)
    monkeypatch.setattr(study, "reached", lambda *_: "other code")
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
    fitted = recipes.Fitted(model, pd.DataFrame({"loss": [1.0, 0.5]}), 1, last, 1, 1.0, 1.0)
    table = own._test(fitted).set_index(["utterance", "condition", "snr_db"])
    best, final = (table[table["checkpoint"] == name]["logits"] for name in ("best", "last"))
    assert len(best) == 16 * 31 and len(final) == 16 * 6 and final.index.isin(best.index).all()
    np.testing.assert_array_equal(np.stack(best[final.index]), -np.stack(final))
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
        ({"changes": "teacher__pretraining_epochs=1"}, "pass its folder with --speech-dir"),
        ({"changes": "teacher__epoch=1"}, "epoch for the teacher.*epochs"),
        ({"protocol": "leave-one-out"}, "no protocol 'leave-one-out'"),
        ({"profile": "huge"}, "'huge'.*tiny, paper"),
        ({"changes": "stages='three'"}, "^stages='three': choose one of 'joint', 'two-stage'"),
        ({"changes": "noise__train_types=('white', 'hum')"}, "^No noise hum to train on: choose among babble, white"),
        ({"corpus": "iemocop"}, "'iemocop'.*iemocap"),
    ],
)
def test_a_wrong_argument_is_one_error_that_names_the_right_ones(tones, options, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**{"corpus": "manifest", "data_root": str(tones)} | options)


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
        (f"depths=(1, {LAYERS + 1})", f"depths=(1, {LAYERS + 1})"),
        ("depths=(0,)", "depths=(0,)"),
    ],
)
def test_a_layer_the_teacher_lacks_is_an_error_before_anything_is_read(monkeypatch, changes, asked):
    def read(*_):
        pytest.fail("the corpus was read first")

    monkeypatch.setattr(study, "load_corpus", read)
    with pytest.raises(ValueError, match=f"^{re.escape(asked)}: .*layers 1 to {LAYERS}\\b") as caught:
        Experiment(changes=changes)
    assert caught.value.__context__ is None


def test_the_depth_that_counts_is_the_changed_teachers():
    with pytest.raises(ValueError, match=rf"^levels=.*layers 1 to {LAYERS - 1}\b"):
        Experiment(changes=f"teacher__layers={LAYERS - 1}")
    with pytest.raises(ValueError, match=f"network has {LAYERS} layers, not {LAYERS + 1}"):
        Experiment(changes=f"teacher__layers={LAYERS + 1}")


def test_an_unknown_row_is_one_error_that_names_those_there_are(experiment, no_training):
    with pytest.raises(ValueError) as caught:
        experiment().run("gama-10")
    message = str(caught.value)
    assert message.startswith("No row 'gama-10': choose among a, b, c, d, e, ") and "--speech-dir" in message
    assert all(name in message for name in experiment().rows) and caught.value.__context__ is None
    with pytest.raises(ValueError, match="^No row 'unlabelled'"):
        experiment().run("unlabelled")


def test_the_card_is_ready_for_json(experiment):
    card = experiment().card()
    assert json.loads(json.dumps(card)) == card
    assert card["noise"].startswith("generated: ") and card["synthetic"] is False and card["optimistic"] is False


def test_a_record_says_what_trains_it_and_the_command_takes_it(trained, experiment, tones):
    command = shlex.split(trained[1]["e-unseen"].info["command"].replace("DATA", str(tones)))
    options = parser().parse_args(command[1:])
    assert (options.command, options.rows, options.fold, options.seed) == ("train", ["e-unseen"], 1, 0)
    options.results = str(trained[0].folder.parent)
    again = _study("e-unseen", options)
    assert again.fingerprint("e-unseen") == trained[1]["e-unseen"].info["fingerprint"]
    assert trained[1]["e-unseen"].info["processes"] == 1
