"""What a network is trained on: windows of utterances, the noise for each, and what a teacher says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import get_length_grouped_indices

from ser_kd_utils.data.audio import AudioCache
from ser_kd_utils.data.features import HOP, on_disk
from ser_kd_utils.data.noise import NoiseBank, draw, keyed_rng, mix
from ser_kd_utils.files import make_once
from ser_kd_utils.progress import over


class KeyedSampler(torch.utils.data.Sampler):
    """Indices of a dataset in an order that seed and epoch alone decide: all variants see the same batches."""

    def __init__(self, data: SpeechDataset, batch_size: int):
        self.data, self.batch_size = data, batch_size

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self):
        rng = keyed_rng("order", self.data.seed, self.data.epoch)
        return iter(self.data.order(self.data, self.batch_size, rng))


def length_grouped(data: SpeechDataset, batch_size: int, rng: np.random.Generator) -> list[int]:
    """Batches of windows of similar length."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return get_length_grouped_indices(data.lengths, batch_size, generator=generator)


def shuffled(data: SpeechDataset, batch_size: int, rng: np.random.Generator) -> list[int]:
    """Any order."""
    return rng.permutation(len(data)).tolist()


def paired_by_class(data: SpeechDataset, batch_size: int, rng: np.random.Generator) -> list[int]:
    """Pairs of one class, so that in a batch of even size every item has a positive for SupCon.

    In each epoch the items of a class are paired anew and the pairs shuffled; the odd one out is paired with one that
    then occurs twice.
    """
    labels = data.labels.numpy()
    orders = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    pairs = np.concatenate([np.append(order, order[: len(order) % 2]).reshape(-1, 2) for order in orders])
    return rng.permutation(pairs).flatten().tolist()


def noisy_input(batch: Mapping[str, Tensor], speech_level: str) -> Tensor:
    """The waves (batch, samples) of a batch of SpeechDataset in their noise, where they have any."""
    if "noise" not in batch:
        return batch["clean"]
    return mix(batch["clean"], batch["noise"], batch["snr_db"], speech_level, batch["lengths"])


@dataclass(eq=False, kw_only=True)
class SpeechDataset(torch.utils.data.Dataset):
    """Windows of utterances, in whole batches (`__getitems__`).

    Without `hop`, one window of each utterance, at random and anew in each epoch where it is longer than `longest`;
    with `hop`, all windows of `longest` samples, and of a shorter utterance one that repeats it. Window, noise and SNR
    are pure functions of (utterance, seed, epoch) and, with `hop`, of its place: workers, batches and order cannot
    change them. Where the features of clean speech were computed once, batches hold these in place of waves.

    classes: class index of each utterance to train on, or UNLABELLED; longest: samples; noise None: clean speech;
    types: noise types to draw from; clean_fraction: of the items, not mixed with noise; states, layers: what a teacher
    says of each frame, and which of its layers are wanted; targets: by its name in a batch, what a teacher says of each
    window; features: a tensor (windows, frames, width), or, with `frames`, for one epoch after the other and again from
    the first, an array (frames, width) of each utterance, of which a random stretch of at most so many frames is taken.
    Raises ValueError without utterances.
    """

    audio: Mapping[str, np.ndarray] | AudioCache
    classes: Mapping[str, int]
    seed: int
    longest: int
    hop: int | None = None
    noise: NoiseBank | None = None
    types: Sequence[str] = ()
    snr_db: tuple[float, float] = (0.0, 20.0)
    clean_fraction: float = 0.0
    states: TeacherOutputs | None = None
    layers: Sequence[int] = ()
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | Sequence[Mapping[str, np.ndarray]] | None = None
    frames: int = 0
    order: Callable[..., list[int]] = length_grouped
    epoch: int = 0

    def __post_init__(self):
        if not self.classes:
            raise ValueError("No utterance to train on: all were left out, as shorter than a segment or otherwise.")
        counts = dict.fromkeys(self.classes, 1)
        if self.hop:
            counts = {u: 1 + max(len(self.audio[u]) - self.longest, 0) // self.hop for u in self.classes}
        self.windows = [(utterance, place) for utterance, count in counts.items() for place in range(count)]
        self.labels = torch.tensor([self.classes[utterance] for utterance, _ in self.windows])

    @cached_property
    def lengths(self) -> list[int]:
        """Samples of each window."""
        return [min(len(self.audio[utterance]), self.longest) for utterance, _ in self.windows]

    def sampler(self, batch_size: int) -> KeyedSampler:
        return KeyedSampler(self, batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.windows)

    @staticmethod
    def collate(batch: dict[str, Any]) -> dict[str, Any]:
        """Nothing is left to do."""
        return batch

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """labels (batch,), and the targets by name. Of computed features: inputs, with features (batch, frames, width)
        and, where these are stretches, counts (batch,) of frames that are speech. Otherwise, padded to the longest:
        clean and noise (batch, samples), lengths and snr_db (batch,), teacher_states (batch, frames, layers, width).
        """
        batch = {"labels": self.labels[indices]} | {name: told[indices] for name, told in self.targets.items()}
        if self.features is not None:
            return batch | {"inputs": self._stretches(indices) if self.frames else {"features": self.features[indices]}}
        cuts = [self._cut(index) for index in indices]
        batch["clean"] = pad_sequence([torch.from_numpy(wave) for _, _, _, wave in cuts], batch_first=True)
        batch["lengths"] = torch.tensor([len(wave) for _, _, _, wave in cuts])
        if self.noise:
            noise, snr_db = zip(*(self._draw(key, len(wave)) for _, key, _, wave in cuts), strict=True)
            batch["noise"] = pad_sequence(noise, batch_first=True)
            batch["snr_db"] = torch.tensor(snr_db, dtype=torch.float64)
        if self.states:
            states = [self.states.window(name, start, len(wave), self.layers) for name, _, start, wave in cuts]
            batch["teacher_states"] = pad_sequence(states, batch_first=True)
        return batch

    __getitems__ = batch  # what a loader calls

    def computed(self, features_of: Callable[[Tensor], Tensor], speech_level: str, batch_size: int = 1):
        """Features of all windows as a network is given them in the first epoch, mapped from a file, one batch after
        the other, and the length of each. For its normalisation, which may see training speech only.
        """

        def features(first: int) -> np.ndarray:
            batch = self.batch([*range(first, min(first + batch_size, len(self)))])
            return features_of(noisy_input(batch, speech_level)).cpu().numpy()

        return on_disk(map(features, over(range(0, len(self), batch_size), "features of batch")))

    def _cut(self, index: int) -> tuple[str, str, int, np.ndarray]:
        """Utterance, the window's own key, its first sample, and the window."""
        utterance, place = self.windows[index]
        wave, start, key = self.audio[utterance], 0, utterance
        if self.hop:
            start, key = place * self.hop, f"{utterance}@{place}"
            wave = np.resize(wave, self.longest) if len(wave) < self.longest else wave
        elif len(wave) > self.longest:  # on the teacher's frame grid
            start = HOP * self._random_start(utterance, (len(wave) - self.longest) // HOP)
        return utterance, key, start, wave[start : start + self.longest]

    def _random_start(self, utterance: str, last: int) -> int:
        return int(keyed_rng("piece", utterance, self.seed, self.epoch).integers(last + 1))

    def _draw(self, window: str, samples: int) -> tuple[Tensor, float]:
        key = window, self.seed, self.epoch
        kind, snr_db = draw(*key, self.types, self.snr_db)
        if self.clean_fraction and keyed_rng("clean", *key).random() < self.clean_fraction:
            snr_db = math.inf
        return torch.from_numpy(self.noise.segment(kind, "train", samples, *key)), snr_db

    def _stretches(self, indices: Sequence[int]) -> dict[str, Tensor]:
        stretches = []
        for index in indices:
            utterance, _ = self.windows[index]
            whole = self.features[self.epoch % len(self.features)][utterance]
            start = self._random_start(utterance, max(len(whole) - self.frames, 0))
            stretches.append(torch.from_numpy(whole[start : start + self.frames]).float())
        counts = torch.tensor([len(stretch) for stretch in stretches])
        return {"features": pad_sequence(stretches, batch_first=True), "counts": counts}


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says of whole clean utterances, computed once for all epochs and students (`teacher_outputs`)."""

    layers: tuple[int, ...]
    states: Mapping[str, np.ndarray]  # float16 (frames, layers, width) of each utterance; {} where no layer was wanted
    logits: Mapping[str, Tensor]  # (classes,)
    embeddings: Mapping[str, Tensor]  # (width,): mean over the frames of what the teacher's head reads

    def window(self, utterance: str, start: int, samples: int, layers: Sequence[int]) -> Tensor:
        """The states of a window's own frames, (frames, layers, width); start: a multiple of HOP."""
        frames = self.states[utterance][start // HOP : (start + samples) // HOP]
        return torch.from_numpy(frames[:, [self.layers.index(layer) for layer in layers]])


def hidden_states(output: SequenceClassifierOutput, layers: Sequence[int], depth: int) -> list[Tensor]:
    """The (batch, frames, width) states after the given transformer layers, counted from 1; depth: how many there are.

    Before the encoder's final layer norm where the network has one (tiny: pre-norm layers; wav2vec2-base has none).
    """
    states = output.hidden_states or ()
    if len(states) != depth + 1:
        raise RuntimeError(f"Expected {depth + 1} hidden states, the network returned {len(states)}.")
    return [states[layer] for layer in layers]


@torch.no_grad()
def teacher_outputs(
    model: PreTrainedModel, prepare_inputs: Callable[[Tensor, Tensor], dict[str, Tensor]],
    audio: Mapping[str, np.ndarray] | AudioCache, utterances: Sequence[str], layers: Sequence[int], folder: Path,
) -> TeacherOutputs:  # fmt: skip
    """Everything that a student may want of a frozen teacher: one pass, one utterance at a time.

    model: an audio classifier of transformers, whose head begins with its `projector`. The outputs are read from
    `folder` where they lie there, else put there, whole or not at all: its name stands for all the other arguments.
    """
    make_once(folder, lambda fresh: _ask(model, prepare_inputs, audio, utterances, layers, fresh))
    told, states = load_file(folder / "outputs.safetensors"), {}
    if layers:
        counts = told["frames"].tolist()
        shape = (sum(counts), len(layers), model.config.hidden_size)
        whole = np.memmap(folder / "states", np.float16, "r", shape=shape)
        states = dict(zip(utterances, np.split(whole, np.cumsum(counts)[:-1]), strict=True))
    logits, embeddings = (dict(zip(utterances, told[name], strict=True)) for name in ("logits", "embeddings"))
    return TeacherOutputs(tuple(layers), states, logits, embeddings)


def _ask(model, prepare_inputs, audio, utterances, layers, folder: Path) -> None:
    device, depth = next(model.parameters()).device, model.config.num_hidden_layers
    frames, logits, embeddings, read = [], [], [], []
    hook = model.projector.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with (folder / "states").open("wb") as file:
        for utterance in over(utterances, "the teacher hears utterance"):
            wave = torch.from_numpy(audio[utterance])[None].to(device)
            inputs = prepare_inputs(wave, torch.tensor([wave.shape[1]], device=device))
            output = model(**inputs, output_hidden_states=True)
            last = read.pop()[0]
            frames.append(len(last))
            logits.append(output.logits[0].float().cpu())
            embeddings.append(last.mean(0).float().cpu())
            if layers:
                states = torch.cat(hidden_states(output, layers, depth)).transpose(0, 1)
                states.cpu().numpy().astype(np.float16).tofile(file)
    hook.remove()
    told = {"frames": torch.tensor(frames), "logits": torch.stack(logits), "embeddings": torch.stack(embeddings)}
    save_file(told, folder / "outputs.safetensors")
