"""How DKDFMH's networks (notebooks 04 and 05) are trained, under two protocols."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.features import on_disk
from ser_kd_utils.data.noise import mix
from ser_kd_utils.methods.dkdfmh import model
from ser_kd_utils.methods.dkdfmh.loss import Decoupled
from ser_kd_utils.methods.dkdfmh.model import HeadFusionConfig, HeadFusionForAudioClassification
from ser_kd_utils.methods.dkdfmh.variants import P1_VARIANTS
from ser_kd_utils.methods.experiment import MethodExperiment
from ser_kd_utils.methods.teacher.encoders import freeze
from ser_kd_utils.training.dataset import Shuffled, SpeechDataset
from ser_kd_utils.training.evaluation import CLEAN
from ser_kd_utils.training.experiment import DEVICE
from ser_kd_utils.training.losses import CrossEntropy

PROTOCOLS = {
    "P1": "the paper's likely one, optimistic: random fifths of the utterances, those shorter than a segment dropped, "
    "the epoch chosen by the test score; of the other four fifths a tenth of all is dev, to measure that choice",
    "P2": "the corpus's own; all utterances, short ones repeated up to a segment; the epoch chosen on dev speech",
}
SELECTION = {
    "P1": "what is reported as P1: checkpoints test-UA and test-WA; `best` and the saved weights: highest dev UA",
    "P2": "epoch with the highest dev UA; variants trained in noise choose on dev speech in training noise",
}
IMPROVISED = {"iemocap": "iemocap-improvised"}  # P1 there: improvised speech, excitement instead of happiness
ON_TEST = ("UA", "WA")
"""Scores by which an epoch is also chosen on the test speech itself, to measure what that is worth."""
_BATCH = 256  # segments at a time where all are gone through


class Peeks:
    """Predictions of the clean test speech after each epoch, kept with the checkpoints."""

    def __init__(self) -> None:
        self.tables: list[pd.DataFrame] = []

    def state_dict(self) -> dict[str, Any]:
        tables = [table.assign(logits=[row.tolist() for row in table["logits"]]) for table in self.tables]
        return {"tables": [table.to_dict("list") for table in tables]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        tables = map(pd.DataFrame, state["tables"])
        self.tables = [t.assign(logits=[np.array(row, np.float16) for row in t["logits"]]) for t in tables]


class DKDFMHExperiment(MethodExperiment):
    """An Experiment (see its arguments) of DKDFMH under P1 or P2."""

    method = "dkdfmh"
    prepare_inputs = staticmethod(model.prepare_inputs)

    def __init__(self, *args: Any, protocol: str = "P2", **options: Any):
        """protocol: of PROTOCOLS. Raises ValueError for another, and for P1 where a corpus has no random split."""
        if protocol not in PROTOCOLS:
            raise ValueError(f"No protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
        self.mark = protocol
        super().__init__(*args, **options)
        if protocol == "P1":
            least = self.settings.segment * SAMPLE_RATE
            self.train, self.dev, self.test = (
                [u for u in part if len(self.audio[u]) >= round(least)] for part in (self.train, self.dev, self.test)
            )

    def _corpus_and_rule(self, corpus: str):
        return (IMPROVISED.get(corpus, corpus), "random") if self.mark == "P1" else (corpus, None)

    def _variants(self):
        """All under P2, the main ones of networks of one kind under P1."""
        every = super()._variants()
        return {name: every[name] for name in P1_VARIANTS} if self.mark == "P1" else every

    def card(self) -> dict[str, Any]:
        return super().card() | {
            "name": f"{self.mark}: {PROTOCOLS[self.mark]}",
            "selection": SELECTION[self.mark],
            "sizes": {part: len(getattr(self, part)) for part in ("train", "dev", "test")},
            "test": "whole utterances, the mean of their segments' logits, clean and in every noise type at every SNR",
            "also": "checkpoints test-UA, test-WA: the epoch with the highest score on the clean test speech itself",
        }

    def _decides(self, name: str) -> dict[str, Any]:
        return {"protocol": self.mark}

    def _own_options(self, name: str) -> dict[str, str]:
        return {"protocol": self.mark}

    def teacher(self) -> HeadFusionForAudioClassification:
        """The network of cnn-teacher, frozen; trained first when its record is not here."""
        return freeze(HeadFusionForAudioClassification.from_pretrained(self.run("cnn-teacher").folder / "model"))

    def new_network(self, name: str) -> HeadFusionForAudioClassification:
        """The variant's network before training."""
        torch.manual_seed(self.seed)
        return HeadFusionForAudioClassification(self._config(name))

    def _config(self, name: str) -> HeadFusionConfig:
        use, large = self.settings_of(name), self.variants[name].role == "teacher"
        return HeadFusionConfig(
            features=use.features,
            frame_step=round(use.frame_step * SAMPLE_RATE),
            channels=use.channels,
            num_attention_heads=use.teacher_attention_heads if large else use.num_attention_heads,
            head_dim=use.teacher_head_dim if large else use.head_dim,
            attention=use.attention,
            segment=round(use.segment * SAMPLE_RATE),
            hop=round((use.segment - use.test_overlap) * SAMPLE_RATE),
            id2label=dict(enumerate(self.labels)),
            label2id={label: number for number, label in enumerate(self.labels)},
        )

    def dataset(self, name: str) -> SpeechDataset:
        """The variant's training set, segments, with what its teacher says of the clean ones."""
        use, variant = self.settings_of(name), self.variants[name]
        hop = round((use.segment - use.train_overlap) * SAMPLE_RATE)
        data = self._windows(name, longest=round(use.segment * SAMPLE_RATE), hop=hop, order=Shuffled)
        if not variant.noisy:
            data.features = self._clean_features(name, hop)
        if variant.teacher == "cnn-teacher":
            data.targets = {"teacher_logits": self._cnn_logits}
        elif variant.teacher:
            logits = self.teachers.outputs().logits
            data.targets = {"teacher_logits": torch.stack([logits[utterance] for utterance, _ in data.windows])}
        return data

    def _clean_features(self, name: str, hop: int) -> Tensor:
        """(segments, frames, width), computed once for all variants here that hear the same."""
        config = self._config(name)
        if config.features not in self._computed:
            waves = (torch.from_numpy(self.audio[utterance])[None] for utterance in self.train)
            cut = (model.segments_of(wave, config.segment, hop)[0] for wave in waves)
            self._computed[config.features] = _mapped(model.features_of(segments, config) for segments in cut)
        return self._computed[config.features]

    @cached_property
    def _computed(self) -> dict[str, Tensor]:
        return {}

    @cached_property
    def _cnn_logits(self) -> Tensor:
        """What the CNN teacher says of the clean segments."""
        teacher = self.teacher().to(DEVICE)  # frozen, but perhaps trained first
        features = self.dataset("cnn-teacher").features
        return torch.cat([teacher(features=some.to(DEVICE)).logits.cpu() for some in features.split(_BATCH)])

    def noisy_features(self, name: str, data: SpeechDataset) -> Tensor:
        """Features of all segments as the network hears them in the first epoch, (segments, frames, width).

        For its normalisation, which may see training speech only.
        """
        if data.features is not None:
            return data.features
        level, config, count = self.noise_settings.speech_level, self._config(name), len(data)
        batches = (data.__getitems__([*range(first, min(first + _BATCH, count))]) for first in range(0, count, _BATCH))
        return _mapped(
            model.features_of(mix(b["clean"], b["noise"], b["snr_db"], level, b["lengths"]), config) for b in batches
        )

    def _fit(self, name: str):
        use, data, network = self.settings_of(name), self.dataset(name), self.new_network(name)
        network.fit_normalisation(self.noisy_features(name, data))
        peeks, dev = Peeks(), self._dev_scores(name)

        def score(network: nn.Module) -> dict[str, float]:
            peeks.tables.append(self._predict(network, self.test, lambda _: [CLEAN], "test"))
            return dev(network)

        fitted = self._optimise(
            name,
            network,
            Decoupled(use) if self.variants[name].teacher else CrossEntropy(),
            data,
            dev=score,
            optimizer=torch.optim.Adam(network.parameters(), lr=use.lr, weight_decay=use.weight_decay),
            schedule=lambda done: 0.1 ** sum(done >= drop for drop in use.lr_drops),
            extra_state={"peeks": peeks},
        )
        scores = pd.DataFrame([self._scores(table) for table in peeks.tables], index=fitted.history.index)
        best = {metric: peeks.tables[scores[metric].to_numpy().argmax()] for metric in ON_TEST}
        fitted = dataclasses.replace(fitted, history=fitted.history.join(scores.add_prefix("test_")))
        return network, fitted, [table.assign(checkpoint=f"test-{metric}") for metric, table in best.items()]


def _mapped(parts: Iterable[Tensor]) -> Tensor:
    return torch.from_numpy(on_disk(part.numpy() for part in parts)[0])
