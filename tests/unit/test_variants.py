"""Variants: each changes what it says and nothing else, no two are the same, and what cannot be trained is left out."""

from __future__ import annotations

import dataclasses

import pytest

from ser_kd_utils.methods import METHODS, Variant, settings_of, variants_of
from ser_kd_utils.methods.base import choose
from ser_kd_utils.methods.dkdfmh.variants import P1_VARIANTS, grids
from ser_kd_utils.methods.mlkd.settings import MLKDSettings
from ser_kd_utils.settings import PROFILES

each_profile = pytest.mark.parametrize("profile", PROFILES)

# What a component changes in (e), written down a second time; what depends on the profile follows.
PARTS = {
    "l1-only": {"cosine_weight": 0.0},
    "cosine-only": {"l1_weight": 0.0},
    "logits": {"logit_weight": 1.0},
    "two-stage": {"stages": "two-stage"},
    "gamma-0.1": {"gamma": 0.1},
    "gamma-10": {"gamma": 10.0},
    "cnn-gradient-0": {"cnn_gradient": 0.0},
    "cnn-gradient-1": {"cnn_gradient": 1.0},
    "clean-and-noisy": {"clean_fraction": 0.5},
    "piece-targets": {"targets": "piece"},
    "noisy-teacher": {"targets": "noisy piece"},
    "untuned-teacher": {"target_network": "untuned"},
    "unlabelled": {"unlabelled_speech": True},
}
OF_PROFILE = {
    "tiny": {
        "levels-ends": {"teacher_layers": (1, 3)},
        "depth-2": {"student_layers": 2},
        "depth-3": {"student_layers": 3},
    },
    "whisper": {
        "levels-ends": {"teacher_layers": (2, 4)},
        "levels-every": {"teacher_layers": (1, 2, 3, 4)},
        "depth-2": {"student_layers": 2},
        "depth-4": {"student_layers": 4},
    },
    "paper": {
        "levels-ends": {"teacher_layers": (4, 12)},
        "levels-every": {"teacher_layers": tuple(range(1, 13))},
        "depth-1": {"student_layers": 1},
        "depth-4": {"student_layers": 4},
    },
}
# What the variants of a situation change in (c) and (e).
SITUATED = {
    "random-start": {"initial": "random"},
    "few-labels": {"label_fraction": 0.25},
    "few-for-both": {"label_fraction": 0.25, "teacher": "a-few-labels"},
    "long": {"epochs": {"tiny": 16, "whisper": 2 * MLKDSettings.of("whisper").epochs, "paper": 60}},
    "unseen": {"held_out_noise": True},
    "log-mel": {"initial": "log-mel"},
}
# What those of the CNN change in cnn-dkd; those for a number of a list follow from the settings.
CNN = {
    "cnn-teacher": {"role": "teacher", "teacher": "", "num_attention_heads": 8},
    "cnn-alone": {"teacher": ""},
    "cnn-kd": {"loss": "kd"},
    "cnn-dkd": {},
    "cnn-FAMILY": {"teacher": "a"},
}
CNN_PARTS = {
    "cnn-tckd": {"beta": 0.0},
    "cnn-nckd": {"alpha": 0.0},
    "cnn-kd-same-temperature": {"loss": "kd", "kd_temperature": 1.0},
    "cnn-attention-text": {"attention": "text"},
    "cnn-mfcc": {"features": "mfcc"},
}
CNN_LISTS = {"alpha": "alphas", "beta": "betas", "temperature": "temperatures", "num_attention_heads": "head_counts"}
CNN_NOISE = {"cnn-alone-noisy": {"noisy": True, "teacher": ""}, "cnn-dkd-noisy": {"noisy": True}}
CNN_BASELINES = {  # the parts against cnn-dkd
    "cnn-teacher": "",
    "cnn-alone": "",
    "cnn-kd": "cnn-alone",
    "cnn-dkd": "cnn-alone",
    "cnn-FAMILY": "cnn-alone",
    "cnn-alone-noisy": "cnn-alone",
    "cnn-dkd-noisy": "cnn-alone-noisy",
}


def variants(profile: str, method: str, overrides: str = "") -> dict[str, Variant]:
    return METHODS[method].variants(settings_of(profile, overrides))


def of_kind(profile: str, method: str, *kinds: str, overrides: str = "") -> dict[str, Variant]:
    return {name: each for name, each in variants(profile, method, overrides).items() if each.kind in kinds}


def cnn_parts_of(profile: str) -> dict[str, dict]:
    use = settings_of(profile)["dkdfmh"]
    values = [(name, value) for name, others in CNN_LISTS.items() for value in getattr(use, others)]
    names = {"num_attention_heads": "heads"}
    classical = {
        f"cnn-kd-weight-{weight:g}-temperature-{t:g}": {"alpha": weight, "kd_temperature": t}
        for weight in (0.5, 1, 2)
        for t in (1, 2, 4)
        if (weight, t) not in ((1, 1), (1, 4))  # cnn-kd-same-temperature, cnn-kd
    }
    usual = {"alpha": 1, "kd_temperature": 4}
    classical = {
        name: {"loss": "kd"} | {key: value for key, value in changed.items() if value != usual[key]}
        for name, changed in classical.items()
    }
    return (
        CNN_PARTS
        | classical
        | {
            f"cnn-{names.get(name, name)}-{value:g}": {name: value}
            for name, value in values
            if value != getattr(use, name)
        }
    )


def conditions(variant: Variant, profile: str) -> dict:
    """All that decides what the variant learns."""
    own = {name: getattr(variant, name) for name in ("noisy", "role", "teacher", "held_out_noise")}
    changed = dataclasses.asdict(settings_of(profile)[variant.method].replace(**variant.overrides))
    assert not own.keys() & changed.keys()
    return changed | own


def of_family(rows, profile: str):
    """Rows by name, with the family of the profile's encoder in it."""
    family = settings_of(profile)["teacher"].model_type
    return {name.replace("FAMILY", family): row for name, row in rows.items()}


def difference(one: Variant, other: Variant, profile: str) -> dict:
    ours, theirs = conditions(one, profile), conditions(other, profile)
    assert ours.keys() == theirs.keys()
    return {name: value for name, value in ours.items() if value != theirs[name]}


# --- one change each


def test_the_main_variants_are_mlkds_claims():
    """(e) > (d) > (c), and (e) near (b)."""
    own = of_kind("paper", "mlkd", "main")
    assert list(own) == ["b", "c", "d", "e"] and list(variants("paper", "teacher")) == ["a", "a0", "a-few-labels"]
    without = {"teacher_layers": ()}
    found = {name: difference(each, own["e"], "paper") for name, each in own.items()}
    assert found == {
        "b": without | {"role": "teacher"}, "c": without, "d": {"teacher_layers": (12,)}, "e": {}
    }  # fmt: skip
    assert {each.teacher for each in own.values()} == {"a"} and all(each.noisy for each in own.values())
    a = variants("paper", "teacher")["a"]
    assert (a.role, a.noisy, a.teacher, dict(a.overrides)) == ("teacher", False, "", {})


@each_profile
def test_a_component_changes_in_mlkd_what_it_says_and_nothing_else(profile):
    parts, e = of_kind(profile, "mlkd", "component"), variants(profile, "mlkd")["e"]
    assert {name: difference(each, e, profile) for name, each in parts.items()} == PARTS | OF_PROFILE[profile]
    assert {each.baseline for each in parts.values()} == {"e"}


def situated(profile: str) -> list[str]:
    """The teachers of the other profiles hear log-mel themselves."""
    return [name for name in SITUATED if name != "log-mel" or profile == "paper"]


@pytest.mark.parametrize(("profile", "situation"), [(each, name) for each in PROFILES for name in situated(each)])
def test_the_variants_of_a_situation_change_it_alone_and_differ_in_layers_alone(profile, situation):
    own, wanted = variants(profile, "mlkd"), SITUATED[situation]
    wanted = {name: value[profile] if isinstance(value, dict) else value for name, value in wanted.items()}
    control, distilled = own[f"c-{situation}"], own[f"e-{situation}"]
    assert difference(control, own["c"], profile) == difference(distilled, own["e"], profile) == wanted
    layers = settings_of(profile)["mlkd"].teacher_layers
    assert difference(distilled, control, profile) == {"teacher_layers": layers}
    assert (control.kind, control.baseline) == ("control", "")
    assert (distilled.kind, distilled.baseline) == ("situation", f"c-{situation}")
    assert control.situation == distilled.situation != ""


@each_profile
def test_a_variant_of_the_cnn_changes_in_decoupled_distillation_what_it_says_and_nothing_else(profile):
    own = variants(profile, "dkdfmh")
    dkd, parts = own["cnn-dkd"], cnn_parts_of(profile)
    shared = {"noisy": False, "role": "student", "teacher": "cnn-teacher", "held_out_noise": False}
    assert conditions(dkd, profile) == dataclasses.asdict(settings_of(profile)["dkdfmh"]) | shared
    large = {"cnn-teacher": CNN["cnn-teacher"] | {"head_dim": settings_of(profile)["dkdfmh"].teacher_head_dim}}
    for kind, wanted in (("main", of_family(CNN, profile) | large), ("component", parts), ("noise", CNN_NOISE)):
        some = of_kind(profile, "dkdfmh", kind)
        assert {name: difference(each, dkd, profile) for name, each in some.items()} == wanted
    assert {name: each.baseline for name, each in own.items()} == (
        dict.fromkeys(parts, "cnn-dkd") | of_family(CNN_BASELINES, profile)
    )


@each_profile
def test_decoupled_and_classical_distillation_are_tuned_in_grids_of_one_size(profile):
    own = variants(profile, "dkdfmh")
    decoupled, classical = grids(own)
    assert len(decoupled) == len(classical) == 9 and not {*decoupled} & {*classical}
    found = [[conditions(own[name], profile) for name in grid] for grid in (decoupled, classical)]
    assert {each["loss"] for each in found[0]} == {"dkd"} and {each["loss"] for each in found[1]} == {"kd"}
    three = [{each[name] for each in found[0]} for name in ("alpha", "beta", "temperature")]
    assert three == [{0.5, 1, 2}, {0.25, 0.5, 1, 2, 8}, {1, 2, 4}]
    pairs = sorted((each["alpha"], each["kd_temperature"]) for each in found[1])
    assert pairs == [(weight, t) for weight in (0.5, 1, 2) for t in (1, 2, 4)]
    assert {"cnn-dkd", "cnn-kd"} <= {*decoupled, *classical} and not {"cnn-tckd", "cnn-nckd"} & {*decoupled}


def test_the_variants_of_the_first_protocol_need_no_other():
    own = [variants("tiny", "dkdfmh")[name] for name in P1_VARIANTS]
    assert {each.teacher for each in own} | {each.baseline for each in own} <= {"", *P1_VARIANTS}


@each_profile
def test_there_are_no_other_variants(profile):
    pairs = {f"{letter}-{name}" for name in situated(profile) for letter in "ce"}
    assert variants(profile, "mlkd").keys() == {*"bcde", *PARTS, *OF_PROFILE[profile], *pairs, "c-pseudo-labels"}
    assert variants(profile, "dkdfmh").keys() == {*of_family(CNN, profile), *cnn_parts_of(profile), *CNN_NOISE}


# --- names


@each_profile
def test_variants_have_a_name_of_their_own_that_is_a_file_name(profile):
    every = variants_of(settings_of(profile))
    assert len(every) == sum(len(variants(profile, method)) for method in METHODS)
    assert len({each.title for each in every.values()}) == len(every)
    for name, each in every.items():
        assert name == each.name and name in variants(profile, each.method)
        assert each.label == (f"({name})" if name in ("a0", *"abcde") else name)
        assert all(letter.isalnum() or letter in ".-" for letter in name)
        assert each.question[-1] in "?." and each.baseline in {"", *every} and each.teacher in {"", *every}


@each_profile
def test_each_variant_is_trained_by_one_notebook_of_its_method(profile):
    for method in METHODS.values():
        kinds = [kind for notebook in method.notebooks for kind in notebook.kinds]
        own = variants(profile, method.name).values()
        # a control of the teacher is trained by the notebook whose student needs it
        assert sorted(kinds) == sorted({each.kind for each in own if each.name != "a-few-labels"})
        names = {each.name for each in variants(profile, method.name).values()}
        assert {*method.demo_ablations} <= names
        assert {*method.styles} <= {name for other in PROFILES for name in variants(other, method.name)}


# --- what is left out


@pytest.mark.parametrize(
    ("profile", "overrides", "absent", "present"),
    [
        ("tiny", "", {"levels-every", "gamma-1", "depth-1"}, {"levels-ends", "depth-2"}),
        ("paper", "", {"gamma-1", "depth-2"}, {"levels-every", "levels-ends", "depth-1"}),
        ("tiny", "mlkd.gamma=10.0", {"gamma-10"}, {"gamma-0.1", "gamma-1"}),
        ("tiny", "mlkd.teacher_layers=(1, 3)", {"levels-ends"}, {"levels-every"}),
        ("tiny", "mlkd.teacher_layers=(2,)", {"levels-ends"}, {"levels-every"}),
        ("tiny", "mlkd.student_layers=2", {"depth-2"}, {"depth-1", "depth-3"}),
        ("tiny", "mlkd.stages='two-stage', mlkd.cosine_weight=0.0", {"two-stage", "l1-only"}, {"logits"}),
        ("tiny", "mlkd.targets='piece', mlkd.cnn_gradient=1.0", {"piece-targets", "cnn-gradient-1"}, {"noisy-teacher"}),
        ("tiny", "mlkd.gammas=(0.5,), mlkd.depths=()", {"gamma-0.1", "depth-2", "depth-3"}, {"gamma-0.5"}),
        ("paper", "mlkd.targets='piece'", {"c-log-mel", "e-log-mel"}, {"e-unseen"}),
        ("tiny", "mlkd.unlabelled_speech=True", {"unlabelled"}, {"logits"}),
        ("tiny", "dkdfmh.temperature=4.0", {"cnn-kd-same-temperature", "cnn-temperature-4"}, {"cnn-temperature-1"}),
        ("tiny", "dkdfmh.betas=(0.0,)", {"cnn-beta-0"}, {"cnn-tckd"}),
        ("tiny", "dkdfmh.alpha=0.5, dkdfmh.beta=8", {"cnn-alpha-0.5", "cnn-beta-8"}, {"cnn-alpha-2", "cnn-tckd"}),
        ("tiny", "dkdfmh.alpha=0.0", {"cnn-nckd"}, {"cnn-tckd", "cnn-alpha-0.5"}),
        ("tiny", "dkdfmh.beta=0.0", {"cnn-tckd"}, {"cnn-nckd"}),
        ("tiny", "dkdfmh.num_attention_heads=8", {"cnn-heads-8"}, {"cnn-heads-1"}),
        ("tiny", "dkdfmh.attention='text', dkdfmh.features='mfcc'", {"cnn-attention-text", "cnn-mfcc"}, {"cnn-tckd"}),
        ("tiny", "dkdfmh.head_counts=(3,), dkdfmh.betas=()", {"cnn-heads-1", "cnn-beta-8"}, {"cnn-heads-3"}),
        ("tiny", "mlkd.temperature=4.0", set(), {"cnn-temperature-4"}),
        ("tiny", "mckd.supcon_weight=1.0", {"mc-mu-1"}, {"mc-mu-0.5", "mc-mu-0.1"}),
    ],
)
def test_what_the_settings_make_equal_to_the_method_is_left_out(profile, overrides, absent, present):
    names = variants_of(settings_of(profile, overrides)).keys()
    assert present <= names and not absent & names


@pytest.mark.parametrize(("profile", "more"), [("tiny", ""), ("whisper", ""), ("paper", ", mlkd.targets='piece'")])
def test_a_student_on_log_mel_needs_a_teacher_that_hears_waveforms_and_is_asked_beforehand(profile, more):
    assert "e" in variants("paper", "mlkd", "mlkd.initial='log-mel'")
    with pytest.raises(ValueError, match="mlkd.initial=log-mel needs a teacher that hears waveforms"):
        variants(profile, "mlkd", f"mlkd.initial='log-mel'{more}")


def test_one_layer_is_asked_for_once():
    own = METHODS["mlkd"].variants(settings_of("tiny", "mlkd.teacher_layers=(2,)"))
    assert own["d"].overrides == {"teacher_layers": (2,)} and "levels-ends" not in own


# --- the choice


def ablations(method: str) -> dict[str, Variant]:
    return {name: each for name, each in variants("tiny", method).items() if each.kind != "main"}


def test_all_are_chosen_unless_some_are_asked_for():
    own = ablations("mlkd")
    assert choose("", own, synthetic=False) == list(own)
    assert choose(" two-stage ,l1-only,", own, synthetic=False) == ["l1-only", "two-stage"]  # in reading order
    assert choose("two-stage", own, synthetic=True) == ["two-stage"]


def test_a_distilled_variant_comes_with_its_control():
    own = ablations("mlkd")
    assert choose("e-unseen, logits", own, synthetic=False) == ["logits", "c-unseen", "e-unseen"]
    assert choose("c-unseen", own, synthetic=False) == ["c-unseen"]
    asked = "cnn-dkd-noisy,cnn-mfcc"  # cnn-dkd belongs to another notebook
    assert choose(asked, ablations("dkdfmh"), synthetic=False) == ["cnn-mfcc", "cnn-alone-noisy", "cnn-dkd-noisy"]


def test_the_demo_trains_one_of_the_ablations_there_are():
    found = {m.name: choose("", ablations(m.name), synthetic=True, demo=m.demo_ablations) for m in METHODS.values()}
    assert found == {"teacher": [], "mlkd": ["two-stage"], "dkdfmh": ["cnn-nckd"], "mckd": ["mc-time-tokens"]}
    assert choose("", {}, synthetic=True, demo=("two-stage",)) == []


def test_an_unknown_name_is_one_error_that_names_those_there_are():
    own = ablations("mlkd")
    own.pop("unlabelled")
    with pytest.raises(ValueError) as caught:
        choose("logits, gama, unlabelled", own, synthetic=False)
    message = str(caught.value)
    assert message.startswith("No ablation gama, unlabelled: choose among ") and "--speech-dir" in message
    assert all(name in message for name in own)
