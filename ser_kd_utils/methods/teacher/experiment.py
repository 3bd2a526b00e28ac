"""What the experiments of all methods share, how the teacher is trained, and what it says to the students."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import Wav2Vec2ForSequenceClassification

from ser_kd_utils.data.audio import SAMPLE_RATE, AudioCache
from ser_kd_utils.files import digest, only_one, unfinished
from ser_kd_utils.methods import METHODS, Variant, settings_of
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.training.dataset import SpeechDataset, TeacherOutputs, teacher_outputs
from ser_kd_utils.training.experiment import Experiment
from ser_kd_utils.training.losses import CrossEntropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class MethodExperiment(Experiment):
    """An Experiment (see its arguments) of a method of METHODS, whose students may learn from the teacher (a)."""

    settings_by_group = staticmethod(settings_of)

    @classmethod
    def code_by_value(cls) -> list[str]:
        """Modules that count in a fingerprint by what they gave (samples, split, settings), or that only keep files."""
        names = ("__init__", "data.corpora", "records", "settings", "files", "fingerprint", "methods.__init__")
        rooms = [f"{m.package}.{part}" for m in METHODS.values() for part in ("__init__", "settings", "variants")]
        return [f"ser_kd_utils.{name}" for name in (*names, "methods.base")] + rooms

    def available(self) -> dict[str, Variant]:
        return METHODS[self.method].variants(self.all_settings)

    @cached_property
    def teachers(self) -> TeacherExperiment:
        """Notebook 01's experiment on the same fold and seed: its teacher (a) is the same record."""
        return TeacherExperiment(**self.options)

    def teacher_fingerprint(self, teacher: str) -> str:
        """Of a student's teacher; empty for none."""
        return teacher and (self.teachers if teacher == "a" else self).fingerprint(teacher)


class TeacherExperiment(MethodExperiment):
    """An Experiment (see its arguments) of the teacher (a)."""

    method = "teacher"
    prepare_inputs = staticmethod(encoders.prepare_inputs)
    feature_extractor = staticmethod(encoders.feature_extractor)

    def new_network(self) -> Wav2Vec2ForSequenceClassification:
        """The teacher before its training."""
        torch.manual_seed(self.seed)
        return encoders.build_teacher(self.settings, self.labels)

    def teacher(self, tuned: bool = True) -> Wav2Vec2ForSequenceClassification:
        """The network of (a), frozen, trained first when its record is not here; not tuned: as before its training."""
        if not tuned:
            return encoders.freeze(self.new_network())
        return encoders.freeze(Wav2Vec2ForSequenceClassification.from_pretrained(self.run("a").folder / "model"))

    def outputs(
        self, layers: Sequence[int] = (), tuned: bool = True, speech: AudioCache | None = None
    ) -> TeacherOutputs:
        """What the teacher says of the training utterances, computed once for all students of all methods.

        speech: more of it, without labels. They lie beside the checkpoints, in a folder that names fold and seed.
        """
        utterances, audio = self.train, self.audio
        if speech:
            utterances, audio = [*utterances, *speech.utterances], ChainMap(audio, speech)
        key = digest([self.fingerprint("a"), tuned, layers, utterances, speech and speech.fingerprint])[:16]
        name = f"teacher-outputs-fold-{self.fold}__seed-{self.seed}-{key}"
        teacher, place = self.teacher(tuned).to(DEVICE), unfinished(self.folder) / name
        with only_one(self.folder, name):
            return teacher_outputs(teacher, self.prepare_inputs, audio, utterances, layers, place)

    def dataset(self, name: str = "a") -> SpeechDataset:
        """Windows of clean training speech."""
        return self._windows(name, self.classes(self.train), longest=int(self.settings.max_seconds * SAMPLE_RATE))

    def trained(self, name: str):
        network, use = self.new_network(), self.settings
        if use.freeze_cnn:
            network.freeze_feature_encoder()
        encoder = [p for p in network.wav2vec2.parameters() if p.requires_grad]
        head = [*network.projector.parameters(), *network.classifier.parameters()]
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": use.lr_encoder}, {"params": head, "lr": use.lr_head}]
        optimizer = torch.optim.AdamW(groups, betas=use.betas, weight_decay=use.weight_decay)
        return network, self._optimise(name, network, CrossEntropy(), self.dataset(name), optimizer=optimizer), []
