"""EMO-DB (Berlin, acted, German) with four classes: boredom (L), disgust (E) and fear (A) are dropped."""

from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora.manifest import FOUR_CLASSES, Corpus, named

LABELS = {"W": "angry", "F": "happy", "N": "neutral", "T": "sad"}  # Wut, Freude, neutral, Trauer
GENDERS = {"03": "M", "08": "F", "09": "F", "10": "M", "11": "M", "12": "M", "13": "F", "14": "F", "15": "M", "16": "F"}

# 03a01Wa.wav: speaker, text, emotion, version
NAME = rf"(?P<speaker>{'|'.join(GENDERS)})[ab]\d\d(?P<label>[WLEAFTN])[a-z]\.(?:wav|flac)"


def read(root: Path) -> pd.DataFrame:
    """Read the file names, which hold everything."""
    rows = named(root, "wav", NAME)
    return rows.assign(label=rows.label.str.upper().map(LABELS), gender=rows.speaker.map(GENDERS))


EMODB = Corpus(
    name="emodb",
    layout="files as 03a01Wa.wav (or .flac), in it or in its folder wav",
    recognises=lambda root: not named(root, "wav", NAME).empty,
    read=read,
    licence="CC0-1.0 (as github.com/audeering/emodb states)",
    access="open (ser-kd download emodb): emodb.bilderbar.info",
    citation="Burkhardt et al., A database of German emotional speech, Interspeech 2005",
    labels=FOUR_CLASSES,
    counts={"angry": 127, "happy": 71, "neutral": 79, "sad": 62},
)
