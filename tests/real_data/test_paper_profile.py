"""Profile `paper` from end to end: a checkpoint of wav2vec2-base's shape, recorded speech and noise, a few steps."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2Config, Wav2Vec2Model, pipeline

from ser_kd_utils.data.audio import SAMPLE_RATE, decode
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment

SPEAKERS = ("03", "08", "09", "10")  # of EMO-DB: one to test, one to choose, two to train on
EMOTIONS = {"W": ("angry", 2.0), "F": ("happy", 1.0), "N": ("neutral", 0.5), "T": ("sad", 0.1)}  # cut to seconds
NOISE = {"rain": "rain_esc10_1-17367-A.flac", "street": "street_blanket_city.flac"}

# wav2vec2-base (Baevski et al. 2020, section 4.2) by its shapes: weights, biases, norms
CNN = 512 * 10 + 2 * 512 + 512 * 512 * (4 * 3 + 2 * 2)
PROJECTION = 2 * 512 + 512 * 768 + 768
POSITIONS = 768 * (768 // 16) * 128 + 128 + 768  # in 16 groups, 128 frames, with weight norm
LAYER = 4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 2 * 2 * 768
NORM_AND_MASK = 2 * 768 + 768
CLASSIFIER = 768 * 256 + 256 + 256 * 4 + 4


def parameters(layers: int) -> int:
    return CNN + PROJECTION + POSITIONS + NORM_AND_MASK + layers * LAYER + CLASSIFIER


@pytest.fixture(scope="module")
def folder():
    """Weights of about 2 GB lie here, so that it goes with the test; its short name becomes part of another's."""
    with tempfile.TemporaryDirectory(prefix="paper-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def base(folder):
    """wav2vec2-base with random weights."""
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def corpus(shared_data, folder):
    """One utterance of each emotion from each speaker, and the CSV file that names them."""
    rows = []
    for speaker in SPEAKERS:
        for code, (label, seconds) in EMOTIONS.items():
            source = min((shared_data / "emodb").glob(f"{speaker}???{code}*.flac"))
            soundfile.write(folder / f"{source.stem}.wav", decode(source)[: round(seconds * SAMPLE_RATE)], SAMPLE_RATE)
            rows.append((source.stem, f"{source.stem}.wav", label, speaker))
    columns = ["utterance", "path", "label", "speaker"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "corpus.csv", index=False)
    return folder / "corpus.csv"


@pytest.fixture(scope="module")
def runs(shared_data, folder, base, corpus):
    """The records of notebooks 01 and 02 by variant: two steps each on windows of half a second."""
    (folder / "noise").mkdir()
    for name in NOISE.values():
        shutil.copy(shared_data / "noise" / name, folder / "noise")
    short = {"epochs": 1, "batch_size": 4, "max_seconds": 0.5}
    overrides = [f"{group}.{name}={value}" for group in ("teacher", "mlkd") for name, value in short.items()]
    overrides += [f"teacher.checkpoint='{base}'", "noise.test_snr_db=(0,)"]
    places = {"data_root": str(corpus), "noise_dir": str(folder / "noise"), "results": str(folder / "results")}
    experiment = MLKDExperiment("manifest", "paper", overrides=", ".join(overrides), **places)
    return {"a": experiment.teachers.run("a")} | {name: experiment.run(name) for name in "bcde"}


def weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """The tensors of a saved encoder's part, by the names they have in the bare Wav2Vec2Model."""
    stored = {name.removeprefix("wav2vec2."): value for name, value in load_file(folder / "model.safetensors").items()}
    return {name: value for name, value in stored.items() if name.startswith(part)}


def moved(folder: Path, base: Path, part: str) -> set[bool]:
    """Whether the tensors of a part differ from the checkpoint's."""
    before, after = weights(base, part), weights(folder, part)
    assert after and after.keys() <= before.keys()
    return {not torch.equal(value, before[name]) for name, value in after.items()}


def test_five_variants_of_the_published_size(runs):
    assert sorted(runs) == ["a", "b", "c", "d", "e"]
    assert (parameters(12), parameters(2)) == (94_569_604, 23_690_884)
    assert {row: run.info["parameters"] for row, run in runs.items()} == {
        row: parameters(12 if row in "ab" else 2) for row in runs
    }
    layers = {name: runs[name].info["settings"]["mlkd"]["teacher_layers"] for name in "bcde"}
    assert layers == {"b": [], "c": [], "d": [12], "e": [4, 8, 12]}


def test_what_a_training_cost_is_recorded(runs):
    for run in runs.values():
        assert run.info["items_per_second"] > 0
        # at least weights, gradients and AdamW's two moments, in float32; the teacher's CNN needs weights only
        assert run.info["peak_memory_mb"] > 16 * (run.info["parameters"] - CNN) / 2**20


def test_finite_predictions_under_every_condition(runs):
    for run in runs.values():
        table = run.predictions
        assert set(table["utterance"].str[:2]) == {"03"}
        counts = table.groupby(["checkpoint", "condition"]).size()
        assert set(counts) == {len(EMOTIONS)} and len(counts) == 2 * (1 + len(NOISE))
        assert np.isfinite(np.stack(table["logits"])).all()
        assert run.history.notna().all(axis=None)
    assert {"ce", "feature"} <= set(runs["e"].history)


def test_the_teachers_cnn_is_frozen_and_the_students_learns(runs, base):
    assert moved(runs["a"].folder / "model", base, "feature_extractor.") == {False}
    assert moved(runs["a"].folder / "model", base, "encoder.layers.") == {True}
    for row in "bcde":
        assert moved(runs[row].folder / "model", base, "feature_extractor.") == {True}


def test_the_student_is_a_model_like_any_other(runs, corpus):
    classify = pipeline("audio-classification", str(runs["e"].folder / "model"), device="cpu")
    for path in sorted(corpus.parent.glob("03*.wav")):
        raw, rate = soundfile.read(path, dtype="float32")
        guesses = classify({"raw": raw, "sampling_rate": rate})
        assert {guess["label"] for guess in guesses} == {label for label, _ in EMOTIONS.values()}
        assert sum(guess["score"] for guess in guesses) == pytest.approx(1)
