"""Batched mixing against audiomentations.AddBackgroundNoise: 32 utterances of 4 s at 16 kHz, at 5 dB.

Run from the project's root: python tests/benchmarks/bench_mixing.py   (needs pip install -e ".[benchmark]")
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from audiomentations import AddBackgroundNoise

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.noise import NoiseBank, mix

ITEMS, SAMPLES, SNR, ROUNDS = 32, 4 * SAMPLE_RATE, 5.0, 100


def main() -> None:
    torch.set_num_threads(1)  # audiomentations has no second thread either
    rng = np.random.default_rng(0)
    speech = (0.1 * rng.standard_normal((ITEMS, SAMPLES))).astype(np.float32)
    clean = torch.from_numpy(speech)
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder), rng)
        bank = NoiseBank.from_folder(folder)
        theirs = AddBackgroundNoise(folder, min_snr_db=SNR, max_snr_db=SNR, p=1.0)

        def segments() -> torch.Tensor:
            drawn = [bank.segment(bank.types[k % 5], "train", SAMPLES, k, 0) for k in range(ITEMS)]
            return torch.from_numpy(np.stack(drawn))

        noise = segments()
        methods = {
            "audiomentations.AddBackgroundNoise": lambda: np.stack([theirs(x, SAMPLE_RATE) for x in speech]),
            "mix, level=overall": lambda: mix(clean, noise, SNR, "overall"),
            "mix, level=active": lambda: mix(clean, noise, SNR, "active"),
            "segment + mix, level=overall": lambda: mix(clean, segments(), SNR, "overall"),
            "segment + mix, level=active": lambda: mix(clean, segments(), SNR, "active"),
        }
        if torch.cuda.is_available():
            methods["mix on the GPU, level=active"] = on_gpu(clean, noise)
        for name, method in methods.items():
            power = mean_square if name.startswith("audiomentations") else np.var  # ours leaves out a constant offset
            check(torch.as_tensor(method()).cpu().numpy(), speech, power)
        report(measure(methods))


def write_noise(folder: Path, rng: np.random.Generator) -> None:
    """Five recordings of 60 s at 16 kHz, so that nobody has to resample or repeat them."""
    bank = NoiseBank.generated(rng.standard_normal((48, SAMPLES)).astype(np.float32), seconds=60)
    for kind in bank.types:
        halves = [bank.segment(kind, part, 30 * SAMPLE_RATE) for part in ("train", "test")]
        soundfile.write(folder / f"{kind}.wav", np.concatenate(halves), SAMPLE_RATE)


def on_gpu(clean: torch.Tensor, noise: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Mixing of a batch that lies on the GPU, as in training."""
    clean, noise = clean.cuda(), noise.cuda()

    def run() -> torch.Tensor:
        noisy = mix(clean, noise, SNR, "active")
        torch.cuda.synchronize()
        return noisy

    return run


def mean_square(samples: np.ndarray, axis: int) -> np.ndarray:
    """The power, a constant offset included."""
    return np.square(samples).mean(axis=axis)


def check(noisy: np.ndarray, speech: np.ndarray, power: Callable[..., np.ndarray]) -> None:
    """All do the same: speech and noise are 5 dB apart in power (all frames of this speech are active)."""
    ratio = power(speech.astype(np.float64), axis=1) / power((noisy - speech).astype(np.float64), axis=1)
    np.testing.assert_allclose(10 * np.log10(ratio), SNR, atol=1e-3)


def measure(methods: dict[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Milliseconds a batch, (rounds, 2): processor and wall; the methods in turn, so that other load meets them all."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            before = time.process_time(), time.perf_counter()
            method()
            times[name].append((time.process_time() - before[0], time.perf_counter() - before[1]))
    return {name: 1e3 * np.array(each) for name, each in times.items()}


def report(times: dict[str, np.ndarray]) -> None:
    processor = {name: np.median(each[:, 0]) for name, each in times.items()}
    print(f"{'32 x 4 s, one thread':36} {'processor ms (median)':>22} {'wall ms (least)':>16} {'times faster':>13}")
    for name, each in times.items():
        faster = processor["audiomentations.AddBackgroundNoise"] / processor[name]
        print(f"{name:36} {processor[name]:22.2f} {each[:, 1].min():16.2f} {faster:13.1f}")


if __name__ == "__main__":
    main()
