"""Scores and their bootstrap intervals, from tables of predictions; differences are tested in `effects`.

A table has the columns utterance, label and prediction (class names). The unit is the utterance: where it occurs
several times (seeds, conditions), its occurrences share its weight of one, so that repetitions never pass for
independent data.
WA, UA, macro_f1 and WF1 as in `ser_metrics/ser_metrics.py`.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from ser_kd_utils.files import cache_root

METRICS = ("WA", "UA", "macro_f1", "WF1")
# The folder of the `evaluate` module, which is loaded by its place, as users load it.
MODULE = Path(__file__).with_name("ser_metrics")


@cache
def ser_metrics():
    """The `evaluate` module with WA, UA, macro_f1 and WF1; needs no network, and of the disk only our cache folder."""
    import evaluate

    evaluate.config.HF_MODULES_CACHE = cache_root() / "evaluate"  # else a folder in the home, which may be read-only
    return evaluate.load(str(MODULE), cache_dir=str(cache_root() / "evaluate"), keep_in_memory=True)


def score(table: pd.DataFrame, metric: str = "UA") -> float:
    """`metric` of the table, in [0, 1]."""
    (pairs,), classes = _pairs(table)
    return float(_metric(pairs.sum(0), classes, metric))


def interval(
    table: pd.DataFrame, metric: str = "UA", level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Value of `metric` and the ends of its percentile bootstrap interval over utterances (Efron & Tibshirani 1993)."""
    (pairs,), classes = _pairs(table)
    rng, units = np.random.default_rng(seed), len(pairs)
    drawn = rng.integers(units, size=(resamples, units)) + units * np.arange(resamples)[:, None]
    times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    low, high = np.quantile(_metric(times @ pairs, classes, metric), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return float(_metric(pairs.sum(0), classes, metric)), low, high


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for their number by Holm's (1979) step-down rule, in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def _pairs(*tables: pd.DataFrame) -> tuple[list[np.ndarray], int]:
    """Per table, its utterances' (by name) weights on (label, prediction), (utterances, classes^2); classes."""
    names = pd.Index(sorted(set().union(*(t[c].unique() for t in tables for c in ("label", "prediction")))))
    found = []
    for table in tables:
        utterance, units = pd.factorize(table["utterance"], sort=True)
        label, prediction = names.get_indexer(table["label"]), names.get_indexer(table["prediction"])
        pairs = np.zeros((len(units), len(names) ** 2))
        np.add.at(pairs, (utterance, label * len(names) + prediction), 1 / np.bincount(utterance)[utterance])
        found.append(pairs)
    return found, len(names)


def _metric(sums: np.ndarray, classes: int, metric: str) -> np.ndarray:
    """`metric` of confusion matrices (..., classes^2), rows = labels."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    confusion = sums.reshape(*sums.shape[:-1], classes, classes)
    hits, actual, guessed = np.einsum("...ii->...i", confusion), confusion.sum(-1), confusion.sum(-2)
    if metric == "WA":
        return hits.sum(-1) / actual.sum(-1)
    with np.errstate(invalid="ignore"):  # nan for a class that does not occur
        recall, f1 = hits / actual, 2 * hits / (actual + guessed)
    if metric == "WF1":
        return np.nansum(f1 * actual, -1) / actual.sum(-1)
    return np.nanmean(recall if metric == "UA" else f1, -1)
