"""Plans, strict parameters, receipts, status and the command line, with stand-in notebooks that take a second."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import types
from argparse import Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import nbformat
import numpy as np
import pytest
import soundfile
from nbformat.v4 import new_code_cell, new_notebook

from ser_kd_utils import records
from ser_kd_utils.cli import COMMANDS, main, parser
from ser_kd_utils.methods import METHODS
from ser_kd_utils.methods.base import Method, Notebook
from ser_kd_utils.reproduce import compare, plan, schedule
from ser_kd_utils.reproduce import run as run_module
from ser_kd_utils.reproduce.run import NotebookRun, Outcome
from ser_kd_utils.reproduce.schedule import run_all

TYPES = {"fold": "int = 1", "seed": "int = 0"}
OF = {"01": "teacher a", "02": "mlkd e", "03": "mlkd two-stage", "04": "dkdfmh cnn-dkd", "05": "dkdfmh cnn-nckd",
      "06": "mckd mc-full", "07": "mckd mc-time-tokens"}  # fmt: skip
"""Method and variant whose record the stand-in for a notebook leaves."""
NAMES = (
    "01_teacher_finetuning",
    "02_noisy_student_distillation",
    "03_mlkd_ablations",
    "04_decoupled_distillation",
    "05_decoupled_ablations",
    "06_curriculum_meta_distillation",
    "07_curriculum_meta_ablations",
)
TEACHER, MLKD, ABLATIONS = (f"{name}__fold-1__seed-0" for name in NAMES[:3])
RUN = """from pathlib import Path
run = Path(results, f"{{name or corpus}}-{{profile}}", "runs", f"{}__{}__fold-{{fold}}__seed-{{seed}}")
run.joinpath("model").mkdir(parents=True, exist_ok=True)
run.joinpath("predictions.parquet").write_text("predictions")"""


def record(number: str) -> str:
    return RUN.format(*OF[number].split())


def parameters(names) -> str:
    return "\n".join(f"{name}: {TYPES.get(name, 'str = ' + repr(''))}" for name in names)


def write_notebook(path, *cells, first=None):
    run_module._code_of.cache_clear()  # a process reads a notebook once
    own = {"03": ("speech_dir", "ablations"), "05": ("ablations",), "07": ("ablations",)}.get(path.name[:2], ())
    names = plan.READING if path.stem in plan.LAST else (*plan.EACH, *own)
    tagged = new_code_cell(parameters(names) if first is None else first, metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[tagged, *map(new_code_cell, cells)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in (plan.FIRST, *NAMES, *plan.LAST):
        write_notebook(folder / f"{name}.ipynb", record(name[:2]) if name in NAMES else "corpus")
    monkeypatch.setattr(plan, "NOTEBOOKS", folder)
    monkeypatch.setattr(records, "EVIDENCE", tmp_path / "evidence")
    return folder


UTTERANCES = 18


@pytest.fixture
def corpus(tmp_path):
    """Six speakers, three sentences each, as a manifest corpus."""
    lines = ["utterance,path,label,speaker"]
    rng = np.random.default_rng(0)
    for speaker in "ABCDEF":
        for number, label in enumerate(("angry", "neutral", "sad")):
            soundfile.write(tmp_path / f"{speaker}{number}.wav", 0.1 * rng.standard_normal(8000), 16_000)
            lines.append(f"{speaker}{number},{speaker}{number}.wav,{label},{speaker}")
    (tmp_path / "corpus.csv").write_text("\n".join(lines))
    return tmp_path / "corpus.csv"


@pytest.fixture
def run(corpus, tmp_path):
    def command(*extra):
        results = str(tmp_path / "results")
        return main(["reproduce", "--corpus", "manifest", "--data-root", str(corpus), "--results", results, *extra])

    return command


@pytest.fixture
def shown(corpus, tmp_path, capsys):
    """What `ser-kd status` prints."""

    def found(*extra) -> str:
        capsys.readouterr()
        given = ["--corpus", "manifest", "--data-root", str(corpus), "--results", str(tmp_path / "results")]
        assert main(["status", *given, *extra]) == 0
        return capsys.readouterr().out

    return found


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "corpus-tiny"


@pytest.fixture
def receipts(folder):
    return lambda: {path.stem: json.loads(path.read_text()) for path in folder.glob("receipts/*.json")}


@pytest.fixture
def status(shown):
    """The state of each run, by its notebook's number, and of each unfinished training, by its id."""

    def found(*extra) -> dict[str, str]:
        lines = [re.split(r"  +", line) for line in shown(*extra).splitlines()[:-2]]
        return {re.sub(r"^(\d\d)_.*", r"\1", name): ": ".join([state, *why]) for state, name, *why in lines}

    return found


@pytest.fixture
def request_of(corpus, tmp_path):
    def options(*extra):
        given = ["--corpus", "manifest", "--data-root", str(corpus), "--results", str(tmp_path / "results"), *extra]
        return Namespace(**vars(parser().parse_args(["reproduce", *given])) | {"name": "corpus", "overrides": ""})

    return options


@pytest.fixture
def noise(tmp_path):
    """A folder of one type of noise, in two recordings."""
    folder = tmp_path / "noise"
    folder.mkdir()
    for number in (1, 2):
        samples = np.random.default_rng(number).normal(0, 0.1, 32_000)
        soundfile.write(folder / f"hum_{number}.wav", samples, 16_000)
    return folder


def test_plan_is_notebook_by_fold_by_seed(notebooks, shown):
    out = shown("--folds", "1-2", "--seeds", "0,3")
    lines = [line.split()[2] for line in out.splitlines() if line.startswith("not run")]
    each = [f"{name}__fold-{fold}__seed-{seed}" for fold in (1, 2) for seed in (0, 3) for name in NAMES]
    assert lines == [plan.FIRST, *each, *plan.LAST]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("", {"03": "", "05": "", "07": ""}),
        ("none", {}),
        ("gamma-10,cnn-nckd", {"03": "gamma-10", "05": "cnn-nckd"}),
        ("cnn-nckd", {"05": "cnn-nckd"}),
        ("mc-log-mel-z-score", {"07": "mc-log-mel,mc-log-mel-z-score"}),
        ("two-stage, l1-only", {"03": "l1-only,two-stage"}),
        ("cnn-dkd-noisy, e-unseen", {"03": "c-unseen,e-unseen", "05": "cnn-alone-noisy,cnn-dkd-noisy"}),
    ],
)
def test_ablations_go_to_the_notebook_that_knows_them(request_of, notebooks, asked, wanted):
    runs = plan.plan(request_of("--folds", "1", "--ablations", asked))
    assert [run.name[:2] for run in runs] == sorted({"00", "01", "02", "04", "06", "08", "09"} | wanted.keys())
    assert {run.name[:2]: run.parameters["ablations"] for run in runs if "ablations" in run.parameters} == wanted
    for run in runs:
        if wanted.get(run.name[:2]):
            assert [name.split("__")[1] for name in run.records] == wanted[run.name[:2]].split(",")


def test_a_run_knows_its_parameters_needs_and_records(request_of, notebooks, corpus, tmp_path):
    runs = {run.name[:2]: run for run in plan.plan(request_of("--folds", "2", "--seeds", "3"))}
    shared = {"corpus": "manifest", "name": "corpus", "profile": "tiny", "overrides": "", "noise_dir": ""}
    shared |= {"data_root": str(corpus), "results": str(tmp_path / "results"), "fold": 2, "seed": 3}
    assert runs["00"].parameters == runs["04"].parameters == shared
    assert runs["05"].parameters == shared | {"ablations": ""}
    assert runs["08"].parameters == runs["09"].parameters
    assert runs["08"].needs == runs["09"].needs and runs["08"].last
    assert runs["09"].parameters.keys() == {"corpus", "name", "profile", "results", "overrides"}
    assert runs["03"].needs == tuple(f"{name}__fold-2__seed-3" for name in NAMES[:2])
    assert runs["09"].needs == (plan.FIRST, *(f"{name}__fold-2__seed-3" for name in NAMES)) and runs["09"].last
    names = {name.removesuffix("__fold-2__seed-3") for name in runs["04"].records}
    assert names == {f"dkdfmh__cnn-{name}" for name in ("teacher", "alone", "kd", "dkd", "whisper")} | {
        f"dkdfmh__cnn-{name}+P1" for name in ("teacher", "alone", "kd", "dkd")
    }
    assert all("+P1" not in name for name in runs["05"].records) and len(runs["05"].records) > 10


def test_a_users_corpus_is_called_as_its_file_or_as_told(run, notebooks, tmp_path):
    assert run("--folds", "1", "--only", "00") == run("--folds", "1", "--only", "00", "--name", "Gespräche") == 0
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"corpus-tiny", "Gespräche-tiny"}


def test_settings_are_one_text_for_notebooks_and_part_of_the_folders_name(run, notebooks, tmp_path):
    write_notebook(notebooks / "00_corpora_and_noise.ipynb", "assert overrides == 'mlkd.epochs=2, teacher.epochs=4'")
    assert run("--folds", "1", "--only", "00", "--set", "mlkd.epochs=2", "--set", "teacher.epochs=4") == 0
    (made,) = (tmp_path / "results").iterdir()
    assert made == records.results_folder(
        str(tmp_path / "results"), "corpus", "tiny", "mlkd.epochs=2, teacher.epochs=4"
    )


def test_other_ablations_or_other_speech_run_notebook_03_again(run, notebooks, tmp_path, capsys):
    soundfile.write(tmp_path / "speech.wav", np.zeros(16_000), 16_000)
    options = ("--folds", "1", "--only", "02,03")
    assert run(*options, "--ablations", "gamma-10") == 0
    for again in (("gamma-10", "--speech-dir", str(tmp_path)), ("gamma-10, l1-only", "--speech-dir", str(tmp_path))):
        capsys.readouterr()
        assert run(*options, "--ablations", *again) == 0
        out = capsys.readouterr().out
        assert "03_mlkd_ablations__fold-1__seed-0  running" in out
    assert run(*options, "--ablations", *again) == 0
    assert capsys.readouterr().out.count("  recorded\n") == 2


def test_other_ablations_of_one_notebook_leave_the_other_alone(run, notebooks, receipts, capsys):
    options = ("--folds", "1", "--only", "03,05", "--ablations")
    assert run(*options, "gamma-10,cnn-nckd") == run(*options, "gamma-10,cnn-tckd") == 0
    out = capsys.readouterr().out
    assert "03_mlkd_ablations__fold-1__seed-0  recorded\n" in out and out.count("  recorded\n") == 1
    asked = {name[:2]: receipt["provenance"]["parameter ablations"] for name, receipt in receipts().items()}
    assert asked == {"03": "gamma-10", "05": "cnn-tckd"}


def test_a_receipt_names_no_place_of_this_machine(run, notebooks, receipts, tmp_path):
    soundfile.write(tmp_path / "speech.wav", np.zeros(16_000), 16_000)
    assert run("--folds", "1", "--only", "02,03", "--speech-dir", str(tmp_path)) == 0
    (done,) = (receipt for name, receipt in receipts().items() if name == ABLATIONS)
    assert done.keys() == {"status", "by", "at", "seconds", "error", "provenance", "records"}
    assert {"the manifest", "the speech", "the noise", "parameter fold"} <= done["provenance"].keys()
    assert str(tmp_path) not in json.dumps(receipts())


def test_other_noise_runs_again_but_not_the_same_elsewhere(run, notebooks, noise, tmp_path, capsys):
    def runs(folder) -> bool:
        assert run("--folds", "1", "--only", "01", "--noise-dir", str(folder)) == 0
        return "running" in capsys.readouterr().out

    copy = shutil.copytree(noise, tmp_path / "copy")
    assert runs(noise) and not runs(noise) and not runs(copy)  # wherever it lies
    soundfile.write(noise / "hum_1.wav", np.random.default_rng(1).normal(0, 0.1, 40_000), 16_000)
    assert runs(noise)


def test_force_drops_teacher_outputs_which_otherwise_stay(run, notebooks, folder):
    outputs = folder / "unfinished" / "teacher-outputs-0123456789abcdef"
    outputs.mkdir(parents=True)
    (outputs / "0.npy").touch()
    assert run("--folds", "1", "--only", "01") == 0 and outputs.exists()
    assert run("--folds", "1", "--only", "01", "--force") == 0 and not outputs.exists()


def test_forcing_the_ablations_keeps_the_weights_of_the_main_variants(run, notebooks, folder):
    kept = ["teacher__a", "mlkd__e", "dkdfmh__cnn-dkd"]
    dropped = ["mlkd__gamma-10", "dkdfmh__cnn-tckd"]
    weights = [folder / "runs" / f"{name}__fold-1__seed-0" / "model" for name in (*kept, *dropped)]
    for path in weights:
        path.mkdir(parents=True)
    assert run("--folds", "1", "--only", "03,05", "--force") == 0
    assert [path.exists() for path in weights] == [True] * 3 + [False] * 2


def test_all_folds_by_default_but_one_of_the_demo(notebooks, shown, capsys):
    assert shown("--only", "1").count("not run      01") == 5
    main(["status", "--only", "01"])
    assert capsys.readouterr().out.count("not run      01") == 1


def test_what_is_recorded_is_skipped_until_something_changes(run, notebooks, receipts, corpus, folder, capsys):
    options = ("--folds", "1", "--only", "01,02")

    def skipped(*extra) -> int:
        capsys.readouterr()
        assert run(*options, *extra) == 0
        return capsys.readouterr().out.count("  recorded\n")

    assert skipped() == 0
    assert {receipt["status"] for receipt in receipts().values()} == {"done"}
    assert [list(receipt["records"]) for _, receipt in sorted(receipts().items())] == [
        ["teacher__a__fold-1__seed-0"], ["mlkd__e__fold-1__seed-0"],
    ]  # fmt: skip
    assert skipped() == 2
    write_notebook(notebooks / "02_noisy_student_distillation.ipynb", record("02") + "\n1")
    assert skipped() == 1
    shutil.rmtree(folder / "runs" / "teacher__a__fold-1__seed-0")
    assert skipped() == 1
    corpus.write_text(corpus.read_text().replace("A0.wav,angry", "A0.wav,sad"))
    assert skipped() == 0
    assert skipped("--force") == 0


def test_force_drops_the_weights_but_not_the_record(run, notebooks, folder):
    record = folder / "runs" / "teacher__a__fold-1__seed-0"
    other = record.with_name("teacher__a__fold-2__seed-0")
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", "1")
    for each in (record, other):
        (each / "model").mkdir(parents=True)
        (each / "run.json").write_text("{}")
    assert run("--folds", "1", "--only", "01", "--force") == 0
    assert not (record / "model").exists() and (record / "run.json").exists() and (other / "model").exists()


def test_what_others_need_begins_before_what_only_the_tables_need(tmp_path):
    needs = {"01": [], "02": ["01"], "03": ["01", "02"], "06": ["01"], "07": ["01", "06"]}
    needs["09"] = [*needs]
    runs = [NotebookRun(name, tmp_path, {}, tmp_path, {}, tuple(needed)) for name, needed in needs.items()]
    began = []

    def work(run: NotebookRun) -> Outcome:
        began.append(run.name)
        return Outcome("done")

    with ThreadPoolExecutor(1) as executor:
        run_all((executor, work, 1), runs)
    assert began == ["01", "02", "06", "03", "07", "09"]


def test_of_a_failing_notebook_one_line_is_said_and_the_others_go_on(run, notebooks, receipts, capsys):
    write_notebook(notebooks / "02_noisy_student_distillation.ipynb", "raise ValueError('the noise folder is silent')")
    assert run("--folds", "1") == 1
    out, error = capsys.readouterr()
    said = r"  failed after \d+ s: cell 2: ValueError: the noise folder is silent\n"
    assert re.search(MLKD + said, out)
    assert f"{ABLATIONS}  blocked: needs {MLKD}\n" in out
    assert "8 done, 1 failed, 1 blocked" in out and "Traceback" not in out + error
    assert {name[:2]: receipt["status"] for name, receipt in receipts().items()} == {
        **dict.fromkeys(("00", "01", "04", "05", "06", "07", "08", "09"), "done"), "02": "failed"}  # fmt: skip


def test_a_changed_data_file_of_a_package_that_a_notebook_imports_makes_its_run_stale(
    run, notebooks, receipts, status, tmp_path, monkeypatch
):
    package = shutil.copytree(run_module.PACKAGE, tmp_path / "copy" / "ser_kd_utils")
    monkeypatch.setattr(run_module, "PACKAGE", package)
    (package / "help.toml").write_text("")  # of the command line
    write_notebook(notebooks / "00_corpora_and_noise.ipynb", "from ser_kd_utils.data import corpora as corpora")
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", record("01"), "import ser_kd_utils.files")
    options = ("--folds", "1", "--only", "00,01")
    assert run(*options) == 0 and set(status(*options).values()) == {"done"}
    found = {
        name: {key for key in each["provenance"] if key.endswith((".toml", ".csv", ".md"))}
        for name, each in receipts().items()
    }
    assert found == {plan.FIRST: {"data/corpora/cards.toml", "data/corpora/demo.toml"}, TEACHER: set()}
    for path in (package / "data" / "corpora" / "cards.toml", package / "deploy" / "card.md"):  # one that it reads
        path.write_text(path.read_text() + "\n# other")
    run_module._code_of.cache_clear()
    assert status(*options) == {"00": "stale: data/corpora/cards.toml changed", "01": "done"}


def test_status_says_what_is_done_and_what_is_not_and_why(run, notebooks, folder, corpus, status, monkeypatch):
    write_notebook(notebooks / "04_decoupled_distillation.ipynb", "1 / 0")
    options = ("--folds", "1", "--ablations", "none")
    run(*options)
    assert status(*options) == {
        **dict.fromkeys(("00", "01", "02", "06", "08", "09"), "done"),
        "04": "failed: cell 2: ZeroDivisionError: division by zero",
    }
    runs = folder / "runs"
    (runs / "teacher__a__fold-1__seed-0" / "predictions.parquet").write_text("others")
    shutil.rmtree(runs / "mlkd__e__fold-1__seed-0" / "model")
    write_notebook(notebooks / "06_curriculum_meta_distillation.ipynb", "other = 1")
    found = status(*options)
    assert found["01"] == "stale: damaged or not here: teacher__a__fold-1__seed-0"
    assert found["02"] == "stale: damaged or not here: mlkd__e__fold-1__seed-0"  # its weights
    assert found["06"] == "stale: the notebook's code changed"
    corpus.write_text(corpus.read_text().replace("A0.wav,angry", "A0.wav,sad"))
    assert status(*options)["00"] == "stale: the manifest changed"
    monkeypatch.setattr(run_module, "code_of_source", lambda text: {"ser_kd_utils.training.losses": "other"})
    run_module._code_of.cache_clear()
    assert "ser_kd_utils.training.losses" in status(*options)["00"]


def committed(tmp_path, *names, corpus="corpus", utterances=UTTERANCES) -> None:
    """Evidence in which these records are."""
    for name in names:
        method, variant, fold, seed = name.split("__")
        info = {"method": method, "variant": variant, "seconds": 60, "test_seconds": 60}
        info |= {"corpus": corpus, "labels": ["angry"], "audio_fingerprint": "a", "settings": {}}
        rule = {"protocol": "speaker-groups", "optimistic": False, "mark": ""}
        info |= {"fold": int(fold[5:]), "seed": int(seed[5:])}
        sizes = {"sizes": {"train": utterances}}
        info |= {"protocol": rule | sizes | {"noise": "generated", "speech level": "active"}}
        folder = tmp_path / "evidence" / f"{corpus}-tiny" / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(info))


def test_what_is_committed_is_published_and_what_nobody_has_is_not_run(run, notebooks, tmp_path, status, capsys):
    main_variants = ("teacher__a", "mlkd__b", "mlkd__c", "mlkd__d", "mlkd__e")
    committed(tmp_path, *(f"{name}__fold-1__seed-0" for name in main_variants), "mlkd__e__fold-2__seed-0")
    options = ("--only", "01,02", "--folds")
    cost = {"01": "about 2.0 min", "02": "about 8.0 min"}
    assert status(*options, "1") == {number: f"published: {minutes}" for number, minutes in cost.items()}
    not_run = {number: f"not run: {minutes}" for number, minutes in cost.items()}
    assert status(*options, "2") == not_run  # (e) alone is not the notebook
    assert status(*options, "1", "--seeds", "1") == not_run
    assert run(*options, "1") == 0
    assert status(*options, "1") == {"01": "done", "02": "done"}


def test_the_plan_says_what_it_will_cost_from_recorded_durations(notebooks, folder, shown):
    def recorded(name: str, seconds: float) -> None:
        (folder / "runs" / name).mkdir(parents=True)
        info = {"seconds": seconds, "test_seconds": 120}
        (folder / "runs" / name / "run.json").write_text(json.dumps(info))

    for name, seconds in (("teacher__a", 600), ("mlkd__c", 1200), ("mlkd__e", 1800), ("mckd__mc-full", 60)):
        for fold in (1, 2):  # as long on average
            recorded(f"{name}__fold-{fold}__seed-0", seconds + 60 * (2 * fold - 3))
    out = shown("--folds", "1-2", "--only", "01,02,06", "--ablations", "none")
    assert "02_noisy_student_distillation__fold-2__seed-0  about 54.0 min\n" in out
    assert "about 2.30 hours of training and tests" in out  # 12 + 54 + 3 minutes a fold
    recorded("dkdfmh__cnn-dkd+P1__fold-1__seed-0", 60)
    out = shown("--folds", "2", "--only", "04,07")
    assert "04_decoupled_distillation__fold-2__seed-0  about 3.0 min\n" in out
    assert "07_curriculum_meta_ablations__fold-2__seed-0\n" in out  # nobody knows


def test_where_nothing_is_recorded_the_plan_asks_other_corpora_or_says_that_nobody_knows(notebooks, shown, tmp_path):
    """By the number of utterances."""
    options = ("--folds", "1", "--only", "01,02", "--ablations", "none")
    assert "how long this takes is not known: nothing of this profile is recorded" in shown(*options)
    committed(tmp_path, "teacher__a__fold-1__seed-0", corpus="other", utterances=2 * UTTERANCES)
    assert "01_teacher_finetuning__fold-1__seed-0  about 1.0 min\n" in shown(*options)


def test_what_is_done_costs_nothing(run, notebooks, folder, shown):
    assert run("--folds", "1", "--only", "01") == 0
    (folder / "runs" / "teacher__a__fold-1__seed-0" / "run.json").write_text('{"seconds": 600}')
    out = shown("--folds", "1-2", "--only", "01")
    assert "done         01_teacher_finetuning__fold-1__seed-0\n" in out and "about 0.17 hours" in out


def test_time_limit_stops_and_the_same_command_goes_on(run, notebooks, receipts, capsys):
    assert run("--folds", "1", "--only", "00") == 0
    # no cell is as long as the limit of 3 s, all of them are
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", *["import time; time.sleep(1)"] * 30)
    started = time.monotonic()
    assert run("--folds", "1", "--only", "00,01,02", "--time-limit", "0.05") == 3
    assert time.monotonic() - started < 20
    assert receipts()[TEACHER]["status"] == "out of time"
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", "print('quick')")
    capsys.readouterr()
    assert run("--folds", "1", "--only", "00,01,02") == 0
    out = capsys.readouterr().out
    assert out.count("  recorded\n") == 1 and out.count("  done after") + out.count("  done\n") == 2


def test_a_parameter_the_notebook_does_not_declare_is_refused(run, notebooks, capsys):
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", "1", first=parameters(plan.READING))
    assert run("--folds", "1") == 2
    assert "01_teacher_finetuning has no parameter data_root: str, which it gets" in capsys.readouterr().err
    other = parameters(plan.EACH).replace("fold: int", "fold: str")
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", "1", first=other)
    assert run("--folds", "1") == 2
    error = capsys.readouterr().err
    assert "has no parameter fold: int, which it gets" in error and "fold: str" in error


@pytest.mark.parametrize("what", ["reproduce", "status"])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--profile", "huge"), "Unknown profile 'huge': choose one of tiny, whisper, paper"),
        (("--folds", "9"), "no fold 9; folds: 1 to 5"),
        (("--only", "42"), "No notebook 42 in the plan"),
        (("--ablations", "gamma-11"), "No ablation gamma-11: choose among levels-ends, gamma-0.1"),
        (("--ablations", "cnn-nckd,cnn-nkcd"), "No ablation cnn-nkcd: choose among levels-ends"),
        (("--ablations", "cnn-nkcd"), "e-unseen, c-pseudo-labels, cnn-tckd, cnn-nckd"),  # of all notebooks
        (("--ablations", "cnn-nckd", "--only", "03"), "No notebook 03 in the plan"),
        (("--set", "dkdfmh.gama=1"), "Unknown setting dkdfmh.gama"),
        (("--set", "mlkd.epochs='two'"), "mlkd.epochs='two'"),
        (("--set", "mlkd.epochs=2", "--set", "mlkd.epochs=3"), "mlkd.epochs is given twice"),
        (("--ablations", "unlabelled"), "No ablation unlabelled"),
        (("--speech-dir", "nowhere"), "pass with --speech-dir"),
        (("--noise-dir", "nowhere"), "no recordings"),
        (("--set", "noise.train_types=('babel',)"), "no noise babel; choose among babble, white"),
        (("--noise-dir", "NOISE", "--set", "noise.train_types=('hum', 'babble')"), "no noise babble; choose among hum"),
        (("--results", "/proc/nothing"), "cannot write to /proc/nothing/corpus-tiny"),
        (("--name", "emodb"), "--name emodb: a name is for --corpus manifest, and none of demo"),
        (("--corpus", "demo", "--name", "mine"), "--name mine: a name is for --corpus manifest"),
        (("--seeds", "3-1"), "'3-1' is not a list of numbers"),
        (("--folds", "one"), "'one' is not a list of numbers such as 1,2 or 1-5 (see `ser-kd"),
        (("--nonsense", "1"), "unrecognized arguments: --nonsense 1"),
        (("--changes", "epochs=2"), "unrecognized arguments: --changes epochs=2"),
    ],
)
def test_bad_options_are_one_clear_line_before_any_work(
    notebooks, corpus, noise, tmp_path, capsys, extra, message, what
):
    extra = [str(noise) if each == "NOISE" else each for each in extra]
    given = ["--corpus", "manifest", "--data-root", str(corpus), "--results", str(tmp_path / "results"), *extra]
    assert main([what, *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ser-kd: ") and message in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_there_is_no_number_of_workers_below_one(run, notebooks, capsys, receipts, number):
    assert run("--workers", number) == 2
    assert f"--workers: {number} is not a number from 1 on" in capsys.readouterr().err and not receipts()


@pytest.mark.parametrize(("cores", "gpus", "expected"), [(3, 0, 3), (16, 1, 1), (16, 2, 2)])
def test_without_a_number_of_workers_each_core_or_gpu_has_one(request_of, monkeypatch, cores, gpus, expected):
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with schedule.here(request_of()) as (_, _, room):
        assert room == expected
    with schedule.here(request_of("--workers", "1")) as (_, _, room):
        assert room == 1


def test_more_runs_than_gpus_share_them(request_of, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    all_began = threading.Barrier(5)
    monkeypatch.setattr(schedule, "execute", lambda _run, _options, _say, gpu: (all_began.wait(60), gpu)[1])
    with schedule.here(request_of("--workers", "5")) as (executor, work, room):
        used = Counter(executor.map(work, range(room)))
    assert used == {"0": 3, "1": 2}


def test_without_a_clone_the_error_says_where_notebooks_come_from(run, notebooks, capsys, monkeypatch):
    monkeypatch.setattr(plan, "NOTEBOOKS", notebooks / "nowhere")
    assert run() == 2
    assert "clone the project and `pip install -e .` the clone" in capsys.readouterr().err


def test_checking_leaves_nothing_behind(notebooks, status, tmp_path):
    assert status("--folds", "1")["01"] == "not run"
    assert not (tmp_path / "results").exists()


# --- another method


@pytest.fixture
def toy(notebooks, tmp_path, monkeypatch):
    """A fourth method: a room of settings and variants, one line in METHODS and a pair of notebooks."""
    room = tmp_path / "rooms" / "toy_room"
    room.mkdir(parents=True)
    (room / "__init__.py").touch()
    (room / "settings.py").write_text(
        "from ser_kd_utils.settings import ASSUMED, Settings, setting, strict\n"
        "@strict\nclass ToySettings(Settings):\n    group = 'toy'\n"
        "    epochs: int = setting(ASSUMED, '', 2, 20)\n"
    )
    (room / "variants.py").write_text(
        "from ser_kd_utils.methods.base import Variant\n"
        "def variants(settings):\n"
        "    more = Variant('toy-wide', 'toy', 'wide', '?', kind='component', baseline='toy')\n"
        "    return {'toy': Variant('toy', 'toy', 'toy', '?', teacher='a'), 'toy-wide': more}\n"
    )
    monkeypatch.syspath_prepend(room.parent)
    main_notebook = Notebook("10_toy", kinds=("main",), needs=(NAMES[0],))
    more = Notebook("11_toy", ("component",), needs=(NAMES[0], "10_toy"), parameters=("ablations",))
    method = Method("toy", "toy_room", (main_notebook, more), "ToySettings", "ToyExperiment")
    monkeypatch.setitem(METHODS, "toy", method)
    write_notebook(notebooks / "10_toy.ipynb", RUN.format("toy", "toy"))
    names = (*plan.EACH, "ablations")
    write_notebook(notebooks / "11_toy.ipynb", RUN.format("toy", "toy-wide"), first=parameters(names))
    yield
    for name in [name for name in sys.modules if name.startswith("toy_room")]:
        del sys.modules[name]


def test_a_fourth_method_is_planned_run_and_listed_without_another_line(toy, run, status, shown, tmp_path, capsys):
    options = ("--folds", "1", "--only", "01,10,11")
    assert "not run      10_toy__fold-1__seed-0" in shown(*options, "--set", "toy.epochs=3")
    assert run(*options) == 0
    assert status(*options) == {"01": "done", "10": "done", "11": "done"}
    committed(tmp_path, "toy__toy__fold-2__seed-0")
    assert status("--folds", "2", "--only", "10,11")["10"].startswith("published")
    assert shown(*options, "--ablations", "toy-wide")
    assert run(*options, "--ablations", "toy-high") == 2 and "toy-wide" in capsys.readouterr().err
    assert run(*options, "--set", "toy.epoch=3") == 2 and "Unknown setting toy.epoch" in capsys.readouterr().err
    assert main(["train", "toi"]) == 2 and "mc-full-noisy, toy, toy-wide" in capsys.readouterr().err


# --- the command line


def test_the_command_alone_prints_its_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    listed = re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert listed == [
        *("reproduce", "status", "train", "download", "explain", "publish", "compare"),
        "predict",
        "export",
    ]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["trian", "e"], "; did you mean train? (see `ser-kd --help`)\n"),
        (["status", "--sed", "1"], "; did you mean --seed"),
        (["train", "cnn-dkt"], "No variant cnn-dkt; did you mean cnn-dkd?: choose among a, "),
    ],
)
def test_what_was_probably_meant_is_asked(capsys, typed, meant):
    assert main(typed) == 2
    assert meant in capsys.readouterr().err


def test_an_unknown_variant_or_protocol_is_refused_before_anything_is_trained(capsys):
    assert main(["train", "a", "zz"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ser-kd: No variant zz: choose among a, a-few-labels, b, c, d, e, levels-ends")
    assert "cnn-dkd" in said and "mc-full" in said and "did you mean" not in said
    assert main(["train", "cnn-dkd", "mc-full", "--protocol", "P1"]) == 2
    assert capsys.readouterr().err == "ser-kd: mc-full: not trained under --protocol P1.\n"


def test_a_reader_who_leaves_ends_it_quietly():
    command = f"{sys.executable} -m ser_kd_utils.cli explain mlkd --corpus emodb | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_a_number_is_explained_from_the_evidence_where_there_are_no_runs_of_ones_own(tmp_path, capsys):
    here = ["--corpus", "emodb", "--results", str(tmp_path / "results")]
    assert main(["explain", "mlkd", "(e)", "UA noisy", *here]) == 0
    out = capsys.readouterr().out
    assert out.startswith("results/emodb-tiny/tables/mlkd.csv, row (e)")
    assert "computed again from the records: equal" in out and "mlkd__e__fold-F__seed-S" in out
    own = tmp_path / "results" / "emodb-tiny"
    (own / "tables").mkdir(parents=True)  # as soon as there are, they come first
    assert main(["explain", "mlkd", "(e)", "UA noisy", *here]) == 2
    assert "No records in emodb-tiny" in capsys.readouterr().err
    assert main(["explain", "mlkd", *here, "--set", "mlkd.epochs=2"]) == 2
    assert "No records in emodb-tiny+mlkd.epochs=2" in capsys.readouterr().err


@pytest.mark.parametrize(("what", "module"), [("publish", "publish"), ("compare", "compare")])
def test_publish_and_compare_get_their_options(what, module, monkeypatch):
    given = []
    stand_in = types.ModuleType(module)
    setattr(stand_in, what, lambda options: given.append(vars(options)) or 7)
    monkeypatch.setitem(sys.modules, f"ser_kd_utils.reproduce.{module}", stand_in)
    own = ["--to", "there"] if what == "publish" else ["here", "--json", "--page", "page.md"]
    about = ["--corpus", "manifest", "--name", "mine", "--set", "mlkd.epochs=2", "--set", "teacher.epochs=4"]
    assert main([what, *own, *about]) == 7
    shared = {"corpus": "manifest", "name": "mine", "profile": "tiny", "results": ""}
    shared |= {"overrides": "mlkd.epochs=2, teacher.epochs=4"}
    more = {"to": "there"} if what == "publish" else {"folder": "here", "json": True, "page": "page.md"}
    assert given == [shared | more]


def test_the_last_words_of_a_reproduction_compare_it_with_the_committed_evidence(
    run, notebooks, tmp_path, folder, capsys, monkeypatch
):
    monkeypatch.setattr(compare, "compared", lambda found: Namespace(summary=f"compared {found.name}"))
    assert run("--folds", "1", "--only", "00") == 0
    assert "compared" not in capsys.readouterr().out  # nothing is committed
    committed(tmp_path, "teacher__a__fold-1__seed-0")
    assert run("--folds", "1", "--only", "00") == 0
    assert capsys.readouterr().out.endswith("compared corpus-tiny\n")


@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*filter(None, [command]), "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_can_be_asked_for(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[:3] == ["example:", "ser-kd", command]
    assert parser().parse_args(words[2:]).command == command


def test_help_needs_no_heavy_import():
    code = "import sys; from ser_kd_utils.cli import parser; parser().format_help(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in loaded for name in ("torch", "transformers", "pandas", "numpy", "papermill"))
