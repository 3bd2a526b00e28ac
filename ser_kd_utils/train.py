"""Single rows without a notebook: what torchrun starts where a training is to have several GPUs."""

from __future__ import annotations

from argparse import Namespace

from ser_kd_utils.decoupled import DecoupledExperiment
from ser_kd_utils.meta_curriculum import MetaCurriculumExperiment
from ser_kd_utils.recipes import Experiment
from ser_kd_utils.study import Study
from ser_kd_utils.training import processes


def train(options: Namespace) -> int:
    """Train the rows that are not recorded yet; notebooks then find their records.

    Raises ValueError for a row of no method, and where --protocol is not of the row's method.
    """
    for row in options.rows:
        run = _study(row, options).run(row)
        if processes().is_main_process:
            print(f"{row}: epoch {run.info['best_epoch']} in {run.folder}", flush=True)
    return 0


def _study(row: str, options: Namespace) -> Study:
    names = ("corpus", "profile", "fold", "seed", "data_root", "noise_dir", "results", "changes")
    common = {name: getattr(options, name) for name in names}
    if row.startswith("cnn-"):
        own = {"protocol": options.protocol or "P2", "teacher_logits": options.teacher_logits}
        return DecoupledExperiment(**common, **own)
    if options.protocol:
        raise ValueError(f"--protocol {options.protocol} is of the rows cnn-..., not of {row}.")
    if row.startswith("mc-"):
        return MetaCurriculumExperiment(**common)
    return Experiment(**common, speech_dir=options.speech_dir)
