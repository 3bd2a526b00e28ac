"""Spectral features, batched in torch: what the cited code computes with its settings; where a whole corpus's lie."""

from collections.abc import Iterable
from functools import cache
from tempfile import TemporaryFile

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor

from ser_kd_utils.data.audio import SAMPLE_RATE

FRAME, POINTS = 640, 1024  # of the log filter bank: 40 ms, and the samples of its Fourier transform
FILTERS, HIGHEST = 40, 4000  # Hz
# Samples from one encoder frame to the next, 20 ms.
HOP = 320


def on_disk(items: Iterable[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """The items one after the other, mapped from a file that goes with the array, and the length of each.

    All have one width and type. What is computed once of a whole corpus lies here: memory does not grow with it.
    """
    lengths = []
    with TemporaryFile() as file:
        for item in items:
            np.ascontiguousarray(item).tofile(file)
            lengths.append(len(item))
        file.flush()
        whole = np.memmap(file, item.dtype, "c", shape=(sum(lengths), *item.shape[1:]))
    return whole, lengths


def log_filter_bank(waves: Tensor, step: int = 160) -> Tensor:
    """Log mel filter bank up to 4 kHz (Head Fusion, Xu et al. 2021): (batch, samples) -> (batch, frames, 40).

    A frame of 40 ms begins every `step` samples; the last one is filled with zeros: 2 s give 197. Equals
    python_speech_features' logfbank(wave, 16000, 0.04, step / 16000, nfilt=40, nfft=1024, highfreq=4000): pre-emphasis
    0.97, rectangular window, natural logarithm, 2^-52 in place of zero energy.
    """
    emphasised = torch.cat([waves[:, :1], waves[:, 1:] - 0.97 * waves[:, :-1]], 1)
    missing = (FRAME - waves.shape[1]) % step if waves.shape[1] > FRAME else FRAME - waves.shape[1]
    filters = _triangles(waves.dtype, waves.device)
    spectra = torch.fft.rfft(F.pad(emphasised, (0, missing)).unfold(1, FRAME, step), POINTS)
    power = spectra[..., : len(filters)].abs().square() / POINTS
    with torch.autocast(waves.device.type, enabled=False):  # half precision has no room for powers
        energy = power @ filters
    return energy.where(energy != 0, torch.finfo(torch.float64).eps).log()


@cache
@torch.inference_mode(False)  # what is kept must serve training, too
def _triangles(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(bins below 4 kHz, filters): 1 at a filter's centre, 0 from its neighbours' centres on; all at whole bins."""
    mels = np.linspace(0, 2595 * np.log10(1 + HIGHEST / 700), FILTERS + 2)
    corners = np.floor((POINTS + 1) * 700 * (10 ** (mels / 2595) - 1) / SAMPLE_RATE)
    bins = np.arange(corners[-1])
    filters = [np.interp(bins, corners[i : i + 3], [0, 1, 0]) for i in range(FILTERS)]
    return torch.tensor(np.stack(filters, 1), dtype=dtype, device=device)


def whisper_log_mel(waves: Tensor, filters: int = 80) -> Tensor:
    """Whisper's log-mel spectrogram: (batch, samples) -> (batch, filters, frames), a frame every 10 ms.

    Equals transformers' WhisperFeatureExtractor: 400 samples under a Hann window, centred; powers; mel filters
    (Slaney); log10 not more than 8 below the item's own peak; plus 4, by 4. A loud noise so lowers the speech beside
    it: mix first.
    """
    window, bank = _mel_bank(400, filters, waves.dtype, waves.device)
    power = torch.stft(waves, 400, 160, window=window, return_complex=True)[..., :-1].abs().square()
    with torch.autocast(waves.device.type, enabled=False):
        energy = (bank.T @ power).clamp(min=1e-10).log10()
        return (energy.maximum(energy.amax((1, 2), keepdim=True) - 8) + 4) / 4


def mfcc(waves: Tensor) -> Tensor:
    """26 mel-frequency cepstral coefficients: (batch, samples) -> (batch, 26, frames), 2 s -> 63 frames.

    Equals librosa.feature.mfcc(y=wave, sr=16000, n_mfcc=26): 2,048 samples under a Hann window every 512, centred, 128
    mel filters (Slaney), dB not more than 80 below the item's own peak, orthonormal DCT-II.
    """
    window, filters = _mel_bank(2048, 128, waves.dtype, waves.device)
    cosines = torch.tensor(dct(np.eye(128), norm="ortho")[:, :26]).to(filters)
    spectra = torch.stft(waves, 2048, 512, window=window, pad_mode="constant", return_complex=True)
    power = spectra.abs().square().mT
    with torch.autocast(waves.device.type, enabled=False):
        decibels = 10 * (power @ filters).clamp(min=1e-10).log10()
        return (decibels.maximum(decibels.amax((1, 2), keepdim=True) - 80) @ cosines).mT


@cache
@torch.inference_mode(False)  # what is kept must serve training, too
def _mel_bank(points: int, filters: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A Hann window (points,) and Slaney's mel filters (points / 2 + 1, filters)."""
    from transformers.audio_utils import mel_filter_bank

    half = SAMPLE_RATE / 2
    bank = mel_filter_bank(points // 2 + 1, filters, 0, half, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.hann_window(points, dtype=dtype, device=device), torch.tensor(bank, dtype=dtype, device=device)
