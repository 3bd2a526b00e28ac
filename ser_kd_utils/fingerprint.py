"""Fingerprints of the code that a module or a script can reach through imports. A change elsewhere has no effect."""

import ast
import hashlib
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grimp

OWN = __package__


def code_of(module: str, without: Collection[str] = ()) -> dict[str, str]:
    """The module and all it imports, near or far, within its own package and this one: name -> short hash of its code.

    Comments, docstrings and layout do not count, nor do imports for type checkers alone. without: modules at which the
    search stops, each with all below it; "package.__init__" means the package's own module and not what is below.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        stopped = any(f"{name}.__init__.".startswith(f"{each}.") for each in without)
        if name not in found and not stopped:
            found[name] = _hash(name)
            waiting += _graph(name.partition(".")[0]).find_modules_directly_imported_by(name)
            waiting += [name.rpartition(".")[0]] if "." in name else []  # importing it runs its package, too
    return dict(sorted(found.items()))


def code_of_source(text: str) -> dict[str, str]:
    """The same for everything of this package that a script or notebook imports."""
    named = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            named |= {module, *(f"{module}.{alias.name}" if module else alias.name for alias in node.names)}
    own = named & _graph(OWN).modules
    return {name: code for module in own for name, code in code_of(module).items()}


@cache  # the code of a process is what it was when it began
def _graph(package: str) -> grimp.ImportGraph:
    return grimp.build_graph(*{package, OWN}, exclude_type_checking_imports=True, cache_dir=None)


@cache
def _hash(module: str) -> str:
    tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:12]


def _plain(node: Any) -> Any:
    """A syntax tree as lists, without empty fields: they, like code made of a tree, differ with Python's version."""
    if isinstance(node, ast.AST):
        fields = [[name, _plain(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    return [_plain(each) for each in node] if isinstance(node, list) else node
