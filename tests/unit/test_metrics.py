from __future__ import annotations

import itertools
import socket
import time
import warnings

import numpy as np
import pandas as pd
import pytest

from ser_kd_utils.metrics import METRICS, holm, interval, score, ser_metrics

LABELS = ("angry", "happy", "neutral", "sad")
IEMOCAP = {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
MELD_TEST = {
    "neutral": 1256, "surprise": 281, "fear": 50, "sadness": 208, "joy": 402, "disgust": 68, "anger": 345,
}  # fmt: skip


def table(label, prediction) -> pd.DataFrame:
    names = [f"u{i:05d}" for i in range(len(label))]
    return pd.DataFrame({"utterance": names, "label": list(label), "prediction": list(prediction)})


def always(counts: dict[str, int], guess: str) -> pd.DataFrame:
    label = [name for name, count in counts.items() for _ in range(count)]
    return table(label, [guess] * len(label))


def noisy_guesses(label: np.ndarray, accuracy: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(label)) < accuracy, label, rng.permutation(label))


def by_module(frame: pd.DataFrame) -> dict[str, float]:
    names = sorted(set(frame.label) | set(frame.prediction))
    codes = {c: [names.index(v) for v in frame[c]] for c in ("label", "prediction")}
    return ser_metrics().compute(predictions=codes["prediction"], references=codes["label"])


def test_hand_worked_case():
    # a: 2 of 3, b: 1 of 2, c: 0 of 1; predicted a 3 times, b 2, c 1
    frame = table("aaabbc", "aababc"[:3] + "bca")
    expected = {
        "WA": 3 / 6,
        "UA": (2 / 3 + 1 / 2 + 0) / 3,
        "macro_f1": (2 * 2 / (3 + 3) + 2 * 1 / (2 + 2) + 0) / 3,
        "WF1": (3 * 2 / 3 + 2 * 1 / 2 + 0) / 6,
    }
    assert by_module(frame) == pytest.approx(expected)
    assert {m: score(frame, m) for m in METRICS} == pytest.approx(expected)


def test_a_class_that_is_only_predicted_lowers_macro_f1_but_is_no_class_of_ua():
    frame = table("aabb", "aabc")
    expected = {"WA": 3 / 4, "UA": (1 + 1 / 2) / 2, "macro_f1": (1 + 2 / 3 + 0) / 3, "WF1": (2 * 1 + 2 * 2 / 3) / 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert by_module(frame) == pytest.approx(expected)
        assert {m: score(frame, m) for m in METRICS} == pytest.approx(expected)


@pytest.mark.parametrize(("counts", "wa", "ua"), [(IEMOCAP, 30.88, 25.00), (MELD_TEST, 48.12, 14.29)])
def test_floor_of_always_neutral(counts, wa, ua):
    frame = always(counts, "neutral")
    found = by_module(frame)
    assert (round(100 * found["WA"], 2), round(100 * found["UA"], 2)) == (wa, ua)
    assert [round(100 * score(frame, m), 2) for m in ("WA", "UA")] == [wa, ua]


def test_module_and_table_agree_on_random_predictions():
    rng = np.random.default_rng(0)
    for size in (5, 50, 500):
        frame = table(rng.choice(LABELS, size), rng.choice(LABELS, size))
        assert {m: score(frame, m) for m in METRICS} == pytest.approx(by_module(frame))


def test_module_loads_quickly_without_network_or_files(monkeypatch, tmp_path):
    import datasets  # noqa: F401  imports are not what is measured
    import evaluate  # noqa: F401

    def refuse(*_, **__):
        raise OSError("network used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    ser_metrics.cache_clear()
    start = time.perf_counter()
    assert ser_metrics().compute(predictions=[0, 1], references=[0, 1])["UA"] == 1
    assert time.perf_counter() - start < 5
    assert not list(tmp_path.iterdir())


def test_seeds_share_an_utterances_weight():
    once = table("aabb", "aaba")
    twice = pd.concat([once.assign(seed=0), once.assign(seed=1, prediction=list("abbb"))])
    assert score(twice) == pytest.approx((1.5 / 2 + 1.5 / 2) / 2)
    # u00000 under nine conditions, still one utterance of four
    many = pd.concat([once[:1].assign(prediction="b")] * 8 + [once])
    assert score(many, "WA") == pytest.approx((1 / 9 + 1 + 1 + 0) / 4)
    # repetitions make an interval no narrower
    assert interval(pd.concat([once] * 20)) == interval(once)


def test_interval_matches_a_bootstrap_written_out():
    rng = np.random.default_rng(1)
    label = rng.choice(LABELS, 120, p=[0.4, 0.3, 0.2, 0.1])
    frame = table(label, noisy_guesses(label, 0.5, rng))
    for metric in METRICS:
        values = [by_rows(frame, rng.integers(0, 120, 120), metric) for _ in range(1500)]
        value, low, high = interval(frame, metric, level=0.9, resamples=1500)
        assert value == pytest.approx(by_module(frame)[metric])
        assert (low, high) == pytest.approx(np.percentile(values, [5, 95]), abs=0.012)
    assert interval(frame, seed=3) == interval(frame, seed=3) != interval(frame, seed=4)


def by_rows(frame: pd.DataFrame, rows: np.ndarray, metric: str) -> float:
    label, guess = (frame[c].to_numpy()[rows] for c in ("label", "prediction"))
    hit = label == guess
    present = sorted(set(label))
    if metric == "WA":
        return hit.mean()
    if metric == "UA":
        return np.mean([hit[label == c].mean() for c in present])
    names = sorted(set(label) | set(guess))
    f1 = [2 * (hit & (label == c)).sum() / ((label == c).sum() + (guess == c).sum()) for c in names]
    return np.mean(f1) if metric == "macro_f1" else np.average(f1, weights=[(label == c).sum() for c in names])


def test_interval_covers_the_true_value_at_its_level():
    # true UA 0.6: two classes with recalls 0.7 and 0.5; 95 % of 200 draws, less three standard errors
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        hit = rng.random(150) < np.repeat([0.7, 0.5], [90, 60])
        frame = table("a" * 90 + "b" * 60, np.where(hit, list("a" * 90 + "b" * 60), list("b" * 90 + "a" * 60)))
        _, low, high = interval(frame, resamples=300, seed=trial)
        covered += low <= 0.6 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_interval_of_perfect_predictions_is_a_point():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interval(table("aabb", "aabb")) == (1, 1, 1)


def exact_p(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> float:
    """Two-sided p over all exchanges: twice the smaller tail, at most 1."""
    null = []
    for swap in itertools.product([False, True], repeat=len(a)):
        first, second = a.copy(), b.copy()
        first["prediction"] = np.where(swap, b.prediction, a.prediction)
        second["prediction"] = np.where(swap, a.prediction, b.prediction)
        rows = np.arange(len(a))
        null.append(by_rows(first, rows, metric) - by_rows(second, rows, metric))
    null, seen = np.array(null), null[0]
    return min(1, 2 * min((null >= seen - 1e-12).mean(), (null <= seen + 1e-12).mean()))


def test_unknown_metric():
    with pytest.raises(ValueError, match="unknown metric 'UAR'; choose one of WA, UA, macro_f1, WF1"):
        interval(table("ab", "ab"), "UAR")


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.6: times 4, 3, 2, 1, then never falling
    assert holm([0.02, 0.6, 0.01, 0.03]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert holm(pd.Series([0.9, 0.8])) == pytest.approx([1, 1])


def trained(hits: dict[tuple[int, int], int]) -> pd.DataFrame:
    """Four utterances a fold, all of class a; by (fold, seed) how many are recognised."""
    return pd.concat(
        table("aaaa", "a" * right + "b" * (4 - right)).assign(
            utterance=lambda t, fold=fold: f"f{fold}" + t["utterance"], fold=fold, seed=seed
        )
        for (fold, seed), right in hits.items()
    )
