"""Is the small CNN of DKDFMH starved by its loader? Segments a second, against a batch that is always ready.

Run from the project's root: python tests/benchmarks/bench_segments.py [--profile paper]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ser_kd_utils.decoupled import DecoupledExperiment
from ser_kd_utils.losses import decoupled_kd
from ser_kd_utils.segments import Segments
from ser_kd_utils.training import Decoupled, cross_entropy, fit


def loaded(data: Segments, size: int) -> Iterator[dict[str, Tensor]]:
    for epoch in itertools.count():
        data.set_epoch(epoch)
        yield from DataLoader(data, size, sampler=data.sampler(size), collate_fn=data.collate, drop_last=True)


def plain_steps(experiment: DecoupledExperiment, batches: Iterator[dict[str, Tensor]], steps: int) -> Callable:
    """`steps` training steps of the student on these batches, without any trainer."""
    network = experiment.new_network("cnn-dkd").train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)

    def train() -> None:
        for batch in itertools.islice(batches, steps):
            logits = network(**batch["given"]).logits
            parts = decoupled_kd(logits, batch["teacher_logits"], batch["labels"])
            (cross_entropy(logits, batch["labels"]) + sum(parts)).backward()
            optimiser.step()
            optimiser.zero_grad()

    return train


def whole_training(experiment: DecoupledExperiment, data: Segments, folder: Path) -> Callable:
    """One epoch by the package's trainer, which also logs, scores (nothing, here) and keeps the epoch's weights."""
    network, settings = experiment.new_network("cnn-dkd"), experiment.settings_of("cnn-dkd")

    def train() -> None:
        fit(
            network, Decoupled(settings), data, lambda _: {"UA": 0.5, "WA": 0.5}, settings,
            optimiser=torch.optim.Adam(network.parameters(), 1e-3), schedule=lambda _: 1.0, level="active", seed=0,
            folder=folder,
        )  # fmt: skip

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        experiment = DecoupledExperiment(profile=asked.profile, results=folder, changes="dkd__epochs=1")
        data = experiment.segments("cnn-alone")
        data.teacher_logits = torch.randn(len(data), len(experiment.labels))
        size = experiment.settings.batch_size
        steps = len(data) // size
        ready = next(loaded(data, size))
        ways = {
            "one batch, always ready": plain_steps(experiment, itertools.repeat(ready), steps),
            "the loader": plain_steps(experiment, loaded(data, size), steps),
            "the loader and the whole trainer": whole_training(experiment, data, Path(folder) / "checkpoints"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat, (name, train) in itertools.product(range(asked.repeats + 1), ways.items()):
            started = time.process_time() if not torch.cuda.is_available() else time.monotonic()
            train()
            spent = (time.process_time() if not torch.cuda.is_available() else time.monotonic()) - started
            seconds[name] += [spent] if repeat else []  # the first warms up
        counts = dict.fromkeys(ways, steps * size) | {"the loader and the whole trainer": len(data)}
        rates = {name: counts[name] / sorted(seconds[name])[asked.repeats // 2] for name in ways}
        first = next(iter(rates.values()))
        table = pd.DataFrame(
            {
                "segments/s": pd.Series(rates).round(),
                "of the ready batch": {n: f"{r / first:.0%}" for n, r in rates.items()},
            }
        )
        print(table.rename_axis("fed by").to_markdown())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
