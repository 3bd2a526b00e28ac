"""Training: what the networks hear, which weights come back, and that a seed decides everything."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from ser_kd_utils.data.noise import keyed_rng, overall_power
from ser_kd_utils.files import sha256
from ser_kd_utils.training import loop
from ser_kd_utils.training.loop import Fitted, Objective, fit, forward

ROOT = Path(__file__).parents[2]


class Speech(torch.utils.data.Dataset):
    """Items of 40 to 46 samples with noise; noise and order are pure functions of seed and epoch."""

    def __init__(self, items: int = 8, seed: int = 0):
        self.items, self.seed, self.epoch = items, seed, 0
        rng = keyed_rng("speech")
        self.clean = [torch.tensor(rng.normal(i % 2, 1, 40 + i % 7), dtype=torch.float32) for i in range(items)]

    def __len__(self) -> int:
        return self.items

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def sampler(self, batch_size: int) -> Order:
        return Order(self)

    def __getitem__(self, index: int) -> dict:
        noise = keyed_rng("noise", index, self.seed, self.epoch).normal(0, 1, len(self.clean[index]))
        return {"clean": self.clean[index], "noise": torch.tensor(noise, dtype=torch.float32), "label": index % 2}

    def collate(self, items: list[dict]) -> dict:
        pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
        return {
            "clean": pad([item["clean"] for item in items]),
            "noise": pad([item["noise"] for item in items]),
            "lengths": torch.tensor([len(item["clean"]) for item in items]),
            "snr_db": torch.tensor([5.0 + item["label"] for item in items], dtype=torch.float64),
            "labels": torch.tensor([item["label"] for item in items]),
        }


class Order:
    def __init__(self, data):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self):
        return iter(keyed_rng("order", self.data.seed, self.data.epoch).permutation(len(self.data)).tolist())


class Features(Speech):
    """The same as features that were computed before; whole batches are made at once."""

    def __getitems__(self, indices: list[int]) -> dict:
        features = torch.stack([self.clean[index][:40] for index in indices])
        return {"inputs": {"features": features}, "labels": torch.tensor(indices) % 2}

    @staticmethod
    def collate(batch: dict) -> dict:
        return batch


class Network(nn.Module):
    """Two layers with dropout and batch normalisation, which a parameter without a gradient accompanies."""

    def __init__(self, dropout: float = 0.3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(40, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2)
        )
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, features, **_):
        return SequenceClassifierOutput(logits=self.layers(features))


def build(dropout: float = 0.3) -> Network:
    torch.manual_seed(7)
    return Network(dropout)


def prepare(waves, lengths, attention_mask):
    return {"features": waves[:, :40]}


class CrossEntropy(Objective):
    def __call__(self, batch, student, teacher, progress):
        return {"ce": F.cross_entropy(student.logits, batch["labels"])}


class Distillation(Objective):
    """Towards the logits of a teacher that is asked at each step; keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, batch, student, teacher, progress):
        self.calls.append((batch, student, teacher, progress))
        return {
            "ce": F.cross_entropy(student.logits, batch["labels"]),
            "kd": 0.5 * F.mse_loss(student.logits, teacher.logits),
        }


def level(_):
    return {"UA": 0.5, "WA": 0.5}


@pytest.fixture
def train(tmp_path):
    """Trains for two epochs of two batches, unless told otherwise."""

    def train(objective=None, dataset=None, dev=level, model=None, seed=0, optimizer=None, rest=None, **settings):
        model = model or build()
        values = {"epochs": 2, "batch_size": 4, "max_grad_norm": 1.0, "precision": "float32", "warmup_ratio": 0.1}
        return fit(
            model,
            objective or CrossEntropy(),
            dataset or Speech(),
            dev,
            SimpleNamespace(**values | settings),
            optimizer=optimizer or torch.optim.AdamW(model.parameters(), 0.02),
            seed=seed,
            **{"folder": tmp_path / "run", "speech_level": "overall", "prepare_inputs": prepare} | (rest or {}),
        )

    return train


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def identical(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(tmp_path) -> list[Path]:
    return sorted((tmp_path / "run").glob("epoch-*.pt"))


# --- one step


@pytest.fixture
def teacher():
    """Linear, and it keeps the inputs that it is asked about."""
    teacher = build(0.0).eval().requires_grad_(False)
    teacher.asked = []
    teacher.register_forward_pre_hook(lambda _, __, inputs: teacher.asked.append(inputs), with_kwargs=True)
    return teacher


def test_a_step_mixes_exactly_and_masks_what_is_padding(teacher):
    data, objective = Speech(), Distillation()
    batch, given = data.collate([data[0], data[1], data[5]]), []

    def watch(waves, lengths, attention_mask):
        given.append((waves, lengths, attention_mask))
        return prepare(waves, lengths, attention_mask)

    terms, student = forward(
        build(), objective, batch, prepare_inputs=watch, speech_level="overall", teacher=teacher, progress=0.25
    )
    (noisy, lengths, mask), (clean, *_) = given
    assert torch.equal(clean, batch["clean"]) and torch.equal(lengths, batch["lengths"])
    assert mask.sum(1).tolist() == [40, 41, 45] and torch.equal(mask, batch["attention_mask"])
    noise = overall_power(noisy - clean, lengths)
    snr_db = 10 * torch.log10(overall_power(clean, lengths) / noise)
    torch.testing.assert_close(snr_db, batch["snr_db"], atol=1e-4, rtol=0)
    assert (noisy - clean)[~mask.bool()].eq(0).all()
    ((kept, output, targets, progress),) = objective.calls
    assert kept is batch and output is student and progress == 0.25
    assert torch.equal(targets.logits, teacher.layers(clean[:, :40])) and not targets.logits.requires_grad
    assert terms.keys() == {"ce", "kd"} and terms["ce"].requires_grad
    assert [set(inputs) for inputs in teacher.asked[:1]] == [{"features", "output_hidden_states"}]


def test_a_teacher_of_noisy_targets_hears_what_the_student_hears(teacher):
    data, seen = Speech(), []
    model = build()
    model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["features"]), with_kwargs=True)
    batch = data.collate([data[0], data[1]])
    options = {"prepare_inputs": prepare, "speech_level": "overall", "teacher": teacher}
    forward(model, Distillation(), batch, noisy_targets=True, **options)
    forward(model, Distillation(), batch, **options)
    assert torch.equal(teacher.asked[0]["features"], seen[0]) and torch.equal(seen[0], seen[1])
    assert torch.equal(teacher.asked[1]["features"], batch["clean"][:, :40])
    assert not torch.allclose(seen[0], batch["clean"][:, :40], atol=0.01)


def test_waves_without_noise_are_heard_as_they_are():
    data, seen = Speech(), []
    batch = {name: value for name, value in data.collate([data[3]]).items() if name not in ("noise", "snr_db")}
    model = build().eval()
    model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["features"]), with_kwargs=True)
    forward(model, CrossEntropy(), batch, prepare_inputs=prepare, speech_level="overall")
    assert torch.equal(seen[0], data.clean[3][None, :40])


def test_features_computed_before_reach_the_network_and_no_teacher(teacher):
    data = Features()
    batch = data.__getitems__([2, 5])
    _, student = forward(
        model := build().eval(), CrossEntropy(), batch, prepare_inputs=None, speech_level="", teacher=teacher
    )
    assert teacher.asked == [] and "attention_mask" not in batch
    assert torch.equal(student.logits, model(**batch["inputs"]).logits)


# --- the teacher


def test_training_leaves_the_teacher_as_it_was(train, teacher):
    before, objective = weights(teacher), Distillation()
    fitted = train(objective, rest={"teacher": teacher})
    assert identical(before, weights(teacher)) and not teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert fitted.last.keys() == fitted.model.state_dict().keys()  # nor was it saved with the student
    assert len(teacher.asked) == 4
    np.testing.assert_allclose(fitted.history["loss"], fitted.history["ce"] + fitted.history["kd"], rtol=1e-5)


def test_a_teacher_in_training_mode_or_inside_the_network_is_an_error(train, teacher):
    with pytest.raises(AssertionError, match="training mode"):
        train(Distillation(), rest={"teacher": teacher.train()})
    model = build()
    model.teacher = teacher.eval()
    with pytest.raises(AssertionError, match="must not be a part of the network"):
        train(Distillation(), model=model, rest={"teacher": teacher})


# --- batches, seeds and randomness


def test_batches_are_those_of_the_dataset_anew_in_each_epoch(train, teacher):
    objective, data, wanted = Distillation(), Speech(10), []
    train(objective, Speech(10), epochs=3, rest={"teacher": teacher})
    for epoch in range(3):
        data.set_epoch(epoch)
        order = list(data.sampler(4))
        wanted += [data.collate([data[i] for i in order[first : first + 4]]) for first in range(0, 10, 4)]
    assert len(objective.calls) == len(wanted) == 9
    for (batch, *_), other in zip(objective.calls, wanted, strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in other)
    assert [progress for *_, progress in objective.calls] == [step / 9 for step in range(9)]
    first, later = wanted[0]["noise"], wanted[3]["noise"]
    assert first.shape != later.shape or not torch.equal(first, later)


def test_a_dataset_may_give_whole_batches(train):
    history = train(dataset=Features(), epochs=8, rest={"prepare_inputs": None}).history
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]


def test_a_seed_decides_all_weights(train, tmp_path):
    first, second, other = (
        train(seed=seed, rest={"folder": tmp_path / str(number)}) for number, seed in enumerate((1, 1, 2))
    )
    assert identical(first.last, second.last) and first.history.equals(second.history)
    assert not identical(first.last, other.last)  # from the same weights, by dropout alone


def test_random_numbers_drawn_elsewhere_change_nothing(train, tmp_path):
    """Neither before training nor by what scores the network between the epochs."""
    plain = train(epochs=3)

    def dev(_):
        torch.rand(5), keyed_rng("other").random()
        return level(_)

    model = build()
    torch.manual_seed(99)
    again = train(model=model, dev=dev, epochs=3, rest={"folder": tmp_path / "again"})
    assert identical(plain.last, again.last)


def test_each_epoch_of_each_seed_has_random_numbers_of_its_own_and_dropout(train, tmp_path):
    """Though the network comes in evaluation mode, and what scores it leaves it so."""
    seeds, modes, model = [], [], build().eval()
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))

    def dev(network):
        seeds.append(torch.initial_seed())
        network.eval()
        return level(network)

    for seed in (0, 1):
        train(model=model, dev=dev, seed=seed, epochs=3, rest={"folder": tmp_path / str(seed)})
    assert len(set(seeds)) == 6 and modes == [True] * 12


# --- what comes back


def test_the_first_best_epoch_comes_back_and_the_last_is_kept(train, tmp_path):
    scores, seen = [0.3, 0.6, 0.6, 0.4], []

    def dev(model):
        seen.append(weights(model))
        return {"UA": scores[len(seen) - 1], "WA": len(seen)}

    fitted = train(dev=dev, epochs=4, batch_size=3)  # the last batch of an epoch has two items
    assert isinstance(fitted, Fitted) and (fitted.best_epoch, fitted.items) == (2, 8)
    assert identical(weights(fitted.model), seen[1]) and identical(fitted.last, seen[3])
    assert fitted.history["dev_UA"].tolist() == scores and fitted.history["dev_WA"].tolist() == [1, 2, 3, 4]
    assert fitted.history.index.tolist() == [1, 2, 3, 4] and fitted.history.index.name == "epoch"
    assert not fitted.model.training and fitted.seconds > 0 and fitted.peak_memory_mb > 10
    assert [path.name[:11] for path in checkpoints(tmp_path)] == ["epoch-00003", "epoch-00004"]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (None, [*np.linspace(0, 1, 4, endpoint=False), *np.linspace(1, 0, 6, endpoint=False)]),
        (lambda done: 0.1 ** ((done >= 0.2) + (done >= 0.6)), [1] * 2 + [0.1] * 4 + [0.01] * 4),
    ],
    ids=["warm-up and decay", "steps"],
)
def test_learning_rates_follow_the_schedule(train, schedule, factors):
    model, rates = build(), []

    class Watched(torch.optim.SGD):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    train(
        model=model, optimizer=Watched(model.parameters(), 2e-3), epochs=5, batch_size=4, warmup_ratio=0.4,
        rest={"schedule": schedule},
    )  # fmt: skip
    np.testing.assert_allclose(rates, 2e-3 * np.array(factors), atol=1e-9)


@pytest.mark.parametrize("most", [0.0, 0.01])
def test_gradients_are_clipped_to_the_norm_of_the_settings(train, most):
    model, norms = build(), []

    class Watched(torch.optim.SGD):
        def step(self, *args):
            norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item())
            return super().step(*args)

    train(model=model, optimizer=Watched(model.parameters(), 0.1), max_grad_norm=most)
    if most:
        assert norms == pytest.approx([most] * 4, rel=1e-3)
    else:
        assert min(norms) > 0.05


class Shifted(Objective):
    """Cross-entropy of shifted logits; the shift is learnt beside the network; its gradients are kept."""

    def __init__(self):
        self.shift = nn.Parameter(torch.zeros(2))
        self.calls, self.wanted = [], []

    def before_step(self, network, inputs, batch, step, progress):
        assert isinstance(network, Network) and set(inputs) == {"features"} and "labels" in batch
        self.calls.append((step, progress))

    def __call__(self, batch, student, teacher, progress):
        loss = F.cross_entropy(student.logits + self.shift, batch["labels"])
        self.wanted.append(torch.autograd.grad(loss, self.shift, retain_graph=True)[0])
        return {"z": loss, "a": 0 * loss}

    def state(self):
        return {"shift": self.shift[0].item()}


def test_an_objective_may_learn_beside_the_network_and_tells_the_history(train):
    model, objective = build(), Shifted()
    optimizer = torch.optim.SGD([*model.parameters(), objective.shift], 0.1)
    fitted = train(objective, model=model, optimizer=optimizer, rest={"schedule": lambda done: 1.0})
    assert objective.calls == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    # a step moves the shift by its own gradient: those of earlier steps were cleared
    moved = -0.1 * torch.stack(objective.wanted).sum(0)
    torch.testing.assert_close(objective.shift.detach(), moved)
    assert fitted.history["shift"].iloc[-1] == pytest.approx(moved[0].item(), rel=1e-4)
    assert list(fitted.history) == ["loss", "a", "shift", "z", "dev_UA", "dev_WA"]


def test_a_network_trained_in_mixed_precision_scores_in_float32(train, monkeypatch, tmp_path):
    """As it does once it is saved and loaded; the next training in the process has a precision of its own."""
    seen, able = [], {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)

    class Watched(Network):
        def forward(self, features, **_):
            output = super().forward(features)
            seen.append((self.training, output.logits.dtype))
            return output

    model = train(model=Watched(), precision="bf16").model
    assert set(seen) == {(True, torch.bfloat16)}
    again, features = build().eval(), torch.randn(3, 40)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(features).logits, again(features).logits, rtol=1e-6, atol=1e-7)
    seen.clear()
    able.clear()
    train(model=Watched(), rest={"folder": tmp_path / "next"}, precision="bf16")  # where nothing computes in bf16
    assert set(seen) == {(True, torch.float32)}


# --- killed and resumed


class Killed(BaseException):
    """What a process that is killed would leave behind, without its end."""


def killed_in_epoch(number, first=1):
    """Dev scores of which the best is in the first epoch; killed in the given one."""
    epochs = iter(range(first, 99))

    def dev(_):
        if (epoch := next(epochs)) == number:
            raise Killed
        return {"UA": 1 / epoch, "WA": 0.5}

    return dev


class Kept:
    """Something beside the network that belongs in a checkpoint."""

    def __init__(self):
        self.lines = []

    def state_dict(self):
        return {"lines": list(self.lines)}

    def load_state_dict(self, state):
        self.lines = state["lines"]


def momentum(model):
    return torch.optim.SGD(model.parameters(), 0.05, 0.9)


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


@pytest.mark.parametrize("killed", [1, 2, 4])
@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize("schedule", [None, lambda done: 0.1 ** (done >= 0.6)], ids=["linear", "steps"])
def test_a_killed_training_ends_with_the_same_weights_and_history(train, tmp_path, killed, optimizer, schedule):
    def run(dev, folder):
        model, kept = build(), Kept()

        def noted(network):
            kept.lines.append(len(kept.lines))
            return dev(network)

        rest = {"folder": tmp_path / folder, "schedule": schedule, "extra_state": {"kept": kept}}
        return train(model=model, optimizer=optimizer(model), dev=noted, epochs=4, rest=rest), kept

    whole, kept = run(killed_in_epoch(99), "whole")
    with pytest.raises(Killed):
        run(killed_in_epoch(killed), "killed")
    dev = killed_in_epoch(99, first=killed)  # of the epochs before, none is trained again
    again, kept_again = run(dev, "killed")
    assert identical(again.last, whole.last) and identical(weights(again.model), weights(whole.model))
    assert again.best_epoch == whole.best_epoch == 1 and kept_again.lines == kept.lines == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(again.history, whole.history, check_exact=True)
    assert dev(None)["UA"] == 1 / 5


def test_a_training_killed_after_its_end_is_not_trained_again(train):
    whole = train()
    again = train(dev=killed_in_epoch(1))
    assert identical(again.last, whole.last) and again.history.equals(whole.history)
    assert again.seconds == whole.seconds


def test_what_was_being_written_is_not_taken_for_a_checkpoint(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "unfinished").write_bytes(b"half of")
    assert len(train().history) == 2
    assert not (tmp_path / "run" / "unfinished").exists()


@pytest.mark.parametrize("damage", ["changed", "cut", "empty"])
def test_a_damaged_checkpoint_is_left_out_with_a_warning(train, tmp_path, damage):
    whole = train(dev=killed_in_epoch(99), epochs=3, rest={"folder": tmp_path / "whole"})
    with pytest.raises(Killed):
        train(dev=killed_in_epoch(3), epochs=3)
    path = checkpoints(tmp_path)[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes({"changed": content, "cut": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.warns(UserWarning, match="epoch-00002-.* is damaged and was left out"):
        again = train(dev=killed_in_epoch(99, first=2), epochs=3)
    assert identical(again.last, whole.last) and again.history.equals(whole.history)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["whole", "inside"])
def test_a_malicious_pickle_offered_as_a_checkpoint_is_refused(train, tmp_path, where):
    with pytest.raises(Killed):
        train(dev=killed_in_epoch(2))
    (path,) = checkpoints(tmp_path)
    evil = Malicious(tmp_path / "executed")
    content = torch.load(path, weights_only=True) | {"history": evil} if where == "inside" else evil
    torch.save(content, buffer := io.BytesIO())
    path.write_bytes(buffer.getvalue())
    path.rename(path.with_name(f"epoch-00001-{sha256(path)}.pt"))  # sealed
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train()
    assert not (tmp_path / "executed").exists()


# --- what is not finite


class Broken(Objective):
    """One of its terms is not finite from some step on."""

    def __init__(self, value: float, step: int):
        self.value, self.step = value, step

    def before_step(self, network, inputs, batch, step, progress):
        self.now = step

    def __call__(self, batch, student, teacher, progress):
        loss = F.cross_entropy(student.logits, batch["labels"])
        return {"ce": loss, "kd": loss * (self.value if self.now >= self.step else 1.0)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("step", "epoch"), [(0, 1), (4, 3)])
def test_a_loss_that_is_not_finite_stops_the_training_in_its_epoch(train, tmp_path, value, step, epoch):
    """And its first step is named, though the others of the epoch follow."""
    objective = Broken(value, step)
    with pytest.raises(ValueError, match=rf"kd is not finite at step {step + 1}, in epoch {epoch}\. .*learning rate"):
        train(objective, epochs=4)
    assert objective.now == 2 * epoch - 1
    assert len(checkpoints(tmp_path)) == min(epoch - 1, 2)


def test_a_learning_rate_that_is_too_high_never_becomes_a_result(train, tmp_path):
    model = build()
    with pytest.raises(ValueError, match="ce is not finite at step .*a learning rate that is too high"):
        train(model=model, optimizer=torch.optim.SGD(model.parameters(), 1e38), max_grad_norm=0.0, epochs=20)


def test_a_score_that_is_not_finite_stops_the_training(train, tmp_path):
    with pytest.raises(ValueError, match="dev_UA is not finite"):
        train(dev=lambda _: {"UA": float("nan"), "WA": 0.5})
    assert checkpoints(tmp_path) == []


# --- several processes


def shared(folder: Path, batch_size: int = 4) -> dict:
    """What a training without dropout leaves behind: weights, what was learnt beside them, history."""
    torch.manual_seed(7)
    model, objective, scores = Network(0.0), Shifted(), Kept()
    model.layers[1] = nn.LayerNorm(16)  # batch statistics would be of each process's part alone

    def dev(network):
        assert network is model
        scores.lines.append(len(scores.lines) + 10 * loop.processes().process_index)
        return {"UA": scores.lines[-1], "WA": 0.5}

    fitted = fit(
        model, objective, Speech(), dev,
        SimpleNamespace(
            epochs=3, batch_size=batch_size, max_grad_norm=1.0, precision="float32", warmup_ratio=0.1
        ),
        optimizer=torch.optim.SGD([*model.parameters(), objective.shift], 0.1, 0.9),
        speech_level="overall", seed=0, folder=folder, prepare_inputs=prepare,
        extra_state={"scores": scores, "shift": nn.ParameterList([objective.shift])},
    )  # fmt: skip
    history = fitted.history.reset_index().to_dict("list")
    return {"last": fitted.last, "shift": objective.shift.detach(), "history": history}


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_training import loop, shared
torch.set_num_threads(1)
folder, state = Path(sys.argv[2]), loop.processes()
try:
    shared(folder / "odd", batch_size=5)
except ValueError as error:
    odd = str(error)
whole = shared(folder / "run")
state.wait_for_everyone()
if state.is_main_process:
    next((folder / "run").glob("epoch-00003-*.pt")).unlink()
state.wait_for_everyone()
again = shared(folder / "run")
torch.save({"odd": odd, "whole": whole, "again": again}, folder / f"{state.process_index}.pt")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two leaves behind, by gloo on the CPU."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(folder / "script.py"), str(Path(__file__).parent), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.mark.slow
def test_processes_share_each_batch_and_learn_what_one_learns(two_processes, tmp_path):
    """Each takes half of every batch; gradients are averaged, those of what is learnt beside the network, too."""
    alone = shared(tmp_path / "run")
    first, second = (found["whole"] for found in two_processes)
    assert identical(first["last"], second["last"]) and torch.equal(first["shift"], second["shift"])
    loss = alone["history"]["loss"]
    assert first["history"]["loss"] == pytest.approx(loss, rel=1e-3) and loss[2] < 0.97 * loss[0]
    torch.testing.assert_close(first["shift"], alone["shift"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(first["last"], alone["last"], rtol=1e-3, atol=1e-5)
    assert first["history"] == second["history"]  # one history, with the scores of the main process
    assert first["history"]["dev_UA"] == [0, 1, 2]


def test_processes_that_share_a_training_resume_together(two_processes):
    for found in two_processes:
        assert identical(found["again"]["last"], found["whole"]["last"])
        assert torch.equal(found["again"]["shift"], found["whole"]["shift"])
    assert two_processes[0]["again"]["history"] == two_processes[0]["whole"]["history"]


def test_a_batch_that_processes_cannot_share_evenly_is_an_error(two_processes):
    for found in two_processes:
        assert "batch size (5) needs to be a round multiple of the number of processes (2)" in found["odd"]
