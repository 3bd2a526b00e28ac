"""What a corpus reader provides, what every manifest looks like, and the user's own corpus: a CSV file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ("utterance", "path", "label", "speaker", "gender", "session", "style", "split", "seconds")
REQUIRED = COLUMNS[:4]
PARTS = ("train", "dev", "test")
FOUR_CLASSES = ("angry", "happy", "neutral", "sad")


@dataclass(frozen=True)
class Source:
    """A corpus before it is read: how to recognise and read it, and what is known of it."""

    name: str
    layout: str  # what is looked for at the root, in words
    recognises: Callable[[Path], bool]
    read: Callable[[Path], tuple[pd.DataFrame, pd.DataFrame]]  # rows (some of COLUMNS) and the excluded among them
    licence: str
    access: str
    citation: str
    classes: tuple[str, ...] = FOUR_CLASSES  # empty: the labels found
    protocols: tuple[str, ...] = ()  # the default first; empty: what the manifest allows
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # as published, of counted_by and label
    counted_by: str = "session"
    bad_audio: str = "error"
    synthetic: bool = False


def exclusions(pairs: Iterable[tuple[str, str]] = ()) -> pd.DataFrame:
    """Table of the utterances left out: columns utterance, reason."""
    return pd.DataFrame(list(pairs), columns=["utterance", "reason"], dtype="str")


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """The final form of a manifest: COLUMNS, sorted by utterance; unknown lengths are read from the files' headers."""
    texts = rows.reindex(columns=list(COLUMNS[:-1]), fill_value="")
    seconds = rows["seconds"] if "seconds" in rows else pd.Series(np.nan, index=rows.index)
    seconds = seconds.astype("float64").fillna(rows.path[seconds.isna()].map(_header_seconds).astype("float64"))
    return texts.assign(seconds=seconds).sort_values("utterance", ignore_index=True)


def _header_seconds(path: str) -> float:
    import soundfile

    try:
        return float(soundfile.info(path).duration)
    except soundfile.SoundFileError:  # broken, or a film: the audio cache decides
        return float("nan")


def protocols_of(rows: pd.DataFrame) -> tuple[str, ...]:
    """Protocols a manifest allows: "official" if its split is filled, "speaker-groups" from 3 speakers on."""
    official = ("official",) if rows.split.ne("").all() else ()
    groups = ("speaker-groups",) if rows.speaker.nunique() >= 3 else ()
    return (*official, *groups, "random")


def read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a CSV file with REQUIRED and any other of COLUMNS; its paths are relative to it or absolute.

    Raises one ValueError that lists everything wrong with it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more fields than columns would be cut off
            rows = pd.read_csv(path, dtype="str", keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (ValueError, pd.errors.ParserWarning) as error:  # also: another encoding, empty
        raise ValueError(f"{path} is no CSV table in UTF-8 with commas: {str(error).strip()}") from None
    rows = rows.fillna("")
    problems = list(_problems(rows, path.parent))
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    rows = rows[[column for column in COLUMNS if column in rows]]
    rows = rows.assign(path=[str((path.parent / name).resolve()) for name in rows.path])
    if "seconds" in rows:
        rows = rows.assign(seconds=pd.to_numeric(rows.seconds, errors="coerce"))
    return rows, exclusions()


def _problems(rows: pd.DataFrame, folder: Path) -> Iterator[str]:
    missing = [column for column in REQUIRED if column not in rows]
    if missing:
        yield f"missing columns: {', '.join(missing)} (found: {', '.join(rows.columns)})"
        return
    if rows.empty:
        yield "no rows"
        return
    for column in REQUIRED:
        if blank := int(rows[column].str.strip().eq("").sum()):
            yield f"{blank} rows with empty {column}"
    named = rows.utterance[rows.utterance.str.strip().ne("")]
    if duplicates := sorted(set(named[named.duplicated()])):
        yield f"{len(duplicates)} duplicate utterances ({', '.join(duplicates[:3])})"
    if absent := [name for name in rows.path if name.strip() and not (folder / name).is_file()]:
        yield f"{len(absent)} files not found ({', '.join(absent[:3])})"
    if rows.label.nunique() == 1:
        yield f"only one label ({rows.label.iloc[0]})"
    if "split" in rows and set(rows.split) not in ({""}, set(PARTS)):
        found = ", ".join(repr(part) for part in sorted(set(rows.split))[:5])
        yield f"split must be empty in all rows, or train, dev or test in each and each used (found {found})"
    if "seconds" in rows and (pd.to_numeric(rows.seconds, errors="coerce").isna() & rows.seconds.ne("")).any():
        yield "seconds must be numbers or empty"


MANIFEST = Source(
    name="manifest",
    layout=f"a CSV file with the columns {', '.join(REQUIRED)} and, where known, {', '.join(COLUMNS[4:])}",
    recognises=lambda root: root.is_file() and root.suffix.lower() == ".csv",
    read=read,
    licence="not stated: the user's own data",
    access="local: the files that the CSV file names",
    citation="not stated",
    classes=(),
)
