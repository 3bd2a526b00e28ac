"""Inside a network: states as its layers give them, kernel alignment by two formulas, one map for clean and noisy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification
from waveform import NETWORK as TINY_NETWORK

from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.report.representations import States, class_distances, layer_states, linear_cka, plane, similarity
from ser_kd_utils.training.evaluation import CLEAN, noisy_views

LAYERS = TINY_NETWORK["num_hidden_layers"]
LENGTHS = {"long": 9000, "middle": 6400, "short": 1700}
UTTERANCES = list(LENGTHS)
NOISY = ("hiss", 0.0)


@pytest.fixture(scope="module")
def audio():
    rng = np.random.default_rng(0)
    return {name: rng.normal(0.02, 0.1, samples).astype(np.float32) for name, samples in LENGTHS.items()}


@pytest.fixture(scope="module")
def noise():
    return NoiseBank({"hiss": [np.random.default_rng(1).normal(0, 0.1, 40_000).astype(np.float32)]}, "generated")


def network(layers: int = LAYERS) -> Wav2Vec2ForSequenceClassification:
    torch.manual_seed(0)
    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(**TINY_NETWORK | {"num_hidden_layers": layers}, layerdrop=0)
    )


@pytest.fixture(scope="module")
def teacher():
    return network()


def prepare_inputs(waves: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    assert lengths.tolist() == [waves.shape[1]]
    return {"input_values": (waves - waves.mean()) / waves.std(correction=0)}


@pytest.fixture
def states(audio, noise):
    def states(model, utterances=UTTERANCES, condition=NOISY, bank=noise, frames=1000, part="test", seed=0) -> States:
        about = {"part": part, "seed": seed, "speech_level": "overall", "frames": frames}
        return layer_states(model, audio, utterances, condition, bank, prepare_inputs=prepare_inputs, **about)

    return states


def direct(model, view: torch.Tensor) -> list[np.ndarray]:
    """What each transformer layer returns for a wave (samples,), as (frames, width)."""
    after = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: after.append(output[0].numpy()))
        for layer in model.wav2vec2.encoder.layers
    ]
    with torch.no_grad():
        model.eval()(**prepare_inputs(view[None], torch.tensor([len(view)])))
    for hook in hooks:
        hook.remove()
    return after


@pytest.mark.parametrize("condition", [CLEAN, NOISY])
def test_states_are_what_the_layers_return_for_each_whole_utterance(teacher, states, audio, noise, condition):
    views = [noisy_views(audio[name], name, [condition], noise, "test", 0, "overall")[0] for name in UTTERANCES]
    wanted = [direct(teacher, view) for view in views]
    found = states(teacher.train(), condition=condition)  # dropout would show
    assert len(found.frames) == len(found.means) == LAYERS
    for layer in range(LAYERS):
        assert found.frames[layer].dtype == found.means[layer].dtype == np.float32
        whole = [utterance[layer] for utterance in wanted]
        np.testing.assert_allclose(found.frames[layer], np.concatenate(whole), rtol=1e-3, atol=1e-4)
        means = np.stack([state.mean(0) for state in whole])
        np.testing.assert_allclose(found.means[layer], means, rtol=1e-3, atol=1e-4)


def test_clean_speech_needs_no_noise_and_noise_changes_the_states(teacher, states):
    quiet = states(teacher, condition=CLEAN, bank=None)
    assert np.array_equal(quiet.frames[0], states(teacher, condition=CLEAN).frames[0])
    heard = [states(teacher, **change).means[0] for change in ({}, {"part": "train"}, {"seed": 1})]
    for one, other in ((quiet.means[0], heard[0]), (heard[0], heard[1]), (heard[0], heard[2])):
        assert np.abs(one - other).max() > 1e-3


def test_the_frames_kept_are_few_and_evenly_spread_and_the_means_are_of_all(teacher, states):
    everything, some = states(teacher), states(teacher, frames=6)
    counts = [len(states(teacher, [name]).frames[0]) for name in UTTERANCES]
    assert counts == [27, 19, 4]
    places = [0, 4, 9, 13, 18, 22, *(27 + place for place in (0, 3, 6, 9, 12, 15)), *range(46, 50)]
    for layer in range(LAYERS):
        assert np.array_equal(some.frames[layer], everything.frames[layer][places])
        assert np.array_equal(some.means[layer], everything.means[layer])


def test_an_utterance_has_the_same_states_in_whatever_order_and_company(teacher, states):
    forward, backward = states(teacher, frames=4), states(teacher, UTTERANCES[::-1], frames=4)
    alone = states(teacher, ["middle"], frames=4)
    for layer in range(LAYERS):
        assert np.array_equal(forward.means[layer], backward.means[layer][::-1])
        blocks = [backward.frames[layer][first : first + 4] for first in (8, 4, 0)]
        assert np.array_equal(forward.frames[layer], np.concatenate(blocks))
        assert np.array_equal(alone.frames[layer], blocks[1])


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_it_was_in(teacher, states, training):
    teacher.train(training)
    states(teacher, ["short"])
    assert teacher.training == training and teacher.wav2vec2.encoder.training == training


def test_a_student_is_compared_with_its_teacher_frame_by_frame(teacher, states):
    student = network(2)
    student.load_state_dict(teacher.state_dict(), strict=False)
    table = similarity(states(teacher, condition=CLEAN), states(student, condition=CLEAN))
    assert list(table.index) == [1, 2, 3] and list(table.columns) == [1, 2]
    assert (table.index.name, table.columns.name) == ("teacher layer", "student layer")
    assert table.loc[1, 1] == pytest.approx(1) and table.loc[2, 2] == pytest.approx(1)  # copied layers
    assert table.loc[3, 1] < table.loc[3, 2] < 0.9999 and table.loc[1, 2] == pytest.approx(table.loc[2, 1])
    noisy = similarity(states(teacher, condition=CLEAN), states(student))
    pd.testing.assert_series_equal(noisy.loc[1] < table.loc[1], pd.Series(True, table.columns, name=1))


def draw(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 1.0, (rows, columns))


def test_cka_is_one_for_the_same_states_and_forgets_rotation_scale_and_shift():
    x = draw(50, 6, seed=0) * np.arange(1, 7)
    rotation = np.linalg.qr(draw(6, 6, seed=1))[0]
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, 0.01 * x @ rotation + 7) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, x * [1, 1, 1, 1, 1, 0]) < 0.9  # not every linear map


def test_cka_is_the_normalised_hsic_of_centred_gram_matrices():
    x = draw(40, 5, seed=0)
    y = np.tanh(x[:, :3]) + 0.5 * draw(40, 3, seed=1)
    centre = np.eye(40) - 1 / 40

    def hsic(one, other):
        return np.trace(centre @ one @ one.T @ centre @ other @ other.T)

    wanted = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert 0.1 < wanted < 0.9
    assert linear_cka(x, y) == pytest.approx(wanted, rel=1e-10)
    assert linear_cka(y, x) == pytest.approx(wanted, rel=1e-10)


def test_cka_of_unrelated_states_is_near_zero_with_many_rows_only():
    assert linear_cka(draw(20_000, 20, seed=0), draw(20_000, 20, seed=1)) < 0.002
    few = linear_cka(draw(200, 50, seed=0), draw(200, 50, seed=1))
    assert few == pytest.approx(50 / (200 + 50), abs=0.02)  # as the docstring warns


def test_cka_keeps_its_precision_on_32_bit_states_far_from_zero():
    x = draw(3000, 4, seed=0)
    assert linear_cka(x, (1000 + x).astype(np.float32)) == pytest.approx(1, abs=1e-6)


def test_the_plane_holds_the_references_two_main_axes_and_others_lie_on_the_same_ones():
    spread = draw(60, 5, seed=0) @ draw(5, 5, seed=1)
    # other units change nothing
    clean, noisy = plane(spread * [1, 1000, 1, 1, 0.001], (spread[:9] + 0.5) * [1, 1000, 1, 1, 0.001])
    standard = (spread - spread.mean(0)) / spread.std(0)
    _, lengths, axes = np.linalg.svd(standard)
    np.testing.assert_allclose(np.linalg.norm(clean, axis=0), lengths[:2])
    signs = np.sign(np.sum(clean * (standard @ axes[:2].T), axis=0))
    np.testing.assert_allclose(clean, signs * (standard @ axes[:2].T), atol=1e-9)
    moved = (spread[:9] + 0.5 - spread.mean(0)) / spread.std(0)
    np.testing.assert_allclose(noisy, signs * (moved @ axes[:2].T), atol=1e-9)


def test_class_distances_see_angles_and_not_lengths():
    apart = np.array([[1.0, 0], [5, 0.1], [0, 1], [0.1, 9]])
    assert class_distances(apart, ["a", "a", "b", "b"]) > 0.9
    assert class_distances(apart, ["a", "b", "a", "b"]) < 0
