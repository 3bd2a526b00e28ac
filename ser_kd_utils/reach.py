"""Which of the package's code a piece of code can reach: a change elsewhere cannot change what it computes."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
EFFECTS = "<module>"
"""The name of what a module does when it is imported; reached with any of its definitions."""


@dataclass(frozen=True)
class Module:
    """A source file: its definitions (functions, classes, constants) and what its imports mean in the package."""

    units: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str]]  # name -> (module or sub-package, name there, which may be a module)


def reached(entries: Iterable[str], without: Collection[str] = ()) -> dict[str, str]:
    """Every definition that the entries can reach, with the SHA-256 of its code: {"losses.kd_loss": ...}.

    A definition reaches what its code names, wherever the name leads in the package; annotations do not count, nor do,
    in the hash, comments, docstrings and layout. entries: definitions, as "recipes.Experiment"; without: definitions,
    modules and sub-packages at which the search stops. Raises KeyError for an entry that is none.
    """
    modules, found = _modules(), {}
    waiting = [_resolved(modules, *entry.rpartition(".")[::2]) for entry in entries]
    while waiting:
        module, name = waiting.pop()
        full = f"{module}.{name}"
        if full in found or {full, module, module.partition(".")[0]} & set(without):
            continue
        found[full] = _sha256(module, name)
        waiting += [(module, EFFECTS), *_named(modules, module, name)]
    return found


def named_in(code: str) -> list[str]:
    """The package's definitions that a script names: the entries of a notebook."""
    modules = _modules() | {"": Module({EFFECTS: ast.parse(code).body}, _imports(ast.parse(code)))}
    return [f"{module}.{name}" for module, name in _named(modules, "", EFFECTS)]


def by_module(found: dict[str, str]) -> dict[str, str]:
    """One short hash for each module of which something is reached."""
    modules: dict[str, list[str]] = {}
    for full, digest in sorted(found.items()):
        modules.setdefault(full.rpartition(".")[0], []).append(f"{full} {digest}")
    return {module: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12] for module, lines in modules.items()}


@cache  # the code of a process is what it was when it began
def _modules() -> dict[str, Module]:
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in sources}
    trees = {names[path].removesuffix(".__init__"): _without_docstrings(text) for path, text in sources.items()}
    return {name: Module(_units(tree), _imports(tree)) for name, tree in trees.items()}


def _without_docstrings(text: str) -> ast.Module:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _units(tree: ast.Module) -> dict[str, list[ast.stmt]]:
    units: dict[str, list[ast.stmt]] = {EFFECTS: []}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            targets = [statement.name]
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            whole = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            targets = [node.id for each in whole for node in ast.walk(each) if isinstance(node, ast.Name)]
        else:
            targets = []
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            for name in targets or [EFFECTS]:
                units.setdefault(name, []).append(statement)
    return units


def _imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Of the package's own, those inside functions among them."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module.removeprefix(PACKAGE.name)[1:], alias.name)
    return found


def _resolved(modules: dict[str, Module], module: str, name: str) -> tuple[str, str]:
    """Where the name is defined: follows re-exports; (module, "") for a module itself."""
    inside = f"{module}.{name}".strip(".")
    if inside in modules:
        return inside, ""
    if name in modules[module].units:
        return module, name
    return _resolved(modules, *modules[module].imports[name])


def _named(modules: dict[str, Module], module: str, unit: str) -> Iterator[tuple[str, str]]:
    """The definitions that a unit names, and all of a module that is handed on as a whole."""
    own = modules[module]
    for statement in own.units.get(unit, []):
        before_dot = set()
        for node in _outside_annotations(statement):
            dotted = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            target = _place(modules, own, module, node.value.id if dotted else getattr(node, "id", ""))
            if target and dotted and not target[1]:
                before_dot.add(node.value)
                yield _resolved(modules, target[0], node.attr)
            elif target and not dotted and target[1]:
                yield target
            elif target and node not in before_dot:
                yield from ((target[0], name) for name in modules[target[0]].units)


def _place(modules: dict[str, Module], own: Module, module: str, name: str) -> tuple[str, str] | None:
    if name in own.imports or name in own.units:
        return _resolved(modules, *own.imports[name]) if name in own.imports else (module, name)
    return None


def _outside_annotations(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _outside_annotations(child)


@cache
def _sha256(module: str, name: str) -> str:
    code = "\n".join(map(ast.unparse, _modules()[module].units.get(name, [])))
    return hashlib.sha256(code.encode()).hexdigest()
