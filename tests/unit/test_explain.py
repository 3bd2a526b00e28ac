"""From numbers to records: over every committed table, and on a copy of the demo where something is changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ser_kd_utils.cli import main
from ser_kd_utils.explain import UNSCORED, _lines, counted
from ser_kd_utils.metrics import score
from ser_kd_utils.paper import tables_of
from ser_kd_utils.records import Run, read_runs
from ser_kd_utils.tables import design, mark_of

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module", params=["demo-tiny", "emodb-tiny"])
def committed(request):
    """Each committed table that can be made, with its lines; the tables themselves are not made."""
    folder = RESULTS / request.param
    made = tables_of(read_runs(folder), read_runs(RESULTS / f"{request.param}+P1"))
    files = {path.stem: path for path in folder.glob("tables/*.csv")}
    assert files.keys() <= made.keys() and len(files) > 15
    return [(made[name], _lines(path.read_text()), len(pd.read_csv(path))) for name, path in files.items()]


def test_every_line_of_every_table_leads_to_the_runs_it_counts(committed):
    for table, lines, count in committed:
        assert len(lines) == count, table.name  # keys tell lines apart
        for key, line in lines.items():
            behind = table.behind(line)
            assert bool(behind) == (key != "floor"), (table.name, key)
            for name, runs in behind.items():
                for mark in {mark_of(run) for run in runs}:
                    own = pd.DataFrame([run.info for run in runs if mark_of(run) == mark])
                    said = line.get("folds x seeds") or line.get(f"folds x seeds {mark}") or design(own)
                    assert set(own["row"]) == {name} and design(own) == said, (table.name, key)
                assert runs


def test_the_predictions_said_to_count_give_the_numbers(committed):
    """Scores, and differences of scores, of every kind of table: computed from what `counted` chooses."""
    for table, lines, _ in committed:
        for line in list(lines.values())[::4]:
            for column, value in line.items():
                scored = (
                    re.match(r"(WA|UA|control|distilled|chosen|last)\b|\(\w\)$|\d$", column) and "points" not in column
                )
                if not scored and column not in ("UA, points", "difference, points", "points for it", "gain, points"):
                    continue
                if not value or column.startswith(UNSCORED) or "published" in column or line.get("row") == "floor":
                    continue
                metric = "WA" if "WA" in column or table.name.endswith("_WA") else "UA"
                scores = [100 * score(some, metric) for some in counted(table, line, column).values()]
                said = float(value.split(" [")[0])
                expected = scores[0] if scored else scores[0] - scores[1]
                sign = -1 if column == "points for it" and expected * said < 0 else 1  # a claim that a part is needed
                assert sign * expected == pytest.approx(said, abs=0.0501), (table.name, line, column)


@pytest.fixture
def results(tmp_path):
    """A copy of the demo's records and of three tables."""
    for name in ("demo-tiny", "demo-tiny+P1"):
        shutil.copytree(RESULTS / name / "runs", tmp_path / name / "runs")
    (tmp_path / "demo-tiny" / "tables").mkdir()
    for name in ("mlkd", "mlkd_comparisons", "dkd"):
        shutil.copy(RESULTS / "demo-tiny" / "tables" / f"{name}.csv", tmp_path / "demo-tiny" / "tables")
    return tmp_path


def explained(capsys, results, *arguments) -> tuple[int, str]:
    code = main(["explain", *arguments, "--results", str(results)])
    text, errors = capsys.readouterr()
    assert all(len(line) <= 100 for line in text.splitlines())
    return code, text + errors


def of_e(results) -> Path:
    return results / "demo-tiny" / "runs" / "mlkd__student-multi-level__fold-1__seed-0"


def test_a_number_is_followed_to_its_run(results, capsys):
    code, text = explained(capsys, results, "mlkd", "e", "UA noisy")
    line = pd.read_csv(RESULTS / "demo-tiny" / "tables" / "mlkd.csv").set_index("row").loc["(e)"]
    assert code == 0 and f"UA noisy                    {line['UA noisy']}\n" in text
    assert "made again from the records: equal" in text
    assert "64 utterances, 1,600 predictions of the epoch with the highest dev UA" in " ".join(text.split())
    assert "(e), student + levels: 1 run\n" in text and "teacher: teacher__clean, same fold and seed" in " ".join(
        text.split()
    )
    info = json.loads((of_e(results) / "run.json").read_text())
    assert info["commit"][:12] in text and info["finished"][:10] in text
    assert re.search(rf"\n +1 +0 +{info['best_epoch']} +[0-9a-f]{{16}}", text)
    assert text.endswith("--folds 1 --seeds 0 --only 02,09\n") and "leave" not in text.partition("protocol\n")[0]


def test_a_comparison_shows_the_runs_of_both_rows_and_a_file_names_its_table(results, capsys):
    file = str(results / "demo-tiny" / "tables" / "mlkd_comparisons.md")
    code, text = explained(capsys, results, file, "(e) - (c)", "UA noisy, points")
    assert code == 0 and text.index("(e), student + levels") < text.index("(c), student, noisy")
    assert "(d)," not in text


def test_both_protocols_stand_behind_a_row_and_one_behind_a_cell(results, capsys):
    _, text = explained(capsys, results, "dkd", "cnn-dkd")
    assert "cnn-dkd, student + DKD, P1: 1 run" in text and "cnn-dkd, student + DKD, P2: 1 run" in text
    _, text = explained(capsys, results, "dkd", "cnn-dkd", "WA P1")
    assert "P2" not in text.partition("protocol\n")[0]
    assert "62 predictions of the epoch with the highest WA on the clean test itself" in " ".join(text.split())


def test_a_changed_logit_is_seen(results, capsys):
    path = of_e(results) / "predictions.parquet"
    table = pd.read_parquet(path)
    right = Run(path.parent).predictions.query("prediction == label and condition == 'clean' and checkpoint == 'best'")
    row = right.index[0]
    logits = table.loc[row, "logits"].copy()
    logits[np.argmin(logits)] += 50
    table.at[row, "logits"] = logits
    table.to_parquet(path, index=False)
    code, text = explained(capsys, results, "mlkd", "(e)", "UA clean")
    assert code == 2 and f"runs/{path.parent.name}/predictions.parquet is damaged" in text
    info = json.loads(path.with_name("run.json").read_text())
    path.with_name("run.json").write_text(json.dumps(info | {"files": {}}))  # as older records are
    code, text = explained(capsys, results, "mlkd", "(e)", "UA clean")
    assert code == 1 and "DIFFERS from the records" in text and "NOT EQUAL" in text
    assert explained(capsys, results, "mlkd", "(e)", "UA noisy")[0] == 0
    assert explained(capsys, results, "mlkd", "(e)")[0] == 1


def test_changed_settings_are_named(results, capsys):
    path = of_e(results) / "run.json"
    info = json.loads(path.read_text())
    info["settings"]["MLKD"]["gamma"] = 0.25
    path.write_text(json.dumps(info))
    assert "gamma = 0.25, the rest as in profile tiny" in " ".join(explained(capsys, results, "mlkd", "(e)")[1].split())
    assert "gamma" not in explained(capsys, results, "mlkd", "(d)")[1]


def test_without_a_row_the_choices_are_listed(results, capsys):
    code, text = explained(capsys, results, "mlkd")
    assert code == 0 and "\n  (e)\n" in text and "\n  UA noisy\n" in text


@pytest.mark.parametrize(
    "asked, choices",
    [
        (["nope"], "No table 'nope': choose among\n  dkd\n  mlkd\n  mlkd_comparisons"),
        (["mlkd", "(f)"], "No row '(f)': choose among\n  (a)\n"),
        (["mlkd", "(e)", "F1"], "No column 'F1': choose among\n  model\n"),
        (["mlkd", "(e)", "UA"], "More than one column 'UA': choose among\n  UA clean\n  UA noisy\n"),
    ],
)
def test_an_unknown_name_lists_the_choices(results, capsys, asked, choices):
    code, text = explained(capsys, results, *asked)
    assert code == 2 and choices in text
