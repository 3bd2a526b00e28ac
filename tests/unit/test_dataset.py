"""What a network is trained on: windows on the teacher's frame grid, their noise, teacher outputs, orders, features."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from waveform import TEACHER

from ser_kd_utils.data.features import HOP
from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.training import dataset
from ser_kd_utils.training.dataset import (
    KeyedSampler,
    SpeechDataset,
    TeacherOutputs,
    paired_by_class,
    teacher_outputs,
)
from ser_kd_utils.training.losses import UNLABELLED

RATE = 16_000
TINY = TEACHER
LAYERS = (1, 3)


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
def speech(audio, noise):
    def speech(utterances=tuple(audio), seed=0, seconds=0.25, **options) -> SpeechDataset:
        classes = {utterance: int(utterance[1:]) % 2 for utterance in utterances}
        given = {"noise": noise, "types": ("one", "two")} | options
        return SpeechDataset(audio=audio, classes=classes, seed=seed, longest=round(seconds * RATE), **given)

    return speech


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(7)
    return encoders.freeze(encoders.build_teacher(TINY, ("high", "low")))


@pytest.fixture
def ask(teacher, audio, tmp_path):
    """What the teacher says of some utterances, kept in a folder of the test's."""

    def ask(utterances=tuple(audio), layers=LAYERS, model=teacher, sound=audio) -> TeacherOutputs:
        prepare = encoders.inputs_of_teacher(TINY).prepare_inputs
        return teacher_outputs(model, prepare, sound, list(utterances), layers, tmp_path / "outputs")

    return ask


def taught(outputs: TeacherOutputs) -> dict:
    """The dataset's options that hand the outputs on."""
    return {"states": outputs, "layers": LAYERS, "targets": {"teacher_logits": torch.stack([*outputs.logits.values()])}}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def item(data: SpeechDataset, index: int) -> dict:
    """A batch of one window, without its first axis."""
    return {name: value[0] for name, value in data.batch([index]).items()}


def over_epochs(training: SpeechDataset, epochs: int) -> list[dict]:
    items = []
    for epoch in range(epochs):
        training.set_epoch(epoch)
        items += [item(training, i) for i in range(len(training))]
    return items


# --- a window


def test_an_item_is_a_function_of_utterance_seed_and_epoch(speech, audio):
    training, again = speech(clean_fraction=0.5), speech(tuple(reversed(audio)), clean_fraction=0.5)
    for epoch in (1, 0, 1):
        training.set_epoch(epoch)
        again.set_epoch(epoch)
        assert all(same(item(training, i), item(again, 7 - i)) for i in range(8))
    first, other_seed, later = speech(), speech(seed=1), speech()
    later.set_epoch(1)
    for name in ("noise", "snr_db", "clean"):
        for other in (other_seed, later):
            differing = sum(not np.array_equal(item(first, i)[name], item(other, i)[name]) for i in range(8))
            assert differing >= (8 if name != "clean" else 5)  # few starts to choose from


def test_a_window_lies_in_its_utterance_on_the_frame_grid_and_short_ones_stay_whole(speech, audio):
    training = speech(seconds=0.45)  # 7,200 samples
    for number, whole in enumerate(audio.values()):
        found = item(training, number)
        window = found["clean"].numpy()
        assert len(window) == len(found["noise"]) == found["lengths"] == min(len(whole), 7200)
        assert any(np.array_equal(window, whole[i : i + len(window)]) for i in range(0, len(whole), HOP))


@pytest.mark.parametrize("samples", [4000, 4000 + HOP - 1, 4000 + HOP, 8641])
def test_windows_start_on_every_frame_that_leaves_room_for_a_whole_window(samples):
    ramp = SpeechDataset(audio={"u": np.arange(samples, dtype=np.float32)}, classes={"u": 1}, seed=0, longest=4000)
    items = over_epochs(ramp, 300)
    assert {len(item["clean"]) for item in items} == {4000}
    assert sorted({int(item["clean"][0]) for item in items}) == list(range(0, samples - 4000 + 1, HOP))


def test_lengths_are_those_of_the_items(speech):
    for seconds in (0.25, 0.45, 1.0):
        training = speech(seconds=seconds)
        assert training.lengths == [len(item["clean"]) for item in over_epochs(training, 1)]
    assert len(set(training.lengths)) == 8


# --- its noise


def test_noise_types_and_snrs_cover_their_range_and_clean_windows_have_none(speech):
    snrs = [item["snr_db"] for item in over_epochs(speech(snr_db=(5.0, 10.0)), 25)]
    assert 5 <= min(snrs) < 5.3 and 9.7 < max(snrs) <= 10
    assert speech(noise=None).batch([0]).keys() == {"clean", "lengths", "labels"}


@pytest.mark.parametrize(("types", "heard"), [(("one", "two"), {"one", "two"}), (("two",), {"two"})])
def test_only_the_types_that_are_asked_for_are_drawn_and_from_the_half_for_training(
    speech, noise, monkeypatch, types, heard
):
    asked, segment = [], NoiseBank.segment

    def spy(self, kind, part, *rest):
        asked.append((kind, part))
        return segment(self, kind, part, *rest)

    monkeypatch.setattr(NoiseBank, "segment", spy)
    over_epochs(speech(types=types), 10)
    assert set(asked) == {(kind, "train") for kind in heard} and len(asked) == 80


def test_a_share_of_the_items_is_heard_clean_and_nothing_else_changes(speech):
    noisy, mixed, again, all_clean = (over_epochs(speech(clean_fraction=share), 60) for share in (0.0, 0.3, 0.3, 1.0))
    clean = [item["snr_db"] == math.inf for item in mixed]
    assert 0.25 < np.mean(clean) < 0.35 and all(map(same, mixed, again))
    for item, other, is_clean in zip(mixed, noisy, clean, strict=True):
        assert math.isfinite(other["snr_db"]) and (is_clean or item["snr_db"] == other["snr_db"])
        assert torch.equal(item["clean"], other["clean"]) and torch.equal(item["noise"], other["noise"])
    assert all(item["snr_db"] == math.inf for item in all_clean)
    by_utterance = np.reshape(clean, (60, 8)).mean(0)
    assert by_utterance.min() > 0 and by_utterance.max() < 1  # drawn anew in each epoch


# --- a batch


def test_workers_do_not_change_a_batch(speech, ask):
    training = speech(**taught(ask()))
    training.set_epoch(3)
    here, there = (
        list(DataLoader(training, batch_size=3, shuffle=False, collate_fn=training.collate, num_workers=workers))
        for workers in (0, 2)
    )
    assert len(here) == 3 and "teacher_states" in here[0] and all(map(same, here, there))


def test_a_batch_is_padded_with_zeros(speech, ask, audio):
    outputs = ask()
    training = speech(seconds=1.0, **taught(outputs))
    items = [item(training, i) for i in (0, 6)]
    batch = training.batch([0, 6])
    lengths = [len(audio["u0"]), len(audio["u6"])]
    assert batch["lengths"].tolist() == lengths and batch["labels"].tolist() == [0, 0]
    for name in ("clean", "noise"):
        assert batch[name].shape == (2, lengths[1]) and torch.equal(batch[name][0, : lengths[0]], items[0][name])
        assert (batch[name][0, lengths[0] :] == 0).all()
    assert batch["snr_db"].tolist() == [found["snr_db"] for found in items]
    frames = [len(found["teacher_states"]) for found in items]
    assert batch["teacher_states"].shape == (2, frames[1], 2, 96)
    assert (batch["teacher_states"][0, frames[0] :] == 0).all()
    assert all(torch.equal(batch["teacher_states"][i, : frames[i]], items[i]["teacher_states"]) for i in range(2))
    assert torch.equal(batch["teacher_logits"], torch.stack([outputs.logits["u0"], outputs.logits["u6"]]))


def test_unlabelled_speech_passes_through_as_such(audio):
    training = SpeechDataset(audio=audio, classes={"u0": 1, "u1": UNLABELLED}, seed=0, longest=RATE)
    assert training.batch([0, 1])["labels"].tolist() == [1, UNLABELLED]
    assert torch.nn.CrossEntropyLoss().ignore_index == UNLABELLED


def test_no_utterance_to_train_on_is_an_error(audio):
    with pytest.raises(ValueError, match="No utterance to train on: all were left out, as shorter than a segment"):
        SpeechDataset(audio=audio, classes={}, seed=0, longest=RATE)


# --- what a teacher says


@torch.no_grad()
def direct(teacher, wave: np.ndarray):
    """The network itself, without any of the package's helpers: normalised speech, no mask."""
    wave = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))[None]
    return teacher(wave, output_hidden_states=True)


def test_outputs_are_what_the_teacher_says_of_the_whole_utterance(teacher, audio, ask):
    utterances = ["u5", "u0", "u2"]
    targets = ask(utterances)
    assert list(targets.states) == list(targets.logits) == list(targets.embeddings) == utterances
    for utterance in utterances:
        output, states = direct(teacher, audio[utterance]), targets.states[utterance]
        assert states.dtype == np.float16 and targets.logits[utterance].dtype == torch.float32
        torch.testing.assert_close(targets.logits[utterance], output.logits[0], rtol=1e-3, atol=1e-5)
        mean = encoders.head_of(teacher)(targets.embeddings[utterance])  # the head is linear: mean before or after it
        torch.testing.assert_close(mean, output.logits[0], rtol=1e-3, atol=1e-5)
        for number, layer in enumerate(LAYERS):
            wanted = output.hidden_states[layer][0].numpy()
            assert states[:, number].shape == wanted.shape
            np.testing.assert_allclose(states[:, number].astype(np.float32), wanted, rtol=2e-3, atol=2e-3)
    assert np.abs(states[:, 0] - states[:, 1]).mean() > 0.02  # the tolerance tells layers and frames apart
    assert np.abs(states[1:] - states[:-1]).mean() > 0.02


class FrameCounter(torch.nn.Module):
    """A teacher whose states say which 20 ms frame they stand for: 100 * layer + frame."""

    def __init__(self):
        super().__init__()
        self.projector = torch.nn.Linear(2, 2)
        self.config = SimpleNamespace(num_hidden_layers=3, hidden_size=2)

    def forward(self, input_values, output_hidden_states):
        # as wav2vec2-base, whose receptive field is 400 samples
        frames = torch.arange((input_values.shape[1] - 400) // HOP + 1, dtype=torch.float32)
        states = tuple((100 * layer + frames)[None, :, None].expand(1, -1, 2) for layer in range(4))
        return SimpleNamespace(hidden_states=states, logits=self.projector(states[-1]).mean(1))


@pytest.mark.parametrize("samples", [400, 719, 3999, 4000, 4001, 4000 + HOP - 1, 4000 + HOP, 9777])
def test_a_windows_states_are_those_of_its_own_frames(samples, ask):
    """The ramp's first sample says where a window starts, the counter's states which frames it was given."""
    sound = {"other": np.zeros(5000, np.float32), "u": np.arange(samples, dtype=np.float32)}
    outputs = ask(sound, model=FrameCounter(), sound=sound)
    training = SpeechDataset(audio=sound, classes={"u": 0}, seed=0, longest=4000, states=outputs, layers=LAYERS)
    for found in over_epochs(training, 40):
        start, own = int(found["clean"][0]), (len(found["clean"]) - 400) // HOP + 1
        frames = torch.arange(own) + start // HOP
        wanted = torch.stack([100 + frames, 300 + frames], dim=1)[:, :, None].expand(-1, -1, 2)
        # there may be a frame more, of which the student has none
        assert own <= len(found["teacher_states"]) <= own + 1
        torch.testing.assert_close(found["teacher_states"][:own].float(), wanted.float(), rtol=0, atol=0)


def test_some_of_the_layers_may_be_asked_for_and_in_another_order(speech, ask):
    both = item(speech(**taught(ask())), 0)["teacher_states"]
    for layers, wanted in (((3,), both[:, 1:]), ((3, 1), both.flip(1))):
        assert torch.equal(item(speech(states=ask(), layers=layers), 0)["teacher_states"], wanted)


def test_frames_of_the_cnn_on_a_window_are_the_slice_of_those_on_the_whole(teacher, audio, ask):
    """The same receptive fields: what a student sees in its frame is what the teacher's frame stands for."""
    wave, cnn = torch.from_numpy(audio["u7"])[None], teacher.wav2vec2.feature_extractor
    outputs = ask(["u7"])
    whole = cnn(wave)[0].T
    for start in range(0, wave.shape[1] - 4000, HOP):
        window = cnn(wave[:, start : start + 4000])[0].T
        assert len(window) <= len(outputs.window("u7", start, 4000, LAYERS)) <= len(window) + 1
        torch.testing.assert_close(window, whole[start // HOP :][: len(window)], rtol=1e-4, atol=1e-5)
    assert (whole[1:] - whole[:-1]).abs().mean() > 1e-2  # neighbours differ


def test_stored_states_stay_on_disk_until_a_batch_needs_them(ask, speech, tmp_path):
    outputs = ask()
    frames = sum(len(states) for states in outputs.states.values())
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["outputs.safetensors", "states"]
    assert (tmp_path / "outputs" / "states").stat().st_size == frames * 2 * 96 * 2  # two layers of 16 bits
    assert all(isinstance(states, np.memmap) for states in outputs.states.values())
    assert item(speech(**taught(outputs)), 0)["teacher_states"].dtype == torch.float16


def test_without_layers_no_states_are_kept(ask, tmp_path):
    outputs = ask(layers=())
    assert outputs.states == {} and len(outputs.logits) == len(outputs.embeddings) == 8
    assert (tmp_path / "outputs" / "states").stat().st_size == 0


def test_a_teacher_is_asked_once_for_each_utterance_and_learns_nothing(teacher, audio, ask):
    seen = []
    hook = teacher.register_forward_pre_hook(
        lambda net, _, given: seen.append((given["input_values"].shape, net.training, torch.is_grad_enabled())),
        with_kwargs=True,
    )
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    first = ask(["u3", "u1"])
    again = ask(["u3", "u1"])  # read, whoever asks
    hook.remove()
    assert seen == [((1, len(audio[name])), False, False) for name in ("u3", "u1")]
    assert not teacher.projector._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    for name in ("u3", "u1"):
        assert np.array_equal(first.states[name], again.states[name])
        assert torch.equal(first.logits[name], again.logits[name])
        assert torch.equal(first.embeddings[name], again.embeddings[name])


def test_outputs_of_a_killed_pass_do_not_count(ask, teacher, monkeypatch, tmp_path):
    wanted, save = ask(["u3", "u1"]).logits, dataset.save_file
    (tmp_path / "outputs").rename(tmp_path / "whole")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(["u3", "u1"])
    assert not (tmp_path / "outputs").exists()
    (tmp_path / ".unfinished-outputs" / "new").mkdir(
        parents=True
    )  # as a process leaves it that had no time to clean up
    (tmp_path / ".unfinished-outputs" / "new" / "states").write_bytes(b"half")
    monkeypatch.setattr(dataset, "save_file", save)
    again = ask(["u3", "u1"])
    assert all(torch.equal(again.logits[name], wanted[name]) for name in wanted)
    states = [(tmp_path / name / "states").read_bytes() for name in ("whole", "outputs")]
    assert states[0] == states[1] and not (tmp_path / ".unfinished-outputs").exists()


# --- batches of similar length


@pytest.fixture
def many():
    """300 utterances of 1 to 400 samples, in no order."""
    lengths = np.random.default_rng(0).integers(1, 400, 300)
    sound = {f"u{i}": np.zeros(n, np.float32) for i, n in enumerate(lengths)}

    def make(seed=0, epoch=0) -> KeyedSampler:
        training = SpeechDataset(audio=sound, classes=dict.fromkeys(sound, 0), seed=seed, longest=RATE)
        training.set_epoch(epoch)
        return training.sampler(8)

    return make


def test_every_item_comes_once_an_epoch(many):
    for epoch in range(3):
        order = many(epoch=epoch)
        assert sorted(order) == list(range(300)) and len(order) == 300


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
    sampler = many()
    assert list(sampler) == order
    sampler.data.set_epoch(1)  # the sampler of one training goes with its data
    assert list(sampler) == orders[1]


def test_lengths_within_a_batch_are_closer_than_at_random(many):
    order = many()
    lengths = np.array(order.data.lengths)

    def spread(order) -> float:
        return np.mean([np.ptp(lengths[order[i : i + 8]]) for i in range(0, 296, 8)])

    assert spread(np.array(list(order))) < 0.25 * spread(np.random.default_rng(1).permutation(300))


def test_the_order_does_not_depend_on_noise_or_teacher(speech, ask):
    """So that variants with and without distillation see the same batches."""
    changes = {}, {"noise": None}, taught(ask()) | {"types": ("two",)}
    orders = [list(speech(**options).sampler(2)) for options in changes]
    assert orders[0] == orders[1] == orders[2]


# --- pairs of a class, and features that were computed once

CLASSES = (7, 4, 1)
LABELS = {f"{label}-{take}": label for label, count in enumerate(CLASSES) for take in range(count)}


def stretches(lengths: dict[str, int] | None = None, longest: int = 6, seed: int = 0) -> SpeechDataset:
    """Utterances whose frames count up from 0, in their first channel; the teacher says the utterance's number."""
    lengths = lengths or dict.fromkeys(LABELS, 4)
    features = {
        name: np.stack([np.arange(length), np.full(length, number)], 1).astype(np.float16)
        for number, (name, length) in enumerate(lengths.items())
    }
    says = {"teacher_logits": torch.arange(len(lengths))[:, None] * torch.tensor([1.0, 0.0])}
    classes, sound = {name: LABELS[name] for name in lengths}, {name: np.zeros(1, np.float32) for name in lengths}
    more = {"features": [features], "frames": longest, "targets": says, "order": paired_by_class}
    return SpeechDataset(audio=sound, classes=classes, seed=seed, longest=1, **more)


def batches(data: SpeechDataset, epoch: int, size: int = 4) -> list[dict]:
    data.set_epoch(epoch)
    return list(DataLoader(data, size, sampler=data.sampler(size), collate_fn=data.collate))


def test_every_item_of_a_batch_has_a_positive_and_every_utterance_occurs():
    data = stretches()
    for epoch in range(5):
        seen = []
        for batch in batches(data, epoch):
            counts = torch.bincount(batch["labels"])
            assert not (counts % 2).any()
            seen += batch["teacher_logits"][:, 0].int().tolist()
        assert set(seen) == set(range(len(LABELS)))
        # the odd one out of a class of seven and of one is paired with an item that occurs twice
        assert len(seen) == len(data.sampler(4)) == 8 + 4 + 2


def test_pairs_change_with_the_epoch_and_the_seed_and_with_nothing_else():
    def order(seed: int, epoch: int) -> list[int]:
        data = stretches(seed=seed)
        data.set_epoch(epoch)
        return list(data.sampler(4))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    partners = set()
    for epoch in range(20):
        pairs = np.array(order(0, epoch)).reshape(-1, 2)
        partners |= {tuple(sorted(pair)) for pair in pairs.tolist()}
    assert len([pair for pair in partners if max(pair) < 7 and pair[0] != pair[1]]) == 7 * 6 / 2


def test_features_are_padded_and_counted():
    data = stretches({"0-0": 3, "1-0": 5})
    batch = data.batch([0, 1])
    features, counts = batch["inputs"]["features"], batch["inputs"]["counts"]
    assert features.shape == (2, 5, 2) and features.dtype == torch.float32
    assert counts.tolist() == [3, 5] and batch["labels"].tolist() == [0, 1]
    assert features[0, :, 0].tolist() == [0, 1, 2, 0, 0] and features[1, :, 1].tolist() == [1] * 5
    assert batch["teacher_logits"].tolist() == [[0, 0], [1, 0]]


def test_of_a_long_utterance_each_epoch_takes_another_stretch_and_all_of_it_is_taken():
    data = stretches({"0-0": 10, "1-0": 6})
    starts = []
    for epoch in range(60):
        data.set_epoch(epoch)
        features = data.batch([0, 1])["inputs"]["features"]
        assert features.shape == (2, 6, 2)
        starts.append(int(features[0, 0, 0]))
        assert features[0, :, 0].tolist() == [starts[-1] + place for place in range(6)]
        assert features[1, :, 0].tolist() == list(range(6))
    assert set(starts) == {0, 1, 2, 3, 4}


def test_views_of_an_utterance_come_in_turn():
    """One for each epoch, and again from the first: noisy features that were computed once."""
    views = [{"u": np.full((4, 2), number, np.float32)} for number in range(3)]
    data = SpeechDataset(
        audio={"u": np.zeros(2000, np.float32)}, classes={"u": 0}, seed=0, longest=2000, features=views, frames=4
    )
    seen = []
    for epoch in range(5):
        data.set_epoch(epoch)
        seen.append(data.batch([0])["inputs"]["features"].mean().item())
    assert seen == [0, 1, 2, 0, 1]
