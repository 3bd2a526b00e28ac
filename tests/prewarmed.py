"""Processes that begin with the libraries imported: forked from one that holds them, which saves each of them seconds.

What runs in them is what runs in a process of its own: a command with its arguments, environment and folder.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.forkserver import _forkserver
from multiprocessing.reduction import DupFd
from pathlib import Path
from tempfile import TemporaryFile

# Neither matplotlib nor ipykernel, which read the environment when they are imported.
LIBRARIES = (
    "torch", "transformers.models.wav2vec2.modeling_wav2vec2", "accelerate", "datasets", "evaluate", "scipy.stats",
    "sklearn.metrics", "papermill", "IPython", "zmq.asyncio", "grimp", "pydantic.dataclasses",
)  # fmt: skip

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([*LIBRARIES])


def _own(copy) -> int:
    return copy.detach()


class _Output:
    """An open file of this process, as the new one gets it: the number of a copy."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self):
        return _own, (DupFd(self.number),)


def _begin(arguments: list[str], environment: dict[str, str], folder: str, *outputs: int) -> None:
    os.setsid()
    os.close(_forkserver._forkserver_alive_fd)  # the process that holds the libraries goes with the tests
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    how, what, *sys.argv[1:] = arguments
    try:
        if how == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = "-c"
            exec(what, {"__name__": "__main__"})
    finally:  # as an interpreter ends, which a forked one does not: first threads, then what waits for the exit
        threading._shutdown()
        atexit._run_exitfuncs()


class Prewarmed:
    """As subprocess.Popen of `python -c CODE ...` or `python -m MODULE ...`, in a group of processes of its own.

    capture: keep what it writes for `communicate`, or else write it where this process does.
    """

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], environment: Mapping[str, str], folder: Path | None, capture: bool):
        self.written = [TemporaryFile("w+", encoding="utf-8") for _ in range(2)] if capture else []  # noqa: SIM115
        outputs = [_Output(file.fileno()) for file in self.written] or [_Output(1), _Output(2)]
        given = (arguments, dict(environment), str(folder or Path.cwd()), *outputs)
        self.process = _CONTEXT.Process(target=_begin, args=given)
        self.process.start()
        self.pid = self.process.pid
        with suppress(ProcessLookupError):  # it has ended already
            while os.getpgid(self.pid) != self.pid:  # a signal to its group must not reach this process
                time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a prewarmed process", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> list[str]:
        self.wait(timeout)
        for file in self.written:
            file.seek(0)
        return [file.read() for file in self.written]

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
