"""RAVDESS speech, audio only, with four classes: calm, fearful, disgust and surprised are dropped."""

from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora.manifest import Corpus, card, named

LABELS = {"01": "neutral", "03": "happy", "04": "sad", "05": "angry"}

# 03-01-05-01-02-01-16.wav: audio only (03), speech (01), emotion, intensity, statement, repetition, actor
NAME = r"03-01-(?P<label>\d\d)-\d\d-\d\d-\d\d-(?P<speaker>\d\d)\.(?:wav|flac)"


def read(root: Path) -> pd.DataFrame:
    """Read the file names, which hold everything; actors with an even number are women."""
    rows = named(root, "Actor_*", NAME)
    return rows.assign(label=rows.label.map(LABELS), gender=rows.speaker.astype(int).mod(2).map({0: "F", 1: "M"}))


RAVDESS = Corpus(**card("ravdess"), recognises=lambda root: not named(root, "Actor_*", NAME).empty, read=read)
