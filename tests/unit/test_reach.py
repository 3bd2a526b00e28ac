"""Which code a piece of code can reach: found through names wherever they lead, and nothing that runs is missed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ser_kd_utils import reach
from ser_kd_utils.decoupled import DecoupledExperiment
from ser_kd_utils.meta_curriculum import MetaCurriculumExperiment
from ser_kd_utils.reach import PACKAGE, by_module, named_in, reached
from ser_kd_utils.recipes import Experiment
from ser_kd_utils.study import BY_VALUE

FILES = {
    "__init__.py": "",
    "low.py": 'SIZE = 3\n\ndef used(x):\n    """Doc."""\n    return x * SIZE\n\ndef unused():\n    return 1\n',
    "sub/__init__.py": "from fake.sub.part import thing as thing\n",
    "sub/part.py": "from fake import low\n\ndef thing():\n    return low.used(2)\n",
    "high.py": (
        "from fake.sub import thing\nfrom fake.low import unused\n\nsetting = print('effect')\n\n"
        "class Base:\n    def go(self):\n        return thing()\n\n"
        "class High(Base):\n    def plain(self, x: unused) -> unused:\n        return self.go()\n\n"
        "def lazy():\n    from fake.low import used\n    return used(1)\n"
    ),
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A package of a few lines; call it with changed files."""
    monkeypatch.setattr(reach, "PACKAGE", tmp_path / "fake")

    def write(**changed):
        for name, text in FILES.items():
            path = tmp_path / "fake" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(changed.get(path.stem, text) if path.stem in changed else text)
        reach._modules.cache_clear()
        reach._sha256.cache_clear()
        return reached

    yield write
    reach._modules.cache_clear()
    reach._sha256.cache_clear()


def test_names_are_followed_through_bases_reexports_and_modules(fake):
    found = {name for name in fake()(["high.High"]) if "<module>" not in name}
    assert found == {
        "high.High",
        "high.Base",
        "sub.part.thing",
        "low.used",
        "low.SIZE",
    }  # not low.unused: an annotation
    assert "low.used" in fake()(["high.lazy"])
    assert {"high.<module>", "low.<module>"} <= fake()(["high.High"]).keys()


def test_the_search_stops_where_it_is_told(fake):
    assert "low.used" not in fake()(["high.High"], {"sub.part.thing"})
    assert not any(name.startswith("low.") for name in fake()(["high.High"], {"low"}))


def test_a_hash_notices_code_and_not_comments_docstrings_or_layout(fake):
    before = fake()(["high.High"])
    commented = (
        FILES["low.py"].replace('"""Doc."""', '"""Other words."""\n    # why').replace("x * SIZE", "(x *\n  SIZE)")
    )
    assert fake(low=commented)(["high.High"]) == before
    assert fake(low=FILES["low.py"].replace("return 1", "return 2"))(["high.High"]) == before  # not reached
    after = fake(low=FILES["low.py"].replace("SIZE = 3", "SIZE = 4"))(["high.High"])
    assert {name for name in before if after[name] != before[name]} == {"low.SIZE"}
    assert [m for m, digest in by_module(before).items() if by_module(after)[m] != digest] == ["low"]


def test_a_script_names_what_it_starts_from(fake):
    fake()
    code = "from fake import low, high\nfrom fake.sub import thing as other\nx = low.used(1)\nother()\n"
    assert set(named_in(code)) == {"low.used", "sub.part.thing"}


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize(
    ("study", "row"),
    [
        (Experiment, "a"),
        (Experiment, "c"),
        (Experiment, "e"),
        (DecoupledExperiment, "cnn-alone"),
        (DecoupledExperiment, "cnn-kd"),
        (DecoupledExperiment, "cnn-dkd-noisy"),
        (MetaCurriculumExperiment, "mc-alone"),
        (MetaCurriculumExperiment, "mc-kd"),
        (MetaCurriculumExperiment, "mc-full"),
        (MetaCurriculumExperiment, "mc-taught-teacher"),
    ],
)
def test_no_code_that_a_training_runs_is_missing_from_its_fingerprint(study, row, tones, tmp_path_factory):
    results = tmp_path_factory.getbasetemp() / "reached"  # teachers are trained once
    changes = "epochs=1, teacher__epochs=1, dkd__epochs=1, mckd__epochs=1"
    experiment = study("manifest", data_root=str(tones), results=str(results), changes=changes)
    experiment.run(row)  # and its teachers before it
    ran: set[tuple[str, str]] = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            path = Path(frame.f_code.co_filename).relative_to(PACKAGE).with_suffix("")
            ran.add((".".join(path.parts).removesuffix(".__init__"), frame.f_code.co_qualname.split(".")[0]))

    sys.setprofile(note)
    try:
        network, fitted = experiment._fit(row)
        experiment._test(fitted)
    finally:
        sys.setprofile(None)
    wanted = {*experiment._code(row)}
    if study is not Experiment:  # counts in the fingerprint through that of its teacher
        wanted |= {*experiment.wave_teachers._code("a")}
    other = {*BY_VALUE, "recipes.Experiment"} if study is not Experiment else set(BY_VALUE)
    missed = {
        f"{module}.{name}"
        for module, name in ran
        if name[0] != "<" and f"{module}.{name}" not in wanted
        and not any(f"{module}.{name}".startswith(stop) for stop in other)
    }  # fmt: skip
    assert ("training", "fit") in ran and missed == set()
