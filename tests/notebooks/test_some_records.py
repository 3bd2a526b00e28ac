"""Notebooks 08 and 09 tell what there is: with records of one method its own, and that there are none of the others."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest

from ser_kd_utils.records import EVIDENCE, read_runs
from ser_kd_utils.reproduce.plan import NOTEBOOKS
from ser_kd_utils.reproduce.publish import write_published


def executed(name: str, tmp_path: Path) -> str:
    """Its text, run on the demo's records below `tmp_path`."""
    target, given = tmp_path / "executed.ipynb", {"results": str(tmp_path)}
    papermill.execute_notebook(
        str(NOTEBOOKS / f"{name}.ipynb"), str(target), given, kernel_name="python3", progress_bar=False
    )
    return target.read_text(encoding="utf-8")


def publish(method: str, tmp_path: Path) -> Path:
    folder = tmp_path / "demo-tiny"
    folder.mkdir()
    own = [run for run in read_runs(EVIDENCE / "demo-tiny") if run.info["method"] in (method, "teacher")]
    write_published(own, folder)
    return folder


@pytest.mark.parametrize("method", ["mckd", "dkdfmh", "mlkd"])
def test_notebook_09_with_one_method(method, tmp_path):
    folder = publish(method, tmp_path)
    text = executed("09_paper_tables", tmp_path)
    written = {path.stem.partition("_")[0] for path in (folder / "tables").glob("*.csv")}
    assert written == {"dkd" if method == "dkdfmh" else method}
    assert text.count("not recorded") >= 5 and "Traceback" not in text


def test_notebook_08_with_one_method_and_no_weights(tmp_path):
    publish("mlkd", tmp_path)
    text = executed("08_comparison_and_efficiency", tmp_path)
    assert "10 pairs, 0 of them" in text and "No weights beside these records" in text and "Traceback" not in text


def test_notebook_08_without_records(tmp_path):
    text = executed("08_comparison_and_efficiency", tmp_path)
    assert "No records in demo-tiny" in text and "Nothing that all rows have" in text and "Traceback" not in text
    assert text.count("not recorded") >= 5


def test_notebook_08_keeps_splits_apart():
    """No published number stands under two splits, and every row of the file has its protocol and source."""
    import pandas as pd

    table = pd.read_csv(EVIDENCE / "reference" / "reference_points.csv")
    assert set(table["split"]) == {"speakers apart", "official", "random", "chosen on the test", "not stated"}
    assert not table[["condition", "source", "metric", "value"]].isna().any().any()
    random = table["condition"].str.contains("random|speaker-dependent")
    assert (table.loc[random, "split"] == "random").all() and not (table.loc[~random, "split"] == "random").any()
    book = nbformat.read(NOTEBOOKS / "08_comparison_and_efficiency.ipynb", as_version=4)
    (shown,) = [cell for cell in book.cells if cell.source.startswith("published = ")]
    assert 'columns="split"' in shown.source
