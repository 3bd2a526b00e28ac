"""Tables of what is beside rows (a) to (e): MLKD with one part changed, and distillation in other situations.

They take all records and compare two rows on the folds and seeds both have; a table without its records is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ser_kd_utils.metrics import score
from ser_kd_utils.records import Run, predictions
from ser_kd_utils.rows import EVERY_ROW, ROWS, ablations
from ser_kd_utils.settings import settings_of
from ser_kd_utils.tables import (
    BY_RUN,
    clean_part,
    compared,
    comparison_table,
    complete,
    design,
    noisy_part,
    on_common_cells,
    verdicts,
)

PARTS = {"clean": clean_part, "noisy": noisy_part}
SCORED_THERE = ", scored in it"
MAIN_PAIR = {"row": "e", "against": "c", "situation": "as in the main table"}


def shared(runs: Sequence[Run], *rows: str) -> list[pd.DataFrame]:
    """Predictions of these rows on what all of them have, [] when that is nothing.

    Of a run that held a noise type out, this type is all that counts: each fold holds out its own.
    """
    some = {row: [run for run in runs if run.info["row"] == row] for row in rows}
    if not all(some.values()):
        return []
    tables = []
    for row in rows:
        table = predictions(some[row])
        held_out = table["fold"].map({run.info["fold"]: run.info.get("held_out", "") for run in some[row]})
        tables.append(table[(held_out == "") | (held_out == table["condition"])])
    found = on_common_cells(*tables)
    return found if len(found[0]) else []


def percent_of(table: pd.DataFrame) -> float:
    return round(100 * score(table), 1)


def _pairs(runs: Sequence[Run], group: str) -> Iterator[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    """Of each row of the group, as `ablations` orders them: what is recorded of it, its and the other's predictions."""
    rows = {run.info["row"]: run.info for run in runs if run.info.get("group") == group}
    use = settings_of(runs[0].info["profile"])
    order = list(ablations(use.teacher, use.mlkd, speech=True))
    names = sorted(rows, key=lambda name: order.index(name) if name in order else len(order))
    for info in [MAIN_PAIR] * (group == "gain") + [rows[name] for name in names]:
        if pair := shared(runs, info["row"], info["against"]):
            yield info, *pair


def ablation_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Row (e) with one part changed against row (e), on the folds and seeds both have; UA in percent."""
    return part_table(_pairs(runs, "part"), noisy_part, "(e)")


def part_table(
    pairs: Iterable[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]],
    tested: Callable[[pd.DataFrame], pd.DataFrame],
    full: str,
) -> pd.DataFrame:
    """Rows with one part of a method changed, each against the method as it is, named `full`; UA in percent.

    pairs: what is recorded of a row, its predictions and the method's; tested: the part of the predictions, clean or
    noisy, on which the difference is tested.
    """
    points = "difference, points"
    records = [
        {
            "row": info["title"],
            "question": info["question"],
            "UA clean": percent_of(clean_part(row)),
            "UA noisy": percent_of(noisy_part(row)),
            **compared(tested(row), tested(whole), points),
        }
        for info, row, whole in pairs
    ]
    leading = ["row", "question", "UA clean", "UA noisy", points]
    return verdicts(records, leading, f"better than {full}", f"worse than {full}")


def gain_table(runs: Sequence[Run]) -> pd.DataFrame:
    """What distillation is worth by situation: rows (e) and (c), then each distilled row and its control.

    UA noisy in percent; where each fold's training went without a noise type, in that type only.
    """
    points = "gain, points"
    records = [
        {
            "situation": info["situation"] + (SCORED_THERE if info.get("held_out") else ""),
            "control UA noisy": percent_of(noisy_part(control)),
            "distilled UA noisy": percent_of(noisy_part(distilled)),
            **compared(noisy_part(distilled), noisy_part(control), points),
        }
        for info, distilled, control in _pairs(runs, "gain")
    ]
    leading = ["situation", "control UA noisy", "distilled UA noisy", points]
    return verdicts(records, leading, "distilled is better", "control is better")


def unseen_table(runs: Sequence[Run]) -> pd.DataFrame:
    """UA in percent in the noise type that each fold left out, for models that heard it in training and that did not.

    All four on the same folds and seeds, at the SNRs of training; cost: what not having heard it takes.
    """
    points = "cost, points"
    tables = [noisy_part(table) for table in shared(runs, "c", "e", "c-unseen", "e-unseen")]
    records = [
        {
            "row": f"({letter})",
            "model": ROWS[letter].title,
            "UA heard": percent_of(heard),
            "UA not heard": percent_of(unseen),
            **compared(heard, unseen, points),
        }
        for letter, heard, unseen in zip("ce", tables[:2], tables[2:], strict=False)  # no table, no row
    ]
    leading = ["row", "model", "UA heard", "UA not heard", points]
    return verdicts(records, leading, "hearing it is better", "not hearing it is better")


CLAIMS = (
    ("training in noise helps in noise", "(b) - (a)", 1),
    ("teacher levels help a student in noise", "(e) - (c)", 1),
    ("one teacher level helps a student in noise", "(d) - (c)", 1),
    ("several levels help more than the last one", "(e) - (d)", 1),
    ("the small student with levels beats the full size without", "(e) - (b)", 1),
    ("targets from clean speech are better than from noisy speech", "noisy-teacher", -1),
    ("the targets must come from a teacher that knows emotion", "untuned-teacher", -1),
    ("teacher and labels together are better than one after the other", "two-stage", -1),
    ("levels help when labels are few", "e-few-labels", 1),
    ("levels help a student from random weights", "e-random-start", 1),
    ("levels help in a noise that was not heard in training", "e-unseen", 1),
)
"""What the paper claims, or distillation at large; the comparison that tests it; the sign that supports it."""


def claims_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Each claim whose rows are recorded with its test: points of UA noisy, positive where they speak for the claim.

    Supported (contradicted) takes both a Holm-corrected p under 5 % in the table the comparison stands in and an
    interval by run that leaves 0 out; with the p alone it is so "for these models", with neither it is undecided.
    """
    whole, _ = complete(runs)
    named = {"part": "title", "gain": "situation"}
    title = {run.info["row"]: run.info[named[run.info["group"]]] for run in runs if run.info["group"] in named}
    found = {}
    for table in (comparison_table(whole), ablation_table(runs), gain_table(runs)):
        name = next(column for column in ("rows", "row", "situation") if column in table)
        points = next(column for column in table if column.endswith(", points") and column not in BY_RUN)
        for line in table.rename(columns={name: "evidence", points: "points"}).to_dict("records"):
            found[line["evidence"].removesuffix(SCORED_THERE)] = line
    lines = ((claim, found.get(title.get(evidence, evidence)), sign) for claim, evidence, sign in CLAIMS)
    return pd.DataFrame([claim_line(claim, line, sign) for claim, line, sign in lines if line])


def claim_line(claim: str, line: Mapping[str, Any], sign: int = 1) -> dict[str, Any]:
    """The claim with its verdict, from a line of `verdicts` that names the comparison `evidence` and has `points`.

    sign: 1 where positive points speak for the claim, -1 where negative ones do.
    """
    low, high = _interval(line["95 % interval"], sign)
    by_run = _interval(line["95 % interval by run"], sign)
    return {
        "claim": claim,
        "tested by": line["evidence"],
        "points for it": sign * line["points"],
        "95 % interval": f"[{low:.1f}, {high:.1f}]",
        "p (Holm)": line["p (Holm)"],
        "95 % interval by run": f"[{by_run[0]:.1f}, {by_run[1]:.1f}]" if by_run else "",
        "folds x seeds": line["folds x seeds"],
        "verdict": _verdict(sign * line["points"], line["p (Holm)"], by_run),
    }


def _interval(text: str, sign: int) -> list[float]:
    return sorted(sign * float(end) for end in text.strip("[]").split(", ")) if text else []


def _verdict(points: float, p: float, by_run: Sequence[float]) -> str:
    if p >= 0.05:
        return "undecided"
    word = "supported" if points > 0 else "contradicted"
    return word if by_run and by_run[0] * by_run[1] > 0 else f"{word} for these models"


def without_nan(table: pd.DataFrame) -> pd.DataFrame:
    """Empty text where there is no number."""
    return table.astype(object).where(table.notna(), "")


def comparisons(runs: Sequence[Run], pairs: Iterable[Sequence[str]], points: str) -> list[dict[str, Any]]:
    """Each (first row, second row, "clean" or "noisy") of which both rows are recorded, on what both have."""
    return [
        {"rows": f"({first}) - ({second})", "speech": speech}
        | compared(*(PARTS[speech](table) for table in tables), points)
        for first, second, speech in pairs
        if (tables := shared(runs, first, second))
    ]


def claims_among(runs: Sequence[Run], claims: Iterable[Sequence[str]]) -> pd.DataFrame:
    """Each (claim, row that should be better, other row, speech) whose rows are recorded, with its test.

    Points of UA, positive where they speak for the claim; p is corrected over the claims (Holm); verdicts as in
    `claims_table`. That one row is not found to beat another does not show that they are equal.
    """
    records = [
        line | {"claim": claim, "evidence": f"{line['rows']}, {line['speech']}"}
        for claim, *pair in claims
        for line in comparisons(runs, [pair], "points")
    ]
    table = verdicts(records, ["claim", "evidence", "points"], "", "")
    return pd.DataFrame([claim_line(line["claim"], line) for line in table.to_dict("records")])


def rows_together(runs: Sequence[Run], names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Predictions by row, of those that are recorded, on the folds and seeds that all these share."""
    found = [name for name in names if any(run.info["row"] == name for run in runs)]
    return dict(zip(found, shared(runs, *found) if found else [], strict=False))  # no table, no row


def noise_table(tables: Mapping[str, pd.DataFrame], pairs: Mapping[str, str]) -> pd.DataFrame:
    """UA in percent, clean and by SNR (mean of the noise types), a line per row of `rows_together`.

    pairs: by row, the one it is tested against on noisy speech, where that is here; Holm-corrected over the table.
    """
    points = "noisy, points"
    records = [
        {"row": name, "against": pairs[name]}
        | compared(noisy_part(tables[name]), noisy_part(tables[pairs[name]]), points)
        for name in tables
        if pairs.get(name) in tables
    ]
    tests = verdicts(records, ["row", "against", points], "better", "worse")
    levels = []
    for name, table in tables.items():
        noisy = table.dropna(subset="snr_db").groupby("snr_db")
        by_snr = {f"UA {snr:.0f} dB": percent_of(part) for snr, part in reversed(list(noisy))}
        line = {"row": name, "model": EVERY_ROW[name].title, "UA clean": percent_of(clean_part(table))}
        levels.append(line | by_snr | {"UA noisy": percent_of(noisy_part(table)), "folds x seeds": design(table)})
    scores = pd.DataFrame(levels, columns=None if levels else ["row", "model", "UA clean", "UA noisy"])
    return without_nan(scores.merge(tests.drop(columns="folds x seeds"), how="left", on="row"))
