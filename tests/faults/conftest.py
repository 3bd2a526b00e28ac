"""Shared by the fault tests: a suite of stand-in notebooks, and a small disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from stand_in import NOTEBOOKS, Suite, write_corpus

from ser_kd_utils.reproduce.plan import FIRST, LAST


def suite_in(root: Path) -> Suite:
    suite = Suite(root)
    write_corpus(root)
    for name in (FIRST, *NOTEBOOKS, *LAST):
        suite.notebook(name[:2])
    return suite


@pytest.fixture
def suite(tmp_path) -> Suite:
    return suite_in(tmp_path)


@pytest.fixture(scope="module")
def one_at_a_time(tmp_path_factory) -> dict[str, bytes]:
    """What a suite records of two seeds, one notebook after the other: predictions by the record's name."""
    suite = suite_in(tmp_path_factory.mktemp("alone"))
    assert suite.run("--seeds", "0-1", "--ablations", "none", "--workers", "1").returncode == 0
    return suite.recorded


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; call it with an option of mount to change it. Skipped where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small file system needs root")

    def remount(option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)

    remount.place = place
    yield remount
    subprocess.run(["umount", "-l", str(place)], check=True)
