"""The line that rewrites itself: what a notebook stores of it, what a terminal shows, and what `reproduce` reads."""

import json
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import nbformat
import pytest
from nbclient import NotebookClient

from ser_kd_utils import progress
from ser_kd_utils.progress import over, show
from ser_kd_utils.reproduce import schedule
from ser_kd_utils.reproduce.run import NotebookRun, Outcome

WORK = """
from ser_kd_utils import progress
progress.SECONDS = 0
with progress.line("e") as outer:
    for _ in progress.over(range(3), "step"):
        pass
    with progress.line("a") as inner:  # a student whose teacher is trained first
        inner.write("a: trained")
    progress.show("epoch 2 of 4", 0.25, 60.0)
    outer.write("e: trained, runs/x")
"""


@pytest.fixture
def lines(monkeypatch):
    """All that a line says."""
    said = []
    monkeypatch.setattr(progress, "SECONDS", 0)
    monkeypatch.setattr(progress.Line, "write", lambda self, text: said.append(text))
    return said


def test_counts_and_tells_the_time_left(lines, monkeypatch):
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with progress.line("e"):
        assert list(over("abc", "test on utterance")) == [*"abc"]
        show("epoch 2 of 4, dev UA 61.0", 0.25, 60.0)
    assert lines[0] == "e: test on utterance 1 of 3"
    assert lines[1].startswith("e: test on utterance 2 of 3, about ")
    assert lines[3] == "e: epoch 2 of 4, dev UA 61.0, about 3 min left"


def test_it_is_not_rewritten_at_every_step(lines, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 3600)
    with progress.line("e"):
        list(over(range(1000), "step"))
    assert lines == ["e: step 1 of 1000"]


def test_without_a_line_nothing_is_said(lines, capfd):
    assert list(over("abc", "step")) == [*"abc"]
    show("epoch", 0.5, 1.0)
    assert lines == [] and capfd.readouterr() == ("", "")


def test_a_notebook_stores_one_line_for_each_training(tmp_path):
    (tmp_path / "line").touch()
    code = f"import os; os.environ[{progress.FILE!r}] = {str(tmp_path / 'line')!r}\n{WORK}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    stored = [output["data"]["text/plain"] for output in notebook.cells[0].outputs]
    assert stored == ["e: trained, runs/x"]
    assert (tmp_path / "line").read_text() == "e: trained, runs/x"


def terminal(code: str, **environment: str) -> str:
    """What a terminal of 40 columns is sent by a process."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "40"} | environment
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, **streams)
    os.close(theirs)
    return os.read(ours, 10_000).decode()


def test_a_terminal_shows_one_line_and_is_blank_again_afterwards():
    code = "from ser_kd_utils.progress import *\nwith line('e'):\n show('x' * 50, 0.5, 7.0)\nprint('end')"
    assert terminal(code) == f"\r\x1b[Ke: {'x' * 36}\r\x1b[Kend\r\n"
    assert terminal(code, RANK="1") == "end\r\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_reproduce_shows_in_a_terminal_what_its_notebooks_do(terminal, tmp_path, monkeypatch):
    shown, go_on = [], Event()
    monkeypatch.setattr(schedule, "rewrite", lambda text, stream: (shown.append(text), go_on.set()))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    (tmp_path / "unfinished").mkdir()
    runs = [NotebookRun(name, Path("x"), {}, tmp_path, {}, label=f"[{name}/2] nb") for name in "12"]
    runs[0].line_path.write_text("e: epoch 1 of 2", encoding="utf-8")

    def work(run: NotebookRun) -> Outcome:
        go_on.wait(60)
        return Outcome("done")

    schedule.run_all((ThreadPoolExecutor(2), work, 2), runs)
    # of the other nothing is known yet; without a terminal no file is looked at
    assert shown[0] == "[1/2] e: epoch 1 of 2" * terminal


def test_the_line_of_a_run_is_gone_when_it_ends(tmp_path):
    from argparse import Namespace
    from math import inf

    from ser_kd_utils.reproduce.run import execute

    source = tmp_path / "00.ipynb"
    cells = [nbformat.v4.new_code_cell(WORK)]
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}),
        source,
    )
    run = NotebookRun("00", source, {}, tmp_path / "results", {}, label="[1/1] 00")
    run.output.parent.mkdir(parents=True)
    (run.folder / "unfinished").mkdir()
    outcome = execute(run, Namespace(force=False, run_limit=inf, deadline=inf), lambda text: None)
    assert (outcome.status, run.line()) == ("done", "")
    cell = json.loads(run.output.read_text(encoding="utf-8"))["cells"][0]
    assert "e: trained, runs/x" in json.dumps(cell["outputs"])
