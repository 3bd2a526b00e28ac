"""What the experiments of all methods share, how the teacher is trained, and what it says to the students."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForAudioClassification, PreTrainedModel, SequenceFeatureExtractor

from ser_kd_utils.data.audio import SAMPLE_RATE, AudioCache
from ser_kd_utils.files import digest, sha256, unfinished
from ser_kd_utils.methods import METHODS, Variant, settings_of
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.training.dataset import SpeechDataset, TeacherOutputs, teacher_outputs
from ser_kd_utils.training.experiment import Experiment
from ser_kd_utils.training.loop import Fitted, as_it_is
from ser_kd_utils.training.losses import CrossEntropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class MethodExperiment(Experiment):
    """An Experiment (see its arguments) of a method of METHODS, whose students may learn from the teacher (a)."""

    settings_by_group = staticmethod(settings_of)

    @classmethod
    def code_by_value(cls) -> list[str]:
        """Modules that count in a fingerprint by what they gave (samples, split, settings), or that compute nothing."""
        names = ("__init__", "data.corpora", "records", "settings", "files", "fingerprint", "progress")
        rooms = [f"{m.package}.{part}" for m in METHODS.values() for part in ("__init__", "settings", "variants")]
        return [f"ser_kd_utils.{name}" for name in (*names, "methods.__init__", "methods.base")] + rooms

    def available(self) -> dict[str, Variant]:
        return METHODS[self.method].variants(self.all_settings)

    @cached_property
    def teachers(self) -> TeacherExperiment:
        """Notebook 01's experiment on the same fold and seed: its teacher (a) is the same record."""
        return TeacherExperiment(**self.options)

    def teacher_fingerprint(self, teacher: str) -> str:
        """Of a student's teacher; empty for none."""
        return teacher and (self.teachers if teacher in self.teachers.variants else self).fingerprint(teacher)


class EncoderExperiment(MethodExperiment):
    """An Experiment (see its arguments) of networks that are given speech as the teacher's encoder is."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        teacher = self.all_settings["teacher"]
        if teacher.model_type == "whisper":
            self.audio.longest = int(teacher.max_seconds * SAMPLE_RATE)

    @cached_property
    def prepare_inputs(self) -> Any:
        return encoders.inputs_of_teacher(self.all_settings["teacher"]).prepare_inputs

    def card(self) -> dict[str, Any]:
        whole = "whole utterances"
        if self.audio.longest:
            whole = f"the first {self.audio.longest / SAMPLE_RATE:g} s of each utterance, silence after shorter ones"
        card = super().card()
        return card | {"test": card["test"].replace("whole utterances", whole)}

    @staticmethod
    def feature_extractor(network: PreTrainedModel) -> SequenceFeatureExtractor:
        """With it `pipeline("audio-classification", folder)` gives a network what it was trained on."""
        return encoders.inputs_of(network.config).feature_extractor()


class TeacherExperiment(EncoderExperiment):
    """An Experiment (see its arguments) of the teacher (a)."""

    method = "teacher"

    @property
    def teachers(self) -> TeacherExperiment:
        return self

    def new_network(self, name: str = "a") -> PreTrainedModel:
        """The teacher before its training, or the one that is ready."""
        torch.manual_seed(self.seed)
        use = self.settings_of(name)
        ready = use.ready and name == "a"
        return (encoders.ready_teacher if ready else encoders.build_teacher)(use, self.labels)

    def teacher(self, tuned: bool = True, name: str = "a") -> PreTrainedModel:
        """The network of a variant, frozen, trained first when its record is not here; not tuned: before training."""
        if not tuned:
            return encoders.freeze(self.new_network(name))
        return encoders.freeze(AutoModelForAudioClassification.from_pretrained(self.run(name).folder / "model"))

    def outputs(
        self, layers: Sequence[int] = (), tuned: bool = True, speech: AudioCache | None = None, name: str = "a"
    ) -> TeacherOutputs:
        """The teacher's outputs for the training utterances, computed once for all students of all methods.

        speech: more of it, without labels; name: of the variant. They lie beside the checkpoints, in a folder that
        names fold and seed.
        """
        utterances, audio = self.train, self.audio
        if speech:
            utterances, audio = [*utterances, *speech.utterances], ChainMap(audio, speech)
        key = digest([self.fingerprint(name), tuned, layers, utterances, speech and speech.fingerprint])[:16]
        folder = f"teacher-outputs-fold-{self.fold}__seed-{self.seed}-{key}"
        teacher, place = self.teacher(tuned, name).to(DEVICE), unfinished(self.folder) / folder / "outputs"
        return teacher_outputs(teacher, self.prepare_inputs, audio, utterances, layers, place)

    def dataset(self, name: str = "a") -> SpeechDataset:
        """Windows of clean training speech."""
        use = self.settings_of(name)
        told = self.share_of_each_class(use.label_fraction, "told") if use.label_fraction < 1 else {*self.train}
        classes = self.classes([utterance for utterance in self.train if utterance in told])
        return self._windows(name, classes, longest=int(use.max_seconds * SAMPLE_RATE))

    def _info(self, name: str, fitted: Fitted, network: PreTrainedModel) -> dict[str, Any]:
        """With the SHA-256 of each file of the checkpoint: what a name stands for may have been converted."""
        folder = self.settings.source and encoders.checkpoint_folder(self.settings)
        files = {path.name: sha256(path) for path in sorted(folder.glob("model*.safetensors"))} if folder else {}
        return {**super()._info(name, fitted, network), "checkpoint_sha256": files}

    def trained(self, name: str):
        network, use = self.new_network(name), self.settings_of(name)
        if use.ready and name == "a":
            return network, as_it_is(network.to(DEVICE), self._dev_scores(name)), []
        encoder = encoders.encoder_of(network)
        for module in [encoder] if use.tuning == "frozen" else encoders.front_end(network) * use.freeze_cnn:
            module.requires_grad_(False)
        learnt = [p for p in encoder.parameters() if p.requires_grad]
        known = {*encoder.parameters()}
        head = [p for p in network.parameters() if p not in known]
        groups = [{"params": learnt, "lr": use.lr_encoder}, {"params": head, "lr": use.lr_head}]
        optimizer = torch.optim.AdamW(groups, betas=use.betas, weight_decay=use.weight_decay)
        return network, self._optimise(name, network, CrossEntropy(), self.dataset(name), optimizer=optimizer), []
