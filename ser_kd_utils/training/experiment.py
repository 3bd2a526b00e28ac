"""What all methods share: corpus, fold, seed and noise source; how a variant is trained, scored and recorded."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import Subset
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from ser_kd_utils import records
from ser_kd_utils.data.audio import cache_audio, refuse_shared_samples
from ser_kd_utils.data.corpora import CORPORA, load_corpus, split
from ser_kd_utils.data.noise import NoiseBank, draw, keyed_rng
from ser_kd_utils.files import digest, only_one, sha256, unfinished
from ser_kd_utils.fingerprint import code_of
from ser_kd_utils.metrics import MODULE, ser_metrics
from ser_kd_utils.progress import line, over
from ser_kd_utils.settings import Settings
from ser_kd_utils.training.dataset import SpeechDataset
from ser_kd_utils.training.evaluation import CLEAN, grid, predict
from ser_kd_utils.training.loop import Fitted, fit, precision_of, processes


def names_of_classes(labels: Sequence[str]) -> dict[str, dict]:
    """Of a network's config."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


class Experiment:
    """One corpus, fold and seed, ready to train the variants of a method; records land in `folder`.

    A method adds its name (`method`), `settings_by_group(profile, overrides)`, `available()`, the variants that can be
    trained here by name, `trained(name)`, which gives the network to be saved, how training went and predictions of
    other checkpoints, `prepare_inputs(waves, lengths, mask)`, the arguments of its networks, `code_by_value()`, modules
    that count in a fingerprint by what they gave, and `teacher_fingerprint(teacher)`.
    """

    mark = ""  # of the protocol, where the method has more than one
    split_protocol: str | None = None  # None: the corpus's own
    parts_of: Mapping[str, str] = {}  # corpora of which only a part is loaded

    def __init__(
        self, corpus: str = "demo", profile: str = "tiny", fold: int = 1, seed: int = 0, data_root: str = "",
        noise_dir: str = "", results: str = "", overrides: str = "", name: str = "",
    ):  # fmt: skip
        """noise_dir: a folder of recordings, empty for generated noise; overrides: settings by method and name, such as
        "mlkd.epochs=2, teacher.epochs=2", whose records go to a folder of their own; name: of a corpus of one's own
        (corpus="manifest"), empty for that of its CSV file. Raises ValueError for what cannot be trained.
        """
        self.options = {key: value for key, value in locals().items() if key != "self"}
        torch.set_num_threads(1)  # a sum split among threads comes out another in its last bits
        self.profile, self.fold, self.seed, self.overrides = profile, fold, seed, overrides
        self.all_settings = self.settings_by_group(profile, overrides)
        self.settings, self.noise_settings = self.all_settings[self.method], self.all_settings["noise"]
        loaded = load_corpus(self.parts_of.get(corpus, corpus), data_root or None)
        self.split = split(loaded, self.split_protocol, fold, seed)
        self.name = (name or Path(data_root).stem) if corpus == "manifest" else corpus
        self.folder = records.results_folder(results, self.name, profile, overrides)
        if corpus == "manifest":
            self._claim_folder(str(Path(data_root).expanduser().resolve()))
        self.audio = cache_audio(loaded)
        refuse_shared_samples(self.split, self.audio)
        self.corpus = loaded.without(self.audio.excluded)
        self.labels = self.corpus.labels
        self.class_names = names_of_classes(self.labels)
        self.label_of = dict(zip(self.corpus.manifest["utterance"], self.corpus.manifest["label"], strict=True))
        parts = (self.split.train, self.split.dev, self.split.test)
        self.train, self.dev, self.test = ([u for u in part if u in self.label_of] for part in parts)
        if noise_dir:
            self.noise = NoiseBank.from_folder(noise_dir)
        else:  # babble is made of training speakers, so that no test voice is heard before the test
            self.noise = NoiseBank.generated(Subset(self.audio, self.train))  # each decoded when it is asked for
        if unknown := sorted(set(self.noise_settings.train_types) - set(self.noise.types)):
            raise ValueError(f"No noise {', '.join(unknown)} to train on: choose among {', '.join(self.noise.types)}.")
        self.train_types = self.noise_settings.train_types or self.noise.types
        self.variants = self.available()

    def _claim_folder(self, manifest: str) -> None:
        """A corpus of one's own shares its folder of results with no other."""
        if self.name in {*CORPORA} - {"manifest"}:
            raise ValueError(f"{self.name} is a corpus of the suite: pass another name for yours (--name).")
        path = self.folder / "corpus.json"
        with only_one(self.folder, "corpus"):
            if not path.exists():
                path.write_text(json.dumps({"manifest": manifest}) + "\n", encoding="utf-8")
            if (other := json.loads(path.read_text(encoding="utf-8"))["manifest"]) != manifest:
                raise ValueError(f"{self.folder} is of {other}: pass another name for {manifest} (--name).")

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
            "sizes": {part: len(getattr(self, part)) for part in ("train", "dev", "test")},
            "selection": "epoch with the highest dev UA; those trained in noise choose on dev speech in training noise",
            "test": "whole utterances, one by one, clean and in every noise type at every SNR",
            "test noise": "the second half of every noise recording; training draws from the first",
            "noise": f"{self.noise.source}: {', '.join(self.noise.types)}",
            "speech level": self.noise_settings.speech_level,
            "synthetic": self.corpus.synthetic,
        }

    def run(self, name: str) -> records.Run:
        """The record of a variant: read when it is complete with this fingerprint, else trained and written.

        One line tells how far it is, and at the end which of the two was done. Raises ValueError for a variant that is
        not in `variants`, and where a training diverges.
        """
        if name not in self.variants:
            raise ValueError(f"No variant {name!r}: choose among {', '.join(self.variants)}.")
        wanted, run, state = self.fingerprint(name), records.Run(self._run_folder(name)), processes()
        done = state.num_processes == 1 and run.complete(wanted)
        # several processes that share a training (torchrun) take one turn among them
        turn = only_one(self.folder, run.id) if state.is_main_process and not done else nullcontext()
        with line(name) as said, turn:
            (done,) = broadcast_object_list([done or run.complete(wanted)])
            if not done:
                network, fitted, others = self.trained(name)
            if not done and state.is_main_process:
                started, table = time.monotonic(), self._test(fitted, others)
                info = self._info(name, fitted, network) | {"test_seconds": round(time.monotonic() - started, 1)}
                records.write_run(run.folder, table, info, partial(self.save, network))
                for old in unfinished(self.folder).glob(f"{run.id}@*"):
                    shutil.rmtree(old)
            state.wait_for_everyone()
            said.write(f"{name}: {'read from its record' if done else 'trained'}, runs/{run.id}")
        return records.Run(run.folder)

    @classmethod
    def save(cls, network: PreTrainedModel, folder: Path) -> None:
        """As any transformers model, with its feature extractor: `pipeline("audio-classification", folder)` works.

        Whoever loads a network that is not transformers' own imports its module first.
        """
        network.save_pretrained(folder)
        cls.feature_extractor(network).save_pretrained(folder)

    @staticmethod
    def feature_extractor(network: PreTrainedModel) -> Wav2Vec2FeatureExtractor:
        """What is saved beside a network that takes waves as they are."""
        return Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=False)

    def fingerprint(self, name: str) -> str:
        """Of everything that decides the variant's predictions; a student's includes its teacher's."""
        return digest(self._decides(name))

    def _decides(self, name: str) -> dict[str, Any]:
        variant = self.variants[name]
        return {
            "variant": [variant.noisy, variant.role],
            "settings": self._recorded_settings(name),
            "split": [self.mark, self.train, self.dev, self.test, self.seed],
            "audio": self.audio.fingerprint,
            "noise": [self.noise.fingerprint, self.train_noise(name)],
            "code": code_of(type(self).__module__, self.code_by_value()),
            "scores": sha256(MODULE / "ser_metrics.py")[:12],  # not imported: `evaluate` loads it by its place
            "teacher": self.teacher_fingerprint(variant.teacher),
        }

    def _run_folder(self, name: str) -> Path:
        mark = self.mark.replace("P2", "")  # the usual one
        return self.folder / "runs" / records.run_id(self.method, name, self.fold, self.seed, mark)

    def held_out_noise(self, name: str) -> str:
        """The noise type that a variant for unseen noise does not hear in this fold, "" for the others."""
        return self.train_types[(self.fold - 1) % len(self.train_types)] if self.variants[name].held_out_noise else ""

    def train_noise(self, name: str) -> list[str]:
        """The noise types the variant hears in training."""
        types = self.train_types if self.variants[name].noisy else ()
        return [kind for kind in types if kind != self.held_out_noise(name)]

    def command(self, name: str) -> str:
        """What trains the variant; DATA, NOISE and the like stand for places on the reader's machine."""
        places = {"data_root": "DATA", "noise_dir": "NOISE", "results": ""}
        given = {key: value and places.get(key, value) for key, value in self.options.items()}
        given |= {"set": given.pop("overrides") and f'"{self.overrides}"', "protocol": self.mark}
        shown = {key: value for key, value in given.items() if value not in ("", "demo", "tiny")}
        return " ".join(["ser-kd train", name, *(f"--{key.replace('_', '-')} {shown[key]}" for key in shown)])

    def _recorded_settings(self, name: str) -> dict[str, Any]:
        return {used.group: dataclasses.asdict(used) for used in (self.settings_of(name), self.noise_settings)}

    def share_of_each_class(self, share: float, purpose: str) -> set[str]:
        """Training utterances, the same for every variant: of each class, those first in an order random by purpose."""
        order = sorted(self.train, key=lambda utterance: keyed_rng(purpose, utterance, self.seed).random())
        classes = [[u for u in order if self.label_of[u] == label] for label in self.labels]
        return {utterance for some in classes for utterance in some[: max(1, round(share * len(some)))]}

    def classes(self, utterances: Sequence[str]) -> dict[str, int]:
        """The class index of each utterance."""
        return {utterance: self.class_names["label2id"][self.label_of[utterance]] for utterance in utterances}

    def _windows(self, name: str, classes: Mapping[str, int], **more: Any) -> SpeechDataset:
        """Windows of the utterances with the variant's noise; more: as SpeechDataset takes it."""
        noise = {"types": types, "noise": self.noise} if (types := self.train_noise(name)) else {}
        given = {"audio": self.audio, "snr_db": self.noise_settings.train_snr_db, "seed": self.seed}
        return SpeechDataset(classes=classes, **given | noise | more)

    def inputs_of(self, model: nn.Module) -> Callable[..., dict]:
        """`prepare_inputs` of a network that is trained here; all are given speech alike, unless a method says more."""
        return self.prepare_inputs

    def _optimise(self, name: str, model: nn.Module, objective, data, dev: Callable | None = None, **more) -> Fitted:
        """Train with what all methods have in common; more: as `training.loop.fit` takes it."""
        # checkpoints: another fingerprint, another place
        folder = unfinished(self.folder) / f"{self._run_folder(name).name}@{self.fingerprint(name)[:12]}"
        level, use, dev = self.noise_settings.speech_level, self.settings_of(name), dev or self._dev_scores(name)
        given = {"speech_level": level, "seed": self.seed, "folder": folder, "prepare_inputs": self.inputs_of(model)}
        return fit(model, objective, data, dev, use, **given, **more)

    def _dev_scores(self, name: str) -> Callable[[nn.Module], dict[str, float]]:
        """For choosing the epoch: each dev utterance under one fixed condition, drawn as in training."""
        types, snr_db = self.train_noise(name), self.noise_settings.train_snr_db

        def conditions(utterance: str) -> list[tuple[str, float]]:
            return [draw(utterance, self.seed, "dev", types, snr_db) if types else CLEAN]

        return lambda model: self._scores(self._predict(model, self.dev, conditions, "train"))

    def _scores(self, table: pd.DataFrame) -> dict[str, float]:
        """UA and WA of a table of logits."""
        truth = [self.labels.index(self.label_of[u]) for u in table["utterance"]]
        guess = [row.argmax() for row in table["logits"]]
        scores = ser_metrics().compute(predictions=guess, references=truth)
        return {name: scores[name] for name in ("UA", "WA")}

    def _predict(self, model: nn.Module, utterances: Iterable[str], conditions: Callable, part: str) -> pd.DataFrame:
        given = {"speech_level": self.noise_settings.speech_level, "prepare_inputs": self.inputs_of(model)}
        return predict(model, self.audio, utterances, conditions, self.noise, part=part, seed=self.seed, **given)

    def _test(self, fitted: Fitted, others: list[pd.DataFrame]) -> pd.DataFrame:
        """Predictions of the chosen epoch over the whole noise grid, and of the last epoch on a part of it.

        The last epoch is there to tell what choosing one is worth: clean speech and the middle SNR do.
        """
        snr_db, model, tables = self.noise_settings.test_snr_db, fitted.model, []
        best = {name: value.clone() for name, value in model.state_dict().items()}
        middle = snr_db[(len(snr_db) - 1) // 2 :][:1]
        for checkpoint, weights, some in (("last", fitted.last, middle), ("best", best, snr_db)):
            model.load_state_dict(weights)
            conditions, utterances = grid(self.noise.types, some), over(self.test, "test on utterance")
            table = self._predict(model, utterances, lambda _, conditions=conditions: conditions, "test")
            tables.append(table.assign(checkpoint=checkpoint))
        table = pd.concat([*tables, *others], ignore_index=True)
        table = table.assign(fold=self.fold, seed=self.seed, label=table["utterance"].map(self.label_of))
        return table[list(records.COLUMNS)]

    def _info(self, name: str, fitted: Fitted, network: nn.Module) -> Mapping[str, Any]:
        variant = self.variants[name]
        of_variant = ("title", "question", "kind", "role", "baseline", "situation")
        of_experiment = ("method", "profile", "fold", "seed", "overrides", "labels")
        by_name = ("held_out_noise", "train_noise", "command", "fingerprint")
        return {
            "variant": name,
            **{key: getattr(variant, key) for key in of_variant},
            "corpus": self.name,
            **{key: getattr(self, key) for key in of_experiment},
            **{key: getattr(self, key)(name) for key in by_name},
            "settings": self._recorded_settings(name),
            "protocol": self.card(),
            "parameters": sum(p.numel() for p in network.parameters()),
            "processes": processes().num_processes,
            "precision": precision_of(self.settings_of(name)),
            "best_epoch": fitted.best_epoch,
            "history": fitted.history.reset_index().to_dict("records"),
            "seconds": round(fitted.seconds, 1),
            "items_per_second": round(fitted.items * self.settings_of(name).epochs / fitted.seconds, 1),
            "peak_memory_mb": round(fitted.peak_memory_mb),
            "teacher_fingerprint": self.teacher_fingerprint(variant.teacher) or None,
            "audio_fingerprint": self.audio.fingerprint,
            "noise_fingerprint": self.noise.fingerprint,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **records.environment(),
        }
