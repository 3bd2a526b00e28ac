"""Speech without labels: which files of a folder are found, under which names, and what the audio cache keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from ser_kd_utils.data import noise
from ser_kd_utils.data.audio import SAMPLE_RATE, cache_audio
from ser_kd_utils.data.corpora import COLUMNS, SOUND_SUFFIXES, unlabelled


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


def test_speech_and_noise_are_recorded_in_the_same_kinds_of_file():
    assert SOUND_SUFFIXES == noise._SUFFIXES


@pytest.mark.parametrize(("content", "found"), [(None, "no such folder"), ("notes.txt", "no sound files")])
def test_a_folder_without_speech_says_what_to_pass(tmp_path, content, found):
    if content:
        (tmp_path / "speech").mkdir()
        (tmp_path / "speech" / content).write_text("none")
    with pytest.raises(FileNotFoundError, match=f"speech: {found}; pass with --speech-dir.*flac"):
        unlabelled(tmp_path / "speech")


def test_two_files_of_one_name_are_refused(folder):
    write(folder / "LOUD.flac")
    with pytest.raises(ValueError, match="utterance speech/LOUD occurs twice: .*LOUD.WAV and .*LOUD.flac"):
        unlabelled(folder)
