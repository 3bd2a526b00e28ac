"""What all methods share: corpus, fold, seed and noise source; how a variant is trained, scored and recorded."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from ser_kd_utils import records
from ser_kd_utils.data.audio import AudioCache, cache_audio
from ser_kd_utils.data.corpora import CORPORA, load_corpus, split
from ser_kd_utils.data.noise import NoiseBank, keyed_rng
from ser_kd_utils.files import digest, only_one, unfinished
from ser_kd_utils.fingerprint import code_of
from ser_kd_utils.metrics import ser_metrics
from ser_kd_utils.settings import Settings
from ser_kd_utils.training.dataset import SpeechDataset
from ser_kd_utils.training.evaluation import CLEAN, dev_condition, grid, predict
from ser_kd_utils.training.loop import Fitted, Objective, fit, processes

BY_VALUE = ("__init__", "data.corpora", "records", "settings", "files", "fingerprint")
"""Code that counts in a record's fingerprint by what it gave (samples, split, settings), or that only keeps files."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLUMNS = ["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]
OF_VARIANT = ("method", "title", "question", "kind", "role", "baseline", "situation")


class _Recordings(Sequence):
    """Utterances of a cache, each decoded when it is asked for."""

    def __init__(self, audio: AudioCache, utterances: Sequence[str]):
        self.audio, self.utterances = audio, utterances

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.audio[self.utterances[index]]


class Experiment:
    """One corpus, fold and seed, ready to train the variants of a method; records land in `folder`.

    A method adds its settings and variants (`_settings`, `_variants`), their training (`dataset`, `_fit`) and what its
    networks take (`prepare_inputs`).
    """

    method: str
    mark = ""
    """Of the protocol, where a method has more than one."""

    def __init__(
        self,
        corpus: str = "demo",
        profile: str = "tiny",
        fold: int = 1,
        seed: int = 0,
        data_root: str = "",
        noise_dir: str = "",
        results: str = "",
        overrides: str = "",
        name: str = "",
    ):
        """noise_dir: a folder of recordings, empty for generated noise; overrides: settings by method and name, such as
        "mlkd.epochs=2, teacher.epochs=2", whose records go to a folder of their own; name: of a corpus of one's own
        (corpus="manifest"), empty for that of its CSV file. Raises ValueError for what cannot be trained.
        """
        torch.set_num_threads(1)  # a sum split among threads comes out another in its last bits
        self.profile, self.fold, self.seed, self.overrides = profile, fold, seed, overrides
        self.all_settings = self._settings(profile, overrides)
        self.settings, self.noise_settings = self.all_settings[self.method], self.all_settings["noise"]
        heard, rule = self._corpus_and_rule(corpus)
        loaded = load_corpus(heard, data_root or None)
        self.split = split(loaded, rule, fold, seed)
        own = corpus == "manifest"
        self.name, self._own_name = (name or Path(data_root).stem) if own else corpus, name
        if name and not own:
            raise ValueError(f"--name {name} is for a corpus of your own (--corpus manifest), not for {corpus}.")
        if own and self.name in {*CORPORA} - {corpus}:
            raise ValueError(f"{self.name} is a corpus of the suite: pass another name for yours (--name).")
        self.folder = records.results_folder(results, self.name, profile, overrides)
        if own:
            self._claim_folder(data_root)
        self.audio = cache_audio(loaded)
        self.corpus = loaded.without(self.audio.excluded)
        usable = set(self.corpus.manifest["utterance"])
        self.train, self.dev, self.test = (
            [u for u in ids if u in usable] for ids in (self.split.train, self.split.dev, self.split.test)
        )
        self.labels = self.corpus.labels
        self.label_of = dict(zip(self.corpus.manifest["utterance"], self.corpus.manifest["label"], strict=True))
        # babble is made of training speakers, so that no test voice is heard before the test
        generated = partial(NoiseBank.generated, _Recordings(self.audio, self.train))
        self.noise = NoiseBank.from_folder(noise_dir) if noise_dir else generated()
        if unknown := sorted(set(self.noise_settings.train_types) - set(self.noise.types)):
            raise ValueError(f"No noise {', '.join(unknown)} to train on: choose among {', '.join(self.noise.types)}.")

    def _claim_folder(self, manifest: str) -> None:
        """Two corpora of one's own never share a folder of results."""
        path, mine = self.folder / "corpus.json", str(Path(manifest).expanduser().resolve())
        with only_one(self.folder, "corpus"):
            if not path.exists():
                path.write_text(json.dumps({"manifest": mine}) + "\n", encoding="utf-8")
            if (other := json.loads(path.read_text(encoding="utf-8"))["manifest"]) != mine:
                raise ValueError(f"{self.folder} holds results of {other}: pass another name for {mine} (--name).")

    def _corpus_and_rule(self, corpus: str) -> tuple[str, str | None]:
        """The corpus to load, and how it is split (None: its own protocol)."""
        return corpus, None

    def _settings(self, profile: str, overrides: str) -> dict[str, Any]:
        """The settings of all methods, by group."""
        raise NotImplementedError

    def _variants(self) -> dict[str, Any]:
        """The variants of the method that can be trained here, by name."""
        raise NotImplementedError

    def _fit(self, name: str) -> tuple[PreTrainedModel, Fitted, list[pd.DataFrame]]:
        """Train a variant: the network to be saved, how training went, predictions of other checkpoints."""
        raise NotImplementedError

    def dataset(self, name: str) -> SpeechDataset:
        """The variant's training set."""
        raise NotImplementedError

    def prepare_inputs(self, waves: Tensor, lengths: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The arguments of the method's networks for waves (batch, samples) of which `lengths` samples are valid."""
        raise NotImplementedError

    def _feature_extractor(self, network: PreTrainedModel) -> Wav2Vec2FeatureExtractor:
        """What is saved beside the network: with it, `pipeline("audio-classification", folder)` works."""
        return Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=False)

    def _decides(self, name: str) -> dict[str, Any]:
        """What decides the variant's predictions beside what all methods share."""
        return {}

    def _own_options(self, name: str) -> dict[str, str]:
        """What the method's variant needs of the command beside what all take; "" for what it does without."""
        return {}

    @cached_property
    def variants(self) -> dict[str, Any]:
        return self._variants()

    @property
    def ablations(self) -> dict[str, Any]:
        return {name: variant for name, variant in self.variants.items() if variant.kind != "main"}

    def settings_of(self, name: str) -> Settings:
        """The settings the variant is trained with."""
        return self.settings.replace(**self.variants[name].overrides)

    def card(self) -> dict[str, Any]:
        """The protocol in plain words: what must be known to compare a number with another."""
        return self.split.card() | {
            "mark": self.mark,
            "selection": "epoch with the highest dev UA; variants trained in noise choose on dev speech in training noise",
            "test": "whole utterances, one by one, clean and in every noise type at every SNR",
            "test noise": "the second half of every noise recording; training draws from the first",
            "noise": f"{self.noise.source}: {', '.join(self.noise.types)}",
            "speech level": self.noise_settings.speech_level,
            "synthetic": self.corpus.synthetic,
        }

    def run(self, name: str) -> records.Run:
        """The record of a variant: read when it is complete with this fingerprint, else trained and written.

        Raises ValueError for a variant that is not in `variants`, and where a training diverges.
        """
        if name not in self.variants:
            raise ValueError(f"No variant {name!r}: choose among {', '.join(self.variants)}.")
        wanted, folder, state = self.fingerprint(name), self._run_folder(name), processes()
        if state.num_processes == 1 and records.Run(folder).complete(wanted):
            return records.Run(folder)
        # several processes that share a training (torchrun) take one turn among them
        with only_one(self.folder, folder.name) if state.is_main_process else nullcontext():
            (done,) = broadcast_object_list([records.Run(folder).complete(wanted)])
            if not done:
                self._train(name, state.is_main_process)
            state.wait_for_everyone()
        return records.Run(folder)

    def _train(self, name: str, records_it: bool) -> None:
        network, fitted, others = self._fit(name)
        if records_it:
            folder, started = self._run_folder(name), time.monotonic()
            table = self._test(fitted, others)
            info = self._info(name, fitted, network) | {"test_seconds": round(time.monotonic() - started, 1)}
            records.write_run(folder, table, info, partial(self._save, network))
            for old in unfinished(self.folder).glob(f"{folder.name}@*"):
                shutil.rmtree(old)

    def _save(self, network: PreTrainedModel, folder: Path) -> None:
        network.save_pretrained(folder)
        self._feature_extractor(network).save_pretrained(folder)

    def fingerprint(self, name: str) -> str:
        """Of everything that decides the variant's predictions; a student's includes its teacher's."""
        variant = self.variants[name]
        decides = {
            "variant": [variant.noisy, variant.role],
            "settings": self._recorded_settings(name),
            "split": [self.train, self.dev, self.test, self.seed],
            "audio": self.audio.fingerprint,
            "noise": [self.noise.fingerprint, self.train_noise(name)],
            "code": code_of(type(self).__module__, self._code_by_value()),
            "teacher": self._teacher_fingerprint(variant.teacher),
        }
        return digest(decides | self._decides(name))

    def _code_by_value(self) -> list[str]:
        return [f"ser_kd_utils.{name}" for name in BY_VALUE]

    def _teacher_fingerprint(self, teacher: str) -> str:
        return self.fingerprint(teacher) if teacher else ""

    def _checkpoints(self, name: str) -> Path:
        """Where the variant's training keeps its checkpoints: another fingerprint, another place."""
        return unfinished(self.folder) / f"{self._run_folder(name).name}@{self.fingerprint(name)[:12]}"

    def _run_folder(self, name: str) -> Path:
        mark = self.mark if self.mark == "P1" else ""
        return self.folder / "runs" / records.run_id(self.method, name, self.fold, self.seed, mark)

    @property
    def train_types(self) -> tuple[str, ...]:
        """The noise types that may be heard in training."""
        return tuple(self.noise_settings.train_types) or self.noise.types

    def held_out_noise(self, name: str) -> str:
        """The noise type that a variant for unseen noise does not hear in this fold, "" for the others."""
        return self.train_types[(self.fold - 1) % len(self.train_types)] if self.variants[name].held_out_noise else ""

    def train_noise(self, name: str) -> list[str]:
        """The noise types the variant hears in training."""
        heard = self.train_types if self.variants[name].noisy else ()
        return [kind for kind in heard if kind != self.held_out_noise(name)]

    def command(self, name: str) -> str:
        """What trains the variant; DATA, NOISE and the like stand for places on the reader's machine."""
        given = {
            "corpus": "" if self.corpus.synthetic else "manifest" if self.name not in CORPORA else self.name,
            "data-root": "" if self.corpus.synthetic else "DATA",
            "name": self._own_name,
            "noise-dir": "NOISE" if self.noise.source.startswith("folder") else "",
            "profile": "" if self.profile == "tiny" else self.profile,
            "fold": self.fold,
            "seed": self.seed,
            "overrides": self.overrides and f'"{self.overrides}"',
            **self._own_options(name),
        }
        return " ".join(["ser-kd train", name, *(f"--{key} {value}" for key, value in given.items() if value != "")])

    def _recorded_settings(self, name: str) -> dict[str, Any]:
        return {used.group: dataclasses.asdict(used) for used in (self.settings_of(name), self.noise_settings)}

    def share_of_each_class(self, share: float, purpose: str) -> set[str]:
        """Training utterances, the same for every variant: of each class, those first in an order random by purpose."""
        order = sorted(self.train, key=lambda utterance: keyed_rng(purpose, utterance, self.seed).random())
        classes = [[u for u in order if self.label_of[u] == label] for label in self.labels]
        return {utterance for some in classes for utterance in some[: max(1, round(share * len(some)))]}

    def _windows(self, name: str, classes: Mapping[str, int] | None = None, **more: Any) -> SpeechDataset:
        """Windows of the training utterances, or those of `classes`, with the variant's noise."""
        noise = {"types": types, "noise": self.noise} if (types := self.train_noise(name)) else {}
        given = {"audio": self.audio, "snr_db": self.noise_settings.train_snr_db, "seed": self.seed, **noise, **more}
        return SpeechDataset(classes=self._classes(self.train) if classes is None else classes, **given)

    def _classes(self, utterances: Sequence[str]) -> dict[str, int]:
        return {utterance: self.labels.index(self.label_of[utterance]) for utterance in utterances}

    def _optimise(
        self,
        name: str,
        model: nn.Module,
        objective: Objective,
        data: SpeechDataset,
        *,
        dev: Callable | None = None,
        **more,
    ) -> Fitted:
        """Train with what all methods have in common; more: as `training.loop.fit` takes it."""
        return fit(
            model,
            objective,
            data,
            dev or self._dev_scores(name),
            self.settings_of(name),
            speech_level=self.noise_settings.speech_level,
            seed=self.seed,
            folder=self._checkpoints(name),
            prepare_inputs=self.prepare_inputs,
            **more,
        )

    def _dev_scores(self, name: str) -> Callable[[nn.Module], dict[str, float]]:
        heard = self.train_noise(name)
        conditions = dev_condition(self.seed, heard, self.noise_settings.train_snr_db) if heard else lambda _: [CLEAN]
        return lambda model: self._scores(self._predict(model, self.dev, conditions, "train"))

    def _scores(self, table: pd.DataFrame) -> dict[str, float]:
        """UA and WA of a table of logits."""
        truth = [self.labels.index(self.label_of[u]) for u in table["utterance"]]
        guess = [row.argmax() for row in table["logits"]]
        scores = ser_metrics().compute(predictions=guess, references=truth)
        return {name: scores[name] for name in ("UA", "WA")}

    def _predict(self, model: nn.Module, utterances, conditions, part: str) -> pd.DataFrame:
        return predict(
            model,
            self.audio,
            utterances,
            conditions,
            self.noise,
            part=part,
            seed=self.seed,
            speech_level=self.noise_settings.speech_level,
            prepare_inputs=self.prepare_inputs,
        )

    def _test(self, fitted: Fitted, others: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """Predictions of the chosen epoch over the whole noise grid, and of the last epoch on a part of it.

        The last epoch is there to tell what choosing one is worth: clean speech and the middle SNR do.
        """
        snr_db, model = self.noise_settings.test_snr_db, fitted.model
        conditions = {
            "best": grid(self.noise.types, snr_db),
            "last": grid(self.noise.types, snr_db[(len(snr_db) - 1) // 2 :][:1]),
        }
        best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        tables = []
        for checkpoint, weights in (("last", fitted.last), ("best", best_weights)):
            model.load_state_dict(weights)
            some = conditions[checkpoint]
            tables.append(
                self._predict(model, self.test, lambda _, some=some: some, "test").assign(checkpoint=checkpoint)
            )
        table = pd.concat([*tables, *others], ignore_index=True)
        return table.assign(fold=self.fold, seed=self.seed, label=table["utterance"].map(self.label_of))[COLUMNS]

    def _info(self, name: str, fitted: Fitted, network: nn.Module) -> Mapping[str, Any]:
        variant = self.variants[name]
        return {
            **{key: getattr(variant, key) for key in OF_VARIANT},
            "variant": name,
            "held_out_noise": self.held_out_noise(name),
            "corpus": self.name,
            "profile": self.profile,
            "fold": self.fold,
            "seed": self.seed,
            "overrides": self.overrides,
            "labels": self.labels,
            "train_noise": self.train_noise(name),
            "parameters": sum(p.numel() for p in network.parameters()),
            "settings": self._recorded_settings(name),
            "protocol": self.card(),
            "command": self.command(name),
            "processes": processes().num_processes,
            "best_epoch": fitted.best_epoch,
            "history": fitted.history.reset_index().to_dict("records"),
            "seconds": round(fitted.seconds, 1),
            "items_per_second": round(fitted.items * self.settings_of(name).epochs / fitted.seconds, 1),
            "peak_memory_mb": round(fitted.peak_memory_mb),
            "fingerprint": self.fingerprint(name),
            "teacher_fingerprint": self._teacher_fingerprint(variant.teacher) or None,
            "audio_fingerprint": self.audio.fingerprint,
            "noise_fingerprint": self.noise.fingerprint,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **records.environment(),
        }
