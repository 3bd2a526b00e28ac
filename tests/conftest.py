"""Shared set-up: tests and notebooks write their cache and results to temporary folders, never into the project."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbval.kernel
import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import local_provisioner
from prewarmed import Prewarmed

ROOT = Path(__file__).parents[1]

# At import, so that the workers of pytest-xdist and the kernels which nbval starts inherit them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _SESSION = tempfile.TemporaryDirectory(prefix="ser-kd-tests-")
    os.environ["SER_KD_CACHE"] = str(Path(_SESSION.name, "cache"))
    os.environ["SER_KD_RESULTS"] = str(Path(_SESSION.name, "results"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Several tests run at a time, and threads that wait for each other's processor take twice its time and more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def kernel_of_nbval(**given) -> KernelManager:
    """A kernel that listens on files: a TCP port found free may be taken before the kernel listens on it."""
    sockets = tempfile.mkdtemp(prefix="kernel-", dir=Path(os.environ["SER_KD_CACHE"]).parent)
    return KernelManager(**given, transport="ipc", ip=f"{sockets}/kernel")


def launch_kernel(cmd: list[str], env=None, cwd=None, **how):
    """As jupyter_client's, but the kernels of nbval and of `ser-kd reproduce` in this process begin with the libraries
    imported."""
    python, *arguments = cmd
    if python == sys.executable and arguments[:2] == ["-m", "ipykernel_launcher"]:
        # what pandas sets where it is imported in a notebook
        arguments.append("--IPKernelApp.exec_lines=__import__('pandas').set_option('display.max_columns', 20)")
        # it goes when this process does
        environment = (os.environ if env is None else env) | {"JPY_PARENT_PID": str(os.getpid())}
        return Prewarmed(arguments, environment, cwd, capture=False)
    return subprocess_kernel(cmd, env=env, cwd=cwd, **how)


nbval.kernel.KernelManager = kernel_of_nbval
subprocess_kernel, local_provisioner.launch_kernel = local_provisioner.launch_kernel, launch_kernel

# Files that take longest: with two processes they begin first, in this order, so that neither waits for the other.
# The teacher of notebook 01 comes before whatever needs it.
LONGEST = (
    "notebooks/01_teacher_finetuning.ipynb",
    "notebooks/04_decoupled_distillation.ipynb",
    "tests/real_data/test_meld_clips.py",
    "tests/real_data/test_main_job.py",
    "notebooks/02_noisy_student_distillation.ipynb",
    "notebooks/06_curriculum_meta_distillation.ipynb",
    "tests/faults/test_killed.py",
    "tests/faults/test_disk.py",
    "tests/faults/test_cluster.py",
    "tests/faults/test_notebooks_fail.py",
    "tests/real_data/test_paper_profile.py",
    "notebooks/03_mlkd_ablations.ipynb",
    "notebooks/05_decoupled_ablations.ipynb",
    "notebooks/07_curriculum_meta_ablations.ipynb",
)
LAST = (
    "notebooks/08_comparison_and_efficiency.ipynb",
    "notebooks/09_paper_tables.ipynb",
)  # read what all others recorded
SLOW = (
    "notebooks",
    "tests/notebooks",
    "tests/faults",
    "tests/real_data",
    "tests/unit/test_compare.py",
    "tests/unit/test_decoupled_tables.py",
    "tests/unit/test_demo.py",
    "tests/unit/test_explain.py",
    "tests/unit/test_export.py",
    "tests/unit/test_ledger.py",
    "tests/unit/test_mckd.py",
    "tests/unit/test_reproduce.py",
    "tests/unit/test_toy_method.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {item: str(item.path.relative_to(ROOT)) for item in items}
    for item, place in places.items():
        if place.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    order = {place: number for number, place in enumerate(LONGEST)} | {place: len(LONGEST) + 1 for place in LAST}
    items.sort(key=lambda item: order.get(places[item], len(LONGEST)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings beside the checkout: ../shared/data. Skipped elsewhere, but never in CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("CI needs ../shared/data.")
        pytest.skip("needs ../shared/data")
    return folder
