"""The project as a whole: dependencies, floors, size, and nothing of one machine in its files."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ser_kd_utils

ROOT = Path(__file__).parents[2]
PACKAGE = Path(ser_kd_utils.__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_an_installed_package_has_its_data_files():
    data = [path for path in PACKAGE.rglob("*.*") if path.suffix not in (".py", ".pyc")]
    declared = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    assert {"cards.toml", "claims.csv", "demo.toml"} <= {path.name for path in data}
    assert [path for path in data if not any(path.match(pattern) for pattern in declared)] == []


# --- dependencies


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """The pip lines of environment.yml: name -> line with its comment."""
    lines = re.findall(r"^ {6}- ([\w-]+==.*)$", (ROOT / "environment.yml").read_text(encoding="utf-8"), re.M)
    return {canonicalize_name(line.split("==")[0]): line for line in lines}


@pytest.fixture(scope="module")
def required() -> dict[str, Requirement]:
    texts = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    return {canonicalize_name(each.name): each for each in map(Requirement, texts)}


def test_environment_and_pyproject_name_the_same_packages(pins, required):
    assert pins.keys() == required.keys()


def test_every_pin_is_exact_within_its_range_and_has_a_reason(pins, required):
    for name, line in pins.items():
        pin = re.fullmatch(r"[\w-]+==(\d+(?:\.\d+)+)  # (\S.{9,})", line)
        assert pin, f"no exact version and reason: {line}"
        assert required[name].specifier.contains(pin[1]), f"{line}: pyproject says {required[name]}"


def test_environment_is_conda_forge_with_the_projects_python_and_the_project(pins):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, from_pypi = environment["dependencies"]
    assert (environment["name"], environment["channels"], pip) == ("ser-kd", ["conda-forge"], "pip")
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")
    assert len(from_pypi["pip"]) == len(pins) + 1 and from_pypi["pip"][-1] == "-e ."


def test_citation_names_this_version_and_the_three_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"] == ser_kd_utils.__version__
    assert citation["license"] == PROJECT["license"]
    assert [len(paper["authors"]) for paper in citation["references"]] == [7, 4, 5]
    assert all(paper.get("doi") or paper.get("identifiers") for paper in citation["references"])


# --- the package


HEAVY = {"torch", "transformers", "pandas", "datasets", "matplotlib", "papermill", "pydantic", "grimp", "distributed"}


@pytest.mark.parametrize(
    "code",
    [
        "import ser_kd_utils",
        "import ser_kd_utils.methods",
        "from ser_kd_utils import cli; cli.parser().format_help()",
    ],
)
def test_what_everybody_waits_for_is_light(code):
    """The package, the list of methods and `ser-kd --help` come before anything heavy is needed."""
    code = f"import sys; {code}; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_floors_hold():
    """import-linter's contracts in pyproject.toml: imports go down only, and a method is read without another one."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout
    assert re.search(r"2 kept, 0 broken", done.stdout), done.stdout


def code_lines(text: str) -> int:
    """Lines with code on them: docstrings, comments and blank lines, which only explain, do not count; each line of a
    string does."""
    explained = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            explained |= set(range(node.lineno, node.end_lineno + 1))
    layout = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    coded = [token for token in tokens if tokenize.tok_name[token.type] not in layout]
    return len({line for token in coded for line in range(token.start[0], token.end[0] + 1)} - explained)


def test_code_is_what_counts():
    assert code_lines('"""Doc."""\n\n# why\nx = 1  # how\n\n\ndef f():\n    """Doc\n    on."""\n    return x\n') == 3
    assert code_lines('x = """\na\nb\n"""\n') == 4


def test_the_package_stays_thin():
    counts = {path.relative_to(PACKAGE).as_posix(): code_lines(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {name: count for name, count in counts.items() if count >= 300} == {}
    assert sum(counts.values()) <= 5_500  # with all that is to come


def test_no_file_holds_a_path_of_one_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [path for name in listed if name and (path := ROOT / name).is_file()]
    assert len(files) > 20
    own = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/[\w.-]+")
    found = {path.relative_to(ROOT).as_posix(): own.findall(path.read_text(errors="ignore")) for path in files}
    assert {name: paths for name, paths in found.items() if paths} == {}
