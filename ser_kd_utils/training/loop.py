"""The training loop of every method, on one page: noisy students, a teacher, resumption, several processes."""

import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from ser_kd_utils.data.noise import keyed_rng
from ser_kd_utils.progress import show
from ser_kd_utils.training.checkpoints import last_checkpoint, save_checkpoint
from ser_kd_utils.training.dataset import noisy_input


class Objective(Protocol):
    """What is minimised: the sum of named loss terms, each of which the history keeps by its name."""

    def __call__(self, batch: dict[str, Tensor], student: Any, teacher: Any, progress: float) -> dict[str, Tensor]:
        """The loss terms (scalars) of a step, with the same names in every step.

        batch: as the dataset collates it, with attention_mask where it holds waves; student: the network's output;
        teacher: the teacher's output in this step, or None where the batch holds teacher outputs or there is no
        teacher; progress: the part of the training that is done, from 0 to below 1.
        """

    def before_step(self, network: nn.Module, inputs: dict, batch: dict, step: int, progress: float) -> None:
        """Update what is learnt beside the network, before its own step; inputs: its keyword arguments in this step."""

    def state(self) -> dict[str, float]:
        """What the history keeps of each epoch beside losses and scores."""
        return {}


def processes() -> PartialState:
    """The processes that share this training: several under torchrun (with gloo on a CPU), otherwise one."""
    return PartialState(cpu=not torch.cuda.is_available())


def precision_of(settings: Any) -> str:
    """What a training computes in here: the settings' precision, or float32 where the hardware has no bf16."""
    able = torch.cuda.is_available() or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return settings.precision if able else "float32"


def forward(
    model: nn.Module, objective: Objective, batch: dict[str, Any], *,
    prepare_inputs: Callable[..., dict], speech_level: str, teacher: nn.Module | None = None,
    noisy_targets: bool = False, step: int = 0, progress: float = 0.0,
) -> tuple[dict[str, Tensor], Any]:  # fmt: skip
    """The forward pass of one training step: (loss terms, output of the student).

    batch: "inputs", the network's keyword arguments; or "clean" (B, T), "lengths" (B,) and perhaps "noise" (B, T) and
    "snr_db" (B,), to which attention_mask (B, T) is added. prepare_inputs: (waves, lengths, attention_mask) -> keyword
    arguments of the networks. The teacher is asked where the batch holds waves: about the clean ones or, with
    noisy_targets, about those that the student is given. progress: the part of the training that is done.
    """
    inputs, targets = batch.get("inputs"), None
    if inputs is None:
        clean, lengths, noisy = batch["clean"], batch["lengths"], noisy_input(batch, speech_level)
        mask = batch["attention_mask"] = (torch.arange(clean.shape[1], device=clean.device) < lengths[:, None]).long()
        inputs = prepare_inputs(noisy, lengths, mask)
        if teacher is not None:
            assert not teacher.training, "The teacher was switched to training mode."
            with torch.no_grad():
                teacher_inputs = inputs if noisy_targets else prepare_inputs(clean, lengths, mask)
                targets = teacher(**teacher_inputs, output_hidden_states=True)
    network = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    objective.before_step(network, inputs, batch, step, progress)
    student = model(**inputs)
    return objective(batch, student, targets, progress), student


@dataclass(frozen=True)
class Fitted:
    """A trained network, with the weights of its best epoch by dev UA, and how its training went."""

    model: nn.Module
    history: pd.DataFrame  # index epoch; columns loss, its terms, the objective's state, dev_UA and dev_WA
    best_epoch: int
    last: dict[str, Tensor]  # weights after the last epoch, on the CPU
    items: int  # in an epoch
    seconds: float
    peak_memory_mb: float  # of this training on the GPU where there is one, otherwise of the process so far


def fit(
    model: nn.Module, objective: Objective, dataset: Any, dev: Callable[[nn.Module], Mapping[str, float]],
    settings: Any, *, optimizer: torch.optim.Optimizer, schedule: Callable[[float], float] | None = None, seed: int,
    folder: Path, teacher: nn.Module | None = None, extra_state: Mapping[str, Any] | None = None, **how: Any,
) -> Fitted:  # fmt: skip
    """Train for all epochs and return the weights of the epoch with the highest dev UA; ties go to the earliest epoch.

    Where `folder` holds checkpoints of this training, it resumes from the last undamaged one, and on a CPU ends with
    the same weights, bit for bit, as if it had never stopped. Several processes (torchrun) each take their part of a
    batch; they fill up a last batch that is smaller with the first items of the epoch.

    dataset: with `sampler(batch_size)`, `set_epoch(epoch)` and `collate`, which gives the batches of `forward`; dev:
    model -> {"UA": ..., "WA": ...}; settings: epochs, batch_size, max_grad_norm (0: not clipped), precision, and
    without a schedule warmup_ratio; schedule: part of the training that is done -> factor of the learning rates (None:
    linear warm-up, then linear decay to 0); folder: for checkpoints of this training alone, the caller's to remove;
    extra_state: by name, what is learnt or kept beside the network and belongs in a checkpoint, as tensors and plain
    values; the rest: see `forward`.

    Raises ValueError where several processes cannot share a batch evenly, and after the first epoch in which a loss
    term or a score is not finite; pickle.UnpicklingError where a checkpoint holds more than tensors and plain values.
    """
    assert teacher not in set(model.modules()), "The teacher must not be a part of the network that is trained."
    on_gpu = torch.cuda.is_available()
    AcceleratorState._reset_state()  # otherwise all trainings of a process would have the precision of the first
    precision = "bf16" if precision_of(settings) == "bf16" else "no"
    split, ddp = DataLoaderConfiguration(split_batches=True), DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision, dataloader_config=split, kwargs_handlers=[ddp])
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    sampler = dataset.sampler(settings.batch_size)
    loader = DataLoader(dataset, settings.batch_size, sampler=sampler, collate_fn=dataset.collate, pin_memory=on_gpu)
    loader, network = accelerator.prepare_data_loader(loader), accelerator.prepare_model(model)
    teacher = teacher and teacher.to(accelerator.device)
    own = set(model.parameters())  # the gradients of these alone are averaged by DistributedDataParallel
    beside = [p for group in optimizer.param_groups for p in group["params"] if p not in own]
    steps = len(loader) * settings.epochs
    if schedule:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step / steps))
    else:
        scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(settings.warmup_ratio * steps), steps)

    stateful = {**(extra_state or {}), "model": model, "optimizer": optimizer, "scheduler": scheduler}
    history, best, last, seconds = [], {}, {}, 0.0
    if saved := last_checkpoint(folder):
        history, best, last, seconds = saved["history"], saved["best"], saved["state"]["model"], saved["seconds"]
        for name, each in stateful.items():
            each.load_state_dict(saved["state"][name])
    started = time.monotonic() - seconds

    for epoch in range(len(history) + 1, settings.epochs + 1):
        loader.set_epoch(epoch - 1)  # the dataset's, too, which decides order, windows and noise
        torch.manual_seed(int(keyed_rng("dropout", seed, epoch - 1, accelerator.process_index).integers(2**62)))
        network.train()
        reached = f", dev UA {100 * history[-1]['dev_UA']:.1f}" if history else ""
        losses = []
        for step, batch in enumerate(loader, start=(epoch - 1) * len(loader)):
            show(f"epoch {epoch} of {settings.epochs}{reached}", step / steps, time.monotonic() - started)
            optimizer.zero_grad(set_to_none=True)
            terms, _ = forward(network, objective, batch, teacher=teacher, step=step, progress=step / steps, **how)
            loss = sum(terms.values())
            losses.append({name: value.detach() for name, value in (terms | {"loss": loss}).items()})
            loss.backward()
            for parameter in (p for p in beside if p.grad is not None):
                parameter.grad = reduce(parameter.grad, "mean")
            if settings.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            scheduler.step()
        for earlier, values in enumerate(losses, start=step + 1 - len(losses)):
            _require_finite(values, earlier, epoch)  # now: a GPU would have to wait for the values of each step
        (scores,) = broadcast_object_list([dict(dev(model))])  # so that all processes choose the same epoch
        row = {name: reduce(torch.stack([v[name] for v in losses]).mean(), "mean").item() for name in losses[0]}
        row |= objective.state() | {f"dev_{name}": float(score) for name, score in scores.items()}
        _require_finite(row, step, epoch)
        history.append(row)
        state = {name: each.state_dict() for name, each in stateful.items()}
        last = state["model"] = {name: value.to("cpu", copy=True) for name, value in state["model"].items()}
        best = last if all(scores["UA"] > earlier["dev_UA"] for earlier in history[:-1]) else best
        seconds = time.monotonic() - started
        if accelerator.is_main_process:
            save_checkpoint(folder, epoch, {"state": state, "best": best, "history": history, "seconds": seconds})

    model = accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # tests compute in float32
    model.load_state_dict(best)
    table = pd.DataFrame(history, index=pd.RangeIndex(1, len(history) + 1, name="epoch"))
    table = table[sorted(table, key=lambda name: (name.startswith("dev_"), name != "loss", name))]
    memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    return Fitted(model.eval(), table, int(table["dev_UA"].idxmax()), last, len(sampler), seconds, memory / 2**20)


def as_it_is(model: nn.Module, dev: Callable[[nn.Module], Mapping[str, float]]) -> Fitted:
    """A network that somebody else trained, as `fit` would return it: its history is its dev scores, as epoch 0."""
    started, last = time.monotonic(), {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
    table = pd.DataFrame([{f"dev_{name}": float(score) for name, score in dev(model).items()}])
    return Fitted(model.eval(), table.rename_axis("epoch"), 0, last, 0, time.monotonic() - started, 0)


def _require_finite(values: Mapping[str, Tensor | float], step: int, epoch: int) -> None:
    """Raises ValueError for the first that is not: a diverged training never becomes a result."""
    for name, value in values.items():
        if not torch.as_tensor(value).isfinite().all():
            likely = "The likely cause is a learning rate that is too high."
            raise ValueError(f"{name} is not finite at step {step + 1}, in epoch {epoch}. {likely}")
