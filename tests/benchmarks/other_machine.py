"""What another machine changes: the same variants, folds and seeds trained twice, compared run by run.

    python tests/benchmarks/other_machine.py FOLDER OTHER > results/emodb-whisper/baselines/other_machine.csv

FOLDER and OTHER hold records of one corpus and profile; compared are the runs that both have and that name different
processors or GPUs. UA in percent, clean and in noise at the SNRs of training. `sd`: the standard deviation of the
differences between two runs of one fold, either of one seed on the two machines or of two seeds on one machine (both
machines pooled). If the first is not larger than the second, another machine is like another seed. Variants with fewer
than six such runs are left out.
"""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from ser_kd_utils.metrics import score
from ser_kd_utils.records import Run, predictions, read_runs


def scores(run: Run) -> dict[str, float]:
    """UA in percent of the epoch chosen on dev."""
    table = predictions([run])
    clean = table["condition"] == "clean"
    return {"clean": 100 * score(table[clean]), "noisy": 100 * score(table[~clean & table["in_range"]])}


def compared(first: list[Run], second: list[Run]) -> pd.DataFrame:
    """A line for each variant that both have."""
    sides = [{run.id: run for run in runs} for runs in (first, second)]
    place = [{name: run.info["hardware"] for name, run in side.items()} for side in sides]
    both = [name for name in sides[0] if name in sides[1] and place[0][name] != place[1][name]]
    found = [pd.DataFrame({name: scores(side[name]) for name in both}).T for side in sides]
    info = pd.DataFrame({name: sides[0][name].info for name in both}).T[["variant", "fold", "seed"]]
    lines = []
    for variant, own in info.groupby("variant", sort=False):
        if len(own) < 6:
            continue
        line = {"row": variant, "runs": len(own)}
        for part in ("clean", "noisy"):
            one, other = (side.loc[own.index, part] for side in found)
            pairs = [
                side[left] - side[right]
                for side in (one, other)
                for _, fold in own.groupby("fold")
                for left, right in combinations(fold.index, 2)
            ]
            line |= {f"UA {part}": one.mean(), f"UA {part}, other": other.mean()}
            line[f"sd {part}, other machine"] = np.sqrt(((one - other) ** 2).mean())
            line[f"sd {part}, other seed"] = np.sqrt(np.mean(np.square(pairs))) if pairs else np.nan
        lines.append(line)
    return pd.DataFrame(lines).round(1)


if __name__ == "__main__":
    print(compared(*(read_runs(Path(folder)) for folder in sys.argv[1:3])).to_csv(index=False), end="")
