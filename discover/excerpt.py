"""A class of a module as text that stands alone: with the imports and the module's names that it needs, and without the
cases of a `match` and the methods that nothing is left to use."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Text cut out of a module.

    Attributes:
        imports: the import statements it needs, a name each: "import torch", "from torch import Tensor".
        parts: the constants, functions and the class, in the module's order.
    """

    imports: tuple[str, ...]
    parts: tuple[str, ...]


def excerpt(module: ModuleType, name: str, entry: Collection[str], cases: Collection[str]) -> Excerpt:
    """Cuts a class out of a module.

    Args:
        module: where it is.
        name: the class.
        entry: the methods that are called from outside.
        cases: of every `match` on strings, the cases to keep; the one that catches all stays.
    """
    lines = inspect.getsource(module).split("\n")
    tree = ast.parse("\n".join(lines))
    defined = {target: node for node in tree.body for target in _targets(node)}
    gone: set[int] = set()
    class_ = defined[name]
    assert isinstance(class_, ast.ClassDef)
    for match in [node for node in ast.walk(class_) if isinstance(node, ast.Match)]:
        _cut_cases(match, class_, set(cases), gone)
    _cut_methods(class_, set(entry), gone)
    parts = _reachable(name, defined, gone)
    used = {used for part in parts for used in _names(part, gone)}
    imports = tuple(text for node in tree.body for text in _imports(node, used))
    return Excerpt(imports, tuple(_text(part, lines, gone) for part in sorted(parts, key=lambda part: part.lineno)))


def _cut_cases(match: ast.Match, class_: ast.ClassDef, wanted: set[str], gone: set[int]) -> None:
    kept = []
    for case in match.cases:
        found = {node.value for node in ast.walk(case.pattern) if isinstance(node, ast.Constant)}
        if found and not found & wanted:
            gone |= _span(case.pattern, case.body[-1])
        else:
            kept.append(case)
    if not all(isinstance(case.body[-1], ast.Return | ast.Raise) for case in kept):
        return
    for node in ast.walk(class_):  # what comes after the match cannot be reached any more
        if isinstance(node, ast.FunctionDef) and match in node.body and node.body[-1] is not match:
            gone |= _span(node.body[node.body.index(match) + 1], node.body[-1])


def _cut_methods(class_: ast.ClassDef, entry: set[str], gone: set[int]) -> None:
    methods = {node.name: node for node in class_.body if isinstance(node, ast.FunctionDef)}
    reached: set[str] = set()
    waiting = [name for name in methods if name in entry or name == "__init__"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [used for used in _attributes(methods[name], gone) if used in methods]
    for name in methods.keys() - reached:
        gone |= _span(methods[name], methods[name])


def _reachable(name: str, defined: dict[str, ast.stmt], gone: set[int]) -> list[ast.stmt]:
    found: dict[str, ast.stmt] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each in defined and each not in found:
            found[each] = defined[each]
            waiting += _names(defined[each], gone)
    return list(dict.fromkeys(found.values()))


def _targets(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def _imports(node: ast.stmt, used: set[str]) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"import {alias.name}" for alias in names if alias.name.partition(".")[0] in used)
        case ast.ImportFrom(module=str(module), names=names) if module != "__future__":
            yield from (f"from {module} import {alias.name}" for alias in names if alias.name in used)


def _names(node: ast.AST, gone: set[int]) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and each.lineno not in gone}


def _attributes(node: ast.AST, gone: set[int]) -> set[str]:
    return {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and each.lineno not in gone}


def _span(first: ast.AST, last: ast.AST) -> set[int]:
    decorators = [each.lineno for each in getattr(first, "decorator_list", [])]
    return set(range(min([first.lineno, *decorators]), last.end_lineno + 1))  # type: ignore[attr-defined]


def _text(node: ast.stmt, lines: list[str], gone: set[int]) -> str:
    """The node's lines that are left; banners go, and so do blank lines that were between what is gone."""
    numbers = sorted(_span(node, node) - gone)
    end = numbers[-1]
    if isinstance(node, ast.Assign | ast.AnnAssign) and lines[end].startswith('"""'):  # a constant's docstring
        numbers.append(end + 1)
    kept: list[str] = []
    for line in (lines[number - 1] for number in numbers):
        banner = line.strip().startswith("#") and line.endswith("-----")
        if not banner and (line or (kept and kept[-1])):
            kept.append(line)
    return "\n".join(kept).rstrip()
