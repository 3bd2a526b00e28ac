"""One trainer for every method: transformers' Trainer, fed clean and noisy views of the same speech."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from ser_kd_utils.audio import SAMPLE_RATE, AudioCache
from ser_kd_utils.losses import multi_level_loss
from ser_kd_utils.models.wav2vec2 import hidden_states, normalise
from ser_kd_utils.noise import NoiseBank, draw, keyed_rng, mix

disable_progress_bar()  # bars and notices would end up in stored notebooks
set_verbosity_error()


class Pieces(torch.utils.data.Dataset):
    """Training items: a random piece of each utterance and, with a bank, the noise it is to be mixed with.

    Piece, noise and SNR are pure functions of (utterance, seed, epoch): workers, batches and order cannot change them.
    """

    def __init__(
        self,
        audio: AudioCache,
        labels: dict[str, int],
        *,
        seed: int,
        seconds: float,
        noise: NoiseBank | None = None,
        snr_db: tuple[float, float] = (0.0, 20.0),
    ):
        """labels: class index of each utterance to train on; seconds: longest piece; noise None: clean speech."""
        self.audio, self.labels, self.utterances = audio, labels, list(labels)
        self.seed, self.longest, self.noise, self.snr_db = seed, int(seconds * SAMPLE_RATE), noise, snr_db
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        utterance = self.utterances[index]
        wave = self.audio[utterance]
        if len(wave) > self.longest:
            start = keyed_rng("piece", utterance, self.seed, self.epoch).integers(len(wave) - self.longest + 1)
            wave = wave[start : start + self.longest]
        item = {"clean": torch.from_numpy(wave), "label": self.labels[utterance]}
        if self.noise:
            kind, item["snr_db"] = draw(utterance, self.seed, self.epoch, self.noise.types, self.snr_db)
            segment = self.noise.segment(kind, "train", len(wave), utterance, self.seed, self.epoch)
            item["noise"] = torch.from_numpy(segment)
        return item


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad to the longest item: clean and noise (batch, samples), lengths, labels and snr_db (batch,)."""
    batch = {
        "clean": pad_sequence([item["clean"] for item in items], batch_first=True),
        "lengths": torch.tensor([len(item["clean"]) for item in items]),
        "labels": torch.tensor([item["label"] for item in items]),
    }
    if "noise" in items[0]:
        batch["noise"] = pad_sequence([item["noise"] for item in items], batch_first=True)
        batch["snr_db"] = torch.tensor([item["snr_db"] for item in items], dtype=torch.float64)
    return batch


class Objective(Protocol):
    """What is minimised: the sum of the named terms, each logged by its name."""

    needs_teacher: bool

    def __call__(self, batch: dict[str, Tensor], student: Any, teacher: Any, progress: float) -> dict[str, Tensor]:
        """batch: as `collate`, plus attention_mask; student, teacher: model outputs; progress: 0 to 1 of training."""


@dataclass(frozen=True)
class CrossEntropy:
    """Supervised training: no teacher."""

    needs_teacher = False

    def __call__(self, batch, student, teacher, progress):
        return {"ce": F.cross_entropy(student.logits, batch["labels"])}


@dataclass(frozen=True)
class MultiLevel:
    """MLKD: CE + gamma * mean over levels of the feature loss against the teacher's states on clean speech."""

    levels: tuple[int, ...]
    gamma: float
    cosine_weight: float
    layers: int  # of the teacher
    frame_mask: Callable[[int, Tensor], Tensor]  # (frames, attention_mask) -> (batch, frames)
    needs_teacher = True

    def __call__(self, batch, student, teacher, progress):
        targets = hidden_states(teacher, self.levels, self.layers)
        mask = self.frame_mask(targets[0].shape[1], batch["attention_mask"])
        feature = multi_level_loss(student.hidden_states, targets, mask, self.cosine_weight)
        return {"ce": F.cross_entropy(student.logits, batch["labels"]), "feature": self.gamma * feature}


class DistillationTrainer(Trainer):
    """Mixes on the training device, runs the frozen teacher on the clean view and the student on its own."""

    def __init__(self, *args, objective: Objective, teacher: nn.Module | None, dev: Callable, level: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.objective, self.dev, self.level = objective, dev, level
        # in a list: as an attribute that is a module, it could be moved or switched to training with the student
        self._teacher = [teacher.to(self.args.device)] if teacher else []
        self._terms: dict[str, list[Tensor]] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        lengths = inputs["lengths"]
        heard = inputs["clean"]
        if "noise" in inputs:
            heard = mix(heard, inputs["noise"], inputs["snr_db"], self.level, lengths)
        samples = torch.arange(heard.shape[1], device=heard.device)
        inputs["attention_mask"] = (samples < lengths[:, None]).long()
        student = model(normalise(heard, lengths), attention_mask=inputs["attention_mask"])
        teacher = self._teach(inputs) if self.objective.needs_teacher else None
        progress = self.state.global_step / max(self.state.max_steps, 1)
        terms = self.objective(inputs, student, teacher, progress)
        for name, value in terms.items():
            self._terms.setdefault(name, []).append(value.detach())
        loss = sum(terms.values())
        return (loss, student) if return_outputs else loss

    @torch.no_grad()
    def _teach(self, inputs):
        (teacher,) = self._teacher
        assert not teacher.training, "The teacher was switched to training mode."
        clean = normalise(inputs["clean"], inputs["lengths"])
        return teacher(clean, attention_mask=inputs["attention_mask"], output_hidden_states=True)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Dev scores from the same code that scores the test speech."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.dev(self.model).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._terms.items()}
            self._terms.clear()
        super().log(logs, start_time)


@dataclass(frozen=True)
class Fitted:
    """A trained network (best epoch by dev UA, loaded) with its history."""

    model: nn.Module
    history: pd.DataFrame  # index epoch; columns loss, its terms, UA and WA on dev
    best_epoch: int
    last: dict[str, Tensor]  # weights after the last epoch
    seconds: float
    peak_memory_mb: float


def fit(
    model: nn.Module,
    objective: Objective,
    train: Pieces,
    dev: Callable[[nn.Module], dict[str, float]],
    settings: Any,
    *,
    groups: Sequence[dict[str, Any]],
    level: str,
    seed: int,
    folder: Path,
    teacher: nn.Module | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fitted:
    """Train to the last epoch and return the weights of the epoch with the highest dev UA (the first among equals).

    dev: model -> {"UA": ..., "WA": ...}; settings: epochs, batch_size, weight_decay, betas, warmup, clip, precision;
    groups: AdamW parameter groups with their learning rates; level: the mixing's speech level; folder: for checkpoints,
    removed at the end.
    """
    shutil.rmtree(folder, ignore_errors=True)  # what a killed training left
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        warmup_steps=settings.warmup,
        lr_scheduler_type="linear",
        max_grad_norm=settings.clip,
        bf16=settings.precision == "bf16" and on_gpu,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        logging_strategy="epoch",
        save_total_limit=2,  # the best and the last: with 1 the Trainer deletes the last at the end
        load_best_model_at_end=True,
        metric_for_best_model="UA",
        greater_is_better=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    optimiser = torch.optim.AdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay)
    trainer = DistillationTrainer(
        model,
        arguments,
        objective=objective,
        teacher=teacher,
        dev=dev,
        level=level,
        train_dataset=train,
        eval_dataset=train,  # demanded by the Trainer; `evaluate` scores the dev speech instead
        data_collator=collate,
        optimizers=(optimiser, None),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # or tests would run in mixed precision
    last = load_file(Path(get_last_checkpoint(str(folder))) / "model.safetensors")
    steps_per_epoch = trainer.state.max_steps // settings.epochs
    shutil.rmtree(folder)
    return Fitted(
        model=model.eval(),
        history=_history(trainer.state.log_history),
        best_epoch=trainer.state.best_global_step // steps_per_epoch,
        last=last,
        seconds=seconds,
        peak_memory_mb=_peak_memory_mb(),
    )


def _history(log: Sequence[dict[str, float]]) -> pd.DataFrame:
    epochs: dict[int, dict[str, float]] = {}
    for entry in log:
        if "loss" in entry or "eval_UA" in entry:
            scores = {name.replace("eval_", "dev_"): value for name, value in entry.items()}
            epochs.setdefault(round(scores.pop("epoch")), {}).update(scores)
    table = pd.DataFrame.from_dict(epochs, orient="index").rename_axis("epoch")
    return table.drop(columns=["grad_norm", "learning_rate", "step"], errors="ignore")


def _peak_memory_mb() -> float:
    """Of this training on the GPU where there is one, else of the process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
