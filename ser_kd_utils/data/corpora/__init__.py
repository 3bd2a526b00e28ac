"""Corpora: one manifest per corpus, whatever its layout on disk, checked against the published counts."""

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora import folds
from ser_kd_utils.data.corpora import manifest as tables
from ser_kd_utils.data.corpora.demo import ensure_demo
from ser_kd_utils.data.corpora.emodb import EMODB
from ser_kd_utils.data.corpora.folds import Split, split
from ser_kd_utils.data.corpora.iemocap import DEV_SPEAKERS, IEMOCAP, IMPROVISED
from ser_kd_utils.data.corpora.manifest import COLUMNS, MANIFEST, Source, exclusions
from ser_kd_utils.data.corpora.meld import MELD, MELD_4
from ser_kd_utils.data.corpora.ravdess import RAVDESS
from ser_kd_utils.files import cache_root

__all__ = ["COLUMNS", "CORPORA", "Corpus", "Split", "load_corpus", "split", "unlabelled"]

# Written in IEMOCAP's layout by demo.py, so that the demo runs through the same reader as the licensed corpus.
_DEMO = replace(
    IEMOCAP,
    name="demo",
    licence="made on this machine by this package; same licence",
    access="open: made in the cache folder on first use",
    citation="Synthetic speech made with Praat (Boersma & Weenink); its numbers say nothing about human speech.",
    counts={},
    synthetic=True,
)
_SPEECH = replace(MANIFEST, name="speech", access="local: the files of a folder", bad_audio="exclude")
_READ = (_DEMO, IEMOCAP, DEV_SPEAKERS, IMPROVISED, MELD, MELD_4, EMODB, RAVDESS, MANIFEST)
_SOURCES = {source.name: source for source in _READ}
CORPORA = tuple(_SOURCES)


@dataclass(frozen=True, eq=False)
class Corpus:
    """What the rest of the package knows of a corpus.

    `manifest` has one row per utterance, sorted by utterance, with exactly the columns COLUMNS: `path` is absolute,
    `seconds` is what the annotation or else the file's header says (NaN where neither does), text that does not apply
    is "". `labels` fixes the order of the classes; `protocols` are those `split` takes, the default first. `notes`
    says what differs from the published counts. `bad_audio` says what an unusable file means: "error", or "exclude"
    where the release is known to hold such files.
    """

    name: str
    manifest: pd.DataFrame
    labels: tuple[str, ...]
    protocols: tuple[str, ...]
    licence: str
    access: str
    citation: str
    synthetic: bool = False
    bad_audio: str = "error"
    notes: tuple[str, ...] = ()
    excluded: pd.DataFrame = field(default_factory=exclusions)

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

    def fold_count(self, protocol: str | None = None) -> int:
        """Number of folds of `protocol` (default: the first). ValueError if the corpus has no such protocol."""
        return folds.fold_count(self, protocol)

    def without(self, excluded: pd.DataFrame) -> "Corpus":
        """The same corpus less the utterances of `excluded` (columns utterance, reason)."""
        kept = self.manifest[~self.manifest.utterance.isin(excluded.utterance)].reset_index(drop=True)
        extended = pd.concat([self.excluded, excluded[["utterance", "reason"]]], ignore_index=True)
        return replace(self, manifest=kept, excluded=extended)


def load_corpus(name: str, root: str | Path | None = None) -> Corpus:
    """Read the corpus `name` from its folder `root` ("manifest": its CSV or TSV file; "demo" takes none).

    Raises ValueError (unknown name, contradictory content) or FileNotFoundError (no root given, nothing or another
    corpus there, files missing). Warns when counts differ from the published ones.
    """
    if name not in _SOURCES:
        raise ValueError(f"unknown corpus {name!r}; choose one of {', '.join(CORPORA)}")
    source = _SOURCES[name]
    home = ensure_demo(cache_root()) if source.synthetic else _root(source, root)
    rows, excluded = source.read(home)
    labels = source.classes or tuple(sorted(set(rows.label)))
    known = rows.label.isin(labels)
    if not known.any():
        raise ValueError(f"{name} at {home}: no utterance labelled {', '.join(labels)}")
    excluded = excluded[~excluded.utterance.isin(rows.utterance[~known])].reset_index(drop=True)
    rows = tables.tidy(rows[known], f"{name} at {home}")
    notes = _differences(rows, labels, source)
    if notes:
        warnings.warn(f"{name} differs from the published counts: {'; '.join(notes)}", stacklevel=2)
    manifest = rows[~rows.utterance.isin(excluded.utterance)].reset_index(drop=True)
    protocols = source.protocols or tables.protocols_of(rows)
    return Corpus(
        manifest=manifest, labels=labels, protocols=protocols, notes=notes, excluded=excluded, **_about(source)
    )


def unlabelled(folder: str | Path) -> Corpus:
    """Every sound file below `folder`, whatever is said in it: speech without labels or speakers.

    An utterance is "speech/" and the file's path below `folder` without its suffix. Raises FileNotFoundError (no such
    folder, no sound in it) or ValueError (two files that differ in their suffix only).
    """
    home = Path(folder).expanduser().resolve()
    paths = tables.sound_files(home)
    if not paths:
        raise FileNotFoundError(
            f"no speech at {home}: {'no sound files' if home.is_dir() else 'no such folder'}; pass with --speech-dir "
            f"a folder of sound files ({', '.join(tables.SOUND_SUFFIXES)})"
        )
    names = [f"speech/{path.relative_to(home).with_suffix('').as_posix()}" for path in paths]
    rows = tables.tidy(pd.DataFrame({"utterance": names, "path": map(str, paths)}), f"speech at {home}")
    return Corpus(manifest=rows, labels=(), protocols=(), **_about(_SPEECH))


def _root(source: Source, root: str | Path | None) -> Path:
    """The absolute root, once the corpus is recognised there."""
    if not root:
        raise FileNotFoundError(
            f"{source.name}: no place of the data given; access: {source.access}. "
            f"Pass with --data-root the place of {source.layout}"
        )
    home = tables.require_utf8(Path(root).expanduser().resolve())
    if home.exists() and source.recognises(home):
        return home
    raise FileNotFoundError(f"no {source.name} at {home}: looked for {source.layout}; found {_found(home)}")


def _found(home: Path) -> str:
    if not home.exists():
        return "nothing: the path does not exist"
    others = [other.name for other in _SOURCES.values() if not other.synthetic and other.recognises(home)]
    if others:
        return f"{' or '.join(others)}: choose that corpus or pass another --data-root"
    if home.is_file():
        return f"a file, {home.name}"
    return tables.some(sorted(path.name for path in home.iterdir() if path.name[0] != "."), 5) or "an empty folder"


def _about(source: Source) -> dict[str, object]:
    """What a corpus takes over from its source as it is."""
    names = ("name", "licence", "access", "citation", "synthetic", "bad_audio")
    return {name: getattr(source, name) for name in names}


def _differences(rows: pd.DataFrame, labels: tuple[str, ...], source: Source) -> tuple[str, ...]:
    """What differs from the published counts, one note each."""
    if not source.counts:
        return ()
    found = pd.crosstab(rows[source.counted_by], rows.label)
    published = pd.DataFrame(source.counts, index=list(labels)).T
    found, published = found.align(published, fill_value=0)
    return tuple(
        f"{f'{source.counted_by} {group}, ' if group else ''}{label}: {found.at[group, label]:.0f} utterances, "
        f"published {published.at[group, label]:.0f}"
        for group in found.index
        for label in labels
        if found.at[group, label] != published.at[group, label]
    )
