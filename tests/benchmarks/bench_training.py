"""One student of MLKD, row (e) of EMO-DB's fold 1, trained plainly and as the package does it: time and dev UA.

Run from the project's root: python tests/benchmarks/bench_training.py ../shared/data/emodb ../shared/data/noise
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.training import experiment as shared
from ser_kd_utils.training.loop import Fitted, fit

WHOLE = {"max_seconds": 60.0}  # more than any utterance has
PLAIN = "whole, padded to the longest of all; teacher at each step"
VARIANTS = {
    PLAIN: WHOLE | {"targets": "piece"},
    "whole, batches of similar length; teacher at each step": WHOLE | {"targets": "piece"},
    "whole, batches of similar length; teacher once": WHOLE,
    "windows of 2 s, batches of similar length; teacher once": {},
}
if torch.cuda.is_available():
    VARIANTS["... and in mixed precision"] = {"precision": "bf16"}


class Watch:
    """Seconds spent in the functions it is put on."""

    def __init__(self):
        self.seconds = 0.0

    def on(self, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            started = clock()
            result = function(*args, **kwargs)
            self.seconds += clock() - started
            return result

        return timed


def clock() -> float:
    """Processor seconds, which other programs disturb less than wall time; of a GPU wall seconds."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data_root", help="EMO-DB")
    options.add_argument("noise_dir", help="noise recordings")
    options.add_argument("--epochs", type=int, help="of teacher and students, fewer than the profile's to save time")
    asked = options.parse_args()
    torch.set_num_threads(1)
    overrides = "noise.test_snr_db=(5.0,)"  # saves time: no test score is looked at
    if asked.epochs:
        overrides += f", mlkd.epochs={asked.epochs}, teacher.epochs={asked.epochs}"
    with tempfile.TemporaryDirectory() as results:
        experiment = MLKDExperiment("emodb", "tiny", 1, 0, asked.data_root, asked.noise_dir, results, overrides)
        row = experiment.variants["e"]
        for number, changed in enumerate(VARIANTS.values(), 1):
            experiment.variants[f"{number}"] = dataclasses.replace(row, name=f"{number}", overrides=changed)
        report(experiment)


def report(experiment: MLKDExperiment) -> None:
    experiment.teachers.teacher()  # trained before anything is timed
    once = Watch()
    once.on(experiment.teachers.outputs)(experiment.settings.teacher_layers)
    measured = [measure(experiment, number, title, once.seconds) for number, title in enumerate(VARIANTS, 1)]
    table = pd.DataFrame(measured)
    table.insert(4, "faster", table["s"].iloc[0] / table["s"])
    seconds = [experiment.audio.seconds(utterance) for utterance in experiment.train]
    print(
        f"{len(seconds)} utterances, {np.mean(seconds):.1f} s on average; longest of the corpus "
        f"{longest(experiment) / SAMPLE_RATE:.1f} s; {experiment.settings.epochs} epochs\n"
    )
    print(table.to_markdown(index=False, tablefmt="github", floatfmt=".1f"))
    each = table["teacher's"].iloc[1]
    print(f"\nThe teacher of n students: {once.seconds:.1f} s once, or n x {each:.1f} s at each step.")


def measure(experiment: MLKDExperiment, number: int, title: str, once: float) -> dict[str, Any]:
    """A line of the table; once: the teacher's pass, counted in full where the student learns from it."""
    whole, dev, teacher = Watch(), Watch(), Watch()

    def watched(model, objective, train, score, settings, **rest) -> Fitted:
        if asked := rest.get("teacher"):
            asked.forward = teacher.on(asked.forward)
        if title == PLAIN:
            samples = longest(experiment)
            train.lengths = [samples] * len(train)  # all alike, hence shuffled and not grouped
            train.collate = partial(padded, samples=samples)
        return whole.on(fit)(model, objective, train, dev.on(score), settings, **rest)

    with mock.patch.object(shared, "fit", watched):
        history = experiment.run(f"{number}").history
    stored = 0.0 if teacher.seconds else once
    seconds = whole.seconds - dev.seconds + stored
    return {
        "utterances": title,
        "s": seconds,
        "teacher's": teacher.seconds + stored,
        "utterances/s": len(experiment.train) * len(history) / seconds,
        "best dev UA": 100 * history["dev_UA"].max(),
        "last 3": 100 * history["dev_UA"].tail(3).mean(),
    }


def longest(experiment: MLKDExperiment) -> int:
    """Samples of the corpus's longest utterance."""
    return max(len(experiment.audio[utterance]) for utterance in experiment.audio.utterances)


def padded(batch: dict[str, Any], samples: int) -> dict[str, Any]:
    """The batch with zeros up to `samples`."""
    more = samples - batch["clean"].shape[1]
    return batch | {name: F.pad(batch[name], (0, more)) for name in ("clean", "noise")}


if __name__ == "__main__":
    main()
