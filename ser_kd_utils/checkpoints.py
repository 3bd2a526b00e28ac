"""What a killed training goes on from: the Trainer's checkpoints, sealed once they are whole."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.stateful import Stateful
from transformers.trainer_pt_utils import safe_globals

from ser_kd_utils.files import sha256

SEAL = "seal.json"
BESIDE = "beside.pt"


def seal(checkpoint: Path, beside: Mapping[str, Stateful], seconds: float) -> None:
    """Add what learns beside the network, then the checksums of all files: without them a checkpoint does not count.

    seconds: of training so far, over all interruptions.
    """
    torch.save({name: each.state_dict() for name, each in beside.items()}, checkpoint / BESIDE)
    files = {path.name: sha256(path) for path in sorted(checkpoint.iterdir())}
    (checkpoint / SEAL).write_text(json.dumps({"seconds": seconds, "files": files}), encoding="utf-8")


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that is as it was sealed, and so is that of the best epoch by then.

    The others are removed, with a warning for those that were sealed and then damaged. None: start anew.
    """
    every = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = [path for path in every if _is_whole(path)]
    for number in range(len(whole), 0, -1):
        state = json.loads((whole[number - 1] / "trainer_state.json").read_text(encoding="utf-8"))
        if state["best_model_checkpoint"] in map(str, whole[:number]):
            whole = whole[:number]
            break
    else:
        whole = []
    for path in every:
        if path not in whole:
            if (path / SEAL).exists():
                warnings.warn(f"{path.name} of {folder.name} is damaged and was left out", stacklevel=2)
            shutil.rmtree(path)
    return whole[-1] if whole else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))["files"]
        return all(sha256(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError):
        return False


def restore(checkpoint: Path, beside: Mapping[str, Stateful]) -> float:
    """Give what learns beside the network its state back; returns the seconds of training so far.

    Raises ValueError for a file that holds more than tensors and plain values: it is not executed.
    """
    for name in (BESIDE, "optimizer.pt", "scheduler.pt", *(path.name for path in checkpoint.glob("rng_state*.pth"))):
        try:  # here, before the Trainer stumbles over one
            with safe_globals():
                states = torch.load(checkpoint / name, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise ValueError(
                f"{checkpoint / name} holds other things than tensors and was not loaded: delete {checkpoint.parent}."
            ) from None
        if name == BESIDE:
            for key, each in beside.items():
                each.load_state_dict(states[key])
    return json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))["seconds"]
