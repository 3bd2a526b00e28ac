"""Shared set-up: tests and notebooks write their cache and results to temporary folders, never into the project."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# At import, so that the kernels which nbval starts inherit them. Processes that test side by side (pytest-xdist) do so,
# too: what one notebook has trained, another one reads.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _SESSION = tempfile.TemporaryDirectory(prefix="ser-kd-tests-")
    os.environ["SER_KD_CACHE"] = str(Path(_SESSION.name, "cache"))
    os.environ["SER_KD_RESULTS"] = str(Path(_SESSION.name, "results"))
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    """Processes that test side by side take a file at a time; the notebooks are one file, in their order, and first."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("notebooks" if item.path.suffix == ".ipynb" else item.path.name))
    items.sort(key=lambda item: item.path.suffix != ".ipynb")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings beside the checkout: ../shared/data. Skipped elsewhere, but never in CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("CI needs ../shared/data.")
        pytest.skip("needs ../shared/data")
    return folder
