"""The claims of all methods on all corpora, from made-up records of several results folders."""

from __future__ import annotations

import pytest
from test_tables import record

from ser_kd_utils.metrics import effects, holm
from ser_kd_utils.report.differences import Comparison, Family, ledger
from ser_kd_utils.report.tables import Table
from ser_kd_utils.report.write import claims

CLAIMS = (
    Comparison("b", "a", claim="noise helps"),
    Comparison("e", "c", claim="levels help"),
    Comparison("e", "c", claim="not worse by 2 points", margin=2),
    Comparison("d", "c", claim="one level helps"),
)
MISSED = {
    "emodb": {"a": (6, 5, 6, 5), "b": (0, 0, 1, 1), "c": (3, 3, 2, 3), "e": (3, 2, 2, 2)},
    "ravdess": {"a": (6, 6, 5, 6), "b": (1, 0, 1, 1), "c": (4, 3, 3, 2), "e": (3, 3, 2, 2), "d": (1, 2, 1, 1)},
}
"""Of six, by fold; the same for each seed."""


def recorded(place, corpus, profile="tiny", missed=None, seeds=3, **about):
    about |= {"audio_fingerprint": corpus, "noise_fingerprint": "the same"}
    return [
        record(place / f"{corpus}-{profile}", row, wrong, fold, seed, corpus=corpus, profile=profile, **about)
        for row, by_fold in (missed or MISSED[corpus]).items()
        for fold, wrong in enumerate(by_fold, 1)
        for seed in range(seeds)
    ]


def tables_of(runs) -> dict[str, Table]:
    return {"main": Table("main", ("row",), lambda: []), "toy_claims": Family(runs, CLAIMS).verdicts("toy_claims")}


@pytest.fixture
def both(tmp_path):
    return {corpus: tables_of(recorded(tmp_path, corpus)) for corpus in MISSED}


def test_each_claim_has_a_line_for_each_corpus_and_one_where_two_have_it(both):
    table = ledger({"tiny": both}).frame
    assert list(table) == [
        "table", "claim", "tested by", "corpus-profile", "points for it", "95 % interval", "p (Holm)",
        "folds x seeds", "verdict", "reason",
    ]  # fmt: skip
    assert [*zip(table["claim"], table["corpus-profile"], strict=True)] == [
        *((use.claim, place) for use in CLAIMS[:3] for place in ("emodb-tiny", "ravdess-tiny", "pooled, tiny")),
        *(("one level helps", place) for place in ("emodb-tiny", "ravdess-tiny")),
    ]
    table = table.set_index(["claim", "corpus-profile"])
    absent = table.loc[("one level helps", "emodb-tiny")]
    assert absent["verdict"] == "not run" and absent["tested by"] == "(d) - (c), noisy" and absent["p (Holm)"] == ""
    for corpus, tables in both.items():  # as in the method's own table
        own = tables["toy_claims"].frame.set_index("claim")
        for claim, line in own.iterrows():
            here = table.loc[(claim, f"{corpus}-tiny")]
            assert here.drop("table").tolist() == line[here.drop("table").index].tolist()


def test_pooled_lines_are_a_fixed_effect_with_a_family_of_their_own(both):
    lines = {
        line["claim"].text: line for line in ledger({"tiny": both}).lines if "pooled" in line["corpus-profile"].text
    }
    tested = [{each.use.claim: each for each in tables["toy_claims"].family.claimed} for tables in both.values()]
    found = {claim: effects.pooled([each[claim].effect for each in tested]) for claim in lines}
    p = [found["noise helps"].p, found["levels help"].p, found["not worse by 2 points"].p_above(-0.02)]
    for (claim, effect), corrected in zip(found.items(), holm(p), strict=True):
        line = lines[claim]
        assert line["points for it"].value == round(100 * effect.difference, 1)
        assert line["95 % interval"].text == str([round(100 * end, 1) for end in effect.ends()[:2].tolist()])
        assert line["p (Holm)"].value == pytest.approx(corrected, abs=1e-4)
        assert line["folds x seeds"].text == "4 x 3, 4 x 3" and line["points for it"].selection is None
        assert {run.info["corpus"] for run in line["points for it"].runs} == {"emodb", "ravdess"}
    assert lines["noise helps"]["verdict"].text == "supported" and lines["noise helps"]["reason"].text == ""
    assert lines["levels help"]["verdict"].text == "undecided"


def test_profiles_are_never_mixed_and_one_corpus_is_not_pooled(tmp_path):
    tiny, other = (tables_of(recorded(tmp_path, *where)) for where in (("emodb",), ("ravdess", "whisper")))
    table = ledger({"tiny": {"emodb": tiny}, "whisper": {"ravdess": other}}).frame
    assert table["corpus-profile"].tolist() == ["emodb-tiny"] * 4 + ["ravdess-whisper"] * 4


def test_a_method_that_did_not_run_on_a_corpus_has_no_lines_there(both):
    alone = both | {"emodb": tables_of([])}
    assert {*ledger({"tiny": alone}).frame["corpus-profile"]} == {"ravdess-tiny"}
    assert not ledger({"tiny": {"emodb": tables_of([])}}).lines


def test_what_keeps_a_pooled_claim_from_a_verdict(tmp_path):
    few = {
        "emodb": tables_of(recorded(tmp_path, "emodb", seeds=2)),
        "ravdess": tables_of(recorded(tmp_path, "ravdess")),
    }
    table = ledger({"tiny": few}).frame.set_index(["claim", "corpus-profile"])
    line = table.loc[("noise helps", "pooled, tiny")]
    assert [line["verdict"], line["reason"], line["folds x seeds"]] == [
        "undecided",
        "fewer than 3 seeds",
        "4 x 2, 4 x 3",
    ]
    assert table.loc[("noise helps", "ravdess-tiny"), "verdict"] == "supported"


def test_a_premise_that_fails_on_one_corpus_fails_pooled(tmp_path):
    def tables(corpus, teacher):
        dev = {"train_noise": [], "history": [{"epoch": 1, "dev_UA": 0.6}]}
        runs = recorded(tmp_path / str(teacher), corpus, missed={"c": (5, 6, 5, 6), "e": (0, 1, 1, 0)}, **dev)
        dev["history"] = [{"epoch": 1, "dev_UA": teacher}]
        runs += recorded(tmp_path / str(teacher), corpus, missed={"a": (0, 0, 0, 0)}, **dev)
        gated = [Comparison("e", "c", claim="levels help", gate=("a", "c"))]
        return {"toy_claims": Family(runs, gated).verdicts("toy_claims")}

    better = ledger({"tiny": {corpus: tables(corpus, 0.7) for corpus in MISSED}}).frame
    assert better["verdict"].tolist() == ["supported"] * 3
    worse = ledger({"tiny": {"emodb": tables("emodb", 0.7), "ravdess": tables("ravdess", 0.5)}}).frame
    assert worse["verdict"].tolist() == ["supported", "premise not met", "premise not met"]


def test_what_cannot_be_tested_is_not_pooled(both, tmp_path):
    one_fold = tables_of(
        recorded(tmp_path / "x", "ravdess", missed={row: misses[:1] for row, misses in MISSED["ravdess"].items()})
    )
    places = ledger({"tiny": both | {"ravdess": one_fold}}).frame["corpus-profile"]
    assert not places.str.contains("pooled").any()


def test_the_page_is_made_from_all_evidence_of_recorded_speech(tmp_path):
    from ser_kd_utils.reproduce.publish import write_published

    synthetic = record(tmp_path / "x", "a", 0).info["protocol"] | {"synthetic": True}
    for corpus, about in (("emodb", {}), ("ravdess", {}), ("demo", {"protocol": synthetic})):
        runs = recorded(tmp_path / "local", corpus, missed=MISSED.get(corpus, MISSED["emodb"]), **about)
        folder = tmp_path / "results" / f"{corpus}-tiny"
        folder.mkdir(parents=True)
        write_published(runs, folder)
    text = claims(tmp_path / "results", tables_of)
    assert text.startswith("differences of UA: mean over folds, ") and "pooled, tiny" in text and "demo" not in text
    lines = [line for line in text.splitlines() if line.startswith("| toy_claims")]
    assert len(lines) == 11 and lines[0].count("|") == 11
    assert claims(tmp_path / "nothing", tables_of) == ""


def test_settings_other_than_the_profiles_are_a_profile_of_their_own(tmp_path):
    from ser_kd_utils.reproduce.publish import write_published

    for corpus, name in (("emodb", "emodb-tiny"), ("ravdess", "ravdess-tiny+mlkd.epochs=2")):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        write_published(recorded(tmp_path / "local", corpus), folder)
    text = claims(tmp_path / "results", tables_of)
    assert "ravdess-tiny+mlkd.epochs=2" in text and "pooled, " not in text
