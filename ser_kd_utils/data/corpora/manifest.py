"""What a corpus is, what every manifest looks like, and the user's own corpus: a CSV or TSV file.

Also which files below a folder are sound, by the same rules for speech and for noise.
"""

import os
import re
import tomllib
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ("utterance", "path", "label", "speaker", "gender", "session", "style", "split", "seconds")
REQUIRED = COLUMNS[:4]
PARTS = ("train", "dev", "test")
TABLES = {".csv": (",", "CSV table in UTF-8 with commas"), ".tsv": ("\t", "TSV table in UTF-8 with tabs")}
MISSING = ("", "nan", "none", "null", "n/a", "na")  # as programs write what is not there
SOUND_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4",
    ".aac", ".aif", ".aiff", ".aifc", ".au", ".webm", ".wma",
)  # fmt: skip


# What is known of each corpus, in words and numbers.
CARDS = tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))


def exclusions(pairs: Iterable[tuple[str, str]] = ()) -> pd.DataFrame:
    """Table of the utterances left out: columns utterance, reason."""
    return pd.DataFrame(list(pairs), columns=["utterance", "reason"], dtype="str")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus: what is known about it and, once `load_corpus` has read it, its utterances.

    `manifest` has one row per utterance, sorted by utterance, with exactly the columns COLUMNS: `path` is absolute,
    `seconds` is what the annotation or else the file's header says (NaN where neither does), text that does not apply
    is "". `labels` fixes the order of the classes; `protocols` are those `split` takes, the default first. `notes`
    says what differs from the published counts. `bad_audio` says what an unusable file means: "error", or "exclude"
    where the release is known to hold such files.
    """

    name: str
    manifest: pd.DataFrame = field(default_factory=pd.DataFrame)
    labels: tuple[str, ...] = ()  # before it is read, empty: the labels found
    protocols: tuple[str, ...] = ()  # before it is read, empty: those the manifest allows
    licence: str = ""
    access: str = ""
    citation: str = ""
    synthetic: bool = False
    bad_audio: str = "error"
    notes: tuple[str, ...] = ()
    excluded: pd.DataFrame = field(default_factory=exclusions)

    # what `load_corpus` needs
    layout: str = ""  # what is looked for at the root, in words
    recognises: Callable[[Path], bool] | None = None
    read: Callable[[Path], pd.DataFrame] | None = None  # rows with some of COLUMNS; other labels than `labels` go
    faults: Mapping[str, str] = field(default_factory=dict)  # utterances left out of the release, and why
    counts: Mapping[str, int] = field(default_factory=dict)  # of each label as published, less the faults

    def card(self) -> pd.DataFrame:
        """The corpus in plain words: a table of two columns, item and value."""
        rows = self.manifest
        counts = rows.label.value_counts()
        unknown = f" and {n} files of unknown length" if (n := int(rows.seconds.isna().sum())) else ""
        reasons = self.excluded.reason.value_counts(sort=False)
        items = {
            "name": self.name,
            "speech": "synthetic" if self.synthetic else "recorded",
            "utterances": str(len(rows)),
            "speakers": str(rows.speaker.nunique()),
            "classes": ", ".join(f"{label} {counts.get(label, 0)}" for label in self.labels),
            "hours": f"{rows.seconds.sum() / 3600:.2f}{unknown}",
            "protocols": ", ".join(self.protocols),
            "left out": "; ".join(f"{count} ({reason})" for reason, count in reasons.items()) or "none",
            "differs from published": "; ".join(self.notes) or "no",
            "licence": self.licence,
            "access": self.access,
            "citation": self.citation,
        }
        return pd.DataFrame(items.items(), columns=["item", "value"])

    def without(self, excluded: pd.DataFrame) -> "Corpus":
        """The same corpus less the utterances of `excluded` (columns utterance, reason)."""
        kept = self.manifest[~self.manifest.utterance.isin(excluded.utterance)].reset_index(drop=True)
        extended = pd.concat([self.excluded, excluded[["utterance", "reason"]]], ignore_index=True)
        return replace(self, manifest=kept, excluded=extended)


def card(name: str) -> dict:
    """What cards.toml tells of a corpus, as Corpus takes it; the classes are those whose counts are published."""
    told = {key: tuple(value) if isinstance(value, list) else value for key, value in CARDS[name].items()}
    return told | {"name": name} | ({"labels": tuple(told["counts"])} if told.get("counts") else {})


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of the names, for messages."""
    names = list(names)
    return ", ".join(names[:most] + ["..."] * (len(names) > most))


def first_of(root: Path, *patterns: str) -> list[Path]:
    """What matches the first of the patterns that matches anything, sorted."""
    return next((paths for pattern in patterns if (paths := sorted(root.glob(pattern)))), [])


def named(root: Path, folder: str, name: str) -> pd.DataFrame:
    """The files with such a name in `folder` of the root, or in itself: utterance, path and the name's named groups."""
    paths = first_of(root, f"{folder}/*", "*")
    found = [(path, match) for path in paths if (match := re.fullmatch(name, path.name, re.IGNORECASE))]
    return pd.DataFrame([{"utterance": path.stem, "path": str(path)} | match.groupdict() for path, match in found])


def tidy(rows: pd.DataFrame, where: str) -> pd.DataFrame:
    """The final form of a manifest: COLUMNS, sorted by utterance; unknown lengths are read from the files' headers.

    Raises ValueError for an utterance that occurs twice.
    """
    rows = rows.sort_values(["utterance", "path"], ignore_index=True)
    twice = rows[rows.utterance.duplicated(keep=False)]
    if len(twice):
        raise ValueError(f"{where}: utterance {twice.utterance.iloc[0]} occurs twice: {' and '.join(twice.path[:2])}")
    seconds = rows["seconds"] if "seconds" in rows else rows.path.map(_header_seconds)
    return rows.reindex(columns=list(COLUMNS[:-1]), fill_value="").assign(seconds=seconds.astype("float64"))


def _header_seconds(path: str) -> float:
    import soundfile

    try:
        return soundfile.info(path).duration or np.nan
    except soundfile.SoundFileError:  # broken, or a film: the audio cache decides
        return np.nan


def protocols_of(rows: pd.DataFrame) -> tuple[str, ...]:
    """Protocols a manifest allows: "official" if its split is filled, "speaker-groups" from 3 speakers on."""
    allowed = {"official": rows.split.ne("").all(), "speaker-groups": rows.speaker.nunique() >= 3, "random": True}
    return tuple(protocol for protocol, possible in allowed.items() if possible)


def read(path: Path) -> pd.DataFrame:
    """Read a CSV or TSV file with REQUIRED and any other of COLUMNS; its paths are relative to it or absolute.

    Texts but paths are stripped and brought to Unicode's composed form (NFC). Raises one ValueError that lists
    everything wrong with it.
    """
    sep, kind = TABLES[path.suffix.lower()]
    try:
        # more fields than columns would be cut off with a warning only
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            rows = pd.read_csv(path, sep=sep, dtype="str", keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (ValueError, pd.errors.ParserWarning) as error:  # also: another encoding, empty
        raise ValueError(f"{path} is no {kind}: {str(error).strip()}") from None
    rows = rows.fillna("").rename(columns=str.strip)
    if missing := [column for column in REQUIRED if column not in rows]:
        raise ValueError(f"{path}: missing columns: {', '.join(missing)} (found: {', '.join(rows.columns)})")
    rows = rows.reindex(columns=list(COLUMNS), fill_value="")
    for column in rows.columns.drop("path"):
        rows[column] = rows[column].str.strip().str.normalize("NFC")
    rows["path"] = [str(path.parent / name) if name.strip() else "" for name in rows.path]
    if problems := list(_problems(rows)):
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return rows.assign(seconds=rows.path.map(_header_seconds).fillna(pd.to_numeric(rows.seconds)))


def _problems(rows: pd.DataFrame) -> Iterator[str]:
    if rows.empty:
        yield "no rows"
        return
    for column in REQUIRED:
        if missing := rows[column][rows[column].str.casefold().isin(MISSING)].tolist():
            yield f"{len(missing)} rows with empty {column} (found {missing[0]!r}): fill it in or leave these rows out"
    if duplicates := sorted(set(rows.utterance[rows.utterance.duplicated() & rows.utterance.ne("")])):
        yield f"{len(duplicates)} duplicate utterances ({some(duplicates)})"
    for column in ("utterance", "label", "speaker"):
        for one, other in _near_equal(rows[column])[:3]:
            yield f"{column} {one!r} and {other!r} look like the same: write it in one way, or give them other names"
    if absent := [name for name in rows.path if name and not Path(name).is_file()]:
        yield f"{len(absent)} files not found ({some(absent)})"
    if rows.label.nunique() == 1:
        yield f"only one label ({rows.label.iloc[0]})"
    if set(rows.split) not in ({""}, set(PARTS)):
        found = some(map(repr, sorted(set(rows.split))))
        yield f"split must be empty in all rows, or train, dev or test in each and each used (found {found})"
    given = rows[rows.seconds.ne("")]
    seconds, header = pd.to_numeric(given.seconds, errors="coerce"), given.path.map(_header_seconds).astype("float64")
    possible = seconds.gt(0) & seconds.lt(np.inf) & ~((seconds - header).abs() > 0.1 + 0.02 * header)
    if wrong := given.utterance[~possible].tolist():
        yield f"seconds of {len(wrong)} utterances are not those of the sound ({some(wrong)}): leave them empty"


def _near_equal(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in case, blanks or Unicode form only, or are the same number, as "03" and "3"."""
    pairs, first = [], {}
    for name in sorted(set(names)):
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        key = Decimal(plain) if re.fullmatch(r"\d+(\.\d+)?", plain) else plain
        if first.setdefault(key, name) != name:
            pairs.append((first[key], name))
    return pairs


def sound_files(folder: Path) -> list[Path]:
    """Every sound file (SOUND_SUFFIXES) below `folder`, sorted.

    Links are followed, each folder is entered once; hidden files and folders are left out. Raises ValueError for a name
    that is not UTF-8.
    """
    found, entered, tops = [], set(), [folder]
    for top in tops:  # links to folders are appended on the way, so that a folder's own place comes before them
        for place, folders, names in os.walk(top):
            here = os.path.realpath(place)
            folders[:] = sorted(name for name in folders if name[0] != "." and here not in entered)
            found += [Path(place, name) for name in names if name[0] != "." and here not in entered]
            tops += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
            entered.add(here)
    return sorted(require_utf8(path) for path in found if path.suffix.lower() in SOUND_SUFFIXES)


def require_utf8(path: Path) -> Path:
    """The path itself. Raises ValueError where it is in another encoding, which no table can hold."""
    if re.search("[\ud800-\udfff]", str(path)):  # as Python holds bytes that are not UTF-8
        raise ValueError(f"{os.fsencode(path)!r} is not named in UTF-8: rename it, as with convmv")
    return path


MANIFEST = Corpus(
    **card("manifest"), recognises=lambda root: root.is_file() and root.suffix.lower() in TABLES, read=read
)
