"""Which code a module can reach: imports are followed wherever they lead, and nothing that runs is missed."""

from __future__ import annotations

import sys

import pytest

from ser_kd_utils import fingerprint
from ser_kd_utils.fingerprint import code_of, code_of_source

FILES = {
    "__init__.py": "",
    "low.py": 'SIZE = 3\n\ndef used(x):\n    """Doc."""\n    return x * SIZE\n',
    "sub/__init__.py": "from fake_room.sub.part import thing as thing\n",
    "sub/part.py": "from fake_room import low\n\ndef thing():\n    return low.used(2)\n",
    "typed.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from fake_room.low import used\n",
    "high.py": (
        "from fake_room.sub import thing\n\ndef lazy():\n    from ser_kd_utils.files import digest\n    return digest\n"
    ),
    "apart.py": "X = 1\n",
}


def forget() -> None:
    for cached in (fingerprint._graph, fingerprint._hash):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.startswith("fake_room")]:
        del sys.modules[name]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A package of a few lines; call it with changed files."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(**changed):
        for name, text in FILES.items():
            path = tmp_path / "fake_room" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(changed.get(path.stem, text))
        forget()
        return code_of

    yield write
    forget()


def test_imports_are_followed_through_packages_functions_and_into_this_package(fake):
    found = fake()("fake_room.high")
    assert {name for name in found if name.startswith("fake_room")} == {
        "fake_room", "fake_room.high", "fake_room.sub", "fake_room.sub.part", "fake_room.low",
    }  # fmt: skip
    assert "ser_kd_utils.files" in found  # imported inside a function
    assert "fake_room.apart" not in found
    assert "fake_room.low" not in fake()("fake_room.typed")  # for type checkers alone


def test_the_search_stops_where_it_is_told(fake):
    assert "fake_room.low" not in fake()("fake_room.high", {"fake_room.sub"})
    found = fake()("fake_room.high", {"fake_room.sub.__init__"})
    assert not {"fake_room.sub", "fake_room.sub.part"} & set(found)  # reached through the package alone
    assert "fake_room.sub.part" in fake()("fake_room.sub.part", {"fake_room.sub.__init__"})


def test_a_hash_notices_code_and_not_comments_docstrings_or_layout(fake):
    before = fake()("fake_room.high")
    commented = FILES["low.py"].replace('"""Doc."""', '"""Other words."""\n    # why')
    commented = commented.replace("x * SIZE", "(x *\n  SIZE)")
    assert fake(low=commented)("fake_room.high") == before
    assert fake(apart="X = 2")("fake_room.high") == before  # not reached
    after = fake(low=FILES["low.py"].replace("SIZE = 3", "SIZE = 4"))("fake_room.high")
    assert {name for name in before if after[name] != before[name]} == {"fake_room.low"}


def test_a_hash_is_the_same_under_each_version_of_python(fake):
    """Python 3.12 writes these f-strings otherwise than 3.11, and its trees have fields that those of 3.11 lack."""
    code = 'class Kept:\n    def say(self, x, *, y=None):\n        return f"{x[\'a\']!r:>{y}} {x=}" + "\\n"\n'
    assert fake(apart=code)("fake_room.apart")["fake_room.apart"] == "0192df8a4b0b"


def test_a_script_reaches_what_it_imports():
    found = code_of_source("import numpy\nfrom ser_kd_utils.data import noise\nfrom ser_kd_utils.files import digest\n")
    assert {"ser_kd_utils.data.noise", "ser_kd_utils.data.audio", "ser_kd_utils.files"} <= set(found)
    assert "ser_kd_utils.methods" not in found
