"""MLKD's tables: rows (a) to (e), MLKD with one component changed, and distillation in other situations."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd

from ser_kd_utils.methods import settings_of
from ser_kd_utils.methods.mlkd.variants import variants
from ser_kd_utils.records import Run
from ser_kd_utils.report import tables as report
from ser_kd_utils.report.differences import Comparison, Family, read_claims
from ser_kd_utils.report.tables import Cell, Line, PointEstimate, Sample, Score, Selection, Table, word

# what the paper claims, or distillation at large; the teacher's dev speech is clean and the students' noisy, so their
# scores are no premise, and the claims say so
CLAIMS = read_claims(__file__)
# several layers against one, either against none; (e) near the full size (b); what layers and noisy training do; and
# what layers give in little noise less what they give in much
COMPARISONS = [Comparison(*pair) for pair in ("ed", "ec", "dc", "eb", "cb", "ba")]
COMPARISONS += [each for each in CLAIMS if each.snrs]


def tables(runs: Sequence[Run]) -> list[Table]:
    """From MLKD's records and the teacher's, which is row (a); without lines where nothing of MLKD is recorded."""
    runs = [run for run in runs if run.info["method"] in ("teacher", "mlkd")]
    runs = runs if any(run.info["method"] == "mlkd" for run in runs) else []
    main = [run for run in runs if run.info["kind"] == "main"]
    known = ["a", "a0", *variants(settings_of(runs[0].info["profile"]))] if runs else []
    names = report.recorded(main, "main", known)
    samples = cache(lambda: report.aligned(main, names))
    family = Family(runs, CLAIMS)
    return [
        report.scores("mlkd", samples, _columns(main), report.left_out(main, names)),
        family.comparisons("mlkd_comparisons", COMPARISONS),
        Table("mlkd_paper", ("noise", "SNR", "row"), lambda: _beside_published(samples()), "percent; "),
        Table("mlkd_conditions_UA", ("noise", "SNR"), lambda: _by_condition(samples()), "UA in percent; "),
        Table("mlkd_selection", ("row", "speech"), lambda: _selection(main, samples())),
        family.components("mlkd_ablations", known, "noisy"),
        _gains(family, known),
        _unseen(family),
        family.verdicts("mlkd_claims"),
        family.null("mlkd_null", known, "noisy"),
    ]


def _columns(main: Sequence[Run]) -> dict[str, report.Column]:
    """UA and WA in percent, clean, noisy, at the lowest SNR of training and at those tested below it."""
    snrs = report.snrs(main)
    low = main[0].info["settings"]["noise"]["train_snr_db"][0] if main else 0
    lowest = min((snr for snr in snrs if snr >= low), default=low)
    return report.MODEL | {
        "UA clean": Score("clean"),
        "UA noisy": Score(),
        **{f"UA {snr:.0f} dB": Score(snr_db=snr) for snr in snrs if snr <= lowest},
        "WA clean": Score("clean", metric="WA"),
        "WA noisy": Score(metric="WA"),
        "published UA": _published_ua,
        "folds x seeds": report.design,
        "protocol": lambda sample: word(report.protocol_of(sample.runs[0])),
        "command": lambda sample: word(report.command(sample.runs)),
    }


def reference(corpus: str) -> pd.DataFrame:
    """Published values on this corpus, with the variant that stands for the method."""
    table = report.published_values("mlkd_results")
    return table.assign(variant=table["method"].replace("MLKD", "e"))[table["dataset"] == corpus.upper()]


def _published_ua(sample: Sample) -> Cell:
    """MLKD's value over all noise (lines without an SNR) with its source; blank where the paper has none."""
    places = reference(sample.info["corpus"]).query("variant == 'e' and metric == 'UA' and condition != 'clean'")
    found = places[places["snr_db"].isna() & (sample.info["variant"] == "e")]
    values = [f"{line.value:.1f} ({line.source})" for line in found.dropna(subset="value").itertuples()]
    return word("; ".join(values) or "not available" * bool(len(found)))


def _conditions(samples: Mapping[str, Sample]) -> Iterator[tuple[Line, tuple[str, float | None]]]:
    """The cells that name it, and clean speech first, then each noise type with falling SNR."""
    for sample in [*samples.values()][:1]:
        yield {"noise": word("clean"), "SNR": word(None)}, ("clean", None)
        noisy = sample.table.dropna(subset="snr_db")[["condition", "snr_db"]].drop_duplicates()
        for kind, snr in sorted(noisy.itertuples(index=False, name=None), key=lambda each: (each[0], -each[1])):
            yield {"noise": word(kind), "SNR": word(snr)}, (kind, snr)


def _by_condition(samples: Mapping[str, Sample]) -> Iterator[Line]:
    for cells, place in _conditions(samples):
        yield cells | {report.label(each).text: PointEstimate(*place)(each) for each in samples.values()}


def _beside_published(samples: Mapping[str, Sample]) -> Iterator[Line]:
    """WA and UA beside the published values; the differences are in points.

    Published: lines of results/reference/mlkd_results.csv whose dataset is the corpus, condition a noise type as named
    here (or `clean`, without snr_db), metric WA or UA, value in percent, and method "MLKD", which is row (e), or the
    name of another variant. Raises ValueError where two lines have values for one place.
    """
    place = ["metric", "condition", "snr_db", "variant"]
    corpus = next((sample.info["corpus"] for sample in samples.values()), "")
    table = reference(corpus).dropna(subset="value").fillna({"snr_db": np.inf}).set_index(place)
    if table.index.has_duplicates:
        raise ValueError("results/reference/mlkd_results.csv has two values for one place: keep one of them.")
    for cells, (kind, snr) in _conditions(samples):
        for name, sample in samples.items():
            ours = {metric: PointEstimate(kind, snr, metric)(sample) for metric in ("WA", "UA")}
            theirs = {each: table["value"].get((each, kind, np.inf if snr is None else snr, name)) for each in ours}
            less = {each: value and round(ours[each].value - value, 1) for each, value in theirs.items()}
            line = cells | {"row": report.label(sample), "method": report.told("title")(sample)} | ours
            line |= {f"published {each}": word(value) for each, value in theirs.items()}
            yield line | {f"{each} - published": word(value) for each, value in less.items()}


def _selection(main: Sequence[Run], samples: Mapping[str, Sample]) -> Iterator[Line]:
    """What the choice of the epoch is worth: UA of the epoch chosen on dev and of the last one, in percent, on the
    conditions in which both were tested."""
    titles = ("chosen on dev", "last epoch")
    for name, sample in samples.items():
        both = report.together(main, Selection((name,)), Selection((name,), "last"))
        for part in ("clean", "noisy"):
            named = {"row": report.label(sample), "speech": word(part)}
            yield named | {title: Score(part)(each) for title, each in zip(titles, both, strict=True)}


def _gains(family: Family, known: Sequence[str]) -> Table:
    """What distillation is worth by situation: rows (e) and (c), then each distilled variant and its control.

    UA noisy in percent; where each fold's training went without a noise type, in that type only.
    """
    declared = [Comparison("e", "c"), *family.with_baselines("situation", known, "noisy")]
    columns = {"situation": (0, _situation), "control UA noisy": (1, PointEstimate())}
    columns["distilled UA noisy"] = 0, PointEstimate()
    readings = ("distilled is better", "control is better")
    return family.differences("mlkd_gains", declared, "gain, points", readings, columns)


def _situation(sample: Sample) -> Cell:
    words = sample.info["situation"] or "as in the main table"
    return word(words + ", scored in it" * bool(sample.info["held_out_noise"]))


def _unseen(family: Family) -> Table:
    """UA in percent in the noise type that each fold left out, for models that heard it in training and that did not,
    at the SNRs of training; cost: what not having heard it takes."""
    columns = {"row": (0, report.label), "model": (0, report.told("title"))}
    columns |= {"UA heard": (0, PointEstimate()), "UA not heard": (1, PointEstimate())}
    declared = [Comparison(name, f"{name}-unseen") for name in "ce"]
    readings = ("hearing it is better", "not hearing it is better")
    return family.differences("mlkd_unseen_noise", declared, "cost, points", readings, columns)
