"""What an experiment is: a corpus, a fold, a seed, a noise source and the rows trained under them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import ChainMap
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import Wav2Vec2ForSequenceClassification

from ser_kd_utils import records
from ser_kd_utils.audio import AudioCache, cache_audio
from ser_kd_utils.corpora import load_corpus, split, unlabelled
from ser_kd_utils.evaluation import CLEAN, dev_condition, grid, predict
from ser_kd_utils.metrics import ser_metrics
from ser_kd_utils.models import wav2vec2
from ser_kd_utils.noise import NoiseBank, keyed_rng
from ser_kd_utils.pieces import UNLABELLED, Pieces, Targets, teacher_targets
from ser_kd_utils.pretraining import pretrain
from ser_kd_utils.rows import ROWS, Row, ablations, levels_of
from ser_kd_utils.settings import MLKDSettings, TeacherSettings, settings_of
from ser_kd_utils.training import CrossEntropy, Fitted, MultiLevel, fit

CODE = (
    "audio.py",
    "evaluation.py",
    "losses.py",
    "metrics/ser_metrics/ser_metrics.py",
    "models/wav2vec2.py",
    "noise.py",
    "pieces.py",
    "recipes.py",
    "training.py",
)
"""The files whose code decides what a row learns and predicts; a change in one makes old records stale."""


class Experiment:
    """One corpus, fold and seed, ready to train rows; records land in `folder`."""

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
        speech_dir: str = "",
    ):
        """noise_dir: a folder of recordings, empty for generated noise; protocol: empty for the corpus's own;
        changes: settings by name, `"epochs=2"` for MLKD's and `"teacher__epochs=2"` for the teacher's. Records of
        another protocol or other settings go to a folder of their own. speech_dir: a folder of unlabelled speech, for
        the rows that use it.
        """
        self.teacher_settings, self.settings, self.noise_settings = settings_of(profile, changes)
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
        if self.teacher_settings.pretraining_epochs and not speech_dir:
            raise ValueError("teacher__pretraining_epochs needs unlabelled speech: pass its folder with --speech-dir.")
        self.speech_dir, self.profile, self.fold, self.seed = speech_dir, profile, fold, seed
        self.folder = records.results_folder(results, corpus, profile, protocol, changes)
        self._asked: dict[tuple, Targets] = {}
        self._scratch = TemporaryDirectory(prefix="ser-kd-targets-")  # goes with the experiment

    def _generated_noise(self) -> NoiseBank:
        """Babble is made of training speakers, so that no test voice is heard before the test."""
        return NoiseBank.generated([self.audio[utterance] for utterance in self.train])

    @cached_property
    def rows(self) -> dict[str, Row]:
        """(a) to (e) and the ablations that can be trained here, by name: some need unlabelled speech."""
        return ROWS | self.ablations

    @property
    def ablations(self) -> dict[str, Row]:
        rows = ablations(self.teacher_settings, self.settings, bool(self.speech_dir))
        return {name: row for name, row in rows.items() if len(self._heard) > 1 or not row.unseen}

    @cached_property
    def speech(self) -> AudioCache:
        """The unlabelled speech."""
        return cache_audio(unlabelled(self.speech_dir))

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
            raise ValueError(f"No row {name!r}: choose among {', '.join(self.rows)} (some need --speech-dir).")
        run = records.Run(self._run_folder(name))
        return run if run.complete(self.fingerprint(name)) else self._train(name)

    def teacher(self, name: str = "a") -> Wav2Vec2ForSequenceClassification:
        """The network of row (a) or another teacher row, frozen; trained first when its record is not here."""
        return wav2vec2.freeze(Wav2Vec2ForSequenceClassification.from_pretrained(self.run(name).folder / "model"))

    def fingerprint(self, name: str) -> str:
        """Of everything that decides the row's predictions; a student's includes its teacher's."""
        row, pretrained = self.rows[name], self._pretrained(name)
        return records.fingerprint(
            {
                "row": [row.noisy, row.small, self.levels(name), row.unlabelled],
                "settings": self._effective_settings(name),
                "split": [self.train, self.dev, self.test, self.seed],
                "audio": self.audio.fingerprint,
                "speech": self.speech.fingerprint if row.unlabelled or pretrained else "",
                "noise": [self.noise.fingerprint, self.train_noise(name)],
                "code": [self._code, records.code_fingerprint(["pretraining.py"]) if pretrained else ""],
                "teacher": self.fingerprint(row.teacher) if row.teacher else "",
            }
        )

    def _pretrained(self, name: str) -> bool:
        return not self.rows[name].teacher and self.settings_of(name).pretraining_epochs > 0

    @cached_property
    def _code(self) -> str:
        return records.code_fingerprint(CODE)

    def _run_folder(self, name: str) -> Path:
        row = self.rows[name]
        return self.folder / "runs" / records.run_name(row.method, row.variant, self.fold, self.seed)

    def levels(self, name: str) -> tuple[int, ...]:
        """The teacher's layers that supervise the row's student."""
        return levels_of(self.rows[name], self.teacher_settings, self.settings)

    def held_out(self, name: str) -> str:
        """The noise type that a row for unseen noise does not hear in this fold, "" for the others."""
        return self._heard[(self.fold - 1) % len(self._heard)] if self.rows[name].unseen else ""

    def train_noise(self, name: str) -> list[str]:
        """The noise types the row hears in training."""
        return [kind for kind in self._heard if kind != self.held_out(name)] if self.rows[name].noisy else []

    @property
    def _heard(self) -> tuple[str, ...]:
        return tuple(self.noise_settings.train_types) or self.noise.types

    def settings_of(self, name: str) -> TeacherSettings | MLKDSettings:
        """The settings the row is trained with."""
        row = self.rows[name]
        return dataclasses.replace(self.settings if row.teacher else self.teacher_settings, **row.changes)

    def _effective_settings(self, name: str) -> dict[str, Any]:
        used = self.settings_of(name)
        return {
            used.title: dataclasses.asdict(used),
            self.noise_settings.title: dataclasses.asdict(self.noise_settings),
        }

    def pieces(self, name: str, targets: Targets | None = None) -> Pieces:
        """The row's training set."""
        row, settings = self.rows[name], self.settings_of(name)
        labels = {utterance: self.labels.index(self.label_of[utterance]) for utterance in self.train}
        if row.teacher and settings.label_share < 1:
            told = self._told(settings.label_share)
            labels = {utterance: label if utterance in told else UNLABELLED for utterance, label in labels.items()}
        if row.unlabelled:
            labels |= dict.fromkeys(self.speech.utterances, UNLABELLED)
        return Pieces(
            self._sound(row),
            labels,
            seed=self.seed,
            seconds=settings.seconds,
            noise=self.noise if row.noisy else None,
            types=self.train_noise(name),
            snr_db=self.noise_settings.train_snr_db,
            clean_share=settings.clean_share if row.teacher else 0.0,
            targets=targets,
        )

    def _sound(self, row: Row) -> Mapping[str, np.ndarray] | AudioCache:
        return ChainMap(self.audio, self.speech) if row.unlabelled else self.audio

    def _told(self, share: float) -> set[str]:
        """The same utterances for every row: of each class, the share that comes first in a fixed random order."""
        order = sorted(self.train, key=lambda utterance: keyed_rng("told", utterance, self.seed).random())
        classes = [[u for u in order if self.label_of[u] == label] for label in self.labels]
        return {utterance for some in classes for utterance in some[: max(1, round(share * len(some)))]}

    def student(self, name: str) -> wav2vec2.DistilledStudent:
        """The row's student, with fresh prediction heads and the scaled gradient into its CNN."""
        row, settings = self.rows[name], self.settings_of(name)
        teacher = self.teacher(row.teacher)
        torch.manual_seed(self.seed)  # after the teacher, which may have to be trained first
        layers = settings.student_layers if row.small else self.teacher_settings.layers
        network = wav2vec2.build_student(teacher, layers, settings.initial)
        wav2vec2.scale_cnn_gradient(network, settings.cnn_gradient)
        return wav2vec2.DistilledStudent(network, self.levels(name), teacher.config.hidden_size)

    def _new_teacher(self, name: str) -> Wav2Vec2ForSequenceClassification:
        """Before its training on labels."""
        settings = self.settings_of(name)
        torch.manual_seed(self.seed)
        network = wav2vec2.build_teacher(settings, self.labels)
        if self._pretrained(name):
            sound, utterances = ChainMap(self.audio, self.speech), [*self.train, *self.speech.utterances]
            pretrain(network.wav2vec2, sound, utterances, epochs=settings.pretraining_epochs, seed=self.seed)
        return network

    def _train(self, name: str) -> records.Run:
        row, settings, levels = self.rows[name], self.settings_of(name), self.levels(name)
        folder = self._run_folder(name)
        objective, teacher, targets = CrossEntropy(), None, None
        if row.teacher:
            model = self.student(name)
            network = model.student
            groups = [{"params": list(model.parameters()), "lr": settings.lr}]
        else:
            model = network = self._new_teacher(name)
            groups = self._teacher_groups(network)
        if levels:
            objective = MultiLevel(
                settings, levels, self.teacher_settings.layers, partial(wav2vec2.frame_mask, network)
            )
            if settings.targets == "utterance":
                targets = self.targets(name)
            else:
                teacher = self._target_network(name)
        fitted = fit(
            model,
            objective,
            self.pieces(name, targets),
            self._dev_scores(name),
            settings,
            groups=groups,
            level=self.noise_settings.level,
            seed=self.seed,
            folder=folder / "checkpoints",
            teacher=teacher,
            teacher_hears_noise=bool(levels) and settings.targets == "noisy piece",
        )
        table = self._test(model, fitted)
        return records.write_run(folder, table, self._info(name, fitted, network), partial(wav2vec2.save, network))

    def _target_network(self, name: str) -> Wav2Vec2ForSequenceClassification:
        """The network whose states the row's student is to predict, frozen."""
        teacher = self.rows[name].teacher
        tuned = self.settings_of(name).target_network == "fine-tuned"
        return self.teacher(teacher) if tuned else wav2vec2.freeze(self._new_teacher(teacher))

    def targets(self, name: str) -> Targets:
        """What the teacher says of the row's training speech: one pass for all rows here that ask it the same."""
        row, levels = self.rows[name], self.levels(name)
        key = row.teacher, self.settings_of(name).target_network, levels, row.unlabelled
        if key not in self._asked:
            folder = Path(tempfile.mkdtemp(dir=self._scratch.name))
            teacher = self._target_network(name).to("cuda" if torch.cuda.is_available() else "cpu")
            utterances = self.pieces(name).utterances
            self._asked[key] = teacher_targets(teacher, self._sound(row), utterances, levels, folder)
        return self._asked[key]

    def _teacher_groups(self, network: Wav2Vec2ForSequenceClassification) -> list[dict[str, Any]]:
        settings = self.teacher_settings
        if settings.freeze_cnn:
            network.freeze_feature_encoder()
        encoder = [p for p in network.wav2vec2.parameters() if p.requires_grad]
        head = [*network.projector.parameters(), *network.classifier.parameters()]
        return [{"params": encoder, "lr": settings.lr_encoder}, {"params": head, "lr": settings.lr_head}]

    def _dev_scores(self, name: str):
        heard = self.train_noise(name)
        conditions = dev_condition(self.seed, heard, self.noise_settings.train_snr_db) if heard else lambda _: [CLEAN]

        def score(model: nn.Module) -> dict[str, float]:
            table = self._predict(model, self.dev, conditions, "train")
            truth = [self.labels.index(self.label_of[u]) for u in table["utterance"]]
            guess = [row.argmax() for row in table["logits"]]
            scores = ser_metrics().compute(predictions=guess, references=truth)
            return {name: scores[name] for name in ("UA", "WA")}

        return score

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
        )

    def _test(self, model: nn.Module, fitted: Fitted) -> pd.DataFrame:
        """Predictions of the chosen epoch over the whole noise grid, and of the last epoch on a part of it.

        The last epoch is there to tell what choosing one is worth: clean speech and the middle SNR do.
        """
        levels = self.noise_settings.test_snr_db
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
        table = pd.concat(tables, ignore_index=True)
        table = table.assign(fold=self.fold, seed=self.seed, label=table["utterance"].map(self.label_of))
        return table[["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]]

    def _info(self, name: str, fitted: Fitted, network: nn.Module) -> dict[str, Any]:
        row, settings = self.rows[name], self.settings_of(name)
        items = len(self.pieces(name)) * settings.epochs
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
            "levels": self.levels(name),
            "train_noise": self.train_noise(name),
            "held_out": self.held_out(name),
            "parameters": sum(p.numel() for p in network.parameters()),
            "settings": self._effective_settings(name),
            "protocol": self.card(),
            "best_epoch": fitted.best_epoch,
            "history": fitted.history.reset_index().to_dict("records"),
            "seconds": round(fitted.seconds, 1),
            "utterances_per_second": round(items / fitted.seconds, 1),
            "peak_memory_mb": round(fitted.peak_memory_mb),
            "fingerprint": self.fingerprint(name),
            "teacher_fingerprint": self.fingerprint(row.teacher) if row.teacher else None,
            "audio_fingerprint": self.audio.fingerprint,
            "noise_fingerprint": self.noise.fingerprint,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **records.environment(),
        }
