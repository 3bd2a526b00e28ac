"""Meta-knowledge and curriculum distillation (notebooks 06 and 07): a variable-token student, taught at temperatures
that are fixed, learnt against it, learnt from held-out speech, or both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.func import functional_call

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.features import on_disk
from ser_kd_utils.data.noise import keyed_rng, mix
from ser_kd_utils.frames import Frames, PairedPieces
from ser_kd_utils.losses import kd_loss, supervised_contrastive
from ser_kd_utils.models import variable_tokens, wav2vec2
from ser_kd_utils.models.variable_tokens import VariableTokenConfig, VariableTokenForAudioClassification
from ser_kd_utils.models.wav2vec2 import HOP
from ser_kd_utils.pieces import Targets
from ser_kd_utils.recipes import Experiment
from ser_kd_utils.rows import TOKEN_ROWS, Row, token_ablations
from ser_kd_utils.settings import MCKDSettings
from ser_kd_utils.study import Study
from ser_kd_utils.temperature import Temperature, meta_gradient
from ser_kd_utils.training import Fitted, Objective, fit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class MetaCurriculum(Objective):
    """CE + mu SupCon + nu KD (Zhao et al. 2025), KD at the temperatures of `temperature`; None: no teacher.

    quiz: step -> a held-out meta batch, (arguments of the network, labels). optimiser: of what the meta step teaches,
    None: nothing.
    """

    settings: MCKDSettings
    class_weights: Tensor  # (classes,), of cross-entropy
    temperature: Temperature | None
    head: nn.Module  # of the teacher: its mean state of an utterance -> logits
    quiz: Callable[[int], tuple[dict[str, Tensor], Tensor]]
    optimiser: torch.optim.Optimizer | None

    def __call__(self, batch, student, teacher, progress):
        use, labels = self.settings, batch["labels"]
        terms = {"ce": self._cross_entropy(student.logits, labels)}
        if use.supcon_weight:
            contrast = supervised_contrastive(student.hidden_states[0], labels, use.supcon_temperature)
            terms["supcon"] = use.supcon_weight * contrast
        if self.temperature:
            temperatures = self.temperature(progress * use.epochs)
            theirs = self._teacher_logits(batch).detach()
            terms["kd"] = use.kd_weight * kd_loss(student.logits, theirs, *temperatures)
        return terms

    def before(self, network, given, batch, step, progress):
        """The meta step: a pilot step of the student on this batch, and what the quiz says of it."""
        use = self.settings
        if not self.optimiser or step % use.meta_every:
            return
        questions, answers = self.quiz(step)
        epoch = progress * use.epochs
        learned = self.learned

        def distill(call: Callable, learned: Mapping[str, Tensor]) -> Tensor:
            if use.meta == "teacher":
                theirs, temperatures = self._teacher_logits(batch, learned), self.temperature(epoch)
            else:
                theirs = self._teacher_logits(batch)
                temperatures = self.temperature.base(epoch).detach() * learned["log_factors"].exp()
            return use.kd_weight * kd_loss(call(**given).logits, theirs, *temperatures)

        def quiz(call: Callable) -> Tensor:
            return self._cross_entropy(call(**questions).logits, answers)

        for name, gradient in meta_gradient(network, distill, quiz, learned, use.lr).items():
            learned[name].grad = reduce(gradient, "mean")  # over the processes that share the batch
        self.optimiser.step()

    @property
    def learned(self) -> dict[str, Tensor]:
        """What the quiz teaches: the teacher's head or the factors of the temperatures."""
        if self.settings.meta == "teacher":
            return dict(self.head.named_parameters())
        return {"log_factors": self.temperature.log_factors}

    @property
    def beside(self) -> dict[str, Stateful]:
        """What a checkpoint keeps beside the network."""
        kept = {"temperature": self.temperature, "head": self.head, "optimiser": self.optimiser}
        return {name: each for name, each in kept.items() if each}

    def state(self):
        if not self.temperature:
            return {}
        return dict(zip(("tau_student", "tau_teacher"), (tau.item() for tau in self.temperature.last), strict=True))

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, weight=self.class_weights)

    def _teacher_logits(self, batch: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        if "teacher_logits" in batch:
            return batch["teacher_logits"]
        return functional_call(self.head, dict(weights or {}), (batch["teacher_states"],))


def _mapped(utterances: list[str], features: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """The features of each utterance, in a file."""
    whole, lengths = on_disk(features)
    return dict(zip(utterances, np.split(whole, np.cumsum(lengths)[:-1]), strict=True))


def warm_restarts(epoch: float, first: int, lowest: float) -> float:
    """Factor of the learning rate: half cosines from 1 to `lowest`, the first over `first` epochs, each next one twice
    as long (SGDR, Loshchilov & Hutter 2017)."""
    length = first
    while epoch >= length:
        epoch, length = epoch - length, 2 * length
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * epoch / length)) / 2


class MetaCurriculumExperiment(Study):
    """A Study (see its arguments) of the variable-token student.

    quiz: utterances of the training speakers that no student is trained on, for the meta batches; all rows leave them
    out, so that they differ in what they are taught and not in what they hear.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._asked = args, kwargs
        settings = self.all_settings.mckd
        frames = settings.meld_frames if self.corpus.name.startswith("meld") else settings.frames
        self.settings = dataclasses.replace(settings, frames=frames)
        held_out = self.share_of_each_class(settings.meta_share, "quiz")
        self.quiz = [utterance for utterance in self.train if utterance in held_out]
        self.train = [utterance for utterance in self.train if utterance not in held_out]
        self._features: dict[str, dict[str, np.ndarray]] = {}

    @cached_property
    def rows(self) -> dict[str, Row]:
        return TOKEN_ROWS | self.ablations

    @property
    def ablations(self) -> dict[str, Row]:
        return token_ablations(self.settings)

    def settings_of(self, name: str) -> MCKDSettings:
        return dataclasses.replace(self.settings, **self.rows[name].changes)

    def card(self) -> dict[str, Any]:
        return super().card() | {
            "sizes": {part: len(getattr(self, part)) for part in ("train", "quiz", "dev", "test")},
            "quiz": "utterances of training speakers for the meta batches, left out of every student's training",
            "test": "whole utterances, one by one, clean and in every noise type at every SNR; "
            f"the student sees the first {self.settings.frames * HOP / SAMPLE_RATE:g} s",
        }

    @cached_property
    def wave_teachers(self) -> Experiment:
        """Notebook 01's experiment on the same fold and seed: its teacher (a) is the same record."""
        args, kwargs = self._asked
        return Experiment(*args, **kwargs)

    def _teacher_fingerprint(self, row: Row) -> str:
        return self.wave_teachers.fingerprint(row.teacher) if row.teacher else ""

    def _decides(self, name: str) -> dict[str, Any]:
        hears = self.settings_of(name).features == "encoder"
        return {"quiz": self.quiz, "front": self.wave_teachers.fingerprint("a") if hears else ""}

    def _unused(self, name: str) -> set[str]:
        use, teacher = self.settings_of(name), self.rows[name].teacher
        parts = {
            "losses.supervised_contrastive": use.supcon_weight,
            "losses.kd_loss": teacher,
            "temperature.Temperature": teacher,
            "temperature.curriculum_factor": teacher and use.curriculum,
            "temperature.meta_gradient": teacher and use.meta != "none",
            "recipes.Experiment": False,  # what it trains has a fingerprint of its own
        }
        return {part for part, used in parts.items() if not used}

    def new_network(self, name: str) -> VariableTokenForAudioClassification:
        """The row's network before training, with the teacher's CNN and projection where it hears through them."""
        use = self.settings_of(name)
        teacher = self.wave_teachers.teacher("a") if use.features == "encoder" else None
        torch.manual_seed(self.seed)  # after the teacher, which may have to be trained first
        network = VariableTokenForAudioClassification(
            VariableTokenConfig(
                features=use.features,
                tokens=use.tokens,
                frames=use.frames,
                size=use.size,
                layers=use.layers,
                heads=use.heads,
                inner=use.inner,
                dropout=use.dropout,
                z_score=use.z_score,
                front=variable_tokens.front_of(teacher) if teacher else {},
                id2label=dict(enumerate(self.labels)),
                label2id={label: number for number, label in enumerate(self.labels)},
            )
        )
        if teacher:
            network.copy_front(teacher)
        return network

    def _clean_features(self, network: VariableTokenForAudioClassification) -> dict[str, np.ndarray]:
        """float16 (frames, width) of each clean training and quiz utterance, computed once, memory-mapped."""
        kind, utterances = network.config.features, [*self.train, *self.quiz]
        if kind not in self._features:
            waves = (torch.from_numpy(self.audio[utterance])[None].to(DEVICE) for utterance in utterances)
            features = (network.frame_features(wave)[0][0].cpu().numpy().astype(np.float16) for wave in waves)
            self._features[kind] = _mapped(utterances, features)
        return self._features[kind]

    def _pieces(self, name: str, utterances: list[str], taught: bool) -> PairedPieces:
        """The utterances as waves with the row's noise."""
        use = self.settings_of(name)
        return PairedPieces(
            self.audio,
            {utterance: self.labels.index(self.label_of[utterance]) for utterance in utterances},
            seed=self.seed,
            seconds=(use.frames + 1) * HOP / SAMPLE_RATE,  # the last frame reaches further than its step
            noise=self.noise,
            types=self.train_noise(name),
            snr_db=self.noise_settings.train_snr_db,
            targets=Targets({}, self._teacher_says[0], lambda samples: 0) if taught else None,
        )

    def _noisy_features(self, name: str, network: VariableTokenForAudioClassification) -> dict[str, np.ndarray]:
        """As the row hears them in the first epoch: for the quiz and the network's normalisation."""
        utterances = [*self.train, *self.quiz]
        pieces = self._pieces(name, utterances, taught=False)

        def heard(item: dict[str, Any]) -> np.ndarray:
            some = {key: value.to(DEVICE) for key, value in pieces.collate([item]).items()}
            waves = mix(some["clean"], some["noise"], some["snr_db"], self.noise_settings.level, some["lengths"])
            return network.frame_features(waves)[0][0].cpu().numpy()

        return _mapped(utterances, map(heard, pieces))

    @cached_property
    def _teacher_says(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits and mean last states of the whole clean training utterances."""
        teacher, logits, states = self.wave_teachers.teacher("a").to(DEVICE), {}, {}
        for utterance in self.train:
            wave = torch.from_numpy(self.audio[utterance])[None].to(DEVICE)
            heard = wav2vec2.hear(wave, torch.tensor([wave.shape[1]], device=DEVICE))
            state = teacher.wav2vec2(**heard).last_hidden_state[0].mean(0)
            logits[utterance] = teacher.classifier(teacher.projector(state)).cpu()
            states[utterance] = state.cpu()
        return logits, states

    def _objective(self, name: str, quiz: Frames) -> MetaCurriculum:
        row, use = self.rows[name], self.settings_of(name)
        counts = np.bincount([self.labels.index(self.label_of[u]) for u in self.train], minlength=len(self.labels))
        weights = counts.sum() / len(counts) / counts if use.balance == "inverse" else np.ones(len(counts))
        temperature, head, optimiser = None, nn.Identity(), None
        if row.teacher:
            base = "curriculum" if use.curriculum else "fixed"
            temperature = Temperature(base, use.temperature, use.meta == "temperature", use.ramp).to(DEVICE)
            teacher = self.wave_teachers.teacher("a")
            head = deepcopy(nn.Sequential(teacher.projector, teacher.classifier)).requires_grad_().to(DEVICE)
        if row.teacher and use.meta == "temperature":
            optimiser = torch.optim.Adam([temperature.log_factors], use.meta_lr)
        elif row.teacher and use.meta == "teacher":
            optimiser = torch.optim.Adam(head.parameters(), use.meta_teacher_lr)

        def questions(step: int) -> tuple[dict[str, Tensor], Tensor]:
            size = min(use.batch_size, len(quiz))
            chosen = keyed_rng("quiz", self.seed, step).choice(len(quiz), size, replace=False)
            batch = quiz.collate([quiz[index] for index in chosen])
            return {key: value.to(DEVICE) for key, value in batch["given"].items()}, batch["labels"].to(DEVICE)

        weights = torch.tensor(weights, dtype=torch.float32, device=DEVICE)
        return MetaCurriculum(use, weights, temperature, head, questions, optimiser)

    def _frames(self, name: str, features: Mapping[str, np.ndarray], utterances: list[str], taught: bool) -> Frames:
        use = self.settings_of(name)
        labels = {utterance: self.labels.index(self.label_of[utterance]) for utterance in utterances}
        logits, states = self._teacher_says if taught else ({}, {})
        says = {"teacher_states": states} if use.meta == "teacher" else {"teacher_logits": logits}
        return Frames(features, labels, use.frames, self.seed, says if taught else {})

    def prepared(self, name: str) -> tuple[VariableTokenForAudioClassification, MetaCurriculum, Frames | PairedPieces]:
        """The row's network before training, what it is to minimise, and its training set."""
        row = self.rows[name]
        network = self.new_network(name).to(DEVICE)
        if row.noisy:
            features = self._noisy_features(name, network)
            data: Frames | PairedPieces = self._pieces(name, self.train, bool(row.teacher))
        else:
            features = self._clean_features(network)
            data = self._frames(name, features, self.train, bool(row.teacher))
        network.fit_normalisation(torch.from_numpy(features[utterance]) for utterance in self.train)
        return network, self._objective(name, self._frames(name, features, self.quiz, False)), data

    def _fit(self, name: str) -> tuple[VariableTokenForAudioClassification, Fitted]:
        use = self.settings_of(name)
        network, objective, data = self.prepared(name)
        learnt = [p for p in network.parameters() if p.requires_grad]
        learnt += objective.temperature.curriculum_parameters() if objective.temperature else []
        fitted = fit(
            network,
            objective,
            data,
            self._dev_scores(name),
            use,
            optimiser=torch.optim.SGD(learnt, use.lr, use.momentum),
            schedule=lambda done: warm_restarts(done * use.epochs, use.restart, use.lowest_lr / use.lr),
            level=self.noise_settings.level,
            seed=self.seed,
            folder=self._checkpoints(name),
            hear=self._hear,
            beside=objective.beside,
        )
        return network, fitted

    _hear = staticmethod(variable_tokens.hear)

    def _save(self, network: VariableTokenForAudioClassification, folder: Path) -> None:
        variable_tokens.save(network, folder)
