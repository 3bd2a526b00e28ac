"""One trainer for every method: transformers' Trainer, fed clean and noisy views of the same speech."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from ser_kd_utils.checkpoints import last_whole, restore, seal
from ser_kd_utils.data.noise import mix

disable_progress_bar()  # bars and notices would end up in stored notebooks
set_verbosity_error()


class Objective(Protocol):
    """What is minimised: the sum of the named terms, each logged by its name."""

    def __call__(self, batch: dict[str, Tensor], student: Any, teacher: Any, progress: float) -> dict[str, Tensor]:
        """batch: as `collate`, plus attention_mask; student: model output; teacher: model output at this step, or None
        where the batch holds its targets or there is no teacher; progress: 0 to 1 of training.
        """

    def before_step(
        self, network: nn.Module, inputs: dict, batch: dict[str, Tensor], step: int, progress: float
    ) -> None:
        """What is learnt beside the network, before its own step; given: its arguments in this step."""

    def state(self) -> dict[str, float]:
        """What the history keeps of each epoch beside losses and scores."""
        return {}


def processes() -> PartialState:
    """Those that share this training: several under torchrun, by gloo on a CPU; else one."""
    return PartialState(cpu=not torch.cuda.is_available())


class DistillationTrainer(Trainer):
    """Mixes on the training device; asks a teacher at each step where its targets were not computed before.

    Several processes (torchrun) share a batch: each takes its part, and gradients are averaged.
    """

    def __init__(
        self,
        *args,
        objective: Objective,
        dev: Callable,
        speech_level: str,
        prepare_inputs: Callable[..., dict[str, Tensor]],
        teacher: nn.Module | None = None,
        noisy_targets: bool = False,
        batch_size: int,
        beside: Mapping[str, Stateful],
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.objective, self.dev, self.speech_level, self.prepare_inputs = objective, dev, speech_level, prepare_inputs
        self.batch_size, self.beside, self.started = batch_size, beside, time.monotonic()
        self.noisy_targets = noisy_targets
        # in a list: as an attribute that is a module, it could be moved or switched to training with the student
        self._teacher = [teacher.to(self.args.device)] if teacher else []
        self._terms: dict[str, list[Tensor]] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # features computed once, of clean speech, or waves to be mixed
        given, teacher = (inputs["inputs"], None) if "inputs" in inputs else self._listen(inputs)
        step = self.state.global_step
        progress = step / max(self.state.max_steps, 1)
        self.objective.before_step(self.accelerator.unwrap_model(model), given, inputs, step, progress)
        student = model(**given)
        terms = self.objective(inputs, student, teacher, progress)
        for name, value in terms.items():
            self._terms.setdefault(name, []).append(value.detach())
        loss = sum(terms.values())
        return (loss, student) if return_outputs else loss

    def training_step(self, model, *args, **kwargs):
        self.optimizer.zero_grad()  # the Trainer clears the network's gradients alone, an objective may learn, too
        loss = super().training_step(model, *args, **kwargs)
        if self.args.world_size > 1:  # of the network's gradients, DDP takes the mean
            own = set(model.parameters())
            for learnt in (p for group in self.optimizer.param_groups for p in group["params"]):
                if learnt not in own and learnt.grad is not None:
                    learnt.grad = reduce(learnt.grad, "mean")
        return loss

    def _listen(self, inputs):
        clean, lengths = inputs["clean"], inputs["lengths"]
        heard = clean
        if "noise" in inputs:
            heard = mix(clean, inputs["noise"], inputs["snr_db"], self.speech_level, lengths)
        mask = inputs["attention_mask"] = (torch.arange(clean.shape[1], device=clean.device) < lengths[:, None]).long()
        teacher = self._teach(heard if self.noisy_targets else clean, inputs) if self._teacher else None
        return self.prepare_inputs(heard, lengths, mask), teacher

    @torch.no_grad()
    def _teach(self, heard, inputs):
        (teacher,) = self._teacher
        assert not teacher.training, "The teacher was switched to training mode."
        given = self.prepare_inputs(heard, inputs["lengths"], inputs["attention_mask"])
        return teacher(**given, output_hidden_states=True)

    def _get_train_sampler(self, train_dataset=None):
        return self.train_dataset.sampler(self.batch_size)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process keeps the state of its random numbers
        if self.args.should_save:
            checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            seal(checkpoint, self.beside, time.monotonic() - self.started)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Dev scores from the same code that scores the test speech."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.dev(self.model).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._terms.items()}
            logs |= self.objective.state()
            self._terms.clear()
        super().log(logs, start_time)


@dataclass(frozen=True)
class Fitted:
    """A trained network (best epoch by dev UA, loaded) with its history."""

    model: nn.Module
    history: pd.DataFrame  # index epoch; columns loss, its terms, UA and WA on dev
    best_epoch: int
    last: dict[str, Tensor]  # weights after the last epoch
    items: int  # in an epoch
    seconds: float
    peak_memory_mb: float


def fit(
    model: nn.Module,
    objective: Objective,
    train: Any,
    dev: Callable[[nn.Module], dict[str, float]],
    settings: Any,
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[float], float] | None = None,
    speech_level: str,
    seed: int,
    folder: Path,
    prepare_inputs: Callable[..., dict[str, Tensor]],
    teacher: nn.Module | None = None,
    noisy_targets: bool = False,
    extra_state: Mapping[str, Stateful] | None = None,
) -> Fitted:
    """Train to the last epoch and return the weights of the epoch with the highest dev UA (the first among equals).

    Where `folder` holds checkpoints of this training, it goes on from the last whole one, and on a CPU ends with the
    same weights, bit for bit, as if it had never stopped.

    dev: model -> {"UA": ..., "WA": ...}; settings: epochs, batch_size, clip, precision, without a schedule also warmup;
    schedule: share of the training done -> factor of the learning rates, None: linear warm-up, then linear decay;
    level: the mixing's speech level; folder: for checkpoints of this training alone, the caller's to remove; hear:
    (waves, lengths, mask) -> the network's arguments; teacher: asked at each step, None where `train` holds its
    targets; beside: by name, what learns or is kept beside the network and belongs in a checkpoint.

    Raises ValueError where several processes cannot share a batch evenly.
    """
    on_gpu, beside = torch.cuda.is_available(), extra_state or {}
    if settings.batch_size % processes().num_processes:
        raise ValueError(f"{processes().num_processes} processes cannot share batches of {settings.batch_size}.")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // processes().num_processes,
        warmup_steps=0 if schedule else settings.warmup_ratio,
        lr_scheduler_type="linear",
        max_grad_norm=settings.max_grad_norm,
        use_cpu=not on_gpu,
        bf16=settings.precision == "bf16" and on_gpu,
        eval_strategy="epoch",
        save_strategy="epoch",
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # or the Trainer would spread each batch over all GPUs it sees
    items = len(train.sampler(settings.batch_size))
    steps_per_epoch = math.ceil(items / settings.batch_size)
    steps = steps_per_epoch * settings.epochs
    trainer = DistillationTrainer(
        model,
        arguments,
        objective=objective,
        teacher=teacher,
        noisy_targets=noisy_targets,
        dev=dev,
        speech_level=speech_level,
        prepare_inputs=prepare_inputs,
        batch_size=settings.batch_size,
        beside=beside,
        train_dataset=train,
        eval_dataset=train,  # demanded by the Trainer; `evaluate` scores the dev speech instead
        data_collator=train.collate,
        optimizers=(optimizer, schedule and LambdaLR(optimizer, lambda step: schedule(step / steps))),
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_whole(folder) if arguments.should_save else None
    (checkpoint,) = broadcast_object_list([checkpoint])
    if checkpoint:
        trainer.started -= restore(checkpoint, beside)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    seconds = time.monotonic() - trainer.started
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # or tests would run in mixed precision
    last = load_file(Path(get_last_checkpoint(str(folder))) / "model.safetensors")
    return Fitted(
        model=model.eval(),
        history=_history(trainer.state.log_history),
        best_epoch=trainer.state.best_global_step // steps_per_epoch,
        last=last,
        items=items,
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
    # the order of a checkpoint's file is another than that of a training that never stopped
    order = sorted(table, key=lambda name: (name.startswith("dev_"), name != "loss", name))
    return table[order].drop(columns=["grad_norm", "learning_rate", "step"], errors="ignore")


def _peak_memory_mb() -> float:
    """Of this training on the GPU where there is one, else of the process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
