"""The record of each trained model: its predictions and the conditions they were made under.

A reader's own runs have a folder each:

    runs/<method>__<variant>__fold-K__seed-S/predictions.parquet   utterance, fold, seed, condition, snr_db, checkpoint,
                                                                   label, logits
                                             run.json              settings, protocol, fingerprints, versions, hardware
                                             model/                the weights

Published runs share two files, in which the name of a run's folder is its id:

    predictions.parquet   the same columns after a column `run`, the id
    runs.jsonl            one run a line: `run`, then what its run.json says

Tables and figures are computed from these files only, and from either form alike.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ser_kd_utils.files import PACKAGE, digest, replaced, sha256, unfinished

VERSIONED = ("torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "scikit-learn", "soundfile")
IN_CLONE = (PACKAGE.parent / "pyproject.toml").is_file()
COLUMNS = ("utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits")
# Committed evidence, one folder for each corpus and profile.
EVIDENCE = PACKAGE.parent / "results"


def results_folder(folder: str, corpus: str, profile: str, overrides: str = "") -> Path:
    """Where a reader's own runs lie: <corpus>-<profile>, and changed settings, below the folder given.

    Without one, below $SER_KD_RESULTS, else results/local of the clone, or results/ where one stands.
    """
    name = re.sub(r"[^\w.,=+-]+", "_", "+".join(part for part in (f"{corpus}-{profile}", overrides) if part))
    if len(name.encode()) > 150:  # file systems take 255 bytes
        name = f"{name[:60]}-{digest([corpus, profile, overrides])[:16]}"
    here = EVIDENCE / "local" if IN_CLONE else Path("results")
    return Path(folder or os.environ.get("SER_KD_RESULTS") or here) / name


def folders(options: Any) -> tuple[Path, Path]:
    """The folders of a command's corpus, profile and settings: a reader's own runs, and the evidence."""
    own = results_folder(options.results, options.name or options.corpus, options.profile, options.overrides)
    return own.expanduser().absolute(), EVIDENCE / own.name


def run_id(method: str, variant: str, fold: int | str, seed: int | str, protocol: str = "") -> str:
    """The name of a record; a protocol that is not the method's usual one is part of it."""
    return f"{method}__{variant}{f'+{protocol}' if protocol else ''}__fold-{fold}__seed-{seed}"


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, for run.json."""
    import torch

    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONED},
        "commit": _commit(),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "cpu_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _processor() -> str:
    """The processor's model: from Linux's list of processors, elsewhere what Python knows."""
    listed = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", listed.read_text(), re.M) if listed.exists() else None
    return found[1].strip() if found else platform.processor()


def _commit() -> str | None:
    """The commit of the package's code, marked when the code on disk differs; None outside a git checkout."""
    command = ["git", "-C", str(PACKAGE), "status", "--branch", "--porcelain=v2", "--", "."]
    try:
        first, *others = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = any(not line.startswith("#") for line in others)
    return first.removeprefix("# branch.oid ") + " with local changes" * changed


def content_sha256(predictions: pd.DataFrame) -> str:
    """SHA-256 of what is predicted, in whatever file: the columns before the logits as CSV, then the logits' bytes."""
    text = predictions[list(COLUMNS[:-1])].astype({"snr_db": float}).to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode() + np.stack(predictions["logits"]).astype("<f2").tobytes()).hexdigest()


@dataclass(frozen=True)
class Run:
    """One trained model's record.

    folder: runs/<id>, with the record's files and weights; of a published run nothing but its name. published: its line
    of runs.jsonl, and what gives the rows of all runs beside it by id.
    """

    folder: Path
    published: tuple[dict[str, Any], Callable[[], dict]] | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json, or its line of runs.jsonl. Raises ValueError where run.json is damaged."""
        if self.published:
            return self.published[0]
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except ValueError:
            raise self._damage("The record") from None

    def _damage(self, what: str) -> ValueError:
        return ValueError(f"{what} of {self.id} is damaged: restore it, or delete runs/{self.id} to run it again.")

    @cached_property
    def history(self) -> pd.DataFrame:
        """Loss terms and dev scores by epoch."""
        return pd.DataFrame(self.info["history"]).set_index("epoch")

    @cached_property
    def stored(self) -> pd.DataFrame:
        """The predictions as written, with the columns COLUMNS. Raises ValueError where they are not the record's."""
        try:
            path = self.folder / "predictions.parquet"
            table = self.published[1]()[self.id] if self.published else pd.read_parquet(path)
            if content_sha256(table) == self.info["predictions_sha256"]:
                return table[list(COLUMNS)].reset_index(drop=True)
        except (OSError, ValueError, KeyError):  # no such file, run or column, or a file cut short
            pass
        raise self._damage("predictions.parquet")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The stored rows with method, variant, the predicted class name (largest logit) and in_range.

        in_range: clean, or at an SNR of the range that was trained on. Raises ValueError where they are damaged.
        """
        table = self.stored
        best = np.stack(table["logits"]).argmax(1)
        names = {key: self.info[key] for key in ("method", "variant")}
        low, high = self.info["settings"]["noise"]["train_snr_db"]
        in_range = table["snr_db"].between(low, high) | table["snr_db"].isna()
        return table.assign(prediction=np.array(self.info["labels"], dtype=object)[best], in_range=in_range, **names)

    def complete(self, wanted: str) -> bool:
        """Whether a record with this fingerprint is here, undamaged, and its weights too.

        Published records have no weights, so they are never complete and are trained again.
        """
        try:
            known = (self.folder / "model").is_dir() and self.info["fingerprint"] == wanted and self.stored is not None
            return known and all(sha256(self.folder / name) == sha for name, sha in self.info["files"].items())
        except (OSError, ValueError):
            return False


def write_run(
    folder: Path, predictions: pd.DataFrame, info: Mapping[str, Any], save_model: Callable[[Path], None] | None = None
) -> Run:
    """Write a record into a new folder, then put it in the place of the old one: a record is whole or absent.

    save_model: writes the weights into the folder given to it. run.json gets the checksum of what is predicted as
    `predictions_sha256` and those of the weights as `files`.
    """
    with replaced(folder, unfinished(folder.parents[1]) / f"{folder.name}.writing") as fresh:
        predictions.to_parquet(fresh / "predictions.parquet", compression="zstd", index=False)
        if save_model:
            save_model(fresh / "model")
        paths = sorted(path for path in fresh.glob("model/**/*") if path.is_file())
        files = {path.relative_to(fresh).as_posix(): sha256(path) for path in paths}
        written = {**info, "predictions_sha256": content_sha256(predictions), "files": files}
        (fresh / "run.json").write_text(json.dumps(written, indent=1, default=list) + "\n", encoding="utf-8")
    return Run(folder)


def read_runs(folder: Path) -> list[Run]:
    """All records of a results folder by id: those in its runs/, or where it has none those published in it.

    Raises FileNotFoundError when there are none, ValueError when they cannot stand in one table: see `check_together`.
    """
    runs = [Run(path.parent) for path in sorted(folder.glob("runs/[!.]*/run.json"))]
    if not runs and (folder / "runs.jsonl").is_file():
        rows = cache(lambda: dict(iter(pd.read_parquet(folder / "predictions.parquet").groupby("run"))))
        lines = map(json.loads, (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines())
        found = {line.pop("run"): line for line in lines}
        runs = [Run(folder / "runs" / name, (found[name], rows)) for name in sorted(found)]
    if not runs:
        raise FileNotFoundError(f"No records in {folder.name}: run notebooks 01 and 02, or `ser-kd reproduce`.")
    check_together(folder.name, runs)
    return runs


def evidence(folder: Path) -> list[Run]:
    """The committed records of the same corpus, profile and settings as those of this results folder."""
    place = EVIDENCE / folder.name
    return read_runs(place) if place.is_dir() else []


def check_together(name: str, runs: Sequence[Run]) -> None:
    """Raise ValueError where these records of the folder `name` cannot stand in one table.

    They must share the corpus with its content and labels, noise and speech level, and a variant's records its
    settings. An optimistic protocol with a mark of its own may stand beside the others, which share theirs, and have
    content and labels of its own: DKDFMH's P1 hears the improvised part of IEMOCAP.
    """

    def shared(info: Mapping[str, Any]) -> dict[str, str]:
        protocol = info["protocol"]
        own = f" under {protocol['mark']}" if protocol["optimistic"] and protocol["mark"] else ""
        # generated noise differs from fold to fold, recorded noise must be the same samples
        samples = f", samples {info['noise_fingerprint'][:8]}" if protocol["noise"].startswith("folder") else ""
        return {
            "corpus": info["corpus"],
            f"corpus content{own}": info["audio_fingerprint"][:8],
            f"labels{own}": ", ".join(info["labels"]),
            "noise": protocol["noise"] + samples,
            "speech level": protocol["speech level"],
            f"protocol{own}": protocol["protocol"],
            f"the settings of {info['variant']}{own}": digest(info["settings"])[:8],
        }

    for what, values in pd.DataFrame(shared(run.info) for run in runs).items():
        if values.nunique() > 1:
            kinds = f"differ in {what} ({'; '.join(sorted(values.dropna().unique()))})"
            raise ValueError(f"The records in {name} {kinds}: run one kind again, or write it to another folder.")


def predictions(runs: Iterable[Run], checkpoint: str = "best") -> pd.DataFrame:
    """The predictions of several runs in one table; checkpoint: "best" (by dev UA) or "last" epoch."""
    table = pd.concat([run.predictions for run in runs], ignore_index=True)
    return table[table["checkpoint"] == checkpoint].reset_index(drop=True)
