"""Plans, strict parameters, the account of runs and the command line, with stand-in notebooks that take a second."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
import soundfile
from nbformat.v4 import new_code_cell, new_notebook

from ser_kd_utils import reproduce, steps
from ser_kd_utils.cli import main, parser
from ser_kd_utils.data.corpora import load_corpus

PARAMETERS = 'corpus: str = "demo"\nprofile: str = "tiny"\nresults: str = ""\nchanges: str = ""'
RECORD = """from pathlib import Path
runs = Path(results, f"{{corpus}}-{{profile}}", "runs")
run = runs.joinpath(f"{method}__x__fold-{{fold}}__seed-{{seed}}")
run.joinpath("model").mkdir(parents=True, exist_ok=True)
run.joinpath("predictions.parquet").write_text("predictions")"""
EACH = PARAMETERS + '\ndata_root: str = ""\nnoise_dir: str = ""\nfold: int = 1\nseed: int = 0'
SPEECH, ABLATIONS, LOGITS = (f'\n{name}: str = ""' for name in ("speech_dir", "ablations", "teacher_logits"))


def write_notebook(path, *cells, parameters=EACH):
    steps._code_of.cache_clear()  # a process reads a notebook once
    reproduce._declared.cache_clear()
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[first, *map(new_code_cell, cells)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    steps._code_of.cache_clear()
    reproduce._declared.cache_clear()
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder / "00_corpora_and_noise.ipynb", "corpus")
    write_notebook(folder / "01_teacher_finetuning.ipynb", RECORD.format(method="teacher"))
    write_notebook(folder / "02_noisy_student_distillation.ipynb", RECORD.format(method="mlkd"))
    for name, method, own in (
        ("03_mlkd_ablations", "mlkd-ablation", SPEECH + ABLATIONS),
        ("04_decoupled_distillation", "dkd", LOGITS),
        ("05_decoupled_ablations", "dkd-ablation", ABLATIONS),
        ("06_curriculum_meta_distillation", "mckd", ""),
        ("07_curriculum_meta_ablations", "mckd-ablation", ABLATIONS),
    ):
        write_notebook(folder / f"{name}.ipynb", RECORD.format(method=method), parameters=EACH + own)
    write_notebook(folder / "09_paper_tables.ipynb", "results", parameters=PARAMETERS)
    monkeypatch.setattr(steps, "NOTEBOOKS", folder)
    return folder


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
def account(tmp_path):
    return lambda: json.loads((tmp_path / "results" / "manifest-tiny" / "reproduce.json").read_text())


def test_plan_is_notebook_by_fold_by_seed(run, notebooks, capsys):
    assert run("--folds", "1-2", "--seeds", "0,3", "--dry-run") == 0
    lines = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "would run" in line]
    each = [
        f"{name}__fold-{fold}__seed-{seed}"
        for fold in (1, 2)
        for seed in (0, 3)
        for name in (
            "01_teacher_finetuning",
            "02_noisy_student_distillation",
            "03_mlkd_ablations",
            "04_decoupled_distillation",
            "05_decoupled_ablations",
            "06_curriculum_meta_distillation",
            "07_curriculum_meta_ablations",
        )
    ]
    assert lines == ["00_corpora_and_noise", *each, "09_paper_tables"]


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
def test_ablations_go_to_the_notebook_that_knows_them(corpus, notebooks, asked, wanted):
    options = parser().parse_args(["reproduce", "--folds", "1", "--ablations", asked, "--teacher-logits", "a.csv"])
    steps = reproduce.plan(options, load_corpus("manifest", str(corpus)))
    assert [step.notebook[:2] for step in steps] == sorted({"00", "01", "02", "04", "06", "09"} | wanted.keys())
    assert {s.notebook[:2]: s.parameters["ablations"] for s in steps if "ablations" in s.parameters} == wanted
    logits = {s.notebook[:2]: s.parameters["teacher_logits"] for s in steps if "teacher_logits" in s.parameters}
    assert logits == {"04": "a.csv"}


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
    assert capsys.readouterr().out.count("already recorded, skipped") == 2


def test_other_ablations_of_one_notebook_leave_the_other_alone(run, notebooks, account, capsys):
    options = ("--folds", "1", "--only", "03,05", "--ablations")
    assert run(*options, "gamma-10,cnn-nckd") == run(*options, "gamma-10,cnn-tckd") == 0
    out = capsys.readouterr().out
    assert "03_mlkd_ablations__fold-1__seed-0  already recorded, skipped" in out and out.count("skipped") == 1
    asked = {name[:2]: step["made_from"]["parameters"]["ablations"] for name, step in account().items()}
    assert asked == {"03": "gamma-10", "05": "cnn-tckd"}


def test_other_stored_logits_run_notebook_04_again(run, notebooks, account, tmp_path, capsys):
    record = RECORD.format(method="dkd")
    write_notebook(
        notebooks / "04_decoupled_distillation.ipynb", record, "open(teacher_logits)", parameters=EACH + LOGITS
    )
    first, copy = tmp_path / "first.csv", tmp_path / "copy.csv"
    first.write_text("file,angry,neutral,sad\nA0,1,0,0\n")
    copy.write_text(first.read_text())

    def runs(path) -> bool:
        assert run("--folds", "1", "--only", "04", "--teacher-logits", str(path)) == 0
        return "04_decoupled_distillation__fold-1__seed-0  running" in capsys.readouterr().out

    assert runs(first) and not runs(first) and not runs(copy)  # wherever it lies
    first.write_text(first.read_text().replace("1,0,0", "0,1,0"))
    assert runs(first)
    assert str(tmp_path) not in json.dumps(account())


def test_forcing_the_ablations_keeps_the_weights_of_the_main_rows(run, notebooks, tmp_path):
    folder = tmp_path / "results" / "manifest-tiny" / "runs"
    kept = ["teacher__clean", "mlkd__student-noisy", "dkd__cnn-dkd"]
    dropped = ["mlkd-ablation__gamma-10", "dkd-ablation__cnn-nckd"]
    weights = [folder / f"{name}__fold-1__seed-0" / "model" for name in (*kept, *dropped)]
    for path in weights:
        path.mkdir(parents=True)
    assert run("--folds", "1", "--only", "03,05", "--force") == 0
    assert [path.exists() for path in weights] == [True] * 3 + [False] * 2


def test_all_folds_by_default_but_one_of_the_demo(run, notebooks, capsys):
    run("--dry-run", "--only", "1")
    assert capsys.readouterr().out.count("would run") == 5
    main(["reproduce", "--dry-run", "--only", "01"])
    assert capsys.readouterr().out.count("would run") == 1


def test_what_is_recorded_is_skipped_until_something_changes(run, notebooks, account, corpus, tmp_path, capsys):
    options = ("--folds", "1", "--only", "01,02")
    assert run(*options) == 0
    first = account()
    assert {step["status"] for step in first.values()} == {"done"}
    capsys.readouterr()
    assert run(*options) == 0
    assert capsys.readouterr().out.count("already recorded, skipped") == 2
    write_notebook(notebooks / "02_noisy_student_distillation.ipynb", RECORD.format(method="mlkd") + "\n1")
    assert run(*options) == 0
    assert capsys.readouterr().out.count("already recorded, skipped") == 1
    shutil.rmtree(tmp_path / "results" / "manifest-tiny" / "runs" / "teacher__x__fold-1__seed-0")
    assert run(*options) == 0
    assert capsys.readouterr().out.count("already recorded, skipped") == 1
    corpus.write_text(corpus.read_text().replace("A0.wav,angry", "A0.wav,sad"))
    assert run(*options) == 0
    assert "skipped" not in capsys.readouterr().out
    assert run(*options, "--force") == 0
    assert "skipped" not in capsys.readouterr().out


def test_force_drops_the_weights_but_not_the_record(run, notebooks, tmp_path):
    record = tmp_path / "results" / "manifest-tiny" / "runs" / "teacher__clean__fold-1__seed-0"
    other = record.with_name("teacher__clean__fold-2__seed-0")
    for folder in (record, other):
        (folder / "model").mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    assert run("--folds", "1", "--only", "01", "--force") == 0
    assert not (record / "model").exists() and (record / "run.json").exists() and (other / "model").exists()


def test_of_a_failing_notebook_one_line_is_said_and_the_others_go_on(run, notebooks, account, capsys):
    write_notebook(notebooks / "02_noisy_student_distillation.ipynb", "raise ValueError('the noise folder is silent')")
    assert run("--folds", "1") == 1
    out, error = capsys.readouterr()
    said = "02_noisy_student_distillation__fold-1__seed-0  FAILED: cell 2: ValueError: the noise folder is silent"
    assert said in out and "FAILED 02_noisy_student_distillation__fold-1__seed-0: cell 2" in out
    assert "03_mlkd_ablations__fold-1__seed-0  not run: needs 02_noisy_student_distillation__fold-1__seed-0, wh" in out
    assert "7 done, 1 failed, 1 blocked" in out and "Traceback" not in out + error
    assert {name[:2]: step["status"] for name, step in account().items()} == {
        **dict.fromkeys(("00", "01", "04", "05", "06", "07", "09"), "done"), "02": "failed"}  # fmt: skip


def test_status_says_what_is_done_and_what_is_not_and_why(run, notebooks, tmp_path, corpus, capsys, monkeypatch):
    write_notebook(notebooks / "04_decoupled_distillation.ipynb", "1 / 0", parameters=EACH + LOGITS)
    options = ("--folds", "1", "--ablations", "none")
    run(*options)

    def said(*extra) -> dict[str, str]:
        capsys.readouterr()
        given = ["--corpus", "manifest", "--data-root", str(corpus), "--results", str(tmp_path / "results")]
        assert main(["status", *given, *options, *extra]) == 0
        lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[:-1]]
        return {line[1][:2] if line[0] != "not" else line[2][:2]: " ".join([line[0], *line[2:]]) for line in lines}

    assert said() == {
        **dict.fromkeys(("00", "01", "02", "06", "09"), "done"),
        "04": "failed (cell 2: ZeroDivisionError: division by zero)",
    }
    runs = tmp_path / "results" / "manifest-tiny" / "runs"
    (runs / "teacher__x__fold-1__seed-0" / "predictions.parquet").write_text("others")
    shutil.rmtree(runs / "mlkd__x__fold-1__seed-0" / "model")
    write_notebook(notebooks / "06_curriculum_meta_distillation.ipynb", "other = 1")
    steps._code_of.cache_clear()
    found = said()
    assert found["01"] == "stale (manifest-tiny/runs/teacher__x__fold-1__seed-0 is damaged)"
    assert found["02"].startswith("elsewhere (the weights of manifest-tiny/runs/mlkd__x")
    assert found["06"] == "stale (the notebook's code changed)"
    corpus.write_text(corpus.read_text().replace("A0.wav,angry", "A0.wav,sad"))
    assert said()["00"] == "stale (the manifest changed)"
    monkeypatch.setattr(steps, "by_module", lambda found: {"losses": "other"})
    steps._code_of.cache_clear()
    assert "losses.py" in said()["00"]
    (runs.parent / "unfinished" / "mckd__x__fold-1__seed-0@abc" / "checkpoint-8").mkdir(parents=True)
    state = {"global_step": 8, "epoch": 2.0, "num_train_epochs": 5}
    next(runs.parent.glob("unfinished/*@*/*")).joinpath("trainer_state.json").write_text(json.dumps(state))
    assert said()["mc"] == "training (epoch 2 of 5 is kept)"
    other = tmp_path / "results" / "manifest-tiny+P1" / "unfinished" / "dkd__x__fold-1__seed-0@abc"
    other.mkdir(parents=True)
    assert said()["dk"] == "training (in its first epoch)"


def test_the_plan_says_what_it_will_cost_from_recorded_durations(run, notebooks, tmp_path, capsys):
    runs = tmp_path / "results" / "manifest-tiny" / "runs"
    for method, row, seconds in (("teacher", "a", 600), ("mlkd", "c", 1200), ("mlkd", "e", 1800), ("mckd", "mc", 60)):
        for fold in (1, 2):  # as long on average
            folder = runs / f"{method}__{row}__fold-{fold}__seed-0"
            folder.mkdir(parents=True)
            info = {"method": method, "row": row, "seconds": seconds + 60 * (2 * fold - 3), "test_seconds": 120}
            (folder / "run.json").write_text(json.dumps(info))
    assert run("--folds", "1-2", "--only", "01,02,06", "--ablations", "none", "--dry-run", "--workers", "2") == 0
    out = capsys.readouterr().out
    assert "02_noisy_student_distillation__fold-2__seed-0  would run, about 54.0 min" in out
    # 12 + 54 + 3 minutes a fold; on two workers 01, 01, then 02, 02 at once, then 06, 06
    assert "about 2.30 hours of training and tests, 1.15 with 2 at a time" in out
    assert "durations of 8 recorded trainings" in out
    folder = tmp_path / "results" / "manifest-tiny+P1+gamma=2.0" / "runs" / "dkd__cnn-dkd__fold-1__seed-0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"method": "dkd", "row": "cnn-dkd", "seconds": 180}))
    assert run("--folds", "1", "--only", "04", "--dry-run", "--changes", "gamma=2.0") == 0
    assert "04_decoupled_distillation__fold-1__seed-0  would run, about 3.0 min" in capsys.readouterr().out


def test_time_limit_stops_and_the_same_command_goes_on(run, notebooks, account, capsys):
    assert run("--folds", "1", "--only", "00") == 0
    # no cell is as long as the limit of 3 s, all of them are
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", *["import time; time.sleep(1)"] * 30)
    started = time.monotonic()
    assert run("--folds", "1", "--only", "00,01,02", "--time-limit", "0.05") == 3
    assert time.monotonic() - started < 20
    assert account()["01_teacher_finetuning__fold-1__seed-0"]["status"] == "out of time"
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", "print('quick')")
    capsys.readouterr()
    assert run("--folds", "1", "--only", "00,01,02") == 0
    out = capsys.readouterr().out
    assert out.count("skipped") == 1 and out.count("done in") == 2


def test_a_parameter_the_notebook_does_not_declare_is_refused(run, notebooks, capsys):
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", "1", parameters=PARAMETERS)
    assert run("--folds", "1") == 2
    assert "01_teacher_finetuning has no parameter" in capsys.readouterr().err
    write_notebook(notebooks / "01_teacher_finetuning.ipynb", "1", parameters=EACH.replace("fold: int", "fold: str"))
    assert run("--folds", "1") == 2
    assert "fold is declared str, got 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--profile", "huge"), "Unknown profile 'huge': choose one of tiny, paper"),
        (("--folds", "9"), "no fold 9; folds: 1 to 5"),
        (("--only", "42"), "No notebook 42 in the plan"),
        (("--ablations", "gamma-11"), "No ablation gamma-11: choose among levels-ends, gamma-0.1"),
        (("--ablations", "cnn-nckd,cnn-nkcd"), "No ablation cnn-nkcd: choose among levels-ends"),
        (("--ablations", "cnn-nkcd"), "e-unseen, cnn-tckd, cnn-nckd"),  # of both notebooks
        (("--ablations", "cnn-nckd", "--only", "03"), "No notebook 03 in the plan"),
        (("--teacher-logits", "/nowhere.csv"), "no file at /nowhere.csv"),
        (("--changes", "dkd__gama=1"), "Unknown setting gama for DKDFMH"),
        (("--ablations", "unlabelled"), "more with --speech-dir"),
        (("--speech-dir", "nowhere"), "pass with --speech-dir"),
    ],
)
def test_bad_options_are_one_clear_line(run, notebooks, capsys, extra, message):
    assert run(*extra) == 2
    captured = capsys.readouterr()
    assert "running" not in captured.out
    assert captured.err.startswith("ser-kd: ") and message in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["reproduce", "--folds", "one"], ["reproduce", "--nonsense", "1"]])
def test_unknown_options_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(arguments)
    assert stop.value.code == 2 and "usage: ser-kd" in capsys.readouterr().err


def test_help_needs_no_heavy_import():
    code = "import sys; from ser_kd_utils.cli import parser; parser().format_help(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in loaded for name in ("torch", "transformers", "pandas", "numpy", "papermill"))
