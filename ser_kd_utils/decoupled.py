"""DKDFMH (notebooks 04 and 05): a CNN with fused attention heads and decoupled distillation, under two protocols."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ser_kd_utils import records
from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.evaluation import CLEAN
from ser_kd_utils.models import head_fusion, wav2vec2
from ser_kd_utils.models.head_fusion import HeadFusionConfig, HeadFusionForAudioClassification
from ser_kd_utils.recipes import Experiment
from ser_kd_utils.rows import CNN_ROWS, P1_ROWS, Row, cnn_ablations
from ser_kd_utils.segments import Segments, at_least
from ser_kd_utils.settings import DKDSettings
from ser_kd_utils.study import Study
from ser_kd_utils.training import CrossEntropy, Decoupled, Fitted, fit

PROTOCOLS = {
    "P1": "the paper's likely one, optimistic: random fifths of the utterances, those shorter than a segment dropped, "
    "the epoch chosen by the test score; of the other four fifths a tenth of all is dev, to measure that choice",
    "P2": "the corpus's own; all utterances, short ones repeated up to a segment; the epoch chosen on dev speech",
}
SELECTION = {
    "P1": "what is reported as P1: checkpoints test-UA and test-WA; `best` and the saved weights: highest dev UA",
    "P2": "epoch with the highest dev UA; rows trained in noise choose on dev speech in training noise",
}
IMPROVISED = {"iemocap": "iemocap-improvised"}  # P1 there: improvised speech, excitement instead of happiness
NAMES = {"anger": "angry", "happiness": "happy", "sadness": "sad", "ang": "angry", "hap": "happy", "neu": "neutral"}
"""Other names of classes in files of logits: nouns, IEMOCAP's short ones."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_TEST = ("UA", "WA")
"""Scores by which an epoch is also chosen on the test speech itself, to measure what that is worth."""


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


class DecoupledExperiment(Study):
    """A Study (see its arguments) of DKDFMH under P1 or P2."""

    def __init__(
        self,
        corpus: str = "demo",
        profile: str = "tiny",
        fold: int = 1,
        seed: int = 0,
        data_root: str = "",
        noise_dir: str = "",
        results: str = "",
        protocol: str = "P2",
        changes: str = "",
        teacher_logits: str = "",
    ):
        """protocol: of PROTOCOLS; teacher_logits: a CSV file (see `stored_logits`), for row cnn-stored.

        Raises ValueError for another protocol, and for P1 where a corpus has no random split.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(f"No protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
        optimistic = protocol == "P1"
        self._asked = corpus, profile, fold, seed, data_root, noise_dir, results
        heard = IMPROVISED.get(corpus, corpus) if optimistic else corpus
        split = "random" if optimistic else ""
        super().__init__(heard, profile, fold, seed, data_root, noise_dir, results, split, changes)
        self.folder = records.results_folder(results, corpus, profile, "P1" if optimistic else "", changes)
        self.protocol, self.teacher_logits = protocol, teacher_logits
        self.settings = self.all_settings.dkd
        self._clean: dict[str, Segments] = {}
        if optimistic:
            self.train, self.dev, self.test = (
                at_least(self.audio, ids, self.settings.segment) for ids in (self.train, self.dev, self.test)
            )
        self.stored = stored_logits(teacher_logits, self.labels) if teacher_logits else {}
        if missing := [u for u in self.train if self.stored and u not in self.stored]:
            raise ValueError(f"{teacher_logits}: no logits for {len(missing)} utterances ({missing[0]}, ...).")

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Main rows and ablations that can be trained here: under P1 the main rows of networks of one kind."""
        if self.protocol == "P1":
            return {name: CNN_ROWS[name] for name in P1_ROWS}
        main = {name: row for name, row in CNN_ROWS.items() if row.teacher != "stored" or self.stored}
        return main | self.ablations

    @property
    def ablations(self) -> dict[str, Row]:
        return cnn_ablations(self.settings)

    def settings_of(self, name: str) -> DKDSettings:
        return dataclasses.replace(self.settings, **self.rows[name].changes)

    def card(self) -> dict[str, Any]:
        return super().card() | {
            "name": f"{self.protocol}: {PROTOCOLS[self.protocol]}",
            "selection": SELECTION[self.protocol],
            "sizes": {part: len(getattr(self, part)) for part in ("train", "dev", "test")},
            "test": "whole utterances, the mean of their segments' logits, clean and in every noise type at every SNR",
            "also": "checkpoints test-UA, test-WA: the epoch with the highest score on the clean test speech itself",
        }

    def teacher(self, name: str = "cnn-teacher") -> HeadFusionForAudioClassification:
        """The network of a row, frozen; trained first when its record is not here."""
        return wav2vec2.freeze(HeadFusionForAudioClassification.from_pretrained(self.run(name).folder / "model"))

    @cached_property
    def wave_teachers(self) -> Experiment:
        """Notebook 01's experiment on the same fold and seed: its teacher (a) is the same record."""
        return Experiment(*self._asked, changes=self.changes)

    def _teacher_fingerprint(self, row: Row) -> str:
        if row.teacher == "stored":
            return hashlib.sha256(Path(self.teacher_logits).read_bytes()).hexdigest()
        return self.wave_teachers.fingerprint("a") if row.teacher == "a" else super()._teacher_fingerprint(row)

    def _decides(self, name: str) -> dict[str, Any]:
        return {"protocol": self.protocol}

    def _own_options(self, name: str) -> dict[str, str]:
        stored = self.rows[name].teacher == "stored"
        return {
            "corpus": "" if self.corpus.synthetic else self._asked[0],  # P1 may hear only its improvised part
            "protocol": self.protocol,
            "teacher-logits": "LOGITS.csv" if stored else "",
        }

    def _unused(self, name: str) -> set[str]:
        row, loss = self.rows[name], self.settings_of(name).loss
        unused = {"recipes.Experiment", "losses.decoupled_kd" if loss == "kd" else "losses.kd_loss"}
        return unused if row.teacher else unused | {"training.Decoupled"}

    def new_network(self, name: str) -> HeadFusionForAudioClassification:
        """The row's network before training."""
        row, settings = self.rows[name], self.settings_of(name)
        heads, size = (settings.heads, settings.size) if row.small else (settings.teacher_heads, settings.teacher_size)
        torch.manual_seed(self.seed)
        return HeadFusionForAudioClassification(self._config(settings, heads, size))

    def _config(self, settings: DKDSettings, heads: int, size: int) -> HeadFusionConfig:
        return HeadFusionConfig(
            features=settings.features,
            frame_step=round(settings.frame_step * SAMPLE_RATE),
            channels=settings.channels,
            heads=heads,
            size=size,
            attention=settings.attention,
            segment=round(settings.segment * SAMPLE_RATE),
            hop=round((settings.segment - settings.test_overlap) * SAMPLE_RATE),
            id2label=dict(enumerate(self.labels)),
            label2id={label: number for number, label in enumerate(self.labels)},
        )

    def segments(self, name: str) -> Segments:
        """The row's training set, with what its teacher says of the clean segments."""
        row, settings = self.rows[name], self.settings_of(name)
        data = copy(self._clean_segments(settings.features))
        if row.noisy:
            noise = {"noise": self.noise, "types": self.train_noise(name), "snr_db": self.noise_settings.train_snr_db}
            data = self._cut(settings.features, **noise)
        if row.teacher == "cnn-teacher":
            data.teacher_logits = self._cnn_logits
        elif row.teacher:
            logits = self._wav2vec2_logits() if row.teacher == "a" else self.stored
            data.teacher_logits = torch.stack([logits[utterance] for utterance in data.utterances])
        return data

    def _clean_segments(self, features: str) -> Segments:
        """Computed once for all rows here."""
        if features not in self._clean:
            self._clean[features] = self._cut(features)
        return self._clean[features]

    def _cut(self, features: str, **noise: Any) -> Segments:
        settings = dataclasses.replace(self.settings, features=features)
        labels = {utterance: self.labels.index(self.label_of[utterance]) for utterance in self.train}
        hop = round((settings.segment - settings.train_overlap) * SAMPLE_RATE)
        return Segments(
            self.audio, labels, self._config(settings, settings.heads, settings.size), hop, seed=self.seed, **noise
        )

    @cached_property
    def _cnn_logits(self) -> Tensor:
        """What the CNN teacher says of the clean segments."""
        teacher = self.teacher().to(DEVICE)  # frozen, but perhaps trained first
        features = self._clean_segments(self.settings.features).features
        return torch.cat([teacher(features=some.to(DEVICE)).logits.cpu() for some in features.split(256)])

    def _wav2vec2_logits(self) -> dict[str, Tensor]:
        """Of the whole clean utterances."""
        teacher, logits = self.wave_teachers.teacher("a").to(DEVICE), {}
        for utterance in self.train:
            wave = torch.from_numpy(self.audio[utterance])[None].to(DEVICE)
            logits[utterance] = teacher(**wav2vec2.hear(wave, torch.tensor([wave.shape[1]], device=DEVICE))).logits[0]
        return {utterance: row.cpu() for utterance, row in logits.items()}

    def _fit(self, name: str) -> tuple[HeadFusionForAudioClassification, Fitted]:
        row, settings = self.rows[name], self.settings_of(name)
        data = self.segments(name)
        network = self.new_network(name)
        network.fit_normalisation(data.heard(self.noise_settings.level))
        peeks, dev = Peeks(), self._dev_scores(name)

        def score(model: nn.Module) -> dict[str, float]:
            peeks.tables.append(self._predict(model, self.test, lambda _: [CLEAN], "test"))
            return dev(model)

        fitted = fit(
            network,
            Decoupled(settings) if row.teacher else CrossEntropy(),
            data,
            score,
            settings,
            optimiser=torch.optim.Adam(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay),
            schedule=lambda done: 0.1 ** sum(done >= drop for drop in settings.lr_drops),
            level=self.noise_settings.level,
            seed=self.seed,
            folder=self._checkpoints(name),
            hear=self._hear,
            beside={"peeks": peeks},
        )
        scores = pd.DataFrame([self._scores(table) for table in peeks.tables], index=fitted.history.index)
        best = {metric: peeks.tables[scores[metric].to_numpy().argmax()] for metric in ON_TEST}
        return network, dataclasses.replace(
            fitted,
            history=fitted.history.join(scores.add_prefix("test_")),
            also=[table.assign(checkpoint=f"test-{metric}") for metric, table in best.items()],
        )

    _hear = staticmethod(head_fusion.hear)

    def _save(self, network: HeadFusionForAudioClassification, folder: Path) -> None:
        head_fusion.save(network, folder)


def stored_logits(path: str | Path, labels: tuple[str, ...]) -> Mapping[str, Tensor]:
    """A teacher's logits by utterance, (classes,) in the order of `labels`.

    Read from a CSV file with the column `utterance` or `file` and one column a class.
    Classes may have other NAMES; those that are none of `labels` are left out. Raises ValueError when a class has none.
    """
    table = pd.read_csv(path)
    table = table.rename(columns=NAMES | {"file": "utterance"})
    if missing := [column for column in ("utterance", *labels) if column not in table]:
        raise ValueError(f"{path}: no column {', '.join(missing)} (found: {', '.join(table.columns)}).")
    names = [Path(name).stem for name in table["utterance"]]
    return dict(zip(names, torch.tensor(table[list(labels)].to_numpy(), dtype=torch.float32), strict=True))
