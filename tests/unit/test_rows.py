"""Rows: each changes what it says and nothing else, no two are the same, and what cannot be trained is not offered."""

from __future__ import annotations

import dataclasses

import pytest

from ser_kd_utils.rows import (
    CNN_ROWS,
    DEMO_ABLATIONS,
    P1_ROWS,
    PRETRAINING_EPOCHS,
    ROWS,
    SITUATIONS,
    TOKEN_ROWS,
    Row,
    ablations,
    choose,
    cnn_ablations,
    levels_of,
    token_ablations,
)
from ser_kd_utils.settings import PROFILES, settings_of

each_profile = pytest.mark.parametrize("profile", PROFILES)

# What a part row changes in (e), written down a second time; what depends on the profile follows.
PARTS = {
    "l1-only": {"cosine_weight": 0.0},
    "cosine-only": {"l1_weight": 0.0},
    "logits": {"logit_weight": 1.0},
    "two-stage": {"stages": "two-stage"},
    "gamma-0.1": {"gamma": 0.1},
    "gamma-10": {"gamma": 10.0},
    "cnn-gradient-0": {"cnn_gradient": 0.0},
    "cnn-gradient-1": {"cnn_gradient": 1.0},
    "clean-and-noisy": {"clean_share": 0.5},
    "piece-targets": {"targets": "piece"},
    "noisy-teacher": {"targets": "noisy piece"},
    "untuned-teacher": {"target_network": "untuned"},
    "unlabelled": {"unlabelled": True},
}
OF_PROFILE = {
    "tiny": {
        "levels-ends": {"levels": (1, 3)},
        "depth-2": {"student_layers": 2},
        "depth-3": {"student_layers": 3},
    },
    "paper": {
        "levels-ends": {"levels": (4, 12)},
        "levels-every": {"levels": tuple(range(1, 13))},
        "depth-1": {"student_layers": 1},
        "depth-4": {"student_layers": 4},
    },
}
# What the rows of a situation change in (c) and (e).
SITUATED = {
    "random-start": {"initial": "random"},
    "few-labels": {"label_share": 0.25},
    "long": {"epochs": {"tiny": 32, "paper": 60}},
    "unseen": {"unseen": True},
    "pretrained": {"teacher": "a-pretrained"},
}
# What the rows of the CNN change in cnn-dkd; those for a number of a list follow from the settings.
CNN = {
    "cnn-teacher": {"small": False, "teacher": ""},
    "cnn-alone": {"teacher": ""},
    "cnn-kd": {"loss": "kd"},
    "cnn-dkd": {},
    "cnn-wav2vec2": {"teacher": "a"},
    "cnn-stored": {"teacher": "stored"},
}
CNN_PARTS = {
    "cnn-tckd": {"beta": 0.0},
    "cnn-nckd": {"alpha": 0.0},
    "cnn-kd-same-temperature": {"loss": "kd", "kd_temperature": 1.0},
    "cnn-attention-text": {"attention": "text"},
    "cnn-mfcc": {"features": "mfcc"},
}
CNN_LISTS = {"alpha": "alphas", "beta": "betas", "temperature": "temperatures", "heads": "head_counts"}
CNN_NOISE = {"cnn-alone-noisy": {"noisy": True, "teacher": ""}, "cnn-dkd-noisy": {"noisy": True}}
CNN_AGAINST = {  # the parts against cnn-dkd
    "cnn-teacher": "",
    "cnn-alone": "",
    "cnn-kd": "cnn-alone",
    "cnn-dkd": "cnn-alone",
    "cnn-wav2vec2": "cnn-alone",
    "cnn-stored": "cnn-alone",
    "cnn-alone-noisy": "cnn-alone",
    "cnn-dkd-noisy": "cnn-alone-noisy",
}


def rows_of(profile: str, changes: str = "", speech: bool = True) -> dict[str, Row]:
    use = settings_of(profile, changes)
    return ablations(use.teacher, use.mlkd, speech)


def cnn_rows_of(profile: str, changes: str = "") -> dict[str, Row]:
    return cnn_ablations(settings_of(profile, changes).dkd)


def cnn_parts_of(profile: str) -> dict[str, dict]:
    use = settings_of(profile).dkd
    values = [(name, value) for name, others in CNN_LISTS.items() for value in getattr(use, others)]
    return CNN_PARTS | {f"cnn-{name}-{value:g}": {name: value} for name, value in values if value != getattr(use, name)}


def conditions(row: Row, profile: str) -> dict:
    """All that decides what the row learns."""
    use = settings_of(profile)
    own = {"levels": levels_of(row, use.teacher, use.mlkd)}
    own |= {name: getattr(row, name) for name in ("noisy", "small", "teacher", "unseen", "unlabelled")}
    settings = use.dkd if row.method.startswith("dkd") else use.mlkd if row.teacher else use.teacher
    changed = dataclasses.asdict(dataclasses.replace(settings, **row.changes))
    assert not {name for name in own if name in changed} - {"levels"}
    return changed | own


def difference(row: Row, other: Row, profile: str) -> dict:
    ours, theirs = conditions(row, profile), conditions(other, profile)
    assert ours.keys() == theirs.keys()
    return {name: value for name, value in ours.items() if value != theirs[name]}


# --- one change each


@each_profile
def test_a_part_row_changes_in_mlkd_what_it_says_and_nothing_else(profile):
    parts = {name: row for name, row in rows_of(profile).items() if row.group == "part"}
    assert {name: difference(row, ROWS["e"], profile) for name, row in parts.items()} == PARTS | OF_PROFILE[profile]
    assert {row.against for row in parts.values()} == {"e"}


@each_profile
@pytest.mark.parametrize("situation", SITUATED)
def test_the_rows_of_a_situation_change_it_alone_and_differ_in_levels_alone(profile, situation):
    rows, wanted = rows_of(profile), SITUATED[situation]
    wanted = {name: value[profile] if isinstance(value, dict) else value for name, value in wanted.items()}
    control, distilled = rows[f"c-{situation}"], rows[f"e-{situation}"]
    assert difference(control, ROWS["c"], profile) == difference(distilled, ROWS["e"], profile) == wanted
    assert difference(distilled, control, profile) == {"levels": settings_of(profile)[1].levels}
    assert (control.group, control.against) == ("", "")
    assert (distilled.group, distilled.against) == ("gain", f"c-{situation}")
    assert control.situation == distilled.situation == SITUATIONS[situation][0] != ""


@each_profile
def test_a_pretrained_teacher_differs_from_the_other_in_its_pretraining(profile):
    row = rows_of(profile)["a-pretrained"]
    assert difference(row, ROWS["a"], profile) == {"pretraining_epochs": PRETRAINING_EPOCHS}
    assert not row.teacher and not row.group and not row.against


@each_profile
def test_a_row_of_the_cnn_changes_in_decoupled_distillation_what_it_says_and_nothing_else(profile):
    rows, dkd = CNN_ROWS | cnn_rows_of(profile), CNN_ROWS["cnn-dkd"]
    own = {"levels": (), "noisy": False, "small": True, "teacher": "cnn-teacher", "unseen": False, "unlabelled": False}
    assert conditions(dkd, profile) == dataclasses.asdict(settings_of(profile).dkd) | own
    parts = cnn_parts_of(profile)
    for group, wanted in (("cnn", CNN), ("cnn-part", parts), ("cnn-noise", CNN_NOISE)):
        found = {name: difference(row, dkd, profile) for name, row in rows.items() if row.group == group}
        assert found == wanted
    assert {name: row.against for name, row in rows.items()} == dict.fromkeys(parts, "cnn-dkd") | CNN_AGAINST


def test_the_rows_of_the_first_protocol_need_no_other():
    rows = [CNN_ROWS[name] for name in P1_ROWS]
    assert {row.teacher for row in rows} | {row.against for row in rows} <= {"", *P1_ROWS}


@each_profile
def test_there_are_no_other_rows(profile):
    situated = {f"{letter}-{name}" for name in SITUATED for letter in "ce"}
    assert rows_of(profile).keys() == {*PARTS, *OF_PROFILE[profile], *situated, "a-pretrained"}
    assert SITUATIONS.keys() == SITUATED.keys()
    assert CNN_ROWS.keys() | cnn_rows_of(profile).keys() == {*CNN, *cnn_parts_of(profile), *CNN_NOISE}


# --- names


@each_profile
def test_rows_have_a_name_of_their_own_that_is_a_file_name(profile):
    kinds = {"mlkd-ablation": rows_of(profile), "dkd": CNN_ROWS, "dkd-ablation": cnn_rows_of(profile)}
    kinds |= {"mckd": TOKEN_ROWS, "mckd-ablation": token_ablations(settings_of(profile).mckd)}
    rows = ROWS | {name: row for own in kinds.values() for name, row in own.items()}
    assert len(rows) == len(ROWS) + sum(map(len, kinds.values()))
    for names in ({(row.method, row.variant) for row in rows.values()}, {row.title for row in rows.values()}):
        assert len(names) == len(rows)
    for method, own in kinds.items():
        for name, row in own.items():
            assert name == row.variant and row.method == method
            assert all(letter.isalnum() or letter in ".-" for letter in name)
            assert row.question[-1] in "?." and row.against in {"", *rows}
            assert row.teacher in {"", *rows} or (name, row.teacher) == ("cnn-stored", "stored")


# --- what is left out


@pytest.mark.parametrize(
    ("profile", "changes", "absent", "present"),
    [
        ("tiny", "", {"levels-every", "gamma-1", "depth-1"}, {"levels-ends", "depth-2"}),
        ("paper", "", {"gamma-1", "depth-2"}, {"levels-every", "levels-ends", "depth-1"}),
        ("tiny", "gamma=10.0", {"gamma-10"}, {"gamma-0.1", "gamma-1"}),
        ("tiny", "levels=(1, 3)", {"levels-ends"}, {"levels-every"}),
        ("tiny", "levels=(2,)", {"levels-ends"}, {"levels-every"}),
        ("tiny", "student_layers=2", {"depth-2"}, {"depth-1", "depth-3"}),
        ("tiny", "stages='two-stage', cosine_weight=0.0", {"two-stage", "l1-only"}, {"logits"}),
        ("tiny", "targets='piece', cnn_gradient=1.0", {"piece-targets", "cnn-gradient-1"}, {"noisy-teacher"}),
        ("tiny", "gammas=(0.5,), depths=()", {"gamma-0.1", "gamma-10", "depth-2", "depth-3"}, {"gamma-0.5"}),
        ("tiny", "dkd__alpha=0.5, dkd__beta=8", {"cnn-alpha-0.5", "cnn-beta-8"}, {"cnn-alpha-2", "cnn-tckd"}),
        ("tiny", "dkd__alpha=0.0", {"cnn-nckd"}, {"cnn-tckd", "cnn-alpha-0.5"}),
        ("tiny", "dkd__beta=0.0", {"cnn-tckd"}, {"cnn-nckd"}),
        ("tiny", "dkd__heads=8, dkd__temperature=4.0", {"cnn-heads-8", "cnn-temperature-4"}, {"cnn-heads-1"}),
        ("tiny", "dkd__attention='text', dkd__features='mfcc'", {"cnn-attention-text", "cnn-mfcc"}, {"cnn-tckd"}),
        ("tiny", "dkd__head_counts=(3,), dkd__betas=()", {"cnn-heads-1", "cnn-beta-8"}, {"cnn-heads-3"}),
        ("tiny", "temperature=4.0, betas=(8.0, 1.0)", set(), {"cnn-temperature-4", "cnn-beta-8"}),  # MLKD's own
    ],
)
def test_what_the_settings_make_equal_to_the_method_is_left_out(profile, changes, absent, present):
    names = rows_of(profile, changes).keys() | cnn_rows_of(profile, changes).keys()
    assert present <= names and not absent & names


def test_one_level_is_asked_for_once():
    teacher, settings, *_ = settings_of("tiny", "levels=(2,)")
    ends = dataclasses.replace(ROWS["e"], levels="ends")
    assert levels_of(ends, teacher, settings) == levels_of(ROWS["d"], teacher, settings) == (2,)


@each_profile
def test_rows_that_need_unlabelled_speech_are_there_with_it_only(profile):
    with_speech, without = rows_of(profile), rows_of(profile, speech=False)
    needing = {"unlabelled", "a-pretrained", "c-pretrained", "e-pretrained"}
    assert with_speech.keys() - without.keys() == needing == {n for n, row in with_speech.items() if row.needs_speech}
    assert without.keys() <= with_speech.keys() and not any(row.needs_speech for row in ROWS.values())


# --- the choice


def test_all_rows_are_chosen_unless_some_are_asked_for():
    rows = rows_of("tiny")
    assert choose("", rows, synthetic=False) == list(rows)
    assert choose(" two-stage ,l1-only,", rows, synthetic=False) == ["l1-only", "two-stage"]  # in reading order
    assert choose("two-stage", rows, synthetic=True) == ["two-stage"]


def test_a_distilled_row_comes_with_its_control():
    rows = rows_of("tiny")
    assert choose("e-unseen, logits", rows, synthetic=False) == ["logits", "c-unseen", "e-unseen"]
    assert choose("c-unseen", rows, synthetic=False) == ["c-unseen"]
    asked = "cnn-dkd-noisy,cnn-mfcc"  # cnn-dkd is a row of another notebook
    assert choose(asked, cnn_rows_of("tiny"), synthetic=False) == ["cnn-mfcc", "cnn-alone-noisy", "cnn-dkd-noisy"]


def test_the_demo_trains_one_of_the_rows_there_are():
    kinds = rows_of("tiny"), cnn_rows_of("tiny"), token_ablations(settings_of("tiny").mckd)
    found = [choose("", rows, synthetic=True) for rows in kinds]
    assert found == [[name] for name in DEMO_ABLATIONS] == [["two-stage"], ["cnn-nckd"], ["mc-time-tokens"]]
    assert choose("", rows_of("tiny", "stages='two-stage'"), synthetic=True) == []  # which is (e) itself there


def test_an_unknown_name_is_one_error_that_names_the_rows_there_are():
    rows = rows_of("tiny", speech=False)
    with pytest.raises(ValueError) as caught:
        choose("logits, gama, unlabelled", rows, synthetic=False)
    message = str(caught.value)
    assert message.startswith("No ablation gama, unlabelled: choose among ") and "--speech-dir" in message
    assert all(name in message for name in rows)
