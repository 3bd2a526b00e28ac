"""Puts the tables of results/ between the README's markers: `python tests/notebooks/readme_tables.py`."""

import re
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]


def filled(text: str, results: Path = ROOT / "results") -> str:
    """The text with each `<!-- table PATH: COLUMNS -->` ... `<!-- end -->` filled from the CSV file `results`/PATH."""

    def fill(match: re.Match) -> str:
        frame = pd.read_csv(results / match[1], dtype=str, keep_default_na=False)[match[2].split(", ")]
        table = re.sub(" {2,}", " ", re.sub("-{4,}", "---", frame.to_markdown(index=False)))  # not padded
        return f"<!-- table {match[1]}: {match[2]} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- table (\S+): (.+?) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
