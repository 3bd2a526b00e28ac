"""Readers on small stand-ins: what is kept, what is dropped and why, and one clear error for every bad input."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pandas as pd
import pytest

from ser_kd_utils import cli
from ser_kd_utils.data.corpora import COLUMNS, CORPORA, Corpus, load_corpus
from ser_kd_utils.files import cache_root

ROOT = Path(__file__).parents[2]
NAMES = CORPORA[1:]
SAME_TREE = {name: name.split("-")[0] for name in NAMES if name.startswith(("iemocap", "meld"))}  # by corpus
MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
pytestmark = pytest.mark.filterwarnings("ignore:.*differs from the published counts:UserWarning")

EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
C-F1:\tNeutral;\t(curious)
A-E3:\tval 3; act 2; dom  2;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M000\texc\t[4.5000, 4.0000, 3.0000]
C-E2:\tExcited; Happiness;\t()

[12.0000 - 13.0000]\tSes01F_impro01_F001\tfru\t[2.0000, 2.5000, 2.5000]
C-E2:\tAnger; Frustration;\t()

[14.0000 - 15.5000]\tSes01F_impro01_M001\txxx\t[2.0000, 2.5000, 2.5000]
"""


def write(path: Path, text: str = "", newline: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline=newline, encoding="utf-8")
    return path


def make_iemocap(root: Path, newline: str = "\n") -> Path:
    script = EVALUATION.replace("Ses01F_impro01", "Ses02M_script01_1b").replace("neu", "ang").replace("exc", "hap")
    for session, dialog, text in ((1, "Ses01F_impro01", EVALUATION), (2, "Ses02M_script01_1b", script)):
        tables = root / f"Session{session}" / "dialog" / "EmoEvaluation"
        write(tables / f"{dialog}.txt", text, newline)
        for trap in (f"._{dialog}.txt", f"Categorical/{dialog}_e2_cat.txt"):
            write(tables / trap, "[1.0 - 2.0]\tSes01F_impro01_F900\tneu\t[2.5, 2.5, 2.5]\n")
        for turn in ("F000", "M000"):
            write(root / f"Session{session}" / "sentences" / "wav" / dialog / f"{dialog}_{turn}.wav")
    return root


def make_meld(root: Path, rows: int = 40, layout: str = "flat") -> Path:
    home = root / "MELD.Raw" if layout == "release" else root
    for split, folder in MELD_FOLDERS.items():
        emotions = ("neutral", "joy", "sadness", "anger", "surprise", "fear", "disgust")
        lines = [
            f'{i},"It’s, well",Chandler,{emotions[i % 7]},x,{i // 10},{i % 10},8,21,"00:16:16,059","00:16:21,731"'
            for i in range(rows)
        ]
        table = home / split if layout == "nested" else home
        clips = {"nested": home / split / folder, "plain": home / split}.get(layout, home / folder)
        write(table / f"{split}_sent_emo.csv", "\n".join([MELD_HEADER, *lines]))
        for i in range(rows):
            write(clips / f"dia{i // 10}_utt{i % 10}.mp4")
        write(clips / "final_videos_testdia0_utt0.mp4")
        write(clips / "._dia0_utt1.mp4")
    return root


def make_emodb(root: Path, folder: str = "wav") -> Path:
    kept = ("03a01Wa.wav", "08a01Fd.wav", "09b02Na.wav", "16b10Td.flac")
    dropped = ("03a01Lb.wav", "03a01Ea.wav", "03a02Ac.wav", "._03a01Wa.wav", "17a01Wa.wav")  # 17: nobody
    for name in (*kept, *dropped):
        write(root / folder / name)
    return root


def make_ravdess(root: Path, folders: bool = True) -> Path:
    kept = ("03-01-01-01-01-01-01", "03-01-03-01-02-01-07", "03-01-04-02-01-01-02", "03-01-05-01-01-01-24")
    dropped = ("03-01-02-01-01-01-01", "03-01-06-01-01-01-01", "03-02-03-01-01-01-01", "01-01-03-01-01-01-01")
    for name in (*kept, *dropped, "03-01-03-01-02-02-07"):
        write(root / (f"Actor_{name[-2:]}" if folders else "") / f"{name}.wav")
    return root


def make_manifest(root: Path, name: str = "mine.csv", **changes: list[str]) -> Path:
    """Six utterances; all files are the same quarter of a second, but b.wav, which is empty."""
    columns = {"utterance": ["u2", "u1", "u3", "u4", "u5", "u6"], "path": ["a.wav", "sub/b.wav", *["a.wav"] * 4]}
    columns |= {"label": ["calm", "angry"] * 3, "speaker": ["x", "y", "z"] * 2} | changes
    write(root / "sub" / "b.wav")
    with wave.open(str(root / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 4_000))
    pd.DataFrame(columns).to_csv(root / name, index=False, sep="\t" if name.endswith("tsv") else ",")
    return root / name


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    makers = [make_iemocap] * 3 + [make_meld] * 2 + [make_emodb, make_ravdess, make_manifest]
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in zip(NAMES, makers, strict=True)}


def only_error(kind: type[Exception], call: Callable[[], object]) -> str:
    """The message of the one error `call` raises: of that kind, one line, with no other error shown before it."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert "\n" not in str(error)
    return str(error)


def check_form(corpus: Corpus) -> None:
    rows = corpus.manifest
    assert tuple(rows.columns) == COLUMNS
    assert rows.utterance.is_monotonic_increasing and rows.utterance.is_unique
    assert list(rows.index) == list(range(len(rows)))
    assert all(Path(path).is_absolute() for path in rows.path)
    assert set(rows.label) <= set(corpus.labels)
    assert not rows.drop(columns="seconds").isna().any().any()
    assert rows.seconds.dtype == "float64"
    assert list(corpus.excluded.columns) == ["utterance", "reason"]


@pytest.mark.parametrize("name", NAMES)
def test_every_corpus_has_the_same_form_and_a_card(name, roots):
    corpus = load_corpus(name, roots[name])
    check_form(corpus)
    card = corpus.card()
    assert list(card.columns) == ["item", "value"]
    said = dict(zip(card.item, card.value, strict=True))
    assert said["name"] == name and said["utterances"] == str(len(corpus.manifest))
    assert all(f"{label} {(corpus.manifest.label == label).sum()}" in said["classes"] for label in corpus.labels)
    assert said["licence"] and said["access"] and said["citation"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_iemocap_reads_summary_lines_only(newline, tmp_path):
    make_iemocap(tmp_path / "IEMOCAP_full_release", newline)
    rows = load_corpus("iemocap", tmp_path).manifest.set_index("utterance")
    assert rows.index.tolist() == [f"{d}_{t}000" for d in ("Ses01F_impro01", "Ses02M_script01_1b") for t in "FM"]
    assert rows.label.tolist() == ["neutral", "happy", "angry", "happy"]
    assert rows.speaker.tolist() == ["Ses01F", "Ses01M", "Ses02F", "Ses02M"]
    assert rows.gender.tolist() == ["F", "M", "F", "M"]
    assert rows.session.tolist() == ["1", "1", "2", "2"]
    assert rows["style"].tolist() == ["impro", "impro", "script", "script"]
    assert rows.seconds.tolist() == pytest.approx([1.9456, 1.3825] * 2)
    assert all(Path(path).is_file() for path in rows.path)


def test_improvised_part_of_iemocap_has_excited_and_no_happy(tmp_path):
    table = make_iemocap(tmp_path) / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    write(table, EVALUATION.replace("fru", "hap"))
    corpus = load_corpus("iemocap-improvised", tmp_path)
    assert corpus.labels == ("angry", "excited", "neutral", "sad")
    assert corpus.manifest.utterance.tolist() == ["Ses01F_impro01_F000", "Ses01F_impro01_M000"]
    assert corpus.manifest.label.tolist() == ["neutral", "excited"]
    assert corpus.protocols == ("leave-one-session-out", "random")  # the optimistic one is never the default


def test_iemocap_with_dev_speakers_is_the_same_speech_under_another_protocol(tmp_path):
    root = make_iemocap(tmp_path)
    other, usual = load_corpus("iemocap-dev-speakers", root), load_corpus("iemocap", root)
    pd.testing.assert_frame_equal(other.manifest, usual.manifest)
    assert (other.labels, other.notes) == (usual.labels, usual.notes)
    assert other.protocols == ("session-dev-speakers", "random")
    assert dict(other.card().values.tolist())["protocols"] == "session-dev-speakers, random"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("iemocap", "2 of 4 sound files are missing (Ses01F_impro01_M000, Ses02M_script01_1b_M000)"),
        ("iemocap-improvised", "1 of 2 sound files are missing (Ses01F_impro01_M000)"),
    ],
)
def test_iemocap_missing_wavs_are_one_error_with_count_and_names(name, words, tmp_path):
    for path in make_iemocap(tmp_path).glob("Session*/sentences/wav/*/*_M000.wav"):
        path.unlink()
    said = only_error(FileNotFoundError, lambda: load_corpus(name, tmp_path))
    assert words in said and said.endswith("dialog/EmoEvaluation/*.txt and sentences/wav/*/*.wav")


def test_demo_is_read_by_the_same_reader_and_marked(tmp_path, monkeypatch):
    root = make_iemocap(tmp_path)
    monkeypatch.setattr("ser_kd_utils.data.corpora.ensure_demo", lambda _: root)
    corpus = load_corpus("demo", root="/nowhere")
    check_form(corpus)
    assert (corpus.name, corpus.synthetic, corpus.notes) == ("demo", True, ())
    assert corpus.protocols[0] == "leave-one-session-out"
    said = dict(corpus.card().values.tolist())
    assert said["speech"] == "synthetic" and "Praat" in said["citation"] and "IEMOCAP" not in said["citation"]


@pytest.mark.parametrize("layout", ["flat", "nested", "release", "plain"])
def test_meld_layouts(layout, tmp_path):
    corpus = load_corpus("meld", make_meld(tmp_path, layout=layout))
    check_form(corpus)
    assert corpus.manifest.groupby("split").size().to_dict() == {"train": 40, "dev": 40, "test": 40}
    first = corpus.manifest.set_index("utterance").loc["dev_dia0_utt0"]
    assert (first.speaker, first.label, first.split, first.gender) == ("Chandler", "neutral", "dev", "")
    assert first.seconds == pytest.approx(5.672)
    assert all(Path(path).is_file() for path in corpus.manifest.path)
    assert corpus.bad_audio == "exclude"


def test_meld_with_four_classes(roots):
    corpus = load_corpus("meld-4", roots["meld"])
    assert corpus.labels == ("neutral", "joy", "sadness", "anger")
    assert set(corpus.manifest.label) == set(corpus.labels)
    assert len(load_corpus("meld", roots["meld"]).labels) == 7


def test_meld_leaves_out_faults_of_the_release_and_reports_missing_clips(tmp_path):
    make_meld(tmp_path)
    table = tmp_path / "train_sent_emo.csv"
    table.write_text(table.read_text() + '\n9,"x",Joey,joy,neutral,125,3,8,21,"00:00:01,000","00:00:02,500"')
    write(tmp_path / "train_splits" / "dia125_utt3.mp4")
    for clip in ("dia0_utt4", "dia0_utt5"):  # surprise, fear
        (tmp_path / MELD_FOLDERS["test"] / f"{clip}.mp4").unlink()
    seven, four = load_corpus("meld", tmp_path), load_corpus("meld-4", tmp_path)
    reasons = seven.excluded.set_index("utterance").reason.to_dict()
    assert reasons["train_dia125_utt3"] == "broken clip in the release"
    assert reasons["test_dia0_utt4"] == reasons["test_dia0_utt5"] == "no file"
    assert len(seven.manifest) == 118
    assert not set(seven.manifest.utterance) & set(seven.excluded.utterance)
    assert "no file" not in set(four.excluded.reason)  # neither of the two is of the four classes


def test_meld_without_many_clips_is_one_error(tmp_path):
    make_meld(tmp_path)
    for i in range(7):  # 7 of 120 = 5.8 %
        (tmp_path / "train_splits" / f"dia1_utt{i}.mp4").unlink()
    said = only_error(FileNotFoundError, lambda: load_corpus("meld", tmp_path))
    assert "7 of 120" in said and "train_dia1_utt0" in said
    assert "train.tar.gz" in said
    write(tmp_path / "train_splits" / "dia1_utt0.mp4")  # 6 of 120 = 5 % is accepted
    assert len(load_corpus("meld", tmp_path).manifest) == 114


def test_meld_parts_missing_or_spoilt(tmp_path):
    make_meld(tmp_path / "a")
    (tmp_path / "a" / "dev_sent_emo.csv").unlink()
    assert "dev_sent_emo.csv" in only_error(FileNotFoundError, lambda: load_corpus("meld", tmp_path / "a"))
    make_meld(tmp_path / "b")
    (tmp_path / "b" / "dev_splits_complete").rename(tmp_path / "b" / "elsewhere")
    assert "dev_splits_complete" in only_error(FileNotFoundError, lambda: load_corpus("meld", tmp_path / "b"))
    make_meld(tmp_path / "c")
    write(tmp_path / "c" / "test_sent_emo.csv", "Sr No.,Speaker\n1,Joey\n")
    said = only_error(ValueError, lambda: load_corpus("meld", tmp_path / "c"))
    assert "test_sent_emo.csv" in said and "Emotion" in said
    make_meld(tmp_path / "d")
    (tmp_path / "d" / "test_sent_emo.csv").write_bytes(MELD_HEADER.encode() + b"\n1,it\x92s\n")
    assert "test_sent_emo.csv" in only_error(ValueError, lambda: load_corpus("meld", tmp_path / "d"))


@pytest.mark.parametrize("folder", ["", "wav"])
def test_emodb_names(folder, tmp_path):
    rows = load_corpus("emodb", make_emodb(tmp_path, folder)).manifest
    assert rows.utterance.tolist() == ["03a01Wa", "08a01Fd", "09b02Na", "16b10Td"]
    assert rows.label.tolist() == ["angry", "happy", "neutral", "sad"]
    assert rows.speaker.tolist() == ["03", "08", "09", "16"]
    assert rows.gender.tolist() == ["M", "F", "F", "F"]
    for path in (tmp_path / folder).glob("*"):
        path.rename(path.with_name(path.name.lower()))
    lower = load_corpus("emodb", tmp_path).manifest
    assert lower.utterance.tolist() == rows.utterance.str.lower().tolist()
    assert lower.drop(columns=["utterance", "path"]).equals(rows.drop(columns=["utterance", "path"]))


def test_the_same_utterance_twice_is_an_error(tmp_path):
    write(make_emodb(tmp_path) / "wav" / "03a01Wa.flac")
    said = only_error(ValueError, lambda: load_corpus("emodb", tmp_path))
    assert "03a01Wa occurs twice" in said and "03a01Wa.flac" in said and "03a01Wa.wav" in said


@pytest.mark.parametrize("folders", [True, False])
def test_ravdess_names_and_the_duplicate(folders, tmp_path):
    corpus = load_corpus("ravdess", make_ravdess(tmp_path, folders))
    rows = corpus.manifest
    assert rows.utterance.str[6:8].tolist() == ["01", "03", "04", "05"]
    assert rows.label.tolist() == ["neutral", "happy", "sad", "angry"]
    assert rows.gender.tolist() == ["M", "M", "F", "F"]
    assert corpus.excluded.values.tolist() == [["03-01-03-01-02-02-07", "same samples as 03-01-03-01-02-01-07"]]


def test_a_folder_with_the_right_names_but_other_classes_is_one_error(tmp_path):
    write(tmp_path / "03-01-02-01-01-01-01.wav")  # calm
    assert "no utterance labelled angry" in only_error(ValueError, lambda: load_corpus("ravdess", tmp_path))
    (song,) = [path.rename(tmp_path / "03-02-02-01-01-01-01.wav") for path in tmp_path.iterdir()]
    assert f"found {song.name}" in only_error(FileNotFoundError, lambda: load_corpus("ravdess", tmp_path))


def test_manifest_fills_what_is_not_given(tmp_path):
    corpus = load_corpus("manifest", make_manifest(tmp_path))
    rows = corpus.manifest
    check_form(corpus)
    assert rows.utterance.tolist() == ["u1", "u2", "u3", "u4", "u5", "u6"]
    assert rows.path.tolist()[:3] == [str(tmp_path.resolve() / name) for name in ("sub/b.wav", "a.wav", "a.wav")]
    assert corpus.labels == ("angry", "calm")
    assert rows.seconds.isna().tolist() == [True] + [False] * 5 and rows.seconds[1] == 0.25  # b.wav is empty
    assert corpus.protocols == ("speaker-groups", "random")
    assert "1 files of unknown length" in dict(corpus.card().values.tolist())["hours"]


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv"])
def test_manifest_keeps_what_is_given(tmp_path, name):
    given = {"seconds": ["0.251", "7", "", "", "", ""], "split": ["train", "dev", "test"] * 2, "more": [""] * 6}
    corpus = load_corpus("manifest", make_manifest(tmp_path, name, **given))
    rows = corpus.manifest.set_index("utterance")
    assert rows.seconds["u2"] == 0.25 and rows.seconds["u1"] == 7  # the sound's own length, where it can be read
    assert rows.split.to_dict() == {"u1": "dev", "u2": "train", "u3": "test", "u4": "train", "u5": "dev", "u6": "test"}
    assert corpus.protocols == ("official", "speaker-groups", "random")


def test_counts_that_differ_are_noted_and_warned_of_but_no_error(tmp_path):
    with pytest.warns(UserWarning, match="emodb differs from the published counts") as caught:
        corpus = load_corpus("emodb", make_emodb(tmp_path))
    assert len(caught) == 1 and caught[0].filename == __file__
    assert corpus.notes[0] == "angry: 1 utterances, published 127" and len(corpus.notes) == 4
    with pytest.warns(UserWarning):
        notes = load_corpus("iemocap", make_iemocap(tmp_path / "i")).notes
    assert notes[0].endswith(" utterances, published 1103") and len(notes) == 4


def test_without_leaves_out_and_reports(roots):
    corpus = load_corpus("ravdess", roots["ravdess"])
    more = pd.DataFrame({"utterance": ["03-01-05-01-01-01-24"], "reason": ["silent"], "path": ["x"]})
    less = corpus.without(more)
    check_form(less)
    assert set(corpus.manifest.utterance) - set(less.manifest.utterance) == {"03-01-05-01-01-01-24"}
    assert less.excluded.reason.tolist()[-1] == "silent" and len(less.excluded) == len(corpus.excluded) + 1
    assert "1 (silent)" in dict(less.card().values.tolist())["left out"]
    check_form(load_corpus("emodb", roots["emodb"]).without(more))  # nothing excluded before


def test_a_folder_that_is_not_named_in_utf_8_is_one_error(tmp_path):
    """Windows-1252 comes as surrogate escapes, which no table of text can hold."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/J\xfcrgen"))
    make_emodb(folder)
    said = only_error(ValueError, lambda: load_corpus("emodb", folder))
    assert "J\\xfcrgen" in said and "is not named in UTF-8" in said and said.isascii()


def test_ids_in_melds_tables_are_text(tmp_path):
    make_meld(tmp_path)
    table = tmp_path / "train_sent_emo.csv"
    table.write_text(
        table.read_text().replace("Chandler", "None", 1) + '\n9,"x",NA,joy,x,007,1,8,21,"00:00:01,0","00:00:02,5"'
    )
    write(tmp_path / "train_splits" / "dia007_utt1.mp4")
    rows = load_corpus("meld", tmp_path).manifest.set_index("utterance")
    assert rows.speaker["train_dia0_utt0"] == "None" and rows.speaker["train_dia007_utt1"] == "NA"


def test_unknown_name():
    said = only_error(ValueError, lambda: load_corpus("iemocpa"))
    assert "'iemocpa'" in said and all(name in said for name in CORPORA)
    assert tuple(cli.CORPORA) == CORPORA


@pytest.mark.parametrize("root", [None, ""])
@pytest.mark.parametrize("name", NAMES)
def test_no_root_says_how_to_get_the_corpus_and_what_to_pass(name, root):
    said = only_error(FileNotFoundError, lambda: load_corpus(name, root))
    assert name in said and "--data-root" in said and "load_corpus" not in said
    where = {"iemocap": "sail.usc.edu", "meld": "declare-lab/MELD", "emodb": "bilderbar", "ravdess": "zenodo"}
    assert where.get(SAME_TREE.get(name, name), "CSV") in said


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_the_root(name, tmp_path):
    gone = only_error(FileNotFoundError, lambda: load_corpus(name, tmp_path / "gone"))
    assert f"no {name} at" in gone and "gone" in gone and "looked for" in gone and "found nothing" in gone
    assert "found nothing" in only_error(FileNotFoundError, lambda: load_corpus(name, tmp_path))
    for other in ("notes.txt", "b", "c", "d", "e", "f"):
        write(tmp_path / other)
    assert "found b, c, d, e, f, ..." in only_error(FileNotFoundError, lambda: load_corpus(name, tmp_path))
    assert "notes.txt: looked" in only_error(FileNotFoundError, lambda: load_corpus(name, tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("name", "there"),
    [pair for pair in permutations(NAMES, 2) if len({SAME_TREE.get(name, name) for name in pair}) == 2],
)
def test_another_corpus_at_the_root(name, there, roots):
    said = only_error(FileNotFoundError, lambda: load_corpus(name, roots[there]))
    found = " or ".join(each for each in NAMES if SAME_TREE.get(each, each) == SAME_TREE.get(there, there))
    assert f"no {name} at {roots[there]}" in said and f"found {found}: choose that corpus" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"utterance": ["u1", "u1 ", "u3", "u4", "u5", "u6"]}, ["1 duplicate utterances (u1)"]),
        ({"label": ["angry", "", "calm"] * 2}, ["2 rows with empty label"]),
        ({"path": ["a.wav", "none.wav", "a.wav"] * 2}, ["2 files not found (", "none.wav"]),
        ({"label": ["calm"] * 6}, ["only one label (calm)"]),
        ({"split": ["train", "", "test"] * 2}, ["split must be"]),
        ({"split": ["train", "test", "test"] * 2}, ["split must be"]),
        ({"split": ["train", "valid", "test"] * 2}, ["split must be", "'valid'"]),
        (
            {"utterance": ["u", "u", ""] * 2, "speaker": ["", "", "z"] * 2},
            ["2 rows with empty u", "4 r", "1 duplicate"],
        ),
    ],
)
def test_manifest_problems_are_one_error(changes, words, tmp_path):
    path = make_manifest(tmp_path, **changes)
    said = only_error(ValueError, lambda: load_corpus("manifest", path))
    assert str(path.resolve()) in said and all(word in said for word in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"utterance,path,label\n1,2,3\n", ["missing columns: speaker", "found: utterance, path, label"]),
        (b"utterance;path;label;speaker\n", ["missing columns: utterance, path, label, speaker"]),
        (b"utterance,path,label,speaker\n", ["no rows"]),
        (b"", ["no CSV table"]),
        (b"utterance,path,label,speaker\n1,\xff\xfe,3,4\n", ["no CSV table"]),
        (b"utterance,path,label,speaker\nu1,well, yes.wav,angry,x\n", ["no CSV table"]),
        (b"utterance,path,label,speaker\nu1,a.wav,angry,x\nu2,well, yes.wav,angry,x\n", ["no CSV table", "line 3"]),
        (b"utterance,path,label,speaker\nu1,x.wav\n", ["1 rows with empty label", "1 rows with empty speaker"]),
    ],
)
def test_manifest_that_is_no_such_table(content, words, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    said = only_error(ValueError, lambda: load_corpus("manifest", path))
    assert "mine.csv" in said and all(word in said for word in words)


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("SER_KD_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_root() == tmp_path
    monkeypatch.delenv("SER_KD_CACHE")
    assert cache_root() == tmp_path / "x" / "ser-kd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "ser-kd"


def test_importing_corpora_stays_light():
    code = "import sys, ser_kd_utils.data.corpora; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets", "av", "parselmouth"} & {*done.stdout.split()}
