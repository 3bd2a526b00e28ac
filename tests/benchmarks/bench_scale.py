"""Does time grow with the corpus, and memory not at all? A stand-in of IEMOCAP, from its files to the test scores.

Run from the project's root: python tests/benchmarks/bench_scale.py ../shared/data/metadata/iemocap_4class_ids.csv
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import wave
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from ser_kd_utils.data.audio import SAMPLE_RATE, cache_audio
from ser_kd_utils.data.corpora import load_corpus
from ser_kd_utils.methods.dkdfmh.experiment import DKDFMHExperiment
from ser_kd_utils.methods.mckd.experiment import MCKDExperiment
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.methods.teacher.encoders import freeze
from ser_kd_utils.methods.teacher.experiment import TeacherExperiment
from ser_kd_utils.training.evaluation import grid

METHODS = ("MLKD", "DKDFMH", "MCKD")


def write_corpus(ids: pd.DataFrame, root: Path) -> None:
    """IEMOCAP's tree: the true ids, labels and durations; the sound is noise with a rhythm of syllables."""
    rng = np.random.default_rng(0)
    moments = np.arange(120 * SAMPLE_RATE)
    loudness = 1000 * np.sin(np.pi * 4 * moments / SAMPLE_RATE) ** 2 + 10
    sound = (rng.standard_normal(len(moments)) * loudness).astype("<i2")
    for dialog, turns in ids.groupby(ids.utterance.str.rsplit("_", n=1).str[0]):
        session = root / f"Session{dialog[4]}"
        folder, tables = session / "sentences" / "wav" / dialog, session / "dialog" / "EmoEvaluation"
        folder.mkdir(parents=True)
        tables.mkdir(parents=True, exist_ok=True)
        lines = [
            f"[0.0 - {turn.seconds}]\t{turn.utterance}\t{turn.label_iemocap}\t[2.5, 2.5, 2.5]\n"
            for turn in turns.itertuples()
        ]
        (tables / f"{dialog}.txt").write_text("".join(lines))
        for turn in turns.itertuples():
            start = rng.integers(len(sound) - turn.frames_16k)
            with wave.open(str(folder / f"{turn.utterance}.wav"), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes(sound[start : start + turn.frames_16k].tobytes())


def part_of(ids: pd.DataFrame, size: Fraction) -> pd.DataFrame:
    """Every so-manieth utterance, so that all sessions, dialogs and classes are there, and each session's longest."""
    ids = ids.sort_values("utterance", ignore_index=True)
    chosen = {*ids.index[:: size.denominator], *ids.groupby("session").seconds.idxmax()}
    return ids.loc[sorted(chosen)]


def workload(root: Path, methods: Collection[str], every: int) -> Iterator[tuple[str, int]]:
    """Stage by stage: its name and the utterances that came through, as soon as it is done.

    methods: of METHODS, those whose training sets are gone through; every: so-manieth test utterance is scored.
    """
    yield "imports", 0
    corpus = load_corpus("iemocap", root)
    yield "corpus read", len(corpus.manifest)
    yield "cache written", len(cache_audio(corpus))
    mlkd, cnn, tokens = (
        kind("iemocap", "tiny", data_root=str(root)) for kind in (MLKDExperiment, DKDFMHExperiment, MCKDExperiment)
    )
    yield "three experiments opened, noise generated", len(mlkd.train) + len(mlkd.dev) + len(mlkd.test)
    if "MLKD" in methods:
        outputs = mlkd.teachers.outputs(mlkd.settings.teacher_layers)
        yield "MLKD: teacher's outputs", len(outputs.logits)
        yield "MLKD: epoch of windows in noise", epoch(mlkd.dataset("e"), mlkd.settings.batch_size)
    for name in ("cnn-alone", "cnn-alone-noisy") if "DKDFMH" in methods else ():
        data = cnn.dataset(name)
        cnn.new_network(name).fit_normalisation(cnn.features(name, data))
        items = epoch(data, cnn.settings.batch_size)
        assert items == len(data)
        yield f"DKDFMH: epoch of segments{' in noise' if data.noise else ''}", len({u for u, _ in data.windows})
    for name in ("mc-alone", "mc-alone-noisy") if "MCKD" in methods else ():
        data = tokens.dataset(name)
        items = epoch(data, tokens.settings.batch_size)
        assert items == len(data.sampler(tokens.settings.batch_size))
        yield f"MCKD: epoch of {'utterances in noise' if 'noisy' in name else 'features'}", len(data)
    conditions = grid(mlkd.noise.types, mlkd.noise_settings.test_snr_db)
    table = mlkd._predict(mlkd.student("c").student, mlkd.test[::every], lambda _: conditions, "test")
    assert len(table) == len(mlkd.test[::every]) * len(conditions)
    yield f"scores of the test, {len(conditions)} conditions", table.utterance.nunique()


def epoch(data: torch.utils.data.Dataset, size: int) -> int:
    """Goes through the loader once; returns the items that came."""
    loader = DataLoader(data, size, sampler=data.sampler(size), collate_fn=data.collate)
    return sum(len(batch["labels"]) for batch in loader)


class Peak(threading.Thread):
    """Peak of the process's anonymous memory, in MB: unlike its resident memory, without what is mapped from files."""

    def __init__(self):
        super().__init__(daemon=True)
        self.highest = 0.0

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.005)

    def look(self) -> None:
        status = Path("/proc/self/status").read_text()
        self.highest = max(self.highest, int(status.split("RssAnon:")[1].split()[0]) / 1024)

    def take(self) -> float:
        """The peak so far; begins anew."""
        self.look()
        highest, self.highest = self.highest, 0.0
        return highest


def measure(root: Path, methods: Collection[str], every: int) -> list[dict[str, Any]]:
    """A row for each stage: utterances, processor and wall seconds, peak anonymous MB and, so far, peak resident MB."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "iemocap differs from the published counts")
    peak, rows, started = Peak(), [], clocks()
    peak.start()
    untrained = mock.patch.object(TeacherExperiment, "teacher", lambda self, *_, **__: freeze(self.new_network()))
    with untrained:
        for stage, utterances in workload(root, methods, every):
            seconds, wall = clocks() - started
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append({"stage": stage, "utterances": utterances, "s": seconds, "wall": wall})
            rows[-1] |= {"anonymous": peak.take(), "resident": resident}
            started = clocks()
    return rows


def clocks() -> np.ndarray:
    """Processor seconds, which other programs disturb less, and wall seconds."""
    return np.array([time.process_time(), time.perf_counter()])


def in_fresh_process(ids: pd.DataFrame, methods: Collection[str] = METHODS, every: int = 1) -> pd.DataFrame:
    """What `measure` finds of a stand-in with these utterances, by stage; nothing of it stays on the disk."""
    with tempfile.TemporaryDirectory(prefix="ser-kd-scale-") as folder:
        root, places = Path(folder, "iemocap"), {"SER_KD_CACHE": folder, "SER_KD_RESULTS": folder, "TMPDIR": folder}
        write_corpus(ids, root)
        command = [sys.executable, __file__, str(root), "--measure", ",".join(methods), "--every", str(every)]
        done = subprocess.run(command, env=os.environ | places, stdout=subprocess.PIPE, text=True, check=True)
    return pd.DataFrame(json.loads(done.stdout)).set_index("stage")


def report(found: dict[str, pd.DataFrame], hours: dict[str, float]) -> None:
    """Two tables: seconds and peak memory, by stage and size."""
    first, last = list(found)[0], list(found)[-1]
    ratio = f"{last} : {first}"
    stages = found[first].index[1:]
    seconds = pd.DataFrame({size: rows.s[stages] for size, rows in found.items()})
    seconds.loc["all"] = seconds.sum()
    seconds.loc["all, wall"] = {size: rows.wall[stages].sum() for size, rows in found.items()}
    times = pd.DataFrame({size: [f"{s:.1f} ({s / hours[size]:.1f})" for s in seconds[size]] for size in found})
    times.index = seconds.index
    times[ratio] = (seconds[last] / seconds[first]).map("{:.1f}".format)
    memory = pd.DataFrame(
        {
            size: [f"{row.anonymous:.0f} ({row.resident:.0f})" for row in rows.itertuples()]
            for size, rows in found.items()
        },
        index=found[first].index,
    )
    memory[ratio] = (found[last].anonymous / found[first].anonymous).map("{:.2f}".format)
    corpus = ", ".join(f"{size}: {rows.utterances.iloc[1]}, {hours[size]:.2f} h" for size, rows in found.items())
    print(f"utterances and audio: {corpus}\n")
    print(times.rename_axis("processor s (s an hour of the corpus)").to_markdown(disable_numparse=True))
    print(f"\nlinear is {hours[last] / hours[first]:.1f}\n")
    print(memory.rename_axis("peak MB, anonymous (ru_maxrss so far)").to_markdown(disable_numparse=True))
    print("\nflat is 1")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "ids", help="CSV file of IEMOCAP's ids: utterance, session, label_iemocap, seconds, frames_16k"
    )
    options.add_argument("--sizes", default="1/8,1/4,1/2,1")
    options.add_argument("--every", type=int, default=1, help="so-manieth test utterance to score")
    options.add_argument("--measure", metavar="METHODS", help="one process's part: `ids` is a stand-in's root")
    asked = options.parse_args()
    if asked.measure:
        print(json.dumps(measure(Path(asked.ids), asked.measure.split(","), asked.every)))
        return
    ids = pd.read_csv(asked.ids)
    parts = {size: part_of(ids, Fraction(size)) for size in asked.sizes.split(",")}
    found = {size: in_fresh_process(part, every=asked.every) for size, part in parts.items()}
    if asked.every > 1:
        print(f"scored: every {asked.every}th test utterance")
    report(found, {size: part.seconds.sum() / 3600 for size, part in parts.items()})


if __name__ == "__main__":
    main()
