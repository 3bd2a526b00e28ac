"""What is inside a network: its states layer by layer, how alike two networks' are, and how classes lie among them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.training.evaluation import noisy_views


@dataclass(frozen=True)
class States:
    """Of each transformer layer, from the first to the last, float32: some frames of every utterance, one utterance
    after the other, (frames, width), and the mean of all frames of each utterance, (utterances, width)."""

    frames: list[np.ndarray]
    means: list[np.ndarray]


@torch.inference_mode()
def layer_states(
    model: nn.Module, audio: Mapping[str, np.ndarray], utterances: Iterable[str], condition: tuple[str, float],
    noise: NoiseBank | None, *, prepare_inputs: Callable[[Tensor, Tensor], dict[str, Tensor]], part: str, seed: int,
    speech_level: str, frames: int = 50,
) -> States:  # fmt: skip
    """The states of whole utterances under one condition, prepared one by one as in `evaluation.predict`.

    model: an audio classifier of transformers; condition: (noise type, SNR in dB) or `evaluation.CLEAN`, which needs no
    noise; prepare_inputs: (waves, lengths) -> the network's arguments; frames: the most that are kept of an utterance,
    evenly spread. Two networks whose CNNs have the same strides cut an utterance into the same frames, whatever the
    condition: row t of one belongs to row t of the other.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    kept, means = [], []
    for utterance in utterances:
        view = noisy_views(audio[utterance], utterance, [condition], noise, part, seed, speech_level).to(device)
        inputs = prepare_inputs(view, torch.full((1,), view.shape[1], device=device))
        output = model(**inputs, output_hidden_states=True)
        states = torch.cat(output.hidden_states[1:]).float()  # (layers, frames, width), without the first layer's input
        means.append(states.mean(1).cpu().numpy())
        total = states.shape[1]
        count = min(frames, total)
        kept.append(states[:, torch.arange(count, device=device) * total // count].cpu().numpy())
    model.train(was_training)
    return States(list(np.concatenate(kept, axis=1)), list(np.stack(means, axis=1)))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of two (rows, width) sets of states of the same rows; the widths may differ.

    0: no linear relation, 1: the same up to rotation, scale and shift (Kornblith et al. 2019). Give many more rows than
    columns: unrelated white noise of n rows and p columns scores about p / (n + p), not 0.
    """
    x, y = (states - states.mean(0, dtype=np.float64) for states in (x, y))
    norm = np.linalg.norm
    return float(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))


def similarity(teacher: States, student: States) -> pd.DataFrame:
    """CKA of every teacher layer (index) with every student layer (columns), counted from 1, over the same frames."""
    values = [[linear_cka(x, y) for y in student.frames] for x in teacher.frames]
    rows, columns = (pd.RangeIndex(1, len(states.frames) + 1) for states in (teacher, student))
    return pd.DataFrame(values, rows.rename("teacher layer"), columns.rename("student layer"))


def plane(reference: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Each of these (utterances, width) states of one layer as (utterances, 2): its place on the reference's two main
    axes (PCA of columns of equal variance), so that clean and noisy points of one network share a map.

    A plane shows less than the network sees: classes that overlap here may be apart in another direction.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    axes = make_pipeline(StandardScaler(), PCA(2, svd_solver="full")).fit(reference)
    return [axes.transform(states) for states in (reference, *others)]


def class_distances(embeddings: np.ndarray, labels: Sequence[str]) -> float:
    """Silhouette in [-1, 1] of L2-normalised embeddings (utterances, width): how far apart the classes lie."""
    from sklearn.metrics import silhouette_score
    from sklearn.preprocessing import normalize

    return float(silhouette_score(normalize(embeddings), labels))
