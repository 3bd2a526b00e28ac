"""The plan: each notebook of METHODS for each fold and seed, checked before any run begins; and the state of each."""

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryFile
from typing import Any

from ser_kd_utils import records
from ser_kd_utils.data.audio import cache_audio, refuse_shared_samples
from ser_kd_utils.data.corpora import Corpus, fold_count, load_corpus, split, unlabelled
from ser_kd_utils.files import PACKAGE, digest
from ser_kd_utils.methods import METHODS, settings_of, variants_of
from ser_kd_utils.methods.base import Method, Notebook, Variant, choose
from ser_kd_utils.records import Run, evidence, folders, read_runs, run_id
from ser_kd_utils.reproduce.run import DONE, PLACES, NotebookRun, code_cells, provenance_of, state_of

NOTEBOOKS = PACKAGE.parent / "notebooks"
FIRST, *LAST = "00_corpora_and_noise", "08_comparison_and_efficiency", "09_paper_tables"
# Parameters of notebooks 08 and 09, which only read records.
READING = ("corpus", "name", "profile", "results", "overrides")
# Parameters of all others, which may have more of their own.
EACH = (*READING, "data_root", "noise_dir", "fold", "seed")


def plan(options: Namespace) -> list[NotebookRun]:
    """The runs in reading order, after every option was checked.

    Raises ValueError for a setting, fold, ablation, noise type or notebook number that there is not, and for a
    parameter that a notebook does not declare; FileNotFoundError for data or notebooks that are not there; OSError
    where nothing can be written to the results folder.
    """
    folder = folders(options)[0]
    given = vars(options) | {"results": str(folder.parent)}
    given |= {name: str(Path(given[name]).expanduser().resolve()) for name in PLACES if given[name]}
    settings = settings_of(options.profile, options.overrides)
    corpus = load_corpus(options.corpus, given["data_root"] or None)
    every = tuple(range(1, fold_count(corpus) + 1))
    folds = options.folds or (every[:1] if corpus.synthetic else every)
    parts = [split(corpus, None, fold, 0) for fold in folds]
    if corpus.name == "manifest":  # of the others the sound is known
        audio = cache_audio(corpus)
        for part in parts:
            refuse_shared_samples(part, audio)
    _check_writable(folder)
    inputs = _inputs(corpus, given, settings["noise"].train_types)
    trained = _trained(settings, options, corpus.synthetic)
    if not NOTEBOOKS.is_dir():
        raise FileNotFoundError(f"no notebooks at {NOTEBOOKS}: clone the project and `pip install -e .` the clone")
    known = sorted({name[:2] for name in (FIRST, *(notebook.name for _, notebook, _ in trained), *LAST)})
    wanted = [number.strip().zfill(2) for number in options.only.split(",") if number.strip()] or known
    if unknown := [number for number in wanted if number not in known]:
        raise ValueError(f"No notebook {', '.join(unknown)} in the plan: choose among {', '.join(known)}.")
    runs: list[NotebookRun] = []

    def add(notebook: str, where: str, names: Sequence[str], values: Mapping[str, Any], **more: Any) -> None:
        if notebook[:2] in wanted:
            source, parameters = NOTEBOOKS / f"{notebook}.ipynb", {name: values[name] for name in names}
            _check_parameters(source, parameters)
            provenance = provenance_of(source, parameters, inputs)
            runs.append(NotebookRun(notebook + where, source, parameters, folder, provenance, **more))

    add(FIRST, "", EACH, given | {"fold": folds[0], "seed": options.seeds[0]})
    for fold, seed in product(folds, options.seeds):
        where = f"__fold-{fold}__seed-{seed}"
        for method, notebook, variants in trained:
            names = ",".join(variants) if options.ablations else ""
            values = given | {"fold": fold, "seed": seed, "ablations": names}
            marked = ((name, mark) for name, each in variants.items() for mark in ("", *each.protocols))
            records = tuple(run_id(method.name, name, fold, seed, mark) for name, mark in marked)
            needs = tuple(needed + where for needed in notebook.needs)
            add(notebook.name, where, (*EACH, *notebook.parameters), values, needs=needs, records=records)
    for name in LAST:
        add(name, "", READING, given, needs=tuple(run.name for run in runs if not run.last), last=True)
    return [replace(run, label=f"[{number}/{len(runs)}] {run.name}") for number, run in enumerate(runs, 1)]


def _trained(settings: Mapping, options: Namespace, demo: bool) -> list[tuple[Method, Notebook, dict[str, Variant]]]:
    """The notebooks that have something to train, and their variants by name; of ablations those that are asked for."""
    every = variants_of(settings).values()
    possible = [each for each in every if options.speech_dir or not each.overrides.get("unlabelled_speech")]
    kinds = {(method.name, kind) for method in METHODS.values() for each in method.notebooks for kind in each.kinds}
    possible = [each for each in possible if (each.method, each.kind) in kinds]  # others: where a student needs them
    ablations = {each.name: each for each in possible if each.kind != "main"}
    shown = {name for method in METHODS.values() for name in method.demo_ablations}
    chosen = [] if options.ablations == "none" else choose(options.ablations, ablations, demo, shown)
    wanted = [each for each in possible if each.kind == "main" or each.name in chosen]
    found = []
    for method in METHODS.values():
        for notebook in method.notebooks:
            own = [each for each in wanted if each.method == method.name and each.kind in notebook.kinds]
            found += [(method, notebook, {each.name: each for each in own})] if own else []
    return found


def _inputs(corpus: Corpus, given: Mapping[str, Any], train_types: Sequence[str]) -> dict[str, str]:
    """What identifies the corpus, the unlabelled speech and the noise; paths do not count.

    Sound files count by size and time of change: a copy elsewhere runs the notebooks again, but no training, since
    records are found by the sound itself. Raises ValueError for a noise to train on that there is not.
    """
    from ser_kd_utils.data.noise import TYPES_GENERATED, NoiseBank

    bank = NoiseBank.from_folder(given["noise_dir"]) if given["noise_dir"] else None
    noise, types = (bank.fingerprint, bank.types) if bank else ("generated", TYPES_GENERATED)
    if unknown := [kind for kind in train_types if kind not in types]:
        raise ValueError(f"noise.train_types: no noise {', '.join(unknown)}; choose among {', '.join(types)}.")
    speech = [unlabelled(given["speech_dir"])] if given["speech_dir"] else []
    return {each.name: digest(_contents(each))[:12] for each in (corpus, *speech)} | {"noise": noise[:12]}


def _contents(corpus: Corpus) -> str:
    states = [Path(path).stat() for path in corpus.manifest["path"]]
    table = corpus.manifest.assign(state=[f"{state.st_size} {state.st_mtime_ns}" for state in states])
    return table.drop(columns="path").to_csv(index=False)


def _check_writable(folder: Path) -> None:
    """Raise OSError before an hour of training and not after it; leaves nothing behind."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        TemporaryFile(dir=place).close()
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): pass another folder with --results") from None


def _check_parameters(source: Path, parameters: Mapping[str, Any]) -> None:
    """papermill only warns about a parameter the notebook does not declare: refuse it, and a value of another type."""
    tagged = "\n".join(text for tags, text in code_cells(source) if "parameters" in tags)
    declared = re.findall(r"^(\w+: \w+) = ", tagged, re.MULTILINE)
    given = [f"{name}: {type(value).__name__}" for name, value in parameters.items()]
    if lacking := [each for each in given if each not in declared]:
        raise ValueError(f"{source.stem} has no parameter {lacking[0]}, which it gets; it has {', '.join(declared)}.")


def status(options: Namespace) -> int:
    """Print the state of each run of the plan, why, and what it will cost.

    The cost is estimated from the durations of what was trained before, here and for the evidence; where there is
    nothing of this corpus, from those of the profile's other corpora, by the number of utterances.
    """
    runs = plan(options)
    folder, published = runs[0].folder, evidence(runs[0].folder)
    own = [*(Run(path.parent) for path in folder.glob("runs/[!.]*/run.json")), *published]
    places = [] if own else sorted(records.EVIDENCE.glob(f"*-{options.profile}"))
    size = len(load_corpus(options.corpus, options.data_root or None).manifest)
    spent: dict[str, list[float]] = {}
    for info, name in ((run.info, run.id) for run in own or sum(map(read_runs, places), [])):
        share = 1 if own else size / sum(info["protocol"]["sizes"].values())
        spent.setdefault(_kind(name), []).append(share * (info["seconds"] + info.get("test_seconds", 0)))
    counts, total = Counter[str](), 0.0
    for run in runs:
        state, why = state_of(run)
        if state == "not run" and run.records and {*run.records} <= {each.id for each in published}:
            state = "published"
        seconds = sum(fmean(spent[_kind(name)]) for name in run.records if _kind(name) in spent) * (state != DONE)
        told = [why, f"about {seconds / 60:.1f} min" * bool(seconds)]
        print(f"{state:<12} {run.name}  {'; '.join(filter(None, told))}".rstrip())
        counts[state] += 1
        total += seconds
    print(", ".join(f"{count} {state}" for state, count in counts.items()) + f", in {folder}")
    told = f"about {total / 3600:.2f} hours of training and tests to go, by the durations of earlier runs"
    print(told if spent else "how long this takes is not known: nothing of this profile is recorded")
    return 0


def _kind(record: str) -> str:
    """What is trained, without fold and seed."""
    return record.partition("__fold-")[0]
