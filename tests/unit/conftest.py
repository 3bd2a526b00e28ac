"""Shared by the tests that train: a corpus of tones, speech without labels, and a Trainer that starts at once."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile

RATE = 16_000
PITCH = {"angry": 300, "happy": 600, "neutral": 1200, "sad": 2400}


def write(path: Path, wave: np.ndarray) -> None:
    """By scipy: soundfile waits for the disk after each file."""
    wavfile.write(path, RATE, np.rint(wave * 2**15).astype(np.int16))


@pytest.fixture(scope="module")
def little_garbage():
    """The Trainer looks through all objects each time it starts; those of the imports take it half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """The CSV file of 4 classes x 6 speakers x 2 utterances: half a second of a tone in noise each."""
    folder, rng, rows = tmp_path_factory.mktemp("tones"), np.random.default_rng(0), []
    time = np.arange(RATE // 2) / RATE
    for label, hertz in PITCH.items():
        for speaker in range(6):
            for take in range(2):
                name = f"{label}-{speaker}-{take}"
                wave = 0.1 * np.sin(2 * np.pi * (hertz + 10 * speaker) * time) + rng.normal(0, 0.02, len(time))
                write(folder / f"{name}.wav", wave)
                rows.append((name, f"{name}.wav", label, f"s{speaker}"))
    columns = ["utterance", "path", "label", "speaker"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "corpus.csv", index=False)
    return folder / "corpus.csv"


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    """A folder of three tones that nobody labelled."""
    folder, time = tmp_path_factory.mktemp("speech"), np.arange(RATE // 2) / RATE
    for hertz in (200, 500, 800):
        write(folder / f"{hertz}.wav", 0.1 * np.sin(2 * np.pi * hertz * time))
    return folder
