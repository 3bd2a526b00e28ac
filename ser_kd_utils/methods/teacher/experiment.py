"""How the teacher is trained, and what it says to the students of all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Wav2Vec2ForSequenceClassification

from ser_kd_utils.data.audio import SAMPLE_RATE, AudioCache
from ser_kd_utils.files import digest, only_one, unfinished
from ser_kd_utils.methods.experiment import MethodExperiment
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.training.dataset import SpeechDataset, TeacherOutputs, teacher_outputs
from ser_kd_utils.training.experiment import DEVICE
from ser_kd_utils.training.losses import CrossEntropy


class TeacherExperiment(MethodExperiment):
    """An Experiment (see its arguments) of the teacher (a)."""

    method = "teacher"
    prepare_inputs = staticmethod(encoders.prepare_inputs)
    _feature_extractor = staticmethod(encoders.feature_extractor)

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
        self,
        layers: Sequence[int] = (),
        tuned: bool = True,
        audio: Mapping[str, np.ndarray] | AudioCache | None = None,
        utterances: Sequence[str] = (),
        content: str = "",
    ) -> TeacherOutputs:
        """What the teacher says of the training utterances, computed once for all students of all methods.

        audio, utterances: other speech, with the fingerprint of its content.
        """
        utterances, key = utterances or self.train, [self.fingerprint("a"), tuned, layers, content]
        place = f"teacher-outputs-{digest([*key, utterances])[:16]}"
        teacher = self.teacher(tuned).to(DEVICE)
        with only_one(self.folder, place):
            folder = unfinished(self.folder) / place
            return teacher_outputs(teacher, self.prepare_inputs, audio or self.audio, utterances, layers, folder)

    def dataset(self, name: str = "a") -> SpeechDataset:
        return self._windows(name, longest=int(self.settings.max_seconds * SAMPLE_RATE))

    def _fit(self, name: str):
        network, use = self.new_network(), self.settings
        if use.freeze_cnn:
            network.freeze_feature_encoder()
        encoder = [p for p in network.wav2vec2.parameters() if p.requires_grad]
        head = [*network.projector.parameters(), *network.classifier.parameters()]
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": use.lr_encoder}, {"params": head, "lr": use.lr_head}]
        optimizer = torch.optim.AdamW(groups, betas=use.betas, weight_decay=use.weight_decay)
        return network, self._optimise(name, network, CrossEntropy(), self.dataset(name), optimizer=optimizer), []
