"""How DKDFMH's networks (notebooks 04 and 05) are trained, under two protocols."""

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.methods.dkdfmh import model
from ser_kd_utils.methods.dkdfmh.loss import Decoupled
from ser_kd_utils.methods.teacher.encoders import freeze
from ser_kd_utils.methods.teacher.experiment import DEVICE, MethodExperiment
from ser_kd_utils.training.dataset import SpeechDataset, shuffled
from ser_kd_utils.training.evaluation import CLEAN
from ser_kd_utils.training.losses import CrossEntropy

PROTOCOLS = {
    "P1": "the paper's likely one, optimistic: random fifths of the utterances, those shorter than a segment dropped, "
    "the epoch chosen by the test score; of the other four fifths a tenth of all is dev, to measure that choice",
    "P2": "the corpus's own; all utterances, short ones repeated up to a segment; the epoch chosen on dev speech",
}
SELECTION = "what is reported as P1: checkpoints test-UA and test-WA; `best` and the saved weights: highest dev UA"
# P1 there: improvised speech, excitement instead of happiness.
IMPROVISED = dict.fromkeys(("iemocap", "iemocap-dev-speakers"), "iemocap-improvised")
SHAPE = ("features", "channels", "num_attention_heads", "head_dim", "attention")
# Scores by which an epoch is also chosen on the test speech itself, to measure what that is worth.
ON_TEST = ("UA", "WA")
_BATCH = 256  # segments at a time where all are gone through


class Peeks(list[Tensor]):
    """Logits of the clean test speech after each epoch, (utterances, classes), kept with the checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        return {"logits": [*self]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self[:] = state["logits"]


class DKDFMHExperiment(MethodExperiment):
    """The Experiment (see its arguments) of DKDFMH under P1 or P2."""

    method = "dkdfmh"
    prepare_inputs = staticmethod(model.prepare_inputs)

    def __init__(self, *args: Any, protocol: str = "P2", **options: Any):
        """protocol: of PROTOCOLS. Raises ValueError for another, and for P1 where a corpus has no random split."""
        if protocol not in PROTOCOLS:
            raise ValueError(f"No protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
        self.mark = protocol
        if protocol == "P1":
            self.split_protocol, self.parts_of = "random", IMPROVISED
        super().__init__(*args, **options)
        self._clean: dict[str, Tensor] = {}
        if protocol == "P1":
            shortest, parts = round(self.settings.segment * SAMPLE_RATE), (self.train, self.dev, self.test)
            self.train, self.dev, self.test = ([u for u in part if len(self.audio[u]) >= shortest] for part in parts)

    def available(self):
        """All variants under P2; under P1 those that are declared for it."""
        every = super().available()
        return {name: each for name, each in every.items() if self.mark in ("P2", *each.protocols)}

    def card(self) -> dict[str, Any]:
        card = super().card() | ({"selection": SELECTION} if self.mark == "P1" else {})
        return card | {
            "name": f"{self.mark}: {PROTOCOLS[self.mark]}",
            "test": "whole utterances, the mean of their segments' logits, clean and in every noise type at every SNR",
            "also": "checkpoints test-UA, test-WA: the epoch with the highest score on the clean test speech itself",
        }

    def new_network(self, name: str) -> model.HeadFusionForAudioClassification:
        """The variant's network before training."""
        torch.manual_seed(self.seed)
        return model.HeadFusionForAudioClassification(self._config(name))

    def _config(self, name: str) -> model.HeadFusionConfig:
        use = self.settings_of(name)
        seconds = {"frame_step": use.frame_step, "segment": use.segment, "hop": use.segment - use.test_overlap}
        samples = {key: round(value * SAMPLE_RATE) for key, value in seconds.items()}
        return model.HeadFusionConfig(**{key: getattr(use, key) for key in SHAPE}, **samples, **self.class_names)

    def dataset(self, name: str) -> SpeechDataset:
        """The variant's training set of segments, with its teacher's outputs for the clean ones."""
        use, variant = self.settings_of(name), self.variants[name]
        longest, hop = (round(s * SAMPLE_RATE) for s in (use.segment, use.segment - use.train_overlap))
        data = self._windows(name, self.classes(self.train), longest=longest, hop=hop, order=shuffled)
        if not variant.noisy:
            if use.features not in self._clean:  # computed once for all variants here that take the same
                self._clean[use.features] = self.features(name, data)
            data.features = self._clean[use.features]
        if variant.teacher == "cnn-teacher":
            data.targets = {"teacher_logits": self._cnn_logits}
        elif variant.teacher:
            logits = self.teachers.outputs().logits
            data.targets = {"teacher_logits": torch.stack([logits[utterance] for utterance, _ in data.windows])}
        return data

    def features(self, name: str, data: SpeechDataset) -> Tensor:
        """Features of all segments as the network gets them in the first epoch, (segments, frames, width)."""
        if data.features is not None:
            return data.features
        config, level = self._config(name), self.noise_settings.speech_level
        return torch.from_numpy(data.computed(lambda waves: model.features_of(waves, config), level, _BATCH)[0])

    @cached_property
    def _cnn_logits(self) -> Tensor:
        """The CNN teacher's logits for the clean segments."""
        folder = self.run("cnn-teacher").folder  # trained first when its record is not here
        teacher = freeze(model.HeadFusionForAudioClassification.from_pretrained(folder / "model")).to(DEVICE)
        features = self.dataset("cnn-teacher").features
        return torch.cat([teacher(features=some.to(DEVICE)).logits.cpu() for some in features.split(_BATCH)])

    def trained(self, name: str):
        use, data, network = self.settings_of(name), self.dataset(name), self.new_network(name)
        network.fit_normalisation(self.features(name, data))
        objective = Decoupled(use) if self.variants[name].teacher else CrossEntropy()
        peeks, dev = Peeks(), self._dev_scores(name)

        def score(model: nn.Module) -> dict[str, float]:
            peeks.append(torch.tensor(np.stack(self._predict(model, self.test, lambda _: [CLEAN], "test")["logits"])))
            return dev(model)

        optimizer = torch.optim.Adam(network.parameters(), lr=use.lr, weight_decay=use.weight_decay)
        more = {"schedule": lambda done: 0.1 ** sum(done >= drop for drop in use.lr_drops), "optimizer": optimizer}
        fitted = self._optimise(name, network, objective, data, score, extra_state={"peeks": peeks}, **more)
        table = pd.DataFrame({"utterance": self.test, "condition": CLEAN[0], "snr_db": CLEAN[1]})
        tables = [table.assign(logits=[*logits.numpy()]) for logits in peeks]
        scores = pd.DataFrame([self._scores(table) for table in tables], index=fitted.history.index)
        fitted = dataclasses.replace(fitted, history=fitted.history.join(scores.add_prefix("test_")))
        return network, fitted, [tables[scores[m].argmax()].assign(checkpoint=f"test-{m}") for m in ON_TEST]
