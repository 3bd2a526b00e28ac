"""What a network is trained on: pieces of utterances, the noise for each, and the teacher's targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Wav2Vec2ForSequenceClassification
from transformers.trainer_pt_utils import get_length_grouped_indices

from ser_kd_utils.data.audio import SAMPLE_RATE, AudioCache
from ser_kd_utils.data.noise import NoiseBank, draw, keyed_rng
from ser_kd_utils.models.wav2vec2 import HOP, hidden_states, normalise

UNLABELLED = -100
"""The class index of speech that distillation may use and cross-entropy may not."""


@dataclass(frozen=True)
class Targets:
    """What a teacher says of whole clean utterances, computed once for all epochs and students."""

    states: Mapping[str, np.ndarray]  # float16 (frames, levels, width) of each utterance; {} for logits alone
    logits: Mapping[str, Tensor]
    frames: Callable[[int], int]  # of a piece of so many samples

    def of_piece(self, utterance: str, start: int, samples: int) -> Tensor:
        """The states of the piece's own frames, (frames, levels, width); start: a multiple of HOP."""
        first = start // HOP
        return torch.from_numpy(self.states[utterance][first : first + self.frames(samples)])


@torch.no_grad()
def teacher_targets(
    teacher: Wav2Vec2ForSequenceClassification,
    audio: Mapping[str, np.ndarray] | AudioCache,
    utterances: Sequence[str],
    levels: Sequence[int],
    folder: Path,
) -> Targets:
    """One pass of the frozen teacher, one utterance at a time; the states lie memory-mapped in `folder`.

    Raises ValueError for a network whose frames are not HOP samples apart: pieces could not be aligned with its frames.
    """
    if teacher.config.inputs_to_logits_ratio != HOP:
        raise ValueError(f"The teacher's frames are {teacher.config.inputs_to_logits_ratio} samples apart, not {HOP}.")
    device, depth = next(teacher.parameters()).device, teacher.config.num_hidden_layers
    frames = partial(_frames, list(zip(teacher.config.conv_kernel, teacher.config.conv_stride, strict=True)))
    counts = [frames(len(audio[utterance])) for utterance in utterances]
    shape = (sum(counts), len(levels), teacher.config.hidden_size)
    store = np.lib.format.open_memmap(folder / "states.npy", "w+", np.float16, shape)
    states = dict(zip(utterances, np.split(store, np.cumsum(counts)[:-1]), strict=True))
    logits = {}
    for utterance in utterances:
        wave = torch.from_numpy(audio[utterance])[None].to(device)
        output = teacher(normalise(wave, torch.tensor([wave.shape[1]], device=device)), output_hidden_states=True)
        layers = torch.cat(hidden_states(output, levels, depth))  # (levels, frames, width)
        states[utterance][:] = layers.transpose(0, 1).cpu().numpy()
        logits[utterance] = output.logits[0].float().cpu()
    return Targets(states, logits, frames)


def _frames(layers: Sequence[tuple[int, int]], samples: int) -> int:
    """Frames that convolutions of these kernels and strides make of so many samples."""
    for kernel, stride in layers:
        samples = (samples - kernel) // stride + 1
    return samples


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad to the longest item: clean and noise (batch, samples), lengths, labels and snr_db (batch,).

    Where a teacher was asked before: its states (batch, frames, levels, width) and teacher_logits (batch, classes).
    """
    batch = {
        "clean": pad_sequence([item["clean"] for item in items], batch_first=True),
        "lengths": torch.tensor([len(item["clean"]) for item in items]),
        "labels": torch.tensor([item["label"] for item in items]),
    }
    if "noise" in items[0]:
        batch["noise"] = pad_sequence([item["noise"] for item in items], batch_first=True)
        batch["snr_db"] = torch.tensor([item["snr_db"] for item in items], dtype=torch.float64)
    if "states" in items[0]:
        batch["states"] = pad_sequence([item["states"] for item in items], batch_first=True)
    if "teacher_logits" in items[0]:
        batch["teacher_logits"] = torch.stack([item["teacher_logits"] for item in items])
    return batch


class Pieces(torch.utils.data.Dataset):
    """Training items: a random piece of each utterance and, with a bank, the noise it is to be mixed with.

    Piece, noise and SNR are pure functions of (utterance, seed, epoch): workers, batches and order cannot change them.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        audio: Mapping[str, np.ndarray] | AudioCache,
        labels: dict[str, int],
        *,
        seed: int,
        seconds: float,
        noise: NoiseBank | None = None,
        types: Sequence[str] = (),
        snr_db: tuple[float, float] = (0.0, 20.0),
        clean_share: float = 0.0,
        targets: Targets | None = None,
    ):
        """labels: class index of each utterance to train on, or UNLABELLED; seconds: longest piece; noise None: clean
        speech; types: noise types to draw from, empty for the bank's; clean_share: of the items, not mixed with noise.
        """
        self.audio, self.labels, self.utterances = audio, labels, list(labels)
        self.seed, self.longest, self.noise, self.snr_db = seed, int(seconds * SAMPLE_RATE), noise, snr_db
        self.types = tuple(types) or (noise.types if noise else ())
        self.clean_share, self.targets = clean_share, targets
        self.epoch = 0

    def sampler(self, batch_size: int) -> Buckets:
        return Buckets(self, batch_size)

    @cached_property
    def lengths(self) -> list[int]:
        """Samples of each item."""
        return [min(len(self.audio[utterance]), self.longest) for utterance in self.utterances]

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        utterance = self.utterances[index]
        key = utterance, self.seed, self.epoch
        wave, start = self.audio[utterance], 0
        if len(wave) > self.longest:
            # on the teacher's frame grid
            start = HOP * int(keyed_rng("piece", *key).integers((len(wave) - self.longest) // HOP + 1))
            wave = wave[start : start + self.longest]
        item = {"clean": torch.from_numpy(wave), "label": self.labels[utterance]}
        if self.noise:
            kind, snr_db = draw(*key, self.types, self.snr_db)
            heard_clean = self.clean_share and keyed_rng("clean", *key).random() < self.clean_share
            item["snr_db"] = math.inf if heard_clean else snr_db
            item["noise"] = torch.from_numpy(self.noise.segment(kind, "train", len(wave), *key))
        if self.targets:
            if self.targets.states:
                item["states"] = self.targets.of_piece(utterance, start, len(wave))
            item["teacher_logits"] = self.targets.logits[utterance]
        return item


class Buckets(torch.utils.data.Sampler):
    """Batches of items of similar length, shuffled anew each epoch.

    The order is a function of seed and epoch alone, so that all rows see the same batches.
    """

    def __init__(self, pieces: Pieces, batch_size: int):
        self.pieces, self.batch_size = pieces, batch_size

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self):
        key = keyed_rng("order", self.pieces.seed, self.pieces.epoch).integers(2**62)
        generator = torch.Generator().manual_seed(int(key))
        return iter(get_length_grouped_indices(self.pieces.lengths, self.batch_size, generator=generator))
