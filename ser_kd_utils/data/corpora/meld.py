"""MELD: the declare-lab annotations (CSV) and clips (MP4) in their official split."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora.manifest import PARTS, Corpus, card, first_of

CLIP_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
CLIPS = "dia*_utt*.mp4"
NEEDED = ["Speaker", "Emotion", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime"]


def _places(split: str, *names: str) -> list[str]:
    """Wherever the release may have been unpacked."""
    return [f"{release}{part}{name}" for name in names for release in ("", "MELD.Raw/") for part in ("", f"{split}/")]


def _find(root: Path, split: str, *names: str, hint: str) -> Path:
    if not (found := first_of(root, *_places(split, *names))):
        raise FileNotFoundError(f"{root}: no {names[0]}; {hint}")
    return found[0]


def read(root: Path) -> pd.DataFrame:
    """Read the three tables. No clip is opened: `seconds` is EndTime - StartTime.

    Raises FileNotFoundError if a table or a folder of clips is missing, ValueError if a table is not as published.
    """
    return pd.concat([_read_split(root, split) for split in PARTS], ignore_index=True)


def _read_split(root: Path, split: str) -> pd.DataFrame:
    path = _find(root, split, f"{split}_sent_emo.csv", hint="copy it from declare-lab/MELD, data/MELD")
    clips = (f"{CLIP_FOLDERS[split]}/{CLIPS}", f"{split}/{CLIPS}")
    clip = _find(root, split, *clips, hint=f"unpack MELD's {split}.tar.gz")
    try:
        table = pd.read_csv(path, usecols=NEEDED, dtype="str", keep_default_na=False, encoding="utf-8-sig")
        times = table[["StartTime", "EndTime"]].apply(lambda time: pd.to_timedelta(time.str.replace(",", ".")))
    except ValueError as error:  # columns, encoding, times
        raise ValueError(f"{path} is not MELD's table as published: {str(error).strip()}") from None
    table = table.rename(columns={"Emotion": "label", "Speaker": "speaker"})
    names = "dia" + table.Dialogue_ID + "_utt" + table.Utterance_ID  # they start anew in each split
    paths = [str(clip.with_name(f"{name}.mp4")) for name in names]
    seconds = (times.EndTime - times.StartTime).dt.total_seconds()
    return table.assign(utterance=f"{split}_" + names, path=paths, split=split, seconds=seconds)


MELD = Corpus(
    **card("meld"),
    recognises=lambda root: any(first_of(root, *_places(split, f"{split}_sent_emo.csv")) for split in PARTS),
    read=read,
)
MELD_4 = replace(MELD, name="meld-4", labels=MELD.labels[:4])
