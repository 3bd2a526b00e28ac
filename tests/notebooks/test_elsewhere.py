"""A notebook alone in a folder, under a Python that has the dependencies but not the package, as on Kaggle or Colab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from ser_kd_utils.reproduce.plan import FIRST, NOTEBOOKS

ROOT = Path(__file__).parents[2]


def setup_cells() -> dict[str, str]:
    books = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS.glob("*.ipynb")}
    return {name: next(cell.source for cell in book.cells if cell.cell_type == "code") for name, book in books.items()}


def test_every_notebook_begins_with_the_same_short_set_up():
    (cell,) = {*setup_cells().values()}
    assert "SER_KD_SOURCE" in cell and len([line for line in cell.splitlines() if line]) <= 7
    assert max(map(len, cell.splitlines())) <= 88  # what JupyterLab shows without a scroll bar


@pytest.fixture
def python(tmp_path) -> Path:
    """An environment that has what is installed here but not this checkout, to which a .pth file leads from here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "installed_here.pth").write_text(sysconfig.get_path("purelib"))
    return tmp_path / "venv" / "bin" / "python"


def test_a_notebook_installs_the_package_where_it_is_missing(python, tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SER_KD_RESULTS")}
    # no network: the dependencies are there, and pip builds with the setuptools that is (0 is pip's "yes" to this "no")
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    how = {"cwd": tmp_path / "work", "env": own | offline, "capture_output": True, "text": True}
    how["cwd"].mkdir()
    assert "No module named 'ser_kd_utils'" in subprocess.run([python, "-c", "import ser_kd_utils"], **how).stderr

    shutil.copy(NOTEBOOKS / f"{FIRST}.ipynb", how["cwd"])
    run = [python, "-m", "papermill", "--no-progress-bar", f"{FIRST}.ipynb", "executed.ipynb"]
    refused = subprocess.run(run, **how)
    assert refused.returncode and "SER_KD_SOURCE: not set" in refused.stderr

    how["env"]["SER_KD_SOURCE"] = str(ROOT)
    done = subprocess.run(run, **how)
    assert done.returncode == 0, done.stderr
    place = subprocess.run([python, "-c", "import ser_kd_utils; print(ser_kd_utils.__file__)"], **how).stdout
    assert Path(place.strip()) == how["cwd"] / "ser-kd" / "ser_kd_utils" / "__init__.py"
    assert [*how["cwd"].glob("ser-kd/results/local/demo-tiny/figures/*.png")]
