"""Noise banks and what an utterance gets from them, on generated recordings."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile
from scipy.signal import welch

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.noise import NOISEX92, TYPES_GENERATED, NoiseBank, draw


def test_draw_is_pure_uniform_and_within_range():
    types = ("babble", "white", "pink")
    assert draw("u1", 0, 3, types, (0, 20)) == draw("u1", 0, 3, types, (0, 20))
    drawn = [draw(f"u{k}", 0, epoch, types, (0, 20)) for k in range(1500) for epoch in (0, 1)]
    counts = [sum(kind == each for kind, _ in drawn) for each in types]
    assert min(counts) > 900
    snrs = np.array([snr for _, snr in drawn])
    assert 0 <= snrs.min() < 0.1 and 19.9 < snrs.max() <= 20
    np.testing.assert_allclose(np.quantile(snrs, [0.25, 0.5, 0.75]), [5, 10, 15], atol=0.6)
    others = {draw("u1", 0, 4, types, (0, 20)), draw("u1", 1, 3, types, (0, 20)), draw("u2", 0, 3, types, (0, 20))}
    assert len(others | {draw("u1", 0, 3, types, (0, 20))}) == 4


EVIDENCE = """
import hashlib, numpy as np, torch
from ser_kd_utils.data.noise import NoiseBank, draw, mix
rng = np.random.default_rng(0)
bank = NoiseBank.generated([rng.standard_normal(8000).astype(np.float32) for _ in range(30)], seed=1, seconds=4)
digest = hashlib.sha256(bank.fingerprint.encode())
for name in ("a", "b", "c"):
    kind, snr = draw(name, 0, "eval", bank.types, (0, 20))
    noise = torch.from_numpy(bank.segment(kind, "test", 16000, name, 0, "eval"))[None]
    digest.update(mix(torch.linspace(-0.1, 0.1, 16000)[None], noise, snr).numpy().tobytes())
evidence = digest.hexdigest()
"""


def test_another_process_and_hash_seed_give_the_same_noise():
    command = [sys.executable, "-c", EVIDENCE + "print(evidence)"]
    there = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "1"}
    )
    here: dict = {}
    exec(EVIDENCE, here)
    assert there.stdout.strip() == here["evidence"]


def test_segments_are_a_pure_function_of_their_key(tmp_path):
    bank = ramp_bank(tmp_path, seconds=4)
    first = bank.segment("street", "train", 8000, "u1", 0, 3)
    first_again = first.copy()
    first[:] = 0  # the bank must not have lent its own memory
    bank.segment("street", "train", 123, "something", "else")
    np.testing.assert_array_equal(bank.segment("street", "train", 8000, "u1", 0, 3), first_again)
    np.testing.assert_array_equal(bank.segment("street", "train", 8000, "u1", np.int64(0), "3"), first_again)
    starts = {float(bank.segment("street", "train", 8000, "u1", 0, epoch)[0]) for epoch in range(50)}
    assert len(starts) > 45
    for kind, part in (("rain", "train"), ("street", "dev")):
        with pytest.raises(KeyError):
            bank.segment(kind, part, 8000)


def ramp_bank(folder, seconds: int, recordings: int = 1) -> NoiseBank:
    """Recordings whose every sample is another value: recording r, sample k -> 0.1 + r / 4 + k / 10^6."""
    for r in range(recordings):
        ramp = 0.1 + r / 4 + np.arange(seconds * SAMPLE_RATE) / 1e6
        soundfile.write(folder / f"street_{r}.wav", ramp, SAMPLE_RATE, "FLOAT")
    return NoiseBank.from_folder(folder)


@pytest.mark.parametrize("samples", [8000, 32_000, 32_001, 200_000])
def test_training_and_test_never_share_a_sample(tmp_path, samples):
    bank = ramp_bank(tmp_path, seconds=4, recordings=3)
    heard = {}
    for part in ("train", "test"):
        counts = np.zeros((3, 64_000), int)
        for key in range(60):
            segment = bank.segment("street", part, samples, key)
            assert segment.dtype == np.float32 and segment.shape == (samples,)
            recording, position = np.divmod(np.rint((segment.astype(np.float64) - 0.1) * 1e6).astype(int), 250_000)
            assert (recording == recording[0]).all()
            assert set(np.unique(np.diff(position))) == ({1} if samples <= 32_000 else {1, -31_999})
            np.add.at(counts, (recording, position), 1)
        assert counts.any(axis=1).all()  # every recording is used
        heard[part] = counts.any(axis=0)
    assert not heard["train"][32_000:].any() and not heard["test"][:32_000].any()
    if samples >= 32_000:
        assert heard["train"][:32_000].all() and heard["test"][32_000:].all()


# ---- folders


def noise_file(path, seconds: float = 3.0, rate: int = SAMPLE_RATE, seed: int = 0, rms: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = rms * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(path, samples, rate)


def test_a_noisex92_folder_is_recognised(tmp_path):
    for seed, name in enumerate(NOISEX92):
        noise_file(tmp_path / f"{name}.wav", 2, 19_980, seed)
    time = np.arange(2 * 19_980) / 19_980
    soundfile.write(tmp_path / "f16.wav", 0.3 * np.sin(2 * np.pi * 1000 * time), 19_980)
    noise_file(tmp_path / "aardvark.wav", 60)
    (tmp_path / "README.txt").write_text("NOISEX-92")
    bank = NoiseBank.from_folder(tmp_path)
    assert bank.types == ("babble", "f16", "factory1", "hfchannel", "volvo")
    assert bank.report().seconds.tolist() == [2.0] * 5
    spectrum = np.abs(np.fft.rfft(bank.segment("f16", "train", SAMPLE_RATE)))
    assert spectrum.argmax() == 1000


def test_noisex92_names_in_other_spellings(tmp_path):
    for name in ("Babble.WAV", "F-16.wav", "factory_1.wav", "HF_channel.wav", "Volvo.wav"):
        noise_file(tmp_path / name, 1.5, 19_980)
    assert NoiseBank.from_folder(tmp_path).types == ("babble", "f16", "factory1", "hfchannel", "volvo")


def test_without_the_five_of_the_study_the_longest_types_are_taken(tmp_path):
    for name in ("babble", "white", "pink", "m109", "leopard", "f16"):
        noise_file(tmp_path / f"{name}.wav", 2 if name in ("white", "pink") else 1.5)
    noise_file(tmp_path / "m109_2.wav", 3)
    found = NoiseBank.from_folder(tmp_path)
    assert found.types == ("babble", "f16", "leopard", "pink", "white")  # "m1092" is no NOISEX-92 name; a tie: by name


def test_types_are_prefixes_or_sub_folders(tmp_path):
    noise_file(tmp_path / "Rain_1.wav", 2)
    noise_file(tmp_path / "rain_2.flac", 2)
    noise_file(tmp_path / "water_tap_1.wav", 3)
    noise_file(tmp_path / "Train" / "one_a.wav", 2)
    noise_file(tmp_path / "Train" / "two_b.wav", 1.5)
    noise_file(tmp_path / "WIND.wav", 3)  # sorted before "water" as a path, after it as a type
    noise_file(tmp_path / "._wind.wav", 60)
    bank = NoiseBank.from_folder(tmp_path)
    assert bank.types == ("rain", "train", "water", "wind") and bank.source == "folder"
    assert bank.report().recordings.tolist() == [2, 2, 1, 1]


def test_the_type_is_the_first_folder_however_deep_or_linked_a_recording_lies(tmp_path):
    noise_file(tmp_path / "bank" / "Rain" / "2020" / "may" / "a.wav", 2)
    noise_file(tmp_path / "outside" / "b.opus.wav", 2)
    (tmp_path / "bank" / "wind").symlink_to(tmp_path / "outside")
    (tmp_path / "bank" / "gale").symlink_to(tmp_path / "outside")  # the same folder again
    noise_file(tmp_path / "bank" / ".cache" / "hail" / "c.wav", 60)
    noise_file(tmp_path / "bank" / unicodedata.normalize("NFD", "Café") / "d.wav", 2)
    noise_file(tmp_path / "bank" / unicodedata.normalize("NFC", "café_1.wav"), 2)
    bank = NoiseBank.from_folder(tmp_path / "bank")
    assert bank.report().set_index("type").recordings.to_dict() == {"café": 2, "gale": 1, "rain": 1}


@pytest.mark.parametrize("name", ["clean/a.wav", "Clean_1.wav", "_1.wav"])
def test_a_type_cannot_have_the_name_of_clean_speech_or_none(tmp_path, name):
    noise_file(tmp_path / name, 2)
    noise_file(tmp_path / "rain.wav", 2)
    with pytest.raises(ValueError, match="'(clean)?' cannot be a type of noise: rename the folder or the recordings"):
        NoiseBank.from_folder(tmp_path)


def test_recordings_of_no_use_are_left_out_with_a_reason(tmp_path):
    rng = np.random.default_rng(0)
    noise_file(tmp_path / "rain_fine.wav", 2)
    hot = rng.standard_normal(3 * 44_100)
    made = {
        "rain_clipped.wav": (hot / np.quantile(np.abs(hot), 0.985), 44_100),  # 1.5 % of the samples
        "rain_loud.wav": (hot / np.quantile(np.abs(hot), 0.995), 44_100),  # 0.5 %: kept
        "rain_silent.wav": (rng.uniform(-0.9e-4, 0.9e-4, 48_000), SAMPLE_RATE),
        "rain_short.wav": (0.1 * rng.standard_normal(15_999), SAMPLE_RATE),
        "rain_nan.wav": (np.full(48_000, np.nan), SAMPLE_RATE),
        "rain_mostly_silent.wav": (np.r_[0.1 * rng.standard_normal(15_000), np.zeros(90_000)], SAMPLE_RATE),
    }
    for name, (samples, rate) in made.items():
        soundfile.write(tmp_path / name, np.clip(samples, -1, 1), rate, "FLOAT")
    (tmp_path / "rain_broken.flac").write_text("no sound")
    bank = NoiseBank.from_folder(tmp_path)
    assert dict(zip(bank.excluded.recording, bank.excluded.reason, strict=True)) == {
        "rain_broken.flac": "unreadable",
        "rain_clipped.wav": "clipped",
        "rain_mostly_silent.wav": "under 1 s of sound",
        "rain_nan.wav": "NaN or infinite samples",
        "rain_short.wav": "under 1 s of sound",
        "rain_silent.wav": "silent",
    }
    assert bank.report().iloc[0].tolist() == ["rain", 2, 5.0, 6]

    for kept in ("rain_fine.wav", "rain_loud.wav"):
        (tmp_path / kept).unlink()
    with pytest.raises(ValueError, match="no usable recording in .*rain_silent.wav: silent"):
        NoiseBank.from_folder(tmp_path)
    noise_file(tmp_path / "wind.wav")
    assert NoiseBank.from_folder(tmp_path).types == ("wind",)


def test_a_folder_without_recordings(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recordings"):
        NoiseBank.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no recordings"):
        NoiseBank.from_folder(tmp_path / "nowhere")


def test_digital_silence_is_cut_away(tmp_path):
    sound = 0.2 * np.sign(np.random.default_rng(0).standard_normal(40_000))
    gaps = [np.zeros(5000), np.full(320, 0.9e-4), np.zeros(319)]  # the last is shorter than 20 ms and stays
    pieces = [gaps[0], sound[:12_000], gaps[1], sound[12_000:30_000], gaps[2], sound[30_000:], gaps[0]]
    soundfile.write(tmp_path / "rain.wav", np.concatenate(pieces), SAMPLE_RATE, "FLOAT")
    bank = NoiseBank.from_folder(tmp_path)
    expected = np.concatenate([sound[:30_000], gaps[2], sound[30_000:]])
    kept = np.concatenate([bank.segment("rain", "train", 20_159), bank.segment("rain", "test", 20_160)])
    np.testing.assert_array_equal(kept, expected.astype(np.float32))


def test_fingerprint_is_that_of_types_and_samples(tmp_path):
    noise_file(tmp_path / "a" / "rain_1.wav", 2)
    noise_file(tmp_path / "b" / "rain_other.wav", 2)
    noise_file(tmp_path / "c" / "hail_1.wav", 2)
    noise_file(tmp_path / "d" / "rain_1.wav", 2, seed=1)
    a, b, c, d = (NoiseBank.from_folder(tmp_path / name).fingerprint for name in "abcd")
    assert a == b and len({a, c, d}) == 3


# ---- generated noise


@pytest.fixture(scope="module")
def generated():
    rng = np.random.default_rng(0)
    return NoiseBank.generated([rng.standard_normal(8000).astype(np.float32) for _ in range(40)])


def spectrum(bank: NoiseBank, kind: str) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([bank.segment(kind, part, 240_000) for part in ("train", "test")])
    return welch(both, SAMPLE_RATE, nperseg=2048)


def test_generated_types_have_one_level_and_their_spectra(generated):
    assert generated.types == TYPES_GENERATED and generated.source == "generated"
    assert generated.report().seconds.tolist() == [30.0] * 5
    for kind in generated.types:
        both = np.concatenate([generated.segment(kind, part, 240_000) for part in ("train", "test")])
        assert np.sqrt(np.mean(both.astype(np.float64) ** 2)) == pytest.approx(0.1, rel=1e-5)
        assert np.abs(both).max() < 1
    hertz, white = spectrum(generated, "white")
    assert np.ptp(10 * np.log10(white[10:-10])) < 2
    _, low = spectrum(generated, "low-band")
    assert low[hertz > 550].sum() < 1e-3 * low.sum()
    _, high = spectrum(generated, "high-band")
    assert high[hertz < 1950].sum() < 1e-3 * high.sum()
    _, pink = spectrum(generated, "pink")
    octaves = [pink[(hertz > f) & (hertz < 2 * f)].mean() for f in (100, 200, 400, 800, 1600, 3200)]
    np.testing.assert_allclose(np.diff(10 * np.log10(octaves)), -3.01, atol=0.4)


def test_babble_has_many_talkers_and_its_halves_share_no_utterance():
    """Each utterance is a tone of its own; the talkers differ in level by up to 60 dB."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    rng = np.random.default_rng(0)
    hertz = [200 + 100 * k for k in range(24)]
    speech = [(10 ** rng.uniform(-3, 0) * np.sin(2 * np.pi * f * time)).astype(np.float32) for f in hertz]
    bank = NoiseBank.generated(speech, seconds=4)
    heard = {}
    for part in ("train", "test"):
        magnitude = np.abs(np.fft.rfft(bank.segment("babble", part, 2 * SAMPLE_RATE)))[[2 * f for f in hertz]]
        heard[part] = set(np.flatnonzero(magnitude > magnitude.max() / 2))
        assert (np.delete(magnitude, list(heard[part])) < magnitude.max() / 100).all()
    assert len(heard["train"]) == len(heard["test"]) == 12
    assert not heard["train"] & heard["test"]
    with pytest.raises(ValueError, match="24 utterances, not 23"):
        NoiseBank.generated(speech[:-1])


def test_babble_talkers_do_not_pause_together():
    """Every utterance: 0.2 s silence, 0.3 s sound, 0.4 s silence, 0.1 s sound, 0.5 s silence."""
    rng = np.random.default_rng(0)
    envelope = np.repeat([0, 1, 0, 1, 0], [3200, 4800, 6400, 1600, 8000])
    speech = [(0.1 * envelope * rng.standard_normal(24_000)).astype(np.float32) for _ in range(72)]
    babble = NoiseBank.generated(speech, seconds=6).segment("babble", "train", 48_000)
    powers = np.square(babble.reshape(-1, 800)).mean(axis=1)
    assert 10 * np.log10(powers.max() / powers.min()) < 12


def test_generated_noise_depends_on_seed_and_speech_only(generated):
    rng = np.random.default_rng(0)
    speech = [rng.standard_normal(8000).astype(np.float32) for _ in range(40)]
    assert NoiseBank.generated(speech).fingerprint == generated.fingerprint
    assert NoiseBank.generated(speech, seed=1).fingerprint != generated.fingerprint
    assert NoiseBank.generated(speech[1:]).fingerprint != generated.fingerprint
    digest = hashlib.sha256(generated.segment("white", "test", 1000, "u").tobytes()).hexdigest()
    again = NoiseBank.generated(speech).segment("white", "test", 1000, "u").tobytes()
    assert hashlib.sha256(again).hexdigest() == digest
