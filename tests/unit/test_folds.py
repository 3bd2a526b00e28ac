"""Protocols on generated manifests: parts never touch, speakers never cross, every utterance is tested once."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from ser_kd_utils.data.corpora import COLUMNS, Corpus, split

LABELS = ("angry", "happy", "neutral", "sad")
EMODB = {"03": "M", "08": "F", "09": "F", "10": "M", "11": "M", "12": "M", "13": "F", "14": "F", "15": "M", "16": "F"}


def corpus(name: str, protocols: tuple[str, ...], sizes: dict[str, int], **columns) -> Corpus:
    """`sizes`: utterances of each speaker; labels in turn; `columns`: a function of the speaker for each."""
    speakers = [speaker for speaker, size in sizes.items() for _ in range(size)]
    rows = pd.DataFrame({"utterance": [f"{s}_{i:04d}" for i, s in enumerate(speakers)], "speaker": speakers})
    rows["label"] = [LABELS[i % 4] for i in range(len(rows))]
    for column, of_speaker in columns.items():
        rows[column] = [of_speaker(speaker) for speaker in speakers]
    rows = rows.reindex(columns=list(COLUMNS), fill_value="").sort_values("utterance", ignore_index=True)
    return Corpus(name, rows, LABELS, protocols, "", "", "")


@pytest.fixture
def iemocap() -> Corpus:
    sizes = {f"Ses0{session}{sex}": 20 + session for session in range(1, 6) for sex in "FM"}
    protocols = ("leave-one-session-out", "session-dev-speakers", "random")
    return corpus("iemocap", protocols, sizes, session=lambda s: s[4], gender=lambda s: s[5])


@pytest.fixture
def emodb() -> Corpus:
    return corpus("emodb", ("speaker-groups", "random"), dict.fromkeys(EMODB, 12), gender=EMODB.get)


@pytest.fixture
def own() -> Corpus:
    sizes = {"anna": 40, "bert": 10, "cleo": 10, "dora": 10, "emil": 10, "finn": 40, "gina": 25}
    parts = {"anna": "train", "bert": "dev", "cleo": "test"}
    protocols = ("official", "speaker-groups", "random")
    return corpus("manifest", protocols, sizes, split=lambda s: parts.get(s, "train"))


def check_folds(corpus: Corpus, protocol: str, seed: int = 0) -> None:
    """Parts are disjoint and complete in every fold, and every utterance is tested once over the folds."""
    everything = set(corpus.manifest.utterance)
    tested = Counter()
    for fold in range(1, corpus.fold_count(protocol) + 1):
        got = split(corpus, protocol, fold, seed)
        parts = [set(got.train), set(got.dev), set(got.test)]
        assert sum(map(len, parts)) == len(everything) == len(got.train) + len(got.dev) + len(got.test)
        assert set.union(*parts) == everything
        assert all(parts)
        tested.update(got.test)
    assert set(tested) == everything and set(tested.values()) == {1}


def speakers_of(corpus: Corpus, utterances: tuple[str, ...]) -> set[str]:
    return set(corpus.manifest.set_index("utterance").speaker[list(utterances)])


def test_leave_one_session_out(iemocap):
    check_folds(iemocap, "leave-one-session-out")
    for fold in range(1, 6):
        got = split(iemocap, None, fold, 0)
        following = fold % 5 + 1
        assert speakers_of(iemocap, got.test) == {f"Ses0{fold}F", f"Ses0{fold}M"}
        assert speakers_of(iemocap, got.dev) == {f"Ses0{following}F", f"Ses0{following}M"}
        assert len(speakers_of(iemocap, got.train)) == 6
        assert not got.optimistic
    assert split(iemocap, None, 2, 0).train == split(iemocap, None, 2, 7).train  # no seed in it


def test_dev_speakers_from_the_training_sessions(iemocap):
    check_folds(iemocap, "session-dev-speakers")
    for fold in range(1, 6):
        got = split(iemocap, "session-dev-speakers", fold, 0)
        first, second = fold % 5 + 1, (fold + 1) % 5 + 1
        assert got.speakers["test"] == (f"Ses0{fold}F", f"Ses0{fold}M")
        assert set(got.speakers["dev"]) == {f"Ses0{first}F", f"Ses0{second}M"}
        assert len(got.speakers["train"]) == 6 and not got.optimistic
        assert {speaker[:5] for speaker in got.speakers["train"]} == {f"Ses0{n}" for n in range(1, 6) if n != fold}
        parts = [speakers_of(iemocap, getattr(got, part)) for part in ("train", "dev", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    assert split(iemocap, "session-dev-speakers", 2, 0) != split(iemocap, None, 2, 0)
    card = json.loads(json.dumps(split(iemocap, "session-dev-speakers", 5, 0).card()))
    assert card["speaker_independent"] is True and card["speakers"]["dev"] == ["Ses01F", "Ses02M"]
    assert "dev: the woman of the next session and the man of the one after" in card["rule"]


def test_a_dev_speaker_who_speaks_in_the_tested_session_too_is_refused(iemocap):
    iemocap.manifest.loc[iemocap.manifest.speaker == "Ses02F", "speaker"] = "Ses01F"
    with pytest.raises(ValueError, match="session-dev-speakers, fold 1: speaker Ses01F is in dev and in test"):
        split(iemocap, "session-dev-speakers", 1, 0)


def test_emodb_groups_are_one_woman_and_one_man(emodb):
    check_folds(emodb, "speaker-groups")
    tests = [split(emodb, None, fold, 0).speakers["test"] for fold in range(1, 6)]
    assert tests == [("03", "08"), ("09", "10"), ("11", "13"), ("12", "14"), ("15", "16")]
    assert split(emodb, None, 5, 0).speakers["dev"] == ("03", "08")


def test_ravdess_groups_are_three_women_and_three_men():
    actors = [f"{number:02d}" for number in range(1, 25)]
    ravdess = corpus("ravdess", ("speaker-groups",), dict.fromkeys(actors, 8), gender=lambda s: "MF"[int(s) % 2 == 0])
    check_folds(ravdess, "speaker-groups")
    for fold in range(1, 5):
        assert split(ravdess, None, fold, 0).speakers["test"] == tuple(actors[6 * (fold - 1) : 6 * fold])


def test_own_groups_are_balanced_and_do_not_depend_on_the_order_of_rows(own):
    check_folds(own, "speaker-groups")
    tests = [split(own, "speaker-groups", fold, 0) for fold in range(1, 6)]
    # largest first into the emptiest: anna 40 | finn 40 | gina 25 | bert 10 + dora 10 | cleo 10 + emil 10
    assert sorted(len(got.test) for got in tests) == [20, 20, 25, 40, 40]
    shuffled = Corpus(**{**vars(own), "manifest": own.manifest.sample(frac=1, random_state=1, ignore_index=True)})
    again = [split(shuffled, "speaker-groups", fold, 0) for fold in range(1, 6)]
    assert [got.speakers for got in again] == [got.speakers for got in tests]


@pytest.mark.parametrize("speakers", [3, 4, 5, 6])
def test_own_groups_are_as_many_as_speakers_up_to_five(speakers):
    small = corpus("manifest", ("speaker-groups",), {f"s{i}": 8 for i in range(speakers)})
    assert small.fold_count() == min(5, speakers)
    check_folds(small, "speaker-groups")


def test_official_is_one_fold_from_the_split_column(own):
    got = split(own, None, 1, 0)
    assert own.fold_count() == 1 and not got.optimistic
    assert (got.speakers["dev"], got.speakers["test"]) == (("bert",), ("cleo",))
    assert got.card()["speaker_independent"] is True
    meld = corpus("meld", ("official",), {"Joey": 16, "Ross": 16})
    meld.manifest["split"] = (["train"] * 8 + ["dev"] * 4 + ["test"] * 4) * 2
    assert split(meld, None, 1, 0).card()["speaker_independent"] is False


def test_random_is_stratified_optimistic_and_drawn_by_the_seed(iemocap):
    check_folds(iemocap, "random", seed=3)
    got = split(iemocap, "random", 2, 3)
    assert got.optimistic and got.card()["speaker_independent"] is False
    total = len(iemocap.manifest)
    assert len(got.test) == pytest.approx(total / 5, abs=1)
    assert len(got.dev) == pytest.approx(0.8 * total / 8, abs=1)
    label = iemocap.manifest.set_index("utterance").label
    shares = [label[list(part)].value_counts(normalize=True)[list(LABELS)] for part in (got.train, got.dev, got.test)]
    assert np.ptp(np.array(shares), axis=0).max() < 0.05
    assert got == split(iemocap, "random", 2, 3)
    assert got.test != split(iemocap, "random", 2, 4).test


def test_card_is_plain_and_ready_for_json(iemocap):
    card = json.loads(json.dumps(split(iemocap, None, 5, 1).card()))
    assert card["protocol"] == "leave-one-session-out" and card["fold"] == 5 and card["seed"] == 1
    assert card["speaker_independent"] is True and card["optimistic"] is False
    assert card["speakers"]["test"] == ["Ses05F", "Ses05M"] and card["speakers"]["dev"] == ["Ses01F", "Ses01M"]
    assert card["sizes"] == {"train": 44 + 46 + 48, "dev": 42, "test": 50}
    assert "dev: the next session" in card["rule"]


@pytest.mark.parametrize("fold", [0, 6, -1])
def test_a_fold_that_does_not_exist(iemocap, own, fold):
    with pytest.raises(ValueError, match=f"iemocap, leave-one-session-out: no fold {fold}; folds: 1 to 5$") as caught:
        split(iemocap, None, fold, 0)
    assert caught.value.__context__ is None
    with pytest.raises(ValueError, match=f"manifest, official: no fold {fold}; folds: 1$"):
        split(own, "official", fold, 0)


def test_a_protocol_the_corpus_does_not_have(iemocap):
    with pytest.raises(
        ValueError, match="no protocol 'official'; it has leave-one-session-out, session-dev-speakers, random"
    ) as caught:
        split(iemocap, "official", 1, 0)
    assert caught.value.__context__ is None
    with pytest.raises(ValueError, match="no protocol 'official'"):
        iemocap.fold_count("official")


def test_a_speaker_in_two_sessions_is_refused(iemocap):
    iemocap.manifest.loc[iemocap.manifest.speaker == "Ses02M", "speaker"] = "Ses01M"
    with pytest.raises(ValueError, match="fold 1: speaker Ses01M is in dev and in test"):
        split(iemocap, None, 1, 0)


def test_too_few_sessions_or_speakers(iemocap, emodb):
    two = iemocap.without(iemocap.manifest[iemocap.manifest.session > "2"].assign(reason="test"))
    for protocol in ("leave-one-session-out", "session-dev-speakers"):
        with pytest.raises(ValueError, match=f"{protocol}: needs at least 3 sessions, has 2"):
            split(two, protocol, 1, 0)
    women = emodb.without(emodb.manifest[emodb.manifest.gender == "M"].assign(reason="test"))
    with pytest.raises(ValueError, match="needs at least 3 speaker groups, has 1"):
        split(women, None, 1, 0)


def test_of_ten_of_a_class_every_part_of_a_random_fold_gets_some(own):
    ten = own.without(own.manifest[own.manifest.label == "sad"].iloc[10:].assign(reason="test"))
    label = ten.manifest.set_index("utterance").label
    for fold in range(1, 6):
        got = split(ten, "random", fold, 0)
        assert all("sad" in set(label[list(part)]) for part in (got.train, got.dev, got.test))


def test_an_empty_part_is_refused(own):
    no_dev = own.without(own.manifest[own.manifest.split == "dev"].assign(reason="silent"))
    with pytest.raises(ValueError, match="manifest, official, fold 1: nothing to put in dev"):
        split(no_dev, None, 1, 0)
