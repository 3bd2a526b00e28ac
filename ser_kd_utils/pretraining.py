"""Self-supervised pre-training of an encoder, wav2vec 2.0 (Baevski et al. 2020): no labels, only speech."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model, get_linear_schedule_with_warmup
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2ForPreTrainingOutput,
    _compute_mask_indices,
    _sample_negative_indices,
)

from ser_kd_utils.audio import SAMPLE_RATE, AudioCache
from ser_kd_utils.models.wav2vec2 import frame_mask, normalise
from ser_kd_utils.noise import keyed_rng
from ser_kd_utils.pieces import UNLABELLED, Buckets, Pieces, collate

OBJECTIVE = {
    "num_codevector_groups": 2,
    "num_codevectors_per_group": 64,
    "codevector_dim": 64,
    "proj_codevector_dim": 64,
    "num_negatives": 20,
}
"""Sizes for the tiny network, about a fifth of the paper's; what is not here is as in the paper."""

MASKED, SPAN = 0.65, 10  # each masked span is 10 frames; 6.5 % of the frames start one (the paper)
SHORTEST = 1.0  # seconds: two spans or more, so that there are frames to tell apart
HOTTEST, COLDEST = 2.0, 0.5  # Gumbel temperature, falling geometrically (the paper)


def pretrain(
    encoder: Wav2Vec2Model,
    audio: Mapping[str, np.ndarray] | AudioCache,
    utterances: Sequence[str],
    *,
    epochs: int,
    seed: int,
    seconds: float = 4.0,
    batch_size: int = 8,
    lr: float = 1e-3,
    warmup: float = 0.1,
) -> pd.DataFrame:
    """Train `encoder` in place to tell masked frames from other frames of the same piece; returns the history.

    audio: float32 (samples,) at 16 kHz by utterance; seconds: longest piece, cut anew each epoch; lr: highest, after
    `warmup` (share of the steps), then falling linearly to 0. Utterances under SHORTEST seconds are left out.

    The history has, by epoch, the means over masked frames: loss, accuracy (contrastive: the true target scores above
    all negatives, an equal one counting as a tie; chance is 1 in num_negatives + 1), and perplexity, the codewords in
    use. The same seed gives the same weights on one thread; the global states of numpy and torch are left as they were.
    Raises ValueError where every utterance is too short.
    """
    usable = [utterance for utterance in utterances if len(audio[utterance]) >= SHORTEST * SAMPLE_RATE]
    if not usable:
        raise ValueError(f"Pre-training needs utterances of at least {SHORTEST:g} s; none of {len(utterances)} is.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pieces = Pieces(audio, dict.fromkeys(usable, UNLABELLED), seed=seed, seconds=seconds)
    loader = DataLoader(pieces, batch_size, sampler=Buckets(pieces, batch_size), collate_fn=collate)
    epochs_log = []
    with _seeded(seed):
        model = _with_objective(encoder).to(device).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
        steps = epochs * len(loader)
        schedule = get_linear_schedule_with_warmup(optimiser, round(warmup * steps), steps)
        for epoch in range(epochs):
            pieces.set_epoch(epoch)
            log = []
            for batch in loader:
                model.set_gumbel_temperature(HOTTEST * (COLDEST / HOTTEST) ** (schedule.last_epoch / steps))
                loss, scores = _step(model, batch["clean"].to(device), batch["lengths"].to(device))
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                log.append(scores)
            epochs_log.append(torch.stack(log).mean(0).tolist())
    encoder.load_state_dict(model.wav2vec2.state_dict())
    index = pd.RangeIndex(1, epochs + 1, name="epoch")
    return pd.DataFrame(epochs_log, columns=["loss", "accuracy", "perplexity"], index=index)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch, and numpy's global generator, from which transformers draws masks and negatives; then restore."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(keyed_rng("pretraining", seed).integers(2**32))  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def _with_objective(encoder: Wav2Vec2Model) -> Wav2Vec2ForPreTraining:
    """A copy of the encoder with a fresh quantiser and projections."""
    # without SpecAugment switched on, transformers ignores the masks that it is given
    changes = OBJECTIVE | {"apply_spec_augment": True, "mask_feature_prob": 0.0}
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config.from_dict(encoder.config.to_dict() | changes))
    model.wav2vec2.load_state_dict(encoder.state_dict())
    return model


def _step(model: Wav2Vec2ForPreTraining, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The loss per masked frame, and (loss, accuracy, perplexity) detached."""
    heard = (torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]).long()
    frames = frame_mask(model, int(model._get_feat_extract_output_lengths(waves.shape[1])), heard)
    masks = _compute_mask_indices(tuple(frames.shape), MASKED, SPAN, attention_mask=frames, min_masks=2)
    drawn = _sample_negative_indices(tuple(frames.shape), model.config.num_negatives, masks)
    mask, negatives = torch.from_numpy(masks).to(waves.device), torch.from_numpy(drawn).long().to(waves.device)
    output = model(
        normalise(waves, lengths), attention_mask=heard, mask_time_indices=mask, sampled_negative_indices=negatives
    )
    loss = output.loss / mask.sum()
    return loss, torch.stack([loss.detach(), _accuracy(output, mask, negatives), output.codevector_perplexity.detach()])


@torch.no_grad()
def _accuracy(output: Wav2Vec2ForPreTrainingOutput, mask: Tensor, negatives: Tensor) -> Tensor:
    """Share of masked frames whose true target scores highest; a tie of n counts 1 / n, or one code for all would win.

    mask: (batch, frames); negatives: (batch, frames, num_negatives), indices into batch * frames.
    """
    targets = output.projected_quantized_states
    true, false = targets[mask][:, None], targets.flatten(0, 1)[negatives[mask]]
    scores = torch.cosine_similarity(output.projected_states[mask][:, None], torch.cat([true, false], 1), dim=-1)
    same = (true == false).all(-1)
    beaten = (scores[:, 1:].masked_fill(same, -torch.inf) < scores[:, :1]).all(-1)
    return (beaten / (1 + same.sum(-1))).mean()
