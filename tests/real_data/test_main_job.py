"""The main job on recorded speech and recorded noise, from the command line to the tables, with few epochs."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from ser_kd_utils.cli import main
from ser_kd_utils.methods import METHODS, settings_of
from ser_kd_utils.methods.dkdfmh.variants import P1_VARIANTS
from ser_kd_utils.records import read_runs
from ser_kd_utils.report.tables import mark_of


def main_variants(method: str) -> list[str]:
    return [each.name for each in METHODS[method].variants(settings_of("tiny")).values() if each.kind == "main"]


@pytest.fixture(scope="module")
def small_emodb(shared_data, tmp_path_factory):
    """One recording of each emotion and speaker of EMO-DB, where there is one."""
    folder = tmp_path_factory.mktemp("emodb")
    seen = set()
    for path in sorted((shared_data / "emodb").glob("*.flac")):
        kind = path.stem[:2] + path.stem[5]
        if kind not in seen:
            seen.add(kind)
            shutil.copy(path, folder)
    return folder


@pytest.mark.filterwarnings("ignore:emodb differs from the published counts")
def test_reproduce_on_recorded_speech_and_noise(small_emodb, shared_data, tmp_path, tmp_path_factory, capsys):
    speech = tmp_path_factory.mktemp("speech")
    for path in sorted((shared_data / "librispeech_mini").glob("*.flac"))[:8]:
        shutil.copy(path, speech)
    options = ["--data-root", str(small_emodb), "--noise-dir", str(shared_data / "noise"), "--results", str(tmp_path)]
    options += ["--speech-dir", str(speech)]
    options += ["--ablations", "unlabelled, e-unseen, cnn-kd-same-temperature, mc-taught-teacher"]
    few = [part for method in METHODS for part in ("--set", f"{method}.epochs=1")]
    few += ["--set", "noise.test_snr_db=(0,-5)"]
    assert main(["reproduce", "--corpus", "emodb", *options, "--folds", "2", *few]) == 0
    (folder,) = tmp_path.iterdir()
    runs = [run for run in read_runs(folder) if mark_of(run) != "P1"]
    found = {method: {run.info["variant"] for run in runs if run.info["method"] == method} for method in METHODS}
    assert found["teacher"] | found["mlkd"] == {"a", "b", "c", "d", "e", "c-unseen", "e-unseen", "unlabelled"}
    assert found["dkdfmh"] == {*main_variants("dkdfmh"), "cnn-kd-same-temperature"}
    assert found["mckd"] == {*main_variants("mckd"), "mc-taught-teacher"}
    for run in runs:
        table = run.predictions
        assert set(table["condition"]) == {"clean", "babble", "chainsaw", "helicopter", "rain", "street"}
        assert {name[:2] for name in table["utterance"]} == {"09", "10"}
        assert run.info["labels"] == ["angry", "happy", "neutral", "sad"]
        assert run.info["protocol"]["speaker_independent"]
    sizes = {run.info["variant"]: run.info["parameters"] for run in runs}
    assert sizes["c"] == sizes["d"] == sizes["e"] < sizes["b"] == sizes["a"]
    written = pd.read_csv(folder / "tables" / "mlkd.csv")
    assert list(written["row"]) == ["(a)", "(b)", "(c)", "(d)", "(e)"]
    assert {"UA clean", "UA noisy", "UA 0 dB", "UA -5 dB"} <= set(written)
    likely = [run for run in read_runs(folder) if mark_of(run) == "P1"]
    assert {run.info["variant"] for run in likely} == set(P1_VARIANTS)
    assert all(run.info["protocol"]["optimistic"] and not run.info["protocol"]["speaker_independent"] for run in likely)
    decoupled = pd.read_csv(folder / "tables" / "dkd.csv").set_index("row")
    assert list(decoupled.index) == main_variants("dkdfmh") and decoupled["WA P2"].notna().all()
    assert set(decoupled.index[decoupled["WA P1"].notna()]) == set(P1_VARIANTS)
    assert list(pd.read_csv(folder / "tables" / "mckd.csv")["row"]) == [*main_variants("mckd")]
    heard = {run.info["variant"]: run.info["train_noise"] for run in runs}
    assert heard["a"] == []
    assert heard["e-unseen"] == ["babble", "helicopter", "rain", "street"]  # fold 2 leaves the second type out
    assert list(pd.read_csv(folder / "tables" / "mlkd_ablations.csv")["row"]) == ["+ unlabelled speech"]
    assert len(pd.read_csv(folder / "tables" / "mlkd_gains.csv")) == len(("(e) - (c)", "unseen"))
    assert list(pd.read_csv(folder / "tables" / "mlkd_unseen_noise.csv")["row"]) == ["(c)", "(e)"]
    assert (folder / "figures" / "snr_curves.png").stat().st_size > 10_000
    receipts = [json.loads(path.read_text()) for path in (folder / "receipts").iterdir()]
    assert len(receipts) == 10 and {receipt["status"] for receipt in receipts} == {"done"}
    assert "already recorded" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:emodb differs from the published counts")
def test_a_silent_noise_folder_is_one_line(small_emodb, tmp_path, capsys):
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "hum_1.wav", np.zeros(48_000), 16_000)
    options = ["--data-root", str(small_emodb), "--noise-dir", str(tmp_path), "--results", str(tmp_path / "results")]
    assert main(["reproduce", "--corpus", "emodb", *options, "--folds", "1", "--only", "01"]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # before any work
    assert line.startswith("ser-kd: ") and "silent" in line
