"""Plan notebook runs, execute them headlessly with papermill, here or on a Dask cluster, and say what came of them."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
import textwrap
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from ser_kd_utils import steps
from ser_kd_utils.data.corpora import Corpus, load_corpus, split, unlabelled
from ser_kd_utils.records import fingerprint, results_folder, results_root, sha256, unfinished
from ser_kd_utils.rows import ablations, choose, cnn_ablations, token_ablations
from ser_kd_utils.settings import settings_of
from ser_kd_utils.steps import (
    BLOCKED,
    DONE,
    EACH_FOLD_AND_SEED,
    FAILED,
    LAST,
    ONCE,
    OUT_OF_TIME,
    RECORDED,
    Account,
    Job,
    Outcome,
    Step,
    folders,
    made_from,
    state_of,
    step_name,
)

OWN_OPTIONS = {
    "03_mlkd_ablations": ("speech_dir", "ablations"),
    "04_decoupled_distillation": ("teacher_logits",),
    "05_decoupled_ablations": ("ablations",),
    "07_curriculum_meta_ablations": ("ablations",),
}
"""What a notebook takes beside the parameters of all."""
NEEDS = {
    "02_noisy_student_distillation": ("01_teacher_finetuning",),
    "03_mlkd_ablations": ("01_teacher_finetuning", "02_noisy_student_distillation"),
    "04_decoupled_distillation": ("01_teacher_finetuning",),
    "05_decoupled_ablations": ("01_teacher_finetuning", "04_decoupled_distillation"),
    "06_curriculum_meta_distillation": ("01_teacher_finetuning",),
    "07_curriculum_meta_ablations": ("01_teacher_finetuning", "06_curriculum_meta_distillation"),
}
"""Whose records of the same fold and seed a notebook starts from: the teacher's, and those it compares with."""
EXIT = {RECORDED: 0, DONE: 0, FAILED: 1, BLOCKED: 1, OUT_OF_TIME: 3}


def plan(options: Namespace, corpus: Corpus) -> list[Step]:
    """The steps in reading order.

    Raises ValueError for an unknown profile, setting or ablation, a fold the corpus does not have, or a notebook number
    that is not in the plan; FileNotFoundError when the notebooks are not beside the package.
    """
    asked = _asked_ablations(options, corpus)
    if not steps.NOTEBOOKS.is_dir():
        raise FileNotFoundError(
            "The notebooks are not beside the package: install it from a clone with `pip install -e .`"
        )
    every = tuple(range(1, corpus.fold_count() + 1))
    folds = every if options.folds is None else options.folds or ((1,) if corpus.synthetic else every)
    for fold in folds:
        split(corpus, None, fold, 0)
    common = {
        "corpus": options.corpus,
        "profile": options.profile,
        "data_root": options.data_root,
        "noise_dir": options.noise_dir,
        "results": options.results,
        "changes": options.changes,
    }
    first = {"fold": folds[0], "seed": options.seeds[0]}
    planned = [_step(name, common | first) for name in ONCE]
    for fold in folds:
        for seed in options.seeds:
            for name in EACH_FOLD_AND_SEED:
                own = {key: getattr(options, key) for key in OWN_OPTIONS.get(name, ())}
                if "ablations" in own:
                    if name not in asked:
                        continue
                    own["ablations"] = asked[name]
                planned.append(_step(name, common | {"fold": fold, "seed": seed} | own))
    reading = {key: common[key] for key in ("corpus", "profile", "results", "changes")}
    planned += [_step(name, reading) for name in LAST]
    return _only(planned, options.only)


def _step(notebook: str, parameters: dict) -> Step:
    needs = tuple(step_name(needed, parameters) for needed in NEEDS.get(notebook, ()))
    return Step(notebook, parameters, steps.NOTEBOOKS / f"{notebook}.ipynb", needs)


def _asked_ablations(options: Namespace, corpus: Corpus) -> dict[str, str]:
    """The list for each notebook of ablations that has something to do; a name goes to the notebook that knows it."""
    use = settings_of(options.profile, options.changes)
    if options.ablations == "none":
        return {}
    known = {
        "03_mlkd_ablations": ablations(use.teacher, use.mlkd, bool(options.speech_dir)),
        "05_decoupled_ablations": cnn_ablations(use.dkd),
        "07_curriculum_meta_ablations": token_ablations(use.mckd),
    }
    chosen = choose(options.ablations, {name: row for rows in known.values() for name, row in rows.items()}, False)
    listed = {name: ",".join(row for row in rows if row in chosen) for name, rows in known.items()}
    return {name: rows if options.ablations.strip() else "" for name, rows in listed.items() if rows}


def _only(planned: list[Step], numbers: str) -> list[Step]:
    wanted = [number.strip().zfill(2) for number in numbers.split(",") if number.strip()]
    known = sorted({step.notebook[:2] for step in planned})
    unknown = [number for number in wanted if number not in known]
    if unknown:
        raise ValueError(f"No notebook {', '.join(unknown)} in the plan: choose among {', '.join(known)}.")
    return [step for step in planned if not wanted or step.notebook[:2] in wanted]


def check_parameters(step: Step) -> None:
    """papermill only warns about a parameter the notebook does not declare: refuse it, and a value of another type."""
    declared = _declared(step.source)
    for name, value in step.parameters.items():
        if name not in declared:
            raise ValueError(f"{step.notebook} has no parameter {name!r}: it takes {', '.join(declared)}.")
        if type(value).__name__ != declared[name]:
            raise ValueError(f"{step.notebook}: {name} is declared {declared[name]}, got {value!r}.")


@cache
def _declared(source: Path) -> dict[str, str]:
    """Name and type of the notebook's parameters; read here, since papermill takes seconds to import."""
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    (text,) = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return {line.target.id: line.annotation.id for line in ast.parse(text).body if isinstance(line, ast.AnnAssign)}


def inputs_of(corpora: Sequence[Corpus], noise_dir: str, teacher_logits: str = "") -> dict[str, str]:
    """What the corpus, the unlabelled speech, the noise files and the stored logits are; no path counts.

    Sound files count by size and time of change: a copy elsewhere runs the notebooks again, but no training, since
    records are found by the sound itself.
    """
    noise = [sha256(p) for p in sorted(Path(noise_dir).rglob("*")) if p.is_file()] if noise_dir else "generated"
    found = {corpus.name: fingerprint(_contents(corpus)) for corpus in corpora} | {"noise": fingerprint(noise)}
    if teacher_logits:
        found["stored logits"] = sha256(Path(teacher_logits))
    return {name: digest[:12] for name, digest in found.items()}


def _contents(corpus: Corpus) -> str:
    states = [Path(path).stat() for path in corpus.manifest["path"]]
    table = corpus.manifest.assign(state=[f"{state.st_size} {state.st_mtime_ns}" for state in states])
    return table.drop(columns="path").to_csv(index=False)


def _jobs(options: Namespace, **limits: Any) -> list[Job]:
    """The plan, checked, with what each step must be made from. Makes the options' paths absolute.

    limits: force, run_limit and deadline of the jobs.
    """
    for name in ("data_root", "noise_dir", "speech_dir", "teacher_logits"):
        if getattr(options, name):  # workers stand elsewhere
            setattr(options, name, str(Path(getattr(options, name)).expanduser().resolve()))
    options.results = str(results_root(options.results).expanduser().resolve())
    corpus = load_corpus(options.corpus, options.data_root or None)
    speech = [unlabelled(options.speech_dir)] if options.speech_dir else []
    if options.teacher_logits and not Path(options.teacher_logits).is_file():
        raise FileNotFoundError(f"no file at {options.teacher_logits}: pass with --teacher-logits a CSV file of logits")
    planned = plan(options, corpus)
    for step in planned:
        check_parameters(step)
    inputs = inputs_of([corpus, *speech], options.noise_dir, options.teacher_logits)
    folder = results_folder(options.results, options.corpus, options.profile, changes=options.changes)
    return [Job(step, folder, made_from(step, inputs), **limits) for step in planned]


def reproduce(options: Namespace) -> int:
    """Run the plan. Returns 0 when all is done, 1 when a run failed, 3 when the time limit came first."""
    started = time.time()
    jobs = _jobs(
        options,
        force=options.force,
        run_limit=None if options.run_limit is None else 60 * options.run_limit,
        deadline=None if options.time_limit is None else started + 60 * options.time_limit,
    )
    folder = jobs[0].folder
    print(f"{len(jobs)} notebook runs, results in {_short(folder)}", flush=True)
    if options.dry_run:
        _print_plan(jobs, options)
        return 0
    _check_writable(folder)
    labels = {job.step.name: f"[{number}/{len(jobs)}] {job.step.name}" for number, job in enumerate(jobs, 1)}
    ended: dict[str, Outcome] = {}
    with ExitStack() as cluster:
        if options.workers or options.scheduler:
            os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # its notices would drown the progress
            from ser_kd_utils.cluster import check, run_all, workers_here, workers_of

            workers = workers_of(options.scheduler) if options.scheduler else workers_here(options.workers)
            client = cluster.enter_context(workers)
            check(client, folder)
            outcomes = run_all(client, jobs, labels, say)
        else:
            outcomes = _one_by_one(jobs, labels)
        for job, outcome in outcomes:
            ended[job.step.name] = outcome
            say(f"{labels[job.step.name]}  {_said(outcome)}")
    _summary(folder, ended, time.time() - started)
    return max(EXIT[outcome.state] for outcome in ended.values())


def say(text: str) -> None:
    """Print a line; in a terminal, what is longer goes on below, indented."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent=8 * " ", break_long_words=False, break_on_hyphens=False)
    print(text, flush=True)


def _one_by_one(jobs: Sequence[Job], labels: Mapping[str, str]) -> Iterator[tuple[Job, Outcome]]:
    ended: dict[str, Outcome] = {}
    for job in jobs:
        outcome = steps.blocked({name: ended[name] for name in job.step.needs if name in ended})
        outcome = outcome or steps.run(job, lambda text, label=labels[job.step.name]: say(f"{label}  {text}"))
        ended[job.step.name] = outcome
        yield job, outcome


def _said(outcome: Outcome) -> str:
    return {
        RECORDED: "already recorded, skipped",
        DONE: f"done in {outcome.seconds:.0f} s",
        FAILED: f"FAILED: {outcome.error}",
        BLOCKED: f"not run: {outcome.error}, which failed",
        OUT_OF_TIME: "stopped by the time limit" if outcome.seconds else "not started: the time limit is reached",
    }[outcome.state]


def _check_writable(folder: Path) -> None:
    """Before an hour of training, not after it."""
    token = unfinished(folder) / f"writable-{uuid.uuid4().hex}"
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text("can be written\n")
        token.unlink()
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): pass another folder with --results") from None


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _summary(folder: Path, ended: dict[str, Outcome], seconds: float) -> None:
    path = folder / "tables" / "mlkd.csv"
    if path.exists():
        table = pd.read_csv(path)
        columns = ["row", "model", *[name for name in table if name.startswith("UA ")][:3]]  # 80 columns hold no more
        print(f"\nUA in percent [95 % interval]\n{table[columns].to_string(index=False)}\n")
    counts = {state: sum(outcome.state == state for outcome in ended.values()) for state in EXIT}
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count) + f", in {seconds / 60:.1f} min.")
    for name, outcome in ended.items():
        if outcome.state == FAILED:
            say(f"FAILED {name}: {outcome.error}")
            say(f"  the notebook as far as it came: {_short(folder / 'notebooks' / f'{name}.ipynb')}")
    if any(EXIT[outcome.state] for outcome in ended.values()):
        print("What was recorded stays; the same command goes on from here.", flush=True)
    say(f"In {_short(folder)}: tables/, figures/, runs/ (predictions and settings), notebooks/ (executed)")


def status(options: Namespace) -> int:
    """Print what of the plan is done, running, failed or stale, and why; how far unfinished trainings are."""
    jobs = _jobs(options)
    folder = jobs[0].folder
    entries = Account(folder).steps
    counts: dict[str, int] = {}
    for job in jobs:
        state, why = state_of(job, entries.get(job.step.name, {}))
        state = DONE if state == RECORDED else state
        counts[state] = counts.get(state, 0) + 1
        say(f"{state:<12} {job.step.name}{f'  ({why})' if why else ''}")
    for training in (path for each in folders(jobs[0].step) for path in sorted(unfinished(each).glob("*@*"))):
        say(f"{'training':<12} {training.name.partition('@')[0]}  ({_progress(training)})")
    print(", ".join(f"{count} {state}" for state, count in counts.items()) + f", in {_short(folder)}")
    return 0


def _progress(training: Path) -> str:
    states = [json.loads(path.read_text()) for path in training.glob("checkpoint-*/trainer_state.json")]
    if not states:
        return "in its first epoch"
    newest = max(states, key=lambda state: state["global_step"])
    return f"epoch {newest['epoch']:.0f} of {newest['num_train_epochs']} is kept"


def _print_plan(jobs: Sequence[Job], options: Namespace) -> None:
    folder = jobs[0].folder
    entries, seconds = Account(folder).steps, _recorded_seconds(folders(jobs[0].step))
    expected: dict[str, float] = {}
    for number, job in enumerate(jobs, 1):
        state, why = state_of(job, entries.get(job.step.name, {}))
        if state == RECORDED and not options.force and job.step.notebook not in LAST:
            said = "already recorded, skipped"
        else:
            expected[job.step.name] = _expected(job.step, seconds)
            said = "would run"
            said += f", about {expected[job.step.name] / 60:.1f} min" if expected[job.step.name] else ""
            said += f" ({state}: {why})" if why else ""
        say(f"[{number}/{len(jobs)}] {job.step.name}  {said}")
    unknown = sorted({name.partition("__")[0] for name in expected if not expected[name]} - {*ONCE, *LAST})
    total, workers = sum(expected.values()), options.workers or 1
    spread = _makespan([job.step for job in jobs if job.step.name in expected], expected, workers)
    if total:
        print(
            f"about {total / 3600:.2f} hours of training and tests, {spread / 3600:.2f} with {workers} at a time\n"
            f"(from the durations of {sum(len(some) for some in seconds.values())} recorded trainings)"
        )
    if unknown:
        say(f"no durations recorded here yet for {', '.join(unknown)}: run one fold to know more")


def _recorded_seconds(recorded: Sequence[Path]) -> dict[tuple[str, str], list[float]]:
    """Seconds of training and tests by method and row."""
    found: dict[tuple[str, str], list[float]] = {}
    for path in (path for folder in recorded for path in folder.glob("runs/*/run.json")):
        info = json.loads(path.read_text(encoding="utf-8"))
        spent = info["seconds"] + info.get("test_seconds", 0)
        found.setdefault((info["method"], f"{path.parents[2].name}/{info['row']}"), []).append(spent)
    return found


def _expected(step: Step, seconds: dict[tuple[str, str], list[float]]) -> float:
    """Of the rows that were recorded before, each as long as it took on average; 0 where none was."""
    asked = [name.strip() for name in step.parameters.get("ablations", "").split(",") if name.strip()]
    method = EACH_FOLD_AND_SEED.get(step.notebook)
    return sum(
        fmean(some)
        for (of, row), some in seconds.items()
        if of == method and (not asked or row.rpartition("/")[2] in asked)
    )


def _makespan(planned: Sequence[Step], expected: dict[str, float], workers: int) -> float:
    """Seconds until the last ends, where a free worker takes the first step that can begin soonest."""
    free, end, waiting = [0.0] * workers, {}, list(planned)
    while waiting:
        open_ = {step.name for step in waiting}
        begins = {
            step.name: max([min(free), *(end[needed] for needed in step.needs if needed in end)])
            for step in waiting
            if not open_ & set(step.needs)
        }
        name = min(begins, key=begins.get)
        end[name] = begins[name] + expected[name]
        free[free.index(min(free))] = end[name]
        waiting = [step for step in waiting if step.name != name]
    return max(end.values(), default=0.0)
