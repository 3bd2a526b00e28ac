"""What there is to run: each notebook of METHODS for each fold and seed, checked before any of it begins."""

from __future__ import annotations

import ast
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from ser_kd_utils.data.corpora import Corpus, load_corpus, split, unlabelled
from ser_kd_utils.files import PACKAGE, digest
from ser_kd_utils.methods import METHODS, settings_of
from ser_kd_utils.methods.base import Method, Notebook, Variant, choose
from ser_kd_utils.records import results_folder, results_root, run_id
from ser_kd_utils.reproduce.run import PLACES, NotebookRun, code_cells, provenance_of

NOTEBOOKS = PACKAGE.parent / "notebooks"
FIRST, LAST = "00_corpora_and_noise", "09_paper_tables"
READING = ("corpus", "name", "profile", "results", "overrides")
"""Parameters of notebook 09, which only reads records."""
EACH = (*READING, "data_root", "noise_dir", "fold", "seed")
"""Parameters of all others, which may have more of their own."""


def plan(options: Namespace) -> list[NotebookRun]:
    """The runs in reading order, after every option was checked.

    Raises ValueError for a setting, fold, ablation, noise type or notebook number that there is not, and for a
    parameter that a notebook does not declare; FileNotFoundError for data or notebooks that are not there; OSError
    where nothing can be written to the results folder.
    """
    given = vars(options) | {"results": str(results_root(options.results))}
    given |= {name: str(Path(given[name]).expanduser().resolve()) for name in PLACES if given[name]}
    settings = settings_of(options.profile, options.overrides)
    corpus = load_corpus(options.corpus, given["data_root"] or None)
    every = tuple(range(1, corpus.fold_count() + 1))
    folds = every if options.folds is None else options.folds or (every[:1] if corpus.synthetic else every)
    for fold in folds:
        split(corpus, None, fold, 0)
    folder = results_folder(given["results"], options.name or options.corpus, options.profile, options.overrides)
    _check_writable(folder)
    inputs = _inputs(corpus, given, settings["noise"].train_types)
    trained = _trained(settings, options.ablations, corpus.synthetic, bool(options.speech_dir))
    if not NOTEBOOKS.is_dir():
        raise FileNotFoundError(f"no notebooks at {NOTEBOOKS}: clone the project and `pip install -e .` the clone")
    runs: list[NotebookRun] = []

    def add(notebook: str, names: Iterable[str], values: Mapping[str, Any], where: str = "", **more: Any) -> None:
        source, parameters = NOTEBOOKS / f"{notebook}.ipynb", {name: values[name] for name in names}
        _check_parameters(source, parameters)
        provenance = provenance_of(source, parameters, inputs)
        runs.append(NotebookRun(notebook + where, source, parameters, folder, provenance, **more))

    add(FIRST, EACH, given | {"fold": folds[0], "seed": options.seeds[0]})
    for fold, seed in product(folds, options.seeds):
        where = f"__fold-{fold}__seed-{seed}"
        for method, notebook, variants in trained:
            names = ",".join(variants) if options.ablations else ""
            values = given | {"fold": fold, "seed": seed, "ablations": names}
            marked = ((name, mark) for name, each in variants.items() for mark in ("", *each.protocols))
            records = tuple(run_id(method.name, name, fold, seed, mark) for name, mark in marked)
            needs = tuple(needed + where for needed in notebook.needs)
            add(notebook.name, (*EACH, *notebook.parameters), values, where, needs=needs, records=records)
    add(LAST, READING, given, needs=tuple(run.name for run in runs), last=True)

    wanted = [number.strip().zfill(2) for number in options.only.split(",") if number.strip()]
    known = sorted({run.name[:2] for run in runs})
    if unknown := [number for number in wanted if number not in known]:
        raise ValueError(f"No notebook {', '.join(unknown)} in the plan: choose among {', '.join(known)}.")
    return [run for run in runs if not wanted or run.name[:2] in wanted]


def _trained(
    settings: Mapping[str, Any], asked: str, demo: bool, speech: bool
) -> list[tuple[Method, Notebook, dict[str, Variant]]]:
    """The notebooks that have something to train, and their variants by name; of ablations those that are asked for."""
    found, ablations = [], {}
    for method in METHODS.values():
        every = method.variants(settings).values()
        possible = [each for each in every if speech or not each.overrides.get("unlabelled_speech")]
        for notebook in method.notebooks:
            variants = {each.name: each for each in possible if each.kind in notebook.kinds}
            found.append((method, notebook, variants))
            ablations |= variants if notebook.chosen else {}
    shown = {name for method in METHODS.values() for name in method.demo_ablations}
    chosen = [] if asked == "none" else choose(asked, ablations, demo, shown)
    for _, notebook, variants in found:
        for name in [name for name in variants if notebook.chosen and name not in chosen]:
            del variants[name]
    return [each for each in found if each[2]]


def _inputs(corpus: Corpus, given: Mapping[str, Any], train_types: tuple[str, ...]) -> dict[str, str]:
    """What the corpus, the unlabelled speech and the noise are; no path counts.

    Sound files count by size and time of change: a copy elsewhere runs the notebooks again, but no training, since
    records are found by the sound itself. Raises ValueError for a noise to train on that there is not.
    """
    noise, types = "generated", ()
    if given["noise_dir"] or train_types:
        from ser_kd_utils.data.noise import TYPES_GENERATED, NoiseBank

        bank = NoiseBank.from_folder(given["noise_dir"]) if given["noise_dir"] else None
        noise, types = (bank.fingerprint, bank.types) if bank else (noise, TYPES_GENERATED)
    if unknown := [kind for kind in train_types if kind not in types]:
        raise ValueError(f"noise.train_types: no noise {', '.join(unknown)}; choose among {', '.join(types)}.")
    speech = [unlabelled(given["speech_dir"])] if given["speech_dir"] else []
    return {each.name: digest(_contents(each))[:12] for each in (corpus, *speech)} | {"noise": noise[:12]}


def _contents(corpus: Corpus) -> str:
    states = [Path(path).stat() for path in corpus.manifest["path"]]
    table = corpus.manifest.assign(state=[f"{state.st_size} {state.st_mtime_ns}" for state in states])
    return table.drop(columns="path").to_csv(index=False)


def _check_writable(folder: Path) -> None:
    """Before an hour of training, not after it; leaves nothing behind."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"can be written")
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): pass another folder with --results") from None


def _check_parameters(source: Path, parameters: Mapping[str, Any]) -> None:
    """papermill only warns about a parameter the notebook does not declare: refuse it, and a value of another type."""
    tagged = [text for tags, text in code_cells(source) if "parameters" in tags]
    try:
        lines = [line for line in ast.parse("\n".join(tagged)).body if isinstance(line, ast.AnnAssign)]
    except SyntaxError:
        raise ValueError(f"{source}: its cell tagged `parameters` is no Python.") from None
    declared = {ast.unparse(line.target): ast.unparse(line.annotation) for line in lines}
    for name, value in parameters.items():
        if name not in declared:
            raise ValueError(f"{source.stem} has no parameter {name!r}: it takes {', '.join(declared)}.")
        if type(value).__name__ != declared[name]:
            raise ValueError(f"{source.stem}: {name} is declared {declared[name]}, got {value!r}.")
