"""IEMOCAP with four classes, under three names.

`iemocap`: excited counts as happy; all labels but angry, happy, neutral and sad are dropped.
`iemocap-dev-speakers`: the same utterances under another protocol, with dev speakers from the training sessions.
`iemocap-improvised`: the improvised dialogs alone, with excited instead of happy, as Head Fusion's released code takes
them.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora.manifest import FOUR_CLASSES, Corpus, first_of

LABELS = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
EXCITED = {"ang": "angry", "exc": "excited", "neu": "neutral", "sad": "sad"}

# [6.2901 - 8.2357]<TAB>Ses01F_impro01_M000<TAB>neu<TAB>[2.5, ...: start and end in s, utterance, label, ratings
# The utterance is dialog and turn; the F after Ses01 wore the markers, the M before the number speaks.
SUMMARY = re.compile(r"^\[(\d+\.?\d*) - (\d+\.?\d*)\]\t((Ses(\d\d)[FM]_\S+)_([FM])\w+)\t(\w+)\t\[", re.MULTILINE)


def _tables(root: Path, dialogs: str = "Ses*") -> list[Path]:
    tables = f"Session*/dialog/EmoEvaluation/{dialogs}.txt"
    return first_of(root, f"IEMOCAP_full_release/{tables}", tables)


def read(root: Path, labels: Mapping[str, str] = LABELS, dialogs: str = "Ses*") -> pd.DataFrame:
    """Read the summary lines of dialog/EmoEvaluation/*.txt.

    labels: our name of each label to keep; dialogs: a pattern of those to read (default: all, and not macOS's ._Ses*).
    """
    rows = []
    for table in _tables(root, dialogs):
        for start, end, utterance, dialog, session, gender, label in SUMMARY.findall(table.read_text("latin-1")):
            path = table.parents[2] / "sentences" / "wav" / dialog / f"{utterance}.wav"
            who = (f"Ses{session}{gender}", gender, str(int(session)))
            style = "impro" if "_impro" in dialog else "script"
            rows.append((utterance, str(path), labels.get(label), *who, style, float(end) - float(start)))
    columns = ["utterance", "path", "label", "speaker", "gender", "session", "style", "seconds"]
    return pd.DataFrame(rows, columns=columns)


IEMOCAP = Corpus(
    name="iemocap",
    layout="Session1 to Session5, each with dialog/EmoEvaluation/*.txt and sentences/wav/*/*.wav",
    recognises=lambda root: bool(_tables(root)),
    read=read,
    licence="USC SAIL release agreement: research only, no redistribution",
    access="restricted: apply at sail.usc.edu/iemocap",
    citation="Busso et al., IEMOCAP: interactive emotional dyadic motion capture database, "
    "Language Resources and Evaluation 42, 2008",
    labels=FOUR_CLASSES,
    protocols=("leave-one-session-out", "random"),
    counts={"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084},
)

DEV_SPEAKERS = replace(IEMOCAP, name="iemocap-dev-speakers", protocols=("session-dev-speakers", "random"))

IMPROVISED = replace(
    IEMOCAP,
    name="iemocap-improvised",
    read=partial(read, labels=EXCITED, dialogs="Ses*_impro*"),
    citation=f"{IEMOCAP.citation}; part and classes: Xu, Zhang and Zhang, Head Fusion, IEEE Access 9, 2021",
    labels=tuple(EXCITED.values()),
    counts={"angry": 289, "excited": 663, "neutral": 1099, "sad": 608},
)
