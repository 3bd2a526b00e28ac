"""Settings: every value has a source, every setting is read, and no wrong name passes."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from ser_kd_utils import settings
from ser_kd_utils.methods import METHODS, settings_of
from ser_kd_utils.methods.dkdfmh.settings import DKDFMHSettings
from ser_kd_utils.methods.mckd.settings import MCKDSettings
from ser_kd_utils.methods.mlkd.settings import MLKDSettings
from ser_kd_utils.methods.teacher.settings import TeacherSettings
from ser_kd_utils.settings import ASSUMED, CODE, PROFILES, PUBLISHED, NoiseSettings, parse_overrides

PACKAGE = Path(settings.__file__).parent
CLASSES = [NoiseSettings, *(method.settings_class for method in METHODS.values())]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


@each_class
@pytest.mark.parametrize("profile", PROFILES)
def test_every_setting_has_a_value_a_source_and_a_note(cls, profile):
    table = cls.of(profile).table()
    assert list(table.index) == [field.name for field in dataclasses.fields(cls)]
    assert set(table["source"]) <= {PUBLISHED, CODE, ASSUMED}
    assert table["note"].str.len().gt(0).all()
    assert list(table["value"]) == [field.metadata["values"][profile] for field in dataclasses.fields(cls)]


@each_class
def test_all_profiles_give_the_same_type(cls):
    every = [dataclasses.asdict(cls.of(profile)) for profile in PROFILES]
    tiny, *others = ({name: type(value) for name, value in values.items()} for values in every)
    assert all(other == tiny for other in others)


@each_class
def test_every_setting_is_read_somewhere(cls):
    """In its room or in what all share: as an attribute of settings (`self.noise_settings.speech_level`, or of `use` or
    `own`, as they are called there), or by its name (`getattr(use, name) for name in ("tokens", ...)`)."""
    read, folders = set(), [PACKAGE / "training", PACKAGE / "methods"]
    named = re.compile(r"(?:^|\.)(?:use|own|\w*settings)(?:_of\(\w+\)|\['\w+'\])?$")
    for path in (path for folder in folders for path in folder.rglob("*.py") if path.name != "settings.py"):
        if path.parent.parent == PACKAGE / "methods" and path.parent.name not in (cls.group, "mlkd"):
            continue  # MLKD's variants need the teacher's depth
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and named.search(ast.unparse(node.value)):
                read.add(node.attr)
            elif isinstance(node, ast.Tuple):
                read |= {each.value for each in node.elts if isinstance(each, ast.Constant)}
    assert {field.name for field in dataclasses.fields(cls)} - read == set()


def test_profiles_differ_and_overrides_win():
    assert TeacherSettings.of("tiny").checkpoint == ""
    assert TeacherSettings.of("paper").checkpoint == "facebook/wav2vec2-base"
    changed = MLKDSettings.of("paper", gamma=10.0)
    assert (changed.gamma, changed.teacher_layers) == (10.0, (4, 8, 12))


@pytest.mark.parametrize("profile", PROFILES)
def test_the_student_is_shallower_and_learns_from_the_teachers_last_layer(profile):
    teacher, mlkd = TeacherSettings.of(profile), MLKDSettings.of(profile)
    assert mlkd.student_layers < teacher.num_hidden_layers == mlkd.teacher_layers[-1]
    assert list(mlkd.teacher_layers) == sorted(set(mlkd.teacher_layers))


def test_the_tiny_network_is_as_deep_as_its_settings_say():
    tiny = TeacherSettings.of("tiny")
    assert tiny.network["num_hidden_layers"] == tiny.num_hidden_layers
    with pytest.raises(ValueError, match=r"^teacher.network has 3 layers, not 4 .num_hidden_layers"):
        TeacherSettings.of("tiny", num_hidden_layers=4)


def test_an_unknown_setting_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"^Unknown setting mlkd.gama: choose among student_layers, .*gamma"):
        MLKDSettings.of("tiny", gama=2.0)


def test_an_unknown_profile_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="'huge'.*tiny, whisper, paper"):
        TeacherSettings.of("huge")


def words(cls, name: str) -> tuple:
    """Of a setting that is one of a few words, those."""
    hint = get_type_hints(cls, include_extras=True)[name]
    return get_args(hint) if get_origin(hint) is Literal else ()


CHOICES = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls) if words(cls, field.name)]


def test_what_is_one_of_a_few_words_has_choices():
    assert {name for _, name in CHOICES} >= {"stages", "initial", "target_network", "targets", "attention", "meta"}


@pytest.mark.parametrize(("cls", "name"), CHOICES, ids=[name for _, name in CHOICES])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_word_that_is_none_of_the_choices_is_one_error_that_names_them(cls, name, profile):
    choices = words(cls, name)
    assert [getattr(cls.of(profile, **{name: choice}), name) for choice in choices] == list(choices)
    for wrong in (choices[0] + " ", "", 1):
        with pytest.raises(ValueError) as caught:
            cls.of(profile, **{name: wrong})
        message = str(caught.value)
        assert message.startswith(f"{cls.group}.{name}={wrong!r}: ") and all(repr(word) in message for word in choices)


@each_class
@pytest.mark.parametrize("wrong", ["two", None, (1, "a"), b"2", 2j])
def test_a_value_of_another_type_is_refused_whatever_the_setting(cls, wrong):
    """Nothing is converted: a text is no number, and a list of words no list of numbers."""
    for field in dataclasses.fields(cls):
        if not (isinstance(wrong, str) and type(getattr(cls.of("tiny"), field.name)) is str):
            with pytest.raises(ValueError, match=f"{cls.group}.{field.name}"):
                cls.of("tiny", **{field.name: wrong})


@pytest.mark.parametrize(
    ("cls", "name", "wrong"),
    [
        (MLKDSettings, "epochs", 0),
        (MLKDSettings, "epochs", 2.5),
        (MLKDSettings, "lr", 0.0),
        (MLKDSettings, "lr", float("nan")),
        (MLKDSettings, "gamma", -1.0),
        (MLKDSettings, "label_fraction", 1.5),
        (MLKDSettings, "betas", (0.9,)),
        (TeacherSettings, "warmup_ratio", 2.0),
        (DKDFMHSettings, "channels", (8, 32, 48)),
        (DKDFMHSettings, "train_overlap", 1.0),
        (DKDFMHSettings, "lr_drops", (0.6, 2)),
        (MCKDSettings, "batch_size", 5),
        (MCKDSettings, "hidden_size", 63),
        (NoiseSettings, "train_snr_db", (20.0, 0.0)),
        (NoiseSettings, "test_snr_db", ()),
        (NoiseSettings, "test_snr_db", (0.0, 0.0)),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(cls, name, wrong):
    with pytest.raises(ValueError, match=rf"^{cls.group}\.{name}"):
        cls.of("tiny", **{name: wrong})


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["teacher_layers", "depths", "student_layers"])
def test_layers_beyond_the_teachers_are_refused(profile, name):
    layers = TeacherSettings.of(profile).num_hidden_layers
    values = {"teacher_layers": (1, layers + 1), "depths": (layers + 1, 1), "student_layers": layers + 1}
    with pytest.raises(ValueError) as caught:
        settings_of(profile, f"mlkd.{name}={values[name]!r}")
    message = str(caught.value)
    assert message.startswith(f"mlkd.{name}={values[name]!r}: ") and f"layers 1 to {layers}" in message
    with pytest.raises(ValueError, match=f"^mlkd.{name}"):
        settings_of(profile, f"mlkd.{name}={0 if name == 'student_layers' else (0,)!r}")
    settings_of(profile, f"mlkd.{name}={layers if name == 'student_layers' else (1, layers)!r}")


def test_overrides_reach_the_group_they_name_and_no_other():
    names = ("mlkd.epochs=3", "teacher.epochs=4", "noise.train_types=('hum',)", "dkdfmh.epochs=5", "mckd.epochs=6")
    assert settings_of("tiny", ", ".join(names)) == {
        "noise": NoiseSettings.of("tiny", train_types=("hum",)),
        "teacher": TeacherSettings.of("tiny", epochs=4),
        "mlkd": MLKDSettings.of("tiny", epochs=3),
        "dkdfmh": DKDFMHSettings.of("tiny", epochs=5),
        "mckd": MCKDSettings.of("tiny", epochs=6),
    }
    assert list(settings_of("tiny")) == ["noise", *METHODS]
    with pytest.raises(ValueError, match="No settings mlkt: begin with one of noise, teacher, mlkd, dkdfmh, mckd"):
        settings_of("tiny", "mlkt.epochs=2")


def test_the_table_shows_a_change_as_assumed():
    table = MLKDSettings.of("paper", l1_weight=0.0).table()
    assert (table.value["l1_weight"], table.source["l1_weight"], table.source["cosine_weight"]) == (0.0, ASSUMED, CODE)
    assert NoiseSettings.of("tiny", train_types=("hum",)).table().value["train_types"] == ("hum",)


@pytest.mark.parametrize("profile", PROFILES)
def test_one_snr_of_the_test_lies_below_those_of_the_training(profile):
    noise = NoiseSettings.of(profile)
    low, high = noise.train_snr_db
    assert [snr for snr in noise.test_snr_db if not low <= snr <= high] == [noise.test_snr_db[-1]]
    assert list(noise.test_snr_db) == sorted(noise.test_snr_db, reverse=True)


def test_settings_do_not_change_once_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MLKDSettings.of("tiny").gamma = 2.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("mlkd.epochs=2", {"mlkd": {"epochs": 2}}),
        (
            "mlkd.lr=1e-3, mlkd.teacher_layers=(6,), teacher.checkpoint='a/b', mlkd.gamma=-1,",
            {"mlkd": {"lr": 1e-3, "teacher_layers": (6,), "gamma": -1}, "teacher": {"checkpoint": "a/b"}},
        ),
        ("dkdfmh.features=log filter bank, mlkd.stages = two-stage", {  # what is no literal is text
            "dkdfmh": {"features": "log filter bank"}, "mlkd": {"stages": "two-stage"}}),
        ("mlkd.epochs=two", {"mlkd": {"epochs": "two"}}),  # which its type refuses
    ],
)  # fmt: skip
def test_overrides_are_names_of_a_method_with_their_values(text, wanted):
    assert parse_overrides(text) == wanted


@pytest.mark.parametrize("text", ["epochs", "2", "epochs=2", "epochs 2", "mlkd.epochs=", "**{'epochs': 2}", "mlkd.=2"])
def test_any_other_text_is_an_error_that_shows_how_to_write_it(text):
    with pytest.raises(ValueError, match="is not a list of settings such as mlkd.epochs=2"):
        parse_overrides(text)


def test_a_setting_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="mlkd.epochs is given twice"):
        parse_overrides("mlkd.epochs=2, teacher.epochs=2, mlkd.epochs=3")
