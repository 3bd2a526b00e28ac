"""What the training of each variant of MLKD is given: its own change and nothing else, and what its record says."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import soundfile
import torch

from ser_kd_utils.methods import settings_of
from ser_kd_utils.methods.mlkd import experiment as mlkd
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.methods.teacher import experiment as teachers
from ser_kd_utils.methods.teacher.experiment import TeacherExperiment
from ser_kd_utils.training import experiment as base
from ser_kd_utils.training.loop import Fitted
from ser_kd_utils.training.losses import UNLABELLED

RATE = 16_000
OVERRIDES = (
    "mlkd.lr=2e-3, mlkd.weight_decay=0.02, mlkd.betas=(0.8, 0.95), teacher.lr_encoder=3e-3, teacher.lr_head=4e-3"
)
"""The profile gives teachers and students the same values."""
SETTINGS = settings_of("tiny", OVERRIDES)
TEACHER, MLKD = SETTINGS["teacher"], SETTINGS["mlkd"]
WHOLE = (1, 2, 3)

# What a variant's training is given otherwise than that of (e).
PARTS = {
    "levels-ends": {"teacher_layers": (1, 3)},
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
    "clean-and-noisy": {"clean_fraction": 0.5, "given clean": 0.5},
    "piece-targets": {"targets": "piece", "asked": None, "teacher": "a"},
    "noisy-teacher": {"targets": "noisy piece", "asked": None, "teacher": "a", "noisy targets": True},
    "untuned-teacher": {"target_network": "untuned", "asked": ("before a", WHOLE)},
    "unlabelled": {"unlabelled_speech": True, "utterances": 27},
}
# What the trainings of both variants of a situation are given otherwise than those of (c) and (e).
SITUATED = {
    "random-start": {"initial": "random", "start": "other"},
    "few-labels": {"label_fraction": 0.25, "labelled": 8},
    "long": {"epochs": 2 * MLKD.epochs},
    "unseen": {"noise": ["white", "pink", "low-band", "high-band"]},
}


NO_PREDICTIONS = pd.DataFrame({name: ["u"] for name in base.records.COLUMNS}).assign(snr_db=0.0, logits=[[1.0]])


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
    """An experiment whose variants were all run with a training that moves every weight a little, and what each was
    given.

    fits: by variant, the arguments of its training and `start`, the network's weights before it. asked: what each
    teacher was asked, by the folder of its outputs. known: weights of the teacher before and after its training.
    """
    given = Given(fits={}, asked={}, passes=[])
    compute = teachers.teacher_outputs

    def fit(model, objective, dataset, dev, settings, *, folder, **others):
        network = getattr(model, "student", model)
        given.fits[folder.name.split("__")[1]] = Given(
            model=model, network=network, start=state(network), objective=objective, dataset=dataset,
            settings=settings, **others,
        )  # fmt: skip
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.001 * len(dataset) / 24)  # another training set, other weights
        history = pd.DataFrame({"loss": [1.0]}, index=pd.RangeIndex(1, 2, name="epoch"))
        return Fitted(model.eval(), history, 1, model.state_dict(), len(dataset), 2.0, 1.0)

    def teacher_outputs(teacher, prepare_inputs, audio, utterances, layers, folder):
        given.passes += [] if folder.exists() else [(layers, len(utterances))]
        outputs = compute(teacher, prepare_inputs, audio, utterances, layers, folder)
        given.asked[id(outputs)] = Given(weights=state(teacher), layers=layers, outputs=outputs)
        return outputs

    def scale_cnn_gradient(network, factor):
        network.cnn_gradient = factor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "fit", fit)
        patch.setattr(teachers, "teacher_outputs", teacher_outputs)
        patch.setattr(mlkd, "scale_cnn_gradient", scale_cnn_gradient)
        patch.setattr(base.records, "environment", dict)
        patch.setattr(base.Experiment, "_test", lambda *_: NO_PREDICTIONS)
        results = str(tmp_path_factory.mktemp("declared"))
        experiment = MLKDExperiment(
            "manifest", data_root=str(tones), speech_dir=str(speech), results=results, overrides=OVERRIDES
        )
        given.runs = {"a": experiment.teachers.run("a")} | {name: experiment.run(name) for name in experiment.variants}
        given.known = {"a": state(experiment.teachers.teacher()), "before a": given.fits["a"].start}
    return experiment, given


def rates(fit) -> list[tuple]:
    """The optimizer, and each of its groups with the parts of the network in it."""
    named = fit.model.named_parameters()  # Whisper's table of positions is fixed
    part = {id(weight): name.split(".")[0] for name, weight in named if weight.requires_grad}
    learnt = ([each for each in group["params"] if each.requires_grad] for group in fit.optimizer.param_groups)
    groups = [{part.pop(id(weight)) for weight in some} for some in learnt]
    assert not part  # every weight is learnt
    return [
        (type(fit.optimizer), group["lr"], group["weight_decay"], group["betas"], parts)
        for group, parts in zip(fit.optimizer.param_groups, groups, strict=True)
    ]


def conditions(declared, name: str) -> dict:
    """What the training of a row was given, in words."""
    _, given = declared
    fit = given.fits[name]

    def who(weights) -> str:
        (found,) = [row for row, its in given.known.items() if equal(its, weights)] or ["other"]
        return found

    asked = given.asked[id(fit.dataset.states)] if fit.dataset.states else None
    assert not asked or set(fit.settings.teacher_layers) <= set(asked.layers)
    if asked:
        says = torch.stack([asked.outputs.logits[utterance] for utterance in fit.dataset.classes])
        assert torch.equal(fit.dataset.targets["teacher_logits"], says)
        assert fit.dataset.layers == fit.settings.teacher_layers
    assert getattr(fit.objective, "settings", fit.settings) == fit.settings
    return dataclasses.asdict(fit.settings) | {
        "objective": type(fit.objective).__name__,
        "heads": [int(layer) for layer in getattr(fit.model, "heads", {})] == list(fit.settings.teacher_layers),
        "asked": (who(asked.weights), asked.layers) if asked else None,
        "teacher": who(state(fit.teacher)) if getattr(fit, "teacher", None) else "",
        "noisy targets": getattr(fit, "noisy_targets", False),
        "start": who(fit.start),
        "depth": fit.network.config.num_hidden_layers,
        "cnn gradient": fit.network.cnn_gradient,
        "utterances": len(fit.dataset),
        "labelled": int((fit.dataset.labels != UNLABELLED).sum()),
        "noise": fit.dataset.noise and fit.dataset.types,
        "snr": fit.dataset.snr_db,
        "given clean": fit.dataset.clean_fraction,
        "seconds given": fit.dataset.longest / RATE,
        "rates": [group[:-1] for group in rates(fit)],
        "seeds": (fit.seed, fit.dataset.seed),
        "level": fit.speech_level,
    }


def difference(declared, one: str, other: str) -> dict:
    ours, theirs = conditions(declared, one), conditions(declared, other)
    return {name: value for name, value in ours.items() if value != theirs[name]}


def test_mlkd_is_trained_as_its_settings_say(declared):
    assert conditions(declared, "e") == dataclasses.asdict(MLKD) | {
        "objective": "MultiLevel",
        "heads": True,
        "asked": ("a", WHOLE),
        "teacher": "",
        "noisy targets": False,
        "start": "a",
        "depth": 1,
        "cnn gradient": 0.1,
        "utterances": 24,
        "labelled": 24,
        "noise": ["babble", "white", "pink", "low-band", "high-band"],
        "snr": (0.0, 20.0),
        "given clean": 0.0,
        "seconds given": 2.0,
        "rates": [(torch.optim.AdamW, MLKD.lr, MLKD.weight_decay, MLKD.betas)],
        "seeds": (0, 0),
        "level": "active",
    }
    without = {"objective": "CrossEntropy", "teacher_layers": (), "asked": None}
    assert difference(declared, "d", "e") == {"teacher_layers": (3,)}
    assert difference(declared, "c", "e") == without
    assert difference(declared, "b", "c") == {"depth": 3}


def test_the_encoder_and_the_head_of_a_teacher_learn_at_rates_of_their_own(declared):
    same = TEACHER.weight_decay, TEACHER.betas
    assert rates(declared[1].fits["a"]) == [
        (torch.optim.AdamW, TEACHER.lr_encoder, *same, {"encoder"}),
        (torch.optim.AdamW, TEACHER.lr_head, *same, {"projector", "classifier"}),
    ]


def test_the_training_of_a_component_differs_from_mlkds_in_that_part_alone(declared):
    parts = {name for name, variant in declared[0].variants.items() if variant.kind == "component"}
    assert {name: difference(declared, name, "e") for name in parts} == PARTS


@pytest.mark.parametrize("situation", SITUATED)
def test_the_trainings_of_a_situation_differ_in_distillation_alone(declared, situation):
    control, distilled = f"c-{situation}", f"e-{situation}"
    assert difference(declared, control, "c") == difference(declared, distilled, "e") == SITUATED[situation]
    assert difference(declared, distilled, control).keys() == difference(declared, "e", "c").keys()
    assert declared[1].fits[control].dataset.classes == declared[1].fits[distilled].dataset.classes


def test_students_of_one_shape_start_from_the_same_weights(declared):
    fits = declared[1].fits
    assert equal(fits["c"].start, fits["e"].start) and equal(fits["c"].start, fits["unlabelled"].start)
    random = [fits[name].start for name in ("c-random-start", "e-random-start")]
    assert equal(*random) and random[0].keys() == fits["c"].start.keys()


def test_the_untuned_teacher_is_the_network_that_a_started_from(declared):
    _, given = declared
    (untuned,) = [each.weights for each in given.asked.values() if equal(each.weights, given.fits["a"].start)]
    assert untuned.keys() == given.fits["a"].start.keys() and not equal(untuned, given.known["a"])


def test_a_teacher_is_asked_once_for_all_variants_that_ask_the_same(declared):
    """(a), the untuned one, the one of few labels, and (a) of unlabelled speech, too; of some of MLKD's layers with the
    others."""
    assert sorted(declared[1].passes) == [(WHOLE, 24), (WHOLE, 24), (WHOLE, 24), (WHOLE, 27)]


def test_the_controls_of_few_labels_know_no_more_than_their_teacher(declared):
    """Of the pair whose teacher was told a quarter, both start from it; pseudo-labels are what (a) answers."""
    experiment, given = declared
    fits = given.fits
    assert equal(fits["c-few-for-both"].start, fits["e-few-for-both"].start)
    assert not equal(fits["c-few-for-both"].start, fits["c-few-labels"].start)
    few = {u for u, label in fits["c-few-labels"].dataset.classes.items() if label != UNLABELLED}
    assert {*experiment.teachers.dataset("a-few-labels").classes} == few
    told = experiment.teachers.outputs(experiment.settings.teacher_layers).logits
    truth, pseudo = experiment.classes(experiment.train), fits["c-pseudo-labels"].dataset.classes
    assert pseudo == {u: truth[u] if u in few else int(told[u].argmax()) for u in experiment.train}


def test_unlabelled_speech_is_heard_without_labels(declared):
    experiment, given = declared
    labels = given.fits["unlabelled"].dataset.classes
    assert {name: label for name, label in labels.items() if name in experiment.train} == given.fits[
        "e"
    ].dataset.classes
    assert {name: label for name, label in labels.items() if name not in experiment.train} == {
        f"speech/{hertz}": UNLABELLED for hertz in (200, 500, 800)
    }
    batch = given.fits["unlabelled"].dataset.batch(range(len(labels)))
    assert set(batch["labels"].tolist()) == {0, 1, 2, 3, UNLABELLED} and len(batch["teacher_states"]) == 27


def test_few_labels_are_the_same_share_of_each_class_for_every_variant(declared, tones):
    own, given = declared
    datasets = [given.fits[name].dataset for name in ("c-few-labels", "e-few-labels")]
    told, same = ({u: y for u, y in data.classes.items() if y != UNLABELLED} for data in datasets)
    assert told == same and list(datasets[0].classes) == own.train
    assert all(own.labels[label] == own.label_of[utterance] for utterance, label in told.items())
    assert sorted(told.values()) == [0, 0, 1, 1, 2, 2, 3, 3]  # a quarter of 6 is 2
    other = TeacherExperiment("manifest", data_root=str(tones), seed=1)
    shares = {share: own.share_of_each_class(share, "told") for share in (0.01, 0.25, 0.5, 1.0)}
    assert set(told) == shares[0.25] != other.share_of_each_class(0.25, "told")
    assert shares[0.25] != own.share_of_each_class(0.25, "another purpose")
    assert shares[0.25] < shares[0.5] < shares[1.0] == set(own.train)
    assert len(shares[0.01]) == 4  # one of each class at least


def test_a_record_says_what_its_variant_is_compared_with(declared):
    experiment, given = declared
    keys = ("method", "variant", "title", "question", "kind", "role", "baseline", "situation", "train_noise")
    types = list(experiment.noise.types)
    found = {name: [run.info[key] for key in (*keys, "held_out_noise")] for name, run in given.runs.items()}
    question = "How far does a clean-speech model fall in noise?"
    assert found["a"] == ["teacher", "a", "teacher, clean", question, "main", "teacher", "", "", [], ""]
    question = "How much feature loss?"
    assert found["gamma-0.1"] == [
        "mlkd", "gamma-0.1", "gamma 0.1", question, "component", "student", "e", "", types, ""
    ]  # fmt: skip
    situation, question = "a noise type not heard in training", "The control of the next row."
    assert found["c-unseen"] == [
        "mlkd", "c-unseen", f"(c), {situation}", question, "control", "student", "", situation, types[1:], types[0]
    ]  # fmt: skip
    question = "What is distillation worth here?"
    assert found["e-unseen"] == [
        "mlkd", "e-unseen", f"(e), {situation}", question, "situation", "student", "c-unseen", situation, types[1:],
        types[0],
    ]  # fmt: skip
    assert given.runs["e"].info["settings"]["noise"]["train_snr_db"] == [0, 20]
    speed = {name: given.runs[name].info["items_per_second"] for name in ("a", "e", "c-long", "unlabelled")}
    assert speed == {
        "a": 24 * TEACHER.epochs / 2,
        "e": 24 * MLKD.epochs / 2,
        "c-long": 24 * 2 * MLKD.epochs / 2,
        "unlabelled": 27 * MLKD.epochs / 2,
    }


def test_variants_that_need_unlabelled_speech_are_offered_with_a_folder_of_it_only(declared, tones):
    with_speech, without = declared[0].variants, MLKDExperiment("manifest", data_root=str(tones)).variants
    assert with_speech.keys() - without.keys() == {"unlabelled"} and without.keys() < with_speech.keys()


def test_no_two_variants_share_a_fingerprint_or_a_folder(declared):
    experiment, given = declared
    assert len({experiment.fingerprint(name) for name in experiment.variants}) == len(experiment.variants) == 31
    assert len({run.folder for run in given.runs.values()}) == 32
    assert all(given.runs[name].complete(experiment.fingerprint(name)) for name in experiment.variants)


def test_other_speech_makes_the_variants_that_hear_it_stale_and_no_other(declared, tones, speech, tmp_path):
    before = {name: declared[0].fingerprint(name) for name in declared[0].variants}

    def stale(folder) -> set[str]:
        given = {"data_root": str(tones), "speech_dir": str(folder), "overrides": OVERRIDES}
        other = MLKDExperiment("manifest", **given)
        return {name for name, value in before.items() if other.fingerprint(name) != value}

    louder = shutil.copytree(speech, tmp_path / "speech")
    assert stale(louder) == set()
    wave, _ = soundfile.read(louder / "200.wav")
    soundfile.write(louder / "200.wav", 2 * wave, RATE)
    assert stale(louder) == {"unlabelled"}
