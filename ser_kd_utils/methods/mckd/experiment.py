"""How MCKD's students (notebooks 06 and 07) are trained."""

import math
import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.features import HOP
from ser_kd_utils.data.noise import keyed_rng
from ser_kd_utils.methods.mckd import model
from ser_kd_utils.methods.mckd.loss import MetaCurriculum
from ser_kd_utils.methods.mckd.model import VariableTokenConfig, VariableTokenForAudioClassification
from ser_kd_utils.methods.mckd.temperature import Temperature
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.methods.teacher.experiment import DEVICE, MethodExperiment
from ser_kd_utils.training.dataset import SpeechDataset, paired_by_class


def warm_restarts(epoch: float, first: int, lowest: float) -> float:
    """Factor of the learning rate: half cosines from 1 to `lowest`, the first over `first` epochs, each next one twice
    as long (SGDR, Loshchilov & Hutter 2017)."""
    length = first
    while epoch >= length:
        epoch, length = epoch - length, 2 * length
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * epoch / length)) / 2


class MCKDExperiment(MethodExperiment):
    """An Experiment (see its arguments) of the variable-token student.

    quiz: utterances of the training speakers that no student is trained on, for the meta batches; all variants leave
    them out, so that they differ in what they are taught and not in what they hear.
    """

    method = "mckd"
    prepare_inputs = staticmethod(model.prepare_inputs)

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._clean: dict[str, dict[str, np.ndarray]] = {}
        if self.corpus.name.startswith("meld"):
            self.settings = self.settings.replace(frames=self.settings.meld_frames)
        held_out = self.share_of_each_class(self.settings.meta_fraction, "quiz")
        self.quiz = [utterance for utterance in self.train if utterance in held_out]
        self.train = [utterance for utterance in self.train if utterance not in held_out]

    def card(self) -> dict[str, Any]:
        return super().card() | {
            "sizes": {part: len(getattr(self, part)) for part in ("train", "quiz", "dev", "test")},
            "quiz": "utterances of training speakers for the meta batches, left out of every student's training",
            "test": "whole utterances, one by one, clean and in every noise type at every SNR; "
            f"the student sees the first {self.settings.frames * HOP / SAMPLE_RATE:g} s",
        }

    def _decides(self, name: str) -> dict[str, Any]:
        front = self.settings_of(name).features == "encoder"
        own = {"quiz": self.quiz, "front": self.teachers.fingerprint("a") if front else ""}
        own["temperatures"] = self.fingerprint("mc-meta") if self.settings_of(name).meta == "static" else ""
        return super()._decides(name) | own

    def new_network(self, name: str) -> VariableTokenForAudioClassification:
        """The variant's network before training, with the teacher's first layers where it hears through them."""
        use = self.settings_of(name)
        teacher = self.teachers.teacher() if use.features == "encoder" else None
        torch.manual_seed(self.seed)  # after the teacher, which may have to be trained first
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "frames")
        others = ("features", "feature_layer", "tokens", "pooling", "dropout", "z_score")
        same = {key: getattr(use, key) for key in sizes + others}
        front = teacher.config.to_diff_dict() if teacher else {}
        network = VariableTokenForAudioClassification(VariableTokenConfig(front=front, **same, **self.class_names))
        if teacher:
            network.front.copy(teacher)
        return network

    def features(
        self, name: str, network: VariableTokenForAudioClassification, epoch: int = 0
    ) -> dict[str, np.ndarray]:
        """(frames, width) of each training and quiz utterance, as the network is given it in this epoch; mapped from a
        file. For the quiz, the network's normalisation and, where they are computed once, for training."""
        kind, clean, utterances = network.config.features, not self.variants[name].noisy, [*self.train, *self.quiz]
        if clean and kind in self._clean:  # computed once for all variants here that take the same
            return self._clean[kind]
        data = self._utterances(name, utterances, epoch=epoch, **({"longest": sys.maxsize} if clean else {}))

        def features_of(waves: Tensor) -> Tensor:
            features = network.frame_features(waves.to(DEVICE))[0][0]
            return features.half() if clean else features

        whole, lengths = data.computed(features_of, self.noise_settings.speech_level)
        features = dict(zip(utterances, np.split(whole, np.cumsum(lengths)[:-1]), strict=True))
        return self._clean.setdefault(kind, features) if clean else features

    def _utterances(self, name: str, utterances: list[str], **more: Any) -> SpeechDataset:
        longest = (self.settings_of(name).frames + 1) * HOP  # the last frame reaches further than its step
        return self._windows(name, self.classes(utterances), **{"longest": longest, "order": paired_by_class} | more)

    def _objective(self, name: str, features: Mapping[str, np.ndarray]) -> MetaCurriculum:
        use, temperature, head, optimizer = self.settings_of(name), None, nn.Identity(), None
        counts = np.bincount([*self.classes(self.train).values()])
        weights = counts.sum() / len(counts) / counts if use.balance == "inverse" else np.ones(len(counts))
        if self.variants[name].teacher:
            base, start = ("curriculum", use.curriculum_start) if use.curriculum else ("fixed", use.temperature)
            if use.meta == "static":  # mc-meta is trained first where its record is not here
                base, start = "fixed", self.run("mc-meta").history[["tau_student", "tau_teacher"]].iloc[-1].to_list()
            temperature = Temperature(base, start, use.meta == "temperature", use.ramp).to(DEVICE)
            head = deepcopy(encoders.head_of(self.teachers.teacher())).requires_grad_().to(DEVICE)
            if use.meta == "temperature":
                optimizer = torch.optim.Adam([temperature.log_factors], use.meta_lr)
            elif use.meta == "teacher":
                optimizer = torch.optim.Adam(head.parameters(), use.meta_teacher_lr)
        quiz = self._utterances(name, self.quiz, features=[features], frames=use.frames)

        def questions(step: int) -> tuple[dict[str, Tensor], Tensor]:
            size = min(use.batch_size, len(quiz))
            batch = quiz.batch(keyed_rng("quiz", self.seed, step).choice(len(quiz), size, replace=False))
            return {key: value.to(DEVICE) for key, value in batch["inputs"].items()}, batch["labels"].to(DEVICE)

        weights = torch.tensor(weights, dtype=torch.float32, device=DEVICE)
        return MetaCurriculum(use, weights, temperature, head, questions, optimizer)

    def prepared(self, name: str) -> tuple[VariableTokenForAudioClassification, MetaCurriculum, SpeechDataset]:
        """The variant's network before training, what it is to minimise, and its training set."""
        variant, use, network = self.variants[name], self.settings_of(name), self.new_network(name).to(DEVICE)
        views = [self.features(name, network, epoch) for epoch in range(max(use.noisy_views * variant.noisy, 1))]
        network.fit_normalisation(torch.from_numpy(view[utterance]) for view in views for utterance in self.train)
        kept = use.noisy_views or not variant.noisy
        more: dict[str, Any] = {"features": views, "frames": use.frames} if kept else {}
        if variant.teacher:  # what its head reads: in one row the head learns
            embeddings = self.teachers.outputs().embeddings
            more["targets"] = {"teacher_embedding": torch.stack([embeddings[utterance] for utterance in self.train])}
        data = self._utterances(name, self.train, **more)
        return network, self._objective(name, views[0]), data

    def trained(self, name: str):
        use, (network, objective, data) = self.settings_of(name), self.prepared(name)
        learnt = [p for p in network.parameters() if p.requires_grad]
        learnt += objective.temperature.curriculum_parameters() if objective.temperature else []
        more = {"optimizer": torch.optim.SGD(learnt, use.lr, use.momentum), "extra_state": objective.extra_state}
        more["schedule"] = lambda done: warm_restarts(done * use.epochs, use.restart, use.lowest_lr / use.lr)
        return network, self._optimise(name, network, objective, data, **more), []
