"""What the training of each row is given: its own change and nothing else, shared targets, and what its record says."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import soundfile
import torch

from ser_kd_utils import recipes, study
from ser_kd_utils.pieces import UNLABELLED
from ser_kd_utils.recipes import ROWS, Experiment
from ser_kd_utils.rows import PRETRAINING_EPOCHS
from ser_kd_utils.settings import settings_of

RATE = 16_000
CHANGES = "lr=2e-3, weight_decay=0.02, betas=(0.8, 0.95), teacher__lr_encoder=3e-3, teacher__lr_head=4e-3"
"""The profile gives teachers and students the same values."""
TEACHER, MLKD, *_ = settings_of("tiny", CHANGES)
WHOLE = (1, 2, 3)

# What a row's training is given otherwise than that of (e).
PARTS = {
    "levels-ends": {"levels": (1, 3), "asked": ("a", (1, 3))},
    "gamma-0.1": {"gamma": 0.1},
    "gamma-10": {"gamma": 10.0},
    "l1-only": {"cosine_weight": 0.0},
    "cosine-only": {"l1_weight": 0.0},
    "logits": {"logit_weight": 1.0},
    "two-stage": {"stages": "two-stage"},
    "depth-2": {"student_layers": 2, "depth": 2},
    "depth-3": {"student_layers": 3, "depth": 3},
    "cnn-gradient-0": {"cnn_gradient": 0.0, "cnn gradient": 0.0},
    "cnn-gradient-1": {"cnn_gradient": 1.0, "cnn gradient": 1.0},
    "clean-and-noisy": {"clean_share": 0.5, "heard clean": 0.5},
    "piece-targets": {"targets": "piece", "asked": None, "teacher": "a"},
    "noisy-teacher": {"targets": "noisy piece", "asked": None, "teacher": "a", "hears noise": True},
    "untuned-teacher": {"target_network": "untuned", "asked": ("before a", WHOLE)},
    "unlabelled": {"utterances": 27},
}
# What the trainings of both rows of a situation are given otherwise than those of (c) and (e).
SITUATED = {
    "random-start": {"initial": "random", "start": "other"},
    "few-labels": {"label_share": 0.25, "told": 8},
    "long": {"epochs": 2 * MLKD.epochs},
    "unseen": {"noise": ("white", "pink", "low-band", "high-band")},
    "pretrained": {"start": "a-pretrained"},
}


class Given(SimpleNamespace):
    """Named values that do not print their tensors when a test fails."""

    __repr__ = object.__repr__


def state(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    """In all that both have: a student has fewer layers than its teacher."""
    shared = one.keys() & other.keys()
    assert "projector.weight" in shared
    return all(torch.equal(one[name], other[name]) for name in shared)


@pytest.fixture(scope="module")
def declared(tones, speech, tmp_path_factory):
    """An experiment whose rows were all run with a training that moves every weight a little, and what each was given.

    fits: by row, the arguments of its training and `start`, the network's weights before it. asked: each teacher whose
    targets were computed, with levels and utterances. pretrained: the arguments of each pre-training. known: weights of
    teachers before and after their training.
    """
    given = Given(fits={}, asked=[], pretrained=[])
    compute = recipes.teacher_targets

    def move(network, distance):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(distance)

    def fit(model, objective, train, dev, settings, *, folder, **others):
        network = getattr(model, "student", model)
        given.fits[names[folder.name.partition("@")[0]]] = Given(
            model=model, network=network, start=state(network), objective=objective, pieces=train, settings=settings,
            **others,
        )  # fmt: skip
        move(network, 0.001)
        history = pd.DataFrame({"loss": [1.0]}, index=pd.RangeIndex(1, 2, name="epoch"))
        return recipes.Fitted(model.eval(), history, 1, model.state_dict(), len(train), 2.0, 1.0)

    def teacher_targets(teacher, audio, utterances, levels, folder):
        targets = compute(teacher, audio, utterances, levels, folder)
        given.asked.append(Given(weights=state(teacher), levels=levels, utterances=utterances, targets=targets))
        return targets

    def pretrain(encoder, audio, utterances, **others):
        given.pretrained.append(Given(utterances=utterances, sound=audio, **others))
        move(encoder, 0.01)

    def scale_cnn_gradient(network, factor):
        network.cnn_gradient = factor

    with pytest.MonkeyPatch.context() as patch:
        for stand_in in (fit, teacher_targets, pretrain):
            patch.setattr(recipes, stand_in.__name__, stand_in)
        patch.setattr(recipes.wav2vec2, "scale_cnn_gradient", scale_cnn_gradient)
        patch.setattr(study.records, "environment", dict)
        patch.setattr(Experiment, "_test", lambda *_: pd.DataFrame({"utterance": ["u"]}))
        results = str(tmp_path_factory.mktemp("declared"))
        experiment = Experiment(
            "manifest", data_root=str(tones), speech_dir=str(speech), results=results, changes=CHANGES
        )
        names = {experiment._run_folder(name).name: name for name in experiment.rows}
        given.runs = {name: experiment.run(name) for name in experiment.rows}
        given.known = {row: state(experiment.teacher(row)) for row in ("a", "a-pretrained")}
    given.known["before a"] = given.fits["a"].start
    return experiment, given


def rates(fit) -> list[tuple]:
    """The optimiser, and each of its groups with the parts of the network in it."""
    part = {id(weight): name.split(".")[0] for name, weight in fit.model.named_parameters()}
    groups = [{part.pop(id(weight)) for weight in group["params"]} for group in fit.optimiser.param_groups]
    assert not part  # every weight is learnt
    return [
        (type(fit.optimiser), group["lr"], group["weight_decay"], group["betas"], parts)
        for group, parts in zip(fit.optimiser.param_groups, groups, strict=True)
    ]


def conditions(declared, name: str) -> dict:
    """What the training of a row was given, in words."""
    _, given = declared
    fit = given.fits[name]

    def who(weights) -> str:
        (found,) = [row for row, its in given.known.items() if equal(its, weights)] or ["other"]
        return found

    asked = [each for each in given.asked if each.targets is fit.pieces.targets]
    assert len(asked) == (fit.pieces.targets is not None)
    return dataclasses.asdict(fit.settings) | {
        "objective": type(fit.objective).__name__,
        "levels": getattr(fit.objective, "levels", ()),
        "asked": (who(asked[0].weights), asked[0].levels) if asked else None,
        "teacher": who(state(fit.teacher)) if fit.teacher else "",
        "hears noise": fit.teacher_hears_noise,
        "start": who(fit.start),
        "depth": fit.network.config.num_hidden_layers,
        "cnn gradient": fit.network.cnn_gradient,
        "utterances": len(fit.pieces),
        "told": sum(label != UNLABELLED for label in fit.pieces.labels.values()),
        "noise": fit.pieces.noise and fit.pieces.types,
        "snr": fit.pieces.snr_db,
        "heard clean": fit.pieces.clean_share,
        "seconds heard": fit.pieces.longest / RATE,
        "rates": [group[:-1] for group in rates(fit)],
        "seeds": (fit.seed, fit.pieces.seed),
        "level": fit.level,
    }


def difference(declared, one: str, other: str) -> dict:
    ours, theirs = conditions(declared, one), conditions(declared, other)
    return {name: value for name, value in ours.items() if value != theirs[name]}


def test_mlkd_is_trained_as_its_settings_say(declared):
    assert conditions(declared, "e") == dataclasses.asdict(MLKD) | {
        "objective": "MultiLevel",
        "levels": WHOLE,
        "asked": ("a", WHOLE),
        "teacher": "",
        "hears noise": False,
        "start": "a",
        "depth": 1,
        "cnn gradient": 0.1,
        "utterances": 24,
        "told": 24,
        "noise": ("babble", "white", "pink", "low-band", "high-band"),
        "snr": (0.0, 20.0),
        "heard clean": 0.0,
        "seconds heard": 2.0,
        "rates": [(torch.optim.AdamW, MLKD.lr, MLKD.weight_decay, MLKD.betas)],
        "seeds": (0, 0),
        "level": "active",
    }
    without = {"objective": "CrossEntropy", "levels": (), "asked": None}
    assert difference(declared, "d", "e") == {"levels": (3,), "asked": ("a", (3,))}
    assert difference(declared, "c", "e") == without
    assert difference(declared, "b", "c") == {"depth": 3}


def test_the_encoder_and_the_head_of_a_teacher_learn_at_rates_of_their_own(declared):
    same = TEACHER.weight_decay, TEACHER.betas
    assert rates(declared[1].fits["a"]) == [
        (torch.optim.AdamW, TEACHER.lr_encoder, *same, {"wav2vec2"}),
        (torch.optim.AdamW, TEACHER.lr_head, *same, {"projector", "classifier"}),
    ]


def test_the_training_of_a_part_row_differs_from_mlkds_in_that_part_alone(declared):
    parts = {name for name, row in declared[0].rows.items() if row.group == "part"}
    assert {name: difference(declared, name, "e") for name in parts} == PARTS


@pytest.mark.parametrize("situation", SITUATED)
def test_the_trainings_of_a_situation_differ_in_distillation_alone(declared, situation):
    control, distilled = f"c-{situation}", f"e-{situation}"
    wanted = dict(SITUATED[situation])
    assert difference(declared, control, "c") == wanted
    if situation == "pretrained":
        wanted["asked"] = "a-pretrained", WHOLE
    assert difference(declared, distilled, "e") == wanted
    assert difference(declared, distilled, control).keys() == difference(declared, "e", "c").keys()
    assert declared[1].fits[control].pieces.labels == declared[1].fits[distilled].pieces.labels


def test_students_of_one_shape_start_from_the_same_weights(declared):
    fits = declared[1].fits
    assert equal(fits["c"].start, fits["e"].start) and equal(fits["c"].start, fits["unlabelled"].start)
    random = [fits[name].start for name in ("c-random-start", "e-random-start")]
    assert equal(*random) and random[0].keys() == fits["c"].start.keys()


def test_the_untuned_teacher_is_the_network_that_a_started_from(declared):
    _, given = declared
    (untuned,) = [each.weights for each in given.asked if equal(each.weights, given.fits["a"].start)]
    assert untuned.keys() == given.fits["a"].start.keys() and not equal(untuned, given.known["a"])


def test_targets_are_computed_once_for_all_rows_that_ask_the_same(declared):
    _, given = declared
    asked = sorted((each.levels, len(each.utterances)) for each in given.asked)
    assert asked == [(WHOLE, 24), (WHOLE, 24), (WHOLE, 24), (WHOLE, 27), ((1, 3), 24), ((3,), 24)]  # 3 teachers
    users = [name for name, fit in given.fits.items() if fit.pieces.targets is given.fits["e"].pieces.targets]
    assert {"e", "gamma-10", "two-stage", "depth-3", "e-few-labels", "e-unseen"} <= set(users)


def test_a_pretrained_teacher_hears_the_training_speech_and_the_unlabelled_speech(declared):
    experiment, given = declared
    (once,) = given.pretrained
    assert (once.epochs, once.seed) == (PRETRAINING_EPOCHS, experiment.seed)
    assert sorted(once.utterances) == sorted([*experiment.train, "speech/200", "speech/500", "speech/800"])
    assert all(len(once.sound[utterance]) == RATE // 2 for utterance in once.utterances)
    encoder = given.fits["a"].start["wav2vec2.feature_projection.projection.weight"]
    moved = given.fits["a-pretrained"].start["wav2vec2.feature_projection.projection.weight"]
    torch.testing.assert_close(moved, encoder + 0.01)
    assert torch.equal(
        given.fits["a"].start["classifier.weight"], given.fits["a-pretrained"].start["classifier.weight"]
    )


def test_unlabelled_speech_is_heard_without_labels(declared):
    experiment, given = declared
    labels = given.fits["unlabelled"].pieces.labels
    assert {name: label for name, label in labels.items() if name in experiment.train} == given.fits["e"].pieces.labels
    assert {name: label for name, label in labels.items() if name not in experiment.train} == {
        f"speech/{hertz}": UNLABELLED for hertz in (200, 500, 800)
    }
    items = [given.fits["unlabelled"].pieces[i] for i in range(len(labels))]
    assert {item["label"] for item in items} == {0, 1, 2, 3, UNLABELLED} and all("states" in item for item in items)


def test_few_labels_are_the_same_share_of_each_class_for_every_row(declared, tones):
    own, given = declared
    rows = "c-few-labels", "e-few-labels"
    told, same = ({u: y for u, y in given.fits[row].pieces.labels.items() if y != UNLABELLED} for row in rows)
    assert told == same and list(given.fits[rows[0]].pieces.labels) == own.train
    assert all(own.labels[label] == own.label_of[utterance] for utterance, label in told.items())
    assert sorted(told.values()) == [0, 0, 1, 1, 2, 2, 3, 3]  # a quarter of 6 is 2
    other = Experiment("manifest", data_root=str(tones), seed=1)
    shares = {share: own.share_of_each_class(share, "told") for share in (0.01, 0.25, 0.5, 1.0)}
    assert set(told) == shares[0.25] != other.share_of_each_class(0.25, "told")
    assert shares[0.25] != own.share_of_each_class(0.25, "another purpose")
    assert shares[0.25] < shares[0.5] < shares[1.0] == set(own.train)
    assert len(shares[0.01]) == 4  # one of each class at least


def test_a_record_says_what_its_row_is_compared_with(declared):
    experiment, given = declared
    keys = "row", "title", "question", "group", "against", "situation", "variant", "train_noise", "held_out", "levels"
    types = list(experiment.noise.types)
    found = {name: tuple(run.info[key] for key in keys) for name, run in given.runs.items()}
    assert found["a"] == (
        "a", "teacher, clean", ROWS["a"].question, "", "", "", "clean", [], "", [])  # fmt: skip
    assert found["gamma-0.1"] == (
        "gamma-0.1", "gamma 0.1", "How much feature loss?", "part", "e", "", "gamma-0.1", types, "", [1, 2, 3]
    )  # fmt: skip
    situation = "a noise type not heard in training"
    assert found["c-unseen"] == (
        "c-unseen", f"(c), {situation}", "The control of the next row.", "", "", situation, "c-unseen", types[1:],
        types[0], [],
    )  # fmt: skip
    assert found["e-unseen"] == (
        "e-unseen", f"(e), {situation}", "What is distillation worth here?", "gain", "c-unseen", situation, "e-unseen",
        types[1:], types[0], [1, 2, 3],
    )  # fmt: skip
    assert given.runs["e"].info["settings"]["the noise"]["train_snr_db"] == [0, 20]
    speed = {name: given.runs[name].info["items_per_second"] for name in ("a", "e", "c-long", "unlabelled")}
    assert speed == {
        "a": 24 * TEACHER.epochs / 2,
        "e": 24 * MLKD.epochs / 2,
        "c-long": 24 * 2 * MLKD.epochs / 2,
        "unlabelled": 27 * MLKD.epochs / 2,
    }


def test_rows_that_need_unlabelled_speech_are_offered_with_a_folder_of_it_only(declared, tones):
    with_speech, without = declared[0].rows, Experiment("manifest", data_root=str(tones)).rows
    assert with_speech.keys() - without.keys() == {"unlabelled", "a-pretrained", "c-pretrained", "e-pretrained"}


def test_no_two_rows_share_a_fingerprint_or_a_folder(declared):
    experiment, given = declared
    assert len({experiment.fingerprint(name) for name in experiment.rows}) == len(experiment.rows) > 30
    assert len({run.folder for run in given.runs.values()}) == len(experiment.rows)
    assert all(run.complete(experiment.fingerprint(name)) for name, run in given.runs.items())


def fingerprints(experiment) -> dict[str, str]:
    return {name: experiment.fingerprint(name) for name in experiment.rows}


@pytest.fixture
def stale(declared, tones):
    """The rows whose fingerprint is another now, in a new experiment on this folder of speech."""
    before = fingerprints(declared[0])

    def stale(folder) -> set[str]:
        after = fingerprints(Experiment("manifest", data_root=str(tones), speech_dir=str(folder), changes=CHANGES))
        return {name for name, value in before.items() if after[name] != value}

    return stale


def test_other_speech_makes_the_rows_that_hear_it_stale_and_no_other(stale, speech, tmp_path):
    louder = shutil.copytree(speech, tmp_path / "speech")
    assert stale(louder) == set()
    wave, _ = soundfile.read(louder / "200.wav")
    soundfile.write(louder / "200.wav", 2 * wave, RATE)
    assert stale(louder) == {"unlabelled", "a-pretrained", "c-pretrained", "e-pretrained"}


def test_other_code_for_pretraining_makes_pretrained_rows_stale_and_no_other(stale, speech, monkeypatch):
    own = study.reached
    monkeypatch.setattr(
        study, "reached", lambda *a: own(*a) | ({"new": ""} if "pretraining.pretrain" in own(*a) else {})
    )
    assert stale(speech) == {"a-pretrained", "c-pretrained", "e-pretrained"}
