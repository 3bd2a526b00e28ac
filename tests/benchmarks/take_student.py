"""Make results/emodb-whisper/student/: the student to take away, chosen by rule, with what its rounding costs.

Run from the project's root, with the weights of MLKD's runs of EMO-DB, profile whisper, in RESULTS:
HF_HUB_OFFLINE=1 python tests/benchmarks/take_student.py RESULTS ../shared/data/emodb ../shared/data/noise
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from torch.utils.data import Subset

from ser_kd_utils.data.corpora import load_corpus
from ser_kd_utils.data.noise import NoiseBank
from ser_kd_utils.deploy.card import card
from ser_kd_utils.deploy.export import WaveClassifier, export, write_onnx
from ser_kd_utils.deploy.predict import STUDENT, Model, open_model
from ser_kd_utils.files import replaced, sha256
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.metrics import interval, score
from ser_kd_utils.records import Run, predictions, read_runs
from ser_kd_utils.training.evaluation import grid, noisy_views

ROWS = "bcde"  # those that heard noise in training, and so dev speech in noise
LARGEST = 8_000_000  # bytes, of both forms together: 2 for each weight and 1 for each
RULE = """
How it was chosen: by dev speech in training noise, never by the test. (1) The row with the highest dev UA over
the folds and seeds that all these rows have, of those whose two forms together lie below {largest:.0f} MB. (2) Of its
{count} runs that with the highest dev UA, {best:.1f}, which is high also because it is the best of {count}; dev
speakers differ from fold to fold. Size costs little: the rows lie close together.

{table}"""


def dev_ua(run: Run) -> float:
    return 100 * run.history["dev_UA"][run.info["best_epoch"]]


def chosen(runs: list[Run]) -> tuple[Run, str]:
    """The run, and the rule with its numbers in words."""
    runs = [run for run in runs if run.info["variant"] in tuple(ROWS)]
    keys = ("variant", "title", "parameters", "fold", "seed")
    table = pd.DataFrame([{key: run.info[key] for key in keys} | {"dev": dev_ua(run)} for run in runs])
    shared = table.groupby(["fold", "seed"]).filter(lambda some: len(some) == len(ROWS))
    told = shared.groupby(["variant", "title", "parameters"])["dev"].agg(["mean", "size"]).reset_index()
    small = told[told["parameters"] * 3 < LARGEST]
    row = small.loc[small["mean"].idxmax(), "variant"]
    own = [run for run in runs if run.info["variant"] == row]
    best = max(own, key=dev_ua)
    told = told.round({"mean": 1}).rename(columns={"mean": "dev UA in noise, mean", "size": "runs"})
    words = {"largest": LARGEST / 1e6, "count": len(own), "best": dev_ua(best), "table": told.to_markdown(index=False)}
    return best, RULE.strip().format(**words)


def tested(network: Model, experiment: MLKDExperiment, noise: NoiseBank, conditions: list) -> pd.DataFrame:
    """What the network says of the test part under each condition, as a table of predictions."""
    rows = []
    for utterance in experiment.test:
        level = experiment.noise_settings.speech_level
        views = noisy_views(experiment.audio[utterance], utterance, conditions, noise, "test", experiment.seed, level)
        for (kind, snr), view in zip(conditions, views.numpy(), strict=True):
            label = network.labels[network.logits(np.ascontiguousarray(view[: network.window])).argmax()]
            rows.append((utterance, kind, snr, experiment.label_of[utterance], label))
    return pd.DataFrame(rows, columns=["utterance", "condition", "snr_db", "label", "prediction"])


def parts(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    noisy = table[table["condition"] != "clean"]
    by_snr = {f"{snr:g} dB": part for snr, part in sorted(noisy.groupby("snr_db"), reverse=True)}
    return {"clean": table[table["condition"] == "clean"], "all noise": noisy, **by_snr}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    for name in ("results", "data", "noise"):
        asked.add_argument(name)
    given = asked.parse_args()
    run, rule = chosen(read_runs(Path(given.results) / "emodb-whisper"))
    with TemporaryDirectory() as place, replaced(STUDENT, STUDENT.with_name(".unfinished-student")) as fresh:
        where = ("emodb", "whisper", run.info["fold"], run.info["seed"], given.data, given.noise, place)
        experiment = MLKDExperiment(*where)
        if experiment.noise.fingerprint != run.info["noise_fingerprint"]:
            raise ValueError("The noise is not that of the run.")
        export(str(run.folder), f"{place}/hub", "hub-float16")
        for path in Path(place, "hub").iterdir():
            (fresh / path.name).write_bytes(path.read_bytes())
        classifier = WaveClassifier(run.folder / "model")
        half = open_model(fresh)
        write_onnx(classifier, {"onnx-int8": fresh})
        graph = open_model(fresh)
        conditions = grid(experiment.noise.types, experiment.noise_settings.test_snr_db)
        tables = {
            "as trained": predictions([run]),
            "safetensors, 16 bits": tested(half, experiment, experiment.noise, conditions),
            "model.onnx, 8 bits": tested(graph, experiment, experiment.noise, conditions),
        }
        costs = pd.DataFrame(
            {name: {part: 100 * score(some) for part, some in parts(table).items()} for name, table in tables.items()}
        )
        made = NoiseBank.generated(Subset(experiment.audio, experiment.train))
        others = [kind for kind in made.types if kind not in run.info["train_noise"]]
        unheard = tested(graph, experiment, made, grid(others, experiment.noise_settings.test_snr_db)[1:])
        found = {"all of it": unheard, **{kind: unheard[unheard["condition"] == kind] for kind in others}}
        found |= {name: part for name, part in parts(unheard).items() if name.endswith("dB")}
        ends = {name: [100 * each for each in interval(part)] for name, part in found.items()}
        recordings = pd.read_csv(Path(given.noise).with_suffix(".csv"))
        recordings = recordings[recordings["label"].isin(run.info["train_noise"])]
        licences = {
            "speech, EMO-DB": load_corpus("emodb", given.data).licence,
            "encoder from which it was made, OpenAI's Whisper tiny.en": "MIT",
            "this suite": "MIT",
        }
        licences |= {
            f"noise heard in training, {kind}": "; ".join(sorted(set(some)))
            for kind, some in recordings.groupby("label")["licence"]
        }
        cells = {name: "{:.1f} ({:.1f} to {:.1f})".format(*each) for name, each in ends.items()}
        told = {
            "chosen": rule,
            "rounded": costs.round(1).rename_axis("test speech").to_markdown(floatfmt=".1f"),
            "not_heard": pd.Series(cells, name="UA").rename_axis("test speech").to_markdown(),
            "licences": licences,
        }
        module = type(classifier.network).__module__
        card(run, "hub-float16 and onnx-int8", module, **told).save(fresh / "README.md")
        record = {"run": run.id, "predictions_sha256": run.info["predictions_sha256"]}
        record |= {"UA": costs.round(2).to_dict(), "UA in noise not heard, with interval": ends, "licences": licences}
        record["files"] = {path.name: sha256(path) for path in sorted(fresh.iterdir())}
        (fresh / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (beside := fresh / "runs" / run.id).mkdir(parents=True)
        for path in run.folder.glob("*.*"):  # its record, without the weights
            (beside / path.name).write_bytes(path.read_bytes())
    print(rule, told["rounded"], told["not_heard"], sep="\n\n")


if __name__ == "__main__":
    main()
