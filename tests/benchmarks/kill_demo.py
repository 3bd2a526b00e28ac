"""The demo reproduced without disturbance and with kill -9 at random moments: are the two results folders equal?

Run from the project's root: python tests/benchmarks/kill_demo.py FOLDER [--kills 4] [--seed 0] [--workers 2]
Both folders lie below FOLDER. What may differ: times, memory, and in executed notebooks what names them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

MEASURED = {"seconds", "test_seconds", "items_per_second", "peak_memory_mb", "finished", "at", "by"}


def command(results: Path, workers: int = 1) -> list[str]:
    each = ["--results", str(results), "--workers", str(workers)]
    return [sys.executable, "-m", "ser_kd_utils.cli", "reproduce", *each]


def run(results: Path, workers: int = 1) -> float:
    """To the end; returns the wall seconds."""
    started = time.monotonic()
    subprocess.run(command(results, workers), check=True)
    return time.monotonic() - started


def run_and_kill(results: Path, kills: int, rng: random.Random, seconds: float) -> None:
    """Kill the whole group of processes `kills` times, at moments drawn over the expected duration, then let it end."""
    for number in range(kills):
        process = subprocess.Popen(command(results), start_new_session=True)
        try:
            process.wait(after := rng.uniform(0.2, 1) * seconds / kills)
            print(f"kill {number + 1}: not needed, it had ended", flush=True)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"kill {number + 1}: after {after:.0f} s", flush=True)
    run(results)


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in MEASURED}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def contents(root: Path) -> dict[str, object]:
    """Every file by name; JSON and notebooks without what was measured, weights and figures byte for byte."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and "unfinished" not in path.parts):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            found[name] = [
                cell["source"] for cell in cells if not re.search("^results = ", "".join(cell["source"]), re.MULTILINE)
            ]
        else:
            found[name] = path.read_bytes()
    return found


def compare(one: Path, other: Path) -> bool:
    first, second = contents(one), contents(other)
    differ = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    print(f"{len(first)} files against {len(second)}: {len(differ)} differ", *differ, sep="\n  ", flush=True)
    for folder in (one, other):
        left = [
            path for path in folder.rglob("unfinished/*") if not path.name.startswith(("locks", "teacher-outputs-"))
        ]
        print(f"left in {folder.name}/*/unfinished: {[path.name for path in left] or 'nothing'}", flush=True)
    return not differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="compare with so many at a time, and kill nothing")
    asked = parser.parse_args()
    seconds = run(asked.folder / "undisturbed")
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    if asked.workers:
        spread = run(asked.folder / "spread", asked.workers)
        print(f"--workers {asked.workers}: {spread:.0f} s, {seconds / spread:.2f} times as fast", flush=True)
        return 0 if compare(asked.folder / "undisturbed", asked.folder / "spread") else 1
    run_and_kill(asked.folder / "killed", asked.kills, random.Random(asked.seed), seconds)
    return 0 if compare(asked.folder / "undisturbed", asked.folder / "killed") else 1


if __name__ == "__main__":
    sys.exit(main())
