"""The reference page: that it is what the code says, and that nothing public is missing on it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Any

import pytest

import shmarray
from shmarray import channels, managed, memory, queues, scopes, sync
from tests.project import reference
from tests.project.test_public_api import TAKEN_OVER


def _page() -> str:
    with open(reference.PAGE, encoding="utf-8") as file:
        return file.read()


def _package_classes() -> dict[str, list[type]]:
    """Classes of the package that are not private, by their bare names."""
    found: dict[str, list[type]] = {}
    for module in pkgutil.walk_packages(shmarray.__path__, "shmarray."):
        if module.name.endswith("__main__") or ".demo" in module.name:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and value.__module__ == module.name and not name.startswith("_"):
                found.setdefault(name, []).append(value)
    return found


def _silent(there: dict[str, Any]) -> list[str]:
    """Entries that say nothing; fields are told of in the docstring of their class."""
    excused = {"__version__", *TAKEN_OVER}
    return [
        name
        for name, value in there.items()
        if name not in excused and not reference.is_field(value) and not reference.text_of(value)
    ]


def _unshown(kind: type, there: dict[str, Any]) -> set[str]:
    """Public members that a class has from the package, and that neither it nor a parent shows."""
    parents = [
        parent
        for parent in kind.__mro__
        if parent.__module__.split(".")[0] == "shmarray" and parent is not scopes.Scope
    ]
    if issubclass(kind, BaseException):
        return set()
    return {
        name
        for name in {name for parent in parents for name in vars(parent) if not name.startswith("_")}
        if name not in reference.INTERNAL
        and not hasattr(getattr(kind, name), "_made_by_register")
        and not any(f"{parent.__name__}.{name}" in there for parent in parents)
    }


@pytest.mark.core
def test_the_page_is_what_the_code_says() -> None:
    """`docs/reference.md` is what `python -m tests.project.reference` makes; run that when this fails."""
    assert _page() == reference.page()


def test_every_public_name_is_on_the_page_once_and_documented() -> None:
    """Names of the door, of a store, and of all that methods return have one entry each, with a docstring."""
    there = reference.entries()
    lines = _page().splitlines()
    begins = [match[1] for line in lines if (match := re.match(r"(?:#{3,4} `([\w.]+)`$)", line))]
    begins += [match[1] for line in lines if (match := re.match(r"- `([A-Z][\w.]+): ", line))]
    assert sorted(begins) == sorted(there)
    assert [name for name in shmarray.__all__ if name not in there] == []
    unshown = {f"{kind.__name__}.{name}" for kind in reference.CLASSES for name in _unshown(kind, there)}
    assert unshown == set()
    assert _silent(there) == []


def test_what_a_public_method_returns_is_on_the_page() -> None:
    """Every class of the package named by what an entry returns, or exported by a part that is loaded late, is an entry."""
    shown, known = set(reference.CLASSES), _package_classes()
    lacking = set()
    for name, value in reference.entries().items():
        if not inspect.isclass(value) and not isinstance(value, str):
            line = reference.signature(name, value)
            is_typed = isinstance(value, property) or reference.is_field(value)
            returned = line.partition(": " if is_typed else " -> ")[2]
            lacking |= {
                word for word in re.findall(r"[A-Z]\w+", returned) if word in known and not shown & set(known[word])
            }
    assert lacking == set()
    late = {getattr(part, name) for part in (channels, managed, memory, queues, sync) for name in part.__all__}
    assert {value for value in late if inspect.isclass(value)} <= shown


def test_signatures_can_be_read() -> None:
    """No signature shows an address, a module's path, or where on a machine something lies."""
    assert re.findall(r"<function.*|<object.*|0x[0-9a-f]{6,}|: shmarray\.\w+", _page()) == []


class _Planted:
    """A class whose method says nothing."""

    def spoken(self, number: int = 3, /, *rest: Any, ready: bool = False, **more: np.ndarray) -> list[channels.Channel]:  # type: ignore[name-defined]  # noqa: F821
        """Say something."""
        raise NotImplementedError

    def silent(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("name", ["spoken", "silent"])
def test_a_planted_method_without_a_docstring_is_caught(name: str) -> None:
    """A public method without a docstring is reported by name; one with a docstring is not."""
    assert _silent({f"Planted.{name}": getattr(_Planted, name)}) == [f"Planted.{name}"] * (name == "silent")


def test_a_signature_keeps_what_can_only_be_given_by_place_or_by_name() -> None:
    """The marks of parameters are kept, and types lose the modules they are from, but for NumPy's short name."""
    assert reference.signature("Planted.spoken", _Planted.spoken) == (
        "Planted.spoken(number: int = 3, /, *rest: Any, ready: bool = False, **more: np.ndarray) -> list[Channel]"
    ).replace("(number", "(\n    number").replace(", /", ",\n    /").replace(", *rest", ",\n    *rest").replace(
        ", ready", ",\n    ready"
    ).replace(", **more", ",\n    **more").replace(") ->", ",\n) ->")
