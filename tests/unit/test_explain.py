"""From numbers to records on a copy of the demo where something is changed; `test_published_results` has all tables."""

import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from ser_kd_utils.methods import tables_of
from ser_kd_utils.records import Run, read_runs, run_id, write_run
from ser_kd_utils.reproduce.explain import explain

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def results(tmp_path):
    """A copy of the demo's records, in folders of their own, and of three tables."""
    folder = tmp_path / "demo-tiny"
    for run in read_runs(RESULTS / "demo-tiny"):
        write_run(folder / "runs" / run.id, run.stored, run.info)
    (folder / "tables").mkdir()
    for name in ("mlkd", "mlkd_comparisons", "dkd"):
        shutil.copy(RESULTS / "demo-tiny" / "tables" / f"{name}.csv", folder / "tables")
    return folder


def explained(capsys, results, name="", line="", column="") -> tuple[int, str]:
    given = {"corpus": "demo", "name": "", "profile": "tiny", "overrides": "", "results": str(results.parent)}
    code = explain(Namespace(table=name, row=line, column=column, **given))
    text = capsys.readouterr().out
    assert all(len(line) <= 100 for line in text.splitlines())
    return code, text


def of_e(results) -> Run:
    return Run(results / "runs" / run_id("mlkd", "e", 1, 0))


def test_a_number_is_followed_to_its_run(results, capsys):
    code, text = explained(capsys, results, "mlkd", "e", "UA noisy")
    (line,) = (each for each in tables_of(read_runs(results))["mlkd"].lines if each["row"].text == "(e)")
    cell = line["UA noisy"]
    assert code == 0 and f"UA noisy                    {cell.text}\n" in text
    assert "computed again from the records: equal" in text
    flat, info = " ".join(text.split()), of_e(results).info
    assert "128 utterances, 1,920 predictions of the epoch with the highest dev UA" in flat
    assert "(e), student + levels: 1 run\n" in text and "teacher: teacher__a, same fold and seed" in flat
    assert info["commit"][:12] in text and info["finished"][:10] in text
    assert re.search(rf"\n +1 +0 +{info['best_epoch']} +{info['predictions_sha256'][:16]}", text)
    assert text.endswith("--folds 1 --seeds 0 --only 02,09\n") and "leave" not in text.partition("protocol\n")[0]


def test_a_comparison_shows_the_runs_of_both_rows_and_a_file_names_its_table(results, capsys):
    file = str(results / "tables" / "mlkd_comparisons.md")
    code, text = explained(capsys, results, file, "(e) - (c)", "UA, points")
    assert code == 0 and text.index("(e), student + levels") < text.index("(c), student, noisy")
    assert "(d)," not in text and " ".join(text.split()).count("128 utterances, 1,920 predictions") == 2


def test_both_protocols_stand_behind_a_row_and_one_behind_a_cell(results, capsys):
    _, text = explained(capsys, results, "dkd", "cnn-dkd")
    assert "cnn-dkd, student + DKD, P1: 1 run" in text and "cnn-dkd, student + DKD, P2: 1 run" in text
    _, text = explained(capsys, results, "dkd", "cnn-dkd", "WA P1")
    assert "P2" not in text.partition("protocol\n")[0]
    assert "126 predictions of the epoch with the highest WA on the clean test itself" in " ".join(text.split())


def test_a_changed_logit_is_seen(results, capsys):
    run = of_e(results)
    table, right = run.stored.copy(), run.predictions.query("condition == 'clean' and checkpoint == 'best'")
    row = right.index[right["prediction"] == right["label"]][0]
    logits = table.loc[row, "logits"].copy()
    logits[np.argmin(logits)] += 50
    table.at[row, "logits"] = logits
    table.to_parquet(run.folder / "predictions.parquet", index=False)
    with pytest.raises(ValueError, match="is damaged"):
        explained(capsys, results, "mlkd", "(e)", "UA clean")
    write_run(run.folder, table, run.info)  # as if these were what the network said
    capsys.readouterr()
    code, text = explained(capsys, results, "mlkd", "(e)", "UA clean")
    assert code == 1 and "DIFFERS from the records" in text and "NOT EQUAL" in text
    assert explained(capsys, results, "mlkd", "(e)", "UA noisy")[0] == 0
    assert explained(capsys, results, "mlkd", "(e)")[0] == 1


def test_a_line_that_the_file_lacks_differs(results, capsys):
    file = results / "tables" / "mlkd.csv"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("(e)")))
    code, text = explained(capsys, results, "mlkd", "(e)", "UA noisy")
    assert code == 1 and re.search(r"UA noisy +-   DIFFERS from the records: [\d.]+ \[", text)


def test_changed_settings_are_named(results, capsys):
    run = of_e(results)
    info = run.info
    info["settings"]["mlkd"]["gamma"] = 0.25
    write_run(run.folder, run.stored, info)
    text = " ".join(explained(capsys, results, "mlkd", "(e)")[1].split())
    assert "settings as in profile tiny, but gamma = 0.25" in text
    assert "gamma" not in explained(capsys, results, "mlkd", "(d)")[1]


def test_without_a_table_those_there_are_listed(results, capsys):
    code, text = explained(capsys, results)
    assert code == 0 and text == ("tables in demo-tiny:\n  mlkd\n  mlkd_comparisons\n  dkd\n")


def test_without_a_row_the_choices_are_listed(results, capsys):
    code, text = explained(capsys, results, "mlkd")
    assert code == 0 and "\n  (e)\n" in text and "\n  UA noisy\n" in text


@pytest.mark.parametrize(
    "asked, choices",
    [
        (["nope"], "No table 'nope': choose among\n  mlkd\n  mlkd_comparisons\n  dkd"),
        (["mlkd", "(f)"], "No row '(f)': choose among\n  (a)\n"),
        (["mlkd", "(e)", "F1"], "No column 'F1': choose among\n  model\n"),
        (["mlkd", "(e)", "UA"], "More than one column 'UA': choose among\n  UA clean\n  UA noisy\n"),
    ],
)
def test_an_unknown_name_lists_the_choices(results, capsys, asked, choices):
    with pytest.raises(ValueError, match=re.escape(choices)):
        explained(capsys, results, *asked)
