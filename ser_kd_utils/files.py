"""Files beside the records: the cache, work in progress, locks and checksums."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PACKAGE = Path(__file__).parent


def cache_root() -> Path:
    """Folder for everything that can be made again: $SER_KD_CACHE, $XDG_CACHE_HOME/ser-kd or ~/.cache/ser-kd."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ser-kd")
    return Path(os.environ.get("SER_KD_CACHE") or home)


@contextmanager
def replaced(folder: Path, scratch: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` at the end: that one is whole or untouched.

    scratch: an unused folder on the same file system.
    """
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    fresh = scratch / folder.name
    fresh.mkdir(parents=True)
    try:
        yield fresh
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(scratch / "old")
        fresh.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, filled by `make` in another place where it is not there: whole or absent, whoever is killed.

    Of two processes that call this at once, one makes it and the other waits.
    """
    if not folder.exists():
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.exists():
                with replaced(folder, folder.with_name(f".unfinished-{folder.name}")) as fresh:
                    make(fresh)
    return folder


def digest(parts: object) -> str:
    """SHA-256 of JSON-able parts, in a canonical order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unfinished(results: Path) -> Path:
    """Where checkpoints of trainings, records in the making and locks lie, beside the records."""
    return results / "unfinished"


@contextmanager
def only_one(results: Path, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock `name`, which one process can have, on whatever machine of the same file system.

    It is released when the process that holds it ends. waiting: called once if another process holds it.
    """
    if is_held(results, name):
        waiting()
    with FileLock(unfinished(results) / "locks" / f"{name}.lock"):
        yield


def is_held(results: Path, name: str) -> bool:
    """Whether some process holds the lock."""
    try:
        with FileLock(unfinished(results) / "locks" / f"{name}.lock", blocking=False):
            return False
    except Timeout:
        return True
