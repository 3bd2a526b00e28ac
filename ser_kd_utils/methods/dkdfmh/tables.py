"""DKDFMH's tables, from the records of two protocols.

P1 is the paper's likely protocol: a random fifth of the utterances is the test, utterances shorter than a segment are
left out, and the epoch is chosen on the test itself, so it is optimistic. P2 keeps the test's speakers out of training,
tests all utterances and chooses the epoch on dev speakers. Their numbers never share a column unless the table is about
the difference (`_optimism`). Scores are those of clean speech unless a column says noisy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ser_kd_utils.methods import settings_of
from ser_kd_utils.methods.dkdfmh.variants import variants
from ser_kd_utils.records import Run
from ser_kd_utils.report import tables as report
from ser_kd_utils.report.differences import Comparison, Differences, Family, effect_of, line_of
from ser_kd_utils.report.tables import BLANK, Line, Sample, Score, Selection, Table, word

FULL = "cnn-dkd"
IN_NOISE = ("cnn-alone", FULL, "cnn-alone-noisy", "cnn-dkd-noisy")
SAME = "it helps more than classical distillation"
GATE, OTHER_GATE, NOISY_GATE = ("cnn-teacher", "cnn-alone"), ("a", "cnn-alone"), ("cnn-teacher", "cnn-alone-noisy")
IN_NOISE_TOO = "distillation helps in noise, after training in noise"
CLAIMS = (
    Comparison(FULL, "cnn-alone", "clean", "decoupled distillation helps the student", GATE),
    Comparison(FULL, "cnn-kd", "clean", f"{SAME}, each at its own temperature", GATE),
    Comparison(FULL, "cnn-kd-same-temperature", "clean", f"{SAME} at the same temperature", GATE),
    Comparison("cnn-kd", "cnn-alone", "clean", "classical distillation helps the student", GATE),
    Comparison("cnn-nckd", "cnn-tckd", "clean", "what the teacher says of the other classes carries it", GATE),
    Comparison(FULL, "cnn-teacher", "clean", "the student beats its teacher", GATE),
    Comparison("cnn-wav2vec2", FULL, "clean", "a teacher of another architecture serves better", OTHER_GATE),
    Comparison("cnn-dkd-noisy", "cnn-alone-noisy", "noisy", IN_NOISE_TOO, NOISY_GATE),
    Comparison("cnn-alone-noisy", "cnn-alone", "noisy", "training in noise helps in noise"),
)
"""The paper's first claim, that of its loss (the next three) and questions of ours."""
COMPARISONS = (
    *CLAIMS, Comparison("cnn-teacher", "cnn-alone", "clean"), Comparison("cnn-wav2vec2", "cnn-alone", "clean"),
    Comparison(FULL, "cnn-alone", "noisy"),
)  # fmt: skip


def tables(runs: Sequence[Run]) -> list[Table]:
    teachers = [run for run in runs if run.info["method"] == "teacher"]
    runs = [run for run in runs if run.info["method"] == "dkdfmh"]
    p2 = honest(runs)
    known = variants(settings_of(runs[0].info["profile"])) if runs else {}
    family = Family([*p2, *teachers], CLAIMS)
    return [
        Table("dkd", ("row",), lambda: _main(runs, known)),
        family.verdicts("dkd_claims"),
        family.comparisons("dkd_comparisons", COMPARISONS),
        Differences("dkd_optimism_alone", ("rung",), lambda: _optimism(runs, "cnn-alone")),
        Differences("dkd_optimism_dkd", ("rung",), lambda: _optimism(runs, FULL)),
        family.components("dkd_ablations", known, "clean"),
        report.in_noise("dkd_noise", p2, IN_NOISE),
        family.null("dkd_null", known, "clean"),
    ]


def honest(runs: Sequence[Run]) -> list[Run]:
    """The method's records of P2."""
    return [run for run in runs if run.info["method"] == "dkdfmh" and report.mark_of(run) == "P2"]


def _samples(runs: Sequence[Run], variant: str, protocol: str) -> dict[str, Sample]:
    """The variant's predictions by checkpoint."""
    names = ("best", "last", "test-UA", "test-WA")
    found = {name: report.together(runs, Selection((variant,), name, protocol=protocol)) for name in names}
    return {name: sample for name, samples in found.items() for sample in samples}


def _main(runs: Sequence[Run], known: Mapping) -> list[Line]:
    """The main variants, WA and UA in percent: P1 at the epochs with the best test WA and the best test UA, as a paper
    of that protocol reports, P2 at the epoch with the best dev UA. The published scores are those of IEMOCAP."""
    titles = ("WA P1", "UA P1", "folds x seeds P1", "WA P2", "UA P2", "UA noisy P2", "folds x seeds P2")
    wa, ua = Score("clean", metric="WA"), Score("clean")
    lines = []
    for name in report.recorded(runs, "main", known):
        own = [run for run in runs if run.info["variant"] == name]
        info = own[-1].info
        size = word(f"{info['parameters'] / 1e3:.1f}k")
        line = {"row": word(name, own), "model": word(info["title"]), "parameters": size} | dict.fromkeys(titles, BLANK)
        if found := _samples(own, name, "P1"):
            cells = wa(found["test-WA"]), ua(found["test-UA"]), report.design(found["test-UA"])
            line |= zip(titles[:3], cells, strict=True)
        for sample in report.together(own, Selection((name,), protocol="P2")):
            line |= zip(titles[3:], (wa(sample), ua(sample), Score()(sample), report.design(sample)), strict=True)
        published = word(_published() if name == FULL else "")
        lines.append(line | {"published WA / UA": published, "command": word(report.command(own))})
    return lines


def _published() -> str:
    """The method's scores with what is known of their protocol and source."""
    table = report.published_values("dkdfmh_results").query("table == 'abstract'").set_index("metric")
    dataset, source = table.loc["UA", ["dataset", "source"]]
    wa, ua = table["value"][["WA", "UA"]]
    return f"{wa:.1f} / {ua:.1f}, {dataset}, likely P1 ({source.partition(' (')[0]})"


def _optimism(runs: Sequence[Run], variant: str) -> list[Line]:
    """What P1 is worth: one model scored in ever other ways; WA and UA in percent.

    Rungs 1 to 3: P1 at the epoch chosen on the test (WA and UA each at its own), on dev, and at the last one; 6 to 8:
    the same for P2. 4 and 5: P1 and P2 on the utterances (and seeds) that both tested, whatever the fold; left out
    where these are under half of P2's, as with a single fold. A step is the rung's UA less that of the rung it is
    compared with. Step 5 is what it costs that the speakers are unheard (and that P2 trains on another part of the
    corpus: see `sizes` in the protocol cards); the folds of its two sides differ, so it has the interval over
    utterances only. No step has a p: an epoch chosen on the test cannot score less there than another one, so a small
    p would say nothing.

    Of IEMOCAP, P1 has the improvised speech only and takes excitement for happiness: what P2 trains on besides is in
    step 5, and excited and happy, the names of one class there, count as the same.
    """
    found = {protocol: _samples(runs, variant, protocol) for protocol in ("P1", "P2")}
    independent = all(run.info["protocol"]["speaker_independent"] for run in honest(runs))
    words = {"P1": "random split", "P2": "speaker-independent" if independent else "own split"}
    both = report.together(runs, *(Selection((variant,), protocol=protocol) for protocol in ("P1", "P2")))
    if both and 2 * len(both[1].at("clean").table) < len(found["P2"]["best"].at("clean").table):
        both = []
    rungs = {}  # by number: protocol, evaluation, samples for WA and UA, the rung compared with
    for first, (protocol, by) in zip((1, 6), found.items(), strict=True):
        if by:
            rungs[first] = (protocol, "best test epoch", by["test-WA"], by["test-UA"], 0)
            rungs[first + 1] = (protocol, "best dev epoch", by["best"], by["best"], first)
            rungs[first + 2] = (protocol, "last epoch", by["last"], by["last"], first)
    for number, against, sample in zip((4, 5), (0, 4), both, strict=bool(both)):
        rungs[number] = (sample.selection.protocol, "best dev epoch, tested by both", sample, sample, against)
    lines = []
    for number, (protocol, evaluation, for_wa, for_ua, against) in sorted(rungs.items()):
        for_wa, for_ua = for_wa.at("clean"), for_ua.at("clean")
        line = {"rung": word(number, for_ua.runs), "split": word(protocol)}
        line |= {"evaluation": word(f"{words[protocol]}, {evaluation}"), "WA": for_wa.score("WA", with_interval=True)}
        line |= {"UA": for_ua.score(with_interval=True), "utterances": word(for_ua.table["utterance"].nunique())}
        lines.append(line | {"folds x seeds": report.design(for_ua)})
        if against:
            both = for_ua, rungs[against][3].at("clean")
            step = line_of(both, effect_of(*both), 1, 1, "step, points").items()
            lines[-1] |= {"against": word(f"rung {against}")} | dict([*step][:3])  # the difference and its intervals
    return lines


def published_table() -> pd.DataFrame:
    """What is published of the method and of the network it builds on, WA and UA in percent, each with its protocol."""
    names = ("dkdfmh_results", "dkdfmh_ancestor_baselines")
    table = pd.concat(map(report.published_values, names))
    table = table[table["method"].fillna("").str.contains("DKDFMH|Head Fusion")]
    line, metrics = ["method", "dataset", "condition", "source"], ["WA", "UA", "WA_std", "UA_std"]
    wide = table.pivot(index=line, columns="metric", values="value").reset_index().rename_axis(columns=None)
    wide = wide[[*line[:3], *metrics, "source"]]
    return wide.astype(object).where(wide.notna(), "")


def confusion_tables(runs: Sequence[Run]) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Clean predictions of the distilled students, and of the one alone, on the same folds and seeds.

    TCKD and NCKD alone are among them where they were recorded as often as the whole; none without all three students.
    """
    p2 = honest(runs)
    count = {name: sum(run.info["variant"] == name for run in p2) for name in ("cnn-alone", "cnn-kd", FULL)}
    parts = [name for name in ("cnn-tckd", "cnn-nckd") if sum(run.info["variant"] == name for run in p2) >= count[FULL]]
    found = report.aligned(p2, [*count, *parts]) if all(count.values()) else {}
    clean = {name: sample.at("clean").table for name, sample in found.items()}
    return clean, clean.pop("cnn-alone", pd.DataFrame())
