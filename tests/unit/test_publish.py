"""Publishing: few files, the same bytes each time, whole or absent, and no trace of a machine."""

import json
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ser_kd_utils import records
from ser_kd_utils.metrics import interval, score
from ser_kd_utils.records import Run, read_runs, run_id, write_run
from ser_kd_utils.report.tables import Cell, Selection, Table
from ser_kd_utils.reproduce import publish as module
from ser_kd_utils.reproduce.publish import publish

LABELS = ["angry", "sad"]
PROTOCOL = {
    "corpus": "demo",
    "protocol": "speaker-groups",
    "rule": "by speakers",
    "selection": "by dev UA",
    "mark": "",
    "optimistic": False,
    "speaker_independent": True,
    "synthetic": True,
    "noise": "generated: pink",
    "test": "whole utterances",
    "test noise": "pink",
    "speech level": "active",
    "sizes": {"train": 40, "dev": 20, "test": 20},
}

HOME = "/".join(("", "home", "me"))  # in pieces: no file of the project may hold such a path


def record(results: Path, variant: str, fold: int = 1, share: float = 0.8, **changes) -> Run:
    """A run of 20 utterances, clean and at 0 dB, of which a share is right."""
    rows = []
    for number in range(20):
        for condition, snr in (("clean", np.nan), ("pink", 0.0)):
            right = number < 20 * share
            scores = np.array([2.0, 1.0] if right == (number % 2 == 0) else [1.0, 2.0], dtype=np.float16)
            rows.append((f"{fold}-{number}", fold, 0, condition, snr, "best", LABELS[number % 2], scores))
    info = {"method": "mlkd", "variant": variant, "title": f"variant {variant}", "question": "", "kind": "main"}
    info |= {"role": "student", "baseline": "", "held_out_noise": "", "overrides": "", "corpus": "demo"}
    info |= {"profile": "tiny", "fold": fold, "seed": 0, "labels": LABELS, "parameters": 10, "protocol": PROTOCOL}
    info |= {"settings": {"noise": {"train_snr_db": [0, 20], "test_snr_db": [0]}}, "best_epoch": 1}
    info |= {"train_noise": [], "history": [{"epoch": 1, "loss": 1, "dev_UA": 0.7 if variant == "e" else 0.6}]}
    info |= {"fingerprint": "f", "audio_fingerprint": "a", "noise_fingerprint": "n", "commit": "c" * 40}
    info |= {"hardware": {"processor": "P", "instruction_set": "I", "gpu": None}, "versions": {"torch": "2"}}
    info |= {"python": "3.11"} | changes
    folder = results / "demo-tiny" / "runs" / run_id("mlkd", variant, fold, 0)
    return write_run(folder, pd.DataFrame(rows, columns=records.COLUMNS), info)


def tables_of(runs) -> dict[str, Table]:
    """UA by variant, noisy speech without an interval; and what is read of the difference of e and a."""

    def scores():
        for variant in sorted({run.info["variant"] for run in runs}):
            own = tuple(run for run in runs if run.info["variant"] == variant)
            clean, noisy = (Selection((variant,), condition=condition) for condition in ("clean", "noisy"))
            value, low, high = (round(100 * part, 1) for part in interval(*clean.predictions(own)))
            text, other = f"{value} [{low}, {high}]", round(100 * score(*noisy.predictions(own)), 1)
            yield {
                "row": Cell(variant, variant, runs=own),
                "runs": Cell(len(own), str(len(own))),
                "UA clean": Cell(value, text, low, high, own, clean),
                "UA noisy": Cell(other, str(other), runs=own, selection=noisy),
            }

    def comparisons():
        first, second = ({line["row"].text: line["UA clean"] for line in scores()}.get(name) for name in "ea")
        if first and second:
            points = round(first.value - second.value, 1)
            reading = "e is better" if points > 0 else "a is better"
            p = round(0.5 - points / 1000, 4)
            p = Cell(p, str(p), runs=first.runs, selection=Selection(("e", "a"), condition="clean", difference=True))
            yield {"rows": Cell("e - a", "e - a"), "p": p, "reading": Cell(reading, reading, runs=first.runs)}

    return {
        "scores": Table("scores", ("row",), lambda: list(scores())),
        "comparisons": Table("comparisons", ("rows",), lambda: list(comparisons())),
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Options of a publication from `local` to `evidence`."""
    monkeypatch.setattr(module, "tables_of", tables_of)
    monkeypatch.setattr(records, "EVIDENCE", tmp_path / "evidence")
    return Namespace(corpus="demo", name="", profile="tiny", results=str(tmp_path / "local"), overrides="", to="")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_tables_and_report_are_published_in_few_files(place, tmp_path, capsys):
    runs = [record(tmp_path / "local", variant, fold) for variant in "ae" for fold in (1, 2)]
    (runs[0].folder / "model").mkdir()
    (runs[0].folder / "model" / "weights").write_text("w")
    (tmp_path / "local" / "demo-tiny" / "figures").mkdir()
    (tmp_path / "local" / "demo-tiny" / "figures" / "curve.png").write_bytes(b"png")
    assert publish(place) == 0
    folder = tmp_path / "evidence" / "demo-tiny"
    tables = {f"tables/{name}.{kind}" for name in ("scores", "comparisons") for kind in ("csv", "md", "tex")}
    others = {"README.md", "SHA256SUMS", "predictions.parquet", "runs.jsonl", "figures/curve.png"}
    assert files(folder).keys() == tables | others
    assert not list(folder.parent.glob(".*"))
    read = read_runs(folder)
    assert [run.id for run in read] == [run.id for run in runs]
    for run, local in zip(read, runs, strict=True):
        pd.testing.assert_frame_equal(run.predictions, local.predictions)
        assert run.info == {key: value for key, value in local.info.items() if key != "files"}
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        "80.0 [" in text
        and "speaker-groups" in text
        and "figures/curve.png" in text
        and "4 runs" in capsys.readouterr().out
    )
    assert "among those trained on clean speech, `(e)`." in text and "UA 0 dB" in text  # dev UA 0.7, that of (a) 0.6
    assert text.count("<details>") == 2 and "results/demo-tiny/tables" in text
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count(": OK") == len(files(folder)) - 1


def test_publishing_again_gives_the_same_bytes(place, tmp_path):
    for variant in "ae":
        record(tmp_path / "local", variant)
    publish(place)
    first = files(tmp_path / "evidence" / "demo-tiny")
    publish(place)
    assert files(tmp_path / "evidence" / "demo-tiny") == first
    place.results = str(tmp_path / "evidence")  # from what is published
    publish(place)
    assert files(tmp_path / "evidence" / "demo-tiny") == first


def test_a_student_beside_the_records_stays_and_has_checksums_of_its_own(place, tmp_path):
    for variant in "ae":
        record(tmp_path / "local", variant)
    publish(place)
    folder = tmp_path / "evidence" / "demo-tiny"
    before = files(folder)
    (folder / "student").mkdir()
    (folder / "student" / "model.onnx").write_bytes(bytes(range(256)))
    (folder / "baselines").mkdir()
    (folder / "baselines" / "svm.json").write_bytes(b"{}")
    publish(place)
    assert files(folder) == before | {"student/model.onnx": bytes(range(256)), "baselines/svm.json": b"{}"}


@pytest.mark.parametrize("fingerprint", ["f", "another"])
def test_runs_published_before_stay_and_those_made_again_are_replaced(place, tmp_path, fingerprint):
    record(tmp_path / "local", "a", share=0.5), record(tmp_path / "local", "e", share=0.6)
    publish(place)
    place.results = str(tmp_path / "other")
    again = record(tmp_path / "other", "e", share=0.9, fingerprint=fingerprint)
    publish(place)
    runs = {run.info["variant"]: run for run in read_runs(tmp_path / "evidence" / "demo-tiny")}
    assert runs.keys() == {"a", "e"}
    assert runs["e"].info["predictions_sha256"] == again.info["predictions_sha256"]
    assert "90.0 [" in (tmp_path / "evidence" / "demo-tiny" / "tables" / "scores.csv").read_text()


def test_figures_of_a_part_of_the_runs_are_not_published_and_how_to_draw_all_is_said(place, tmp_path, capsys):
    for results, variant in (("local", "a"), ("other", "e")):
        record(tmp_path / results, variant)
        (tmp_path / results / "demo-tiny" / "figures").mkdir()
        (tmp_path / results / "demo-tiny" / "figures" / "curve.png").write_text(results)
    publish(place)
    evidence = tmp_path / "evidence" / "demo-tiny"
    assert (evidence / "figures" / "curve.png").read_text() == "local" and "figures" not in capsys.readouterr().out
    place.results = str(tmp_path / "other")
    publish(place)
    again = f"--results {evidence.parent}"
    assert f"--only 09 {again}`, then publish with {again}." in capsys.readouterr().out
    assert len(read_runs(evidence)) == 2 and not (evidence / "figures").exists()
    (evidence / "figures").mkdir()  # as notebook 09 does there
    (evidence / "figures" / "curve.png").write_text("both")
    place.results = str(evidence.parent)
    publish(place)
    assert len(read_runs(evidence)) == 2 and (evidence / "figures" / "curve.png").read_text() == "both"
    assert "figures/curve.png" in (evidence / "SHA256SUMS").read_text()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"audio_fingerprint": "other"}, "differ in corpus content"),
        ({"commit": f"c, from {HOME}/clone"}, f"runs.jsonl names a path of this machine, {HOME}/clone"),
        ({"title": r"C:\Users\me"}, "names a path of this machine"),
    ],
)
def test_what_is_refused_leaves_the_evidence_as_it_was(place, tmp_path, change, what):
    record(tmp_path / "local", "a")
    publish(place)
    before = files(tmp_path / "evidence")
    record(tmp_path / "local", "e", **change)
    (tmp_path / "local" / "demo-tiny" / "runs" / run_id("mlkd", "a", 1, 0) / "run.json").unlink()
    with pytest.raises(ValueError, match=what.replace("\\", ".")):
        publish(place)
    assert files(tmp_path / "evidence") == before


def test_an_utterance_that_is_a_path_of_this_machine_is_refused(place, tmp_path):
    run = record(tmp_path / "local", "a")
    write_run(run.folder, run.stored.assign(utterance="/data/me/" + run.stored["utterance"]), run.info)
    with pytest.raises(ValueError, match="predictions.parquet names a path of this machine, /data/me/1-"):
        publish(place)
    assert not (tmp_path / "evidence" / "demo-tiny").exists()


def test_a_damaged_run_is_not_published(place, tmp_path):
    run = record(tmp_path / "local", "a")
    run.stored.assign(label="sad").to_parquet(run.folder / "predictions.parquet")
    with pytest.raises(ValueError, match=f"predictions.parquet of {run.id} is damaged"):
        publish(place)
    assert not (tmp_path / "evidence" / "demo-tiny").exists()


def test_runs_of_ones_own_are_never_replaced_by_evidence(place, tmp_path):
    run = record(tmp_path / "local", "a")
    place.to = str(tmp_path / "local" / "demo-tiny")
    with pytest.raises(ValueError, match="holds runs of your own"):
        publish(place)
    assert read_runs(tmp_path / "local" / "demo-tiny") == [run]


def test_code_with_local_changes_is_told(place, tmp_path, capsys):
    run = record(tmp_path / "local", "a", commit=f"{'c' * 40} with local changes")
    assert publish(place) == 0
    assert f"code with local changes, which nobody else has: {run.id}" in capsys.readouterr().out


def notebook(path: Path, root: Path) -> None:
    source = [f'data_root = "{root}"\n', f'noise_dir = "{root}/noise"']
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"], "papermill": {"duration": 1}}, "source": source}
    about = {"parameters": {"data_root": str(root), "noise_dir": f"{root}/noise", "fold": 1}, "output_path": str(path)}
    found = {"cell_type": "markdown", "metadata": {}, "source": ["## What we found\n", "\n", "In all evidence: ..."]}
    data = [{"text/html": "<table>", "text/plain": "a  b"}, {"text/plain": "3"}]
    outputs = [{"output_type": "display_data", "metadata": {}, "data": each} for each in data]
    outputs.append({"output_type": "stream", "name": "stdout", "text": "said"})
    cells = [cell | {"outputs": outputs, "execution_count": 1, "id": "a"}, found | {"id": "b"}, found | {"id": "c"}]
    content = {"cells": cells, "metadata": {"papermill": about}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_executed_notebooks_of_recorded_speech_are_published_without_the_machine(place, tmp_path):
    record(tmp_path / "local", "a", protocol=PROTOCOL | {"synthetic": False})
    folder = tmp_path / "local" / "demo-tiny" / "notebooks"
    for fold in (2, 1):
        notebook(folder / f"02_x__fold-{fold}__seed-0.ipynb", tmp_path / f"at-{fold}")
    publish(place)
    (published,) = (tmp_path / "evidence" / "demo-tiny" / "notebooks").iterdir()
    assert published.name == "02_x.ipynb"
    content = json.loads(published.read_text())
    (cell,) = content["cells"]  # what was found in all evidence changes with it
    assert content["metadata"] == {} and cell["metadata"] == {"tags": ["parameters"]}
    assert cell["source"] == ['data_root = "DATA_ROOT"\n', 'noise_dir = "NOISE_DIR"']
    assert [output.get("data") for output in cell["outputs"]] == [{"text/html": "<table>"}, {"text/plain": "3"}, None]
    assert "[02_x](notebooks/02_x.ipynb)" in (published.parents[1] / "README.md").read_text()


def test_notebooks_of_the_demo_are_not_published(place, tmp_path):
    record(tmp_path / "local", "a")
    notebook(tmp_path / "local" / "demo-tiny" / "notebooks" / "02_x.ipynb", tmp_path)
    publish(place)
    assert not (tmp_path / "evidence" / "demo-tiny" / "notebooks").exists()


def test_without_local_runs_nothing_is_published(place, tmp_path):
    with pytest.raises(FileNotFoundError, match="No records in demo-tiny"):
        publish(place)
    assert not (tmp_path / "evidence").exists()
