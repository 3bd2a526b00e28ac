"""What the CNN is trained on: segments of one length, their features computed once, and what a teacher says of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ser_kd_utils.data.audio import SAMPLE_RATE, AudioCache
from ser_kd_utils.data.features import on_disk
from ser_kd_utils.data.noise import NoiseBank, draw, keyed_rng, mix
from ser_kd_utils.models.head_fusion import HeadFusionConfig, features_of, segments

_BATCH = 256  # segments at a time where all are gone through


def at_least(audio: Mapping[str, np.ndarray] | AudioCache, utterances: Sequence[str], seconds: float) -> list[str]:
    """The utterances that last so long: Head Fusion drops those shorter than a segment (2 s)."""
    return [utterance for utterance in utterances if len(audio[utterance]) >= round(seconds * SAMPLE_RATE)]


class Segments(torch.utils.data.Dataset):
    """Training segments: clean ones as features, computed once, noisy ones as waves with the noise to be mixed in.

    Neither is held in memory: the features are mapped from a file, the waves cut when they are asked for.

    Noise and SNR are pure functions of (utterance, place, seed, epoch). An utterance shorter than a segment is repeated
    up to one. It gives whole batches (`__getitems__`): an index into one tensor costs a small network no time.
    """

    def __init__(
        self,
        audio: Mapping[str, np.ndarray] | AudioCache,
        labels: dict[str, int],
        config: HeadFusionConfig,
        hop: int,
        *,
        seed: int,
        noise: NoiseBank | None = None,
        types: Sequence[str] = (),
        snr_db: tuple[float, float] = (0.0, 20.0),
    ):
        """labels: class index of each utterance to train on; hop: samples from one segment to the next; noise None:
        clean speech; types: noise types to draw from, empty for the bank's. Raises ValueError without utterances.
        """
        if not labels:
            raise ValueError("No utterance to train on: all are shorter than a segment (dkd__segment).")
        self.seed, self.noise, self.snr_db = seed, noise, snr_db
        self.types = tuple(types) or (noise.types if noise else ())
        self.audio, self.config, self.hop, self.epoch = audio, config, hop, 0
        counts = {utterance: len(self._cut(utterance)) for utterance in labels}
        self.utterances = [utterance for utterance, count in counts.items() for _ in range(count)]
        self.places = [place for count in counts.values() for place in range(count)]
        self.labels = torch.tensor([labels[u] for u in self.utterances])
        self.teacher_logits: Tensor | None = None  # (segments, classes), where there is a teacher
        self.features = None if noise else _on_disk(features_of(self._cut(utterance), config) for utterance in labels)

    def _cut(self, utterance: str) -> Tensor:
        """All its segments, (count, samples)."""
        return segments(torch.from_numpy(self.audio[utterance])[None], self.config.segment, self.hop)[0]

    def __len__(self) -> int:
        return len(self.utterances)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def sampler(self, batch_size: int) -> Shuffled:
        return Shuffled(self)

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nothing is left to do."""
        return batch

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """given: features (batch, frames, width) of clean speech; or clean and noise (batch, samples), lengths, snr_db;
        labels (batch,) and, where there is a teacher, teacher_logits (batch, classes).
        """
        batch = {"labels": self.labels[indices]}
        if self.teacher_logits is not None:
            batch["teacher_logits"] = self.teacher_logits[indices]
        if self.noise is None:
            return batch | {"given": {"features": self.features[indices]}}
        clean, drawn, snr_db = [], [], []
        for index in indices:
            clean.append(self._cut(self.utterances[index])[self.places[index]])
            key = f"{self.utterances[index]}@{self.places[index]}", self.seed, self.epoch
            kind, level = draw(*key, self.types, self.snr_db)
            snr_db.append(level)
            drawn.append(torch.from_numpy(self.noise.segment(kind, "train", self.config.segment, *key)))
        return batch | {
            "clean": torch.stack(clean),
            "lengths": torch.full((len(clean),), self.config.segment),
            "noise": torch.stack(drawn),
            "snr_db": torch.tensor(snr_db, dtype=torch.float64),
        }

    def heard(self, level: str) -> Tensor:
        """Features of all segments as the network hears them in the first epoch, (segments, frames, width).

        level: the mixing's speech level. For the network's normalisation, which may see training speech only.
        """
        if self.features is not None:
            return self.features
        batches = (self.__getitems__(range(len(self))[first : first + _BATCH]) for first in range(0, len(self), _BATCH))
        return _on_disk(
            features_of(mix(b["clean"], b["noise"], b["snr_db"], level, b["lengths"]), self.config) for b in batches
        )


def _on_disk(parts: Iterable[Tensor]) -> Tensor:
    return torch.from_numpy(on_disk(part.numpy() for part in parts)[0])


class Shuffled(torch.utils.data.Sampler):
    """Segments in an order that is a function of seed and epoch alone, so that all rows see the same batches."""

    def __init__(self, data: Segments):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self):
        return iter(keyed_rng("order", self.data.seed, self.data.epoch).permutation(len(self.data)).tolist())
