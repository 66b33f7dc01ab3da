"""Classes of records: namedtuples and dataclasses, by the name they can be imported by.

Owns: which instances can be taken apart into fields and made again elsewhere, and the check that the class found there
is the one that was put.
Must not know: what the fields hold, how a tree is written.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import types
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMEDTUPLE, DATACLASS = "namedtuple", "dataclass"
_MAIN_OF_A_WORKER = "__mp_main__"  # what `__main__` is called in a process that multiprocessing has spawned


class ClassShape(NamedTuple):
    """A class of records: `kind` is `NAMEDTUPLE` or `DATACLASS`; `name` is its qualified name within `module`."""

    kind: str
    module: str
    name: str
    fields: tuple[str, ...]


def kind_of(cls: type) -> str | None:
    """Say which kind of record the instances of a class are; None if they are none."""
    if issubclass(cls, tuple):
        fields = getattr(cls, "_fields", None)
        return NAMEDTUPLE if type(fields) is tuple and all(type(field) is str for field in fields) else None
    return DATACLASS if dataclasses.is_dataclass(cls) and not issubclass(cls, enum.Enum) else None


def shape_of(cls: type) -> ClassShape:
    """Describe a class of records.

    Raises `TypeError` if no other process could find it again, or its instances need more than their fields.
    """
    kind = kind_of(cls)
    if kind is None:
        raise TypeError(f"{cls.__qualname__} is neither a namedtuple nor a dataclass")
    module = "__main__" if cls.__module__ == _MAIN_OF_A_WORKER else cls.__module__
    shape = ClassShape(kind, module, cls.__qualname__, _fields(cls))
    try:
        found = _import(module, shape.name)
    except (ImportError, AttributeError, TypeError, ValueError):  # the last two: its module has no proper name
        found = None
    if found is not cls:
        raise TypeError(
            f"the {kind} {module}.{shape.name} cannot be imported by that name\nDefine it at the level of its module."
        )
    if kind == DATACLASS and _extends_builtin(cls):
        raise TypeError(
            f"the dataclass {shape.name} extends a built-in type, whose content is not in its fields\n"
            "Keep that content in a field of its own."
        )
    return shape


def take_apart(shape: ClassShape, record: Any) -> list[Any]:
    """Give the values of the fields, in order. Raises `TypeError` if the record holds anything that no field holds."""
    surplus = _attributes(record) - set(shape.fields if shape.kind == DATACLASS else ())
    # What is cached can be computed again, so it may be lost.
    surplus = {name for name in surplus if not _is_cache(type(record), name)}
    if surplus:
        names = ", ".join(sorted(surplus))
        raise TypeError(f"a {shape.name} has attributes that are no fields: {names}\nMake them fields, or drop them.")
    if shape.kind == NAMEDTUPLE:
        return list(tuple.__iter__(record))  # what a subclass makes of iteration is its own affair
    try:
        return [getattr(record, name) for name in shape.fields]
    except AttributeError as error:
        raise TypeError(f"a {shape.name} has a field without a value: {error}\nGive each field a value.") from None


def find(shape: ClassShape) -> type:
    """Import the class; `ValueError` if it is not to be had here, or is another one than was put."""
    where = f"{shape.module}.{shape.name}"
    try:
        found = _import(shape.module, shape.name)
    except Exception as error:  # importing runs a module, which may raise anything
        raise ValueError(f"the tree holds a {where}, which cannot be imported here: {error}") from error
    if not isinstance(found, type) or (kind_of(found), _fields(found)) != (shape.kind, shape.fields):
        raise ValueError(
            f"{where} is not the {shape.kind} with the fields {', '.join(shape.fields)} that was put\n"
            "Let both processes run the same version of the code."
        )
    return found


def rebuild(shape: ClassShape, cls: type, values: Sequence[Any]) -> Any:
    """Make a record of its values, without calling `__init__`, `__post_init__` or a `__new__` of its own."""
    if shape.kind == NAMEDTUPLE:
        return tuple.__new__(cls, values)
    record: Any = object.__new__(cls)
    for name, value in zip(shape.fields, values, strict=True):
        object.__setattr__(record, name, value)  # as a frozen dataclass does itself
    return record


def _fields(cls: type) -> tuple[str, ...]:
    if issubclass(cls, tuple):
        return tuple(getattr(cls, "_fields", ()))
    return tuple(field.name for field in dataclasses.fields(cls)) if dataclasses.is_dataclass(cls) else ()


def _extends_builtin(cls: type) -> bool:
    """Say whether `object.__new__` would refuse the class."""
    # Trying it would make an instance, which may have a `__del__`.
    makers = [vars(base).get("__new__") for base in cls.__mro__ if base is not object]
    return any(type(maker) is types.BuiltinFunctionType for maker in makers)


def _import(module: str, name: str) -> object:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _attributes(record: object) -> set[str]:
    """Names of all attributes an instance has, in its `__dict__` and in slots."""
    state: Any = object.__getstate__(record)
    parts = state if type(state) is tuple else (state,)
    return {name for part in parts if part for name in part}


def _is_cache(cls: type, name: str) -> bool:
    return isinstance(getattr(cls, name, None), functools.cached_property)
