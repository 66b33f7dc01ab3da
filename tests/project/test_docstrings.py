"""Prose that is code: every test states its claim, every public name shows an example, and the examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
from typing import Any

import pytest

import shmarray
from tests.project.test_architecture import PACKAGE, sources
from tests.project.test_public_api import TAKEN_OVER

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

WITHOUT_EXAMPLE = {
    "__version__": "a string",
}
"""Exported names other than errors whose docstring shows no example, each with the reason."""


def public_objects() -> dict[str, Any]:
    """Everything a user may name: what the door exports, and the public methods and properties of its classes."""
    found: dict[str, Any] = {name: getattr(shmarray, name) for name in shmarray.__all__ if name not in TAKEN_OVER}
    for name, value in list(found.items()):
        if inspect.isclass(value) and not issubclass(value, BaseException):
            for member, inner in vars(value).items():
                if not member.startswith("_") and (
                    callable(inner) or isinstance(inner, property | classmethod | staticmethod)
                ):
                    found[f"{name}.{member}"] = inner
    return found


def text_of(value: Any) -> str:
    """Docstring that was written for this object itself and not taken over from a parent."""
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    return (vars(value).get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)) or ""


def test_every_module_of_the_package_says_what_it_is() -> None:
    """Each module has a docstring; beside the doors it says what it owns and what it must not know."""
    silent = [name for name, text in sources().items() if not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_every_public_name_is_documented() -> None:
    """Each name that a user may use, methods and properties included, has a docstring of its own."""
    assert [
        name for name, value in public_objects().items() if name != "__version__" and not text_of(value).strip()
    ] == []


def test_every_exported_name_shows_an_example() -> None:
    """Each exported name has an example in its docstring, or is excused with a reason; no excuse is stale."""
    exported = {name: getattr(shmarray, name) for name in shmarray.__all__}
    errors = {name for name, value in exported.items() if inspect.isclass(value) and issubclass(value, BaseException)}
    bare = {name for name, value in exported.items() if ">>> " not in text_of(value)}
    assert bare - errors == set(WITHOUT_EXAMPLE)


def _with_examples() -> list[str]:
    return sorted(name for name, text in sources().items() if ">>> " in text)


@pytest.mark.parametrize("name", _with_examples())
def test_the_examples_in_docstrings_run(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example of a module gives the output that it shows, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    inner = name.removesuffix("__init__").removesuffix(".")
    module = importlib.import_module(f"{PACKAGE}.{inner}" if inner else PACKAGE)
    names = {"sa": shmarray, "np": importlib.import_module("numpy")}
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def claims(text: str) -> dict[str, str]:
    """Every test of a module and its docstring; methods of hypothesis's state machines are no tests."""
    return {
        node.name: ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def objections(file: str, text: str) -> list[str]:
    """What is wrong with the prose of a test module."""
    lines = [] if ast.get_docstring(ast.parse(text)) else [f"{file} has no docstring"]
    for name, claim in claims(text).items():
        if not claim:
            lines.append(f"{file}: {name} has no docstring that states its claim")
        elif not claim.splitlines()[0].endswith("."):
            lines.append(f"{file}: the first line of the docstring of {name} is no sentence")
        if len(name.split("_")) < 4:
            lines.append(f"{file}: {name} is no sentence")
    return lines


def test_every_test_states_its_claim() -> None:
    """Each test is named by a sentence and has a docstring whose first line is one."""
    found = []
    for folder, _, files in os.walk(TESTS):
        for file in sorted(files):
            if file.startswith("test_") and file.endswith(".py"):
                path = os.path.join(folder, file)
                with open(path, encoding="utf-8") as opened:
                    found += objections(os.path.relpath(path, TESTS), opened.read())
    assert found == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"""M."""\ndef test_a_lock_is_freed():\n    """It is."""', []),
        ("def test_a_lock_is_freed():\n    '''It is.'''", ["t has no docstring"]),
        (
            '"""M."""\ndef test_a_lock_is_freed(): pass',
            ["t: test_a_lock_is_freed has no docstring that states its claim"],
        ),
        ('"""M."""\ndef test_lock():\n    """It is."""', ["t: test_lock is no sentence"]),
        (
            '"""M."""\nclass TestA:\n    def test_a_lock_is_freed(self):\n        """It is"""',
            ["t: the first line of the docstring of test_a_lock_is_freed is no sentence"],
        ),
    ],
)
def test_planted_silence_is_caught(text: str, expected: list[str]) -> None:
    """A test without a claim is reported by name; one with a claim is not."""
    assert objections("t", text) == expected
