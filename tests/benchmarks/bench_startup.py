"""Seconds to import the package and to show `ser-kd --help`: median of fresh processes. Aim: help under 0.3 s."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import ser_kd_utils": ["-c", "import ser_kd_utils"],
    "import ser_kd_utils.methods": ["-c", "import ser_kd_utils.methods"],
    "ser-kd": ["-m", "ser_kd_utils.cli"],
    "ser-kd reproduce --help": ["-m", "ser_kd_utils.cli", "reproduce", "--help"],
    "import torch": ["-c", "import torch"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


for name, arguments in COMMANDS.items():
    print(f"{name:28s}{statistics.median(seconds(arguments) for _ in range(7)):6.2f} s")
