"""Mixing at an exact SNR, on generated input; every formula is repeated here in numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ser_kd_utils.data.noise import active_power, mix, overall_power


def overall(x: np.ndarray) -> float:
    return np.var(x.astype(np.float64))


def active(x: np.ndarray) -> float:
    """Mean square over the 20 ms frames within 40 dB of the loudest, the last frame as short as it is; no DC offset."""
    x = x.astype(np.float64) - np.mean(x.astype(np.float64))
    frames = [x[start : start + 320] for start in range(0, len(x), 320)]
    powers = [np.mean(frame**2) for frame in frames]
    kept = [frame for frame, power in zip(frames, powers, strict=True) if power >= max(powers) / 10_000]
    return np.mean(np.concatenate(kept) ** 2)


def measured_snr(noisy: np.ndarray, clean: np.ndarray, level: str) -> float:
    residual = noisy.astype(np.float64) - clean.astype(np.float64)
    return 10 * np.log10({"active": active, "overall": overall}[level](clean) / overall(residual))


def speech_like(seed: int, samples: int) -> np.ndarray:
    """Bursts of noise of very different level between stretches of digital silence."""
    rng = np.random.default_rng(seed)
    envelope = np.repeat(10 ** rng.uniform(-4, -0.5, samples // 2000 + 1), 2000)[:samples]
    envelope[np.repeat(rng.random(samples // 1000 + 1) < 0.3, 1000)[:samples]] = 0
    envelope[: samples // 10] = 0.02
    return (envelope * rng.standard_normal(samples)).astype(np.float32)


LENGTHS = [64_000, 1600, 20_479, 20_480, 20_481, 33_333, 319, 63_999]


@pytest.fixture(scope="module")
def batch():
    clean, noise = torch.zeros(8, 64_000), torch.zeros(8, 64_000)
    for row, length in enumerate(LENGTHS):
        clean[row, :length] = torch.from_numpy(speech_like(row, length))
        noise[row, :] = torch.from_numpy(speech_like(100 + row, 64_000))
    return clean, noise, torch.tensor([-5.0, 0, 5, 10, 15, 20, 40, 7.3]), torch.tensor(LENGTHS)


@pytest.mark.parametrize("level", ["active", "overall"])
def test_snr_is_exact_over_each_items_own_length(batch, level):
    clean, noise, snr, lengths = batch
    noisy = mix(clean, noise, snr, level, lengths)
    assert noisy.dtype == torch.float32 and noisy.shape == clean.shape
    for row, length in enumerate(LENGTHS):
        measured = measured_snr(noisy[row, :length].numpy(), clean[row, :length].numpy(), level)
        assert measured == pytest.approx(float(snr[row]), abs=1e-4)
        assert not noisy[row, length:].any()


@pytest.mark.parametrize("level", ["active", "overall"])
def test_whole_rows_and_one_snr_for_all(level):
    clean, noise = (torch.from_numpy(np.stack([speech_like(s + k, 20_001) for k in range(3)])) for s in (0, 50))
    for row, noisy in enumerate(mix(clean, noise, 3.5, level)):
        assert measured_snr(noisy.numpy(), clean[row].numpy(), level) == pytest.approx(3.5, abs=1e-4)


def test_powers_agree_with_numpy(batch):
    clean, _, _, lengths = batch
    garbage = clean.masked_fill(torch.arange(64_000) >= lengths[:, None], torch.nan)
    for power, formula in ((active_power, active), (overall_power, overall)):
        expected = [formula(clean[row, :length].numpy()) for row, length in enumerate(LENGTHS)]
        assert power(garbage, lengths).dtype == torch.float64
        np.testing.assert_allclose(power(garbage, lengths), expected, rtol=2e-6)


def test_active_level_leaves_out_frames_40_db_under_the_loudest():
    signs = np.resize([1, -1], 320)
    loud, just_in, just_out = signs, signs * 10**-1.995, signs * 10**-2.005
    x = torch.tensor(np.concatenate([loud, just_in, just_out, np.zeros(640)]), dtype=torch.float32)[None]
    assert float(active_power(x)) == pytest.approx((1 + 10**-3.99) / 2, rel=1e-6)
    with_short_frame = torch.cat([x, torch.tensor(0.5 * signs[None, :10], dtype=torch.float32)], dim=1)
    assert float(active_power(with_short_frame)) == pytest.approx((320 * (1 + 10**-3.99) + 2.5) / 650, rel=1e-6)
    assert float(overall_power(with_short_frame)) == pytest.approx(
        (320 * (1 + 10**-3.99 + 10**-4.01) + 2.5) / 1610, rel=1e-6
    )


@pytest.mark.parametrize("level", ["active", "overall"])
def test_a_dc_offset_of_speech_or_noise_is_no_part_of_its_level(batch, level):
    """Recorders add one: in both signals, of either sign, up to far above the sound."""
    clean, noise, snr, lengths = batch
    inside = torch.arange(64_000) < lengths[:, None]
    for speech_offset, noise_offset in ((0.3, 0), (0, -0.3), (0.2, 0.2)):
        shifted = clean + speech_offset * inside
        noisy = mix(shifted, noise + noise_offset, snr, level, lengths)
        for row, length in enumerate(LENGTHS):
            measured = measured_snr(noisy[row, :length].numpy(), shifted[row, :length].numpy(), level)
            assert measured == pytest.approx(float(snr[row]), abs=0.02)  # float32 holds less of a small sound on top
    for power in (active_power, overall_power):
        np.testing.assert_allclose(power(clean + 0.3, lengths), power(clean, lengths), rtol=1e-3)
        assert not power(torch.full((1, 5000), 0.3)).any()
    with pytest.raises(ValueError, match="it is silent"):
        mix(clean, torch.full_like(noise, 0.3), snr, level, lengths)


@pytest.mark.parametrize("level", ["active", "overall"])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_item_is_the_same_to_the_bit_in_any_company(batch, level, threads):
    clean, noise, snr, lengths = batch
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    together = mix(clean, noise, snr, level, lengths)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled = mix(clean[order], noise[order], snr[order], level, lengths[order])
    assert torch.equal(shuffled, together[order])
    for row, length in enumerate(LENGTHS):
        for longest in {length, min(length + 1, 64_000), min(length + 333, 64_000)}:
            item = clean[row : row + 1, :longest], noise[row : row + 1, :longest]
            padded = mix(*item, snr[row : row + 1], level, lengths[row : row + 1])
            assert torch.equal(padded[0], together[row, :longest])
        alone = mix(clean[row : row + 1, :length], noise[row : row + 1, :length], float(snr[row]), level)
        assert torch.equal(alone[0], together[row, :length])
    torch.set_num_threads(before)


def test_padding_does_not_change_a_bit_of_any_power():
    """Powers are compared in float64: a float sum over frames fails here, though the float32 mix would hide it."""
    rng = np.random.default_rng(0)
    levels = np.repeat(10 ** rng.uniform(-6, 0, (100, 40)), 320, axis=1)[:, :12_345]
    x = torch.from_numpy((levels * rng.standard_normal(levels.shape)).astype(np.float32))
    lengths = torch.full((100,), 12_345)
    for power in (active_power, overall_power):
        for extra in (1, 700, 50_000):
            wide = torch.nn.functional.pad(x, (0, extra))
            assert torch.equal(power(wide, lengths), power(x))


def test_nothing_is_clipped_and_inputs_are_left_alone(batch):
    clean, noise, _, lengths = batch
    kept = clean.clone(), noise.clone()
    assert mix(clean * 30, noise, -10.0, "overall", lengths).abs().max() > 10
    assert torch.equal(clean, kept[0]) and torch.equal(noise, kept[1])


def test_infinite_snr_and_silent_speech_give_clean_back(batch):
    clean, noise, snr, lengths = (x.clone() for x in batch)
    snr[3] = torch.inf
    noise[3] = 0
    clean[4] = 0
    noisy = mix(clean, noise, snr, lengths=lengths)
    assert torch.equal(noisy[3], clean[3])
    assert not noisy[4].any()
    assert not torch.equal(noisy[2], clean[2])


def test_what_cannot_be_mixed_is_an_error(batch):
    clean, noise, snr, lengths = batch
    for snr_db in (float("nan"), -torch.inf):
        with pytest.raises(ValueError, match="No gain brings the noise to the SNR"):
            mix(clean, noise, snr_db)
    quiet = noise.clone()
    quiet[2, : LENGTHS[2]] = 0
    with pytest.raises(ValueError, match="it is silent"):
        mix(clean, quiet, snr, lengths=lengths)
    for bad in (torch.nan, torch.inf):
        for position in (0, LENGTHS[2] - 1):
            for spoilt in range(2):
                pair = [clean.clone(), noise.clone()]
                pair[spoilt][2, position] = bad
                with pytest.raises(ValueError, match="or speech, noise or SNR are not finite"):
                    mix(*pair, snr, lengths=lengths)
