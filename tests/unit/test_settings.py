"""Settings: every value has a source, every setting is read, and no wrong name passes."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from ser_kd_utils import settings
from ser_kd_utils.settings import (
    ASSUMED,
    CODE,
    PROFILES,
    PUBLISHED,
    MLKDSettings,
    Settings,
    TeacherSettings,
    parse_changes,
)

PACKAGE = Path(settings.__file__).parent
CLASSES = Settings.__subclasses__()
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
def test_both_profiles_give_the_same_type(cls):
    tiny, paper = (dataclasses.asdict(cls.of(profile)) for profile in PROFILES)
    assert {name: type(value) for name, value in tiny.items()} == {name: type(value) for name, value in paper.items()}


@each_class
def test_every_setting_is_read_somewhere(cls):
    """As an attribute of something called settings: `settings.gamma`, `self.noise_settings.level`."""
    read = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("settings"):
                read.add(node.attr)
    assert {field.name for field in dataclasses.fields(cls)} - read == set()


def test_profiles_differ_and_changes_win():
    assert TeacherSettings.of("tiny").checkpoint == ""
    assert TeacherSettings.of("paper").checkpoint == "facebook/wav2vec2-base"
    changed = MLKDSettings.of("paper", gamma=10.0)
    assert (changed.gamma, changed.levels) == (10.0, (4, 8, 12))


@pytest.mark.parametrize("profile", PROFILES)
def test_the_student_is_shallower_and_the_last_level_is_the_teachers_last_layer(profile):
    teacher, mlkd = TeacherSettings.of(profile), MLKDSettings.of(profile)
    assert mlkd.student_layers < teacher.layers == mlkd.levels[-1]
    assert list(mlkd.levels) == sorted(set(mlkd.levels))


def test_the_tiny_network_is_as_deep_as_its_settings_say():
    tiny = TeacherSettings.of("tiny")
    assert tiny.network["num_hidden_layers"] == tiny.layers


def test_an_unknown_setting_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"gama.*MLKD.*gamma"):
        MLKDSettings.of("tiny", gama=2.0)


def test_an_unknown_profile_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="'huge'.*tiny, paper"):
        TeacherSettings.of("huge")


def test_settings_do_not_change_once_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MLKDSettings.of("tiny").gamma = 2.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("epochs=2", {"epochs": 2}),
        (
            "lr=1e-3, levels=(6,), checkpoint='a/b', clip=-1",
            {"lr": 1e-3, "levels": (6,), "checkpoint": "a/b", "clip": -1},
        ),
    ],
)
def test_changes_are_names_with_literal_values(text, wanted):
    assert parse_changes(text) == wanted


@pytest.mark.parametrize(
    "text", ["epochs", "2", "epochs 2", "epochs=two", "**{'epochs': 2}", "a=1) + f(b=2", "a=1, a=2"]
)
def test_any_other_text_is_an_error_that_shows_how_to_write_it(text):
    with pytest.raises(ValueError, match="is not a list of settings such as epochs=2"):
        parse_changes(text)
