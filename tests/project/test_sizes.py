"""Budgets: a module under 350 lines, a function under 60; 500 and 80 are errors whatever the reason."""

from __future__ import annotations

import ast
import os

import pytest

from tests.helpers.tracing import package_directory
from tests.project.test_architecture import sources

MODULE, MODULE_LIMIT = 350, 500
FUNCTION, FUNCTION_LIMIT = 60, 80
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

LARGE_MODULES: dict[str, str] = {
    "dev": "one file, because it runs before anything can be installed or imported",
}
"""Modules over their budget, each with the reason why it is not two."""

LARGE_FUNCTIONS: dict[str, str] = {}
"""Functions over their budget, each as `module.function` with the reason why it is not two."""


def module_sizes(modules: dict[str, str]) -> dict[str, int]:
    """Lines of each module."""
    return {name: len(text.splitlines()) for name, text in modules.items()}


def function_sizes(modules: dict[str, str]) -> dict[str, int]:
    """Lines of each function, from its first decorator to its end, without its docstring."""
    sizes = {}
    for module, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                said = node.body[0] if ast.get_docstring(node) is not None else None
                prose = (said.end_lineno or 0) - said.lineno + 1 if said else 0
                sizes[f"{module}.{node.name}"] = (node.end_lineno or 0) - first + 1 - prose
    return sizes


def over(sizes: dict[str, int], budget: int, limit: int, excused: dict[str, str]) -> list[str]:
    """What is over its budget without an excuse, over the limit at all, or excused for nothing."""
    lines = [f"{name} has {size} lines; the limit is {limit}" for name, size in sizes.items() if size >= limit]
    lines += [
        f"{name} has {size} lines; the budget is {budget}"
        for name, size in sizes.items()
        if budget <= size < limit and name not in excused
    ]
    return lines + [f"{name} needs no excuse" for name in excused if sizes.get(name, 0) < budget]


def _all() -> dict[str, str]:
    found = sources()
    with open(os.path.join(ROOT, "dev.py"), encoding="utf-8") as file:
        found["dev"] = file.read()
    helpers = sources(os.path.join(ROOT, "tests", "helpers"))
    return found | {f"tests.helpers.{name}": text for name, text in helpers.items()}


def test_every_module_keeps_its_budget() -> None:
    """No module of the package, of the helpers, nor dev.py is too large to be read at one sitting."""
    assert over(module_sizes(_all()), MODULE, MODULE_LIMIT, LARGE_MODULES) == []


def test_every_function_keeps_its_budget() -> None:
    """No function is too long to be seen at once."""
    assert over(function_sizes(_all()), FUNCTION, FUNCTION_LIMIT, LARGE_FUNCTIONS) == []


def test_the_package_is_what_is_measured() -> None:
    """The modules that are counted are those of the package under test, sub-packages included."""
    assert os.path.samefile(package_directory(), os.path.join(ROOT, "shmarray"))
    assert {"store", "_os.segments", "dev", "tests.helpers.leaks"} <= set(_all())


@pytest.mark.parametrize(
    ("size", "excused", "expected"),
    [
        (9, {}, []),
        (10, {}, ["a has 10 lines; the budget is 10"]),
        (10, {"a": "why"}, []),
        (9, {"a": "why"}, ["a needs no excuse"]),
        (20, {"a": "why"}, ["a has 20 lines; the limit is 20"]),
    ],
)
def test_a_planted_excess_is_caught(size: int, excused: dict[str, str], expected: list[str]) -> None:
    """What is over its budget is reported unless excused, what is over the limit always, and so is a needless excuse."""
    assert over({"a": size}, 10, 20, excused) == expected


def test_functions_are_measured_with_decorators_and_without_docstring() -> None:
    """A function's size counts its decorators and inner functions, and not its docstring."""
    text = (
        '@decorated\ndef outer():\n    """One.\n\n    Two.\n    """\n    def inner():\n        pass\n    return inner\n'
    )
    assert function_sizes({"m": text}) == {"m.outer": 5, "m.inner": 2}
