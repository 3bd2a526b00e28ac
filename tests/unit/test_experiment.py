"""Experiments: variants trained on a corpus of one's own, records that are read again, and what makes them stale."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from ser_kd_utils.cli import main
from ser_kd_utils.cli import parser as commands
from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.methods import METHODS
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.methods.mlkd.settings import MLKDSettings
from ser_kd_utils.methods.teacher.encoders import build_teacher
from ser_kd_utils.methods.teacher.experiment import TeacherExperiment
from ser_kd_utils.methods.teacher.settings import TeacherSettings
from ser_kd_utils.training import experiment as base
from ser_kd_utils.training.loop import Fitted

RATE = 16_000
TEACHER, MLKD = TeacherSettings.of("tiny"), MLKDSettings.of("tiny")
DEPTH = TEACHER.num_hidden_layers
OTHER_TEACHER = f"teacher.max_grad_norm={TEACHER.max_grad_norm / 2}"

pytestmark = pytest.mark.usefixtures("little_garbage")


class Trained(Exception):
    """Raised in the place of a training."""


@pytest.fixture(scope="module")
def experiment(tones, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")

    def experiment(overrides: str = "", make=MLKDExperiment, **options):
        epochs = "mlkd.epochs=1, teacher.epochs=1" + (f", {overrides}" if overrides else "")
        given = {"data_root": str(tones), "results": str(results), "overrides": epochs} | options
        return make("manifest", "tiny", **given)

    return experiment


@pytest.fixture(scope="module")
def trained(experiment):
    """Some variants, and every noise segment that each of them asked for: (noise type, utterance, part, last key)."""
    first, runs, asked = experiment(), {}, {}
    for name in ("a", "c", "e", "e-unseen"):
        asked[name] = []
        own = first.teachers if name == "a" else first
        segment = NoiseBank.segment.__get__(own.noise)

        def spy(kind, part, samples, utterance, seed, when, segment=segment):
            list(asked.values())[-1].append((kind, utterance, part, when))
            return segment(kind, part, samples, utterance, seed, when)

        own.noise.segment = spy
        runs[name] = own.run(name)
    return first, runs, asked


@pytest.fixture
def no_training(monkeypatch, trained):
    def fit(*_, **__):
        raise Trained

    monkeypatch.setattr(base, "fit", fit)


def test_babble_is_that_of_the_training_speech(experiment):
    one = experiment()
    assert one.noise.fingerprint == NoiseBank.generated([one.audio[utterance] for utterance in one.train]).fingerprint


# --- what a variant leaves behind


def test_each_variant_leaves_a_whole_record(trained):
    experiment, runs, _ = trained
    grid = {(kind, snr) for kind in experiment.noise.types for snr in experiment.noise_settings.test_snr_db}
    assert len(grid) == 5 * 4
    for name, run in runs.items():
        about, table = run.info, run.predictions
        keys = "method", "variant", "corpus", "profile", "fold", "seed"
        assert [about[key] for key in keys] == ["teacher" if name == "a" else "mlkd", name, "corpus", "tiny", 1, 0]
        assert run.id == f"{about['method']}__{name}__fold-1__seed-0" and run.folder.parents[1].name.startswith(
            "corpus-tiny"
        )
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
    layers = [runs[name].info["settings"]["mlkd"]["teacher_layers"] for name in "ce"]
    assert layers == [[], list(experiment.settings.teacher_layers)]
    assert "feature" in runs["e"].history and "feature" not in runs["c"].history


def test_the_settings_that_were_used_are_recorded(trained):
    _, runs, _ = trained
    assert runs["a"].info["settings"]["teacher"]["epochs"] == 1
    assert runs["e"].info["settings"]["mlkd"]["gamma"] == MLKD.gamma
    assert runs["e"].info["settings"]["noise"]["speech_level"] == "active"
    assert [run.info["overrides"] for run in runs.values()] == ["mlkd.epochs=1, teacher.epochs=1"] * 4
    protocol = runs["e"].info["protocol"]
    assert protocol["mark"] == ""
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
    held_out, types = experiment.held_out_noise("e-unseen"), set(experiment.noise.types)
    for row, training in (("e", types), ("e-unseen", types - {held_out})):
        kinds = {part: {kind for kind, _, this, _ in asked[row] if this == part} for part in ("train", "test")}
        assert kinds == {"train": training, "test": types}
        about = runs[row].info
        assert set(about["train_noise"]) == training and about["held_out_noise"] == (
            held_out if row == "e-unseen" else ""
        )
        assert set(runs[row].predictions["condition"]) == {"clean", *types}
    assert held_out in types


# --- noise, speech and stored outputs


def test_each_fold_holds_out_another_noise_type(experiment):
    types = experiment().noise.types
    held_out = []
    for fold in range(1, 6):
        own = experiment(fold=fold)
        held_out.append(own.held_out_noise("e-unseen"))
        assert own.held_out_noise("c-unseen") == held_out[-1] and own.held_out_noise("e") == ""
        assert own.train_noise("c-unseen") == [kind for kind in types if kind != held_out[-1]]
        assert own.train_noise("e") == list(types) and own.teachers.train_noise("a") == []
    assert sorted(held_out) == sorted(types)


def test_only_the_noise_types_of_the_settings_are_heard_in_training(experiment):
    own = experiment("noise.train_types=('white', 'pink')")
    assert own.train_noise("e") == ["white", "pink"]
    assert own.dataset("c").types == ["white", "pink"] and own.teachers.dataset("a").noise is None
    asked, segment = set(), own.noise.segment
    own.noise.segment = lambda kind, *rest: asked.add(kind) or segment(kind, *rest)
    own._dev_scores("e")(build_teacher(TEACHER, own.labels))
    assert asked == {"white", "pink"}


def test_speech_that_is_not_used_does_not_count(experiment, speech):
    assert experiment(speech_dir=str(speech)).fingerprint("e") == experiment().fingerprint("e")
    elsewhere = experiment(speech_dir="no such folder")
    assert elsewhere.fingerprint("e") == experiment().fingerprint("e")


def test_a_held_out_type_is_one_that_mlkd_hears(experiment):
    for fold in (1, 2):
        own = experiment("noise.train_types=('white', 'pink')", fold=fold)
        assert sorted([own.held_out_noise("e-unseen"), *own.train_noise("e-unseen")]) == ["pink", "white"]


def test_the_only_noise_type_cannot_be_held_out(experiment):
    own = experiment("noise.train_types=('white',)", fold=2)
    assert "e" in own.variants and not {"c-unseen", "e-unseen"} & own.variants.keys()


def test_the_teacher_is_asked_once_for_all_variants_methods_and_processes(experiment, trained, monkeypatch):
    """Its outputs lie beside the records' checkpoints; nobody has to load the speech again to read them."""
    places = {path.name for path in (trained[0].folder / "unfinished").glob("teacher-outputs-*")}
    assert len(places) == 1  # of (e) and e-unseen
    assert re.fullmatch("teacher-outputs-fold-1__seed-0-[0-9a-f]{16}", *places)  # which a finished fold can do without
    monkeypatch.setattr("ser_kd_utils.training.dataset._ask", None)
    for name, layers in (("d", (3,)), ("e", (1, 2, 3)), ("levels-ends", (1, 3)), ("gamma-10", (1, 2, 3))):
        data = experiment().dataset(name)
        assert data.states.layers == (1, 2, 3) and data.layers == layers
        assert data.targets["teacher_logits"].shape == (24, 4) and len(data.states.states) == 24
    monkeypatch.undo()
    own = experiment(fold=2)
    own.teachers.run = lambda name: trained[1]["a"]  # another fold's speech, whoever answers
    assert set(own.teachers.outputs().logits) == set(own.train)
    assert {path.name for path in (own.folder / "unfinished").glob("teacher-outputs-*")} > places
    assert len([*(own.folder / "unfinished").glob("teacher-outputs-fold-2__seed-0-*")]) == 1


# --- what is read again, and what is not


@pytest.mark.parametrize("name", ["a", "c", "e", "e-unseen"])
def test_a_second_run_reads(experiment, trained, no_training, name):
    run = experiment(make=TeacherExperiment if name == "a" else MLKDExperiment).run(name)
    pd.testing.assert_frame_equal(run.predictions, trained[1][name].predictions)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("e", {"overrides": f"mlkd.gamma={2 * MLKD.gamma}"}),
        ("a", {"overrides": OTHER_TEACHER}),
        ("e", {"overrides": OTHER_TEACHER}),
        ("a", {"seed": 1}),
        ("a", {"fold": 2}),
        ("d", {}),
        ("e-unseen", {"fold": 2}),
        ("gamma-10", {}),
    ],
)
def test_other_settings_train_another_model(experiment, trained, no_training, name, options):
    with pytest.raises(Trained):
        experiment(make=TeacherExperiment if name == "a" else MLKDExperiment, **options).run(name)


def test_a_record_made_under_other_conditions_is_trained_again(experiment, trained, no_training, monkeypatch):
    monkeypatch.setattr(base, "code_of", lambda *_: "other code")
    with pytest.raises(Trained):
        experiment(make=TeacherExperiment).run("a")


def test_a_fingerprint_notices_each_ingredient(experiment, tmp_path, monkeypatch):
    noises = tmp_path / "noise"
    noises.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(noises / "hum_1.wav", rng.normal(0, 0.1, 3 * RATE), RATE)
    recorded = {"noise_dir": str(noises)}  # generated babble depends on the fold, too
    prints = {
        "as is": experiment(**recorded).fingerprint("e"),
        "variant": experiment(**recorded).fingerprint("d"),
        "settings": experiment(f"mlkd.lr={2 * MLKD.lr}", **recorded).fingerprint("e"),
        "teacher": experiment(OTHER_TEACHER, **recorded).fingerprint("e"),
        "fold": experiment(fold=2, **recorded).fingerprint("e"),
        "seed": experiment(seed=1, **recorded).fingerprint("e"),
        "noise": experiment().fingerprint("e"),
    }
    monkeypatch.setattr(base, "code_of", lambda *_: "other code")
    prints["code"] = experiment(**recorded).fingerprint("e")
    monkeypatch.undo()
    (tmp_path / "ser_metrics.py").write_text((base.MODULE / "ser_metrics.py").read_text().replace("recalls", "means"))
    monkeypatch.setattr(base, "MODULE", tmp_path)
    prints["scores"] = experiment(**recorded).fingerprint("e")
    monkeypatch.undo()
    assert len(set(prints.values())) == len(prints)
    assert experiment(**recorded).fingerprint("e") == prints["as is"]


def test_a_fingerprint_notices_the_audio(tones, tmp_path):
    copy = shutil.copytree(tones.parent, tmp_path / "copy") / "corpus.csv"

    def fingerprint(manifest, place):
        return TeacherExperiment("manifest", data_root=str(manifest), results=str(tmp_path / place)).fingerprint("a")

    before = fingerprint(copy, "here")
    assert before == fingerprint(tones, "there")  # wherever it lies
    wave, _ = soundfile.read(copy.with_name("sad-5-1.wav"))
    soundfile.write(copy.with_name("sad-5-1.wav"), -wave, RATE)
    assert before != fingerprint(copy, "here")


def test_a_fingerprint_counts_the_code_of_its_own_room_and_none_of_what_only_names_it():
    """What is not reached, or counts by what it gave, can change without a training."""
    code = set(base.code_of(MLKDExperiment.__module__, MLKDExperiment.code_by_value()))
    own = {"ser_kd_utils.methods.mlkd.loss", "ser_kd_utils.methods.mlkd.model", "ser_kd_utils.training.loop"}
    own |= {"ser_kd_utils.methods.teacher.encoders", "ser_kd_utils.data.noise", "ser_kd_utils.data.audio"}
    assert own <= code
    assert not [name for name in code if "dkdfmh" in name or "mckd" in name or ".corpora" in name]
    ends = (
        "ser_kd_utils",
        "methods",
        "mlkd",
        "base",
        "settings",
        "variants",
        "records",
        "files",
        "fingerprint",
        "tables",
    )
    assert not [name for name in code if name.rpartition(".")[2] in ends]
    for method in METHODS.values():
        reached = base.code_of(method.experiment_class.__module__, method.experiment_class.code_by_value())
        assert f"{method.package}.experiment" in reached


def test_a_teacher_without_weights_is_trained_again_to_the_same(experiment, trained):
    _, runs, _ = trained
    teacher = experiment().teachers.teacher()
    heads = experiment().student("e").heads.state_dict()
    wanted = runs["a"].predictions
    shutil.rmtree(runs["a"].folder / "model")
    student = experiment().student("e")  # as in a clone: the record is here, the weights are not
    again = experiment().teachers.teacher()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in teacher.state_dict().items())
    pd.testing.assert_frame_equal(experiment().teachers.run("a").predictions, wanted)
    # the student's fresh weights do not depend on whether its teacher was read or trained
    assert all(torch.equal(value, heads[name]) for name, value in student.heads.state_dict().items())
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_a_training_killed_before_its_record_leaves_the_old_weights(experiment, trained, monkeypatch):
    own = experiment(make=TeacherExperiment)
    before = own.teacher().state_dict()
    other = {name: -value for name, value in before.items()}

    def fit(model, *_, **__):
        model.load_state_dict(other)
        return Fitted(model.eval(), pd.DataFrame({"loss": [1.0]}), 1, other, 1, 1.0, 1.0)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "fit", fit)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", killed)
    monkeypatch.setattr(base, "code_of", lambda *_: "other code")
    with pytest.raises(KeyboardInterrupt):
        experiment(make=TeacherExperiment).run("a")
    monkeypatch.undo()
    assert own.run("a").complete(own.fingerprint("a"))
    assert all(torch.equal(value, before[name]) for name, value in own.teacher().state_dict().items())


def test_train_reads_what_is_recorded_and_prints_its_scores(trained, no_training, capsys):
    experiment, runs, _ = trained
    places = ["--data-root", experiment.options["data_root"], "--results", experiment.options["results"]]
    few = ["--set", "mlkd.epochs=1", "--set", "teacher.epochs=1"]
    assert main(["train", "a", "e", "--corpus", "manifest", *places, *few]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, line, place in zip("ae", lines[::2], lines[1::2], strict=True):
        best = runs[name].predictions.query("checkpoint == 'best' and not snr_db < 0")
        right = best.assign(right=best["prediction"] == best["label"], noisy=best["condition"] != "clean")
        clean, noisy = 100 * right.groupby(["noisy", "label"])["right"].mean().groupby("noisy").mean()
        assert line == f"{name}: UA clean {clean:.1f}, noisy {noisy:.1f}; epoch 1 of 1"
        assert place == f"  {runs[name].folder}"


def test_best_and_last_epoch_are_told_apart(experiment, trained):
    """With a last epoch whose classifier is turned round, its rows are the best epoch's, negated."""
    own = experiment(make=TeacherExperiment)
    model = own.teacher()
    given = {name: value.clone() for name, value in model.state_dict().items()}
    last = dict(given)
    for name in ("classifier.weight", "classifier.bias"):
        last[name] = -given[name]
    fitted = Fitted(model, pd.DataFrame({"loss": [1.0, 0.5]}), 1, last, 1, 1.0, 1.0)
    table = own._test(fitted, []).set_index(["utterance", "condition", "snr_db"])
    best, final = (table[table["checkpoint"] == name]["logits"] for name in ("best", "last"))
    assert len(best) == 16 * 21 and len(final) == 16 * 6 and final.index.isin(best.index).all()
    np.testing.assert_array_equal(np.stack(best[final.index]), -np.stack(final))
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())  # what will be saved


# --- names and errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 6}, "no fold 6; folds: 1 to 5"),
        ({"fold": 0}, "no fold 0; folds: 1 to 5"),
        ({"overrides": "mlkd.gama=1"}, "Unknown setting mlkd.gama.*gamma"),
        ({"overrides": "mlkd.epochs='two'"}, "mlkd.epochs='two': "),
        ({"overrides": "epochs=2"}, "is not a list of settings such as mlkd.epochs=2"),
        ({"overrides": "mlkd.unlabelled_speech=True"}, r"pass its folder \(--speech-dir\)"),
        ({"overrides": "teacher.epoch=1"}, "teacher.epoch.*epochs"),
        ({"profile": "huge"}, "'huge'.*tiny, whisper, paper"),
        ({"overrides": "mlkd.stages='three'"}, "^mlkd.stages='three': .*'joint' or 'two-stage'"),
        ({"overrides": "noise.train_types=('hum',)"}, "^No noise hum to train on: choose among babble, white"),
        ({"corpus": "iemocop"}, "'iemocop'.*iemocap"),
        ({"name": "emodb"}, "^emodb is a corpus of the suite: pass another name for yours .--name"),
    ],
)
def test_a_wrong_argument_is_one_error_that_names_the_right_ones(tones, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        MLKDExperiment(**{"corpus": "manifest", "data_root": str(tones), "results": str(tmp_path)} | options)


@pytest.mark.parametrize(
    "asked",
    [
        f"teacher_layers=(1, {DEPTH + 1})",
        "teacher_layers=()",
        "teacher_layers=(2, 2)",
        "teacher_layers=(2, 1)",
        f"student_layers={DEPTH + 1}",
        f"depths=(1, {DEPTH + 1})",
    ],
)
def test_a_layer_the_teacher_lacks_is_an_error_before_anything_is_read(monkeypatch, asked):
    def read(*_):
        pytest.fail("the corpus was read first")

    monkeypatch.setattr(base, "load_corpus", read)
    with pytest.raises(ValueError, match=rf"^mlkd\.{re.escape(asked.split('=')[0])}=.*layers 1 to {DEPTH}\b"):
        MLKDExperiment(overrides=f"mlkd.{asked}")


def test_an_unknown_variant_is_one_error_that_names_those_there_are(experiment, no_training):
    with pytest.raises(ValueError) as caught:
        experiment().run("gama-10")
    message = str(caught.value)
    assert message.startswith("No variant 'gama-10': choose among b, c, d, e, ")
    assert all(name in message for name in experiment().variants) and caught.value.__context__ is None
    with pytest.raises(ValueError, match="^No variant 'unlabelled'"):
        experiment().run("unlabelled")


def test_two_corpora_of_ones_own_never_share_a_folder(tones, tmp_path):
    """Though their files have one name; the name that is asked for parts them."""
    other = shutil.copytree(tones.parent, tmp_path / "other") / "corpus.csv"
    given = {"corpus": "manifest", "results": str(tmp_path / "results")}
    first = TeacherExperiment(data_root=str(tones), **given)
    assert first.folder.name == "corpus-tiny" and first.name == "corpus" and first.corpus.name == "manifest"
    assert json.loads((first.folder / "corpus.json").read_text()) == {"manifest": str(tones)}
    assert TeacherExperiment(data_root=str(tones), **given).folder == first.folder
    with pytest.raises(ValueError, match=f"corpus-tiny is of {tones}: pass another name for {other} .--name"):
        TeacherExperiment(data_root=str(other), **given)
    second = TeacherExperiment(data_root=str(other), name="mine", **given)
    assert second.folder.name == "mine-tiny" and second.name == "mine"
    assert second.teachers.folder == second.folder
    with pytest.raises(ValueError, match="mine-tiny is of .*: pass another name"):
        TeacherExperiment(data_root=str(tones), name="mine", **given)
    told = commands().parse_args(shlex.split(second.command("a"))[1:])
    assert (told.corpus, told.data_root, told.name, told.fold) == ("manifest", "DATA", "mine", 1)


def test_the_card_is_ready_for_json(experiment):
    card = experiment().card()
    assert json.loads(json.dumps(card)) == card
    assert card["noise"].startswith("generated: ") and card["synthetic"] is False and card["optimistic"] is False


def test_a_record_says_what_trains_it(trained, experiment):
    about = trained[1]["e-unseen"].info
    assert shlex.split(about["command"]) == [
        "ser-kd", "train", "e-unseen", "--corpus", "manifest", "--fold", "1", "--seed", "0", "--data-root", "DATA",
        "--set", "mlkd.epochs=1, teacher.epochs=1",
    ]  # fmt: skip
    told = commands().parse_args(shlex.split(about["command"])[1:])
    assert (told.variant, told.overrides) == (["e-unseen"], ["mlkd.epochs=1, teacher.epochs=1"])
    assert about["processes"] == 1 and about["fingerprint"] == experiment().fingerprint("e-unseen")
    assert about["teacher_fingerprint"] == trained[1]["a"].info["fingerprint"]
    assert MLKDExperiment(seed=3).command("e") == "ser-kd train e --fold 1 --seed 3"
