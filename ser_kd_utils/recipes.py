"""The teacher and MLKD (notebooks 01 to 03): how rows (a) to (e) and their ablations are trained."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import ChainMap
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import Wav2Vec2ForSequenceClassification

from ser_kd_utils.data.audio import AudioCache, cache_audio
from ser_kd_utils.data.corpora import unlabelled
from ser_kd_utils.models import wav2vec2
from ser_kd_utils.pieces import UNLABELLED, Pieces, Targets, teacher_targets
from ser_kd_utils.pretraining import pretrain
from ser_kd_utils.rows import ROWS, Row, ablations, levels_of
from ser_kd_utils.settings import MLKDSettings, TeacherSettings
from ser_kd_utils.study import Study
from ser_kd_utils.training import CrossEntropy, Fitted, MultiLevel, fit


class Experiment(Study):
    """A Study (see its arguments) of the teacher and MLKD."""

    def __init__(self, *args, speech_dir: str = "", **kwargs):
        """speech_dir: a folder of unlabelled speech, for the rows that use it."""
        super().__init__(*args, **kwargs)
        self.teacher_settings, self.settings = self.all_settings.teacher, self.all_settings.mlkd
        if self.teacher_settings.pretraining_epochs and not speech_dir:
            raise ValueError("teacher__pretraining_epochs needs unlabelled speech: pass its folder with --speech-dir.")
        self.speech_dir = speech_dir
        self._asked: dict[tuple, Targets] = {}
        self._scratch = TemporaryDirectory(prefix="ser-kd-targets-")  # goes with the experiment

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

    def teacher(self, name: str = "a") -> Wav2Vec2ForSequenceClassification:
        """The network of row (a) or another teacher row, frozen; trained first when its record is not here."""
        return wav2vec2.freeze(Wav2Vec2ForSequenceClassification.from_pretrained(self.run(name).folder / "model"))

    def _decides(self, name: str) -> dict[str, Any]:
        row, pretrained = self.rows[name], self._pretrained(name)
        return {
            "levels": self.levels(name),
            "speech": self.speech.fingerprint if row.unlabelled or pretrained else "",
        }

    def _own_options(self, name: str) -> dict[str, str]:
        return {"speech-dir": "SPEECH" if self.rows[name].needs_speech or self._pretrained(name) else ""}

    def _unused(self, name: str) -> set[str]:
        unused = set() if self._pretrained(name) else {"pretraining.pretrain"}
        if not self.levels(name):
            unused |= {"training.MultiLevel", "pieces.teacher_targets"}
        if not self.rows[name].teacher:
            unused |= {"models.wav2vec2.DistilledStudent", "models.wav2vec2.build_student"}
        return unused

    def _described(self, name: str) -> dict[str, Any]:
        return {"levels": self.levels(name)}

    def _pretrained(self, name: str) -> bool:
        return not self.rows[name].teacher and self.settings_of(name).pretraining_epochs > 0

    def levels(self, name: str) -> tuple[int, ...]:
        """The teacher's layers that supervise the row's student."""
        return levels_of(self.rows[name], self.teacher_settings, self.settings)

    def settings_of(self, name: str) -> TeacherSettings | MLKDSettings:
        """The settings the row is trained with."""
        row = self.rows[name]
        return dataclasses.replace(self.settings if row.teacher else self.teacher_settings, **row.changes)

    def pieces(self, name: str, targets: Targets | None = None) -> Pieces:
        """The row's training set."""
        row, settings = self.rows[name], self.settings_of(name)
        labels = {utterance: self.labels.index(self.label_of[utterance]) for utterance in self.train}
        if row.teacher and settings.label_share < 1:
            told = self.share_of_each_class(settings.label_share, "told")
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

    def _fit(self, name: str) -> tuple[Wav2Vec2ForSequenceClassification, Fitted]:
        row, settings, levels = self.rows[name], self.settings_of(name), self.levels(name)
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
            optimiser=torch.optim.AdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay),
            level=self.noise_settings.level,
            seed=self.seed,
            folder=self._checkpoints(name),
            teacher=teacher,
            teacher_hears_noise=bool(levels) and settings.targets == "noisy piece",
        )
        return network, fitted

    _hear = staticmethod(wav2vec2.hear)

    def _save(self, network: Wav2Vec2ForSequenceClassification, folder: Path) -> None:
        wav2vec2.save(network, folder)

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
