"""Windows at a hop, the segments of a CNN: where they lie, their features, noise, batches and order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ser_kd_utils.data.noise import NoiseBank, active_power, draw, overall_power
from ser_kd_utils.methods.dkdfmh.model import HeadFusionConfig, features_of, segments_of
from ser_kd_utils.training.dataset import SpeechDataset, shuffled

RATE = 16_000
LONG, HOP = 1600, 800  # samples of a segment and from one to the next in training
SAMPLES = {"short": 700, "nearly": LONG - 1, "exactly": LONG, "one": 2399, "two": 2400, "four": 4150}
COUNTS = {"short": 1, "nearly": 1, "exactly": 1, "one": 1, "two": 2, "four": 4}
LABELS = dict(zip(SAMPLES, (2, 0, 1, 1, 3, 0), strict=True))
INDICES = [8, 0, 5, 3]


@pytest.fixture(scope="module")
def audio():
    """No two moments alike, each utterance at a level of its own, the last one with a pause."""
    rng = np.random.default_rng(0)
    made = {name: (rng.normal(0, 0.01, n) * (1 + i)).astype(np.float32) for i, (name, n) in enumerate(SAMPLES.items())}
    made["four"][2000:3000] *= 0.001
    return made


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(1)
    return NoiseBank({kind: [rng.normal(0, 0.1, RATE).astype(np.float32)] for kind in ("one", "two")}, "generated")


@pytest.fixture
def cut(audio):
    def cut(labels=LABELS, seed=0, epoch=0, **options) -> SpeechDataset:
        more = {"longest": LONG, "hop": HOP, "order": shuffled} | options
        types = () if options.get("noise") is None else ("one", "two")
        made = SpeechDataset(audio=audio, classes=labels, seed=seed, **{"types": types} | more)
        made.set_epoch(epoch)
        return made

    return cut


def computed(data: SpeechDataset, config: HeadFusionConfig, level: str = "active", batch_size: int = 4) -> torch.Tensor:
    return torch.from_numpy(data.computed(lambda waves: features_of(waves, config), level, batch_size)[0])


def waves(audio) -> np.ndarray:
    """The segments once more, sample by sample."""
    places = [(name, HOP * place) for name, count in COUNTS.items() for place in range(count)]
    return np.stack([np.take(audio[name], np.arange(first, first + LONG), mode="wrap") for name, first in places])


def same(one: dict, other: dict) -> bool:
    flat = [{**batch, **batch.get("inputs", {}), "inputs": torch.ones(1)} for batch in (one, other)]
    return flat[0].keys() == flat[1].keys() and all(map(torch.equal, flat[0].values(), flat[1].values()))


# --- clean


def test_segments_follow_each_other_at_the_hop_of_training_and_short_utterances_are_repeated(cut, audio, noise):
    clean, noisy = cut(), cut(noise=noise)
    for training in (clean, noisy):
        assert training.windows == [(name, place) for name, count in COUNTS.items() for place in range(count)]
        assert training.labels.tolist() == [LABELS[name] for name, _ in training.windows] and len(training) == 10
        batch = training.batch(range(10))
        assert torch.equal(batch["clean"], torch.from_numpy(waves(audio))) and batch["lengths"].tolist() == [LONG] * 10
        assert np.array_equal(batch["clean"][0, 1400:], audio["short"][:200])
    assert training.lengths == [700, LONG - 1, *[LONG] * 8]


def test_the_network_cuts_a_test_utterance_as_training_does(cut, audio):
    for name, count in COUNTS.items():
        found = cut({name: 0}).batch(range(count))["clean"]
        assert torch.equal(found, segments_of(torch.from_numpy(audio[name])[None], LONG, HOP)[0])


@pytest.mark.parametrize(("features", "shape"), [("log filter bank", (7, 40)), ("mfcc", (26, 4))])
@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_a_clean_batch_holds_features_of_the_segments_and_their_labels(cut, audio, features, shape, batch_size):
    training, config = cut(), HeadFusionConfig(features=features, segment=LONG, hop=300)  # the hop of tests is another
    training.features = computed(training, config, batch_size=batch_size)
    batch = training.batch(INDICES)
    assert batch.keys() == {"labels", "inputs"} and batch["inputs"]["features"].shape == (4, *shape)
    wanted = features_of(torch.from_numpy(waves(audio)[INDICES]), config)
    torch.testing.assert_close(batch["inputs"]["features"], wanted)
    assert batch["labels"].tolist() == [LABELS[name] for name in ("four", "short", "two", "one")]


def test_what_the_teacher_says_comes_with_its_segment(cut, noise):
    for training in (cut(), cut(noise=noise)):
        training.targets = {"teacher_logits": torch.arange(40.0).view(10, 4)}
        assert training.batch(INDICES)["teacher_logits"][:, 0].tolist() == [4.0 * i for i in INDICES]


# --- in noise


def by_name(training: SpeechDataset, indices) -> dict:
    """Noise and SNR of each segment, by utterance and place."""
    batch = training.batch(indices)
    found = zip(batch["noise"].numpy(), batch["snr_db"].tolist(), strict=True)
    return {training.windows[i]: each for i, each in zip(indices, found, strict=True)}


def test_noise_is_a_function_of_utterance_place_seed_and_epoch(cut, noise):
    all_ten = list(range(10))
    first = by_name(cut(noise=noise), all_ten)
    assert len({snr for _, snr in first.values()}) == len({each.tobytes() for each, _ in first.values()}) == 10
    # whatever else is there, in the batch or asked before
    fewer = cut(labels={name: LABELS[name] for name in ("four", "short", "two")}, noise=noise, epoch=3)
    by_name(fewer, [0, 1])
    fewer.set_epoch(0)
    for key, (wave, snr) in (by_name(fewer, [6, 2, 4]) | by_name(fewer, [5])).items():
        assert np.array_equal(wave, first[key][0]) and snr == first[key][1]
    for other in (cut(noise=noise, seed=1), cut(noise=noise, epoch=1)):
        again = by_name(other, all_ten)
        assert all(
            snr != first[key][1] and not np.array_equal(wave, first[key][0]) for key, (wave, snr) in again.items()
        )


def test_noise_is_drawn_from_the_types_and_levels_asked_for_and_from_the_half_for_training(cut, noise, monkeypatch):
    asked, segment = [], NoiseBank.segment
    monkeypatch.setattr(
        NoiseBank,
        "segment",
        lambda self, kind, part, *key: asked.append((kind, part)) or segment(self, kind, part, *key),
    )
    every = range(10)
    for types, heard in ((("one", "two"), {"one", "two"}), (("two",), {"two"})):
        asked.clear()
        levels = [
            snr
            for epoch in range(10)
            for snr in cut(noise=noise, types=types, snr_db=(5.0, 10.0), epoch=epoch).batch(every)["snr_db"]
        ]
        assert set(asked) == {(kind, "train") for kind in heard} and len(asked) == 100
        assert 5 <= min(levels) < 5.3 and 9.7 < max(levels) <= 10


@pytest.mark.parametrize("level", ["active", "overall"])
def test_noisy_features_are_of_the_snr_drawn_for_the_first_epoch(cut, noise, audio, level):
    training, config = cut(noise=noise), HeadFusionConfig(segment=LONG, hop=300)
    given = training.batch(range(10))
    assert (
        given.keys() == {"labels", "clean", "noise", "lengths", "snr_db"} and given["lengths"].tolist() == [LONG] * 10
    )
    clean = torch.from_numpy(waves(audio))
    wanted = [draw(f"{u}@{place}", 0, 0, ("one", "two"), (0.0, 20.0))[1] for u, place in by_name(training, range(10))]
    assert given["snr_db"].tolist() == wanted
    power = {"active": active_power, "overall": overall_power}[level](clean)
    gain = (power / overall_power(given["noise"]) / 10 ** (torch.tensor(wanted).double() / 10)).sqrt()
    noisy = clean + gain[:, None].float() * given["noise"]
    torch.testing.assert_close(10 * (power / overall_power(noisy - clean)).log10(), given["snr_db"], atol=1e-4, rtol=0)
    torch.testing.assert_close(computed(training, config, level), features_of(noisy, config), atol=1e-3, rtol=0)


# --- batches and their order


@pytest.mark.parametrize("noisy", [False, True], ids=["clean", "noisy"])
def test_a_loader_gives_whole_batches_in_the_epochs_order_whatever_its_workers(cut, noise, noisy):
    training = cut(noise=noise if noisy else None, epoch=2)
    if not noisy:
        training.features = computed(training, HeadFusionConfig(segment=LONG, hop=300))
    order = list(training.sampler(3))
    for workers in (0, 2):
        loader = DataLoader(
            training, batch_size=3, sampler=training.sampler(3), collate_fn=training.collate, num_workers=workers
        )
        batches = list(loader)
        assert [len(batch["labels"]) for batch in batches] == [3, 3, 3, 1]
        assert all(same(batch, training.batch(order[3 * i : 3 * i + 3])) for i, batch in enumerate(batches))


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone(cut, noise):
    def order(**options) -> tuple[int, ...]:
        sampler = cut(**options).sampler(3)
        assert len(sampler) == 10
        return tuple(sampler)

    orders = {(seed, epoch): order(seed=seed, epoch=epoch) for seed in (0, 1) for epoch in range(3)}
    assert len(set(orders.values())) == 6 and all(sorted(each) == list(range(10)) for each in orders.values())
    assert orders[1, 2] == order(seed=1, epoch=2, noise=noise)
