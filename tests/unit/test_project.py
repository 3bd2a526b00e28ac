"""The project as a whole: dependencies, floors, size, and nothing of one machine in its files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ser_kd_utils

ROOT = Path(__file__).parents[2]
PACKAGE = Path(ser_kd_utils.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    {"corpora", "audio", "noise", "features", "settings", "metrics"},
    {"models", "losses", "temperature"},
    {"pieces", "training", "pretraining", "evaluation", "analysis", "records", "export"},
    {"rows", "recipes", "tables", "ablation_tables", "plots"},
    {"cli", "reproduce"},
]


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


def test_importing_the_package_is_light():
    code = "import sys, ser_kd_utils; print(sorted({'torch', 'transformers', 'pandas'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports when it runs, wherever in the file; not what only type checkers see."""
    names = {module_name(source) for source in SOURCES}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            origin = f"{node.module}.".removeprefix("ser_kd_utils.")
            found |= {origin + alias.name if origin + alias.name in names else origin[:-1] for alias in node.names}
    return {name.removeprefix("ser_kd_utils.") for name in found} & names


def floor(module: str) -> int:
    (number,) = [i for i, names in enumerate(FLOORS) if module.split(".")[0] in names]
    return number


def test_imports_go_down_only_and_never_round():
    graph = {module_name(path): imports(path) for path in SOURCES if path != PACKAGE / "__init__.py"}
    assert graph["recipes"] >= {"training", "models.wav2vec2", "settings"}  # the imports are found at all
    upwards = [(one, other) for one, others in graph.items() for other in others if floor(other) > floor(one)]
    assert upwards == []
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_package_stays_thin():
    lines = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert sum(lines.values()) < 5000


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
