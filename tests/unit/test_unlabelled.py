"""Speech without labels: which files of a folder are found, under which names, and what the audio cache keeps."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import soundfile

from ser_kd_utils.data.audio import SAMPLE_RATE, cache_audio, decode
from ser_kd_utils.data.corpora import COLUMNS, unlabelled
from ser_kd_utils.data.corpora.manifest import sound_files


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_KD_CACHE", str(tmp_path / "cache"))


def write(path: Path, seconds: float = 0.5, hertz: float = 440.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
    soundfile.write(path, samples, SAMPLE_RATE)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("19/198/0001.flac", "19/0001.wav", "b.part.ogg", "LOUD.WAV"):
        write(tmp_path / "speech" / name)
    write(tmp_path / "speech" / "19" / "._0001.wav")
    (tmp_path / "speech" / "19" / "19.trans.txt").write_text("0001 NORTHANGER ABBEY")
    return tmp_path / "speech"


def test_every_sound_file_below_the_folder_is_found_and_nothing_else(folder):
    rows = unlabelled(folder).manifest
    assert rows.utterance.to_list() == ["speech/19/0001", "speech/19/198/0001", "speech/LOUD", "speech/b.part"]
    assert rows.path.to_list() == [
        str(folder / name) for name in ("19/0001.wav", "19/198/0001.flac", "LOUD.WAV", "b.part.ogg")
    ]


def test_it_is_a_corpus_without_labels_speakers_or_protocols(folder):
    speech = unlabelled(str(folder))
    assert tuple(speech.manifest) == COLUMNS and speech.manifest.seconds.eq(0.5).all()
    assert (speech.name, speech.labels, speech.protocols, speech.bad_audio) == ("speech", (), (), "exclude")
    assert speech.manifest[["label", "speaker", "gender", "session", "style", "split"]].eq("").all(axis=None)
    assert speech.manifest.dtypes["label"] == pd.StringDtype(na_value=np.nan)  # text, as in any other corpus


def test_the_audio_cache_takes_it_and_leaves_out_what_cannot_be_used(folder):
    (folder / "broken.wav").write_text("no sound")
    write(folder / "click.wav", seconds=0.05)
    speech = unlabelled(folder)
    audio = cache_audio(speech)
    assert sorted(audio.utterances) == ["speech/19/0001", "speech/19/198/0001", "speech/LOUD", "speech/b.part"]
    assert sorted(audio.excluded.utterance) == ["speech/broken", "speech/click"]
    assert audio["speech/19/0001"].shape == (SAMPLE_RATE // 2,) and audio.dataset.cache_files
    assert len(speech.without(audio.excluded).manifest) == len(audio) == 4


def test_the_fingerprint_follows_the_sound_and_not_the_place(folder, tmp_path):
    before = cache_audio(unlabelled(folder)).fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert cache_audio(unlabelled(moved)).fingerprint == before
    write(moved / "LOUD.WAV", hertz=880)
    assert cache_audio(unlabelled(moved)).fingerprint != before


@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_a_folder_without_speech_says_what_to_pass(tmp_path, content):
    if content:
        (tmp_path / "speech").mkdir()
        (tmp_path / "speech" / content).write_text("none")
    with pytest.raises(FileNotFoundError, match="no speech at .*speech: pass with --speech-dir.*flac"):
        unlabelled(tmp_path / "speech")


def test_two_files_of_one_name_are_refused(folder):
    write(folder / "LOUD.flac")
    with pytest.raises(ValueError, match="utterance speech/LOUD occurs twice: .*LOUD.WAV and .*LOUD.flac"):
        unlabelled(folder)


# ---- which files are sound


def test_links_are_followed_once_and_what_is_hidden_is_left_out(tmp_path):
    """Content-addressed stores keep the sound in a hidden folder and link to it; some links lead in a circle."""
    root = tmp_path / "root"
    kept = [write(root / "z" / "deep" / "1.wav"), write(tmp_path / "outside" / "2.wav")]
    for hidden in (".git/annex/3.wav", "z/.trash/4.wav", "z/._1.wav"):
        write(root / hidden)
    (root / "a").symlink_to(root / "z" / "deep")
    (root / "z" / "deep" / "circle").symlink_to(root)
    (root / "other").symlink_to(tmp_path / "outside")
    (root / "other-again").symlink_to(tmp_path / "outside")
    (root / "5.wav").symlink_to(root / ".git" / "annex" / "3.wav")
    assert sound_files(root) == sorted([kept[0], root / "other" / "2.wav", root / "5.wav"])


def test_a_link_into_a_content_addressed_store_gives_the_samples_of_the_file(tmp_path):
    path = write(tmp_path / "a.flac")
    blob = path.rename(tmp_path / "0a1b2c")
    path.symlink_to(blob)
    np.testing.assert_array_equal(decode(path), decode(blob))
    blob.rename(tmp_path / "b.mp4")  # whatever the name says
    np.testing.assert_array_equal(decode(tmp_path / "b.mp4"), decode(write(tmp_path / "c.flac")))


ENCODERS = {
    "opus": "libopus",
    "aiff": "pcm_s16be",
    "aif": "pcm_s16be",
    "webm": "libopus",
    "wma": "wmav2",
    "aac": "aac",
    "m4a": "aac",
    "mp3": "libmp3lame",
}


@pytest.mark.parametrize("suffix", ENCODERS)
def test_every_kind_of_file_is_read(tmp_path, suffix):
    path = tmp_path / "speech" / f"a.{suffix}"
    path.parent.mkdir()
    with av.open(path, "w") as container:
        stream = container.add_stream(ENCODERS[suffix], rate=48_000, layout="mono")
        stream.bit_rate = 64_000
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
        frame = av.AudioFrame.from_ndarray(np.rint(tone * 2**15).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(stream.format.name, "mono", 48_000, stream.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    assert [row.path for row in unlabelled(path.parent).manifest.itertuples()] == [str(path)]
    samples = decode(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(1, abs=0.1)
    assert np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples) == pytest.approx(440, abs=2)


def test_names_in_another_encoding_are_one_clear_error(folder):
    """Windows-1252 comes as surrogate escapes, which no table of text can hold."""
    write(folder / "plain.wav").rename(Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.wav")))
    with pytest.raises(ValueError, match=r"M\\xfcller.wav' is not named in UTF-8: rename it"):
        unlabelled(folder)
