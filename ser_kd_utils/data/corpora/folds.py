"""Protocols: which utterances are for training, for choosing the epoch (dev) and for the test."""

import warnings
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from ser_kd_utils.data.corpora.manifest import CARDS, PARTS, Corpus

GENDER_GROUPS = {"emodb": 5, "ravdess": 4}  # one woman and one man each, three and three
OWN_GROUPS = 5
MIN_TO_TRAIN = 2  # utterances of a class: one to learn from, one more where a method sets some aside
RANDOM_FOLDS = 5
RANDOM_DEV = 8  # dev is one in 8 of what is not tested

RULES = CARDS["rules"]  # of each protocol, in words
SPEAKER_INDEPENDENT = ("leave-one-session-out", "session-dev-speakers", "speaker-groups")


@dataclass(frozen=True)
class Split:
    """One fold: the utterances of its three parts, each in the manifest's order, their speakers and class counts.

    `optimistic` marks a protocol that tests on speakers of the training set by design ("random").
    """

    corpus: str
    protocol: str
    fold: int
    seed: int
    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    optimistic: bool
    speakers: dict[str, tuple[str, ...]]
    classes: dict[str, dict[str, int]]

    def card(self) -> dict[str, object]:
        """The protocol in plain words, ready for JSON."""
        known = {*self.speakers["train"], *self.speakers["dev"]}
        told = {name: value for name, value in asdict(self).items() if name not in PARTS}
        told |= {"rule": RULES[self.protocol], "speaker_independent": known.isdisjoint(self.speakers["test"])}
        speakers = {part: list(names) for part, names in self.speakers.items()}
        return told | {"speakers": speakers, "sizes": {part: len(getattr(self, part)) for part in PARTS}}


def fold_count(corpus: Corpus, protocol: str | None = None) -> int:
    """Number of folds of a protocol (default: the corpus's first). ValueError if the corpus has no such protocol."""
    protocol = _protocol(corpus, protocol)
    if protocol in SPEAKER_INDEPENDENT:
        return int(_groups(corpus, protocol).max())
    return RANDOM_FOLDS if protocol == "random" else 1


def split(corpus: Corpus, protocol: str | None, fold: int, seed: int) -> Split:
    """Train, dev and test utterances of a fold (from 1) of a protocol (None: the corpus's first).

    Only "random" uses the seed. Raises ValueError for a protocol or fold the corpus does not have, for too few
    utterances, for a class with fewer than 2 to train on, and when a speaker-independent protocol would let a speaker
    into two parts. Warns of a class that is missing from dev or test.
    """
    protocol = _protocol(corpus, protocol)
    folds = fold_count(corpus, protocol)
    if not 1 <= fold <= folds:
        raise ValueError(f"{corpus.name}, {protocol}: no fold {fold}; folds: 1{f' to {folds}' * (folds > 1)}")
    rows = corpus.manifest
    if protocol in SPEAKER_INDEPENDENT:
        after = (_groups(corpus, protocol) - fold) % folds  # so many groups after the tested one
        later = (rows.gender == "M") * (protocol == "session-dev-speakers")  # the dev man is of another session
        parts = (after == 1 + later).map({True: "dev", False: "train"}).mask(after == 0, "test")
    else:
        parts = _random(corpus, fold, seed) if protocol == "random" else rows.split
    members = {part: rows[parts == part] for part in PARTS}
    where = f"{corpus.name}, {protocol}, fold {fold}"
    if empty := [part for part in PARTS if members[part].empty]:
        raise ValueError(f"{where}: nothing to put in {' and '.join(empty)}")
    speakers = {part: tuple(sorted(set(members[part].speaker))) for part in PARTS}
    if protocol in SPEAKER_INDEPENDENT:
        for one, other in combinations(PARTS, 2):
            if shared := sorted({*speakers[one]} & {*speakers[other]}):
                raise ValueError(f"{where}: speaker {shared[0]} is in {one} and in {other}; correct speaker or session")
    classes = {part: {label: int((members[part].label == label).sum()) for label in corpus.labels} for part in PARTS}
    _check_classes(classes, where)
    names = {part: tuple(members[part].utterance) for part in PARTS} | {"optimistic": protocol == "random"}
    return Split(corpus.name, protocol, fold, seed, **names, speakers=speakers, classes=classes)


def _protocol(corpus: Corpus, protocol: str | None) -> str:
    if protocol not in (None, *corpus.protocols):
        raise ValueError(f"{corpus.name} has no protocol {protocol!r}; it has {', '.join(corpus.protocols)}")
    return protocol or corpus.protocols[0]


def _groups(corpus: Corpus, protocol: str) -> pd.Series:
    """Number (from 1) of the session or speaker group of every utterance."""
    rows = corpus.manifest
    if protocol == "speaker-groups":
        kind, groups = "speaker groups", rows.speaker.map(_speaker_groups(corpus))
    else:
        kind, groups = "sessions", pd.Series(pd.factorize(rows.session, sort=True)[0] + 1, index=rows.index)
    if groups.max() < len(PARTS):
        raise ValueError(f"{corpus.name}, {protocol}: needs at least 3 {kind}, has {groups.max()}")
    return groups


def _speaker_groups(corpus: Corpus) -> dict[str, int]:
    """Group (from 1) of every speaker: as many women as men, or else even in utterances and classes."""
    rows = corpus.manifest
    if corpus.name in GENDER_GROUPS:
        genders = [sorted(set(rows.speaker[rows.gender == gender])) for gender in "FM"]
        count = max(1, min(GENDER_GROUPS[corpus.name], *map(len, genders)))
        return {name: place * count // len(names) + 1 for names in genders for place, name in enumerate(names)}
    counts = pd.crosstab(rows.speaker, rows.label, margins=True, margins_name="")
    fractions = (counts / counts.loc[""]).drop("")  # of each class and of all
    loads = np.zeros((min(OWN_GROUPS, len(fractions)), fractions.shape[1]))
    groups = {}
    for name in counts[""].drop("").sort_values(ascending=False, kind="stable").index:  # of the same size: by name
        group = int((loads @ fractions.loc[name]).round(12).argmin())  # where the sum of squares over all grows least
        loads[group] += fractions.loc[name]
        groups[name] = group + 1
    return groups


def _random(corpus: Corpus, fold: int, seed: int) -> pd.Series:
    from sklearn.model_selection import StratifiedKFold

    labels = corpus.manifest.label
    rest, test = [*StratifiedKFold(RANDOM_FOLDS, shuffle=True, random_state=seed).split(labels, labels)][fold - 1]
    _, dev = next(StratifiedKFold(RANDOM_DEV, shuffle=True, random_state=seed).split(rest, labels.iloc[rest]))
    parts = pd.Series("train", index=labels.index, dtype=object)
    parts.iloc[test], parts.iloc[rest[dev]] = "test", "dev"
    return parts


def _check_classes(classes: dict[str, dict[str, int]], where: str) -> None:
    for label, count in classes["train"].items():
        if count < MIN_TO_TRAIN:
            lacking = f"{count} training utterances of {label}, at least {MIN_TO_TRAIN} are needed"
            raise ValueError(f"{where}: {lacking}: add utterances by more speakers, or leave the class out")
    for part in ("dev", "test"):
        if absent := [label for label, count in classes[part].items() if not count]:
            warnings.warn(f"{where}: no {' and no '.join(absent)} in {part}: scores there leave it out", stacklevel=3)
