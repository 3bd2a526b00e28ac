"""Settings: every value has a source, every setting is read, and no wrong name passes."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from ser_kd_utils import settings
from ser_kd_utils.settings import (
    ASSUMED,
    CODE,
    PROFILES,
    PUBLISHED,
    DKDSettings,
    MCKDSettings,
    MLKDSettings,
    NoiseSettings,
    Settings,
    TeacherSettings,
    parse_changes,
    settings_of,
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
    """As an attribute of something called settings (`self.noise_settings.level`, `self.settings_of(name).targets`) or
    of what was given its value (`use = self.settings`, then `use.gamma`)."""
    read = set()
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        own = re.compile(r"settings(_of\(\w+\))?$")
        given = {
            node.targets[0].id
            for node in nodes
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and own.search(ast.unparse(node.value))
        }
        for node in nodes:
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                read |= {node.attr} if own.search(owner) or owner in given else set()
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


CHOICES = [
    (cls, field.name, field.metadata["choices"])
    for cls in CLASSES
    for field in dataclasses.fields(cls)
    if field.metadata["choices"]
]


def test_what_is_one_of_a_few_words_has_choices():
    assert {name for _, name, _ in CHOICES} >= {"stages", "initial", "target_network", "targets"}


@pytest.mark.parametrize(("cls", "name", "choices"), CHOICES, ids=[name for _, name, _ in CHOICES])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_word_that_is_none_of_the_choices_is_one_error_that_names_them(cls, name, choices, profile):
    assert getattr(cls.of(profile), name) in choices
    assert [getattr(cls.of(profile, **{name: choice}), name) for choice in choices] == list(choices)
    for wrong in (choices[0] + " ", "", 1):
        with pytest.raises(ValueError) as caught:
            cls.of(profile, **{name: wrong})
        assert str(caught.value) == f"{name}={wrong!r}: choose one of {', '.join(map(repr, choices))}."


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["levels", "depths", "student_layers"])
def test_layers_beyond_the_teachers_are_refused(profile, name):
    layers = TeacherSettings.of(profile).layers
    values = {"levels": (1, layers + 1), "depths": (layers + 1, 1), "student_layers": layers + 1}
    with pytest.raises(ValueError) as caught:
        settings_of(profile, f"{name}={values[name]!r}")
    assert str(caught.value).startswith(f"{name}={values[name]!r}: ") and f"layers 1 to {layers}" in str(caught.value)
    with pytest.raises(ValueError, match=f"^{name}="):
        settings_of(profile, f"{name}={0 if name == 'student_layers' else (0,)!r}")
    settings_of(profile, f"{name}={layers if name == 'student_layers' else (1, layers)!r}")


def test_changes_reach_the_group_they_name_and_no_other():
    changes = "epochs=3, teacher__epochs=4, noise__train_types=('hum',), dkd__epochs=5, mckd__epochs=6"
    teacher, mlkd, noise, dkd, mckd = settings_of("tiny", changes)
    assert (teacher, mlkd) == (TeacherSettings.of("tiny", epochs=4), MLKDSettings.of("tiny", epochs=3))
    assert noise == NoiseSettings.of("tiny", train_types=("hum",)) != NoiseSettings.of("tiny")
    assert (dkd, mckd) == (DKDSettings.of("tiny", epochs=5), MCKDSettings.of("tiny", epochs=6))
    with pytest.raises(
        ValueError, match="Unknown setting mlkd__epochs: begin it with teacher__, noise__, dkd__ or mckd__"
    ):
        settings_of("tiny", "mlkd__epochs=2")


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
