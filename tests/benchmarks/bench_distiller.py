"""One step of multi-level distillation, as the package does it and after s3prl's published recipe for DistilHuBERT.

Both steps get the same networks (of wav2vec2-base's shape, random weights) and the same utterances in the same noise.
s3prl's recipe (pretrain/distiller) is written down here: the clean batch goes through the teacher at each step, the
student's last layer through a head for each level, then L1 and the log-sigmoid of the cosine, clipping and AdamW.
The package adds cross-entropy and reads the teacher's states, which one pass has stored before the first epoch.

Run from the project's root: python tests/benchmarks/bench_distiller.py   (about 3 minutes)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForAudioClassification, Wav2Vec2Config

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.methods.mlkd.loss import MultiLevel
from ser_kd_utils.methods.mlkd.model import DistilledStudent, scale_cnn_gradient
from ser_kd_utils.methods.mlkd.settings import MLKDSettings
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.training.dataset import SpeechDataset, noisy_input, teacher_outputs
from ser_kd_utils.training.loop import forward

ITEMS, SECONDS, BATCH, ROUNDS, LEVELS = 24, 3, 4, 8, (4, 8, 12)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Wav2Vec2Config(num_labels=4, layerdrop=0.0, apply_spec_augment=False)
    teacher = encoders.freeze(AutoModelForAudioClassification.from_config(config))
    rng = np.random.default_rng(0)
    audio = {f"u{k}": 0.1 * rng.standard_normal(SECONDS * SAMPLE_RATE).astype(np.float32) for k in range(ITEMS)}
    bank, inputs = NoiseBank.generated([*audio.values()]), encoders.inputs_of(config)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        told = teacher_outputs(teacher, inputs.prepare_inputs, audio, [*audio], LEVELS, Path(folder, "teacher"))
        once = 1e3 * (time.process_time() - began) / ITEMS * BATCH
        data = SpeechDataset(
            audio=audio, classes={name: k % 4 for k, name in enumerate(audio)}, seed=0, longest=SECONDS * SAMPLE_RATE,
            noise=bank, types=bank.types, states=told, layers=LEVELS,
            targets={"teacher_logits": torch.stack([told.logits[name] for name in audio])},
        )  # fmt: skip
        student = encoders.first_layers(teacher, 2)
        scale_cnn_gradient(student, 0.1)
        networks = [DistilledStudent(deepcopy(student), LEVELS, config.hidden_size).train() for _ in range(3)]
        times = measure(
            {
                "s3prl's recipe": partial(recipe, networks[0], teacher, inputs),
                "the package, teacher asked at each step": package(networks[1], inputs, teacher),
                "the package, teacher asked once": package(networks[2], inputs, None),
            },
            data,
        )
    report(times, once)


def recipe(network: nn.Module, teacher: nn.Module, inputs, batch: dict, optimizer: torch.optim.Optimizer) -> None:
    """s3prl's step; it has no labels, so no cross-entropy."""
    optimizer.zero_grad()
    with torch.no_grad():
        clean = inputs.prepare_inputs(batch["clean"], batch["lengths"])
        states = teacher(**clean, output_hidden_states=True).hidden_states
        targets = torch.stack([states[level] for level in LEVELS], dim=1)
    noisy = inputs.prepare_inputs(noisy_input(batch, "active"), batch["lengths"])
    predictions = torch.stack(network(**noisy).hidden_states, dim=1)  # (batch, levels, frames, width)
    loss = F.l1_loss(predictions, targets) - F.logsigmoid(F.cosine_similarity(predictions, targets, dim=-1)).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()


def package(network: nn.Module, inputs, teacher: nn.Module | None) -> Callable:
    """The package's step, as `training.loop.fit` takes it."""
    use = MLKDSettings.of("paper", teacher_layers=LEVELS)
    objective = MultiLevel(use, 12, partial(encoders.frame_mask, network.student))
    how = {"prepare_inputs": inputs.prepare_inputs, "speech_level": "active", "teacher": teacher}

    def step(batch: dict, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        terms, _ = forward(network, objective, dict(batch), **how)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), use.max_grad_norm)
        optimizer.step()

    step.network = network
    return step


def measure(steps: dict[str, Callable], data: SpeechDataset) -> dict[str, np.ndarray]:
    """Processor milliseconds of each step's rounds; the steps in turn, so that other load meets them all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    networks = {name: getattr(step, "network", None) or step.args[0] for name, step in steps.items()}
    optimizers = {name: torch.optim.AdamW(each.parameters(), 1e-4) for name, each in networks.items()}
    for number in range(ROUNDS + 1):
        batch = data.batch([(BATCH * number + k) % ITEMS for k in range(BATCH)])
        for name, step in steps.items():
            began = time.process_time()
            step(batch, optimizers[name])
            times[name].append(1e3 * (time.process_time() - began))
    return {name: np.array(each[1:]) for name, each in times.items()}  # the first warms up


def report(times: dict[str, np.ndarray], once: float) -> None:
    first = np.median(times["s3prl's recipe"])
    print(f"{f'{BATCH} x {SECONDS} s, one thread':42} {'processor ms a step':>20} {'times faster':>13}")
    for name, each in times.items():
        print(f"{name:42} {np.median(each):20.0f} {first / np.median(each):13.1f}")
    print(f"\nAsking the teacher once costs {once:.0f} ms for a batch, in all epochs and students together.")


if __name__ == "__main__":
    main()
