"""MELD: the declare-lab annotations (CSV) and clips (MP4) in their official split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora.manifest import PARTS, Source, exclusions

SEVEN_CLASSES = ("neutral", "joy", "sadness", "anger", "surprise", "fear", "disgust")
FOUR_CLASSES = SEVEN_CLASSES[:4]
CLIP_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
NEEDED = ("Speaker", "Emotion", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime")

# Faults of the release itself (declare-lab/MELD issues 39 and 52; 22 and 27), left out whatever lies on disk.
FAULTS = {"train_dia125_utt3": "broken clip in the release", "dev_dia110_utt7": "no clip in the release"}
MISSING_ALLOWED = 0.05  # fraction of clips; copies in circulation are known to be incomplete


def _places(root: Path, split: str) -> tuple[Path, ...]:
    """Folders that may hold the table and the folder of clips of a split, depending on how the release was unpacked."""
    release = root / "MELD.Raw"
    return root, root / split, release, release / split


def _tables(root: Path, split: str) -> list[Path]:
    tables = [place / f"{split}_sent_emo.csv" for place in _places(root, split)]
    return [table for table in tables if table.is_file()]


def _clip_folders(root: Path, split: str) -> list[Path]:
    named = [place / CLIP_FOLDERS[split] for place in _places(root, split)]
    plain = [place for place in _places(root, split) if place.name == split]
    return [folder for folder in (*named, *plain) if any(folder.glob("dia*_utt*.mp4"))]


def recognises(root: Path) -> bool:
    return any(_tables(root, split) for split in PARTS)


def read(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the three tables and look for their clips. No clip is opened: `seconds` is EndTime - StartTime.

    Raises FileNotFoundError if a table, a folder of clips or over 5 % of the clips are missing, ValueError if a table
    is not as published.
    """
    parts = [_read_split(root, split) for split in PARTS]
    rows = pd.concat([rows for rows, _ in parts], ignore_index=True)
    missing = [name for _, names in parts for name in names]
    if len(missing) > MISSING_ALLOWED * len(rows):
        raise FileNotFoundError(
            f"{root}: {len(missing)} of {len(rows)} MELD clips are missing ({', '.join(missing[:3])}, ...); "
            "unpack train.tar.gz, dev.tar.gz and test.tar.gz completely"
        )
    return rows, exclusions([*FAULTS.items(), *((name, "no clip") for name in missing)])


def _read_split(root: Path, split: str) -> tuple[pd.DataFrame, list[str]]:
    """Rows of a split and the utterances among them that have no clip, known faults apart."""
    tables, folders = _tables(root, split), _clip_folders(root, split)
    if not tables:
        raise FileNotFoundError(f"{root}: no {split}_sent_emo.csv; copy it from declare-lab/MELD, data/MELD")
    if not folders:
        raise FileNotFoundError(f"{root}: no {CLIP_FOLDERS[split]}/dia*_utt*.mp4; unpack MELD's {split}.tar.gz")
    try:
        table = pd.read_csv(tables[0], usecols=list(NEEDED), dtype="str", keep_default_na=False, encoding="utf-8-sig")
        times = table[["StartTime", "EndTime"]].apply(lambda time: pd.to_timedelta(time.str.replace(",", ".")))
    except ValueError as error:  # columns, encoding, times
        raise ValueError(f"{tables[0]} is not MELD's table as published: {str(error).strip()}") from None
    clips = "dia" + table.Dialogue_ID + "_utt" + table.Utterance_ID
    rows = pd.DataFrame(
        {
            "utterance": f"{split}_" + clips,  # ids start anew in each split
            "path": [str(folders[0] / f"{clip}.mp4") for clip in clips],
            "label": table.Emotion,
            "speaker": table.Speaker,
            "split": split,
            "seconds": (times.EndTime - times.StartTime).dt.total_seconds(),
        }
    )
    there = {clip.name for clip in folders[0].iterdir()}
    has_clip = (clips + ".mp4").isin(there) | rows.utterance.isin(FAULTS)
    return rows, rows.utterance[~has_clip].tolist()


MELD = Source(
    name="meld",
    layout="train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv and the folders "
    f"{', '.join(CLIP_FOLDERS.values())} with dia*_utt*.mp4",
    recognises=recognises,
    read=read,
    licence="annotations GPL-3.0; the clips are from the series Friends and belong to its owners",
    access="open download: annotations and the link to MELD.Raw.tar.gz at github.com/declare-lab/MELD",
    citation="Poria et al., MELD: a multimodal multi-party dataset for emotion recognition in conversations, ACL 2019",
    classes=SEVEN_CLASSES,
    protocols=("official", "random"),
    counted_by="split",
    counts={
        "train": dict(zip(SEVEN_CLASSES, (4710, 1743, 683, 1109, 1205, 268, 271), strict=True)),
        "dev": dict(zip(SEVEN_CLASSES, (470, 163, 111, 153, 150, 40, 22), strict=True)),
        "test": dict(zip(SEVEN_CLASSES, (1256, 402, 208, 345, 281, 50, 68), strict=True)),
    },
    bad_audio="exclude",
)

MELD_4 = replace(MELD, name="meld-4", classes=FOUR_CLASSES)
