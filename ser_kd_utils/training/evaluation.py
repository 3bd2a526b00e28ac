"""Scores of a network on clean and noisy speech."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ser_kd_utils.data.audio import SAMPLE_RATE, AudioCache
from ser_kd_utils.data.noise import NoiseBank, mix

# The condition without noise; a condition is (noise type, SNR in dB).
CLEAN = ("clean", math.nan)

# Most audio in one forward pass: bounds the memory, never the score.
SECONDS_PER_BATCH = 40


def grid(types: Sequence[str], snr_db: Sequence[float]) -> list[tuple[str, float]]:
    """Clean, then every noise type at every SNR."""
    return [CLEAN, *((kind, float(snr)) for kind in types for snr in snr_db)]


def noisy_views(
    clean: np.ndarray, utterance: str, conditions: Sequence[tuple[str, float]], noise: NoiseBank | None, part: str,
    seed: int, speech_level: str,
) -> Tensor:  # fmt: skip
    """The utterance under each condition, (conditions, samples).

    All SNRs of a noise type get the same noise samples, so a curve over SNR changes nothing but the SNR.
    """
    kinds = {kind for kind, _ in conditions} - {"clean"}
    pool = {kind: noise.segment(kind, part, len(clean), utterance, seed, "eval") for kind in kinds}
    segments = torch.from_numpy(np.stack([pool.get(kind, np.zeros_like(clean)) for kind, _ in conditions]))
    snr_db = torch.tensor([snr if kind in pool else math.inf for kind, snr in conditions], dtype=torch.float64)
    return mix(torch.from_numpy(clean).repeat(len(conditions), 1), segments, snr_db, speech_level)


@torch.inference_mode()
def predict(
    model: nn.Module, audio: AudioCache, utterances: Iterable[str],
    conditions: Callable[[str], Sequence[tuple[str, float]]], noise: NoiseBank | None, *, part: str, seed: int,
    speech_level: str, prepare_inputs: Callable[[Tensor, Tensor], dict[str, Tensor]],
) -> pd.DataFrame:  # fmt: skip
    """Logits of whole utterances: columns utterance, condition, snr_db, logits (float16, in the order of the labels).

    A batch holds one utterance under its conditions: all items have one length, nothing is padded, and a score cannot
    depend on what else is in the batch (wav2vec2-base's group norm would see the padding). part: the half of the noise
    recordings, "train" or "test"; prepare_inputs: (waves, lengths) -> the network's arguments. Raises ValueError where
    a logit is not finite: a network that diverged has no predictions.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    rows = []
    for utterance in utterances:
        clean, wanted = audio[utterance], list(conditions(utterance))
        size = max(1, int(SECONDS_PER_BATCH * SAMPLE_RATE / len(clean)))
        for first in range(0, len(wanted), size):
            some = wanted[first : first + size]
            views = noisy_views(clean, utterance, some, noise, part, seed, speech_level).to(device)
            lengths = torch.full((len(views),), views.shape[1], device=device)
            logits = model(**prepare_inputs(views, lengths)).logits.half().cpu().numpy()
            if not np.isfinite(logits).all():
                raise ValueError(f"The network's logits of {utterance} are not finite: its training diverged.")
            rows += [(utterance, kind, snr, row) for (kind, snr), row in zip(some, logits, strict=True)]
    model.train(was_training)
    return pd.DataFrame(rows, columns=["utterance", "condition", "snr_db", "logits"])
