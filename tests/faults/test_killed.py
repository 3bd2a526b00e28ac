"""kill -9 in training, while the cache and while a record is written: the same command goes on, to the same end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import FEW_EPOCHS, TRAIN, Suite, kill, predictions, table, wait_for, write_corpus

from ser_kd_utils.data.audio import cache_audio
from ser_kd_utils.data.corpora import load_corpus
from ser_kd_utils.files import cache_root
from ser_kd_utils.records import Run, read_runs, write_run

TRAINED = ("--only", "02", "--set", FEW_EPOCHS)


def training_suite(root) -> Suite:
    root.mkdir(exist_ok=True)
    write_corpus(root)
    suite = Suite(root)
    suite.notebook("02", TRAIN.format(method="mlkd", variants=["e"]))  # which trains its teacher first
    return suite


def folder_of(suite):
    (folder,) = [path.parent for path in suite.results.glob("*/receipts")]
    return folder


def test_trainings_killed_twice_end_as_if_undisturbed(tmp_path):
    whole, killed = training_suite(tmp_path / "whole"), training_suite(tmp_path / "Größe und 日本")
    assert whole.run(*TRAINED).returncode == 0
    for training, epoch in (("teacher__a", 2), ("mlkd__e", 3)):
        process = killed.start(*TRAINED)
        wait_for(lambda t=training, e=epoch: list(killed.results.glob(f"*/unfinished/{t}__*@*/epoch-{e:05}-*.pt")))
        kill(process)
        assert "interrupted" in killed.status(*TRAINED)
    assert killed.run(*TRAINED).returncode == 0
    assert predictions(folder_of(killed)) == predictions(folder_of(whole)) != {}
    left, usual = ({path.name for path in folder_of(s).joinpath("unfinished").iterdir()} for s in (killed, whole))
    assert left == usual == {"locks"}  # what the teacher said goes with the last notebook of its fold and seed
    assert "1 done" in killed.status(*TRAINED)


def killed_in(code: str) -> None:
    """Run code in a process of its own that must kill itself."""
    done = subprocess.run(
        [sys.executable, "-c", f"import os, sys, signal\n{code}", *sys.argv[1:1]], capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_cache_killed_while_it_is_written_is_written_anew(tmp_path, monkeypatch):
    write_corpus(tmp_path)
    monkeypatch.setenv("SER_KD_CACHE", str(tmp_path / "cache"))
    killed_in(
        "from ser_kd_utils.data import audio\nfrom ser_kd_utils.data.corpora import load_corpus\naudio._BATCH = 8\n"
        "sha256, calls = audio._sha256, []\n"
        "def dies(samples):\n    calls.append(1)\n"
        "    return sha256(samples) if len(calls) < 30 else os.kill(os.getpid(), signal.SIGKILL)\n"
        f"audio._sha256 = dies\naudio.cache_audio(load_corpus('manifest', {str(tmp_path / 'corpus.csv')!r}))"
    )
    assert [path.name[:12] for path in (cache_root() / "audio").iterdir() if path.is_dir()] == [".unfinished-"]
    cache = cache_audio(load_corpus("manifest", tmp_path / "corpus.csv"))
    assert len(cache) == 72 and not list((cache_root() / "audio").glob(".unfinished*"))


WRITE = """
import pandas as pd
from pathlib import Path
from ser_kd_utils import records
{patch}
folder = Path({folder!r})
sys.path[:0] = {here!r}
from stand_in import table
records.write_run(folder, table(*[2.0] * 1000), {{"fingerprint": "new"}},
                  lambda to: (to.mkdir(), (to / "model.safetensors").write_text("new")))
"""
MOMENTS = {
    "in the predictions": "def dies(self, path, **_):\n    path.write_bytes(b'PAR1 half'); os.kill(os.getpid(), 9)\n"
    "pd.DataFrame.to_parquet = dies",
    "before the old goes": "Path.rename = lambda *_: os.kill(os.getpid(), 9)",
    "between old and new": "rename, calls = Path.rename, []\ndef dies(*args):\n    calls.append(1)\n"
    "    return rename(*args) if len(calls) < 2 else os.kill(os.getpid(), 9)\nPath.rename = dies",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_record_is_whole_or_absent_whenever_its_writer_is_killed(tmp_path, moment):
    folder = tmp_path / "demo-tiny" / "runs" / "mlkd__x__fold-1__seed-0"
    write_run(folder, table(1.0), {"fingerprint": "old"}, lambda to: to.mkdir())
    killed_in(
        WRITE.format(patch=MOMENTS[moment], folder=str(folder), here=[str(Path(__file__).parents[up]) for up in (0, 1)])
    )
    if moment == "between old and new":
        with pytest.raises(FileNotFoundError):
            read_runs(tmp_path / "demo-tiny")
    else:
        assert Run(folder).complete("old")
    again = write_run(folder, table(2.0), {"fingerprint": "new"}, lambda to: to.mkdir())
    assert again.complete("new") and not any((tmp_path / "demo-tiny" / "unfinished").iterdir())
