"""Exported networks: every class as a graph that equals PyTorch on speech, in int8, and as transformers reads it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import soundfile
import torch
from transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

from ser_kd_utils.cli import main
from ser_kd_utils.data.audio import SAMPLE_RATE, decode
from ser_kd_utils.deploy.card import calibration_error
from ser_kd_utils.deploy.export import LogMel, WaveClassifier, write_onnx
from ser_kd_utils.deploy.predict import open_model
from ser_kd_utils.methods.dkdfmh.model import HeadFusionConfig, HeadFusionForAudioClassification
from ser_kd_utils.methods.mckd.model import VariableTokenConfig, VariableTokenForAudioClassification
from ser_kd_utils.records import Run, read_runs, write_run
from ser_kd_utils.training.experiment import names_of_classes

RESULTS = Path(__file__).parents[2] / "results"
LABELS = ("angry", "happy", "neutral", "sad")
CNN = {"conv_dim": (16,) * 7, "hidden_size": 32}
ENCODER = {
    **CNN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 150,
    "classifier_proj_size": 16,
}
TOKENS = {"frames": 150, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "front": ENCODER}
NETWORKS = {
    "wav2vec2": (Wav2Vec2ForSequenceClassification, Wav2Vec2Config, ENCODER),
    "hubert": (HubertForSequenceClassification, HubertConfig, ENCODER),
    "wavlm": (WavLMForSequenceClassification, WavLMConfig, ENCODER),
    "whisper": (WhisperForAudioClassification, WhisperConfig, WHISPER),
    "whisper, weighted layers": (
        WhisperForAudioClassification,
        WhisperConfig,
        {**WHISPER, "use_weighted_layer_sum": True},
    ),
    "head fusion": (HeadFusionForAudioClassification, HeadFusionConfig, {}),
    "head fusion, mfcc": (
        HeadFusionForAudioClassification,
        HeadFusionConfig,
        {"features": "mfcc", "attention": "text", "hop": 16_000},
    ),
    "variable tokens": (VariableTokenForAudioClassification, VariableTokenConfig, {**TOKENS, "z_score": True}),
    "time tokens": (
        VariableTokenForAudioClassification,
        VariableTokenConfig,
        {**TOKENS, "features": "log-mel", "tokens": "time"},
    ),
    "variable tokens, log-mel": (
        VariableTokenForAudioClassification,
        VariableTokenConfig,
        {**TOKENS, "features": "log-mel"},
    ),
    "time tokens, CNN": (VariableTokenForAudioClassification, VariableTokenConfig, {**TOKENS, "tokens": "time"}),
}

IN_INT8 = ("whisper", "wav2vec2", "head fusion, mfcc", "variable tokens, log-mel")


def save(name: str, folder: Path) -> Path:
    """A small random network whose logits differ from speech to speech, as a run saves it."""
    torch.manual_seed(0)
    network, config, sizes = NETWORKS[name]
    made = network(config(**sizes, **names_of_classes(LABELS)))
    head = made.output if hasattr(made, "output") else made.classifier
    # logits of about 10 whatever the head's inputs are, flattened tokens or their mean
    torch.nn.init.normal_(head.weight, std=(240 if "head" in name else 17) / head.in_features**0.5)
    made.save_pretrained(folder)
    if name.startswith("whisper"):
        WhisperFeatureExtractor(chunk_length=3).save_pretrained(folder)
    else:
        own = name in ("wav2vec2", "hubert", "wavlm")
        Wav2Vec2FeatureExtractor(do_normalize=own, return_attention_mask=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speech(shared_data):
    """Waves of several lengths, shorter and longer than any network's window."""
    paths = sorted((shared_data / "librispeech_mini").glob("*.flac"))[:5]
    seconds = (0.1, 0.73, 2.0, 3.21, 11.0)
    return [decode(path)[: round(length * SAMPLE_RATE)] for path, length in zip(paths, seconds, strict=True)]


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request, tmp_path_factory):
    """A network's folder, and that of its graph."""
    folder = tmp_path_factory.mktemp("network")
    formats = ["onnx", "onnx-int8"] if request.param in IN_INT8 else ["onnx"]
    for format in formats:
        (folder / format).mkdir()
    write_onnx(WaveClassifier(save(request.param, folder / "network")), {each: folder / each for each in formats})
    return folder / "network", folder / "onnx"


def test_the_graph_equals_pytorch_on_speech_of_any_length(pair, speech):
    by_torch, by_onnx = map(open_model, pair)
    logits = []
    for wave in speech:
        wanted, found = by_torch.timeline(wave), by_onnx.timeline(wave)
        assert len(found) == max(1, -(-len(wave) // by_onnx.window)) and (found["label"] == wanted["label"]).all()
        np.testing.assert_allclose(found.drop(columns="label"), wanted.drop(columns="label"), atol=1e-4)
        part = wave[: by_onnx.window]
        found, wanted = by_onnx.logits(part), by_torch.logits(part)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        logits.append(found)
    assert np.ptp(logits, axis=0).max() > 1e-2  # they depend on the speech


def test_the_graph_equals_what_the_networks_own_class_says(pair, speech):
    """Through transformers' feature extractor, as `pipeline` does it, without a line of the package's preparation."""
    classifier, by_onnx = WaveClassifier(pair[0]), open_model(pair[1])
    for wave in (wave[: by_onnx.window] for wave in speech[1:]):
        inputs = classifier.extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.inference_mode():
            wanted = classifier.network(**inputs).logits[0].numpy()
        np.testing.assert_allclose(by_onnx.logits(wave), wanted, atol=1e-4)


def test_nothing_of_this_machine_is_in_the_graph(pair):
    assert b"ser_kd_utils" not in (pair[1] / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in (pair[1] / "model.onnx").read_bytes()
    assert {path.name for path in pair[1].iterdir()} == {"model.onnx"}
    assert open_model(pair[1]).labels == list(LABELS)


@pytest.mark.parametrize("pair", IN_INT8, indirect=True)
def test_int8_is_smaller_and_says_about_the_same(speech, pair):
    folders, classifier = (pair[1], pair[1].with_name("onnx-int8")), WaveClassifier(pair[0])
    sizes = [(folder / "model.onnx").stat().st_size for folder in folders]
    models = map(open_model, folders)
    p = [np.concatenate([model.timeline(wave)[[*LABELS]] for wave in speech]) for model in models]
    graph = onnx.load(folders[1] / "model.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    modules = [*classifier.modules()]
    linear = sum(isinstance(each, torch.nn.Linear) for each in modules)
    linear += sum(isinstance(each, torch.nn.MultiheadAttention) for each in modules)  # its projection of the input
    assert kinds["MatMulInteger"] == linear  # no spectrum
    assert kinds["ConvInteger"] == sum(isinstance(each, (torch.nn.Conv1d, torch.nn.Conv2d)) for each in modules)
    weights = {each.name: each.data_type for each in graph.initializer if each.name.endswith("_quantized")}
    assert weights and set(weights.values()) == {onnx.TensorProto.UINT8}  # signed ones overflow without VNNI
    assert sizes[1] < sizes[0]
    assert 0 < np.abs(p[1] - p[0]).max() < 0.1


def test_the_log_mel_is_that_of_whispers_feature_extractor(speech):
    extractor = WhisperFeatureExtractor(chunk_length=3)
    silence, front = np.zeros(3 * SAMPLE_RATE, dtype=np.float32), LogMel(extractor)
    for wave in (silence, *(np.resize(wave, 3 * SAMPLE_RATE) for wave in speech)):
        wanted = extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
        torch.testing.assert_close(front(torch.from_numpy(wave)[None]), wanted, atol=1e-4, rtol=0)


def recorded(name: str, folder: Path) -> Run:
    """A committed record with a small random network, as if it were a reader's own."""
    published = next(run for run in read_runs(RESULTS / "emodb-tiny") if run.info["variant"] == "e")
    info = {key: value for key, value in published.info.items() if key != "predictions_sha256"}
    return write_run(folder / "runs" / published.id, published.stored, info, lambda place: save(name, place))


@pytest.mark.parametrize(("format", "bound"), [("hub", 1e-3), ("hub-float16", 1e-2)])
def test_a_hub_folder_works_in_a_process_without_the_package(speech, tmp_path, capsys, format, bound):
    run = recorded("whisper", tmp_path)
    assert main(["export", str(run.folder), "--to", str(tmp_path / "hub"), "--format", format]) == 0
    assert str(tmp_path / "hub") in capsys.readouterr().out
    soundfile.write(tmp_path / "speech.wav", speech[2], SAMPLE_RATE)
    code = """
import json, sys
from transformers import pipeline
import soundfile
wave, rate = soundfile.read(sys.argv[2], dtype="float32")
said = pipeline("audio-classification", sys.argv[1], top_k=4)({"raw": wave, "sampling_rate": rate})
assert "ser_kd_utils" not in sys.modules
print(json.dumps({each["label"]: each["score"] for each in said}))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "hub"), str(tmp_path / "speech.wav")]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    ours = open_model(run.folder / "model").timeline(decode(tmp_path / "speech.wav")).loc[0, [*LABELS]]
    np.testing.assert_allclose([said[label] for label in LABELS], ours.astype(float), atol=bound)
    names = {path.name for path in (tmp_path / "hub").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    before, after = ((each / "model.safetensors").stat().st_size for each in (run.folder / "model", tmp_path / "hub"))
    assert after == before if format == "hub" else after < 0.6 * before


def test_the_model_card_says_what_the_record_says(tmp_path):
    from huggingface_hub import ModelCard

    run = recorded("head fusion", tmp_path)
    assert main(["export", str(run.folder), "--to", str(tmp_path / "graph")]) == 0
    assert {path.name for path in (tmp_path / "graph").iterdir()} == {"README.md", "model.onnx"}
    card = ModelCard.load(tmp_path / "graph" / "README.md")
    stored = run.predictions[run.predictions["checkpoint"] == "best"]
    clean = stored[stored["condition"] == "clean"]
    hits = (clean["label"] == clean["prediction"]).groupby(clean["label"]).mean()
    rows = {row.split("|")[1].strip(): row.split("|")[2].split()[0] for row in card.text.splitlines() if row[:1] == "|"}
    assert rows["clean"] == f"{100 * hits.mean():.1f}"
    assert card.data.pipeline_tag == "audio-classification" and card.data.library_name == "onnx"
    kinds = set(stored["condition"]) - {"clean"}
    assert all(f"{kind}" in card.text for kind in kinds) and "0 dB" in card.text
    assert "Article 5(1)(f)" in card.text and "workplace" in card.text
    assert "test speakers never heard in training" in card.text
    assert f"{run.info['protocol']['sizes']['train']} utterances of emodb" in card.text
    heard = set(run.info["train_noise"])
    assert ("noise not heard in training" in rows) == bool(kinds - heard)
    assert ("noise heard in training" in rows) == bool(kinds & heard)
    men = stored[(stored["condition"] != "clean") & stored["utterance"].str[:2].isin(["03", "10", "11", "12", "15"])]
    hits = men["label"] == men["prediction"]
    assert rows["men, all noise"] == f"{100 * hits.groupby(men['label']).mean().mean():.1f}" != rows["women, all noise"]
    assert card.data.language == "de" and "not made for any language but German" in card.text
    (row,) = [row for row in card.text.splitlines() if row.startswith("| all noise |")]
    assert row.split("|")[-2].strip() == f"{100 * calibration_error(stored[stored['condition'] != 'clean']):.1f}"


def test_the_calibration_error_by_hand():
    """Ten answers with 0.8, of which six are right, and ten with 0.6, of which seven are: (0.2 + 0.1) / 2."""
    logits = [np.log([0.8, 0.2])] * 10 + [np.log([0.4, 0.6])] * 10
    right = [True] * 6 + [False] * 4 + [True] * 7 + [False] * 3
    table = pd.DataFrame({"label": ["x"] * 20, "prediction": ["x" if each else "y" for each in right]})
    assert calibration_error(table.assign(logits=logits)) == pytest.approx(0.15)


def test_a_class_of_the_suite_is_named_with_the_module_to_import(tmp_path):
    run = recorded("head fusion", tmp_path)
    assert main(["export", str(run.folder), "--to", str(tmp_path / "hub"), "--format", "hub"]) == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "```python\nimport ser_kd_utils.methods.dkdfmh.model  # the class is not transformers' own\nfrom" in card


@pytest.mark.parametrize(("format", "bits"), [("onnx-int8", 8), ("hub-float16", 16)])
def test_the_card_of_rounded_weights_says_that_the_scores_are_others(tmp_path, format, bits):
    run = recorded("head fusion", tmp_path)
    assert main(["export", str(run.folder), "--to", str(tmp_path / "small"), "--format", format]) == 0
    assert f"before its weights were rounded to {bits} bits" in (tmp_path / "small" / "README.md").read_text()


@pytest.fixture
def run(tmp_path):
    return recorded("wav2vec2", tmp_path)


def refused(run: Run, tmp_path: Path, capsys, *more: str) -> str:
    """What `ser-kd export` says on one line of standard error, with nothing written."""
    target = tmp_path / "target"
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["export", str(run.folder), "--to", str(target), *more]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ser-kd: ")]
    return line


def test_a_pickle_is_refused(run, tmp_path, capsys):
    (run.folder / "model" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n.")
    assert "pytorch_model.bin is a pickle or code" in refused(run, tmp_path, capsys)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_remote_code_is_refused(run, tmp_path, capsys, name):
    path = run.folder / "model" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "evil.Config"}}))
    assert f"{path} is a pickle or code, or asks for some (auto_map)" in refused(run, tmp_path, capsys)


def test_what_cannot_be_exported_is_said_with_what_to_do(run, tmp_path, capsys):
    assert "--format one of onnx, onnx-int8, hub, hub-float16" in refused(run, tmp_path, capsys, "--format", "tflite")
    assert "Pass with --to a folder not there yet" in refused(run, tmp_path, capsys, "--to", str(run.folder))
    (run.folder / "model" / "model.safetensors").unlink()
    assert "holds no network (" in refused(run, tmp_path, capsys)
    shutil.rmtree(run.folder / "model")
    assert "model holds no network (" in refused(run, tmp_path, capsys)
