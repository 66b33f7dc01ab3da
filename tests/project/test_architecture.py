"""The floors, enforced: a module imports only from floors below it, and only `_os` talks to the kernel.

Reads the sources with `ast`, so it sees imports under `TYPE_CHECKING`, in functions, and by `importlib` too.
"""

from __future__ import annotations

import ast
import os
from typing import NamedTuple

import pytest

from tests.helpers.tracing import package_directory

PACKAGE = "shmarray"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "_os"),
    ("_format",),
    ("slabfiles", "reclaim", "roots"),
    ("reaper", "exhaustion", "shields", "scopes"),
    ("controls", "memories"),
    ("leasing", "reserves"),
    ("absences",),
    ("membership",),
    ("joining",),
    ("seats",),
    ("founding",),
    ("blockfiles", "copying", "keeping"),
    ("warm",),
    ("idling", "recycling", "shortage"),
    ("attachments",),
    ("blocks",),
    ("drafts", "resting", "slabwords"),
    ("slabmaps",),
    ("slabs", "sightings", "cellviews"),
    ("cells",),
    ("stocks", "deletion"),
    ("contents",),
    ("smalls",),
    ("guardwords",),
    ("guards",),
    ("cellguards",),
    ("locks",),
    ("wholes", "computing"),
    ("arrays",),
    ("making", "trees"),
    ("objects",),
    ("keepers",),
    ("sync", "values", "memory"),
    ("queues", "channels"),
    ("managed",),
    ("references",),
    ("progress", "streams"),
    ("rawdata",),
    ("loading", "saving"),
    ("constructors",),
    ("filing", "streaming"),
    ("vocabulary",),
    ("guardian",),
    ("hosting",),
    ("census",),
    ("settings",),
    ("store",),
    ("inspection",),
    ("__init__",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
"""From the ground up; what stands on one floor does not import each other. Inside a sub-package there is no cycle."""

COMPUTED_IMPORTS = {
    "_format.classes": "finds the user's own class by the name that a block records",
    "_os.late": "loads modules of the standard library, from a closed list, when they are first needed",
}
KERNEL_MODULES = {"fcntl", "mmap"}
KERNEL_CALLS = {
    *("open", "close", "read", "write", "pread", "pwrite", "link", "unlink", "remove", "rename", "replace", "stat"),
    *("lstat", "fstat", "ftruncate", "truncate", "posix_fallocate", "listdir", "scandir", "statvfs", "kill", "fork"),
    *("mkdir", "rmdir", "dup", "dup2", "pipe", "memfd_create", "pidfd_open", "register_at_fork", "fsync", "chmod"),
}
OUTSIDE_THE_KERNEL_FLOOR = {
    "guardian.__main__": "runs before it can import anything of the package",
    "demo": "a program that uses the package: it writes a picture and measures processes",
    "cli": "a program that uses the package",
}


class Import(NamedTuple):
    """One import: which module of the package imports what, where, and in what way."""

    importer: str
    imported: str
    line: int
    where: str

    def __str__(self) -> str:
        """As a list of violations shows it."""
        return f"{self.importer}:{self.line} imports {self.imported} ({self.where})"


def sources(directory: str | None = None) -> dict[str, str]:
    """Text of every module of the package, by its dotted name inside it; a sub-package is its `__init__`."""
    top = directory or package_directory()
    found = {}
    for folder, _, files in os.walk(top):
        for file in files:
            if file.endswith(".py"):
                path = os.path.join(folder, file)
                name = os.path.relpath(path, top).removesuffix(".py").replace(os.sep, ".")
                with open(path, encoding="utf-8") as opened:
                    found[name] = opened.read()
    return found


class _Finder(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, module: str, modules: set[str]) -> None:
        self.module = module
        self.modules = modules
        self.found: list[Import] = []
        self.where = "module"

    def _inside(self, where: str, node: ast.AST) -> None:
        before, self.where = self.where, where if self.where != "function" else "function"
        self.generic_visit(node)
        self.where = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside("function", node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._inside("function", node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._inside("function", node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            self._inside("type checking", node)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parent = self.module.split(".")[:-1]
        place = node.module or ""
        if node.level:
            above = parent[: len(parent) - node.level + 1]
            place = ".".join([PACKAGE, *above, *([node.module] if node.module else [])])
        for alias in node.names:
            inside = f"{place}.{alias.name}".removeprefix(f"{PACKAGE}.")
            is_module = place.split(".")[0] == PACKAGE and (
                inside in self.modules or f"{inside}.__init__" in self.modules
            )
            self._add(f"{place}.{alias.name}" if is_module else place, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        """Take `importlib.import_module("x")` and `__import__("x")` for what they are."""
        called = ast.unparse(node.func)
        if called.rpartition(".")[2] in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            literal = isinstance(name, ast.Constant) and isinstance(name.value, str)
            before, self.where = self.where, "computed"
            self._add(str(name.value) if isinstance(name, ast.Constant) and literal else "?", node.lineno)
            self.where = before
        self.generic_visit(node)

    def _add(self, name: str, line: int) -> None:
        self.found.append(Import(self.module, name, line, self.where))


def imports_of(modules: dict[str, str]) -> list[Import]:
    """Every import of every module; those of the package itself are named by their full name."""
    found: list[Import] = []
    for module, text in modules.items():
        finder = _Finder(module, set(modules))
        finder.visit(ast.parse(text))
        found += finder.found
    return found


def _inner(name: str, modules: dict[str, str]) -> str | None:
    """Name inside the package of an imported module; None if it is not of the package."""
    if name == PACKAGE:
        return "__init__"
    if not name.startswith(f"{PACKAGE}."):
        return None
    inner = name.removeprefix(f"{PACKAGE}.")
    return inner if inner in modules else f"{inner}.__init__"


def violations(modules: dict[str, str], floors: tuple[tuple[str, ...], ...] = FLOORS) -> list[str]:
    """Everything that breaks the rule of the floors, one line for each."""
    level = {unit: number for number, floor in enumerate(floors) for unit in floor}
    lines = [f"{module} stands on no floor" for module in modules if module.split(".")[0] not in level]
    inside: dict[str, dict[str, set[str]]] = {}
    for found in imports_of(modules):
        if found.where == "function":
            lines.append(f"{found}: no import inside a function")
        target = _inner(found.imported, modules)
        unit = found.importer.split(".")[0]
        if target is None:
            if found.imported == "?" and found.importer not in COMPUTED_IMPORTS:
                lines.append(f"{found}: an import that cannot be read")
            continue
        other = target.split(".")[0]
        if other == unit:
            inside.setdefault(unit, {}).setdefault(found.importer, set()).add(target)
        elif {unit, other} <= set(level) and level[other] >= level[unit]:
            lines.append(f"{found}: not on a floor below")
    return lines + [f"cycle: {' -> '.join(cycle)}" for graph in inside.values() if (cycle := find_cycle(graph))]


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A path of a directed graph that comes back to where it began; empty if there is none."""

    def follow(path: list[str]) -> list[str]:
        for following in sorted(graph.get(path[-1], ())):
            if following in path:
                return [*path[path.index(following) :], following]
            if following not in done and (cycle := follow([*path, following])):
                return cycle
        done.add(path[-1])
        return []

    done: set[str] = set()
    return next((cycle for start in sorted(graph) if start not in done and (cycle := follow([start]))), [])


def closure(start: str, modules: dict[str, str]) -> dict[str, list[str]]:
    """Everything that a module brings in when it runs, each with the way by which it comes."""
    ways = {start: [start]}
    waiting = [start]
    edges: dict[str, set[str]] = {}
    for found in imports_of(modules):
        if found.where != "type checking":
            target = _inner(found.imported, modules) or found.imported.split(".")[0]
            package = f"{target.split('.')[0]}.__init__"
            edges.setdefault(found.importer, set()).update({target, package} if package in modules else {target})
    while waiting:
        module = waiting.pop()
        for target in edges.get(module, ()):
            if target not in ways:
                ways[target] = [*ways[module], target]
                waiting.append(target)
    return ways


def kernel_talk(modules: dict[str, str]) -> list[str]:
    """Calls to the kernel's functions outside the floor that is there for them."""
    lines = []
    for module, text in modules.items():
        if module.split(".")[0] in ("_os", *OUTSIDE_THE_KERNEL_FLOOR) or module in OUTSIDE_THE_KERNEL_FLOOR:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os" and node.attr in KERNEL_CALLS:
                lines.append(f"{module}:{node.lineno} uses os.{node.attr}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "open":
                lines.append(f"{module}:{node.lineno} calls open")
            elif isinstance(node, ast.Import) and (names := KERNEL_MODULES & {alias.name for alias in node.names}):
                if not _only_for_types(text, node.lineno):
                    lines.append(f"{module}:{node.lineno} imports {', '.join(sorted(names))}")
            elif isinstance(node, ast.ImportFrom) and node.module in {*KERNEL_MODULES, "os"}:
                lines.append(f"{module}:{node.lineno} imports from {node.module}")
    return lines


def _only_for_types(text: str, line: int) -> bool:
    return any(
        "TYPE_CHECKING" in ast.unparse(node.test) and node.lineno <= line <= (node.end_lineno or 0)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.If)
    )


def test_every_module_imports_only_from_floors_below() -> None:
    """In the package as it is, no import goes up or sideways, none is hidden in a function, and no cycle exists."""
    assert violations(sources()) == []


def test_every_name_on_a_floor_is_there() -> None:
    """The floors name no module that does not exist."""
    there = {module.split(".")[0] for module in sources()}
    assert [unit for floor in FLOORS for unit in floor if unit not in there] == []


def test_the_map_in_the_door_agrees_with_the_floors() -> None:
    """The package's docstring shows every floor, in the order that is enforced."""
    text = ast.get_docstring(ast.parse(sources()["__init__"])) or ""
    shown = []
    for line in text.splitlines():
        name, gap, _ = line.strip().partition("  ")
        if line.startswith("    ") and gap and "(" not in name:
            shown.append([unit.strip() for unit in name.split(",")])
    level = {unit: number for number, floor in enumerate(FLOORS) for unit in floor}
    order = [level[unit] for units in reversed(shown) for unit in sorted(units, key=lambda unit: level.get(unit, -1))]
    assert order == sorted(order), f"the map shows another order than is enforced: {shown}"
    missing = set(level) - {unit for units in shown for unit in units} - {"__init__", "__main__"}
    assert missing == set(), "the map leaves these out"


def test_only_the_kernel_floor_talks_to_the_kernel() -> None:
    """System calls are made in `_os` alone, so that a test that fails or kills at each of them misses none."""
    assert kernel_talk(sources()) == []


def test_the_guardian_brings_in_no_numpy() -> None:
    """What the guardian's process imports never leads to NumPy, nor to the package's door, which does."""
    modules = sources()
    ways = closure("guardian.__main__", modules)
    ways |= closure("guardian.server", modules)  # loaded late
    assert {"guardian.watch", "reaper"} <= set(ways)
    assert [" -> ".join(ways[name]) for name in ("numpy", "__init__") if name in ways] == []


def test_the_package_never_asserts() -> None:
    """Checks at run time are errors of their own, for `python -O` takes every `assert` away."""
    found = [
        f"{module}:{node.lineno}"
        for module, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


SOUND = {
    "__init__": "from shmarray import high",
    "low": "",
    "high": "from shmarray.low import x",
    "pair.a": "",
    "pair.b": "",
}
SMALL = (("low",), ("pair",), ("high",), ("__init__",))
PLANTED = {
    "upward": (
        "low",
        "import os\nfrom shmarray.high import y",
        "low:2 imports shmarray.high (module): not on a floor below",
    ),
    "upward by from": (
        "low",
        "from shmarray import high",
        "low:1 imports shmarray.high (module): not on a floor below",
    ),
    "upward by import": (
        "low",
        "import shmarray.high as h",
        "low:1 imports shmarray.high (module): not on a floor below",
    ),
    "relative": ("pair.a", "from ..high import y", "pair.a:1 imports shmarray.high (module): not on a floor below"),
    "the door": ("low", "import shmarray", "low:1 imports shmarray (module): not on a floor below"),
    "for types": (
        "low",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shmarray.high import y",
        "low:3 imports shmarray.high (type checking): not on a floor below",
    ),
    "hidden": (
        "high",
        "class A:\n    def f(self):\n        if 1:\n            import json",
        "high:4 imports json (function): no import inside a function",
    ),
    "hidden in async": (
        "high",
        "async def f():\n    from shmarray import low",
        "high:2 imports shmarray.low (function): no import inside a function",
    ),
    "computed": (
        "low",
        "import importlib\ndef f():\n    importlib.import_module('shmarray.high')",
        "low:3 imports shmarray.high (computed): not on a floor below",
    ),
    "unreadable": (
        "low",
        "def f(name):\n    __import__(name)",
        "low:2 imports ? (computed): an import that cannot be read",
    ),
    "a new module": ("other", "", "other stands on no floor"),
    "a cycle": (
        "pair.a",
        "import shmarray.pair.b",
        "cycle: pair.a -> pair.b -> pair.a",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_caught(name: str) -> None:
    """A sound package passes; with one bad import in it, that import and nothing else is reported."""
    module, text, expected = PLANTED[name]
    sound = {**SOUND, **({"pair.b": "from . import a"} if name == "a cycle" else {})}
    assert violations(sound, SMALL) == []
    assert violations({**sound, module: text}, SMALL) == [expected]


@pytest.mark.parametrize("text", ["import os\nos.unlink('x')", "open('x')", "import mmap", "from os import unlink"])
def test_planted_talk_to_the_kernel_is_caught(text: str) -> None:
    """A system call above the kernel's floor is reported, and on that floor it is not."""
    assert len(kernel_talk({"blocks": text})) == 1
    assert kernel_talk({"_os.segments": text}) == []


def test_a_planted_way_to_numpy_is_seen() -> None:
    """An import of NumPy two steps away is found; one for types alone does not count."""
    modules = {"start": "from shmarray.low import x", "low": "import numpy as np"}
    assert closure("start", modules)["numpy"] == ["start", "low", "numpy"]
    modules["low"] = "if TYPE_CHECKING:\n    import numpy as np"
    assert "numpy" not in closure("start", modules)
