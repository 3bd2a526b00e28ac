"""The student that comes with the suite: whole, small, the same in both forms, and its card says what was recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy.special import softmax

from ser_kd_utils.cli import main
from ser_kd_utils.data.audio import decode
from ser_kd_utils.deploy.export import load
from ser_kd_utils.deploy.predict import STUDENT, open_model
from ser_kd_utils.files import sha256
from ser_kd_utils.metrics import score
from ser_kd_utils.records import predictions, read_runs

RECORD = json.loads((STUDENT / "record.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def recordings(shared_data):
    """Of the speakers that the student never heard, and of English readers."""
    own = sorted((shared_data / "emodb").glob("0[38]*.flac"))[::8]
    return [*own, *sorted((shared_data / "librispeech_mini").glob("*.flac"))[:5]]


def test_its_files_are_as_they_were_made_and_small():
    found = {path.name: sha256(path) for path in STUDENT.glob("*.*") if path.name != "record.json"}
    assert found == RECORD["files"]
    assert found.keys() == {"README.md", "config.json", "model.onnx", "model.safetensors", "preprocessor_config.json"}
    assert sum(path.stat().st_size for path in STUDENT.rglob("*.*")) < 8_000_000


def test_its_run_lies_beside_it_gave_its_scores_and_heard_none_of_its_test_speakers():
    """Not that of the evidence beside: the same fold and seed, trained on another machine."""
    (run,) = read_runs(STUDENT)
    assert run.id == RECORD["run"] and run.info["predictions_sha256"] == RECORD["predictions_sha256"]
    assert run.info["protocol"]["speaker_independent"] and set(run.info["protocol"]["speakers"]["test"]) == {"03", "08"}
    table = predictions([run])  # refused if they are not as they were recorded
    clean = score(table[table["condition"] == "clean"])
    assert f"| clean | {100 * clean:.1f} (" in (STUDENT / "README.md").read_text(encoding="utf-8")


def test_both_forms_say_the_same_of_speech(recordings):
    """Rounding to 8 bits moves a probability, seldom by much."""
    half, eight = load(STUDENT), open_model(STUDENT)
    assert half.labels == eight.labels and half.window == eight.window
    waves = [decode(path)[: half.window] for path in recordings]
    said = np.stack([[softmax(network.logits(wave)) for wave in waves] for network in (half, eight)])
    apart = np.abs(said[0] - said[1]).max(1)
    assert len(apart) > 12 and 0 < np.median(apart) < 0.02 and apart.max() < 0.25, apart
    assert (said[0].argmax(1) != said[1].argmax(1)).sum() <= 1


def test_it_is_right_about_most_of_its_test_speakers(shared_data):
    paths = sorted((shared_data / "emodb").glob("0[38]*.flac"))
    network, letters = open_model(STUDENT), {"W": "angry", "F": "happy", "N": "neutral", "T": "sad"}
    hits = [network.timeline(decode(path)).loc[0, "label"] == letters[path.stem[5]] for path in paths]
    assert np.mean(hits) == pytest.approx(0.84, abs=0.06)


def test_predict_asks_it_without_what_takes_long_to_import(recordings):
    code = """
import sys
from ser_kd_utils.cli import main
code = main(["predict", sys.argv[1]])
print(sorted({"torch", "transformers", "scipy", "matplotlib", "datasets"} & sys.modules.keys()), code)
"""
    command = [sys.executable, "-c", code, str(recordings[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    head, row, last = done.stdout.splitlines()
    assert head.split() == ["label", "seconds", "angry", "happy", "neutral", "sad", "file"]
    assert row.split()[-1] == str(recordings[0]) and last == "[] 0"


def test_a_broken_file_beside_a_whole_one(recordings, shared_data, capsys):
    broken = shared_data / "faulty" / "audio" / "lfs_pointer.wav"
    assert main(["predict", str(recordings[0]), str(broken)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and f"ser-kd: {broken}: " in err


def test_its_card_says_what_must_be_known():
    text = ModelCard.load(STUDENT / "README.md").text
    for part in ("How it was chosen", "never by the test", "Protocol", "Test scores", "What rounding costs", "ECE"):
        assert part in text
    for part in (
        "women, all noise",
        "men, all noise",
        "-5 dB",
        "noise heard in training",
        "Noise that it did not hear",
    ):
        assert part in text
    for part in ("not made for any language but German", "Article 5(1)(f)", "CC0-1.0", "Whisper tiny.en: MIT", "CC-BY"):
        assert part in text
    assert abs(RECORD["UA"]["model.onnx, 8 bits"]["all noise"] - RECORD["UA"]["as trained"]["all noise"]) < 1
    lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row[:1] == "|"]
    rows = {cells[0]: cells[1:] for cells in lines if len(cells) == 4}
    for number, costs in enumerate(RECORD["UA"].values()):
        assert {part: float(rows[part][number]) for part in costs} == pytest.approx(costs, abs=0.06)
