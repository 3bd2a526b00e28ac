"""Decoding and the audio cache, on files made here."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile

from ser_kd_utils.data import audio
from ser_kd_utils.data.audio import SAMPLE_RATE, AudioError, cache_audio, decode
from ser_kd_utils.data.corpora import COLUMNS, Corpus
from ser_kd_utils.files import cache_root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_KD_CACHE", str(tmp_path / "cache"))


def tone(seconds: float, rate: int = SAMPLE_RATE, hertz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def loudest_hertz(samples: np.ndarray) -> float:
    return np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples)


def write_aac(path: Path, seconds: float, rate: int = 48_000, hertz: float = 440.0) -> None:
    """An MP4 with 5.1 AAC sound, the tone in the centre channel only, as MELD has it."""
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="5.1")
        channels = np.zeros((6, round(seconds * rate)), np.float32)
        channels[2] = tone(seconds, rate, hertz)
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout="5.1")
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])


def write_video(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])


def write_corpus(folder: Path, files: dict[str, np.ndarray], bad_audio: str = "error") -> Corpus:
    """A corpus of 16-bit FLAC files `folder`/<utterance>.flac."""
    folder.mkdir(parents=True, exist_ok=True)
    for utterance, samples in files.items():
        soundfile.write(folder / f"{utterance}.flac", samples, SAMPLE_RATE)
    return corpus_of({utterance: folder / f"{utterance}.flac" for utterance in files}, bad_audio)


def corpus_of(paths: dict[str, Path], bad_audio: str = "error") -> Corpus:
    rows = [(u, str(path), "sad", "s1", "f", "", "", "", np.nan) for u, path in paths.items()]
    manifest = pd.DataFrame(rows, columns=COLUMNS)
    return Corpus("little", manifest, ("sad",), ("random",), "CC0", "open", "none", bad_audio=bad_audio)


def integers(seed: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20_000, 20_000, samples, dtype=np.int16)


# ---- decode


def test_sixteen_bit_samples_are_read_exactly(tmp_path):
    samples = integers(0, 5000)
    for suffix in ("wav", "flac"):
        soundfile.write(tmp_path / f"a.{suffix}", samples, SAMPLE_RATE)
        decoded = decode(tmp_path / f"a.{suffix}")
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, samples / 2**15)


@pytest.mark.parametrize("rate", [8_000, 19_980, 22_050, 44_100, 48_000])
def test_stereo_at_any_rate_becomes_mono_at_16_khz(tmp_path, rate):
    left, right = tone(1, rate, 440, 0.6), tone(1, rate, 1000, 0.2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), rate, "FLOAT")
    expected = (tone(1, hertz=440, amplitude=0.6) + tone(1, hertz=1000, amplitude=0.2)) / 2
    decoded = decode(tmp_path / "a.wav")
    assert len(decoded) == SAMPLE_RATE
    np.testing.assert_allclose(decoded[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize("seconds", [1.0, 0.1])
def test_six_channel_mp4(tmp_path, seconds):
    write_aac(tmp_path / "a.mp4", seconds)
    decoded = decode(tmp_path / "a.mp4")
    assert decoded.dtype == np.float32 and decoded.ndim == 1
    assert len(decoded) / SAMPLE_RATE == pytest.approx(seconds, abs=0.05)
    middle = decoded[200:1400] if seconds < 1 else decoded[4000:12000]
    assert loudest_hertz(middle) == pytest.approx(440, abs=SAMPLE_RATE / len(middle))
    assert 0.05 < np.abs(decoded).max() <= 1


def test_files_without_usable_samples_say_why(tmp_path):
    made = {}
    for name, samples in {"empty": [], "NaN": [0.1, np.nan] * 4000, "infinite": [0.1, np.inf] * 4000}.items():
        made[name] = tmp_path / f"{name}.wav"
        soundfile.write(made[name], np.array(samples), SAMPLE_RATE, "FLOAT")
    for name in ("zero_bytes.wav", "zero_bytes.mp4"):
        made[name] = tmp_path / name
        made[name].touch()
    for name in ("text.flac", "text.mp4"):
        made[name] = tmp_path / name
        made[name].write_text("this is not sound " * 100)
    soundfile.write(tmp_path / "whole.flac", integers(0, 50_000), SAMPLE_RATE)
    made["cut.flac"] = tmp_path / "cut.flac"
    made["cut.flac"].write_bytes((tmp_path / "whole.flac").read_bytes()[:30_000])
    made["video.mp4"] = tmp_path / "video.mp4"
    write_video(made["video.mp4"])
    made["damaged.ogg"] = tmp_path / "damaged.ogg"
    soundfile.write(made["damaged.ogg"], integers(0, 160_000), SAMPLE_RATE)
    damaged = bytearray(made["damaged.ogg"].read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 200] = bytes(200)
    made["damaged.ogg"].write_bytes(damaged)
    made["missing"] = tmp_path / "missing.wav"

    reasons = {}
    for name, path in made.items():
        with pytest.raises(AudioError, match=path.name) as raised:
            decode(path)
        reasons[name] = raised.value.reason
    assert reasons.pop("empty") == "empty"
    assert reasons.pop("NaN") == reasons.pop("infinite") == "NaN or infinite samples"
    assert set(reasons.values()) == {"unreadable"} and len(reasons) == 8


def test_float_samples_of_another_scale_are_refused_not_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", 32768 * tone(0.5), SAMPLE_RATE, "FLOAT")
    with pytest.raises(AudioError, match=r"a.wav: samples up to 1638\d.*, where full scale is 1: divide"):
        decode(tmp_path / "a.wav")


def test_what_came_in_place_of_the_sound_is_named(shared_data):
    for name, what in {"lfs_pointer": "a Git LFS pointer", "html": "a web page"}.items():
        with pytest.raises(AudioError, match=f"{name}.wav: unreadable: {what}"):
            decode(shared_data / "faulty" / "audio" / f"{name}.wav")


def test_a_header_without_a_length_hides_no_samples(shared_data):
    """As streaming programs leave it."""
    found = decode(shared_data / "faulty" / "audio" / "header_zero.wav")
    assert len(found) == 30_045 and np.abs(found).max() > 0.1


# ---- cache


def test_cache_returns_what_was_decoded(tmp_path):
    files = {f"u{k:03d}": integers(k, 1600 + 37 * k) for k in range(300)}  # more than two batches
    cache = cache_audio(write_corpus(tmp_path / "c", files))
    assert len(cache) == 300 and cache.excluded.empty and list(cache.excluded.columns) == ["utterance", "reason"]
    for utterance, samples in files.items():
        assert cache[utterance].dtype == np.float32
        np.testing.assert_array_equal(cache[utterance], samples / 2**15)
        assert cache.seconds(utterance) == len(samples) / SAMPLE_RATE
    with pytest.raises(KeyError):
        cache["u999"]


def test_samples_beyond_full_scale_are_clipped_with_one_warning(tmp_path):
    for name, amplitude in {"a": 1.5, "b": 1.0, "c": 1.9}.items():
        soundfile.write(tmp_path / f"{name}.wav", tone(0.5, amplitude=amplitude), SAMPLE_RATE, "FLOAT")
    corpus = corpus_of({name: tmp_path / f"{name}.wav" for name in "cab"})
    with pytest.warns(UserWarning) as caught:
        samples = cache_audio(corpus)["a"]
    (said,) = [str(each.message) for each in caught]
    assert said.startswith(f"little: 2 of 3 files pass full scale and are clipped there, as {tmp_path / 'a.wav'}: ")
    np.testing.assert_allclose(samples, tone(0.5, amplitude=1.5).clip(-1, 1), atol=2**-15)
    assert samples.min() == -1 and samples.max() == 1 - 2**-15


def test_second_call_opens_without_decoding(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "c", {"a": integers(0, 3200), "b": integers(1, 4800)})
    first = cache_audio(corpus)

    def refuse(*_):
        raise AssertionError("decoded twice")

    monkeypatch.setattr(audio, "decode", refuse)
    second = cache_audio(corpus)
    np.testing.assert_array_equal(first["b"], second["b"])
    assert first.fingerprint == second.fingerprint
    shutil.copytree(tmp_path / "c", tmp_path / "moved" / "with" / "its times")
    moved = corpus_of({name: tmp_path / "moved" / "with" / "its times" / f"{name}.flac" for name in "ab"})
    assert cache_audio(moved).fingerprint == first.fingerprint


def anonymous_memory() -> int:
    """Bytes of this process that are not mapped from a file."""
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


def test_opened_cache_is_memory_mapped_and_small_to_send(tmp_path):
    corpus = write_corpus(tmp_path / "c", {f"u{k}": integers(k, 900_000) for k in range(10)})
    cache_audio(corpus)
    before = pa.total_allocated_bytes(), anonymous_memory()
    cache = cache_audio(corpus)
    stored = sum(len(cache[f"u{k}"]) * 2 for k in range(10))
    assert pa.total_allocated_bytes() - before[0] < stored / 100
    opened_again = [cache_audio(corpus) for _ in range(5)]
    assert anonymous_memory() - before[1] < stored and len(opened_again) == 5
    assert str(cache_root()) in cache.dataset.cache_files[0]["filename"]
    sent = pickle.dumps(cache)
    assert len(sent) < stored / 100
    np.testing.assert_array_equal(pickle.loads(sent)["u3"], cache["u3"])


def test_samples_that_changed_on_the_disk_are_not_trained_on(tmp_path):
    corpus = write_corpus(tmp_path / "c", {f"u{k}": integers(k, 9000) for k in range(3)})
    path = Path(cache_audio(corpus).dataset.cache_files[0]["filename"])
    content, samples = bytearray(path.read_bytes()), integers(1, 9000).astype("<i2").tobytes()
    content[content.index(samples) + 5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"the cached audio in {path.parent} is damaged \(u1\): delete that folder"):
        cache_audio(corpus)


@pytest.mark.slow
def test_the_cache_folder_holds_nothing_else_and_the_home_nothing_at_all(tmp_path):
    """Hugging Face's own caches stay out of the home folder, which a cluster may not let one write."""
    corpus = write_corpus(tmp_path / "c", {"a": integers(0, 3200)})
    code = (
        "import pickle, sys\nfrom ser_kd_utils.data.audio import cache_audio\n"
        "from ser_kd_utils.metrics import ser_metrics\n"
        "cache_audio(pickle.load(sys.stdin.buffer)); ser_metrics()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(corpus),
        capture_output=True,
        env=os.environ | {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert sorted(path.name for path in contents() if path.is_file()) == ["audio.arrow"]


def test_an_utterance_is_decoded_once_and_read_from_the_cache_ever_after(tmp_path):
    cache = cache_audio(write_corpus(tmp_path / "c", {"a": integers(0, 4 * SAMPLE_RATE)}))
    (tmp_path / "c" / "a.flac").unlink()
    assert len(cache["a"]) == 4 * SAMPLE_RATE and np.array_equal(cache["a"], cache["a"])


BAD = {
    "corrupted": "unreadable",
    "empty": "empty",
    "nan": "NaN or infinite samples",
    "silent": "silent",
    "short": "shorter than 0.1 s",
    "long": "longer than 60 s",
}


def corpus_with_bad_files(folder: Path, bad_audio: str) -> Corpus:
    folder.mkdir()
    made = {
        "empty": [],
        "nan": np.full(8000, np.nan),
        "silent": tone(1, amplitude=0.9e-4),
        "short": tone(0.0999),
        "long": tone(60.001),
        "fine-1": tone(0.1),
        "fine-2": tone(1, amplitude=1.2e-4),
        "fine-3": tone(60),
    }
    for name, samples in made.items():
        soundfile.write(folder / f"{name}.wav", np.asarray(samples), SAMPLE_RATE, "FLOAT")
    (folder / "corrupted.wav").write_bytes(b"RIFF" + bytes(1000))
    return corpus_of({name: folder / f"{name}.wav" for name in [*BAD, "fine-1", "fine-2", "fine-3"]}, bad_audio)


def test_bad_files_are_left_out_and_reported_where_the_corpus_allows_it(tmp_path):
    corpus = corpus_with_bad_files(tmp_path / "c", "exclude")
    cache = cache_audio(corpus)
    assert dict(cache.excluded.itertuples(index=False)) == BAD
    assert len(cache) == 3
    pd.testing.assert_frame_equal(cache_audio(corpus).excluded, cache.excluded)
    remaining = corpus.without(cache.excluded)
    assert set(remaining.manifest.utterance) == {"fine-1", "fine-2", "fine-3"}
    assert cache_audio(remaining).fingerprint == cache.fingerprint


def contents() -> list:
    """Of the cache, without its locks."""
    return sorted(path for path in (cache_root() / "audio").rglob("*") if path.suffix != ".lock")


def test_bad_files_stop_everything_where_it_does_not(tmp_path):
    tolerant = corpus_with_bad_files(tmp_path / "c", "exclude")
    cache_audio(tolerant)
    before = contents()
    corpus = replace(tolerant, bad_audio="error")
    named = r"little: 6 of 9 .*: corrupted \(unreadable\), empty \(empty\), nan \(NaN.*\), \.\.\.; restore them"
    for _ in range(2):
        with pytest.raises(ValueError, match=named):
            cache_audio(corpus)
    assert contents() == before


def test_a_corpus_without_any_usable_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 1 .*: a \(silent\); "):
        cache_audio(write_corpus(tmp_path / "c", {"a": np.zeros(8000)}, bad_audio="exclude"))


def test_nothing_is_left_of_an_interrupted_write(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "c", {"a": integers(0, 3200)})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(audio, "_check", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        cache_audio(corpus)
    assert contents() == []
    assert len(cache_audio(corpus)) == 1


def test_of_two_that_want_the_same_cache_one_writes_it_and_the_other_waits(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "c", {"a": integers(0, 3200)})
    check, calls = audio._check, []

    def slow(*args):
        calls.append(args)
        time.sleep(0.5)
        check(*args)

    monkeypatch.setattr(audio, "_check", slow)
    with ThreadPoolExecutor() as pool:
        caches = list(pool.map(cache_audio, [corpus] * 2))
    assert len(calls) == 1
    for cache in caches:
        np.testing.assert_array_equal(cache["a"], integers(0, 3200) / 2**15)


def test_a_changed_file_is_decoded_again(tmp_path):
    corpus = write_corpus(tmp_path / "c", {"a": integers(0, 3200), "b": integers(1, 3200)})
    first = cache_audio(corpus)
    write_corpus(tmp_path / "c", {"b": integers(2, 3200)})
    second = cache_audio(corpus)
    np.testing.assert_array_equal(second["b"], integers(2, 3200) / 2**15)
    np.testing.assert_array_equal(first["b"], integers(1, 3200) / 2**15)
    assert first.fingerprint != second.fingerprint


def test_fingerprint_is_that_of_the_content(tmp_path):
    files = {"a": integers(0, 3200), "b": integers(1, 3200)}
    here = write_corpus(tmp_path / "here", files)
    fingerprint = cache_audio(here).fingerprint
    shutil.copytree(tmp_path / "here", tmp_path / "else" / "where", copy_function=shutil.copyfile)
    there = corpus_of({name: tmp_path / "else" / "where" / f"{name}.flac" for name in "ba"})
    assert cache_audio(there).fingerprint == fingerprint
    assert len(fingerprint) == 64

    files["b"] = files["b"].copy()
    files["b"][1700] += 1
    assert cache_audio(write_corpus(tmp_path / "changed", files)).fingerprint != fingerprint
    for column in ("label", "speaker", "split"):
        here.manifest.loc[1, column] = "other"
        changed = cache_audio(here).fingerprint
        assert changed != fingerprint
        fingerprint = changed
