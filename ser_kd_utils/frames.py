"""What the variable-token student is trained on: frames of whole utterances, in batches that hold pairs of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ser_kd_utils.data.noise import keyed_rng
from ser_kd_utils.pieces import Pieces


class Paired(torch.utils.data.Sampler):
    """Items in pairs of one class, so that in a batch of even size every item has a positive for SupCon.

    In each epoch the items of a class are paired anew and the pairs shuffled; the odd one out is paired with one that
    then occurs twice. The order is a function of seed and epoch alone, so that all rows see the same batches.
    """

    def __init__(self, data: Frames | PairedPieces, batch_size: int):
        """Raises ValueError for an odd batch size: it would part a pair."""
        if batch_size % 2:
            raise ValueError(f"batch_size={batch_size}: give an even number, the items of a batch come in pairs.")
        labels = np.array([data.labels[utterance] for utterance in data.utterances])
        self.data, self.classes = data, [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __len__(self) -> int:
        return sum(len(items) + len(items) % 2 for items in self.classes)

    def __iter__(self):
        rng = keyed_rng("order", self.data.seed, self.data.epoch)
        orders = [rng.permutation(items) for items in self.classes]
        pairs = np.concatenate([np.append(order, order[: len(order) % 2]).reshape(-1, 2) for order in orders])
        return iter(rng.permutation(pairs).flatten().tolist())


class Frames(torch.utils.data.Dataset):
    """Clean utterances as features that were computed once; of a longer one another piece in each epoch.

    Where the piece begins is a pure function of (utterance, seed, epoch).
    """

    def __init__(
        self,
        features: Mapping[str, np.ndarray],
        labels: dict[str, int],
        frames: int,
        seed: int,
        teacher: Mapping[str, Mapping[str, Tensor]],
    ):
        """features: (frames, width) of each utterance; labels: class index of each utterance to train on; frames: the
        most that the network sees; teacher: by the name it has in a batch, what the teacher says of each utterance.
        """
        self.features, self.labels, self.utterances = features, labels, list(labels)
        self.frames, self.seed, self.epoch, self.teacher = frames, seed, 0, teacher

    def __len__(self) -> int:
        return len(self.utterances)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def sampler(self, batch_size: int) -> Paired:
        return Paired(self, batch_size)

    def __getitem__(self, index: int) -> str:
        return self.utterances[index]

    def collate(self, utterances: Sequence[str]) -> dict[str, Any]:
        """given: features (batch, frames, width) and counts (batch,) of frames that are speech; labels (batch,)."""
        pieces = [torch.from_numpy(self._piece(utterance)).float() for utterance in utterances]
        counts = torch.tensor([len(piece) for piece in pieces])
        batch = {"given": {"features": pad_sequence(pieces, batch_first=True), "counts": counts}}
        batch["labels"] = torch.tensor([self.labels[utterance] for utterance in utterances])
        return batch | {name: torch.stack([told[u] for u in utterances]) for name, told in self.teacher.items()}

    def _piece(self, utterance: str) -> np.ndarray:
        whole = self.features[utterance]
        spare = max(len(whole) - self.frames, 0)
        start = int(keyed_rng("piece", utterance, self.seed, self.epoch).integers(spare + 1))
        return whole[start : start + self.frames]


class PairedPieces(Pieces):
    """Waves with the noise to be mixed in, in the same batches as `Frames`."""

    def sampler(self, batch_size: int) -> Paired:
        return Paired(self, batch_size)
