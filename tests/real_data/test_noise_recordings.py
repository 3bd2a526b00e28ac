"""Real speech in real noise: the shared recordings under every rule of ser_kd_utils.data.noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ser_kd_utils.data.audio import SAMPLE_RATE, cache_audio, decode
from ser_kd_utils.data.corpora import load_corpus
from ser_kd_utils.data.noise import TYPES_GENERATED, NoiseBank, active_power, draw, mix, overall_power

FIVE = ("babble", "chainsaw", "helicopter", "rain", "street")


@pytest.fixture(scope="module")
def bank(shared_data) -> NoiseBank:
    return NoiseBank.from_folder(shared_data / "noise")


@pytest.fixture(scope="module", params=["emodb", "ravdess"])
def speech(request, shared_data) -> list[np.ndarray]:
    """Every tenth utterance, RAVDESS with about a second of digital silence on both sides of the words."""
    return [decode(path) for path in sorted((shared_data / request.param).glob("*.flac"))[::10]]


def padded(items: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item) for item in items], batch_first=True),
        torch.tensor([len(item) for item in items]),
    )


def speech_power(x: np.ndarray, level: str) -> float:
    """numpy float64, less the DC offset; for "active", mean square over 20 ms frames within 40 dB of the loudest."""
    frames = np.split(x - np.mean(x, dtype=np.float64), range(320, len(x), 320))
    powers = np.array([np.mean(frame**2) for frame in frames])
    threshold = powers.max() / 1e4 if level == "active" else -1
    return np.mean(
        np.concatenate([frame for frame, power in zip(frames, powers, strict=True) if power >= threshold]) ** 2
    )


def test_the_five_types_with_most_seconds(bank, shared_data):
    assert bank.types == FIVE
    report = bank.report().set_index("type")
    assert report.recordings.to_dict() == {"babble": 4, "chainsaw": 26, "helicopter": 38, "rain": 20, "street": 3}
    assert report["left out"].sum() == 0 and bank.excluded.empty
    assert report.seconds.sum() == pytest.approx(671.4, abs=0.5)


@pytest.mark.parametrize("level", ["active", "overall"])
def test_snr_of_real_speech_in_real_noise(bank, speech, level):
    clean, lengths = padded(speech)
    drawn = [draw(f"u{k}", 0, 1, bank.types, (-5, 20)) for k in range(len(speech))]
    segments = [
        bank.segment(kind, "test", len(x), k) for k, (x, (kind, _)) in enumerate(zip(speech, drawn, strict=True))
    ]
    noise, _ = padded(segments)
    noisy = mix(clean, noise, torch.tensor([snr for _, snr in drawn]), level, lengths).numpy().astype(np.float64)
    for row, (x, (_, snr)) in enumerate(zip(speech, drawn, strict=True)):
        residual = noisy[row, : len(x)] - x.astype(np.float64)
        measured = 10 * np.log10(speech_power(x, level) / np.var(residual))
        assert measured == pytest.approx(snr, abs=1e-4)
        assert not noisy[row, len(x) :].any()


def test_the_dc_offset_of_a_recording_is_no_part_of_its_level(bank, shared_data):
    """The offset holds over a hundred times the power of the speech."""
    samples = decode(shared_data / "faulty" / "audio" / "dc.wav")
    clean, noise = torch.from_numpy(samples)[None], torch.from_numpy(bank.segment("rain", "test", len(samples)))[None]
    assert samples.mean() ** 2 > 100 * samples.var()
    added = (mix(clean, noise, 0.0, "overall") - clean)[0].numpy()
    assert 10 * np.log10(np.var(samples, dtype=np.float64) / np.var(added, dtype=np.float64)) == pytest.approx(
        0, abs=1e-3
    )
    for level in ("active", "overall"):
        power = {"active": active_power, "overall": overall_power}[level](clean).item()
        assert power == pytest.approx(speech_power(samples, level), rel=1e-4)


def test_active_level_ignores_the_silence_around_the_words(shared_data):
    """RAVDESS holds about half silence; EMO-DB is cut close to the words."""
    differences = {}
    for name in ("ravdess", "emodb"):
        clean, lengths = padded([decode(path) for path in sorted((shared_data / name).glob("*.flac"))[::10]])
        differences[name] = 10 * torch.log10(active_power(clean, lengths) / overall_power(clean, lengths)).median()
    assert differences["ravdess"] > 2 > 1 > differences["emodb"] > 0


def test_every_type_is_mixed_the_same_alone_and_in_a_batch(bank, speech):
    clean, lengths = padded(speech[: len(FIVE)])
    segments = [bank.segment(kind, "train", len(x), k) for k, (kind, x) in enumerate(zip(FIVE, speech, strict=False))]
    noise, _ = padded(segments)
    together = mix(clean, noise, 0.0, lengths=lengths)
    for row, (x, segment) in enumerate(zip(speech, segments, strict=False)):
        alone = mix(torch.from_numpy(x)[None], torch.from_numpy(segment)[None], 0.0)
        assert torch.equal(alone[0], together[row, : len(x)])


def test_short_recordings_are_tiled_within_their_half(bank):
    """An ESC-10 clip lasts 5 s, so that 8 s of rain repeat one half of 2.5 s."""
    segment = bank.segment("rain", "test", 8 * SAMPLE_RATE, "utterance")
    np.testing.assert_array_equal(segment[40_000:], segment[:-40_000])
    assert not np.array_equal(segment[39_000:], segment[:-39_000])


def test_babble_from_real_speech(speech):
    bank = NoiseBank.generated(speech, seconds=10)
    assert bank.types == TYPES_GENERATED
    babble = np.concatenate([bank.segment("babble", part, 80_000) for part in ("train", "test")])
    powers = np.square(babble.reshape(-1, 1600)).mean(axis=1)
    assert 10 * np.log10(powers.max() / powers.min()) < 20  # twelve talkers leave no pauses


def test_cache_of_a_real_corpus_is_the_recordings_themselves(shared_data):
    corpus = load_corpus("emodb", shared_data / "emodb")
    cache = cache_audio(corpus)
    assert len(cache) == 339 and cache.excluded.empty
    for row in corpus.manifest.iloc[::50].itertuples():
        np.testing.assert_array_equal(cache[row.utterance], decode(row.path))
        assert cache.seconds(row.utterance) == pytest.approx(row.seconds, abs=1e-3)
