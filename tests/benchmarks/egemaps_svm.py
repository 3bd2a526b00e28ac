"""Make results/emodb-whisper/baselines/: eGeMAPS functionals and a linear SVM, on the suite's folds, dev and noise.

The features are those of openSMILE (Eyben et al. 2010; eGeMAPSv02, Eyben et al. 2016), whose licence allows research
and no product: it is an extra of its own. Run from the project's root, with a FOLDER for features, which takes minutes:
pip install -e ".[baselines]" && python tests/benchmarks/egemaps_svm.py ../shared/data/emodb ../shared/data/noise FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import opensmile
import pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.noise import draw
from ser_kd_utils.files import sha256
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.metrics import interval, score
from ser_kd_utils.records import EVIDENCE
from ser_kd_utils.training.dataset import noisy_input
from ser_kd_utils.training.evaluation import CLEAN, grid, noisy_views

TARGET = EVIDENCE / "emodb-whisper" / "baselines"
GRID = "noise.test_snr_db=(20, 10, 0)"  # half of the profile's: each of its recordings takes openSMILE 50 ms
COSTS = (1e-3, 1e-2, 1e-1, 1.0)
DRAWS = 3  # of noise for each training utterance, those of row (c)'s first epochs
TRAINED = {"egemaps-svm": "clean speech", "egemaps-svm-noisy": "speech in noise"}


class Features:
    """The functionals of waves, (waves, 88), each computed once and kept in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        functionals = opensmile.FeatureLevel.Functionals
        self.smile = opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=functionals)

    def __call__(self, name: str, waves: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            found = [self.smile.process_signal(wave, SAMPLE_RATE).to_numpy()[0] for wave in waves()]
            np.save(path, np.stack(found).astype(np.float32))
        return np.load(path)


def of_fold(experiment: MLKDExperiment, features: Features) -> tuple[list[pd.DataFrame], dict[str, float]]:
    """The test predictions of both machines, and the cost that each chose on dev speakers."""
    audio, seed, level = experiment.audio, experiment.seed, experiment.noise_settings.speech_level
    types, snr_db = experiment.train_noise("c"), experiment.noise_settings.train_snr_db
    conditions, heard = grid(experiment.noise.types, experiment.noise_settings.test_snr_db), experiment.dataset("c")

    def views(utterance: str, some: list, part: str) -> np.ndarray:
        return noisy_views(audio[utterance], utterance, some, experiment.noise, part, seed, level).numpy()

    def drawn(index: int, epoch: int) -> np.ndarray:
        heard.set_epoch(epoch)
        return noisy_input(heard.batch([index]), level).numpy()

    def test(utterance: str) -> np.ndarray:
        return features(f"{utterance}-test", lambda: views(utterance, conditions, "test"))

    def dev(utterance: str, noisy: bool) -> np.ndarray:
        some = [draw(utterance, seed, "dev", types, snr_db) if noisy else CLEAN]
        return features(f"{utterance}-dev-{noisy}", lambda: views(utterance, some, "train"))

    def train(index: int, utterance: str, noisy: bool) -> np.ndarray:
        if not noisy:
            return dev(utterance, False)  # clean
        given = [features(f"{utterance}-{epoch}", lambda epoch=epoch: drawn(index, epoch)) for epoch in range(DRAWS)]
        return np.concatenate(given)

    found, costs = [], {}
    for name, words in TRAINED.items():
        noisy, label_of = words != "clean speech", experiment.label_of
        parts = [train(index, utterance, noisy) for index, utterance in enumerate(experiment.train)]
        labels = np.repeat([label_of[utterance] for utterance in experiment.train], [len(part) for part in parts])
        machines = {cost: machine(cost).fit(np.concatenate(parts), labels) for cost in COSTS}
        chosen = np.concatenate([dev(utterance, noisy) for utterance in experiment.dev])
        told = pd.DataFrame({"utterance": experiment.dev, "label": [label_of[each] for each in experiment.dev]})
        costs[name] = max(COSTS, key=lambda cost: score(told.assign(prediction=machines[cost].predict(chosen))))
        best = machines[costs[name]]
        for utterance in experiment.test:
            table = pd.DataFrame(conditions, columns=["condition", "snr_db"])
            values = best.decision_function(test(utterance))
            places = [[*best.classes_].index(label) for label in experiment.labels]
            logits = [row.astype(np.float16) for row in values[:, places]]
            about = {"variant": name, "utterance": utterance, "fold": experiment.fold, "seed": seed}
            found.append(table.assign(**about, label=label_of[utterance], logits=logits))
    return found, costs


def machine(cost: float):
    """The classes weigh alike, since UA is the score."""
    return make_pipeline(StandardScaler(), LinearSVC(C=cost, class_weight="balanced", dual=False, random_state=0))


def scores(part: pd.DataFrame) -> dict[str, list[float]]:
    """UA in percent, with its interval over utterances."""
    speech = {"clean": part["snr_db"].isna(), "noisy": part["snr_db"].notna(), "0 dB": part["snr_db"] == 0}
    return {words: [round(100 * each, 1) for each in interval(part[rows])] for words, rows in speech.items()}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "noise", "features"):
        asked.add_argument(name)
    given = asked.parse_args()
    features, tables, costs = Features(Path(given.features)), [], {}
    with TemporaryDirectory() as place:
        for fold in range(1, 6):
            experiment = MLKDExperiment("emodb", "whisper", fold, 0, given.data, given.noise, place, GRID)
            found, costs[fold] = of_fold(experiment, features)
            tables += found
            print(f"fold {fold}: C {costs[fold]}", flush=True)
    columns = ["variant", "utterance", "fold", "seed", "condition", "snr_db", "label", "logits"]
    TARGET.mkdir(exist_ok=True)
    path = TARGET / "egemaps_svm.parquet"
    table = pd.concat(tables, ignore_index=True)[columns]
    table.to_parquet(path, index=False, compression="zstd", use_dictionary=columns[:-1])
    table = table.assign(prediction=[experiment.labels[np.argmax(logits)] for logits in table["logits"]])
    record = {
        "features": "eGeMAPSv02 functionals, 88, of the first 3 s, as all rows hear them",
        "machine": "StandardScaler, LinearSVC(class_weight=balanced, dual=False); C by UA of dev speakers",
        "costs tried": COSTS,
        "C by fold": costs,
        "trained on": TRAINED | {"draws of noise for each utterance": DRAWS},
        "UA with interval": {name: scores(part) for name, part in table.groupby("variant")},
        "labels": experiment.labels,
        "audio_fingerprint": experiment.audio.fingerprint,
        "noise_fingerprint": experiment.noise.fingerprint,
        "versions": {each: version(each) for each in ("opensmile", "scikit-learn", "numpy")},
        "licence of openSMILE": "audEERING Research License: research and education, no product",
        "sha256": sha256(path),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
