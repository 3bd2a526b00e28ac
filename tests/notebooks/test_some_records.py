"""Notebook 09 tells what there is: with records of one method its tables, and that there are none of the others."""

from __future__ import annotations

from pathlib import Path

import papermill
import pytest

from ser_kd_utils.records import EVIDENCE, read_runs
from ser_kd_utils.reproduce.plan import NOTEBOOKS
from ser_kd_utils.reproduce.publish import write_published


@pytest.mark.parametrize("method", ["mckd", "dkdfmh", "mlkd"])
def test_notebook_09_with_one_method(method, tmp_path):
    folder = tmp_path / "demo-tiny"
    folder.mkdir()
    own = [run for run in read_runs(EVIDENCE / "demo-tiny") if run.info["method"] in (method, "teacher")]
    write_published(own, folder)
    executed = tmp_path / "09.ipynb"
    given = {"results": str(tmp_path)}
    papermill.execute_notebook(
        str(NOTEBOOKS / "09_paper_tables.ipynb"), str(executed), given, kernel_name="python3", progress_bar=False
    )
    written = {path.stem.partition("_")[0] for path in (folder / "tables").glob("*.csv")}
    assert written == {"dkd" if method == "dkdfmh" else method}
    text = Path(executed).read_text(encoding="utf-8")
    assert text.count("not recorded") >= 5 and "Traceback" not in text
