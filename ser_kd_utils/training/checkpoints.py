"""What a killed training resumes from: one file after each epoch, of tensors and plain values."""

import warnings
from pathlib import Path
from typing import Any

import torch

from ser_kd_utils.files import sha256


def save_checkpoint(folder: Path, epoch: int, checkpoint: dict[str, Any]) -> None:
    """Write a file that appears whole or not at all, and whose name ends with its SHA-256. The last two are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "unfinished"
    torch.save(checkpoint, unfinished)
    unfinished.replace(folder / f"epoch-{epoch:05}-{sha256(unfinished)}.pt")
    for old in sorted(folder.glob("epoch-*.pt"))[:-2]:
        old.unlink()


def last_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is as it was written; None where there is none. Warns of each that is damaged.

    Raises pickle.UnpicklingError for a file that holds more than tensors and plain values, which is not executed.
    """
    for path in sorted(folder.glob("epoch-*.pt"), reverse=True):
        if path.stem.endswith(sha256(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
        warnings.warn(f"{path.name} is damaged and was left out: training resumes from before it.", stacklevel=3)
    return None
