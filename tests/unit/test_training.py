"""Training: what each view hears, which weights come back, and that a seed decides everything."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from ser_kd_utils import training
from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.models import wav2vec2
from ser_kd_utils.pieces import UNLABELLED, Buckets, Pieces, collate, teacher_targets
from ser_kd_utils.records import sha256
from ser_kd_utils.settings import MLKDSettings, TeacherSettings
from ser_kd_utils.training import CrossEntropy, MultiLevel, fit

RATE = 16_000
TINY = TeacherSettings.of("tiny")
MLKD = MLKDSettings.of("tiny")
LABELS = ("high", "low")

pytestmark = pytest.mark.usefixtures("little_garbage")


def tone(hertz: float, samples: int) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def audio():
    """Eight utterances of 0.4 to 0.54 s, of two classes."""
    return {f"u{i}": tone(300 + 600 * (i % 2) + 10 * i, 6400 + 320 * i) for i in range(8)}


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    kinds = {kind: [rng.normal(0, 0.1, 4 * RATE).astype(np.float32)] for kind in ("one", "two")}
    return NoiseBank(kinds, "generated")


@pytest.fixture
def pieces(audio, noise):
    def make(utterances=tuple(audio), seed=0, seconds=0.25, labels=None, **options) -> Pieces:
        labels = labels or {utterance: int(utterance[1:]) % 2 for utterance in utterances}
        return Pieces(audio, labels, seed=seed, seconds=seconds, **{"noise": noise} | options)

    return make


@pytest.fixture
def teacher():
    torch.manual_seed(7)
    return wav2vec2.freeze(wav2vec2.build_teacher(TINY, LABELS))


@pytest.fixture
def student(teacher):
    def student(levels=MLKD.levels, layers=MLKD.student_layers):
        return wav2vec2.DistilledStudent(wav2vec2.build_student(teacher, layers), levels, teacher.config.hidden_size)

    return student


def objective_of(model, levels=MLKD.levels, **changes) -> MultiLevel:
    settings = MLKDSettings.of("tiny", **changes)
    return MultiLevel(settings, levels, TINY.layers, partial(wav2vec2.frame_mask, model.student))


@pytest.fixture
def train(teacher, student, pieces, tmp_path):
    """Trains a student of `teacher`, or with `levels=None` a plain classifier, for a few epochs.

    items: options of the pieces; a teacher is asked at each step unless they hold its targets.
    """

    def train(
        utterances=("u0", "u1", "u2", "u3"),
        levels=MLKD.levels,
        dev=None,
        seed=0,
        items=(),
        hears_noise=False,
        schedule=None,
        afresh=True,
        **changes,
    ):
        settings = MLKDSettings.of("tiny", **{"epochs": 2, "batch_size": 4, "seconds": 0.25} | changes)
        torch.manual_seed(seed)
        items = dict(items)
        if afresh:
            shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        if levels is None:
            model, objective = wav2vec2.build_student(teacher, settings.student_layers), CrossEntropy()
        else:
            model = student(levels, settings.student_layers)
            objective = objective_of(model, levels, **changes)
        return fit(
            model,
            objective,
            pieces(utterances, seconds=settings.seconds, **items),
            dev or (lambda _: {"UA": 0.5, "WA": 0.5}),
            settings,
            optimiser=torch.optim.AdamW(
                model.parameters(), settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
            ),
            schedule=schedule,
            level="overall",
            seed=seed,
            folder=tmp_path / "checkpoints",
            teacher=teacher if levels and not items.get("targets") else None,
            teacher_hears_noise=hears_noise,
        )

    return train


@pytest.fixture
def heard(teacher, monkeypatch):
    """What teacher and student are given in training: (waves, attention mask, in training mode) of each step."""
    heard = {"teacher": [], "student": []}

    def spy(name):
        def hear(module, inputs, keywords):
            waves = inputs[0] if inputs else keywords["input_values"]
            heard[name].append((waves.clone(), keywords.get("attention_mask"), module.training))

        return hear

    teacher.register_forward_pre_hook(spy("teacher"), with_kwargs=True)
    build = wav2vec2.DistilledStudent

    def spied(*args):
        student = build(*args)
        student.register_forward_pre_hook(spy("student"), with_kwargs=True)
        return student

    monkeypatch.setattr(wav2vec2, "DistilledStudent", spied)
    return heard


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def identical(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is heard


def test_the_teacher_hears_clean_speech_and_the_student_the_same_speech_in_noise(train, heard, pieces):
    train(("u5",), epochs=3)
    given = pieces(("u5",))
    assert len(heard["teacher"]) == len(heard["student"]) == 3
    for epoch, (clean, noisy) in enumerate(zip(heard["teacher"], heard["student"], strict=True)):
        given.set_epoch(epoch)
        item = given[0]
        speech, segment = item["clean"].double().numpy(), item["noise"].double().numpy()
        np.testing.assert_allclose(clean[0][0], (speech - speech.mean()) / speech.std(), atol=1e-3)
        basis = np.stack([speech, segment, np.ones_like(speech)], axis=1)
        factors, rest, *_ = np.linalg.lstsq(basis, noisy[0][0].double().numpy(), rcond=None)
        assert rest < 1e-6 * len(speech)  # nothing but this speech and this noise
        gain = factors[1] / factors[0]
        snr = 10 * np.log10(np.mean(speech**2) / np.mean((gain * segment) ** 2))
        assert snr == pytest.approx(item["snr_db"], abs=0.01)
        assert (clean[2], noisy[2]) == (False, True)  # the teacher in eval mode, the student in training
        assert clean[1].all() and noisy[1].all()


def test_a_teacher_that_is_to_hear_the_noise_hears_what_the_student_hears(train, heard, pieces):
    train(("u5", "u6"), epochs=2, hears_noise=True)
    assert len(heard["teacher"]) == 2
    for epoch, (one, other) in enumerate(zip(heard["teacher"], heard["student"], strict=True)):
        assert torch.equal(one[0], other[0]) and (one[2], other[2]) == (False, True)
        given = pieces(("u5", "u6"))
        given.set_epoch(epoch)
        clean = wav2vec2.normalise(given[0]["clean"][None], torch.tensor([4000]))
        assert not any(torch.allclose(wave, clean[0], atol=0.01) for wave in one[0])


def test_items_without_noise_among_noisy_ones_are_heard_clean(train, heard, pieces):
    """By their SNR of infinity, in one batch with the others."""
    items = {"clean_share": 0.5}
    train(epochs=4, items=items)
    given = pieces(("u0", "u1", "u2", "u3"), **items)
    equal, wanted = 0, 0
    for epoch, (clean, noisy) in enumerate(zip(heard["teacher"], heard["student"], strict=True)):
        given.set_epoch(epoch)
        wanted += sum(math.isinf(given[i]["snr_db"]) for i in range(4))
        equal += sum(map(torch.equal, clean[0], noisy[0]))
    assert 0 < equal == wanted < 16


def test_a_teacher_whose_targets_are_stored_is_not_asked_again(train, heard, teacher, audio, tmp_path):
    (tmp_path / "targets").mkdir()
    targets = teacher_targets(teacher, audio, list(audio), MLKD.levels, tmp_path / "targets")
    assert len(heard["teacher"]) == len(audio)
    fitted = train(items={"targets": targets}, logit_weight=1.0)
    assert len(heard["teacher"]) == len(audio) and len(heard["student"]) == 2
    assert fitted.history[["feature", "logits"]].gt(0).all(axis=None)


def test_batches_come_in_the_order_of_their_buckets_anew_in_each_epoch(train, heard, pieces, audio):
    train(tuple(audio), epochs=3, batch_size=2, seconds=1.0)
    given = pieces(seconds=1.0)
    wanted = []
    for epoch in range(3):
        given.set_epoch(epoch)
        order = list(Buckets(given, 2))
        wanted += [[given.lengths[i] for i in order[first : first + 2]] for first in range(0, 8, 2)]
    assert [mask.sum(1).tolist() for _, mask, _ in heard["student"]] == wanted
    assert wanted[:4] != wanted[4:8] != wanted[8:]


def test_the_attention_mask_ends_with_the_item(train, heard):
    train(("u0", "u1"), epochs=1, seconds=1.0)
    for masks in (heard["teacher"][0][1], heard["student"][0][1]):
        assert sorted(masks.sum(1).tolist()) == [6400, 6720] and masks.shape == (2, 6720)


# --- the teacher


def test_training_leaves_the_teacher_as_it_was(train, teacher):
    before = weights(teacher)
    for hears_noise in (False, True):
        trained = train(hears_noise=hears_noise)
        assert identical(before, weights(teacher))
        assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        own = {id(part) for part in (*trained.model.modules(), *trained.model.parameters())}
        assert not own & {id(part) for part in (*teacher.modules(), *teacher.parameters())}
        assert len(trained.last) == len(trained.model.state_dict())  # nor was it saved with the student


def test_a_teacher_in_training_mode_is_an_error(train, teacher):
    teacher.train()
    with pytest.raises(AssertionError, match="training mode"):
        train(epochs=1)


def test_a_student_learns_its_teachers_features(train):
    history = train(tuple(f"u{i}" for i in range(8)), epochs=12).history
    assert list(history.index) == list(range(1, 13))
    assert history["feature"].iloc[-1] < 0.7 * history["feature"].iloc[0]
    np.testing.assert_allclose(history["loss"], history["ce"] + history["feature"], atol=1e-3)


# --- targets, stages and labels


def test_stored_targets_and_a_teacher_asked_at_this_step_give_the_same_loss(teacher, student, pieces, audio, tmp_path):
    """On whole utterances of different lengths, with levels that are not mistaken for each other."""
    levels = (1, 3)
    torch.manual_seed(0)
    model = student(levels).eval()
    targets = teacher_targets(teacher, audio, list(audio), levels, tmp_path)
    batch = collate([pieces(seconds=1.0, targets=targets)[i] for i in (2, 7, 0)])
    mask = (torch.arange(batch["clean"].shape[1]) < batch["lengths"][:, None]).long()
    batch["attention_mask"] = mask
    waves = wav2vec2.normalise(batch["clean"], batch["lengths"])
    objective = objective_of(model, levels, logit_weight=1.0)
    with torch.no_grad():
        output, live = model(waves, mask), teacher(waves, attention_mask=mask, output_hidden_states=True)
        asked = objective({name: batch[name] for name in ("labels", "attention_mask")}, output, live, 0.0)
        stored = objective(batch, output, None, 0.0)
        mistaken = objective(batch | {"states": batch["states"].flip(2)}, output, None, 0.0)
    assert stored.keys() == asked.keys() == {"ce", "feature", "logits"}
    for name, value in asked.items():
        assert (
            stored[name].item() == pytest.approx(value.item(), rel=2e-4, abs=1e-6) and stored[name].dtype == value.dtype
        )
    assert mistaken["feature"].item() != pytest.approx(asked["feature"].item(), rel=2e-3)


def test_stored_targets_train_the_same_student_as_a_teacher_asked_at_each_step(train, teacher, audio, tmp_path):
    (tmp_path / "targets").mkdir()
    targets = teacher_targets(teacher, audio, list(audio), MLKD.levels, tmp_path / "targets")
    asked, stored = (train(seconds=1.0, items=items, logit_weight=1.0).history for items in ({}, {"targets": targets}))
    np.testing.assert_allclose(stored, asked, rtol=2e-3, atol=1e-4)


def test_progress_goes_from_0_to_below_1(train, monkeypatch):
    seen, call = [], CrossEntropy.__call__
    monkeypatch.setattr(CrossEntropy, "__call__", lambda self, *given: seen.append(given[-1]) or call(self, *given))
    train(levels=None, epochs=3, batch_size=2)
    assert seen == [step / 6 for step in range(6)]


def test_two_stages_in_a_training(train):
    history = train(epochs=4, batch_size=2, stages="two-stage").history
    assert (history["ce"] > 0).tolist() == [False, False, True, True] == (history["feature"] == 0).tolist()
    np.testing.assert_allclose(history["loss"], history["ce"] + history["feature"], atol=1e-3)


def test_speech_without_labels_is_distilled_on(train):
    """Here all of it: nothing but the features is learnt."""
    utterances = "u0", "u2", "u4", "u6"
    history = train(utterances, epochs=6, items={"labels": dict.fromkeys(utterances, UNLABELLED)}).history
    assert history["ce"].eq(0).all() and history["feature"].iloc[-1] < 0.9 * history["feature"].iloc[0]


# --- what comes back


@pytest.mark.parametrize("levels", [None, MLKD.levels], ids=["plain", "distilled"])
def test_the_first_best_epoch_comes_back_and_the_last_is_kept(train, levels, tmp_path):
    scores, seen = [0.3, 0.6, 0.6, 0.4], []

    def dev(model):
        seen.append(weights(model))
        return {"UA": scores[len(seen) - 1], "WA": len(seen)}

    fitted = train(levels=levels, dev=dev, epochs=4, batch_size=3)  # the second batch of an epoch is of one item
    assert (fitted.best_epoch, fitted.items) == (2, 4)
    assert identical(weights(fitted.model), seen[1])
    assert fitted.last.keys() == seen[3].keys()
    assert identical(fitted.last, seen[3])
    assert fitted.history["dev_UA"].tolist() == scores and fitted.history["dev_WA"].tolist() == [1, 2, 3, 4]
    assert not fitted.model.training
    kept = {path.parent.name for path in tmp_path.glob("checkpoints/*/seal.json")}
    assert kept == {"checkpoint-4", "checkpoint-8"}  # the best and the last


def test_a_checkpoint_without_its_seal_is_not_taken(train, tmp_path):
    stale = tmp_path / "checkpoints" / "checkpoint-999"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"from another training")
    seen = []
    fitted = train(dev=lambda model: seen.append(weights(model)) or {"UA": 0.0, "WA": 0.0}, afresh=False)
    assert identical(fitted.last, seen[-1])


class Killed(BaseException):
    """What a process that is killed would leave behind, without its end."""


def killed_in_epoch(number):
    """Dev scores of which the best is in the first epoch; killed in the given one."""
    epochs = iter(range(1, 9))

    def dev(_):
        if (epoch := next(epochs)) == number:
            raise Killed
        return {"UA": 1 / epoch, "WA": 0.5}

    return dev


@pytest.mark.parametrize("killed", [2, 4])
@pytest.mark.parametrize("levels", [None, MLKD.levels], ids=["plain", "distilled"])
def test_a_killed_training_ends_with_the_same_weights_and_history(train, levels, killed):
    whole = train(levels=levels, dev=killed_in_epoch(9), epochs=4)
    with pytest.raises(Killed):
        train(levels=levels, dev=killed_in_epoch(killed), epochs=4)
    steps = []

    def dev(_):
        steps.append(1)
        return {"UA": 1 / (killed - 1 + len(steps)), "WA": 0.5}

    again = train(levels=levels, dev=dev, epochs=4, afresh=False)
    assert len(steps) == 5 - killed  # the epochs before were not trained again
    assert identical(again.last, whole.last) and identical(weights(again.model), weights(whole.model))
    assert again.best_epoch == whole.best_epoch == 1
    pd.testing.assert_frame_equal(again.history, whole.history)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "beside.pt"])
@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_damaged_checkpoint_is_left_out_with_a_warning(train, tmp_path, name, damage):
    whole = train(levels=None, dev=killed_in_epoch(9), epochs=3)
    with pytest.raises(Killed):
        train(levels=None, dev=killed_in_epoch(3), epochs=3)
    path = max(tmp_path.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name[11:])) / name
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    scores = iter([{"UA": 1 / 2, "WA": 0.5}, {"UA": 1 / 3, "WA": 0.5}])
    with pytest.warns(UserWarning, match="checkpoint-2 of checkpoints is damaged and was left out"):
        again = train(levels=None, dev=lambda _: next(scores), epochs=3, afresh=False)
    assert identical(again.last, whole.last)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "beside.pt"])
def test_a_malicious_pickle_offered_as_a_checkpoint_is_refused(train, tmp_path, name):
    with pytest.raises(Killed):
        train(levels=None, dev=killed_in_epoch(2))
    (checkpoint,) = tmp_path.glob("checkpoints/checkpoint-*")
    torch.save(Malicious(tmp_path / "executed"), checkpoint / name)
    seal = json.loads((checkpoint / "seal.json").read_text())
    seal["files"][name] = sha256(checkpoint / name)
    (checkpoint / "seal.json").write_text(json.dumps(seal))
    with pytest.raises(ValueError, match=f"{name} holds other things than tensors and was not loaded: delete"):
        train(levels=None, afresh=False)
    assert not (tmp_path / "executed").exists()


def test_a_seed_decides_all_weights(train):
    first, second, other = (train(seed=seed, levels=None, batch_size=2) for seed in (1, 1, 2))  # from the same weights
    assert identical(weights(first.model), weights(second.model)) and identical(first.last, second.last)
    assert not identical(weights(first.model), weights(other.model))
    assert first.history.equals(second.history)


def test_a_network_trained_in_mixed_precision_scores_in_float32(train, monkeypatch, audio):
    """As it does once it is saved and loaded: the Trainer leaves its autocast on the network."""

    def mixed(**options):
        return TrainingArguments(**options | {"bf16": True, "use_cpu": True})

    monkeypatch.setattr(training, "TrainingArguments", mixed)
    network = train(levels=None).model
    again = wav2vec2.build_student(network, MLKD.student_layers).eval()
    wave = torch.from_numpy(audio["u0"])[None]
    with torch.inference_mode():
        torch.testing.assert_close(network(wave).logits, again(wave).logits, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (None, [*np.linspace(0, 1, 4, endpoint=False), *np.linspace(1, 0, 6, endpoint=False)]),
        (lambda done: 0.1 ** ((done >= 0.2) + (done >= 0.6)), [1] * 2 + [0.1] * 4 + [0.01] * 4),
    ],
    ids=["warm-up and decay", "steps"],
)
def test_settings_reach_the_optimiser(train, monkeypatch, schedule, factors):
    rates, found = [], {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **_):
            rates.append(optimizer.param_groups[0]["lr"])
            found.update(optimizer.param_groups[0], clip=args.max_grad_norm)

    class Watched(training.DistillationTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, callbacks=[Watch()], **kwargs)

    monkeypatch.setattr(training, "DistillationTrainer", Watched)
    own = {"lr": 2e-3, "warmup": 0.4, "weight_decay": 0.3, "betas": (0.5, 0.6), "clip": 0.7}
    train(("u0", "u1"), epochs=5, batch_size=1, schedule=schedule, **own)
    np.testing.assert_allclose(rates, 2e-3 * np.array(factors), atol=1e-9)
    assert (found["weight_decay"], found["betas"], found["clip"]) == (0.3, (0.5, 0.6), 0.7)


class Shifted(training.Objective):
    """Cross-entropy of shifted logits; the shift is learnt beside the network; its gradients are kept."""

    def __init__(self):
        self.shift = torch.nn.Parameter(torch.zeros(2))
        self.calls, self.wanted = [], []

    def before(self, network, given, batch, step, progress):
        assert isinstance(network, torch.nn.Module) and set(given) == {"input_values", "attention_mask"}
        self.calls.append((step, progress))

    def __call__(self, batch, student, teacher, progress):
        loss = torch.nn.functional.cross_entropy(student.logits + self.shift, batch["labels"])
        self.wanted.append(torch.autograd.grad(loss, self.shift, retain_graph=True)[0])
        return {"ce": loss}

    def state(self):
        return {"shift": self.shift[0].item()}


def test_an_objective_may_learn_beside_the_network_and_tells_the_history(teacher, pieces, tmp_path):
    model, objective = wav2vec2.build_student(teacher, 1), Shifted()
    settings = MLKDSettings.of("tiny", epochs=2, batch_size=2, seconds=0.25)
    fitted = fit(
        model, objective, pieces(("u0", "u1", "u2", "u3")), lambda _: {"UA": 0.5, "WA": 0.5}, settings,
        optimiser=torch.optim.SGD([*model.parameters(), objective.shift], 0.1), schedule=lambda done: 1.0,
        level="overall", seed=0, folder=tmp_path / "checkpoints",
    )  # fmt: skip
    assert objective.calls == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    # a step moves the shift by its own gradient: those of earlier steps were cleared
    moved = -0.1 * torch.stack(objective.wanted).sum(0)
    torch.testing.assert_close(objective.shift.detach(), moved)
    assert fitted.history["shift"].iloc[-1] == pytest.approx(moved[0].item(), rel=1e-4)
