"""Tables of meta-knowledge and curriculum distillation into a variable-token student, from records.

Scores are those of clean speech unless a column says noisy; intervals, runs and "noisy" as in `tables`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ser_kd_utils.ablation_tables import (
    PARTS,
    claims_among,
    comparisons,
    noise_table,
    percent_of,
    rows_together,
    shared,
)
from ser_kd_utils.metrics import interval, score
from ser_kd_utils.records import Run, predictions
from ser_kd_utils.rows import EVERY_ROW, TOKEN_ROWS
from ser_kd_utils.tables import (
    clean_part,
    command,
    compared,
    design,
    noisy_part,
    percent,
    published_values,
    verdicts,
)

FULL = "mc-full"
METRICS = ("WA", "UA", "WF1")
PAIRS = (
    ("mc-supcon", "mc-alone"),
    ("mc-kd", "mc-supcon"),
    ("mc-curriculum", "mc-kd"),
    ("mc-meta", "mc-kd"),
    (FULL, "mc-kd"),
    (FULL, "mc-alone"),
    (FULL, "mc-supcon"),
)
NOISE_PAIRS = {
    FULL: "mc-alone",
    "mc-z-score": FULL,
    "mc-alone-noisy": "mc-alone",
    "mc-kd-noisy": "mc-alone-noisy",
    "mc-full-noisy": "mc-kd-noisy",
}
"""Of the rows compared in noise, the one each is tested against."""
NOISE_ROWS = ("mc-alone", *NOISE_PAIRS)
CLAIMS = (
    ("drawing each class together (SupCon) helps", "mc-supcon", "mc-alone", "clean"),
    ("a teacher helps", "mc-kd", "mc-supcon", "clean"),
    ("a curriculum of the temperature helps", "mc-curriculum", "mc-kd", "clean"),
    ("a curriculum that moves beats one that stays at its start", "mc-curriculum", "mc-kd-start", "clean"),
    ("temperatures learnt on held-out speech help", "mc-meta", "mc-kd", "clean"),
    ("both together help more than a fixed temperature", FULL, "mc-kd", "clean"),
    ("the whole method helps the student", FULL, "mc-alone", "clean"),
    ("a teacher that learns from the student beats the fixed one", "mc-taught-teacher", "mc-kd", "clean"),
    ("variable tokens beat time tokens", FULL, "mc-time-tokens", "clean"),
    ("the teacher's features beat log-mel", FULL, "mc-log-mel", "clean"),
    ("a student without level cues bears noise better", "mc-z-score", FULL, "noisy"),
    ("training in noise helps in noise", "mc-alone-noisy", "mc-alone", "noisy"),
    ("a clean teacher helps in noise, after training in noise", "mc-kd-noisy", "mc-alone-noisy", "noisy"),
    ("so do curriculum and meta-knowledge", "mc-full-noisy", "mc-kd-noisy", "noisy"),
)
"""What the paper claims, or follows from it; the row that should be better, the other one, the speech to test on."""


def mckd_table(runs: Sequence[Run], changes: str = "") -> pd.DataFrame:
    """The main rows and, below them, what always answering the commonest class scores; in percent.

    The published scores are those of another corpus unless this is IEMOCAP or MELD, and second-hand. changes: as for
    `mlkd_table`.
    """
    records = []
    for row in TOKEN_ROWS:
        own = [run for run in runs if run.info["row"] == row]
        if not own:
            continue
        table, info = predictions(own), own[0].info
        clean = clean_part(table)
        trained = pd.DataFrame([run.info for run in own])[["fold", "seed"]]
        records.append(
            {"row": row, "model": info["title"], "parameters": f"{info['parameters'] / 1e6:.2f}M"}
            | {metric: percent(interval(clean, metric)) for metric in METRICS}
            | {"UA noisy": percent(interval(noisy_part(table))), "published": _published() if row == FULL else ""}
            | {"folds x seeds": design(table), "command": command(own[0], trained, changes)}
        )
    return pd.DataFrame([*records, _floor(clean, records[-1])]) if records else pd.DataFrame()


def _floor(clean: pd.DataFrame, last: dict) -> dict:
    """The line of a model that always answers the commonest class of what is tested."""
    commonest = clean["label"].mode()[0]
    guess = clean.assign(prediction=commonest)
    scores = {metric: f"{100 * score(guess, metric):.1f}" for metric in METRICS}
    return (
        dict.fromkeys(last, "")
        | {"row": "floor", "model": f"always {commonest}"}
        | scores
        | {key: last[key] for key in ("folds x seeds", "command")}
    )


def _published() -> str:
    table = published_values("taffc2025_results").dropna(subset="value")
    found = table.groupby("dataset").apply(
        lambda part: " / ".join(
            f"{metric} {value:.1f}" for metric, value in zip(part["metric"], part["value"], strict=True)
        )
    )
    return f"{'; '.join(f'{dataset} {scores}' for dataset, scores in found.items())} (second-hand)"


def comparison_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Differences of UA in points between main rows in clean speech, Holm-corrected over the table."""
    points = "UA, points"
    found = comparisons(runs, [(*pair, "clean") for pair in PAIRS], points)
    return verdicts(found, ["rows", "speech", points], "first is better", "second is better")


def ablation_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Each row with one part changed against the row in `against`, on the folds and seeds both have.

    UA in percent, clean and noisy; the difference that is tested is that of clean speech.
    """
    points = "difference, points"
    rows = {run.info["row"]: run.info for run in runs if run.info["group"] == "mc-part"}
    order, records = list(EVERY_ROW), []
    for name in sorted(rows, key=lambda name: order.index(name) if name in order else len(order)):
        info = rows[name]
        if tables := shared(runs, name, info["against"]):
            clean, against = (PARTS["clean"](table) for table in tables)
            scores = {"UA clean": percent_of(clean), "UA noisy": percent_of(noisy_part(tables[0]))}
            line = {"row": info["title"], "question": info["question"], "against": info["against"]}
            records.append(line | scores | compared(clean, against, points))
    return verdicts(records, ["row", "question", "against", "UA clean", "UA noisy", points], "better", "worse")


def noise_rows(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Predictions of the rows compared in noise, on the folds and seeds that those recorded share."""
    return rows_together(runs, NOISE_ROWS)


def mckd_noise_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The rows compared in noise: see `ablation_tables.noise_table`."""
    return noise_table(noise_rows(runs), NOISE_PAIRS)


def mckd_claims_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Each claim whose rows are recorded, with its test: see `ablation_tables.claims_among`."""
    return claims_among(runs, CLAIMS)


def temperatures(runs: Sequence[Run]) -> pd.DataFrame:
    """Temperatures of student and teacher by row and epoch, (row, epoch) x (tau_student, tau_teacher), mean of runs."""
    names = ["tau_student", "tau_teacher"]
    found = [run.history[names].assign(row=run.info["row"]) for run in runs if names[0] in run.history]
    return pd.concat(found).groupby(["row", "epoch"], sort=False).mean() if found else pd.DataFrame(columns=names)


def class_distances(embeddings: np.ndarray, labels: Sequence[str]) -> float:
    """Silhouette in [-1, 1] of L2-normalised embeddings (utterances, width): how far apart the classes lie."""
    from sklearn.metrics import silhouette_score
    from sklearn.preprocessing import normalize

    return float(silhouette_score(normalize(embeddings), labels))
