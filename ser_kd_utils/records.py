"""What each trained model leaves behind: predictions and the conditions they were made under.

    runs/<method>__<variant>__fold-K__seed-S/predictions.parquet   utterance, fold, seed, condition, snr_db, checkpoint,
                                                                   label, logits
                                             run.json              settings, protocol, fingerprints, versions, hardware

Tables and figures are computed from these files only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ser_kd_utils.files import PACKAGE, digest, sha256, unfinished

VERSIONED = ("torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "scikit-learn", "soundfile")
IN_CLONE = (PACKAGE.parent / "pyproject.toml").is_file()
EVIDENCE = PACKAGE.parent / "results"
"""Committed evidence, one folder for each corpus and profile."""


def results_root(folder: str = "") -> Path:
    """The folder given, else $SER_KD_RESULTS, else results/local of the clone, or results/ where one stands."""
    here = EVIDENCE / "local" if IN_CLONE else Path("results")
    return Path(folder or os.environ.get("SER_KD_RESULTS") or here)


def folder_name(corpus: str, profile: str, overrides: str = "") -> str:
    """<corpus>-<profile>; changed settings are part of the name."""
    name = re.sub(r"[^\w.,=+-]+", "_", "+".join(part for part in (f"{corpus}-{profile}", overrides) if part))
    if len(name.encode()) > 150:  # file systems take 255 bytes
        name = f"{name[:60]}-{digest([corpus, profile, overrides])[:16]}"
    return name


def results_folder(folder: str, corpus: str, profile: str, overrides: str = "") -> Path:
    """Where a reader's own runs of this corpus and profile lie, below the results root."""
    return results_root(folder) / folder_name(corpus, profile, overrides)


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

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit} with local changes" if git("status", "--porcelain", "--", str(PACKAGE)) else commit
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass(frozen=True)
class Run:
    """One trained model's record."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json. Raises ValueError where it is damaged."""
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except ValueError:
            raise self._damage("run.json") from None

    def _damage(self, name: str) -> ValueError:
        return ValueError(
            f"runs/{self.folder.name}/{name} is damaged: restore that folder, or delete it and reproduce it again."
        )

    def _is_as_written(self, name: str) -> bool:
        path = self.folder / name
        return path.is_file() and self.info["files"].get(name) == sha256(path)

    @cached_property
    def history(self) -> pd.DataFrame:
        """Loss terms and dev scores by epoch."""
        return pd.DataFrame(self.info["history"]).set_index("epoch")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The stored rows with method, variant, the predicted class name (largest logit) and in_range.

        in_range: clean, or at an SNR of the range that was trained on. Raises ValueError where the file is damaged.
        """
        if not self._is_as_written("predictions.parquet"):
            raise self._damage("predictions.parquet")
        table = pd.read_parquet(self.folder / "predictions.parquet")
        best = np.stack(table["logits"]).argmax(1)
        names = {key: self.info[key] for key in ("method", "variant")}
        low, high = self.info["settings"]["noise"]["train_snr_db"]
        in_range = table["snr_db"].between(low, high) | table["snr_db"].isna()
        return table.assign(prediction=np.array(self.info["labels"], dtype=object)[best], in_range=in_range, **names)

    def complete(self, wanted: str) -> bool:
        """Whether a record with this fingerprint is here, undamaged, and its weights too.

        Records come with a clone of the project, weights do not: what somebody else trained is trained again.
        """
        try:
            names = {"predictions.parquet", *self.info["files"]}
            here = (self.folder / "model").is_dir() and self.info["fingerprint"] == wanted
            return here and all(map(self._is_as_written, names))
        except (FileNotFoundError, ValueError):
            return False


def write_run(
    folder: Path, predictions: pd.DataFrame, info: Mapping[str, Any], save_model: Callable[[Path], None] | None = None
) -> Run:
    """Write both files into a new folder, then put it in the place of the old one: a record is whole or absent.

    save_model: writes the weights into the folder given to it; without it a `model/` that is there is kept. run.json
    gets the checksums of the other files as `files`.
    """
    scratch = unfinished(folder.parents[1]) / f"{folder.name}.writing"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    fresh = scratch / "new"
    fresh.mkdir(parents=True)
    try:
        predictions.to_parquet(fresh / "predictions.parquet", compression="zstd", index=False)
        if save_model:
            save_model(fresh / "model")
        elif (folder / "model").exists():
            shutil.copytree(folder / "model", fresh / "model")
        paths = sorted(path for path in fresh.rglob("*") if path.is_file())
        files = {path.relative_to(fresh).as_posix(): sha256(path) for path in paths}
        text = json.dumps({**info, "files": files}, indent=1, default=list) + "\n"
        (fresh / "run.json").write_text(text, encoding="utf-8")
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(scratch / "old")
        fresh.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Run(folder)


def read_runs(folder: Path) -> list[Run]:
    """All records of a results folder, by name.

    Raises FileNotFoundError when there are none, ValueError when they cannot stand in one table: another protocol,
    noise, corpus content or, within a variant, other settings.
    """
    runs = [Run(path.parent) for path in sorted(folder.glob("runs/[!.]*/run.json"))]
    if not runs:
        raise FileNotFoundError(f"No records under {folder.name}/runs: run notebooks 01 and 02, or `ser-kd reproduce`.")
    by_mark: dict[str, list[Run]] = {}
    for run in runs:
        by_mark.setdefault(run.info["protocol"].get("mark", ""), []).append(run)
    for key in ("protocol", "noise", "speech level"):
        _refuse_differences(folder, key, {_kind(run, key) for run in by_mark.get("", []) + by_mark.get("P2", [])})
    _refuse_differences(folder, "corpus content", {run.info["audio_fingerprint"][:8] for run in runs})
    for variant in {run.info["variant"] for run in runs}:
        used = {digest(run.info["settings"])[:8] for run in runs if run.info["variant"] == variant}
        _refuse_differences(folder, f"the settings of {variant}", used)
    return runs


def _refuse_differences(folder: Path, what: str, found: set[str]) -> None:
    if len(found) > 1:
        raise ValueError(
            f"The records in {folder.name} differ in {what} ({'; '.join(sorted(found))}): "
            "one table cannot hold both, so run one kind again or write it to another --results folder."
        )


def _kind(run: Run, key: str) -> str:
    """An entry of the protocol; recorded noise also by its samples, generated noise differs from fold to fold."""
    value = run.info["protocol"][key]
    recorded = key == "noise" and value.startswith("folder")
    return f"{value}, samples {run.info['noise_fingerprint'][:8]}" if recorded else value


def predictions(runs: Iterable[Run], checkpoint: str = "best") -> pd.DataFrame:
    """The predictions of several runs in one table; checkpoint: "best" (by dev UA) or "last" epoch."""
    table = pd.concat([run.predictions for run in runs], ignore_index=True)
    return table[table["checkpoint"] == checkpoint].reset_index(drop=True)
