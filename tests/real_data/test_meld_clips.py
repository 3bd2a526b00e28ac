"""MELD from its own tables to decoded sound: tiny MP4s, some of them as broken as the release's."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from ser_kd_utils.cli import main
from ser_kd_utils.data.audio import cache_audio
from ser_kd_utils.data.corpora import load_corpus, split
from ser_kd_utils.data.corpora.meld import MELD
from ser_kd_utils.methods import METHODS, settings_of
from ser_kd_utils.records import read_runs

FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
ROWS, OF_CLASS = 16, 3  # the first of each published table, and the first of each class


def write_clip(path: Path, seconds: float, layout: str) -> None:
    """AAC at 48 kHz in an MP4, as MELD's clips are."""
    channels = {"stereo": 2, "5.1": 6}[layout]
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(int(48_000 * seconds)) / 48_000, dtype=np.float32)
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.tile(tone, (channels, 1)), format="fltp", layout=layout)
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.fixture(scope="module")
def root(shared_data, tmp_path_factory) -> Path:
    folder, whole = tmp_path_factory.mktemp("meld"), {}
    for layout in ("stereo", "5.1"):  # encoded once, and the same for all
        write_clip(folder / "clip.mp4", 1.2, layout)
        whole[layout] = (folder / "clip.mp4").read_bytes()
    for part, clips in FOLDERS.items():
        table = pd.read_csv(shared_data / "metadata" / "meld" / f"{part}_sent_emo.csv")
        table = pd.concat([table.head(ROWS), table.groupby("Emotion").head(OF_CLASS)]).drop_duplicates()
        table.to_csv(folder / f"{part}_sent_emo.csv", index=False)
        (folder / clips).mkdir()
        for row in table.itertuples():
            path = folder / clips / f"dia{row.Dialogue_ID}_utt{row.Utterance_ID}.mp4"
            path.write_bytes(whole["5.1" if row.Index % 2 else "stereo"])
    train = folder / FOLDERS["train"]
    (train / "dia0_utt1.mp4").write_bytes((train / "dia0_utt0.mp4").read_bytes()[:900])  # broken
    write_clip(train / "dia0_utt2.mp4", 0.06, "stereo")
    write_clip(train / "dia0_utt3.mp4", 70.0, "stereo")  # badly cut: more than a minute
    write_clip(train / "dia0_utt4.mp4", 0.12, "5.1")
    (train / "dia0_utt5.mp4").unlink()
    return folder


@pytest.mark.filterwarnings("ignore:meld differs from the published counts")
def test_what_cannot_be_used_is_left_out_and_said(root):
    corpus = load_corpus("meld", root)
    assert corpus.excluded.set_index("utterance").reason.to_dict() == {"train_dia0_utt5": "no file"}
    audio = cache_audio(corpus)
    reasons = audio.excluded.set_index("utterance").reason.to_dict()
    assert reasons == {
        "train_dia0_utt1": "unreadable",
        "train_dia0_utt2": "shorter than 0.1 s",
        "train_dia0_utt3": "longer than 60 s",
    }
    kept = corpus.without(audio.excluded)
    rows = {part: len(pd.read_csv(root / f"{part}_sent_emo.csv")) for part in FOLDERS}
    assert len(kept.manifest) == len(audio) == sum(rows.values()) - 4
    assert len(kept.excluded) == 4 and "1 (no file)" in kept.card().set_index("item").at["left out", "value"]
    assert audio.seconds("train_dia0_utt4") == pytest.approx(0.12, abs=0.05)
    assert audio["train_dia0_utt7"].dtype == np.float32 and np.abs(audio["train_dia0_utt7"]).max() > 0.1
    parts = split(kept, None, 1, 0)
    assert (len(parts.train), len(parts.dev), len(parts.test)) == (rows["train"] - 4, rows["dev"], rows["test"])


@pytest.mark.filterwarnings("ignore:meld differs from the published counts")
def test_reproduce_from_clips_to_tables(root, tmp_path, capsys):
    """All methods on the official split and its seven classes, with one epoch each."""
    few = [part for method in METHODS for part in ("--set", f"{method}.epochs=1")]
    few += ["--set", "noise.test_snr_db=(0,)"]
    options = ["--corpus", "meld", "--data-root", str(root), "--results", str(tmp_path), "--ablations", "none"]
    command = ["reproduce", *options, *few, "--only"]
    assert main([*command, "00,01,02,04,06,09"]) == 0, capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    runs = [run for run in read_runs(folder) if run.info["method"] == "mckd"]
    wanted = METHODS["mckd"].variants(settings_of("tiny")).values()
    assert {run.info["variant"] for run in runs} == {each.name for each in wanted if each.kind == "main"}
    labels, trained = (pd.read_csv(root / f"{part}_sent_emo.csv")["Emotion"] for part in ("test", "train"))
    for run in runs:
        card = run.info["protocol"]
        assert card["protocol"] == "official" and run.info["labels"] == list(MELD.labels)
        assert card["sizes"]["train"] + card["sizes"]["quiz"] == len(trained) - 4
        assert card["sizes"]["test"] == len(labels)
        clean = run.predictions.query("condition == 'clean' and checkpoint == 'best'")
        assert clean["label"].value_counts().to_dict() == labels.value_counts().to_dict()
    table = pd.read_csv(folder / "tables" / "mckd.csv").set_index("row")
    assert "MELD WA 52.3 / WF1 47.0 (second-hand)" in table.at["mc-full", "published"]
    for weights in folder.glob("runs/*/model"):  # of each network that it finds, 08 measures the cost: see the main job
        shutil.rmtree(weights)
    assert main([*command, "08"]) == 0, capsys.readouterr().err
