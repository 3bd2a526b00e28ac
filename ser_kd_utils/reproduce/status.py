"""What of a plan is done, running, failed, stale or published, and what the rest will cost."""

from argparse import Namespace
from collections import Counter
from statistics import fmean

from ser_kd_utils.files import unfinished
from ser_kd_utils.records import Run, evidence
from ser_kd_utils.reproduce.plan import plan
from ser_kd_utils.reproduce.run import DONE, state_of


def status(options: Namespace) -> int:
    """Print the state of each run of the plan, why, and what it will cost; then how far unfinished trainings are.

    The cost is estimated from the durations of what was trained before, here and for the evidence.
    """
    runs = plan(options)
    folder, published = runs[0].folder, evidence(runs[0].folder)
    spent: dict[str, list[float]] = {}
    for each in (*(Run(path.parent) for path in folder.glob("runs/[!.]*/run.json")), *published):
        spent.setdefault(_kind(each.id), []).append(each.info["seconds"] + each.info.get("test_seconds", 0))
    counts: Counter[str] = Counter()
    total = 0.0
    for run in runs:
        state, why = state_of(run)
        if state == "not run" and run.records and {*run.records} <= {each.id for each in published}:
            state = "published"
        seconds = sum(fmean(spent[_kind(name)]) for name in run.records if _kind(name) in spent) * (state != DONE)
        told = [why, f"about {seconds / 60:.1f} min" * bool(seconds)]
        print(f"{state:<12} {run.name}  {'; '.join(filter(None, told))}".rstrip())
        counts[state] += 1
        total += seconds
    for training in sorted(unfinished(folder).glob("*@*")):
        epochs = sorted(int(path.name.split("-")[1]) for path in training.glob("epoch-*.pt"))
        progress = f"epoch {epochs[-1]} is kept" if epochs else "in its first epoch"
        print(f"{'training':<12} {training.name.partition('@')[0]}  {progress}")
    print(", ".join(f"{count} {state}" for state, count in counts.items()) + f", in {folder}")
    print(f"about {total / 3600:.2f} hours of training and tests, as long as the like took before")
    return 0


def _kind(record: str) -> str:
    """What is trained, in whatever fold and with whatever seed."""
    return record.partition("__fold-")[0]
