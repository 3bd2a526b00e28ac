"""RAVDESS speech, audio only, with four classes: calm, fearful, disgust and surprised are dropped."""

from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora.manifest import FOUR_CLASSES, Corpus, named

LABELS = {"01": "neutral", "03": "happy", "04": "sad", "05": "angry"}

# 03-01-05-01-02-01-16.wav: audio only (03), speech (01), emotion, intensity, statement, repetition, actor
NAME = r"03-01-(?P<label>\d\d)-\d\d-\d\d-\d\d-(?P<speaker>\d\d)\.(?:wav|flac)"


def read(root: Path) -> pd.DataFrame:
    """Read the file names, which hold everything; actors with an even number are women."""
    rows = named(root, "Actor_*", NAME)
    return rows.assign(label=rows.label.map(LABELS), gender=rows.speaker.astype(int).mod(2).map({0: "F", 1: "M"}))


RAVDESS = Corpus(
    name="ravdess",
    layout="files as 03-01-05-01-02-01-16.wav (or .flac), in it or in its folders Actor_01 to Actor_24",
    recognises=lambda root: not named(root, "Actor_*", NAME).empty,
    read=read,
    licence="CC BY-NC-SA 4.0",
    access="open (ser-kd download ravdess): zenodo.org/records/1188976",
    citation="Livingstone & Russo, The Ryerson audio-visual database of emotional speech and song, PLoS ONE 13, 2018",
    labels=FOUR_CLASSES,
    counts={"angry": 192, "happy": 191, "neutral": 96, "sad": 192},  # published: 192 happy, with the duplicate
    faults={"03-01-03-01-02-02-07": "same samples as 03-01-03-01-02-01-07"},
)
