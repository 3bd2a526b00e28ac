"""DKDFMH's tables, from the records of two protocols.

P1 is the paper's likely protocol: a random fifth of the utterances is the test, utterances shorter than a segment are
left out, and the epoch is chosen on the test itself, so it is optimistic. P2 keeps the test's speakers out of training,
tests all utterances and chooses the epoch on dev speakers. Their numbers never share a column unless the table is about
the difference (`_optimism`). Scores are those of clean speech unless a column says noisy.
"""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from ser_kd_utils.methods import settings_of
from ser_kd_utils.methods.dkdfmh.variants import grids, of_encoder, variants
from ser_kd_utils.records import Run
from ser_kd_utils.report import tables as report
from ser_kd_utils.report.differences import Comparison, Differences, Family, Tested, effect_of, read_claims
from ser_kd_utils.report.tables import BLANK, Line, Sample, Score, Selection, Table, word

FULL = "cnn-dkd"
WA, UA = Score("clean", metric="WA"), Score("clean")
IN_NOISE = ("cnn-alone", FULL, "cnn-alone-noisy", "cnn-dkd-noisy")
HELPS = "it helps more than classical distillation"


def claims(settings: Mapping, runs: Sequence[Run] = ()) -> tuple[Comparison, ...]:
    """The paper's first claim, those of its loss and questions of ours.

    Decoupled and classical distillation are compared as they are set, at each temperature with the same weights, and
    each as dev speech prefers it among equally many settings, once all of these are recorded in `runs`.
    """
    known, own = variants(settings), settings["dkdfmh"]
    named = {own.replace(**known[name].overrides): name for name in sum(grids(known), [])}
    first, as_set, *others = read_claims(__file__, encoder=of_encoder(settings))
    pairs = {}
    for t in own.temperatures:
        pairs[f"at T {t:g}"] = named[own.replace(temperature=t)], named[own.replace(loss="kd", kd_temperature=t)]
    if preferred := _preferred(runs, grids(known)):
        pairs["each as dev speech prefers it"] = preferred
    tuned = [Comparison(*pair, "clean", f"{HELPS}, {how}", as_set.gate) for how, pair in pairs.items()]
    return (first, as_set, *tuned, *others)


def _preferred(runs: Sequence[Run], grids: Sequence[list[str]]) -> tuple[str, ...]:
    """Of each grid the variant with the highest dev UA, mean over the folds and seeds that have all of both grids."""
    found = [(run.info["variant"], run.info["fold"], run.info["seed"], run.history["dev_UA"].max()) for run in runs]
    table = pd.DataFrame(found, columns=["variant", "fold", "seed", "UA"])
    dev = table.pivot(index=["fold", "seed"], columns="variant", values="UA").reindex(columns=sum(grids, [])).dropna()
    return tuple(dev[grid].mean().idxmax() for grid in grids if len(dev))


def tables(runs: Sequence[Run]) -> list[Table]:
    teachers = [run for run in runs if run.info["method"] == "teacher"]
    runs = [run for run in runs if run.info["method"] == "dkdfmh"]
    p1, p2 = [run for run in runs if report.mark_of(run) == "P1"], honest(runs)
    settings = settings_of(*[runs[0].info[key] for key in ("profile", "overrides")] if runs else ["tiny"])
    known, claimed = variants(settings), claims(settings, p2)
    others = [Comparison(teacher, "cnn-alone", "clean") for teacher in ("cnn-teacher", of_encoder(settings))]
    others.append(Comparison(FULL, "cnn-alone", "noisy"))
    compared = {each.key: each for each in (*claimed, *others)}.values()
    family = Family([*p2, *teachers], claimed)
    return [
        Table("dkd", ("row",), lambda: _main(runs, known)),
        family.verdicts("dkd_claims"),
        family.comparisons("dkd_comparisons", compared),
        Family(p1, ()).comparisons("dkd_likely_comparisons", compared),
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
    """The variant's predictions of clean speech by checkpoint."""
    names = ("best", "last", "test-UA", "test-WA")
    found = {name: report.together(runs, Selection((variant,), name, protocol=protocol)) for name in names}
    return {name: sample.at("clean") for name, samples in found.items() for sample in samples}


def _main(runs: Sequence[Run], known: Mapping) -> Iterator[Line]:
    """The main variants, WA and UA in percent: P1 at the epochs with the best test WA and the best test UA, as a paper
    of that protocol reports, P2 at the epoch with the best dev UA. The published scores are those of IEMOCAP."""
    titles = ("WA P1", "UA P1", "folds x seeds P1", "WA P2", "UA P2", "UA noisy P2", "folds x seeds P2")
    for name in report.recorded(runs, "main", known):
        own = [run for run in runs if run.info["variant"] == name]
        size = word(f"{own[-1].info['parameters'] / 1e3:.1f}k")
        line = {"row": word(name, own), "model": word(own[-1].info["title"]), "parameters": size}
        line |= dict.fromkeys(titles, BLANK)
        if found := _samples(own, name, "P1"):
            cells = WA(found["test-WA"]), UA(found["test-UA"]), report.design(found["test-UA"])
            line |= zip(titles[:3], cells, strict=True)
        for sample in report.together(own, Selection((name,), protocol="P2")):
            line |= zip(titles[3:], (WA(sample), UA(sample), Score()(sample), report.design(sample)), strict=True)
        line["published WA / UA"] = word(_published() if name == FULL else "")
        yield line | {"command": word(report.command(own))}


def _published() -> str:
    """The method's scores with what is known of their protocol and source."""
    table = report.published_values("dkdfmh_results").query("table == 'abstract'").set_index("metric")
    wa, ua = table.loc["WA"], table.loc["UA"]
    return f"{wa['value']:.1f} / {ua['value']:.1f}, {ua['dataset']}, likely P1 ({ua['source'].partition(' (')[0]})"


def _optimism(runs: Sequence[Run], variant: str) -> Iterator[Line]:
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
    both = [each.at("clean") for each in report.together(runs, *(Selection((variant,), protocol=p) for p in found))]
    if both and 2 * len(both[1].table) < len(found["P2"]["best"].table):
        both = []
    rungs = {}  # by number: protocol, evaluation, samples for WA and UA, the rung compared with
    for first, (protocol, by) in zip((1, 6), found.items(), strict=True):
        if by:
            rungs[first] = (protocol, "best test epoch", by["test-WA"], by["test-UA"], 0)
            rungs[first + 1] = (protocol, "best dev epoch", by["best"], by["best"], first)
            rungs[first + 2] = (protocol, "last epoch", by["last"], by["last"], first)
    for number, against, sample in zip((4, 5), (0, 4), both, strict=bool(both)):
        rungs[number] = (sample.selection.protocol, "best dev epoch, tested by both", sample, sample, against)
    for number, (protocol, evaluation, for_wa, for_ua, against) in sorted(rungs.items()):
        line = {"rung": word(number, for_ua.runs), "split": word(protocol)}
        line |= {"evaluation": word(f"{words[protocol]}, {evaluation}"), "WA": WA(for_wa), "UA": UA(for_ua)}
        line |= {"utterances": word(for_ua.table["utterance"].nunique()), "folds x seeds": report.design(for_ua)}
        if against:
            sides = [for_ua, rungs[against][3]]
            step = Tested(Comparison(variant, variant), (True, ""), [], sides, effect_of(*sides)).line("step, points")
            line |= {"against": word(f"rung {against}")} | dict([*step.items()][:3])  # the difference and its intervals
        yield line
