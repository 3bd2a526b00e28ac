"""Training: what each view hears, which weights come back, and that a seed decides everything."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from ser_kd_utils import training
from ser_kd_utils.models import wav2vec2
from ser_kd_utils.noise import NoiseBank
from ser_kd_utils.settings import MLKDSettings, TeacherSettings
from ser_kd_utils.training import CrossEntropy, MultiLevel, Pieces, collate, fit

RATE = 16_000
TINY = TeacherSettings.of("tiny")
MLKD = MLKDSettings.of("tiny")
LABELS = ("high", "low")


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
    def make(utterances=tuple(audio), seed=0, seconds=0.25, **options) -> Pieces:
        labels = {utterance: int(utterance[1:]) % 2 for utterance in utterances}
        return Pieces(audio, labels, seed=seed, seconds=seconds, **{"noise": noise} | options)

    return make


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# --- pieces


def test_an_item_is_a_function_of_utterance_seed_and_epoch(pieces, audio):
    training, again = pieces(), pieces(tuple(reversed(audio)))
    for epoch in (1, 0, 1):
        training.set_epoch(epoch)
        again.set_epoch(epoch)
        assert all(same(training[i], again[7 - i]) for i in range(8))
    first, other_seed = pieces(), pieces(seed=1)
    for i in range(8):
        for name in ("clean", "noise", "snr_db"):
            assert not np.array_equal(first[i][name], other_seed[i][name])
            assert not np.array_equal(first[i][name], training[i][name])  # epoch 1


def test_a_piece_lies_in_its_utterance_and_short_ones_stay_whole(pieces, audio):
    training = pieces(seconds=0.45)  # 7,200 samples
    for utterance, item in zip(audio, map(training.__getitem__, range(8)), strict=True):
        whole, piece = audio[utterance], item["clean"].numpy()
        assert len(piece) == len(item["noise"]) == min(len(whole), 7200)
        assert any(np.array_equal(piece, whole[i : i + len(piece)]) for i in range(len(whole) - len(piece) + 1))


def test_pieces_start_everywhere(pieces, audio):
    training, starts = pieces(("u7",)), []
    room = len(audio["u7"]) - 4000
    ramp = Pieces({"u7": np.arange(len(audio["u7"]), dtype=np.float32)}, {"u7": 1}, seed=0, seconds=0.25)
    for epoch in range(200):
        ramp.set_epoch(epoch)
        starts.append(int(ramp[0]["clean"][0]))
    assert min(starts) < 0.05 * room and max(starts) > 0.95 * room and max(starts) <= room
    assert len(training[0]["clean"]) == 4000


def test_noise_types_and_snrs_cover_their_range_and_clean_pieces_have_none(pieces):
    training, snrs = pieces(snr_db=(5.0, 10.0)), []
    for epoch in range(25):
        training.set_epoch(epoch)
        snrs += [training[i]["snr_db"] for i in range(8)]
    assert 5 <= min(snrs) < 5.3 and 9.7 < max(snrs) <= 10
    assert pieces(noise=None)[0].keys() == {"clean", "label"}


def test_workers_do_not_change_a_batch(pieces):
    training = pieces()
    training.set_epoch(3)
    here, there = (
        list(DataLoader(training, batch_size=3, shuffle=False, collate_fn=collate, num_workers=workers))
        for workers in (0, 2)
    )
    assert len(here) == 3 and all(map(same, here, there))


def test_collate_pads_with_zeros(pieces):
    items = [pieces(seconds=1.0)[i] for i in (0, 5)]
    batch = collate(items)
    assert batch["lengths"].tolist() == [6400, 8000] and batch["labels"].tolist() == [0, 1]
    for name in ("clean", "noise"):
        assert batch[name].shape == (2, 8000) and torch.equal(batch[name][0, :6400], items[0][name])
        assert (batch[name][0, 6400:] == 0).all()
    assert batch["snr_db"].tolist() == [item["snr_db"] for item in items]


# --- training


@pytest.fixture
def teacher():
    torch.manual_seed(7)
    return wav2vec2.freeze(wav2vec2.build_teacher(TINY, LABELS))


@pytest.fixture
def train(teacher, pieces, tmp_path):
    """Trains a student of `teacher`, or with `levels=None` a plain classifier, for a few epochs."""

    def train(utterances=("u0", "u1", "u2", "u3"), levels=MLKD.levels, dev=None, seed=0, callbacks=(), **changes):
        settings = MLKDSettings.of("tiny", **{"epochs": 2, "batch_size": 4, "seconds": 0.25} | changes)
        torch.manual_seed(seed)
        model, objective = wav2vec2.build_student(teacher, settings.student_layers), CrossEntropy()
        if levels is not None:
            frame_mask = partial(wav2vec2.frame_mask, model)
            model = wav2vec2.DistilledStudent(model, levels, teacher.config.hidden_size)
            objective = MultiLevel(levels, settings.gamma, settings.cosine_weight, TINY.layers, frame_mask)
        return fit(
            model,
            objective,
            pieces(utterances, seconds=settings.seconds),
            dev or (lambda _: {"UA": 0.5, "WA": 0.5}),
            settings,
            groups=[{"params": list(model.parameters()), "lr": settings.lr}],
            level="overall",
            seed=seed,
            folder=tmp_path / "checkpoints",
            teacher=teacher if levels else None,
            callbacks=callbacks,
        )

    return train


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def identical(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_teacher_hears_clean_speech_and_the_student_the_same_speech_in_noise(train, teacher, pieces, monkeypatch):
    heard = {"teacher": [], "student": []}

    def spy(name):
        def hear(module, inputs, keywords):
            heard[name].append((inputs[0].clone(), keywords["attention_mask"], module.training))

        return hear

    teacher.register_forward_pre_hook(spy("teacher"), with_kwargs=True)
    build = wav2vec2.DistilledStudent

    def spied(*args):
        student = build(*args)
        student.register_forward_pre_hook(spy("student"), with_kwargs=True)
        return student

    monkeypatch.setattr(wav2vec2, "DistilledStudent", spied)
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


def test_the_attention_mask_ends_with_the_item(train, teacher):
    masks = []
    teacher.register_forward_pre_hook(lambda _, __, given: masks.append(given["attention_mask"]), with_kwargs=True)
    train(("u0", "u1"), epochs=1, seconds=1.0)
    assert sorted(masks[0].sum(1).tolist()) == [6400, 6720] and masks[0].shape == (2, 6720)


def test_training_leaves_the_teacher_as_it_was(train, teacher):
    before = weights(teacher)
    train()
    assert identical(before, weights(teacher))
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_a_teacher_in_training_mode_is_an_error(train, teacher):
    teacher.train()
    with pytest.raises(AssertionError, match="training mode"):
        train(epochs=1)


def test_a_student_learns_its_teachers_features(train):
    history = train(tuple(f"u{i}" for i in range(8)), epochs=12).history
    assert list(history.index) == list(range(1, 13))
    assert history["feature"].iloc[-1] < 0.7 * history["feature"].iloc[0]
    np.testing.assert_allclose(history["loss"], history["ce"] + history["feature"], atol=1e-3)


def test_gamma_weighs_the_feature_loss():
    torch.manual_seed(0)
    states = tuple(torch.randn(2, 5, 4) for _ in range(3))
    student = SimpleNamespace(logits=torch.randn(2, 2), hidden_states=states[:1])
    given = {"labels": torch.tensor([0, 1]), "attention_mask": torch.ones(2, 5)}
    mask = torch.ones(2, 5, dtype=torch.bool)
    once, thrice = (
        MultiLevel((2,), gamma, 1.0, 2, lambda *_: mask)(given, student, SimpleNamespace(hidden_states=states), 0.0)
        for gamma in (1.0, 3.0)
    )
    assert thrice["feature"].item() == pytest.approx(3 * once["feature"].item(), rel=1e-6)
    assert thrice["ce"] == once["ce"]
    probability = np.exp(student.logits.numpy()) / np.exp(student.logits.numpy()).sum(1, keepdims=True)
    assert once["ce"].item() == pytest.approx(-np.log(probability[[0, 1], [0, 1]]).mean(), rel=1e-5)


def test_a_teacher_that_dropped_a_layer_is_an_error():
    objective = MultiLevel((1,), 1.0, 1.0, 3, lambda *_: None)
    with pytest.raises(RuntimeError, match="Expected 4 hidden states, the network returned 3"):
        objective({}, None, SimpleNamespace(hidden_states=(torch.zeros(2, 5, 4),) * 3), 0.0)


@pytest.mark.parametrize("levels", [None, MLKD.levels], ids=["plain", "distilled"])
def test_the_first_best_epoch_comes_back_and_the_last_is_kept(train, levels, tmp_path):
    scores, seen = [0.3, 0.6, 0.6, 0.4], []

    def dev(model):
        seen.append(weights(model))
        return {"UA": scores[len(seen) - 1], "WA": len(seen)}

    fitted = train(levels=levels, dev=dev, epochs=4)
    assert fitted.best_epoch == 2
    assert identical(weights(fitted.model), seen[1])
    assert fitted.last.keys() == seen[3].keys()
    assert identical(fitted.last, seen[3])
    assert fitted.history["dev_UA"].tolist() == scores and fitted.history["dev_WA"].tolist() == [1, 2, 3, 4]
    assert not fitted.model.training
    assert not (tmp_path / "checkpoints").exists()


def test_what_a_killed_training_left_is_not_taken_for_this_one(train, tmp_path):
    stale = tmp_path / "checkpoints" / "checkpoint-999"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"from another training")
    seen = []
    fitted = train(dev=lambda model: seen.append(weights(model)) or {"UA": 0.0, "WA": 0.0})
    assert identical(fitted.last, seen[-1])


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


def test_settings_reach_the_optimiser(train):
    rates, found = [], {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **_):
            rates.append(optimizer.param_groups[0]["lr"])
            found.update(optimizer.param_groups[0], clip=args.max_grad_norm)

    train(("u0", "u1"), epochs=5, batch_size=1, lr=2e-3, warmup=0.4, weight_decay=0.3, betas=(0.5, 0.6), clip=0.7,
          callbacks=[Watch()])  # fmt: skip
    up, down = np.linspace(0, 2e-3, 4, endpoint=False), np.linspace(2e-3, 0, 6, endpoint=False)
    np.testing.assert_allclose(rates, [*up, *down], atol=1e-9)
    assert (found["weight_decay"], found["betas"], found["clip"]) == (0.3, (0.5, 0.6), 0.7)
