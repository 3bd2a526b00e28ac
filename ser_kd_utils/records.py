"""What each trained model leaves behind: predictions and the conditions they were made under.

    runs/<method>__<variant>__fold-K__seed-S/predictions.parquet   utterance, fold, seed, condition, snr_db, checkpoint,
                                                                   label, logits
                                             run.json              settings, protocol, fingerprints, versions, hardware

Tables and figures are computed from these files only.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PACKAGE = Path(__file__).parent
VERSIONED = ("torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "scikit-learn", "soundfile")


def results_root(folder: str = "") -> Path:
    """The folder given, else the environment's SER_KD_RESULTS, else results/ beside the package."""
    return Path(folder or os.environ.get("SER_KD_RESULTS") or PACKAGE.parent / "results")


def results_folder(folder: str, corpus: str, profile: str, protocol: str = "", changes: str = "") -> Path:
    """<corpus>-<profile>/ below the results root; another protocol or changed settings are part of the name."""
    name = "+".join(part for part in (f"{corpus}-{profile}", protocol, changes) if part)
    return results_root(folder) / re.sub(r"[^\w.,=+-]+", "_", name)


def run_name(method: str, variant: str, fold: int, seed: int) -> str:
    return f"{method}__{variant}__fold-{fold}__seed-{seed}"


def fingerprint(parts: Any) -> str:
    """SHA-256 of JSON-able parts, in a canonical order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()


def code_fingerprint(modules: Iterable[str]) -> str:
    """SHA-256 of package files as Python reads them: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for module in sorted(modules):
        tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, for run.json."""
    import torch

    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONED},
        "commit": _commit(),
        "hardware": {
            "machine": platform.machine(),
            "cpu_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


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

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    @cached_property
    def history(self) -> pd.DataFrame:
        """Loss terms and dev scores by epoch."""
        return pd.DataFrame(self.info["history"]).set_index("epoch")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The stored rows with method, variant, the predicted class name (largest logit) and in_range.

        in_range: clean, or at an SNR of the range that was trained on.
        """
        table = pd.read_parquet(self.folder / "predictions.parquet")
        best = np.stack(table["logits"]).argmax(1)
        names = {key: self.info[key] for key in ("method", "variant")}
        low, high = self.info["settings"]["the noise"]["train_snr_db"]
        in_range = table["snr_db"].between(low, high) | table["snr_db"].isna()
        return table.assign(prediction=np.array(self.info["labels"], dtype=object)[best], in_range=in_range, **names)

    def complete(self, wanted: str) -> bool:
        """Whether a record with this fingerprint is here, and its weights too.

        Records come with a clone of the project, weights do not: what somebody else trained is trained again.
        """
        here = (self.folder / "run.json").is_file() and (self.folder / "model").is_dir()
        return here and self.info["fingerprint"] == wanted


def write_run(
    folder: Path, predictions: pd.DataFrame, info: Mapping[str, Any], save_model: Callable[[Path], None] | None = None
) -> Run:
    """Write both files into a new folder, then put it in the place of the old one: a record is whole or absent.

    save_model: writes the weights into the folder given to it; without it a `model/` that is there is kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / folder.name
        fresh.mkdir()
        predictions.to_parquet(fresh / "predictions.parquet", compression="zstd", index=False)
        (fresh / "run.json").write_text(json.dumps(info, indent=1, default=list) + "\n", encoding="utf-8")
        if save_model:
            save_model(fresh / "model")
        elif (folder / "model").exists():
            (folder / "model").rename(fresh / "model")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return Run(folder)


def read_runs(folder: Path) -> list[Run]:
    """All records below results/<corpus>-<profile>/, by name.

    Raises FileNotFoundError when there are none, ValueError when they cannot stand in one table: another protocol,
    noise, corpus content or, within a row, other settings.
    """
    runs = [Run(path.parent) for path in sorted(folder.glob("runs/[!.]*/run.json"))]
    if not runs:
        raise FileNotFoundError(f"No records under {folder.name}/runs: run notebooks 01 and 02, or `ser-kd reproduce`.")
    for key in ("protocol", "noise", "speech level"):
        _refuse_differences(folder, key, {_kind(run, key) for run in runs})
    _refuse_differences(folder, "corpus content", {run.info["audio_fingerprint"][:8] for run in runs})
    for row in {run.info["variant"] for run in runs}:
        used = {fingerprint(run.info["settings"])[:8] for run in runs if run.info["variant"] == row}
        _refuse_differences(folder, f"the settings of {row}", used)
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
