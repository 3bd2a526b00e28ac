"""What all methods share: a corpus, a fold, a seed and a noise source; how a row is scored and recorded."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import PreTrainedModel

from ser_kd_utils import records
from ser_kd_utils.data.audio import AudioCache, cache_audio
from ser_kd_utils.data.corpora import load_corpus, split
from ser_kd_utils.data.noise import NoiseBank, keyed_rng
from ser_kd_utils.evaluation import CLEAN, dev_condition, grid, predict
from ser_kd_utils.metrics import ser_metrics
from ser_kd_utils.reach import reached
from ser_kd_utils.rows import Row
from ser_kd_utils.settings import Settings, settings_of
from ser_kd_utils.training import Fitted, processes

BY_VALUE = ("audio.cache_audio", "corpora", "reach", "records", "rows", "settings", "checkpoints")
"""Code that counts in a record's fingerprint by what it gave (samples, split, settings), or that only keeps files."""

COLUMNS = ["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]


class _Sound(Sequence):
    """Utterances of a cache, each decoded when it is asked for."""

    def __init__(self, audio: AudioCache, utterances: Sequence[str]):
        self.audio, self.utterances = audio, utterances

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.audio[self.utterances[index]]


class Study:
    """One corpus, fold and seed, ready to train the rows of a method; records land in `folder`.

    A method adds its rows, their settings and their training (`rows`, `settings_of`, `_fit`).
    """

    def __init__(
        self,
        corpus: str = "demo",
        profile: str = "tiny",
        fold: int = 1,
        seed: int = 0,
        data_root: str = "",
        noise_dir: str = "",
        results: str = "",
        protocol: str = "",
        changes: str = "",
    ):
        """noise_dir: a folder of recordings, empty for generated noise; protocol: empty for the corpus's own;
        changes: settings by name, `"epochs=2"` for MLKD's and `"teacher__epochs=2"` for the teacher's. Records of
        another protocol or other settings go to a folder of their own.
        """
        torch.set_num_threads(1)  # a sum split among threads comes out another in its last bits
        self.all_settings = settings_of(profile, changes)
        self.noise_settings = self.all_settings.noise
        loaded = load_corpus(corpus, data_root or None)
        self.split = split(loaded, protocol or None, fold, seed)
        self.audio = cache_audio(loaded)
        self.corpus = loaded.without(self.audio.excluded)
        usable = set(self.corpus.manifest["utterance"])
        self.train, self.dev, self.test = (
            [u for u in ids if u in usable] for ids in (self.split.train, self.split.dev, self.split.test)
        )
        self.labels = self.corpus.labels
        self.label_of = dict(zip(self.corpus.manifest["utterance"], self.corpus.manifest["label"], strict=True))
        self.noise = NoiseBank.from_folder(noise_dir) if noise_dir else self._generated_noise()
        if unknown := sorted(set(self.noise_settings.train_types) - set(self.noise.types)):
            raise ValueError(f"No noise {', '.join(unknown)} to train on: choose among {', '.join(self.noise.types)}.")
        self.profile, self.fold, self.seed, self.changes = profile, fold, seed, changes
        self.folder = records.results_folder(results, corpus, profile, protocol, changes)

    def _generated_noise(self) -> NoiseBank:
        """Babble is made of training speakers, so that no test voice is heard before the test."""
        return NoiseBank.generated(_Sound(self.audio, self.train))

    def share_of_each_class(self, share: float, purpose: str) -> set[str]:
        """Training utterances, the same for every row: of each class, those first in an order random by purpose."""
        order = sorted(self.train, key=lambda utterance: keyed_rng(purpose, utterance, self.seed).random())
        classes = [[u for u in order if self.label_of[u] == label] for label in self.labels]
        return {utterance for some in classes for utterance in some[: max(1, round(share * len(some)))]}

    @property
    def rows(self) -> dict[str, Row]:
        """What can be trained here, by name."""
        raise NotImplementedError

    def settings_of(self, name: str) -> Settings:
        """The settings the row is trained with."""
        raise NotImplementedError

    def _fit(self, name: str) -> tuple[PreTrainedModel, Fitted]:
        """Train the row: its network, which is saved, and how training went."""
        raise NotImplementedError

    def _hear(self, waves: Tensor, lengths: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The arguments of the method's networks for waves."""
        raise NotImplementedError

    def _save(self, network: PreTrainedModel, folder: Path) -> None:
        raise NotImplementedError

    def _decides(self, name: str) -> dict[str, Any]:
        """What decides the row's predictions beside what all methods share."""
        return {}

    def _described(self, name: str) -> dict[str, Any]:
        """What its record says beside what all methods say."""
        return {}

    def card(self) -> dict[str, Any]:
        """The protocol in plain words: what must be known to compare a number with another."""
        return self.split.card() | {
            "selection": "epoch with the highest dev UA; rows trained in noise choose on dev speech in training noise",
            "test": "whole utterances, one by one, clean and in every noise type at every SNR",
            "test noise": "the second half of every noise recording; training draws from the first",
            "noise": f"{self.noise.source}: {', '.join(self.noise.types)}",
            "speech level": self.noise_settings.level,
            "synthetic": self.corpus.synthetic,
        }

    def run(self, name: str) -> records.Run:
        """The record of a row: read when it is complete with this fingerprint, else trained and written.

        Raises ValueError for a row that is not in `rows`.
        """
        if name not in self.rows:
            raise ValueError(
                f"No row {name!r}: choose among {', '.join(self.rows)} (some need --speech-dir or --teacher-logits)."
            )
        wanted, folder, state = self.fingerprint(name), self._run_folder(name), processes()
        if state.num_processes == 1 and records.Run(folder).complete(wanted):
            return records.Run(folder)
        # several processes that share a training (torchrun) take one turn among them
        with records.only_one(self.folder, folder.name) if state.is_main_process else nullcontext():
            (done,) = broadcast_object_list([records.Run(folder).complete(wanted)])
            if not done:
                self._train(name, state.is_main_process)
            state.wait_for_everyone()
        return records.Run(folder)

    def _train(self, name: str, records_it: bool) -> None:
        network, fitted = self._fit(name)
        if records_it:
            folder, started = self._run_folder(name), time.monotonic()
            table = self._test(fitted)
            info = self._info(name, fitted, network) | {"test_seconds": round(time.monotonic() - started, 1)}
            records.write_run(folder, table, info, partial(self._save, network))
            for old in records.unfinished(self.folder).glob(f"{folder.name}@*"):
                shutil.rmtree(old)

    def fingerprint(self, name: str) -> str:
        """Of everything that decides the row's predictions; a student's includes its teacher's."""
        row = self.rows[name]
        decides = {
            "row": [row.noisy, row.small],
            "settings": self._effective_settings(name),
            "split": [self.train, self.dev, self.test, self.seed],
            "audio": self.audio.fingerprint,
            "noise": [self.noise.fingerprint, self.train_noise(name)],
            "code": self._code(name),
            "teacher": self._teacher_fingerprint(row),
        }
        return records.fingerprint(decides | self._decides(name))

    def _teacher_fingerprint(self, row: Row) -> str:
        return self.fingerprint(row.teacher) if row.teacher else ""

    def _code(self, name: str) -> dict[str, str]:
        own = f"{type(self).__module__.removeprefix('ser_kd_utils.')}.{type(self).__name__}"
        entries = (own, "audio.AudioCache", "metrics.ser_metrics.ser_metrics.SerMetrics")
        return reached(entries, {*BY_VALUE, *self._unused(name)})

    def _unused(self, name: str) -> set[str]:
        """Code of the method that this row does not run: a change there leaves its record as it is."""
        return set()

    def _checkpoints(self, name: str) -> Path:
        """Where the row's training keeps its checkpoints: another fingerprint, another place."""
        return records.unfinished(self.folder) / f"{self._run_folder(name).name}@{self.fingerprint(name)[:12]}"

    def _run_folder(self, name: str) -> Path:
        row = self.rows[name]
        return self.folder / "runs" / records.run_name(row.method, row.variant, self.fold, self.seed)

    def held_out(self, name: str) -> str:
        """The noise type that a row for unseen noise does not hear in this fold, "" for the others."""
        return self._heard[(self.fold - 1) % len(self._heard)] if self.rows[name].unseen else ""

    def train_noise(self, name: str) -> list[str]:
        """The noise types the row hears in training."""
        return [kind for kind in self._heard if kind != self.held_out(name)] if self.rows[name].noisy else []

    @property
    def _heard(self) -> tuple[str, ...]:
        return tuple(self.noise_settings.train_types) or self.noise.types

    def command(self, name: str) -> str:
        """What trains the row; DATA, NOISE and the like stand for places on the reader's machine."""
        given = {
            "corpus": "" if self.corpus.synthetic else self.corpus.name,
            "data-root": "" if self.corpus.synthetic else "DATA",
            "noise-dir": "NOISE" if self.noise.source.startswith("folder") else "",
            "profile": "" if self.profile == "tiny" else self.profile,
            "fold": self.fold,
            "seed": self.seed,
            "changes": self.changes and f'"{self.changes}"',
            **self._own_options(name),
        }
        return " ".join(["ser-kd train", name, *(f"--{key} {value}" for key, value in given.items() if value != "")])

    def _own_options(self, name: str) -> dict[str, str]:
        """What the method's row needs of the command beside what all take; "" for what it does without."""
        return {}

    def _effective_settings(self, name: str) -> dict[str, Any]:
        return {used.title: dataclasses.asdict(used) for used in (self.settings_of(name), self.noise_settings)}

    def _dev_scores(self, name: str) -> Callable[[nn.Module], dict[str, float]]:
        heard = self.train_noise(name)
        conditions = dev_condition(self.seed, heard, self.noise_settings.train_snr_db) if heard else lambda _: [CLEAN]
        return lambda model: self._scores(self._predict(model, self.dev, conditions, "train"))

    def _scores(self, table: pd.DataFrame) -> dict[str, float]:
        """UA and WA of a table of logits."""
        truth = [self.labels.index(self.label_of[u]) for u in table["utterance"]]
        guess = [row.argmax() for row in table["logits"]]
        scores = ser_metrics().compute(predictions=guess, references=truth)
        return {name: scores[name] for name in ("UA", "WA")}

    def _predict(self, model: nn.Module, utterances, conditions, part: str) -> pd.DataFrame:
        return predict(
            model,
            self.audio,
            utterances,
            conditions,
            self.noise,
            part=part,
            seed=self.seed,
            level=self.noise_settings.level,
            hear=self._hear,
        )

    def _test(self, fitted: Fitted) -> pd.DataFrame:
        """Predictions of the chosen epoch over the whole noise grid, and of the last epoch on a part of it.

        The last epoch is there to tell what choosing one is worth: clean speech and the middle SNR do.
        """
        levels, model = self.noise_settings.test_snr_db, fitted.model
        conditions = {
            "best": grid(self.noise.types, levels),
            "last": grid(self.noise.types, levels[(len(levels) - 1) // 2 :][:1]),
        }
        best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        tables = []
        for checkpoint, weights in (("last", fitted.last), ("best", best_weights)):
            model.load_state_dict(weights)
            some = conditions[checkpoint]
            tables.append(
                self._predict(model, self.test, lambda _, some=some: some, "test").assign(checkpoint=checkpoint)
            )
        table = pd.concat([*tables, *fitted.also], ignore_index=True)
        return table.assign(fold=self.fold, seed=self.seed, label=table["utterance"].map(self.label_of))[COLUMNS]

    def _info(self, name: str, fitted: Fitted, network: nn.Module) -> Mapping[str, Any]:
        row = self.rows[name]
        return {
            "method": row.method,
            "variant": row.variant,
            "row": name,
            "title": row.title,
            "question": row.question,
            "group": row.group,
            "against": row.against,
            "situation": row.situation,
            "corpus": self.corpus.name,
            "profile": self.profile,
            "fold": self.fold,
            "seed": self.seed,
            "labels": self.labels,
            "train_noise": self.train_noise(name),
            "held_out": self.held_out(name),
            "parameters": sum(p.numel() for p in network.parameters()),
            "settings": self._effective_settings(name),
            "protocol": self.card(),
            "command": self.command(name),
            "processes": processes().num_processes,
            "best_epoch": fitted.best_epoch,
            "history": fitted.history.reset_index().to_dict("records"),
            "seconds": round(fitted.seconds, 1),
            "items_per_second": round(fitted.items * self.settings_of(name).epochs / fitted.seconds, 1),
            "peak_memory_mb": round(fitted.peak_memory_mb),
            "fingerprint": self.fingerprint(name),
            "teacher_fingerprint": self._teacher_fingerprint(row) or None,
            "audio_fingerprint": self.audio.fingerprint,
            "noise_fingerprint": self.noise.fingerprint,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._described(name),
            **records.environment(),
        }
