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
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from ser_kd_utils.losses import kd_loss, multi_level_loss
from ser_kd_utils.models.wav2vec2 import hidden_states, normalise
from ser_kd_utils.noise import mix
from ser_kd_utils.pieces import UNLABELLED, Buckets, Pieces, collate
from ser_kd_utils.settings import MLKDSettings

disable_progress_bar()  # bars and notices would end up in stored notebooks
set_verbosity_error()


class Objective(Protocol):
    """What is minimised: the sum of the named terms, each logged by its name."""

    def __call__(self, batch: dict[str, Tensor], student: Any, teacher: Any, progress: float) -> dict[str, Tensor]:
        """batch: as `collate`, plus attention_mask; student: model output; teacher: model output at this step, or None
        where the batch holds its targets or there is no teacher; progress: 0 to 1 of training.
        """


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled items of a batch; 0 where it has none."""
    total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp_min(1)


@dataclass(frozen=True)
class CrossEntropy:
    """Supervised training: no teacher."""

    def __call__(self, batch, student, teacher, progress):
        return {"ce": cross_entropy(student.logits, batch["labels"])}


@dataclass(frozen=True)
class MultiLevel:
    """MLKD: CE + gamma * mean over levels of the feature loss against the teacher's states (+ logit distillation).

    settings: gamma, l1_weight, cosine_weight, logit_weight, temperature, and stages: "joint", or "two-stage", which
    turns from the teacher to the labels at half of the training.
    """

    settings: MLKDSettings
    levels: tuple[int, ...]
    layers: int  # of the teacher
    frame_mask: Callable[[int, Tensor], Tensor]  # (frames, attention_mask) -> (batch, frames)

    def __call__(self, batch, student, teacher, progress):
        use = self.settings
        if teacher is None:
            targets, logits = batch["states"].float().unbind(2), batch["teacher_logits"]
        else:
            targets, logits = hidden_states(teacher, self.levels, self.layers), teacher.logits
        mask = self.frame_mask(targets[0].shape[1], batch["attention_mask"])
        feature = multi_level_loss(student.hidden_states, targets, mask, use.cosine_weight, use.l1_weight)
        terms = {"ce": cross_entropy(student.logits, batch["labels"]), "feature": use.gamma * feature}
        if use.logit_weight:
            terms["logits"] = use.logit_weight * kd_loss(student.logits, logits, use.temperature)
        if use.stages == "two-stage":
            now = {"ce"} if progress >= 0.5 else terms.keys() - {"ce"}
            terms = {name: term * (name in now) for name, term in terms.items()}
        return terms


class DistillationTrainer(Trainer):
    """Mixes on the training device; asks a teacher at each step where its targets were not computed before."""

    def __init__(
        self,
        *args,
        objective: Objective,
        dev: Callable,
        level: str,
        teacher: nn.Module | None = None,
        teacher_hears_noise: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.objective, self.dev, self.level, self.teacher_hears_noise = objective, dev, level, teacher_hears_noise
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
        teacher = self._teach(heard if self.teacher_hears_noise else inputs["clean"], inputs) if self._teacher else None
        progress = self.state.global_step / max(self.state.max_steps, 1)
        terms = self.objective(inputs, student, teacher, progress)
        for name, value in terms.items():
            self._terms.setdefault(name, []).append(value.detach())
        loss = sum(terms.values())
        return (loss, student) if return_outputs else loss

    @torch.no_grad()
    def _teach(self, heard, inputs):
        (teacher,) = self._teacher
        assert not teacher.training, "The teacher was switched to training mode."
        waves = normalise(heard, inputs["lengths"])
        return teacher(waves, attention_mask=inputs["attention_mask"], output_hidden_states=True)

    def _get_train_sampler(self, train_dataset=None):
        return Buckets(self.train_dataset, self.args.train_batch_size)

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
    teacher_hears_noise: bool = False,
) -> Fitted:
    """Train to the last epoch and return the weights of the epoch with the highest dev UA (the first among equals).

    dev: model -> {"UA": ..., "WA": ...}; settings: epochs, batch_size, weight_decay, betas, warmup, clip, precision;
    groups: AdamW parameter groups with their learning rates; level: the mixing's speech level; folder: for checkpoints,
    removed at the end; teacher: asked at each step, None where `train` holds its targets.
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
        teacher_hears_noise=teacher_hears_noise,
        dev=dev,
        level=level,
        train_dataset=train,
        eval_dataset=train,  # demanded by the Trainer; `evaluate` scores the dev speech instead
        data_collator=collate,
        optimizers=(optimiser, None),
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
