"""Readers at full size: published ids and labels of IEMOCAP and MELD on stand-in files; EMO-DB and RAVDESS."""

from __future__ import annotations

import json
import os
import shutil
import wave
from collections import Counter
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from ser_kd_utils.data.corpora import Corpus, load_corpus, split

FULL_NAMES = {"ang": "angry", "exc": "excited", "hap": "happy", "neu": "neutral", "sad": "sad"}
MELD_CLIPS = {
    "train": "train/train_splits",
    "dev": "dev/dev_splits_complete",
    "test": "test/output_repeated_splits_test",
}
pytestmark = pytest.mark.filterwarnings("error:.*differs from the published counts")


def tiny_wav(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(64))
    return path


def evaluation_block(utterance: str, label: str, start: float, end: float) -> str:
    """A block of an EmoEvaluation file as the release has it, evaluators' lines included."""
    return (
        f"[{start:.4f} - {end:.4f}]\t{utterance}\t{label}\t[2.5000, 2.5000, 2.5000]\n"
        "C-E2:\tNeutral; Anger;\t()\nC-E3:\tNeutral;\t()\nC-E4:\tFrustration;\t()\nC-F1:\tNeutral;\t(curious)\n"
        "A-E3:\tval 3; act 2; dom  2;\t()\nA-E4:\tval 2; act 3; dom  3;\t(mildly aggravated, staying polite)\n"
        "A-F1:\tval 3; act 2; dom  1;\t()\n\n"
    )


@pytest.fixture(scope="session")
def iemocap_ids(shared_data: Path) -> pd.DataFrame:
    return pd.read_csv(shared_data / "metadata" / "iemocap_4class_ids.csv")


@pytest.fixture(scope="session")
def iemocap_root(iemocap_ids: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IEMOCAP's tree: all 5,531 utterances among others, each wav file a link to one of 2 ms."""
    root = tmp_path_factory.mktemp("iemocap")
    wav = tiny_wav(root / "tiny.wav")
    dialogs = iemocap_ids.groupby(iemocap_ids.utterance.str.rsplit("_", n=1).str[0])
    assert len(dialogs) == 151
    for number, (dialog, turns) in enumerate(dialogs):
        session = root / f"Session{dialog[4]}"
        folder = session / "sentences" / "wav" / dialog
        tables = session / "dialog" / "EmoEvaluation"
        folder.mkdir(parents=True)
        (tables / "Categorical").mkdir(parents=True, exist_ok=True)
        text, clock = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n", 5.0
        for turn in turns.itertuples():
            os.link(wav, folder / f"{turn.utterance}.wav")
            text += evaluation_block(turn.utterance, turn.label_iemocap, clock, clock + turn.seconds)
            clock += turn.seconds + 1
        for index, label in enumerate(("fru", "xxx", "sur", "fea", "dis", "oth")):  # dropped, so without a wav file
            text += evaluation_block(f"{dialog}_{'FM'[index % 2]}9{index:02d}", label, clock, clock + 1)
        (tables / f"{dialog}.txt").write_text(text, newline="\r\n" if number % 2 else "\n")
        (tables / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07\x00Mac OS X\xff")
        (tables / "Categorical" / f"{dialog}_e2_cat.txt").write_text(f"{turns.utterance.iloc[0]} :Anger; ()\n")
    return root


@pytest.fixture(scope="session")
def iemocap(iemocap_root: Path) -> Corpus:
    return load_corpus("iemocap", iemocap_root)


def test_iemocap_has_the_published_utterances(iemocap, iemocap_ids, shared_data):
    expected = json.loads((shared_data / "metadata" / "expected_counts.json").read_text())["iemocap_4class"]
    rows = iemocap.manifest
    assert len(rows) == 5531 and iemocap.notes == ()
    assert rows.label.value_counts().to_dict() == {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
    assert rows.session.value_counts().to_dict() == {"1": 1085, "2": 1023, "3": 1151, "4": 1031, "5": 1241}
    assert rows["style"].value_counts().to_dict() == expected["style"]
    assert rows.seconds.sum() / 3600 == pytest.approx(expected["hours"], abs=0.001)
    ids = iemocap_ids.sort_values("utterance", ignore_index=True)
    assert rows.utterance.tolist() == ids.utterance.tolist()
    assert rows.label.tolist() == ids.label4.map(FULL_NAMES).tolist()
    assert rows.speaker.tolist() == ids.speaker.tolist()
    assert [path.split("/iemocap")[1].split("/", 1)[1] for path in rows.path] == ids.wav_path.tolist()


def test_iemocap_speakers_are_who_speaks(iemocap, shared_data):
    expected = json.loads((shared_data / "metadata" / "expected_counts.json").read_text())["iemocap_4class"]
    rows = iemocap.manifest
    assert rows.speaker.value_counts().to_dict() == expected["per_speaker"]
    assert rows.speaker.nunique() == 10
    assert rows.set_index("utterance").speaker["Ses01F_impro01_M011"] == "Ses01M"
    assert (rows.gender == rows.speaker.str[-1]).all()


def check_speaker_independent(corpus: Corpus, protocol: str) -> None:
    speaker = corpus.manifest.set_index("utterance").speaker
    tested = Counter()
    for fold in range(1, corpus.fold_count(protocol) + 1):
        got = split(corpus, protocol, fold, 0)
        train, dev, test = ({*speaker[list(part)]} for part in (got.train, got.dev, got.test))
        assert not (train & dev or train & test or dev & test)
        assert len(got.train) + len(got.dev) + len(got.test) == len({*got.train, *got.dev, *got.test}) == len(speaker)
        tested.update(got.test)
    assert set(tested) == set(speaker.index) and set(tested.values()) == {1}


def test_iemocap_folds(iemocap):
    check_speaker_independent(iemocap, "leave-one-session-out")
    sizes = [len(split(iemocap, None, fold, 0).test) for fold in range(1, 6)]
    assert sizes == [1085, 1023, 1151, 1031, 1241]
    random = [split(iemocap, "random", fold, 0) for fold in range(1, 6)]
    assert Counter(name for got in random for name in got.test) == Counter(iemocap.manifest.utterance)
    assert [len(got.test) for got in random] == [1107, 1106, 1106, 1106, 1106]


def test_a_session_that_is_missing_is_noted(iemocap_root, tmp_path):
    for number in (1, 2, 3, 5):
        (tmp_path / f"Session{number}").symlink_to(iemocap_root / f"Session{number}")
    with pytest.warns(
        UserWarning, match="iemocap differs from the published counts: angry: 776 utterances, published 1103"
    ):
        corpus = load_corpus("iemocap", tmp_path)
    assert len(corpus.notes) == 4 and corpus.fold_count() == 4


def test_improvised_part_has_the_published_utterances(iemocap_root, iemocap_ids):
    corpus = load_corpus("iemocap-improvised", iemocap_root)
    rows = corpus.manifest
    assert rows.label.value_counts().to_dict() == {"angry": 289, "excited": 663, "neutral": 1099, "sad": 608}
    assert corpus.notes == () and set(rows["style"]) == {"impro"}
    ids = iemocap_ids[(iemocap_ids["style"] == "impro") & (iemocap_ids.label_iemocap != "hap")]
    ids = ids.sort_values("utterance", ignore_index=True)
    assert rows.utterance.tolist() == ids.utterance.tolist()
    assert rows.label.tolist() == ids.label_iemocap.map(FULL_NAMES).tolist()
    assert split(corpus, "random", 1, 0).optimistic and not split(corpus, None, 1, 0).optimistic
    assert corpus.fold_count() == 5
    check_speaker_independent(corpus, "leave-one-session-out")


def test_excitement_that_turns_happiness_is_noted_in_the_improvised_part_alone(iemocap_root, tmp_path):
    for number in (2, 3, 4, 5):
        (tmp_path / f"Session{number}").symlink_to(iemocap_root / f"Session{number}")
    shutil.copytree(iemocap_root / "Session1" / "dialog", tmp_path / "Session1" / "dialog")
    (tmp_path / "Session1" / "sentences").symlink_to(iemocap_root / "Session1" / "sentences")
    tables = sorted((tmp_path / "Session1" / "dialog" / "EmoEvaluation").glob("Ses*_impro*.txt"))
    table = next(table for table in tables if b"\texc\t" in table.read_bytes())
    table.write_bytes(table.read_bytes().replace(b"\texc\t", b"\thap\t", 1))
    with pytest.warns(UserWarning, match="iemocap-improvised differs from the published counts"):
        corpus = load_corpus("iemocap-improvised", tmp_path)
    assert corpus.notes == ("excited: 662 utterances, published 663",)
    assert load_corpus("iemocap", tmp_path).notes == ()


@pytest.fixture(scope="session")
def meld_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MELD's tables as published, with an empty file for every clip that EmoBox could read."""
    root = tmp_path_factory.mktemp("meld")
    clips = pd.read_csv(shared_data / "metadata" / "meld_clips_emobox.csv")
    for part, folder in MELD_CLIPS.items():
        (root / folder).mkdir(parents=True)
        (root / f"{part}_sent_emo.csv").symlink_to(shared_data / "metadata" / "meld" / f"{part}_sent_emo.csv")
        for clip in clips[clips.split == part].itertuples():
            (root / folder / f"dia{clip.dialogue}_utt{clip.utterance}.mp4").touch()
    (root / MELD_CLIPS["test"] / "final_videos_testdia0_utt0.mp4").touch()
    return root


@pytest.mark.parametrize(("name", "classes"), [("meld", 7), ("meld-4", 4)])
def test_meld_has_the_published_rows(meld_root, shared_data, name, classes):
    published = json.loads((shared_data / "metadata" / "expected_counts.json").read_text())["meld"]
    corpus = load_corpus(name, meld_root)
    left_out = corpus.excluded.utterance.tolist()
    assert left_out == ["dev_dia110_utt7", "train_dia125_utt3"]  # both of the four classes
    assert corpus.notes == () and len(corpus.labels) == classes
    counts = pd.crosstab(corpus.manifest.split, corpus.manifest.label)
    for part in ("train", "dev", "test"):
        expected = {label: published[part][label] for label in corpus.labels}
        gone = sum(name.startswith(part) for name in left_out)
        assert counts.loc[part].sum() + gone == sum(expected.values())
        assert sum(abs(counts.at[part, label] - n) for label, n in expected.items()) == gone
    got = split(corpus, None, 1, 0)
    rows = {7: (9988, 1108, 2610), 4: (8244, 896, 2211)}[classes]
    assert (len(got.train), len(got.dev), len(got.test)) == rows
    assert got.card()["speaker_independent"] is False


def test_meld_speakers_are_as_published(meld_root):
    corpus = load_corpus("meld", meld_root)
    assert corpus.manifest.groupby("split").speaker.nunique().to_dict() == {"train": 260, "dev": 47, "test": 100}
    assert "Richard’s Date" in set(corpus.manifest.speaker)


def test_ravdess_as_released(tmp_path):
    """All 1,440 speech files of the release: its one exact duplicate is left out, and the counts still agree."""
    for actor in range(1, 25):
        folder = tmp_path / f"Actor_{actor:02d}"
        folder.mkdir()
        for emotion, intensity, statement, repetition in product(range(1, 9), (1, 2), (1, 2), (1, 2)):
            if (emotion, intensity) != (1, 2):  # neutral has one intensity
                name = f"03-01-{emotion:02d}-{intensity:02d}-{statement:02d}-{repetition:02d}-{actor:02d}"
                (folder / f"{name}.wav").touch()
    corpus = load_corpus("ravdess", tmp_path)
    assert len(list(tmp_path.glob("*/*"))) == 1440 and len(corpus.manifest) == 671
    assert corpus.excluded.utterance.tolist() == ["03-01-03-01-02-02-07"] and corpus.notes == ()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("emodb", {"angry": 127, "happy": 71, "neutral": 79, "sad": 62}),
        ("ravdess", {"angry": 192, "happy": 191, "neutral": 96, "sad": 192}),
    ],
)
def test_recordings_agree_with_their_tables(name, counts, shared_data):
    corpus = load_corpus(name, shared_data / name)
    rows = corpus.manifest
    table = pd.read_csv(shared_data / f"{name}.csv", dtype={"fold": int})
    table.index = pd.Index([Path(path).stem for path in table.path])
    table = table.loc[rows.utterance]
    assert len(table) == len(rows) == sum(counts.values()) and corpus.notes == ()
    assert rows.label.value_counts().to_dict() == counts
    assert rows.label.tolist() == table.label.tolist()
    assert rows.gender.tolist() == table.gender.tolist()
    assert rows.speaker.tolist() == table.speaker.str[-2:].tolist()
    assert rows.seconds.to_numpy() == pytest.approx(table.seconds.to_numpy(), abs=0.001)
    check_speaker_independent(corpus, "speaker-groups")
    assert corpus.fold_count() == table.fold.max()
    for fold in range(1, corpus.fold_count() + 1):
        assert set(split(corpus, None, fold, 0).test) == set(table.index[table.fold == fold])
