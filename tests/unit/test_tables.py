"""Tables from made-up records whose scores can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from ser_kd_utils.methods import METHODS, settings_of, tables_of
from ser_kd_utils.metrics import holm, score
from ser_kd_utils.records import Run, run_id, write_run
from ser_kd_utils.report import tables, write
from ser_kd_utils.report.differences import OVER_FOLDS, Comparison, Family
from ser_kd_utils.report.tables import BLANK, Cell, Score, Selection, Table, word

LABELS = ["angry", "sad"]
TRUTH = ["angry"] * 6 + ["sad"] * 2
SNR = [10.0, 0.0, -5.0]
BEST = [("clean", np.nan), *((kind, snr_db) for kind in ("buzz", "hum") for snr_db in SNR)]
TITLES = {
    name: each.title
    for room in ("teacher", "mlkd")
    for name, each in METHODS[room].variants(settings_of("tiny")).items()
}
LAST = [("clean", np.nan), ("buzz", 10.0), ("hum", 10.0)]


def record(folder, variant, wrong, fold=1, seed=0, last=None, **about):
    """A run that errs on the first angry utterances in noise: `wrong` of the six, or as many as it says by noise type
    or by SNR; on all six at -5 dB, below the range of training; on none in clean speech.

    last: the same for the last epoch, where it differs; about: more of what is recorded.
    """

    def errors(checkpoint, condition, snr_db):
        count = wrong if checkpoint == "best" or last is None else last
        if isinstance(count, dict):
            count = count.get(condition, count.get(snr_db))
        return {"clean": 0}.get(condition, 6 if snr_db < 0 else count)

    rows = []
    for checkpoint, conditions in (("best", BEST), ("last", LAST)):
        for condition, snr_db in conditions:
            missed = errors(checkpoint, condition, snr_db)
            for number, label in enumerate(TRUTH):
                logits = np.eye(2, dtype=np.float16)[LABELS.index(label) ^ int(number < missed)]
                rows.append((f"f{fold}u{number}", fold, seed, condition, snr_db, checkpoint, label, logits))
    names = ["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]
    method, main = "teacher" if variant == "a" else "mlkd", variant in list("abcde")
    info = {"method": method, "variant": variant, "fold": fold, "seed": seed, "labels": LABELS, "overrides": ""}
    info |= {"corpus": "emodb", "profile": "tiny", "parameters": 1_500_000, "kind": "main" if main else "control"}
    info |= {"title": TITLES[variant] if main else variant, "question": f"why {variant}?", "baseline": ""}
    info |= {"situation": "", "held_out_noise": ""}
    info["settings"] = {"noise": {"train_snr_db": [0.0, 20.0], "test_snr_db": SNR}}
    info["protocol"] = {"protocol": "speaker-groups", "optimistic": False, "noise": "folder: buzz, hum"}
    info["protocol"] |= {"synthetic": False, "speaker_independent": True, "rule": "test: one group", "test": "all"}
    info["protocol"] |= {"sizes": {"train": 90 + fold, "test": 8}, "selection": "best on dev", "speech level": "active"}
    info["protocol"] |= {"test noise": "other halves", "mark": ""}
    info["protocol"]["sizes"] = about.pop("sizes", info["protocol"]["sizes"])
    info |= {"train_noise": ["hum"] if variant != "a" else [], "commit": f"{fold}" * 40}
    info |= {"history": [{"epoch": 1, "dev_UA": 0.5}], "best_epoch": 1} | about
    name = run_id(info["method"], variant, fold, seed, info["protocol"].get("mark", ""))
    return write_run(folder / "runs" / name, pd.DataFrame(rows, columns=names), info)


def made(runs, name) -> pd.DataFrame:
    return tables_of(runs)[name].frame


@pytest.fixture
def runs(tmp_path):
    return [
        record(tmp_path, row, wrong, fold) for fold in (1, 2) for row, wrong in (("c", 6), ("e", 3), ("b", 6), ("a", 6))
    ]


def test_rows_come_in_order_with_hand_counted_scores(runs):
    table = made(runs, "mlkd").set_index("row")
    assert list(table.index) == ["(a)", "(b)", "(c)", "(e)"]
    # (e) misses 3 of 6 angry and none of 2 sad utterances: UA (50 + 100) / 2, WA 5 of 8
    assert table.loc["(e)", "UA clean"].startswith("100.0 [")
    assert table.loc["(e)", "UA noisy"].startswith("75.0 [")
    assert table.loc["(e)", "UA 0 dB"].startswith("75.0 [")
    assert table.loc["(e)", "UA -5 dB"].startswith("50.0 [")  # and no part of "noisy", being below the trained range
    assert table.loc["(e)", "WA noisy"].startswith("62.5 [")
    assert table.loc["(a)", "UA noisy"].startswith("50.0 [")
    assert table.loc["(e)", "folds x seeds"] == "2 x 1"
    assert table.loc["(e)", "published UA"] == ""  # the paper has no EMO-DB
    command = "ser-kd reproduce --corpus emodb --data-root DATA --noise-dir NOISE --folds 1,2 --seeds 0"
    assert table.loc["(e)", "command"] == command


def test_comparisons_give_points_and_refuse_to_decide_without_evidence(runs):
    table = made(runs, "mlkd_comparisons").set_index("rows")
    assert table.loc["(e) - (c)", "UA, points"] == 25.0
    assert table.loc["(b) - (a)", "UA, points"] == 0.0
    assert table.loc["(b) - (a)", "p"] == "" and set(table["reading"]) == {"undecided"}  # no scatter to test against


def test_the_caption_says_which_snr_was_not_trained_on(tmp_path):
    caption = tables.about([record(tmp_path, "c", 0)])
    assert "; noisy: 0 to 20 dB, the range of training (-5 dB was not trained on); " in caption
    noise = {"train_snr_db": [-5.0, 20.0], "test_snr_db": SNR}
    run = record(tmp_path, "c", 0, settings={"noise": noise})
    assert "; noisy: -5 to 20 dB, the range of training; " in tables.about([run])
    assert [name for name in made([run], "mlkd") if name.endswith(" dB")] == ["UA -5 dB"]
    assert tables_of([run])["mlkd_conditions_UA"].caption.startswith("UA in percent; scores: one fold each; emodb, ")


def test_a_comparison_is_the_mean_over_folds_with_both_intervals(tmp_path):
    some = [
        record(tmp_path, row, wrong, fold, sizes={"train": 24, "test": 8})
        for fold, row, wrong in ((1, "c", 6), (1, "e", 3), (2, "c", 6), (2, "e", 0))
    ]
    table = made(some, "mlkd_comparisons")
    # 25 and 50 points: mean 37.5; variance (1/2 + 8/24) 312.5, error 16.137; t of one degree of freedom 12.706
    assert table["UA, points"].tolist() == [37.5]
    assert table["95 % interval"].tolist() == ["[-167.5, 242.5]"]
    low, high = map(float, table["95 % over utterances"][0].strip("[]").split(", "))
    assert 12.5 <= low < 37.5 < high <= 50
    assert (
        table["p"].tolist() == [pytest.approx(2 * t(1).sf(37.5 / 16.137), abs=1e-4)]
        and 200 < table["smallest detectable"][0] < 300
    )
    assert table["folds x seeds"].tolist() == ["2 x 1"] and table["reading"].tolist() == ["undecided"]


def test_one_fold_decides_nothing(tmp_path):
    some = [record(tmp_path, row, wrong, 1, seed) for row, wrong in (("c", 6), ("e", 0)) for seed in (0, 1, 2)]
    table = made(some, "mlkd_comparisons")
    assert table["UA, points"].tolist() == [50.0] and table["reading"].tolist() == ["undecided: one fold"]
    assert table[OVER_FOLDS].values.tolist() == [[""] * 4]
    assert table["95 % over utterances"].tolist() == ["[50.0, 100.0]"]  # 100 where no sad utterance is drawn
    (line,) = tables_of(some)["mlkd_comparisons"].lines
    assert (line["UA, points"].low, line["UA, points"].high) == (50.0, 100.0)  # for the figures
    assert made(some, "mlkd_claims")["verdict"].tolist() == ["undecided"]


def test_every_caption_says_how_folds_are_taken_together(tmp_path):
    runs = [record(tmp_path, row, wrong, fold) for fold in (1, 2) for row, wrong in (("c", 6), ("e", 3), ("b", 5))]
    runs += [record(tmp_path, "e", 2, fold, seed=1) for fold in (1, 2)]
    runs += [record(tmp_path, "gamma-10", 0, fold, kind="component", baseline="e") for fold in (1, 2)]
    captions = {name: table.caption for name, table in tables_of(runs).items() if table.lines}
    differences = {name for name, caption in captions.items() if "mean over folds" in caption}
    assert differences == {"mlkd_comparisons", "mlkd_ablations", "mlkd_gains", "mlkd_claims", "mlkd_null"}
    pooled = {name for name, caption in captions.items() if "scores: pooled over folds" in caption}
    assert captions.keys() - differences < pooled and pooled & differences == {"mlkd_ablations", "mlkd_gains"}


def test_an_interaction_is_what_one_snr_gives_more_than_another(tmp_path):
    """Misses of (c) and (e) by SNR, of six angry utterances, each worth 8.3 points of UA."""
    missed = {"c": ({10.0: 6, 0.0: 4}, {10.0: 6, 0.0: 3}), "e": ({10.0: 2, 0.0: 5}, {10.0: 2, 0.0: 3})}
    runs = [
        record(tmp_path, row, each, fold) for row, by_fold in missed.items() for fold, each in enumerate(by_fold, 1)
    ]
    use = Comparison("e", "c", claim="more in little noise", snrs=(10.0, 0.0))
    family = Family(runs, [Comparison("e", "c", claim="it helps"), use])
    helps, more = family.verdicts("toy_claims").lines
    # fold 1: 4 less -1 utterances, fold 2: 4 less 0, hence 5 and 4 twelfths; over both SNRs 1.5 and 2
    assert (helps["points for it"].value, more["points for it"].value) == (14.6, 37.5)
    assert more["tested by"].text == "(e) - (c) at 10 dB less at 0 dB, noisy"
    np.testing.assert_allclose(
        [line["p (Holm)"].value for line in (helps, more)], holm([helps["p"].value, more["p"].value]), atol=1e-3
    )
    cell = more["points for it"]
    first, second = cell.selection.predictions(cell.runs)
    assert set(first["snr_db"]) == set(second["snr_db"]) == {10.0, 0.0}
    (line,) = family.comparisons("toy_comparisons", [use]).lines
    assert line["rows"].text == "(e) - (c) at 10 dB less at 0 dB" and line["p (Holm)"] == more["p (Holm)"]
    assert family.comparisons("toy_comparisons", [replace(use, snrs=(20.0, 0.0))]).lines == []  # 20 dB is not tested


def test_mlkd_claims_what_levels_give_in_little_noise_and_take_in_much(tmp_path):
    noise = {"train_snr_db": [0.0, 20.0], "test_snr_db": SNR}
    runs = [record(tmp_path, row, 3, fold, settings={"noise": noise}) for row in "ce" for fold in (1, 2)]
    for run in runs:  # what was tested at 10 dB, as if at 20
        write_run(run.folder, run.stored.replace({"snr_db": {10.0: 20.0}}), run.info)
    runs = [Run(run.folder) for run in runs]
    assert made(runs, "mlkd_claims")["tested by"].tolist() == [
        "(e) - (c), noisy",
        "(e) - (c) at 20 dB less at 0 dB, noisy",
    ]
    assert made(runs, "mlkd_comparisons")["rows"].tolist() == ["(e) - (c)", "(e) - (c) at 20 dB less at 0 dB"]


@pytest.mark.parametrize(
    "seeds, verdict, reading", [(3, "supported", "first is better"), (2, "undecided", "undecided")]
)
def test_a_verdict_takes_three_seeds(tmp_path, seeds, verdict, reading):
    wrong = {"b": (1, 0, 0, 1), "a": (6, 6, 5, 6)}
    runs = [
        record(tmp_path, row, miss, fold, seed)
        for row, misses in wrong.items()
        for fold, miss in enumerate(misses, 1)
        for seed in range(seeds)
    ]
    claim = made(runs, "mlkd_claims").iloc[0]
    assert [claim["verdict"], claim["reason"]] == [verdict, "fewer than 3 seeds" if seeds < 3 else ""]
    compared = tables_of(runs)["mlkd_comparisons"]
    assert compared.frame["reading"].tolist() == [reading] and f"fewest seeds in a fold: {seeds}, " in compared.caption


def test_captions_say_what_is_tested_and_which_bootstrap(tmp_path):
    runs = [record(tmp_path, row, wrong, fold) for row, wrong in (("c", 6), ("e", 3)) for fold in (1, 2)]
    caption = tables_of(runs)["mlkd_claims"].caption
    assert caption.startswith("differences: mean over folds") and "90 % intervals; emodb, profile" in caption
    assert "bootstrap over speakers and utterances" in caption
    runs = [record(tmp_path / "x", row, wrong, corpus="demo") for row, wrong in (("c", 6), ("e", 3))]
    assert "bootstrap over utterances" in tables_of(runs)["mlkd_claims"].caption


def test_conditions_are_by_noise_and_snr(runs):
    table = made(runs, "mlkd_conditions_UA")
    assert list(table.columns) == ["noise", "SNR", "(a)", "(b)", "(c)", "(e)"]
    assert table["noise"].tolist() == ["clean", *["buzz"] * 3, *["hum"] * 3] and table["SNR"].tolist()[1:] == SNR * 2
    assert table.iloc[1].tolist()[2:] == [
        50.0,
        50.0,
        50.0,
        75.0,
    ]  # none or three of six angry ones, both sad ones


def test_a_row_with_few_runs_is_left_out_and_named_and_does_not_cost_the_others_their_folds(tmp_path):
    runs = [record(tmp_path, row, wrong, fold) for row, wrong in (("a", 5), ("c", 6), ("e", 3)) for fold in (1, 2, 3)]
    few, enough = record(tmp_path, "b", 4), record(tmp_path, "d", 2, fold=2)
    table = tables_of([*runs, few])["mlkd"]
    assert [line["row"].text for line in table.lines] == ["(a)", "(c)", "(e)"]
    assert table.lines[0]["folds x seeds"].text == "3 x 1"
    assert table.caption.startswith("left out, with too few folds and seeds: (b); scores")
    both = tables_of([*runs, enough, record(tmp_path, "d", 2, fold=3)])["mlkd"]  # two thirds of the most
    assert [line["row"].text for line in both.lines] == ["(a)", "(c)", "(d)", "(e)"]
    assert both.lines[0]["folds x seeds"].text == "2 x 1" and "left out" not in both.caption


def test_only_folds_that_all_main_rows_have_are_compared(runs, tmp_path):
    part = record(tmp_path, "gamma-10", 0, fold=7, kind="component", baseline="e")
    more = [*runs, record(tmp_path, "e", 0, fold=3), part]
    assert tables_of(more)["mlkd"].runs == sorted(runs, key=lambda run: run.id)
    assert tables_of([run for run in runs if run.info["variant"] == "b"])["mlkd_comparisons"].lines == []


def test_the_last_epoch_is_compared_where_both_epochs_were_tested(tmp_path):
    run = record(tmp_path, "e", {10.0: 3, 0.0: 6}, last=0)
    table = made([run], "mlkd_selection").set_index("speech")
    assert table.loc["noisy", "chosen on dev"].startswith("75.0 [")  # at 10 dB; 62.5 with 0 dB
    assert table.loc["noisy", "last epoch"].startswith("100.0 [")
    assert table.loc["clean", "chosen on dev"] == "100.0 [100.0, 100.0]"


def test_ablations_are_compared_with_e_on_the_folds_both_have(tmp_path):
    main = [record(tmp_path, "e", wrong, fold) for fold, wrong in ((1, 3), (2, 6), (3, 0), (4, 0))]
    about = {"kind": "component", "baseline": "e"}
    parts = [
        record(tmp_path, row, wrong, fold, **about)
        for row, wrong, folds in (("l1-only", 0, (1, 2)), ("gamma-10", 6, (1, 9)), ("untuned", 6, (3, 4)))
        for fold in folds
    ]
    others = [
        record(tmp_path, "depth-1", 0, 9, **about),  # shares no fold with (e)
        record(tmp_path, "c-long", 6),
        record(tmp_path, "e-long", 0, kind="situation", baseline="c-long"),
    ]
    table = made([*main, *parts, *others], "mlkd_ablations").set_index("row")
    assert list(table.index) == ["gamma-10", "l1-only", "untuned"]  # as notebook 03 lists them, others last
    table = table.loc[["l1-only", "gamma-10", "untuned"]]
    assert table["question"].tolist() == ["why l1-only?", "why gamma-10?", "why untuned?"]
    assert table["UA clean"].tolist() == [100.0, 100.0, 100.0]
    assert table["UA noisy"].tolist() == [100.0, 50.0, 50.0]
    assert table["difference, points"].tolist() == [37.5, -25.0, -50.0]
    assert table["folds x seeds"].tolist() == ["2 x 1", "1 x 1", "2 x 1"]
    assert table["reading"].tolist() == ["undecided", "undecided: one fold", "undecided"] and set(table["against"]) == {
        "(e)"
    }
    assert table["p"].map(bool).tolist() == [True, False, False]  # one fold, and two that agree
    assert table.loc["l1-only", "p (Holm)"] == pytest.approx(3 * table.loc["l1-only", "p"], abs=2e-4)


def unseen(folder, row, heard, held_out, **about):
    """A row trained without one noise type: errs on `heard` utterances in the other, on those given in this one."""
    about |= {"kind": "situation", "baseline": "c-unseen", "situation": "a new noise"} if row == "e-unseen" else {}
    return [
        record(folder, row, {"buzz": heard, "hum": heard, kind: wrong}, fold, held_out_noise=kind, **about)
        for fold, (kind, wrong) in held_out.items()
    ]


def test_the_gain_is_by_situation_with_the_main_pair_first(tmp_path):
    few = {"kind": "situation", "baseline": "c-few-labels", "situation": "a quarter of the labels"}
    runs = [
        *(record(tmp_path, "e-few-labels", 4, fold, **few) for fold in (1, 2)),
        *(record(tmp_path, "c-few-labels", wrong, fold) for fold, wrong in ((2, 2), (3, 6))),
        *unseen(tmp_path, "c-unseen", 0, {1: ("hum", 6), 2: ("buzz", 6)}),
        *unseen(tmp_path, "e-unseen", 6, {1: ("hum", 3), 2: ("buzz", 0)}),
        *(record(tmp_path, row, wrong, fold) for row, wrong in (("c", 6), ("e", 3)) for fold in (1, 2, 3)),
        record(tmp_path, "gamma-10", 0, kind="component", baseline="e"),
    ]
    table = made(runs, "mlkd_gains")
    assert table["situation"].tolist() == [
        "as in the main table",
        "a quarter of the labels",
        "a new noise, scored in it",
    ]
    assert table["control UA noisy"].tolist() == [50.0, 83.3, 50.0]
    assert table["distilled UA noisy"].tolist() == [75.0, 66.7, 87.5]
    assert table["gain, points"].tolist() == [25.0, -16.7, 37.5]
    assert table["folds x seeds"].tolist() == ["3 x 1", "1 x 1", "2 x 1"]
    assert table["reading"].tolist() == ["undecided", "undecided: one fold", "undecided"]


def test_unseen_noise_is_judged_on_the_type_and_the_folds_that_both_have(tmp_path):
    runs = [
        record(tmp_path, "c", {"hum": 2, "buzz": 6}, 1),
        record(tmp_path, "c", {"hum": 6, "buzz": 4}, 2),
        record(tmp_path, "c", 0, 3),
        record(tmp_path, "e", {"hum": 1, "buzz": 6}, 1),
        record(tmp_path, "e", {"hum": 6, "buzz": 1}, 2),
        record(tmp_path, "e", 0, 3),
        *unseen(tmp_path, "c-unseen", 0, {1: ("hum", 4), 2: ("buzz", 5), 3: ("hum", 6)}),
        *unseen(tmp_path, "e-unseen", 0, {1: ("hum", 3), 2: ("buzz", 1)}),
    ]
    table = made(runs, "mlkd_unseen_noise")
    # of eighteen angry utterances c misses 2 + 4 + 0 and 4 + 5 + 6 unheard, of twelve e 1 + 1 and 3 + 1
    assert table["row"].tolist() == ["(c)", "(e)"] and table["model"].tolist() == [TITLES["c"], TITLES["e"]]
    assert table["UA heard"].tolist() == [83.3, 91.7]
    assert table["UA not heard"].tolist() == [58.3, 83.3]
    assert table["cost, points"].tolist() == [25.0, 8.3]
    assert table["folds x seeds"].tolist() == ["3 x 1", "2 x 1"]


@pytest.mark.parametrize("name", ["mlkd_ablations", "mlkd_gains", "mlkd_unseen_noise", "dkd", "mckd"])
def test_a_table_without_its_records_has_no_lines_and_is_not_written(runs, tmp_path, name):
    only = [run for run in runs if run.info["variant"] in "ab"]
    lonely = record(tmp_path, "e-few-labels", 0, kind="situation", baseline="c-few-labels", situation="few")
    table = tables_of([*only, lonely])[name]
    assert table.lines == [] and table.frame.empty
    write.write(table, tmp_path)
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize("kept", ["a", ""])
def test_without_a_record_of_mlkd_no_table_has_lines(runs, kept):
    """As where only the teacher is recorded, which other methods need, or nothing at all."""
    found = tables_of([run for run in runs if run.info["variant"] == kept])
    assert len(found) == 25 and not any(table.lines for table in found.values())


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """Writes lines of published values where the tables look for them."""
    monkeypatch.setattr(tables, "EVIDENCE", tmp_path / "results")
    (tmp_path / "results" / "reference").mkdir(parents=True)

    def write(*lines):
        header = "paper,table,method,dataset,condition,snr_db,metric,value,source"
        text = "\n".join([header, "MLKD,2,MLKD,IEMOCAP,five types,,WA,,abstract only", *lines])
        (tmp_path / "results" / "reference" / "mlkd_results.csv").write_text(text + "\n")

    write()
    return write


def test_published_values_stand_on_their_own_corpus_only(reference, iemocap, runs):
    reference(
        "MLKD,2,MLKD,IEMOCAP,five types,,UA,61.25,Table 2",
        "MLKD,2,MLKD,IEMOCAP,clean,,UA,70,Table 2",
        "MLKD,2,MLKD,IEMOCAP,hum,0,UA,55,Table 2",
        "MLKD,2,c,IEMOCAP,five types,,UA,50,Table 2",
    )
    table = made(iemocap, "mlkd")["published UA"]
    assert table.tolist() == ["", "61.2 (Table 2)"]  # neither one condition nor another row
    assert set(made(runs, "mlkd")["published UA"]) == {""}
    reference("MLKD,2,MLKD,IEMOCAP,five types,,UA,,abstract only")
    assert made(iemocap, "mlkd")["published UA"].tolist() == ["", "not available"]


@pytest.fixture
def iemocap(tmp_path):
    return [record(tmp_path / "iemocap", row, wrong, corpus="iemocap") for row, wrong in (("c", 6), ("e", 3))]


def test_published_values_stand_beside_ours_once_they_are_filled_in(iemocap, runs, reference):
    reference(
        "MLKD,2,MLKD,IEMOCAP,hum,0,UA,70.25,Table 2",
        "MLKD,2,MLKD,IEMOCAP,clean,,WA,98.5,Table 2",
        "MLKD,2,c,IEMOCAP,buzz,10,WA,20,Table 2",
        "MLKD,2,another,IEMOCAP,hum,0,UA,11,Table 2",
        "MLKD,2,MLKD,EMODB,hum,10,UA,1,none",
    )
    table = made(iemocap, "mlkd_paper")
    values = ["WA", "UA", "published WA", "published UA", "WA - published", "UA - published"]
    assert list(table) == ["noise", "SNR", "row", "method", *values]
    assert table["noise"].tolist() == [kind for kind, _ in BEST for _ in "ce"] and set(table["row"]) == {"(c)", "(e)"}
    table = table.set_index(["noise", "SNR", "row"])
    assert table.loc[("hum", 0.0, "(e)"), "method"] == TITLES["e"]
    # (e) has UA 75 and WA 62.5 in noise, (c) 50 and 25
    assert table.loc[("hum", 0.0, "(e)"), "published UA"] == 70.25
    filled = table["UA - published"].dropna()
    assert filled.to_dict() == {("hum", 0.0, "(e)"): pytest.approx(4.8)}
    filled = table["WA - published"].dropna().reset_index()[["noise", "row", "WA - published"]]
    assert filled.values.tolist() == [["clean", "(e)", 1.5], ["buzz", "(c)", 5.0]]
    assert made(runs, "mlkd_paper")["published UA"].dropna().tolist() == [1.0]  # EMO-DB's own


def test_two_values_for_one_place_are_refused(iemocap, reference):
    reference(*["MLKD,2,MLKD,IEMOCAP,hum,0,UA,70,Table 2", "MLKD,3,MLKD,IEMOCAP,hum,0,UA,71,Table 3"])
    with pytest.raises(ValueError, match="two values for one place"):
        made(iemocap, "mlkd_paper")


def test_published_columns_wait_empty_in_every_format(iemocap, reference, tmp_path):
    write.write(tables_of(iemocap)["mlkd_paper"], tmp_path)
    stored = pd.read_csv(tmp_path / "tables" / "mlkd_paper.csv")
    assert stored[["published WA", "published UA", "WA - published", "UA - published"]].isna().all(axis=None)
    markdown = (tmp_path / "tables" / "mlkd_paper.md").read_text()
    assert "published WA" in markdown and "UA - published" in markdown and "nan" not in markdown.lower()
    latex = (tmp_path / "tables" / "mlkd_paper.tex").read_text()
    assert r"hum & -5 & (c) & student, noisy & 25 & 50 &  &  &  &  \\" in latex and "published WA" in latex


def test_a_table_is_written_in_three_formats(tmp_path):
    runs = [record(tmp_path, name, 3, f, overrides="teacher.epochs=2") for f in (1, 2) for name in "abce"]
    table = replace(tables_of(runs)["mlkd"], words="50 % of it_all; ")
    write.write(table, tmp_path)
    assert (tmp_path / "tables" / "mlkd.csv").read_text() == table.frame.to_csv(index=False)
    assert pd.read_csv(tmp_path / "tables" / "mlkd.csv")["row"].tolist() == ["(a)", "(b)", "(c)", "(e)"]
    markdown = (tmp_path / "tables" / "mlkd.md").read_text()
    assert markdown.startswith("50 % of it_all; scores: pooled over folds; emodb, profile tiny, recorded speech; ")
    assert "\n\n| row " in markdown
    assert not any(f"| {column}" in markdown for column in ("protocol", "published", "folds", "command"))
    below = " ".join(markdown.rpartition("|\n\n")[2].split())
    command = 'ser-kd reproduce --corpus emodb --data-root DATA --noise-dir NOISE --folds 1,2 --seeds 0 --set "'
    assert below == f'*Protocol.* {write.card(runs)} Command: `{command}teacher.epochs=2"`'
    assert max(map(len, markdown.rpartition("|\n\n")[2].splitlines())) <= 120
    latex = (tmp_path / "tables" / "mlkd.tex").read_text()
    assert r"\caption{50 \% of it\_all; " in latex and r"\texttt{ser-kd reproduce -{}-corpus" in latex
    assert latex.index(r"\end{tabular}") < latex.index(r"\par\footnotesize \emph{Protocol.} Test: one group")
    assert r"-{}-set \"teacher.epochs=2" in latex.replace('"', '\\"') and latex.endswith("\\end{table}\n")


def test_the_card_says_who_is_tested_on_whom_and_gives_ranges(runs):
    assert write.card(runs) == (
        "Test: one group; test speakers never heard in training. Utterances: train 91-92, test 8; folds x seeds: 2 x 1."
        " Selection: best on dev. Tested: all. Noise folder: buzz, hum; in the test other halves; speech level: active."
        " Commits 111111111111, 222222222222."
    )


def test_the_card_and_the_caption_mark_what_is_optimistic_and_name_both_protocols(tmp_path):
    protocol = record(tmp_path / "x", "cnn-alone", 0).info["protocol"]
    heard = protocol | {"speaker_independent": False, "optimistic": True, "protocol": "random"}
    official = record(tmp_path / "official", "a", 0, protocol=heard)
    assert "optimistic: test speakers heard in training" in write.card([official])
    assert tables.about([official]).endswith("protocol: random, optimistic, test speakers heard in training")
    likely = heard | {"name": "P1: optimistic: random fifths, by test score", "mark": "P1"}
    one = record(tmp_path, "cnn-alone", 0, protocol=likely)
    honest = protocol | {"name": "P2: by dev", "mark": "P2"}
    two = [record(tmp_path, "cnn-alone", 0, fold, protocol=honest) for fold in (1, 2, 3, 4)]
    text = write.card([*two, one])
    assert text.startswith(
        "P1: optimistic: random fifths, by test score; test speakers heard in training. Utterances: train 91, test 8; "
        "folds x seeds: 1 x 1. P2: by dev; test: one group; test speakers never heard in training. Utterances: train"
    )
    assert "folds x seeds: 4 x 1. Tested" in text and text.endswith("4 commits.") and "Selection" not in text
    marks = "protocol: P1 random, optimistic, test speakers heard in training; P2 speaker-groups"
    assert tables.about([*two, one]).endswith(marks)


PART = {"kind": "component", "baseline": "e"}


@pytest.fixture
def family(tmp_path):
    """Three folds with three seeds of (a), (b), (c), (e), and of components that are the better and the worse."""
    wrong = {"a": (6, 5, 6), "b": (0, 0, 1), "c": (3, 3, 2), "e": (3, 2, 2)}
    parts = {"noisy-teacher": (6, 6, 5), "two-stage": (0, 0, 4), "gamma-10": (3, 3, 3), "l1-only": (2, 3, 3)}
    return [
        record(tmp_path, row, miss, fold, seed, **(PART if row in parts else {}))
        for row, misses in (wrong | parts).items()
        for fold, miss in enumerate(misses, 1)
        for seed in (0, 1, 2)
    ]


def test_claims_have_their_test_and_their_sign(family, tmp_path):
    other = record(tmp_path, "cnn-dkd", 6, 1, method="dkdfmh", kind="main", baseline="cnn-alone")  # does not disturb
    table = made([*family, other], "mlkd_claims").set_index("tested by")
    assert "(e) - (d), noisy" not in table.index  # (d) is not recorded
    assert table.loc["(b) - (a), noisy", ["points for it", "verdict"]].tolist() == [44.4, "supported"]
    part = table.loc["(e) - (noisy-teacher), noisy"]
    assert part["points for it"] == 27.8 and part["95 % interval"].startswith("[")
    turned = made(family, "mlkd_ablations").set_index("row").loc["noisy-teacher"]
    assert turned["difference, points"] == -27.8 and turned["against"] == "(e)"
    stages = table.loc["(e) - (two-stage), noisy"]
    low, high = map(float, stages["95 % interval"].strip("[]").split(", "))
    assert stages["verdict"] == "undecided" and low < stages["points for it"] < 0 < high


def test_a_claim_has_one_p_wherever_it_stands(family):
    few = [
        record(family[0].folder.parents[1], row, miss, fold, kind=kind, baseline="c-few-labels", situation="few labels")
        for row, kind, misses in (("e-few-labels", "situation", (1, 1, 2)), ("c-few-labels", "control", (4, 3, 3)))
        for fold, miss in enumerate(misses, 1)
    ]
    runs = [*family, *few]
    p = ["p", "p (Holm)"]
    claimed = made(runs, "mlkd_claims")
    near = claimed["claim"].str.contains("less than 2 points")
    claimed_p = claimed[~near].set_index("tested by")[p]
    compared = made(runs, "mlkd_comparisons").set_index("rows")[p]
    gains = made(runs, "mlkd_gains").set_index("situation")[p]
    parts = made(runs, "mlkd_ablations").set_index("row")[p]
    for found, claim in (
        (compared.loc["(e) - (c)"], "(e) - (c), noisy"), (gains.loc["as in the main table"], "(e) - (c), noisy"),
        (gains.loc["few labels"], "(e-few-labels) - (c-few-labels), noisy"),
        (compared.loc["(b) - (a)"], "(b) - (a), noisy"), (compared.loc["(e) - (b)"], "(e) - (b), noisy"),
        (parts.loc["noisy-teacher"], "(e) - (noisy-teacher), noisy"),
        (parts.loc["two-stage"], "(e) - (two-stage), noisy"),
    ):  # fmt: skip
        assert found.tolist() == claimed_p.loc[claim].tolist()
    np.testing.assert_allclose(claimed["p (Holm)"], holm(claimed["p"]), atol=1e-3)  # one family, the near claim in it
    # what no claim is about is corrected for its table and the claims
    for others in (parts.loc[["gamma-10", "l1-only"]], compared.loc[["(c) - (b)"]]):
        expected = holm([*claimed["p"], *others["p"]])[len(claimed) :]
        np.testing.assert_allclose(others["p (Holm)"], expected, atol=1e-3)


def test_near_is_another_claim_than_better(tmp_path):
    runs = []
    for fold, seed in ((fold, seed) for fold in (1, 2, 3, 4, 5) for seed in (0, 1, 2)):
        more = fold in (2, 4) and seed == 0  # one utterance of eight, at one of two SNRs
        runs += [record(tmp_path, "e", 3, fold, seed), record(tmp_path, "b", {10.0: 3 + more, 0.0: 3}, fold, seed)]
    table = made(runs, "mlkd_claims")
    assert table["tested by"].tolist() == ["(e) - (b), noisy"] * 2 and table["points for it"].tolist() == [0.6, 0.6]
    assert table["verdict"].tolist() == ["negligible", "supported"] and table["p"][1] < 0.01 < 0.1 < table["p"][0]
    assert made(runs, "mlkd_comparisons")["p (Holm)"].tolist() == [table["p (Holm)"][0]]


def test_a_test_that_cannot_be_made_counts_in_the_family(tmp_path):
    wrong = {"a": (6, 5, 6), "b": (0, 0, 1), "c": (3, 3, 3), "e": (3, 3, 3)}  # (e) and (c) agree in each fold
    runs = [record(tmp_path, row, miss, fold) for row, misses in wrong.items() for fold, miss in enumerate(misses, 1)]
    table = made(runs, "mlkd_claims").set_index("tested by")
    same = table.loc["(e) - (c), noisy"]
    assert same["points for it"] == 0 and set(same[OVER_FOLDS]) == {""} and same["verdict"] == "undecided"
    p = [value or 1 for value in table["p"]]
    assert table["p (Holm)"].iloc[0] == pytest.approx(holm(p)[0], abs=1e-3)


def dev(score, **about):
    return {"history": [{"epoch": 1, "dev_UA": 0.9}, {"epoch": 2, "dev_UA": score}], "best_epoch": 2, **about}


@pytest.mark.parametrize(
    "teacher, noisy, verdict, premise",
    [
        (0.7, [], "supported", "(a) - (toy) on dev: +10.0 points"),
        (0.5, [], "premise not met", "(a) - (toy) on dev: -10.0 points"),
        (0.5, ["hum"], "supported", "(a) - (toy) on dev: not on the same kind of speech"),
        (None, [], "supported", "(a) - (toy) on dev: not on the same kind of speech"),
    ],
)
def test_a_claim_about_distillation_presumes_the_better_teacher(tmp_path, teacher, noisy, verdict, premise):
    """The dev score is that of the chosen epoch, and counts where both have clean or both noisy dev speech."""
    each = [(fold, seed) for fold in (1, 2, 3) for seed in (0, 1, 2)]
    runs = [record(tmp_path, "a", 0, *pair, **dev(teacher, train_noise=[])) for pair in each if teacher]
    runs += [record(tmp_path, "toy", 6 - (fold > 2), fold, seed, **dev(0.6, train_noise=noisy)) for fold, seed in each]
    runs += [record(tmp_path, "toy-kd", fold > 1, fold, seed) for fold, seed in each]
    family = Family(runs, [Comparison("toy-kd", "toy", claim="it helps", gate=("a", "toy"))])
    (line,) = family.verdicts("toy_claims").lines
    assert (line["verdict"].text, line["premise"].text) == (verdict, premise)


def test_a_premise_rests_on_the_runs_that_both_have(tmp_path):
    runs = [record(tmp_path, "a", 0, 1, 0, **dev(0.7, train_noise=[]))]
    runs += [record(tmp_path, "toy", 6, 1, seed, **dev(score, train_noise=[])) for seed, score in ((0, 0.6), (1, 0.9))]
    assert Family(runs, ()).premise(("a", "toy")) == (True, "(a) - (toy) on dev: +10.0 points")
    none = [runs[0], *(run for run in runs if run.info["seed"] == 1)]
    assert not Family(none, ()).premise(("a", "toy"))[0]


def test_the_null_sets_seeds_of_one_variant_against_each_other(tmp_path):
    wrong = {0: (3, 3, 3), 1: (0, 1, 0), 2: (3, 2, 3)}
    runs = [record(tmp_path, "e", miss, f, seed) for seed, misses in wrong.items() for f, miss in enumerate(misses, 1)]
    runs += [record(tmp_path, "c", 3, fold) for fold in (1, 2, 3)]
    table = made(runs, "mlkd_null")
    assert table["row"].tolist() == ["(e)"] and table["pairs of seeds"].tolist() == [3]
    # seeds 0 and 1 are 3, 2 and 3 twelfths apart, 1 and 2 are 3, 1 and 3, 0 and 2 are 0, 1 and 0
    assert table["largest difference, points"].tolist() == [22.2] and table["its p"].iloc[0] < 0.05
    assert table["pairs with p < 0.05"].tolist() == [1] and table["folds x seeds"].tolist() == ["3 x 3"]
    split = runs[0].info["protocol"] | {"protocol": "random", "optimistic": True}
    other = [record(tmp_path / "r", "e", 3, fold, seed, protocol=split) for fold in (1, 2) for seed in (0, 1)]
    assert made(other, "mlkd_null").empty


# --- what every table is made of


def test_each_cell_of_each_table_is_what_its_selection_finds_in_its_records(tmp_path):
    """Scores and differences, made again from nothing but the cell."""
    runs = [record(tmp_path, v, {10.0: 3, 0.0: n}, f, last=n // 2) for f in (1, 2) for n, v in enumerate("abcde", 1)]
    runs += [record(tmp_path, "two-stage", 1, 1, kind="component", baseline="e")]
    runs += [*unseen(tmp_path, "c-unseen", 0, {1: ("hum", 4)}), *unseen(tmp_path, "e-unseen", 0, {1: ("hum", 3)})]
    checked = 0
    for table in tables_of(runs).values():
        for line in table.lines:
            for column, cell in line.items():
                if cell.selection and not isinstance(cell.value, str) and column not in OVER_FOLDS:
                    found = cell.selection.predictions(cell.runs)
                    if cell.selection.difference:  # the mean over folds
                        by_fold = [[score(part) for _, part in some.groupby("fold")] for some in found]
                        expected = 100 * np.subtract(*by_fold).mean()
                    else:
                        expected = 100 * score(*found, cell.selection.metric)
                    assert cell.value == pytest.approx(expected, abs=0.0501), (table.name, line, column)
                    checked += 1
    assert checked > 150


def test_a_line_has_a_key_and_its_cells_by_column():
    lines = [
        {"noise": word("hum"), "SNR": word(snr), "row": word("(e)"), "UA": Cell(50.0, "50.0 [40.0, 60.0]", 40.0, 60.0)}
        for snr in (10.0, 0.0, None)
    ]
    table = Table("t", ("noise", "SNR", "row"), lambda: [*lines, {"noise": word("fan"), "SNR": word(1), "row": BLANK}])
    assert [table.key(line) for line in table.lines] == ["hum, 10, (e)", "hum, 0, (e)", "hum, (e)", "fan, 1"]
    assert table.frame.to_csv(index=False).splitlines()[:2] == ["noise,SNR,row,UA", 'hum,10.0,(e),"50.0 [40.0, 60.0]"']
    assert table.frame["SNR"].isna().tolist() == [False, False, True, False] and table.frame["UA"].iloc[3] == ""


def test_another_method_declares_its_tables_in_a_few_lines(tmp_path):
    runs = [
        record(tmp_path, f"toy-{name}", wrong, fold, method="toy", kind="main")
        for fold in (1, 2)
        for name, wrong in (("alone", 6), ("kd", fold))
    ]
    columns = {"row": tables.label, "model": tables.told("title"), "UA clean": Score("clean"), "UA noisy": Score()}
    family = Family(runs, [Comparison("toy-kd", "toy-alone", "noisy", "distillation helps in noise")])
    main = tables.scores("toy", lambda: tables.aligned(runs, ("toy-alone", "toy-kd")), columns)
    for table in (main, family.comparisons("toy_comparisons", family.claims), family.verdicts("toy_claims")):
        write.write(table, tmp_path)
    assert main.frame["row"].tolist() == ["toy-alone", "toy-kd"] and main.lines[1]["UA noisy"].value == 87.5
    assert pd.read_csv(tmp_path / "tables" / "toy_claims.csv")["points for it"].tolist() == [37.5]


def test_a_variant_that_the_code_trains_no_longer_stands_after_the_known_ones(tmp_path):
    part = {"kind": "component", "baseline": "e"}
    names = ("e", "an-old-part", "two-stage", "l1-only")
    runs = [record(tmp_path, name, 3, **part if name != "e" else {}) for name in names]
    assert made(runs, "mlkd_ablations")["row"].tolist() == ["l1-only", "two-stage", "an-old-part"]
    assert Selection(("an-old-part",)).predictions(runs)[0]["variant"].unique().tolist() == ["an-old-part"]


def test_the_card_names_classes_that_a_fold_does_not_test(tmp_path):
    whole = record(tmp_path / "whole", "a", 0)
    assert "Missing" not in write.card([whole])
    classes = {"test": {"angry": 5, "sad": 0}}
    lacking = record(tmp_path / "lacking", "a", 0, fold=2, protocol=whole.info["protocol"] | {"classes": classes})
    assert "Missing from the test: no sad in fold 2, whose scores leave it out" in write.card([lacking])
