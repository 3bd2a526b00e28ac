"""MELD: the declare-lab annotations (CSV) and clips (MP4) in their official split."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora.manifest import PARTS, Corpus, card, first_of

CLIP_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
CLIPS = "dia*_utt*.mp4"
NEEDED = ["Speaker", "Emotion", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime"]


def _find(root: Path, split: str, *names: str) -> list[Path]:
    """What has one of the names, wherever the release may have been unpacked."""
    folders = [f"{release}{part}" for release in ("", "MELD.Raw/") for part in ("", f"{split}/")]
    return first_of(root, *(f"{folder}{name}" for name in names for folder in folders))


def read(root: Path) -> pd.DataFrame:
    """Read the three tables. No clip is opened: `seconds` is EndTime - StartTime.

    Raises FileNotFoundError if a table or a folder of clips is missing, ValueError if a table is not as published.
    """
    return pd.concat([_read_split(root, split) for split in PARTS], ignore_index=True)


def _read_split(root: Path, split: str) -> pd.DataFrame:
    name, clips = f"{split}_sent_emo.csv", f"{CLIP_FOLDERS[split]}/{CLIPS}"
    if not (tables := _find(root, split, name)):
        raise FileNotFoundError(f"{root}: no {name}; copy it from declare-lab/MELD, data/MELD")
    if not (found := _find(root, split, clips, f"{split}/{CLIPS}")):
        raise FileNotFoundError(f"{root}: no {clips}; unpack MELD's {split}.tar.gz")
    try:
        table = pd.read_csv(tables[0], usecols=NEEDED, dtype="str", keep_default_na=False, encoding="utf-8-sig")
        times = table[["StartTime", "EndTime"]].apply(lambda time: pd.to_timedelta(time.str.replace(",", ".")))
    except ValueError as error:  # columns, encoding, times
        raise ValueError(f"{tables[0]} is not MELD's table as published: {str(error).strip()}") from None
    table = table.rename(columns={"Emotion": "label", "Speaker": "speaker"})
    names = "dia" + table.Dialogue_ID + "_utt" + table.Utterance_ID  # they start anew in each split
    paths = [str(found[0].with_name(f"{name}.mp4")) for name in names]
    seconds = (times.EndTime - times.StartTime).dt.total_seconds()
    return table.assign(utterance=f"{split}_" + names, path=paths, split=split, seconds=seconds)


def _recognises(root: Path) -> bool:
    return any(_find(root, split, f"{split}_sent_emo.csv") for split in PARTS)


MELD = Corpus(**card("meld"), recognises=_recognises, read=read)
MELD_4 = replace(MELD, name="meld-4", labels=MELD.labels[:4])
