"""Seconds from 3 s of waves to logits: teachers and students of two shapes, in PyTorch and as ONNX graphs.

Run from the project's root: python tests/benchmarks/bench_deploy.py
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import pandas as pd
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.deploy.export import WaveClassifier, write_onnx
from ser_kd_utils.methods.teacher.encoders import log_mel_student

SECONDS, ROUNDS = 3, 7
WHISPER = {"d_model": 384, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "max_source_positions": 50 * SECONDS}
TEACHERS = ("wav2vec2-base, 12 layers", "Whisper tiny, 4 layers")


def networks() -> dict[str, tuple]:
    """Of random weights, which take as long as trained ones."""
    waves = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    log_mel = WhisperFeatureExtractor(chunk_length=SECONDS)
    wav2vec2 = {
        f"wav2vec2-base, {layers} layers": (
            Wav2Vec2ForSequenceClassification,
            Wav2Vec2Config(num_hidden_layers=layers),
            waves,
        )
        for layers in (12, 2)
    }
    whisper = {
        f"Whisper tiny, {layers} layer{'s' * (layers > 1)}": (
            WhisperForAudioClassification,
            WhisperConfig(**WHISPER, encoder_layers=layers),
            log_mel,
        )
        for layers in (4, 1)
    }
    teacher = Wav2Vec2ForSequenceClassification(wav2vec2["wav2vec2-base, 2 layers"][1])
    on_log_mel = {  # the second as profile paper has it: its silence after 3 s is computed, too
        f"log-mel student of it, 2 layers, {seconds} s heard": (
            WhisperForAudioClassification,
            log_mel_student(teacher, 2, seconds).config,
            WhisperFeatureExtractor(chunk_length=seconds),
        )
        for seconds in (SECONDS, 10)
    }
    return wav2vec2 | on_log_mel | whisper


def seconds(answer: Callable[[], object]) -> float:
    """The median of several rounds, after two to warm up."""
    taken = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        answer()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[2:]))


def answers(folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """What computes the logits, by what runs it."""
    wave = 0.1 * torch.randn(1, SECONDS * SAMPLE_RATE)
    classifier = WaveClassifier(folder / "torch")
    found: dict[str, Callable[[], object]] = {"PyTorch": lambda: classifier(wave)}
    for kind in ("ONNX", "int8"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(folder / kind / "model.onnx", options, ["CPUExecutionProvider"])
        found[kind] = lambda session=session: session.run(None, {"waves": wave.numpy()})
    return found


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch's exporter, about itself
    rows = []
    with TemporaryDirectory() as place, torch.inference_mode():
        folders = {name: Path(place, str(number)) for number, name in enumerate(networks())}
        for name, (kind, config, extractor) in networks().items():
            kind(config).save_pretrained(folders[name] / "torch")
            extractor.save_pretrained(folders[name] / "torch")
            graphs = {"onnx": folders[name] / "ONNX", "onnx-int8": folders[name] / "int8"}
            for graph in graphs.values():
                graph.mkdir()
            write_onnx(WaveClassifier(folders[name] / "torch"), graphs)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for name, folder in folders.items():
                for runner, answer in answers(folder, threads).items():
                    files = folder / {"PyTorch": "torch"}.get(runner, runner)
                    size = sum(path.stat().st_size for path in files.iterdir()) / 1e6
                    rows.append((name, runner, threads, size, 1000 * seconds(answer)))
    table = pd.DataFrame(rows, columns=["network", "run by", "threads", "MB", "ms"])
    wide = table.pivot(index=["network", "run by", "MB"], columns="threads", values="ms").reset_index()
    wide.columns = ["network", "run by", "MB", "ms, 1 thread", "ms, 2 threads"]
    plain = wide[wide["run by"] == "PyTorch"].set_index("network")["ms, 1 thread"]
    for teacher in TEACHERS:
        wide[f"times faster than {teacher.partition(',')[0]}"] = plain[teacher] / wide["ms, 1 thread"]
    print(wide.sort_values("ms, 1 thread", ascending=False).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
