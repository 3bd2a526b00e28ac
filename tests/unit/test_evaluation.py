"""Scores: the grid, fixed draws, exact SNRs, and logits that depend on their own utterance and condition only."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from waveform import TEACHER

from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.training import evaluation
from ser_kd_utils.training.evaluation import CLEAN, grid, noisy_views
from ser_kd_utils.training.experiment import Experiment

RATE = 16_000
TYPES = ("one", "two")
SNRS = (20, 0, -5)


def predict(*given, **named):
    prepare = encoders.inputs_of_teacher(TEACHER).prepare_inputs
    return evaluation.predict(*given, prepare_inputs=prepare, **named)


@pytest.fixture(scope="module")
def audio():
    rng = np.random.default_rng(0)
    return {f"u{i}": rng.normal(0, 0.1, 6000 + 997 * i).astype(np.float32) for i in range(3)}


@pytest.fixture(scope="module")
def noise():
    """500 Hz in the half for training, 5 kHz in the half for tests."""
    time = np.arange(2 * RATE) / RATE
    halves = [np.sin(2 * np.pi * hertz * time) for hertz in (500, 5000)]
    wave = np.concatenate(halves).astype(np.float32)
    return NoiseBank({"one": [0.2 * wave], "two": [0.1 * wave]}, "generated")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = encoders.build_teacher(TEACHER, ("angry", "sad"))
    with torch.no_grad():
        model.classifier.weight.mul_(100)  # so that logits differ beyond their 16 bits
    return model


@pytest.fixture
def score(model, audio, noise):
    def score(utterances, conditions, seed=0, part="test"):
        return predict(
            model, audio, utterances, lambda _: conditions, noise, part=part, seed=seed, speech_level="overall"
        )

    return score


def test_the_grid_is_clean_and_every_type_at_every_snr():
    conditions = grid(TYPES, SNRS)
    assert conditions[0] == CLEAN and math.isnan(CLEAN[1])
    assert conditions[1:] == [("one", 20), ("one", 0), ("one", -5), ("two", 20), ("two", 0), ("two", -5)]


def conditions_of_dev(seed: int):
    """What an experiment of this seed asks of each dev utterance."""
    asked = []
    own = SimpleNamespace(
        seed=seed, dev=(), train_noise=lambda _: TYPES, noise_settings=SimpleNamespace(train_snr_db=(0.0, 20.0)),
        _scores=lambda table: {}, _predict=lambda model, dev, conditions, part: asked.append(conditions),
    )  # fmt: skip
    Experiment._dev_scores(own, "e")(None)
    return asked[0]


def test_dev_draws_are_fixed_and_cover_types_and_snrs():
    utterances = [f"u{i}" for i in range(200)]
    drawn = [conditions_of_dev(0)(utterance) for utterance in utterances]
    assert drawn == [conditions_of_dev(0)(utterance) for utterance in utterances]
    assert drawn != [conditions_of_dev(1)(utterance) for utterance in utterances]
    assert {len(each) for each in drawn} == {1}
    kinds, snrs = zip(*[each[0] for each in drawn], strict=True)
    assert set(kinds) == set(TYPES) and 0 <= min(snrs) < 1 and 19 < max(snrs) <= 20


def test_the_snr_is_as_asked_and_all_snrs_of_a_type_hear_the_same_noise(audio, noise):
    clean, conditions = audio["u1"], grid(TYPES, SNRS)
    views = noisy_views(clean, "u1", conditions, noise, "test", 0, "overall").double().numpy()
    assert np.array_equal(views[0], clean)
    added = views[1:] - clean
    for residual, (_, snr) in zip(added, conditions[1:], strict=True):
        ratio = np.mean(np.square(clean, dtype=float)) / np.mean(residual**2)
        assert 10 * np.log10(ratio) == pytest.approx(snr, abs=1e-3)
    shapes = added / np.sqrt(np.mean(added**2, axis=1, keepdims=True))
    for first, *others in (shapes[:3], shapes[3:]):
        for other in others:
            np.testing.assert_allclose(other, first, atol=1e-4)
    assert not np.allclose(shapes[0], shapes[3], atol=0.1)


@pytest.mark.parametrize(("part", "hertz"), [("train", 500), ("test", 5000)])
def test_a_part_hears_its_half_of_the_recordings_only(audio, noise, part, hertz):
    for seed in range(5):
        views = noisy_views(audio["u2"], "u2", [("one", 0.0)], noise, part, seed, "overall")
        spectrum = np.abs(np.fft.rfft((views[0] - torch.from_numpy(audio["u2"])).numpy()))
        assert np.argmax(spectrum) * RATE / len(audio["u2"]) == pytest.approx(hertz, abs=2)


def test_a_view_depends_on_utterance_seed_and_condition(audio, noise):
    def view(utterance="u0", seed=0, clean=audio["u0"]):
        return noisy_views(clean, utterance, [("one", 0.0)], noise, "test", seed, "overall")

    assert torch.equal(view(), view())
    assert not torch.equal(view(), view(utterance="u1")) and not torch.equal(view(), view(seed=1))


def test_a_row_does_not_depend_on_what_else_is_asked_for(score, audio, noise, monkeypatch):
    conditions = grid(TYPES, SNRS)
    everything = score(audio, conditions).set_index(["utterance", "condition", "snr_db"])["logits"]
    assert len(everything) == 3 * 7
    monkeypatch.setattr(evaluation, "SECONDS_PER_BATCH", 1)  # two views a batch
    for kind, snr in reversed(conditions):
        alone = score(["u1"], [(kind, snr)])["logits"][0]
        wanted = everything["u1"].loc[kind].iloc[0 if kind == "clean" else SNRS.index(snr)]
        np.testing.assert_allclose(alone, wanted, rtol=2e-3)  # one step of float16
    batched = score(["u1"], conditions)["logits"]
    np.testing.assert_allclose(np.stack(batched), np.stack(everything["u1"]), rtol=2e-3)
    whole = noisy_views(audio["u1"], "u1", conditions, noise, "test", 0, "overall")
    one = noisy_views(audio["u1"], "u1", conditions[5:6], noise, "test", 0, "overall")
    assert torch.equal(whole[5:6], one)
    logits = np.stack(everything).astype(float)
    assert len(np.unique(logits[:, 0])) == 21  # the tolerance tells rows apart


class Spy(nn.Module):
    """Its logits are the first two samples it hears."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.modes, self.samples = [], []

    def forward(self, input_values):
        self.samples.append(input_values.numel())
        self.modes.append((self.training, torch.is_grad_enabled()))
        return SimpleNamespace(logits=input_values[:, :2] * self.weight)


def test_a_network_hears_the_normalised_view(audio, noise):
    loud = {"u2": audio["u2"] * 3 + 0.2}
    conditions = [CLEAN, ("two", 0.0)]
    table = predict(Spy(), loud, ["u2"], lambda _: conditions, noise, part="test", seed=0, speech_level="overall")
    views = noisy_views(loud["u2"], "u2", conditions, noise, "test", 0, "overall").double().numpy()
    wanted = (views - views.mean(1, keepdims=True)) / views.std(1, keepdims=True)
    np.testing.assert_allclose(np.stack(table["logits"]).astype(float), wanted[:, :2], rtol=2e-3)


def test_a_pass_holds_no_more_audio_than_the_limit(audio, noise, monkeypatch):
    monkeypatch.setattr(evaluation, "SECONDS_PER_BATCH", 1)
    spy, conditions, one = Spy(), grid(TYPES, SNRS), len(audio["u1"])
    predict(spy, audio, ["u1"], lambda _: conditions, noise, part="test", seed=0, speech_level="overall")
    assert spy.samples == [2 * one, 2 * one, 2 * one, one] and 2 * one <= RATE < 3 * one
    spy.samples.clear()
    predict(
        spy, {"u": np.tile(audio["u1"], 3)}, ["u"], lambda _: [CLEAN], None, part="test", seed=0, speech_level="overall"
    )
    assert spy.samples == [3 * one]  # a longer utterance is still whole


def test_the_table_has_a_row_for_each_utterance_and_condition_in_order(score):
    table = score(["u2", "u0"], grid(TYPES, SNRS))
    assert list(table.columns) == ["utterance", "condition", "snr_db", "logits"]
    assert table["utterance"].tolist() == ["u2"] * 7 + ["u0"] * 7
    assert table["condition"].tolist() == 2 * ["clean", *["one"] * 3, *["two"] * 3]
    assert table["snr_db"].isna().tolist() == 2 * [True, *[False] * 6]
    assert all(row.dtype == np.float16 and row.shape == (2,) for row in table["logits"])


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_scored_in_eval_mode_and_left_as_it_was(audio, training):
    spy = Spy().train(training)
    predict(spy, audio, ["u0"], lambda _: [CLEAN], None, part="test", seed=0, speech_level="active")
    assert spy.modes == [(False, False)] and spy.training == training


@pytest.mark.parametrize(("factor", "part"), [(math.nan, "test"), (math.inf, "train"), (1e9, "test")])
def test_logits_that_are_not_finite_are_no_predictions(audio, factor, part):
    """1e9 is finite, but not in the 16 bits that are kept."""
    spy = Spy()
    with torch.no_grad():
        spy.weight.mul_(factor)
    with pytest.raises(ValueError, match="logits of u1 are not finite"):
        predict(spy, audio, ["u1"], lambda _: [CLEAN], None, part=part, seed=0, speech_level="active")
