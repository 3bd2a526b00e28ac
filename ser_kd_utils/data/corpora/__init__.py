"""Corpora: one manifest per corpus, whatever its layout on disk, checked against the published counts."""

import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ser_kd_utils.data.corpora import manifest as tables
from ser_kd_utils.data.corpora.demo import ensure_demo
from ser_kd_utils.data.corpora.emodb import EMODB
from ser_kd_utils.data.corpora.folds import Split, fold_count, split
from ser_kd_utils.data.corpora.iemocap import DEV_SPEAKERS, IEMOCAP, IMPROVISED
from ser_kd_utils.data.corpora.manifest import COLUMNS, MANIFEST, Corpus, card, exclusions
from ser_kd_utils.data.corpora.meld import MELD, MELD_4
from ser_kd_utils.data.corpora.ravdess import RAVDESS
from ser_kd_utils.files import cache_root

__all__ = ["COLUMNS", "CORPORA", "Corpus", "Split", "fold_count", "load_corpus", "split", "unlabelled"]

# Written in IEMOCAP's layout by demo.py, so that the demo runs through the same reader as the licensed corpus.
_DEMO = replace(IEMOCAP, **card("demo"))
_ALL = (_DEMO, IEMOCAP, DEV_SPEAKERS, IMPROVISED, MELD, MELD_4, EMODB, RAVDESS, MANIFEST)
_KNOWN = {each.name: each for each in _ALL}
CORPORA = tuple(_KNOWN)
MISSING_ALLOWED = 0.05  # fraction of files, where bad audio is excluded: copies of MELD are known to be incomplete


def load_corpus(name: str, root: str | Path | None = None) -> Corpus:
    """Read the corpus `name` from its folder `root` ("manifest": its CSV or TSV file; "demo" takes none).

    Raises ValueError (unknown name, contradictory content) or FileNotFoundError (no root given, nothing or another
    corpus there, files missing). Warns when counts differ from the published ones.
    """
    if name not in _KNOWN:
        raise ValueError(f"unknown corpus {name!r}; choose one of {', '.join(CORPORA)}")
    corpus = _KNOWN[name]
    home = ensure_demo(cache_root()) if corpus.synthetic else _recognised(corpus, root)
    where = f"{name} at {home}"
    rows = corpus.read(home)
    labels = corpus.labels or tuple(sorted(set(rows.label)))
    rows = tables.tidy(rows[rows.label.isin(labels)], where)
    if rows.empty:
        raise ValueError(f"{where}: no utterance labelled {', '.join(labels)}")
    corpus = replace(corpus, manifest=rows, labels=labels, protocols=corpus.protocols or tables.protocols_of(rows))
    corpus = corpus.without(exclusions((each, corpus.faults[each]) for each in rows.utterance if each in corpus.faults))
    corpus = replace(corpus, notes=_differences(corpus))
    if corpus.notes:
        warnings.warn(f"{name} differs from the published counts: {'; '.join(corpus.notes)}", stacklevel=2)
    return corpus.without(_without_file(corpus, where))


def unlabelled(folder: str | Path) -> Corpus:
    """Every sound file below `folder`: speech without labels or speakers.

    An utterance is "speech/" and the file's path below `folder` without its suffix. Raises FileNotFoundError (no such
    folder, no sound in it) or ValueError (two files that differ in their suffix only).
    """
    home = Path(folder).expanduser().resolve()
    paths = tables.sound_files(home)
    if not paths:
        wanted = f"a folder of sound files ({', '.join(tables.SOUND_SUFFIXES)})"
        raise FileNotFoundError(f"no speech at {home}: pass with --speech-dir {wanted}")
    names = [f"speech/{path.relative_to(home).with_suffix('').as_posix()}" for path in paths]
    rows = tables.tidy(pd.DataFrame({"utterance": names, "path": map(str, paths)}), f"speech at {home}")
    return replace(MANIFEST, name="speech", manifest=rows, access="local: the files of a folder", bad_audio="exclude")


def _recognised(corpus: Corpus, root: str | Path | None) -> Path:
    """The absolute root, once the corpus is recognised there."""
    if not root:
        wanted = f"Pass with --data-root the folder of {corpus.layout}; access: {corpus.access}"
        raise FileNotFoundError(f"{corpus.name}: no data folder given. {wanted}")
    home = tables.require_utf8(Path(root).expanduser().resolve())
    if corpus.recognises(home):
        return home
    others = " or ".join(other.name for other in _KNOWN.values() if not other.synthetic and other.recognises(home))
    names = tables.some(sorted(path.name for path in home.glob("[!.]*")), 5) or "nothing"
    found = f"{others}: choose that corpus or pass another --data-root" if others else names
    raise FileNotFoundError(f"no {corpus.name} at {home}: looked for {corpus.layout}; found {found}")


def _differences(corpus: Corpus) -> tuple[str, ...]:
    """One note for each difference from the published counts."""
    pairs = {label: (int((corpus.manifest.label == label).sum()), corpus.counts.get(label)) for label in corpus.labels}
    notes = {label: f"{label}: {here} utterances, published {there}" for label, (here, there) in pairs.items()}
    return tuple(notes[label] for label, (here, there) in pairs.items() if there not in (None, here))


def _without_file(corpus: Corpus, where: str) -> pd.DataFrame:
    """The utterances whose file is missing. FileNotFoundError if there are more than the release is known to lack."""
    rows = corpus.manifest
    missing = rows.utterance[[not Path(path).is_file() for path in rows.path]]
    if len(missing) > (MISSING_ALLOWED if corpus.bad_audio == "exclude" else 0) * len(rows):
        lacking = f"{len(missing)} of {len(rows)} sound files are missing ({tables.some(missing)})"
        raise FileNotFoundError(f"{where}: {lacking}; unpack it completely: {corpus.layout}")
    return exclusions((name, "no file") for name in missing)
