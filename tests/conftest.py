"""Shared set-up: tests and notebooks write their cache and results to temporary folders, never into the project."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_SESSION = tempfile.TemporaryDirectory(prefix="ser-kd-tests-")

# at import, so that the kernels which nbval starts inherit them
os.environ["SER_KD_CACHE"] = str(Path(_SESSION.name, "cache"))
os.environ["SER_KD_RESULTS"] = str(Path(_SESSION.name, "results"))
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings beside the checkout: ../shared/data. Skipped elsewhere, but never in CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("CI needs ../shared/data.")
        pytest.skip("needs ../shared/data")
    return folder
