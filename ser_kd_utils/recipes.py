"""What an experiment is: a corpus, a fold, a seed, a noise source and the rows trained under them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from transformers import Wav2Vec2ForSequenceClassification

from ser_kd_utils import records
from ser_kd_utils.audio import cache_audio
from ser_kd_utils.corpora import load_corpus, split
from ser_kd_utils.evaluation import CLEAN, dev_condition, grid, predict
from ser_kd_utils.metrics import ser_metrics
from ser_kd_utils.models import wav2vec2
from ser_kd_utils.noise import NoiseBank
from ser_kd_utils.settings import settings_of
from ser_kd_utils.training import CrossEntropy, Fitted, MultiLevel, Pieces, fit


@dataclass(frozen=True)
class Row:
    """One row of a table: what is trained, and the question the row answers."""

    method: str
    variant: str
    title: str
    question: str
    noisy: bool = True
    small: bool = True
    levels: str = "none"  # "last" or "all" of the settings' levels


ROWS = {
    "a": Row("teacher", "clean", "teacher, clean", "How far does a clean-speech model fall in noise?", False, False),
    "b": Row("mlkd", "teacher-size-noisy", "teacher size, noisy", "What is noisy training worth?", small=False),
    "c": Row("mlkd", "student-noisy", "student, noisy", "What does a small model reach without distillation?"),
    "d": Row("mlkd", "student-last-level", "student + last level", "Does one teacher level help?", levels="last"),
    "e": Row("mlkd", "student-multi-level", "student + levels", "Do several levels help more?", levels="all"),
}  # fmt: skip
"""The rows that test MLKD's claims: (e) > (d) > (c) on noisy speech, and (e) near (b) at a fraction of its size."""

CODE = (
    "audio.py",
    "evaluation.py",
    "losses.py",
    "metrics/ser_metrics/ser_metrics.py",
    "models/wav2vec2.py",
    "noise.py",
    "recipes.py",
    "training.py",
)
"""The files whose code decides what a row learns and predicts; a change in one makes old records stale."""


class Experiment:
    """One corpus, fold and seed, ready to train the rows of `ROWS`; records land in `folder`."""

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
        self.profile, self.fold, self.seed = profile, fold, seed
        self.folder = records.results_folder(results, corpus, profile, protocol, changes)

    def _generated_noise(self) -> NoiseBank:
        """Babble is made of training speakers, so that no test voice is heard before the test."""
        return NoiseBank.generated([self.audio[utterance] for utterance in self.train])

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

    def run(self, row: str) -> records.Run:
        """The record of a row of `ROWS`: read when it is complete with this fingerprint, else trained and written."""
        run = records.Run(self._run_folder(row))
        return run if run.complete(self.fingerprint(row)) else self._train(row)

    def teacher(self) -> Wav2Vec2ForSequenceClassification:
        """Row (a)'s network, frozen; trained first when its record is not here."""
        return wav2vec2.freeze(Wav2Vec2ForSequenceClassification.from_pretrained(self.run("a").folder / "model"))

    def fingerprint(self, row: str) -> str:
        """Of everything that decides the row's predictions; a student's includes its teacher's."""
        return records.fingerprint(
            {
                "row": [ROWS[row].noisy, ROWS[row].small, self._levels(row)],
                "settings": self._effective_settings(row),
                "split": [self.train, self.dev, self.test, self.seed],
                "audio": self.audio.fingerprint,
                "noise": self.noise.fingerprint,
                "code": self._code,
                "teacher": "" if row == "a" else self.fingerprint("a"),
            }
        )

    @cached_property
    def _code(self) -> str:
        return records.code_fingerprint(CODE)

    def _run_folder(self, row: str) -> Path:
        return self.folder / "runs" / records.run_name(ROWS[row].method, ROWS[row].variant, self.fold, self.seed)

    def _levels(self, row: str) -> tuple[int, ...]:
        return {"none": (), "last": self.settings.levels[-1:], "all": self.settings.levels}[ROWS[row].levels]

    def _effective_settings(self, row: str) -> dict[str, Any]:
        used = self.teacher_settings if row == "a" else self.settings
        return {
            used.title: dataclasses.asdict(used),
            self.noise_settings.title: dataclasses.asdict(self.noise_settings),
        }

    def pieces(self, noisy: bool, seconds: float) -> Pieces:
        """The training set, clean or in noise."""
        labels = {utterance: self.labels.index(self.label_of[utterance]) for utterance in self.train}
        noise = self.noise if noisy else None
        return Pieces(
            self.audio, labels, seed=self.seed, seconds=seconds, noise=noise, snr_db=self.noise_settings.train_snr_db
        )

    def student(self, levels: tuple[int, ...], layers: int) -> wav2vec2.DistilledStudent:
        """A student of the teacher, with fresh prediction heads and the scaled gradient into its CNN."""
        teacher = self.teacher()
        torch.manual_seed(self.seed)  # after the teacher, which may have to be trained first
        network = wav2vec2.build_student(teacher, layers)
        wav2vec2.scale_cnn_gradient(network, self.settings.cnn_gradient)
        return wav2vec2.DistilledStudent(network, levels, teacher.config.hidden_size)

    def _train(self, row: str) -> records.Run:
        levels, noisy = self._levels(row), ROWS[row].noisy
        settings = self.teacher_settings if row == "a" else self.settings
        objective, teacher = CrossEntropy(), None
        if row == "a":
            torch.manual_seed(self.seed)
            model = network = wav2vec2.build_teacher(settings, self.labels)
            groups = self._teacher_groups(network)
        else:
            layers = settings.student_layers if ROWS[row].small else self.teacher_settings.layers
            model = self.student(levels, layers)
            network = model.student
            groups = [{"params": list(model.parameters()), "lr": settings.lr}]
        if levels:
            teacher = self.teacher()
            layers, frame_mask = self.teacher_settings.layers, partial(wav2vec2.frame_mask, network)
            objective = MultiLevel(levels, settings.gamma, settings.cosine_weight, layers, frame_mask)
        fitted = fit(
            model,
            objective,
            self.pieces(noisy, settings.seconds),
            self._dev_scores(noisy),
            settings,
            groups=groups,
            level=self.noise_settings.level,
            seed=self.seed,
            folder=self._run_folder(row) / "checkpoints",
            teacher=teacher,
        )
        table = self._test(model, fitted)
        info = self._info(row, fitted, network)
        return records.write_run(self._run_folder(row), table, info, partial(wav2vec2.save, network))

    def _teacher_groups(self, network: Wav2Vec2ForSequenceClassification) -> list[dict[str, Any]]:
        settings = self.teacher_settings
        if settings.freeze_cnn:
            network.freeze_feature_encoder()
        encoder = [p for p in network.wav2vec2.parameters() if p.requires_grad]
        head = [*network.projector.parameters(), *network.classifier.parameters()]
        return [{"params": encoder, "lr": settings.lr_encoder}, {"params": head, "lr": settings.lr_head}]

    def _dev_scores(self, noisy: bool):
        conditions = (lambda _: [CLEAN]) if not noisy else dev_condition(
            self.seed, self.noise.types, self.noise_settings.train_snr_db
        )  # fmt: skip

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
        """Predictions of the chosen epoch and of the last one, over the whole noise grid."""
        conditions = grid(self.noise.types, self.noise_settings.test_snr_db)
        best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        tables = []
        for checkpoint, weights in (("last", fitted.last), ("best", best_weights)):
            if checkpoint == "last" and fitted.best_epoch == len(fitted.history):
                continue
            model.load_state_dict(weights)
            tables.append(self._predict(model, self.test, lambda _: conditions, "test").assign(checkpoint=checkpoint))
        if len(tables) == 1:
            tables.append(tables[0].assign(checkpoint="last"))
        table = pd.concat(tables, ignore_index=True)
        table = table.assign(fold=self.fold, seed=self.seed, label=table["utterance"].map(self.label_of))
        return table[["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]]

    def _info(self, row: str, fitted: Fitted, network: nn.Module) -> dict[str, Any]:
        kind = ROWS[row]
        return {
            "method": kind.method,
            "variant": kind.variant,
            "row": row,
            "corpus": self.corpus.name,
            "profile": self.profile,
            "fold": self.fold,
            "seed": self.seed,
            "labels": self.labels,
            "levels": self._levels(row),
            "parameters": sum(p.numel() for p in network.parameters()),
            "settings": self._effective_settings(row),
            "protocol": self.card(),
            "best_epoch": fitted.best_epoch,
            "history": fitted.history.reset_index().to_dict("records"),
            "seconds": round(fitted.seconds, 1),
            "peak_memory_mb": round(fitted.peak_memory_mb),
            "fingerprint": self.fingerprint(row),
            "teacher_fingerprint": None if row == "a" else self.fingerprint("a"),
            "audio_fingerprint": self.audio.fingerprint,
            "noise_fingerprint": self.noise.fingerprint,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **records.environment(),
        }
