"""Spectral features against plain loops in numpy and against librosa."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch

from ser_kd_utils.data.audio import decode
from ser_kd_utils.data.features import log_filter_bank, mfcc, on_disk

RATE = 16_000
FEATURES = pytest.mark.parametrize("features", [log_filter_bank, mfcc])


def noise(seed: int, items: int = 1, samples: int = 2 * RATE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, (items, samples)))


@pytest.fixture(scope="module", params=["emodb/03a05Wa", "librispeech_mini/103-1240-0000"])
def recording(request, shared_data) -> torch.Tensor:
    return torch.from_numpy(decode(shared_data / f"{request.param}.flac"))[None, : 2 * RATE].double()


def corners() -> list[int]:
    """The bins between which the filters rise and fall."""
    highest = 2595 * np.log10(1 + 4000 / 700)
    mels = [i * highest / 41 for i in range(42)]
    return [int(1025 * 700 * (10 ** (mel / 2595) - 1) / RATE) for mel in mels]


def filter_bank(wave: np.ndarray, step: int) -> np.ndarray:
    """Frame by frame, filter by filter, bin by bin."""
    emphasised = [wave[0]] + [wave[n] - 0.97 * wave[n - 1] for n in range(1, len(wave))]
    bins, rows, start = corners(), [], 0
    while True:
        frame = emphasised[start : start + 640]
        power = np.abs(np.fft.fft(frame + [0] * (1024 - len(frame)))) ** 2 / 1024
        energies = []
        for low, centre, high in zip(bins, bins[1:], bins[2:], strict=False):
            energy = 0.0
            for k in range(low, high):
                energy += power[k] * ((k - low) / (centre - low) if k < centre else (high - k) / (high - centre))
            energies.append(np.log(energy or np.finfo(float).eps))
        rows.append(energies)
        if start + 640 >= len(wave):
            return np.array(rows)
        start += step


# samples: less than a frame, one frame, a sample more, whole steps, a sample more
@pytest.mark.parametrize("step", [160, 500, 700])
@pytest.mark.parametrize("samples", [300, 640, 641, 1640, 2040, 2041])
def test_log_filter_bank_is_the_formula(samples, step):
    waves = noise(0, 2, samples)
    waves[1, samples // 4 :] = 0
    wanted = np.stack([filter_bank(wave, step) for wave in waves.numpy()])
    np.testing.assert_allclose(log_filter_bank(waves, step), wanted, rtol=1e-9, atol=1e-9)
    assert log_filter_bank(waves[:, :600], step).shape == (2, 1, 40)


@pytest.mark.slow
def test_log_filter_bank_has_librosas_spectra_and_mel_scale(recording):
    emphasised = librosa.effects.preemphasis(recording[0].numpy(), coef=0.97, zi=[0])
    frames = librosa.util.frame(emphasised, frame_length=640, hop_length=160)  # (640, 197): 2 s are whole steps
    power = np.abs(np.fft.rfft(frames, 1024, axis=0)) ** 2 / 1024
    edges = np.floor(librosa.mel_frequencies(42, fmin=0, fmax=4000, htk=True) * 1025 / RATE)
    filters = np.array([np.interp(np.arange(513), edges[i : i + 3], [0, 1, 0]) for i in range(40)])
    wanted = np.log(filters @ power).T
    np.testing.assert_allclose(log_filter_bank(recording)[0], wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(log_filter_bank(recording.float())[0], wanted, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_mfcc_is_librosas(recording):
    silence = torch.zeros_like(recording)
    half_silent = noise(1) * (torch.arange(2 * RATE) < RATE)  # most of its frames 80 dB below the peak
    for wave in (recording, noise(0), 1e-3 * noise(0), half_silent, silence, noise(2, samples=2500)):
        wanted = librosa.feature.mfcc(y=wave[0].numpy(), sr=RATE, n_mfcc=26)
        np.testing.assert_allclose(mfcc(wave)[0], wanted, rtol=0, atol=1e-5)
        np.testing.assert_allclose(mfcc(wave.float())[0], wanted, rtol=2e-6, atol=1e-3)  # c0 is about -1000


def test_a_tone_is_loudest_in_its_own_filter():
    centres = torch.tensor(corners()[1:-1]) * RATE / 1024
    tones = torch.sin(2 * torch.pi * centres[:, None] * torch.arange(2 * RATE) / RATE)
    loudest = log_filter_bank(tones).argmax(-1)
    assert torch.equal(loudest[:, 1:], torch.arange(40)[:, None].expand(-1, 196))  # the first frame has the onset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_seconds(dtype):
    waves = noise(0, 3).to(dtype)
    filters, coefficients = log_filter_bank(waves), mfcc(waves)
    assert filters.shape == (3, 197, 40) and coefficients.shape == (3, 26, 63)
    assert filters.dtype == coefficients.dtype == dtype


def test_silence_is_finite():
    silence = torch.zeros(2, 2 * RATE)
    assert log_filter_bank(silence).unique().tolist() == pytest.approx([-52 * np.log(2)])
    assert mfcc(silence).isfinite().all()


@FEATURES
def test_an_items_features_do_not_depend_on_the_others(features):
    quiet, loud = 1e-4 * noise(0), 100 * noise(1)
    together = features(torch.cat([quiet, loud, torch.zeros_like(quiet)]))
    torch.testing.assert_close(together[:1], features(quiet), rtol=0, atol=1e-9)
    torch.testing.assert_close(together[1:2], features(loud), rtol=0, atol=1e-9)


@FEATURES
def test_mixed_precision_leaves_them_in_float32(features):
    waves = noise(0, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = features(waves)
    torch.testing.assert_close(mixed, features(waves))


@pytest.mark.parametrize("features", [log_filter_bank, mfcc])
def test_what_was_first_computed_for_a_test_serves_training(features):
    from ser_kd_utils.data import features as module

    module._triangles.cache_clear(), module._mel_bank.cache_clear()
    with torch.inference_mode():
        features(torch.ones(1, 4000))
    wave = torch.linspace(-1, 1, 4000)[None].requires_grad_()
    features(wave).sum().backward()
    assert wave.grad.isfinite().all()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_what_lies_on_the_disk_is_what_was_given_and_its_file_goes(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    items = [np.random.default_rng(n).normal(size=(5, 2, n)).astype(kind).T for n in (3, 1, 4)]
    whole, lengths = on_disk(iter(items))
    assert isinstance(whole, np.memmap) and whole.dtype == kind and lengths == [3, 1, 4]
    assert np.array_equal(whole, np.concatenate(items))
    whole[0] = 0  # for torch it must be writable; the file is not
    assert not list(tmp_path.iterdir())
