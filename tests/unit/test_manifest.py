"""The door of a user's own corpus: real mistakes in tables of EMO-DB's recordings, one rule a test."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile

from ser_kd_utils.data.audio import cache_audio, refuse_shared_samples
from ser_kd_utils.data.corpora import Corpus, load_corpus, split

PARTS = ("train", "dev", "test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_KD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def faulty(shared_data) -> Path:
    return shared_data / "faulty" / "manifests"


def manifest(folder: Path, rows: dict[str, list[str]], name: str = "mine.csv") -> Path:
    """A table of rows; each named file that is not there yet is a tenth of a second of noise of its own."""
    for path in {path for path in rows["path"] if not (folder / path).exists()}:
        noise = np.random.default_rng([*path.encode()]).integers(-9000, 9000, 1600, dtype=np.int16)
        wavfile.write(folder / path, 16_000, noise)
    pd.DataFrame(rows).to_csv(folder / name, index=False)
    return folder / name


def table(speakers: list[str], labels: tuple[str, ...] = ("angry", "calm"), each: int = 2) -> dict[str, list[str]]:
    """`each` utterances of every speaker and label."""
    rows = [(speaker, label) for speaker in speakers for label in labels for _ in range(each)]
    return {
        "utterance": [f"u{i}" for i in range(len(rows))],
        "path": [f"{i}.wav" for i in range(len(rows))],
        "label": [label for _, label in rows],
        "speaker": [speaker for speaker, _ in rows],
    }


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_corpus("manifest", path)
    return str(caught.value)


# ---- names


@pytest.mark.parametrize("name", ["speaker_space", "label_space"])
def test_blanks_around_a_name_are_no_part_of_it(faulty, shared_data, name):
    found, wanted = load_corpus("manifest", faulty / f"{name}.csv"), load_corpus("emodb", shared_data / "emodb")
    pd.testing.assert_frame_equal(found.manifest.drop(columns=["path", "gender"]),
                                  wanted.manifest.drop(columns=["path", "gender"]))  # fmt: skip
    assert found.labels == wanted.labels


def test_unicode_forms_of_a_name_are_the_same_name(tmp_path):
    """An accent may be a letter's own or a sign after it; both look the same."""
    rows = table(["José", "b", "c"])
    rows["speaker"] = [unicodedata.normalize("NFD" if i % 2 else "NFC", name) for i, name in enumerate(rows["speaker"])]
    assert set(load_corpus("manifest", manifest(tmp_path, rows)).manifest.speaker) == {"José", "b", "c"}


@pytest.mark.parametrize("pair", [("03", "3"), ("3", "3.0"), ("Anna", "anna"), ("Straße", "STRASSE"), ("a b", "a  b")])
@pytest.mark.parametrize("column", ["utterance", "label", "speaker"])
def test_names_that_look_the_same_are_refused_with_the_pair(tmp_path, column, pair):
    rows = table(["w", "x", "y", "z"])
    rows[column] = [*pair * 4, *rows[column][8:]] if column != "utterance" else [*pair, *rows[column][2:]]
    said = refused(manifest(tmp_path, rows))
    one, other = sorted(pair)
    assert f"{column} {one!r} and {other!r} look like the same" in said


def test_long_numbers_are_compared_exactly(tmp_path):
    rows = table(["x", "y", "z"])
    rows["utterance"][:2] = ["12345678901234567890", "12345678901234567891"]
    assert len(load_corpus("manifest", manifest(tmp_path, rows)).manifest) == 12


@pytest.mark.parametrize("name", ["nan", "None", "NULL", "n/a"])
@pytest.mark.parametrize("column", ["label", "speaker"])
def test_what_other_programs_write_for_nothing_is_nothing(tmp_path, column, name):
    rows = table(["x", "y", "z"])
    rows[column][4:8] = [name] * 4
    assert f"4 rows with empty {column} (found {name!r}): fill it in" in refused(manifest(tmp_path, rows))


def test_a_class_called_nan_is_refused(faulty):
    assert "rows with empty label (found 'nan'): fill it in" in refused(faulty / "label_nan_text.csv")


# ---- counts


def test_a_class_of_one_speaker_is_refused_where_that_one_is_tested(tmp_path):
    rows = table(["x", "y", "z"])
    rows["label"][:2] = ["sad", "sad"]
    corpus = load_corpus("manifest", manifest(tmp_path, rows))
    with pytest.raises(ValueError, match="0 training utterances of sad, at least 2 are needed: add utterances"):
        [split(corpus, None, fold, 0) for fold in (1, 2, 3)]


def test_a_class_that_cannot_be_trained_on_is_refused_with_its_fold(faulty):
    corpus = load_corpus("manifest", faulty / "class_one_in_train.csv")
    with pytest.raises(ValueError, match="manifest, official, fold 1: 1 training utterances of sad, at least 2 are"):
        split(corpus, "official", 1, 0)


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_class_missing_from_dev_or_test_is_said_and_counted(faulty, part):
    corpus = load_corpus("manifest", faulty / f"class_missing_in_{part}.csv")
    with pytest.warns(UserWarning, match=f"manifest, official, fold 1: no sad in {part}: scores there"):
        got = split(corpus, "official", 1, 0)
    classes = got.card()["classes"]
    assert classes[part]["sad"] == 0 and classes["train"] == {"angry": 72, "happy": 36, "neutral": 47, "sad": 34}
    assert {name: sum(counts.values()) for name, counts in classes.items()} == got.card()["sizes"]


def test_groups_of_speakers_balance_the_classes(tmp_path):
    """Ten speakers of equal size in five groups; each speaks one of two labels only: every group gets both."""
    rows = table([f"s{i}" for i in range(10)], ("angry", "calm"), each=2)
    rows["label"] = [("angry" if int(name[1:]) < 5 else "calm") for name in rows["speaker"]]
    corpus = load_corpus("manifest", manifest(tmp_path, rows))
    for fold in range(1, 6):  # without a warning
        assert split(corpus, "speaker-groups", fold, 0).classes["test"] == {"angry": 4, "calm": 4}


# ---- sound


@pytest.mark.parametrize("seconds", ["inf", "-3", "0", "long", "5"])
def test_seconds_are_those_of_the_sound(tmp_path, seconds):
    rows = table(["x", "y", "z"])
    path = manifest(tmp_path, rows | {"seconds": ["0.1", seconds, *[""] * 10]})
    assert "seconds of 1 utterances are not those of the sound (u1): leave them empty" in refused(path)


def test_negative_seconds_are_refused(faulty):
    assert "seconds of 339 utterances are not those of the sound (03a01Wa, 03a02Wb" in refused(
        faulty / "seconds_neg.csv"
    )


def test_the_same_samples_in_two_parts_are_refused_with_the_pair(faulty):
    corpus = load_corpus("manifest", faulty / "same_audio_train_and_test.csv")
    with pytest.raises(ValueError, match=r"official, fold 1: \w+ in train and \w+ in test are the same samples: leave"):
        refuse_shared_samples(split(corpus, "official", 1, 0), cache_audio(corpus))


@pytest.mark.filterwarnings("ignore:.*scores there leave it out")
def test_of_a_published_corpus_the_pair_is_only_named(faulty):
    """Its users cannot mend it."""
    corpus = load_corpus("manifest", faulty / "same_audio_train_and_test.csv")
    got = replace(split(corpus, "official", 1, 0), corpus="emodb")
    with pytest.warns(
        UserWarning, match=r"emodb, official, fold 1: \w+ in train and \w+ in test are the same samples$"
    ):
        refuse_shared_samples(got, cache_audio(corpus))


def test_a_gsm_file_among_others_is_read(faulty):
    corpus = load_corpus("manifest", faulty / "with_gsm.csv")
    assert cache_audio(corpus).seconds("03a01Wa") == pytest.approx(1.88, abs=0.01)


# ---- whatever is written


def spelt(name: str, rng: np.random.Generator) -> str:
    """The name as a careless writer may have it."""
    ways = (
        str,
        str.upper,
        "{} ".format,
        "\u00a0{}".format,
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: f"0{text}" if text.isdigit() else text,
    )
    return ways[rng.choice(len(ways), p=[0.9, *[0.02] * 5])](name)


def open_door(path: Path, protocol: str, fold: int) -> tuple[Corpus, object] | None:
    try:
        corpus = load_corpus("manifest", path)
        got = split(corpus, protocol, fold, 0)
        refuse_shared_samples(got, cache_audio(corpus))
    except ValueError:
        return None
    return corpus, got


@pytest.mark.filterwarnings("ignore:.*scores there leave it out")
def test_no_table_leads_to_a_split_that_shares_speakers_or_samples(tmp_path):
    """Random spellings, and files under two names: refused, or speakers and samples stay in one part."""
    rng, opened = np.random.default_rng(0), 0
    plain = table(["é1", "2", "ana", "ßo", "3", "lü"], each=3)
    for trial in range(60):
        rows = {column: list(values) for column, values in plain.items()}
        for column in ("utterance", "label", "speaker"):
            if rng.random() < 0.3:
                rows[column] = [spelt(name, rng) for name in rows[column]]
        for _ in range(rng.choice([0, 0, 1, 3])):
            rows["path"][rng.integers(36)] = rows["path"][rng.integers(36)]
        door = open_door(
            manifest(tmp_path, rows, f"{trial}.csv"), rng.choice(["speaker-groups", "random"]), trial % 5 + 1
        )
        if door is None:
            continue
        corpus, got = door
        opened += 1
        row = corpus.manifest.set_index("utterance")
        assert set(row.speaker) == set(plain["speaker"]) and set(row.label) == {"angry", "calm"}
        for one, other in combinations((got.train, got.dev, got.test), 2):
            samples = [{Path(row.path[name]).read_bytes() for name in part} for part in (one, other)]
            assert samples[0].isdisjoint(samples[1])
            if got.protocol == "speaker-groups":
                assert set(row.speaker[list(one)]).isdisjoint(row.speaker[list(other)])
    assert 15 < opened < 50
