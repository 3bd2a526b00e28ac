"""Comparing a folder with the evidence: what is equal, within an interval, outside, and which verdicts changed."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace

import matplotlib.image
import pytest
from test_publish import record, tables_of

from ser_kd_utils import records
from ser_kd_utils.reproduce import compare as module
from ser_kd_utils.reproduce import publish as publishing
from ser_kd_utils.reproduce.compare import compare, compared


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Options of a comparison of `local` with `evidence`, where (a) has 50 % and (e) 80 % right."""
    for each in (publishing, module):
        monkeypatch.setattr(each, "tables_of", tables_of)
    monkeypatch.setattr(records, "EVIDENCE", tmp_path / "evidence")
    for fold in (1, 2):
        record(tmp_path / "first", "a", fold, share=0.5), record(tmp_path / "first", "e", fold, share=0.8)
    options = Namespace(corpus="demo", name="", profile="tiny", results=str(tmp_path / "first"), overrides="", to="")
    publishing.publish(options)
    about = {"results": str(tmp_path / "local"), "folder": "", "json": False, "page": ""}
    return Namespace(**vars(options) | about)


def reproduced(place, tmp_path, a=0.5, e=0.8, folds=(1, 2), **changes) -> None:
    shutil.rmtree(tmp_path / "local", ignore_errors=True)
    for fold in folds:
        record(tmp_path / "local", "a", fold, share=a, **changes), record(tmp_path / "local", "e", fold, share=e)


def statuses(tmp_path) -> dict[tuple[str, str, str], str]:
    cells = compared(tmp_path / "local" / "demo-tiny").cells
    return {tuple(cell[1:4]): cell[0] for cell in cells.to_numpy()}


def test_the_same_predictions_are_equal_in_every_cell(place, tmp_path):
    reproduced(place, tmp_path)
    found = statuses(tmp_path)
    assert found == {
        ("scores", "a", "UA clean"): "equal",
        ("scores", "a", "UA noisy"): "equal",
        ("scores", "e", "UA clean"): "equal",
        ("scores", "e", "UA noisy"): "equal",
        ("comparisons", "e - a", "p"): "equal",
        ("comparisons", "e - a", "reading"): "same",
    }
    assert compare(place) == 0


def test_a_number_in_the_others_interval_is_within_one_beyond_both_is_outside(place, tmp_path, capsys):
    """Also where none is printed; what has no interval differs, and a verdict that turned changed."""
    reproduced(place, tmp_path, e=0.75)
    found = statuses(tmp_path)
    assert found["scores", "e", "UA clean"] == found["scores", "e", "UA noisy"] == "within"
    assert found["scores", "a", "UA clean"] == "equal" and found["comparisons", "e - a", "p"] == "differs"
    assert found["comparisons", "e - a", "reading"] == "same"
    assert compare(place) == 0
    reproduced(place, tmp_path, e=0.25)
    found = statuses(tmp_path)
    assert found["scores", "e", "UA clean"] == found["scores", "e", "UA noisy"] == "outside"
    assert found["comparisons", "e - a", "reading"] == "changed"
    capsys.readouterr()
    assert compare(place) == 1
    told = capsys.readouterr().out
    assert "outside | scores | e | UA clean | 80.0 [" in told
    assert "changed | comparisons | e - a | reading | e is better | a is better" in told


def test_one_changed_verdict_is_enough_to_fail(place, tmp_path):
    for fold in (1, 2):
        record(tmp_path / "first", "e", fold, share=0.6)
    publishing.publish(Namespace(**vars(place) | {"results": str(tmp_path / "first")}))
    reproduced(place, tmp_path, a=0.6, e=0.5)
    found = compared(tmp_path / "local" / "demo-tiny")
    assert found.counts["outside"] == 0 and found.counts["changed"] == 1 and compare(place) == 1


def test_fewer_folds_are_compared_with_the_same_of_the_evidence(place, tmp_path, capsys):
    record(tmp_path / "first", "e", 2, share=0.2)  # only fold 1 is as good as before
    publishing.publish(Namespace(**vars(place) | {"results": str(tmp_path / "first")}))
    reproduced(place, tmp_path, folds=(1,))
    record(tmp_path / "local", "x")
    assert set(statuses(tmp_path).values()) == {"equal", "same"}
    told = compared(tmp_path / "local" / "demo-tiny").summary
    assert compare(place) == 0 and told.endswith("Committed runs: 2 of 4 compared.")


def test_machines_of_both_sides_are_told(place, tmp_path, capsys):
    other = {"processor": "Q", "instruction_set": "AVX2", "gpu": None}
    reproduced(place, tmp_path, hardware=other, versions={"torch": "3"})
    assert compare(place) == 0
    told = capsys.readouterr().out
    assert "(P, I; here P or Q," in told and "2 or 3" in told


def test_a_published_folder_is_compared_as_well(place, tmp_path):
    place.folder = str(tmp_path / "evidence" / "demo-tiny")
    assert compare(place) == 0


def test_json_is_one_object_with_counts_and_cells(place, tmp_path, capsys):
    reproduced(place, tmp_path, e=0.25)
    place.json = True
    capsys.readouterr()
    assert compare(place) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == "demo-tiny" and found["machines"]["committed"]["processor"] == "P"
    assert found["counts"]["outside"] == 2 and found["counts"]["changed"] == 1 and found["counts"]["both"] == 4
    (cell,) = (cell for cell in found["cells"] if (cell["line"], cell["column"]) == ("e", "UA clean"))
    assert cell["status"] == "outside" and cell["committed value"] == 80.0 and cell["here value"] == 25.0
    assert cell["here low"] < 25 < cell["here high"] < cell["committed low"]
    assert str(tmp_path) not in json.dumps(found)


def test_the_page_shows_what_is_not_equal_and_a_picture(place, tmp_path):
    reproduced(place, tmp_path, e=0.25)
    place.page = str(tmp_path / "page.md")
    compare(place)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "![committed and here](page.png)" in text and "2 outside" in text.replace("\n", " ")
    assert text.count("| outside ") >= 2 and str(tmp_path) not in text
    assert matplotlib.image.imread(tmp_path / "page.png").std() > 0


def test_what_cannot_be_compared_says_so(place, tmp_path):
    with pytest.raises(FileNotFoundError, match="No records in demo-tiny"):
        compare(place)
    record(tmp_path / "local", "x")
    with pytest.raises(FileNotFoundError, match="No run of demo-tiny is committed"):
        compare(place)


def test_damaged_runs_are_no_comparison(place, tmp_path):
    reproduced(place, tmp_path)
    run = record(tmp_path / "local", "a")
    run.stored.assign(label="sad").to_parquet(run.folder / "predictions.parquet")
    with pytest.raises(ValueError, match=f"{run.id} is damaged"):
        compared(tmp_path / "local" / "demo-tiny")
