"""What a network is trained on: pieces on the teacher's frame grid, their noise, stored targets, even batches."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.models import wav2vec2
from ser_kd_utils.models.wav2vec2 import HOP
from ser_kd_utils.pieces import UNLABELLED, Buckets, Pieces, collate, teacher_targets
from ser_kd_utils.settings import TeacherSettings

RATE = 16_000
TINY = TeacherSettings.of("tiny")
LEVELS = (1, 3)


@pytest.fixture(scope="module")
def audio():
    """Eight utterances of 0.4 to 0.54 s: tones in noise, no two moments alike."""
    rng = np.random.default_rng(0)
    lengths = [6400 + 320 * i + 37 * (i % 3) for i in range(8)]
    waves = [0.1 * np.sin(np.arange(n) * (300 + 50 * i) / RATE) + rng.normal(0, 0.02, n) for i, n in enumerate(lengths)]
    return {f"u{i}": wave.astype(np.float32) for i, wave in enumerate(waves)}


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(1)
    return NoiseBank({kind: [rng.normal(0, 0.1, RATE).astype(np.float32)] for kind in ("one", "two")}, "generated")


@pytest.fixture
def pieces(audio, noise):
    def make(utterances=tuple(audio), seed=0, seconds=0.25, **options) -> Pieces:
        labels = {utterance: int(utterance[1:]) % 2 for utterance in utterances}
        return Pieces(audio, labels, seed=seed, seconds=seconds, **{"noise": noise} | options)

    return make


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(7)
    return wav2vec2.freeze(wav2vec2.build_teacher(TINY, ("high", "low")))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def over_epochs(training: Pieces, epochs: int) -> list[dict]:
    items = []
    for epoch in range(epochs):
        training.set_epoch(epoch)
        items += [training[i] for i in range(len(training))]
    return items


# --- a piece


def test_an_item_is_a_function_of_utterance_seed_and_epoch(pieces, audio):
    training, again = pieces(clean_share=0.5), pieces(tuple(reversed(audio)), clean_share=0.5)
    for epoch in (1, 0, 1):
        training.set_epoch(epoch)
        again.set_epoch(epoch)
        assert all(same(training[i], again[7 - i]) for i in range(8))
    first, other_seed, later = pieces(), pieces(seed=1), pieces()
    later.set_epoch(1)
    for name in ("noise", "snr_db", "clean"):
        for other in (other_seed, later):
            differing = sum(not np.array_equal(first[i][name], other[i][name]) for i in range(8))
            assert differing >= (8 if name != "clean" else 5)  # few starts to choose from


def test_a_piece_lies_in_its_utterance_on_the_frame_grid_and_short_ones_stay_whole(pieces, audio):
    training = pieces(seconds=0.45)  # 7,200 samples
    for utterance, item in zip(audio, map(training.__getitem__, range(8)), strict=True):
        whole, piece = audio[utterance], item["clean"].numpy()
        assert len(piece) == len(item["noise"]) == min(len(whole), 7200)
        assert any(np.array_equal(piece, whole[i : i + len(piece)]) for i in range(0, len(whole), HOP))


@pytest.mark.parametrize("samples", [4000, 4000 + HOP - 1, 4000 + HOP, 8641])
def test_pieces_start_on_every_frame_that_leaves_room_for_a_whole_piece(samples):
    ramp = Pieces({"u": np.arange(samples, dtype=np.float32)}, {"u": 1}, seed=0, seconds=0.25)
    items = over_epochs(ramp, 300)
    assert {len(item["clean"]) for item in items} == {4000}
    assert sorted({int(item["clean"][0]) for item in items}) == list(range(0, samples - 4000 + 1, HOP))


def test_lengths_are_those_of_the_items(pieces):
    for seconds in (0.25, 0.45, 1.0):
        training = pieces(seconds=seconds)
        assert training.lengths == [len(item["clean"]) for item in over_epochs(training, 1)]
    assert len(set(training.lengths)) == 8


# --- its noise


def test_noise_types_and_snrs_cover_their_range_and_clean_pieces_have_none(pieces):
    snrs = [item["snr_db"] for item in over_epochs(pieces(snr_db=(5.0, 10.0)), 25)]
    assert 5 <= min(snrs) < 5.3 and 9.7 < max(snrs) <= 10
    assert pieces(noise=None)[0].keys() == {"clean", "label"}


@pytest.mark.parametrize(("types", "heard"), [((), {"one", "two"}), (("two",), {"two"}), (["one"], {"one"})])
def test_only_the_types_that_are_asked_for_are_drawn_and_from_the_half_for_training(
    pieces, noise, monkeypatch, types, heard
):
    asked, segment = [], NoiseBank.segment

    def spy(self, kind, part, *rest):
        asked.append((kind, part))
        return segment(self, kind, part, *rest)

    monkeypatch.setattr(NoiseBank, "segment", spy)
    over_epochs(pieces(types=types), 10)
    assert set(asked) == {(kind, "train") for kind in heard} and len(asked) == 80


def test_a_share_of_the_items_is_heard_clean_and_nothing_else_changes(pieces):
    noisy, mixed, again, all_clean = (over_epochs(pieces(clean_share=share), 60) for share in (0.0, 0.3, 0.3, 1.0))
    clean = [item["snr_db"] == math.inf for item in mixed]
    assert 0.25 < np.mean(clean) < 0.35 and all(map(same, mixed, again))
    for item, other, is_clean in zip(mixed, noisy, clean, strict=True):
        assert math.isfinite(other["snr_db"]) and (is_clean or item["snr_db"] == other["snr_db"])
        assert torch.equal(item["clean"], other["clean"]) and torch.equal(item["noise"], other["noise"])
    assert all(item["snr_db"] == math.inf for item in all_clean)
    by_utterance = np.reshape(clean, (60, 8)).mean(0)
    assert by_utterance.min() > 0 and by_utterance.max() < 1  # drawn anew in each epoch


# --- a batch


def test_workers_do_not_change_a_batch(pieces, teacher, audio, tmp_path):
    training = pieces(targets=teacher_targets(teacher, audio, list(audio), LEVELS, tmp_path))
    training.set_epoch(3)
    here, there = (
        list(DataLoader(training, batch_size=3, shuffle=False, collate_fn=collate, num_workers=workers))
        for workers in (0, 2)
    )
    assert len(here) == 3 and "states" in here[0] and all(map(same, here, there))


def test_collate_pads_with_zeros(pieces, teacher, audio, tmp_path):
    targets = teacher_targets(teacher, audio, list(audio), LEVELS, tmp_path)
    training = pieces(seconds=1.0, targets=targets)
    items = [training[i] for i in (0, 6)]
    batch = collate(items)
    lengths = [len(audio["u0"]), len(audio["u6"])]
    assert batch["lengths"].tolist() == lengths and batch["labels"].tolist() == [0, 0]
    for name in ("clean", "noise"):
        assert batch[name].shape == (2, lengths[1]) and torch.equal(batch[name][0, : lengths[0]], items[0][name])
        assert (batch[name][0, lengths[0] :] == 0).all()
    assert batch["snr_db"].tolist() == [item["snr_db"] for item in items]
    frames = [len(item["states"]) for item in items]
    assert batch["states"].shape == (2, frames[1], 2, 96) and (batch["states"][0, frames[0] :] == 0).all()
    assert all(torch.equal(batch["states"][i, : frames[i]], items[i]["states"]) for i in range(2))
    assert torch.equal(batch["teacher_logits"], torch.stack([targets.logits["u0"], targets.logits["u6"]]))


def test_unlabelled_speech_passes_through_as_such(audio):
    training = Pieces(audio, {"u0": 1, "u1": UNLABELLED}, seed=0, seconds=1.0)
    assert collate([training[0], training[1]])["labels"].tolist() == [1, UNLABELLED]
    assert torch.nn.CrossEntropyLoss().ignore_index == UNLABELLED


# --- what a teacher says


@torch.no_grad()
def direct(teacher, wave: np.ndarray):
    """The network itself, without any of the package's helpers: normalised speech, no mask."""
    wave = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))[None]
    return teacher(wave, output_hidden_states=True)


def test_targets_are_what_the_teacher_says_of_the_whole_utterance(teacher, audio, tmp_path):
    utterances = ["u5", "u0", "u2"]
    targets = teacher_targets(teacher, audio, utterances, LEVELS, tmp_path)
    assert list(targets.states) == list(targets.logits) == utterances
    for utterance in utterances:
        output, states = direct(teacher, audio[utterance]), targets.states[utterance]
        assert states.dtype == np.float16 and targets.logits[utterance].dtype == torch.float32
        torch.testing.assert_close(targets.logits[utterance], output.logits[0], rtol=1e-3, atol=1e-5)
        for number, level in enumerate(LEVELS):
            wanted = output.hidden_states[level][0].numpy()
            assert states[:, number].shape == wanted.shape
            np.testing.assert_allclose(states[:, number].astype(np.float32), wanted, rtol=2e-3, atol=2e-3)
    assert np.abs(states[:, 0] - states[:, 1]).mean() > 0.02  # the tolerance tells levels and frames apart
    assert np.abs(states[1:] - states[:-1]).mean() > 0.02


class FrameCounter(torch.nn.Module):
    """A teacher whose states say which 20 ms frame they stand for: 100 * level + frame."""

    def __init__(self, hop: int = HOP):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(inputs_to_logits_ratio=hop, num_hidden_layers=3, hidden_size=2)
        self.config.conv_kernel, self.config.conv_stride = (400,), (hop,)

    def _get_feat_extract_output_lengths(self, samples):
        return (samples - 400) // HOP + 1  # wav2vec2-base: its receptive field is 400 samples

    def forward(self, waves, output_hidden_states):
        frames = torch.arange(self._get_feat_extract_output_lengths(waves.shape[1]), dtype=torch.float32)
        states = tuple((100 * level + frames)[None, :, None].expand(1, -1, 2) for level in range(4))
        return SimpleNamespace(hidden_states=states, logits=torch.zeros(1, 2))


@pytest.mark.parametrize("samples", [400, 719, 3999, 4000, 4001, 4000 + HOP - 1, 4000 + HOP, 9777])
def test_a_pieces_targets_are_those_of_its_own_frames(samples, tmp_path):
    """The ramp's first sample says where a piece starts, the counter's states which frames it was given."""
    sound = {"other": np.zeros(5000, np.float32), "u": np.arange(samples, dtype=np.float32)}
    targets = teacher_targets(FrameCounter(), sound, list(sound), LEVELS, tmp_path)
    training = Pieces(sound, {"u": 0}, seed=0, seconds=0.25, targets=targets)
    for item in over_epochs(training, 40):
        start, length = int(item["clean"][0]), len(item["clean"])
        frames = torch.arange((length - 400) // HOP + 1) + start // HOP
        wanted = torch.stack([100 + frames, 300 + frames], dim=1)[:, :, None].expand(-1, -1, 2)
        torch.testing.assert_close(item["states"].float(), wanted.float(), rtol=0, atol=0)


def test_frames_of_the_cnn_on_a_piece_are_the_slice_of_those_on_the_whole(teacher, audio, tmp_path):
    """The same receptive fields: what a student sees in its frame is what the teacher's frame stands for."""
    wave, cnn = torch.from_numpy(audio["u7"])[None], teacher.wav2vec2.feature_extractor
    targets = teacher_targets(teacher, audio, ["u7"], LEVELS, tmp_path)
    whole = cnn(wave)[0].T
    for start in range(0, wave.shape[1] - 4000, HOP):
        piece = cnn(wave[:, start : start + 4000])[0].T
        assert len(piece) == len(targets.of_piece("u7", start, 4000)) == targets.frames(4000)
        torch.testing.assert_close(piece, whole[start // HOP :][: len(piece)], rtol=1e-4, atol=1e-5)
    assert (whole[1:] - whole[:-1]).abs().mean() > 1e-2  # neighbours differ


def test_a_network_with_another_frame_rate_is_refused(audio, tmp_path):
    with pytest.raises(ValueError, match=f"frames are 160 samples apart, not {HOP}"):
        teacher_targets(FrameCounter(160), audio, ["u0"], LEVELS, tmp_path)


def test_stored_states_stay_on_disk_until_a_batch_needs_them(teacher, audio, pieces, tmp_path):
    targets = teacher_targets(teacher, audio, list(audio), LEVELS, tmp_path)
    frames = sum(len(states) for states in targets.states.values())
    assert [path.name for path in tmp_path.iterdir()] == ["states.npy"]
    assert 0 <= (tmp_path / "states.npy").stat().st_size - frames * 2 * 96 * 2 < 1000  # two levels of 16 bits
    training = pieces(targets=targets)
    for item, states in zip(over_epochs(training, 1), targets.states.values(), strict=True):
        assert isinstance(states, np.memmap) and item["states"].dtype == torch.float16
        assert np.shares_memory(item["states"].numpy(), states)


def test_a_teacher_is_asked_once_for_each_utterance_and_learns_nothing(teacher, audio, tmp_path):
    heard = []
    hook = teacher.register_forward_pre_hook(
        lambda net, given: heard.append((given[0].shape, net.training, torch.is_grad_enabled()))
    )
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher_targets(teacher, audio, ["u3", "u1"], LEVELS, tmp_path)
    hook.remove()
    assert heard == [((1, len(audio[name])), False, False) for name in ("u3", "u1")]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


# --- batches of similar length


@pytest.fixture
def many():
    """300 utterances of 1 to 400 samples, in no order."""
    lengths = np.random.default_rng(0).integers(1, 400, 300)
    sound = {f"u{i}": np.zeros(n, np.float32) for i, n in enumerate(lengths)}

    def make(seed=0, epoch=0) -> Buckets:
        training = Pieces(sound, dict.fromkeys(sound, 0), seed=seed, seconds=1.0)
        training.set_epoch(epoch)
        return Buckets(training, 8)

    return make


def test_every_item_comes_once_an_epoch(many):
    for epoch in range(3):
        buckets = many(epoch=epoch)
        assert sorted(buckets) == list(range(300)) and len(buckets) == 300


def test_the_order_of_the_items_is_a_function_of_seed_and_epoch(many):
    torch.manual_seed(0)
    order = list(many())
    torch.manual_seed(1)
    torch.rand(3)
    state = torch.get_rng_state()
    assert list(many()) == order
    assert torch.equal(torch.get_rng_state(), state)
    orders = [order, list(many(epoch=1)), list(many(epoch=2)), list(many(seed=1)), list(many(seed=1, epoch=1))]
    assert len(set(map(tuple, orders))) == 5
    batches = [{frozenset(each[i : i + 8]) for i in range(0, 300, 8)} for each in orders]
    assert len(batches[0] & batches[1]) < 4  # other neighbours, not only another order of the same batches
    buckets = many()
    assert list(buckets) == order
    buckets.pieces.set_epoch(1)  # the sampler of one training goes with its data
    assert list(buckets) == orders[1]


def test_lengths_within_a_batch_are_closer_than_at_random(many):
    buckets = many()
    lengths = np.array(buckets.pieces.lengths)

    def spread(order) -> float:
        return np.mean([np.ptp(lengths[order[i : i + 8]]) for i in range(0, 296, 8)])

    assert spread(np.array(list(buckets))) < 0.25 * spread(np.random.default_rng(1).permutation(300))


def test_the_order_does_not_depend_on_noise_or_targets(pieces, teacher, audio, tmp_path):
    """So that rows with and without distillation see the same batches."""
    targets = teacher_targets(teacher, audio, list(audio), LEVELS, tmp_path)
    orders = [
        list(Buckets(pieces(**options), 2))
        for options in ({}, {"noise": None}, {"targets": targets, "types": ("two",)})
    ]
    assert orders[0] == orders[1] == orders[2]
