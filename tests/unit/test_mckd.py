"""Meta-knowledge and curriculum distillation: who learns from what, what is minimised, what the quiz moves."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import wavfile
from torch.nn.functional import cross_entropy
from transformers import AutoModelForAudioClassification

from ser_kd_utils.methods.mckd.experiment import MCKDExperiment, warm_restarts
from ser_kd_utils.methods.mckd.loss import supervised_contrastive
from ser_kd_utils.methods.mckd.temperature import meta_gradient
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.records import Run, run_id
from ser_kd_utils.training import experiment as base
from ser_kd_utils.training.dataset import paired_by_class
from ser_kd_utils.training.losses import kd_loss

SMALL = {
    "epochs": 2, "frames": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "batch_size": 8, "meta_every": 2, "meta_fraction": 0.2, "supcon_weights": (0.5, 1.0),
    "kd_weights": (0.5, 1.0),
}  # fmt: skip
NOISES = ("hum", "rain")
FIXED = {"curriculum": False, "meta": "none"}
START = 1 + 20 * torch.ones(()).double().sigmoid().item()

# What a variant's training is given otherwise than that of mc-full.
VARIANTS = {
    "mc-alone": {"teacher": False, "supcon_weight": 0.0},
    "mc-supcon": {"teacher": False},
    "mc-kd": FIXED,
    "mc-curriculum": {"meta": "none"},
    "mc-meta": {"curriculum": False},
    "mc-full": {},
    "mc-no-supcon": {"supcon_weight": 0.0},
    "mc-mu-1": {"supcon_weight": 1.0},
    "mc-nu-0.5": {"kd_weight": 0.5},
    "mc-time-tokens": {"tokens": "time", "pooling": "mean"},
    "mc-mean-pooling": {"pooling": "mean"},
    "mc-log-mel": {"features": "log-mel"},
    "mc-z-score": {"z_score": True},
    "mc-log-mel-z-score": {"features": "log-mel", "z_score": True},
    "mc-unbalanced": {"balance": "none"},
    "mc-kd-start": FIXED | {"temperature": START},
    "mc-published-start": {"curriculum_start": START, "meta": "none"},
    "mc-meta-static": FIXED | {"meta": "static"},
    "mc-taught-teacher": FIXED | {"meta": "teacher"},
    "mc-alone-noisy": {"teacher": False, "supcon_weight": 0.0, "noise": NOISES},
    "mc-kd-noisy": FIXED | {"noise": NOISES},
    "mc-full-noisy": {"noise": NOISES},
}

pytestmark = pytest.mark.usefixtures("little_garbage")


class Given(Exception):
    """Raised in the place of a training, with what it was given."""


@pytest.fixture(scope="module")
def make(tones, tmp_path_factory):
    """Makes an experiment with the settings SMALL for a profile's own."""

    def make(overrides="", **options) -> MCKDExperiment:
        small = {f"mckd.{name}": value for name, value in SMALL.items()} | {"teacher.epochs": 1}
        some = [f"{name}={value!r}" for name, value in small.items() if f"{name}=" not in overrides]
        given = {"data_root": str(tones), "noise_dir": str(noise), "results": str(results)} | options
        return MCKDExperiment("manifest", overrides=", ".join([*some, overrides]), **given)

    results, noise = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for kind in NOISES:
        wavfile.write(noise / f"{kind}_1.wav", 16_000, rng.normal(0, 3000, 32_000).astype(np.int16))
    return make


@pytest.fixture(scope="module")
def experiment(make):
    return make()


@pytest.fixture
def given(monkeypatch, experiment):
    """What the training of a variant would be given."""
    experiment.teachers.run("a"), experiment.run("mc-meta")

    def fit(model, objective, dataset, dev, settings, **others):
        raise Given(SimpleNamespace(model=model, objective=objective, dataset=dataset, settings=settings, **others))

    def given(name):
        with pytest.raises(Given) as caught:
            experiment.trained(name)
        return caught.value.args[0]

    monkeypatch.setattr(base, "fit", fit)
    return given


def test_the_variants_are_those_declared(experiment):
    assert list(experiment.variants) == list(VARIANTS)
    for name, variant in experiment.variants.items():
        assert not variant.baseline or variant.baseline in experiment.variants, name


def test_no_student_hears_the_quiz_whose_speakers_are_those_of_training(experiment):
    parts = {part: set(getattr(experiment, part)) for part in ("train", "quiz", "dev", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    assert parts["train"] | parts["quiz"] == set(experiment.teachers.train)
    assert (parts["dev"], parts["test"]) == (set(experiment.teachers.dev), set(experiment.teachers.test))
    speaker = dict(zip(experiment.corpus.manifest["utterance"], experiment.corpus.manifest["speaker"], strict=True))
    speakers = {part: {speaker[utterance] for utterance in some} for part, some in parts.items()}
    assert speakers["quiz"] <= speakers["train"] and not speakers["quiz"] & (speakers["dev"] | speakers["test"])
    classes = [experiment.label_of[utterance] for utterance in experiment.quiz]
    assert {classes.count(label) for label in experiment.labels} == {round(0.2 * len(experiment.teachers.train) / 4)}
    assert experiment.card()["sizes"] == {part: len(some) for part, some in parts.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_each_variant_is_given(name, experiment, given):
    changed = dict(VARIANTS[name])
    teacher, noise = changed.pop("teacher", True), changed.pop("noise", None)
    fit = given(name)
    assert fit.settings == experiment.settings.replace(**changed)
    assert fit.objective.settings == fit.settings
    assert list(fit.dataset.classes) == experiment.train and fit.dataset.order is paired_by_class
    batch = fit.dataset.batch(range(8))
    assert ("noise" in batch) == bool(noise) == ("inputs" not in batch)
    assert {key for key in batch if key.startswith("teacher")} == ({"teacher_embedding"} if teacher else set())
    assert bool(fit.objective.temperature) == teacher
    assert bool(fit.objective.optimizer) == (teacher and fit.settings.meta in ("temperature", "teacher"))
    if teacher and fit.settings.meta != "static":
        start = fit.settings.curriculum_start if fit.settings.curriculum else fit.settings.temperature
        assert [tau.item() for tau in fit.objective.temperature(0.0)] == pytest.approx([start, start])
    names = ("tokens", "pooling", "features", "z_score", "frames", "hidden_size", "num_attention_heads", "dropout")
    assert all(getattr(fit.model.config, key) == getattr(fit.settings, key) for key in names)
    groups = fit.optimizer.param_groups
    learnt = {id(p) for group in groups for p in group["params"]}
    front = {id(p) for p in fit.model.front.parameters()} if fit.settings.features == "encoder" else set()
    assert not learnt & front
    theta = {id(p) for p in fit.objective.temperature.curriculum_parameters()} if teacher else set()
    assert len(theta) == (teacher and fit.settings.curriculum)
    assert learnt == {id(p) for p in fit.model.parameters()} - front | theta


def test_all_variants_start_from_the_same_weights_and_hear_the_teachers_front(experiment):
    first, second = (experiment.new_network(name).state_dict() for name in ("mc-alone", "mc-full"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    teacher = experiment.teachers.teacher()
    wave = torch.from_numpy(experiment.audio[experiment.train[0]])[None]
    given = encoders.inputs_of(teacher.config).prepare_inputs(wave, torch.tensor([wave.shape[1]]))
    with torch.no_grad():
        first = encoders.first_layers(teacher, experiment.settings.feature_layer).eval()
        wanted = first.encoder(**given).last_hidden_state
    heard = wave.shape[1] // encoders.HOP  # the network's window ends in silence
    torch.testing.assert_close(experiment.new_network("mc-full").frame_features(wave)[0], wanted[:, :heard])


def test_the_loss_is_the_sum_of_its_weighted_parts(experiment):
    network, objective, data = experiment.prepared("mc-kd")
    batch = data.batch(range(8))
    student = network.eval()(**batch["inputs"])
    terms = objective(batch, student, None, 0.5)
    use, labels = objective.settings, batch["labels"]
    counts = np.array([[experiment.label_of[u] for u in experiment.train].count(label) for label in experiment.labels])
    weights = torch.tensor(counts.sum() / 4 / counts, dtype=torch.float32)
    assert terms.keys() == {"ce", "supcon", "kd"}
    torch.testing.assert_close(terms["ce"], cross_entropy(student.logits, labels, weight=weights))
    contrast = supervised_contrastive(student.hidden_states[0], labels, use.supcon_temperature)
    torch.testing.assert_close(terms["supcon"], use.supcon_weight * contrast)
    teacher = experiment.teachers.teacher()
    prepare, says = encoders.inputs_of(teacher.config).prepare_inputs, []
    for utterance in experiment.train[:8]:
        wave = torch.from_numpy(experiment.audio[utterance])[None]
        says.append(teacher(**prepare(wave, torch.tensor([wave.shape[1]]))).logits[0])
    wanted = use.kd_weight * kd_loss(student.logits, torch.stack(says), use.temperature)
    torch.testing.assert_close(terms["kd"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mc-full", "mc-taught-teacher"])
def test_the_quiz_moves_what_it_may_and_nothing_else(name, experiment):
    network, objective, data = experiment.prepared(name)
    batch = data.batch(range(8))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    theta = [p.clone() for p in objective.temperature.curriculum_parameters()]
    head = [p.clone() for p in objective.head.parameters()]
    learned = [value.clone() for value in objective.learned.values()]
    network.train()
    objective.before_step(network, batch["inputs"], batch, 1, 0.5)  # not a multiple of meta_every
    assert all(map(torch.equal, learned, objective.learned.values()))
    objective.before_step(network, batch["inputs"], batch, 2, 0.5)
    assert not any(map(torch.equal, learned, objective.learned.values()))
    assert network.training and all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert all(map(torch.equal, theta, objective.temperature.curriculum_parameters()))
    assert all(map(torch.equal, head, objective.head.parameters())) == (name == "mc-full")
    teacher = experiment.teachers.teacher()  # read anew: its own head has not moved
    assert torch.equal(head[0], teacher.projector.weight)


@pytest.mark.parametrize("name", ["mc-full", "mc-time-tokens"])
def test_the_meta_step_is_exact_for_this_student(name, experiment):
    """Against finite differences: no fused layer may cut the gradient on its way through the pilot step."""
    network, objective, data = experiment.prepared(name)
    network.double().train()
    batch = data.batch(range(8))
    given = {"features": batch["inputs"]["features"].double(), "counts": batch["inputs"]["counts"]}
    questions, answers = objective.quiz(0)
    questions["features"] = questions["features"].double()
    says = objective.head(batch["teacher_embedding"]).detach().double()

    def distill(call, learned):
        return kd_loss(call(**given).logits, says, *(4 * learned["log"].exp()))

    def quiz(call):
        return cross_entropy(call(**questions).logits, answers)

    def after(log):
        copy = deepcopy(network).eval()
        weights = [p for p in copy.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(distill(copy, {"log": log}), weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight -= 0.1 * slope
            return quiz(copy).item()

    log = torch.tensor([0.3, -0.2], dtype=torch.float64)
    found = meta_gradient(network, distill, quiz, {"log": log}, 0.1)["log"]
    small = 1e-4 * torch.eye(2, dtype=torch.float64)
    wanted = [(after(log + step) - after(log - step)) / 2e-4 for step in small]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-10)
    assert found.abs().min() > 1e-6


def test_a_taught_teacher_that_may_not_learn_is_the_fixed_one(make, tmp_path):
    """The fixed-teacher control, bit for bit: the quiz disturbs neither the batches nor the student's dropout."""
    own = make(overrides="mckd.meta_teacher_lr=1e-30", results=str(tmp_path))
    taught, fixed = (own.run(name).predictions for name in ("mc-taught-teacher", "mc-kd"))
    assert np.array_equal(np.stack(taught["logits"]), np.stack(fixed["logits"]))


@pytest.mark.parametrize("name", ["mc-full", "mc-taught-teacher"])
def test_a_training_goes_on_after_a_kill_as_if_there_had_been_none(name, make, tmp_path, monkeypatch):
    """With momentum, temperatures, the teacher's head and the optimizer of what the quiz teaches."""
    own = {"overrides": "mckd.epochs=3, mckd.meta_every=1"}
    whole = make(results=str(tmp_path / "whole"), **own).run(name)
    killed, scores, calls = make(results=str(tmp_path / "killed"), **own), MCKDExperiment._scores, []
    killed.teachers.run("a")

    def interrupted(self, table):
        calls.append(table)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scores(self, table)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MCKDExperiment, "_scores", interrupted)
        killed.run(name)
    again = make(results=str(tmp_path / "killed"), **own).run(name)
    pd.testing.assert_frame_equal(again.predictions, whole.predictions)
    pd.testing.assert_frame_equal(again.history, whole.history)


def test_the_quiz_is_another_one_in_each_step_and_the_same_again(experiment):
    _, objective, _ = experiment.prepared("mc-meta")
    asked = [objective.quiz(step)[0]["features"].sum().item() for step in (0, 2, 0)]
    assert asked[0] == asked[2]
    labels = objective.quiz(0)[1].tolist()
    assert len(labels) == min(8, len(experiment.quiz))


def test_the_teacher_of_those_in_noise_hears_the_clean_utterance(experiment):
    clean, noisy = (experiment.prepared(name)[2] for name in ("mc-kd", "mc-kd-noisy"))
    some = [data.batch(range(4))["teacher_embedding"] for data in (clean, noisy)]
    assert torch.equal(*some)


def test_the_normalisation_is_that_of_the_training_part_in_its_noise(experiment):
    for name in ("mc-log-mel", "mc-full"):
        network, _, data = experiment.prepared(name)
        frames = np.concatenate([data.features[0][utterance] for utterance in experiment.train]).astype(np.float64)
        np.testing.assert_allclose(network.mean, frames.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(network.std, frames.std(0), rtol=1e-3, atol=1e-4)
    noisy = experiment.prepared("mc-full-noisy")[0]
    assert not torch.allclose(noisy.mean, network.mean, atol=1e-3)


def test_a_record_tells_temperatures_and_protocol_and_its_model_answers(experiment):
    run = experiment.run("mc-full")
    assert {"tau_student", "tau_teacher", "kd", "supcon", "ce"} <= set(run.history)
    assert run.info["method"] == "mckd" and run.info["protocol"]["sizes"]["quiz"] == len(experiment.quiz)
    model = AutoModelForAudioClassification.from_pretrained(run.folder / "model").eval()
    table = run.predictions.query("condition == 'clean' and checkpoint == 'best'").set_index("utterance")
    for utterance in experiment.test:
        with torch.no_grad():
            logits = model(torch.from_numpy(experiment.audio[utterance])[None]).logits[0]
        np.testing.assert_allclose(logits, table.at[utterance, "logits"], rtol=2e-3, atol=2e-3)
    assert experiment.run("mc-full").info["finished"] == run.info["finished"]  # read, not trained again


def test_the_fingerprint_follows_the_teacher_where_the_variant_needs_it(make, experiment, tmp_path):
    other = make(overrides="teacher.epochs=2", results=str(tmp_path))
    same = {name for name in VARIANTS if other.fingerprint(name) == experiment.fingerprint(name)}
    assert same == set()
    alone = "mckd.features='log-mel'"
    first, second = (make(overrides=f"{alone}, teacher.epochs={n}", results=str(tmp_path)) for n in (1, 2))
    same = {name for name in first.variants if first.fingerprint(name) == second.fingerprint(name)}
    assert same == {"mc-alone", "mc-supcon", "mc-alone-noisy"}


def test_the_static_control_keeps_the_temperatures_at_which_mc_meta_ended(make, tmp_path):
    own = make(results=str(tmp_path), overrides="mckd.meta_every=1, mckd.meta_lr=0.1")
    static = own.run("mc-meta-static")
    meta = Run(own.folder / "runs" / run_id("mckd", "mc-meta", 1, 0))  # trained along the way
    names = ["tau_student", "tau_teacher"]
    assert meta.history[names].nunique().min() > 1 and (static.history[names] == meta.history[names].iloc[-1]).all(
        axis=None
    )
    assert abs(static.history["tau_student"] - static.history["tau_teacher"]).min() > 1e-3
    assert not np.array_equal(np.stack(static.stored["logits"]), np.stack(own.run("mc-kd").stored["logits"]))
    finished = meta.info["finished"]
    assert own.run("mc-meta").info["finished"] == finished and own.run("mc-meta-static").info == static.info


def test_the_fingerprint_of_the_static_control_follows_mc_meta(make, tmp_path):
    """What decides where mc-meta ends is no setting of a fixed temperature."""
    first, second = (make(results=str(tmp_path), overrides=f"mckd.meta_lr={lr}") for lr in (0.02, 0.1))
    own = [each._decides("mc-meta-static") for each in (first, second)]
    assert own[0]["temperatures"] == first.fingerprint("mc-meta") != own[1]["temperatures"]
    assert first._decides("mc-kd")["temperatures"] == ""
    whole = make(results=str(tmp_path), overrides="mckd.meta='static'")  # mc-meta itself still learns
    assert whole._decides("mc-full")["temperatures"] == whole.fingerprint("mc-meta")


def test_a_class_that_the_quiz_uses_up_is_refused_by_name(make, tones, tmp_path):
    """Its weight in cross-entropy would be infinite."""
    whole = make().teachers
    parts = {name: part for part in ("train", "dev", "test") for name in getattr(whole, part)}
    rows = pd.read_csv(tones).assign(path=lambda rows: str(tones.parent) + "/" + rows["path"])
    rows["split"] = rows["utterance"].map(parts)
    happy = [name for name in whole.train if whole.label_of[name] == "happy"]
    for left in (2, 1, 0):
        manifest = tmp_path / f"left-{left}.csv"
        rows[~rows["utterance"].isin(happy[left:])].to_csv(manifest, index=False)
        given = {"data_root": str(manifest), "results": str(tmp_path)}
        if left == 2:
            own = make(**given)
            assert [own.label_of[name] for name in own.train + own.quiz].count("happy") == 2
            assert own.train != whole.train and own.prepared("mc-supcon")[1].class_weights.isfinite().all()
        else:
            with pytest.raises(ValueError, match="fold 1: .*happy"):
                make(**given)
    with pytest.raises(ValueError, match="^mckd.meta_fraction=0.6: .*less than or equal to 0.5"):
        make(overrides="mckd.meta_fraction=0.6", results=str(tmp_path))


def test_warm_restarts_begin_anew_after_cosines_of_doubled_length():
    lowest = 0.02
    assert [warm_restarts(epoch, 3, lowest) for epoch in (0, 3, 9, 21, 45)] == [1] * 5
    assert warm_restarts(1.5, 3, lowest) == pytest.approx(lowest + (1 - lowest) / 2)
    assert warm_restarts(6, 3, lowest) == pytest.approx(lowest + (1 - lowest) / 2)
    for end in (3, 9, 21, 45):
        assert warm_restarts(end - 1e-6, 3, lowest) == pytest.approx(lowest, abs=1e-6)
