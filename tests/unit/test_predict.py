"""`ser-kd predict`: formats, folders, long recordings, standard input, broken files, noise, what it does not load."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

from ser_kd_utils.cli import main
from ser_kd_utils.data.audio import SAMPLE_RATE, decode
from ser_kd_utils.deploy import predict as module
from ser_kd_utils.deploy.export import WaveClassifier, write_onnx
from ser_kd_utils.deploy.predict import open_model
from ser_kd_utils.training.experiment import names_of_classes

ROOT = Path(__file__).parents[2]
LABELS = ["angry", "happy", "neutral", "sad"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A small random Whisper that hears 3 s, as transformers saves it and as a graph."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    config = WhisperConfig(**sizes, max_source_positions=150, classifier_proj_size=16, **names_of_classes(LABELS))
    network = WhisperForAudioClassification(config)
    torch.nn.init.normal_(network.classifier.weight, std=10.0)
    network.save_pretrained(folder / "torch")
    WhisperFeatureExtractor(chunk_length=3).save_pretrained(folder / "torch")
    (folder / "onnx").mkdir()
    write_onnx(WaveClassifier(folder / "torch"), {"onnx": folder / "onnx"})
    return folder


@pytest.fixture(scope="module")
def long(shared_data):
    """7.3 s of speech: two whole windows and a third that ends with it."""
    two = sorted((shared_data / "librispeech_mini").glob("*.flac"))[:2]
    return np.concatenate([*map(decode, two)])[: round(7.3 * SAMPLE_RATE)]


@pytest.fixture
def files(long, tmp_path):
    """A folder with the first 2 s in four formats, the whole in a folder of its own, and a text file."""
    short = long[: 2 * SAMPLE_RATE]
    for name in ("a.wav", "b.flac", "c.ogg", "d.mp3"):
        soundfile.write(tmp_path / name, short, SAMPLE_RATE)
    for name in ("e.m4a", "f.mp4"):
        with av.open(tmp_path / name, "w") as container:
            stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(short[None], format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            container.mux([*stream.encode(frame), *stream.encode(None)])
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "long.wav", long, SAMPLE_RATE)
    (tmp_path / "notes.txt").write_text("no sound")
    return tmp_path


def said(capsys, *arguments: object, code: int = 0) -> str:
    assert main(["predict", *map(str, arguments)]) == code
    return capsys.readouterr().out


def test_every_format_of_audio_is_one_line(files, networks, long, capsys):
    lines = said(capsys, files, "--model", networks / "onnx").splitlines()
    assert lines[0].split() == ["label", "seconds", *LABELS, "file"]
    assert [Path(line.split()[-1]).name for line in lines[1:]] == [
        *("a.wav", "b.flac", "c.ogg", "d.mp3", "long.wav", "e.m4a", "f.mp4"),
    ]
    whole = open_model(networks / "onnx").timeline(long[: 2 * SAMPLE_RATE]).loc[0]
    for line in lines[1:]:
        label, seconds, *numbers, file = line.split()
        if not file.endswith("long.wav"):
            assert label == whole["label"]
            np.testing.assert_allclose(
                np.array(numbers, float), whole[LABELS].astype(float), atol=0.01 if file[-3:] in ("wav", "lac") else 0.2
            )
            assert 1.9 < float(seconds) < 2.2


def test_graph_and_transformers_say_the_same(files, networks, capsys):
    one, two = (
        json.loads(said(capsys, files, "--model", networks / name, "--format", "json")) for name in ("onnx", "torch")
    )
    assert len(one) == 7
    for first, second in zip(one, two, strict=True):
        assert (first["file"], first["label"]) == (second["file"], second["label"])
        np.testing.assert_allclose(*([each[label] for label in LABELS] for each in (first, second)), atol=1e-4)


def test_a_long_recording_goes_window_by_window(files, networks, long, capsys):
    path = files / "deep" / "long.wav"
    rows = [*csv.DictReader(io.StringIO(said(capsys, path, "--model", networks / "onnx", "--format", "csv")))]
    assert [*rows[0]] == ["file", "start", "end", "label", *LABELS]
    assert [(float(row["start"]), float(row["end"])) for row in rows] == [(0, 3), (3, 6), (4.3, 7.3)]
    p = np.array([[float(row[label]) for label in LABELS] for row in rows])
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    network = open_model(networks / "onnx")
    for row, wave in zip(p, (long[:48_000], long[48_000:96_000], long[-48_000:]), strict=True):
        logits = network.logits(wave).astype(float)
        np.testing.assert_allclose(row, np.exp(logits) / np.exp(logits).sum(), atol=1e-3)  # the file has 16 bits
    (whole,) = json.loads(said(capsys, path, "--model", networks / "onnx", "--format", "json"))
    np.testing.assert_allclose([whole[label] for label in LABELS], p.mean(0), atol=1e-5)
    assert whole["label"] == LABELS[p.mean(0).argmax()] and whole["seconds"] == pytest.approx(7.3)


@pytest.mark.parametrize("samples", [1, 3 * SAMPLE_RATE - 1, 3 * SAMPLE_RATE, 3 * SAMPLE_RATE + 1, 6 * SAMPLE_RATE])
def test_windows_cover_a_recording_of_any_length(samples):
    network = module.Model(lambda wave: np.zeros(2), ["a", "b"], 3 * SAMPLE_RATE)
    table = network.timeline(np.ones(samples, np.float32))
    assert table["start"].iloc[0] == 0 and table["end"].iloc[-1] == samples / SAMPLE_RATE
    assert (table["start"].iloc[1:].to_numpy() <= table["end"].iloc[:-1].to_numpy()).all()
    assert len(table) == -(-samples // (3 * SAMPLE_RATE))


def test_the_timelines_picture(files, networks, capsys):
    said(capsys, files / "deep", files / "a.wav", "--model", networks / "onnx", "--plot", files / "time.png")
    assert (files / "time.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_read_is_named_and_the_others_go_on(files, networks, shared_data, capsys):
    soundfile.write(files / "silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    soundfile.write(files / "click.wav", np.ones(100) / 2, SAMPLE_RATE)
    bad = [files / "silent.wav", files / "notes.txt", files / "click.wav", files / "nowhere.wav"]
    bad += [shared_data / "faulty" / "audio" / "lfs_pointer.wav"]
    assert (
        main(["predict", *map(str, [*bad, files / "a.wav"]), "--model", str(networks / "onnx"), "--format", "csv"]) == 1
    )
    out, err = capsys.readouterr()
    assert [row["file"] for row in csv.DictReader(io.StringIO(out))] == [str(files / "a.wav")]
    lines = err.splitlines()
    assert [line.startswith(f"ser-kd: {path}: ") for line, path in zip(lines, bad, strict=True)] == [True] * 5
    assert lines[0].endswith("silent, or shorter than 0.1 s") and lines[2] == lines[0].replace(
        "silent.wav", "click.wav"
    )
    assert "Git LFS pointer" in lines[4]


def test_noise_is_mixed_as_in_the_suites_tests(files, networks, long, capsys, shared_data):
    (files / "noise" / "rain").mkdir(parents=True)
    shutil.copy(shared_data / "noise" / "rain_esc10_1-17367-A.flac", files / "noise" / "rain")
    asked = (files / "a.wav", "--model", networks / "onnx", "--format", "json")
    noisy = ("--noise", "rain", "--noise-dir", files / "noise", "--snr")
    clean, high, low = (
        np.array([json.loads(said(capsys, *asked, *more))[0][label] for label in LABELS])
        for more in ((), (*noisy, 80), (*noisy, -5))
    )
    assert np.abs(high - clean).max() < 1e-2 < np.abs(low - clean).max()
    with soundfile.SoundFile(files / "a.wav") as file:
        wave = file.read(dtype="float32")
    mixed = module._mixer("rain", 5.0, str(files / "noise"))(wave, "a")
    from ser_kd_utils.data.noise import active_power

    added = torch.from_numpy(mixed - wave).double()
    power = active_power(torch.from_numpy(wave)[None]) / (added - added.mean()).square().mean()
    assert 10 * power.log10().item() == pytest.approx(5, abs=1e-3)
    assert main(["predict", *map(str, (*asked, *noisy, 0)), "--noise", "thunder"]) == 2
    assert "there are: rain" in capsys.readouterr().err


PROCESS = """
import sys
from ser_kd_utils import cli
code = cli.main(["predict", *sys.argv[1:]])
print(sorted({"torch", "transformers", "datasets", "matplotlib"} & sys.modules.keys()), code)
"""


def test_a_graph_needs_neither_torch_nor_transformers(files, networks):
    with (files / "a.wav").open("rb") as wave:
        command = [sys.executable, "-c", PROCESS, "-", "--model", str(networks / "onnx"), "--format", "csv"]
        done = subprocess.run(command, stdin=wave, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    _, row, last = done.stdout.splitlines()
    assert row.startswith("-,0.0,2.0,")
    assert last == "[] 0"


def test_a_network_that_is_not_there_or_not_safe_is_one_sentence(files, networks, tmp_path, capsys, monkeypatch):
    def refused(*more: object) -> str:
        assert main(["predict", str(files / "a.wav"), *map(str, more)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    monkeypatch.setattr(module, "STUDENT", tmp_path / "student")
    assert refused() == (
        f"ser-kd: {tmp_path / 'student'} holds no network (model.onnx, or safetensors): pass the folder of one."
    )
    assert "holds no network" in refused("--model", tmp_path / "nowhere")
    assert "choose one of table, json, csv" in refused("--model", networks / "onnx", "--format", "hub")
    unsafe = shutil.copytree(networks / "onnx", tmp_path / "unsafe")
    (unsafe / "weights.pkl").write_bytes(b"")
    assert "weights.pkl is a pickle or code" in refused("--model", unsafe)
    (unsafe / "weights.pkl").rename(unsafe / "config.json").write_text('{"auto_map": {}}')
    assert "auto_map" in refused("--model", unsafe)


def test_the_student_of_the_suite_is_asked_where_no_other_is_named(files, networks, capsys, monkeypatch):
    monkeypatch.setattr(module, "STUDENT", networks / "onnx")
    assert said(capsys, files / "a.wav") == said(capsys, files / "a.wav", "--model", networks / "onnx")
