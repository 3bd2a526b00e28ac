"""The committed results: their files are whole, tables equal the records, and the demo is as promised."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from readme_tables import filled

from ser_kd_utils.files import sha256
from ser_kd_utils.methods import tables_of
from ser_kd_utils.metrics import interval, score
from ser_kd_utils.records import Run, predictions, read_runs
from ser_kd_utils.report import write
from ser_kd_utils.report.differences import OVER_FOLDS
from ser_kd_utils.report.tables import Selection, Table, folds_x_seeds, mark_of, word
from ser_kd_utils.reproduce.publish import report

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/runs.jsonl"))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def runs(folder) -> list[Run]:
    return read_runs(folder)


@pytest.fixture(scope="module")
def tables(runs) -> dict[str, Table]:
    """All tables, made once from the records."""
    return tables_of(runs)


def test_results_are_committed_for_the_demo_and_for_recorded_speech():
    assert {folder.name for folder in FOLDERS} >= {"demo-tiny", "emodb-tiny", "emodb-whisper"}


def test_a_readers_own_runs_are_not_tracked():
    ignored = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", "results/local/demo-tiny/runs/x/run.json"])
    assert ignored.returncode == 0


def test_every_file_is_as_published_and_listed(folder):
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    found = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}
    found.pop("SHA256SUMS")
    # these have checksums of their own: tests/real_data/test_student.py and test_baselines.py
    own = {name for name in found if name.startswith(("student/", "baselines/"))}
    assert listed == {name: checksum for name, checksum in found.items() if name not in own}


def test_every_table_and_the_report_are_what_the_records_say(folder, runs, tables, tmp_path):
    for table in tables.values():
        write.write(table, tmp_path)
    stored, made = ({path.name: path.read_bytes() for path in place.glob("tables/*")} for place in (folder, tmp_path))
    main = {"mlkd": "mlkd.csv", "dkdfmh": "dkd.csv", "mckd": "mckd.csv"}
    assert stored.keys() >= {main[run.info["method"]] for run in runs if run.info["method"] in main}
    assert stored == made
    assert (folder / "README.md").read_text(encoding="utf-8") == report(folder.name, runs, tables, folder)


def test_every_line_of_every_table_leads_to_the_runs_it_counts(tables):
    for table in tables.values():
        assert len({table.key(line) for line in table.lines}) == len(table.lines), table.name  # keys tell lines apart
        for line in table.lines:
            behind = {run for cell in line.values() for run in cell.runs}
            assert behind, (table.name, table.key(line))
            for variant, mark in {(run.info["variant"], mark_of(run)) for run in behind}:
                own = [run.info for run in behind if (run.info["variant"], mark_of(run)) == (variant, mark)]
                design = folds_x_seeds((info["fold"], info["seed"]) for info in own)
                said = line.get("folds x seeds") or line.get(f"folds x seeds {mark}")
                assert said is None or design == said.text, (table.name, table.key(line))


def interaction(use: Selection | None) -> bool:
    return use is not None and isinstance(use.snr_db, tuple)


def points(table: pd.DataFrame, use: Selection) -> float:
    """The score in percent; of an interaction, that at its first SNR less that at its second."""
    snrs = use.snr_db if interaction(use) else ()
    at, *less = [score(table[table["snr_db"] == snr], use.metric) for snr in snrs] or [score(table, use.metric)]
    return 100 * (at - sum(less))


def test_what_a_cell_selects_gives_its_number(tables):
    """Scores, and differences of scores, of every kind of table: each fourth line, and all interactions."""
    checked = 0
    for table in tables.values():
        special = [line for line in table.lines if any(interaction(cell.selection) for cell in line.values())]
        for line in (*table.lines[::4], *special):
            for column, cell in line.items():
                use = cell.selection
                if use and not isinstance(cell.value, str) and column not in OVER_FOLDS:
                    found = use.predictions(cell.runs)
                    if use.difference and "rung 4" not in line.get("against", word("")).text:  # the mean over folds
                        runs = [[points(part, use) for _, part in some.groupby(["fold", "seed"])] for some in found]
                        folds = [fold for (fold, _), _ in found[0].groupby(["fold", "seed"])]
                        expected = pd.Series(np.subtract(*runs)).groupby(folds).mean().mean()
                    else:
                        scores = [points(some, use) for some in found]
                        expected = scores[0] - scores[1] if use.difference else scores[0]
                    assert expected == pytest.approx(cell.value, abs=0.0501), (table.name, table.key(line), column)
                    checked += 1
    assert checked > 50


def test_every_table_and_figure_stands_in_the_report(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.glob("tables/*.md"):
        assert all(line in text for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|"))
    assert all(f"![](figures/{path.name})" in text for path in folder.glob("figures/*"))


def test_no_file_names_a_path_of_a_machine(folder):
    for path in folder.rglob("*"):
        if path.suffix in (".md", ".csv", ".tex", ".jsonl", ".ipynb", ".parquet"):
            text = path.read_bytes()
            assert not any(mark in text for mark in (b"/home/", b"/root/", b"/tmp/", b"/work/", b"/Users/")), path


def test_executed_notebooks_are_small(folder):
    assert all(path.stat().st_size <= 400_000 for path in folder.glob("notebooks/*"))


def test_records_are_whole(runs):
    for run in runs:
        assert "local changes" not in run.info["commit"]
        table, protocol = run.predictions, run.info["protocol"]
        assert not table[["utterance", "condition", "label"]].isna().any().any()
        assert np.isfinite(np.stack(table["logits"]).astype(float)).all()
        tested = protocol["sizes"]["test"]
        # clean and five noise types at each SNR; of the last epoch, at one; of the epochs chosen on the test, clean
        snrs = 4 if run.info["profile"] == "tiny" and run.info["corpus"] == "demo" else 6
        wanted = {"best": tested * (1 + 5 * snrs), "last": tested * (1 + 5)}
        if run.info["method"] == "dkdfmh":
            wanted |= {"test-UA": tested, "test-WA": tested}
        assert table["checkpoint"].value_counts().to_dict() == wanted
        speakers = protocol["speakers"]
        heard = bool(set(speakers["test"]) & {*speakers["train"], *speakers["dev"]})
        assert heard == protocol["optimistic"] == (protocol["mark"] == "P1")
        assert run.id.partition("__fold-")[0].endswith("+P1") == heard


def test_rows_a_to_e_stand_on_the_same_folds_and_seeds(folder, runs):
    """So that none of their runs is left out of a comparison; (d) has fewer seeds on RAVDESS."""
    letters = "abcde"
    found = {letter: set() for letter in letters}
    for run in runs:
        if run.info["variant"] in found:
            found[run.info["variant"]].add((run.info["fold"], run.info["seed"]))
    fewer = {"d"} if folder.name == "ravdess-whisper" else set()
    assert found["a"] and all(found[letter] == found["a"] for letter in letters if letter not in fewer)
    assert {fold for fold, _ in found["d"]} == {fold for fold, _ in found["a"]} and found["d"] <= found["a"]


def test_the_readmes_tables_equal_the_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- table " in readme and filled(readme) == readme


def test_readme_markers_are_filled(tmp_path):
    (tmp_path / "t.csv").write_text('a,b,c\n(e),no,"[1, 2]"\n')
    rows = "| a | c |\n|:---|:---|\n| (e) | [1, 2] |"
    text = "before\n<!-- table t.csv: a, c -->\n{}\n<!-- end -->\nafter\n"
    assert filled(text.format("old"), tmp_path) == text.format(rows)


def test_the_demo_teacher_is_above_chance_below_perfect_and_falls_in_noise():
    best = predictions([run for run in read_runs(ROOT / "results" / "demo-tiny") if run.info["variant"] == "a"])
    clean, lowest = best[best["condition"] == "clean"], best[best["snr_db"] == 0]
    value, low, _ = interval(clean)
    assert 0.5 <= value <= 0.95 and low > 0.25
    assert interval(lowest)[2] < value
