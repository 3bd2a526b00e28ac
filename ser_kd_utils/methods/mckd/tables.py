"""MCKD's tables. Scores are those of clean speech unless a column says noisy."""

from collections.abc import Iterable, Sequence

from ser_kd_utils.methods import settings_of
from ser_kd_utils.methods.mckd.variants import variants
from ser_kd_utils.records import Run
from ser_kd_utils.report import tables as report
from ser_kd_utils.report.differences import Comparison, Family, read_claims
from ser_kd_utils.report.tables import Line, Score, Selection, Table, word

FULL = "mc-full"
METRICS = ("WA", "UA", "WF1")
IN_NOISE = ("mc-alone", FULL, "mc-z-score", "mc-alone-noisy", "mc-kd-noisy", "mc-full-noisy")
# What the paper claims, or follows from it.
CLAIMS = read_claims(__file__)
COMPARISONS = (*CLAIMS, Comparison(FULL, "mc-supcon", "clean"), Comparison(FULL, "mc-alone", "noisy"))


def tables(runs: Sequence[Run]) -> list[Table]:
    family = Family([run for run in runs if run.info["method"] in ("teacher", "mckd")], CLAIMS)
    runs = [run for run in family.runs if run.info["method"] == "mckd"]
    known = variants(settings_of(runs[0].info["profile"])) if runs else {}
    return [
        Table("mckd", ("row",), lambda: _main(runs, report.recorded(runs, "main", known))),
        family.verdicts("mckd_claims"),
        family.comparisons("mckd_comparisons", COMPARISONS),
        family.components("mckd_ablations", known, "clean"),
        report.in_noise("mckd_noise", runs, IN_NOISE),
        family.null("mckd_null", known, "clean"),
    ]


def _main(runs: Sequence[Run], names: Iterable[str]) -> list[Line]:
    """The main variants, in percent.

    The published scores are those of another corpus unless this is IEMOCAP or MELD, and second-hand.
    """
    columns = report.MODEL | {metric: Score("clean", metric=metric) for metric in METRICS} | {"UA noisy": Score()}
    columns["published"] = lambda sample: word(_published() if sample.info["variant"] == FULL else "")
    columns |= {"folds x seeds": report.design, "command": lambda sample: word(report.command(sample.runs))}
    samples = [sample for name in names for sample in report.together(runs, Selection((name,)))]
    return [{title: column(sample) for title, column in columns.items()} for sample in samples]


def _published() -> str:
    table = report.published_values("taffc2025_results").dropna(subset="value")
    scores = (table["metric"] + table["value"].map(" {:.1f}".format)).groupby(table["dataset"]).agg(" / ".join)
    return "; ".join(scores.index + " " + scores) + " (second-hand)"
