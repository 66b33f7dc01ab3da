"""Nested structures of arrays as a JSON description and a flat list of arrays, and back.

Owns: which structures can be shared, and how each node of one is written:

    null, 7, "text", ["y", ...]      a value, as in `values`
    ["a", 3], ["s", 3]               leaf 3: an array; a NumPy scalar
    ["l", ...], ["t", ...]           list, tuple: the children follow
    ["d", {KEY: child, ...}]         dict whose keys are all strings; "o" for "d" is an OrderedDict
    ["d", [KEY, ...], [child, ...]]  dict with other keys, each of them a value
    ["c", 5, ...]                    namedtuple or dataclass of class 5 in the table: a child for each field

and the whole: {"tree": node, "leaves": their number, "classes": [[kind, module, name, [field, ...]], ...]}.
Must not know: where leaves are kept, files, processes.
"""

from __future__ import annotations

import collections
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from shmarray._format import classes, foreign
from shmarray._format.dtypes import check_dtype
from shmarray._format.nodes import KEY_TYPES, MAX_DEPTH, Node, root, unflatten
from shmarray._format.values import VALUE_TYPES, encode_value
from shmarray.errors import DTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shmarray._format.classes import ClassShape

__all__ = ["MAX_DEPTH", "MAX_NODES", "Node", "flatten", "root", "unflatten"]

#: How many nodes (leaves, values, containers) a tree may have, one that occurs twice counted twice.
MAX_NODES = 1 << 20
_WORD = 64


def flatten(tree: object) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
    """Take a structure apart: a description for `json.dumps`, and its arrays. Nothing is copied.

    Containers are dict (keys: str, int, float, bool, None), OrderedDict, list, tuple, and instances of namedtuples and
    dataclasses that can be imported by name; between the arrays may stand NumPy scalars, int, float, complex, bool,
    str, bytes and None. Arrays, and tensors that NumPy can read, come as plain `ndarray` views, one for each object, however often it
    occurs; scalars as 0-d arrays.

    Raises, always naming the path: `DTypeError` for a dtype that cannot be shared (with `path`, `field`, `dtype`),
    `TypeError` for any other type, `ValueError` for a cycle, more than `MAX_DEPTH` levels or `MAX_NODES` nodes.

    >>> flatten({"w": np.zeros(3), "layers": [2, None]})
    ({'tree': ['d', {'w': ['a', 0], 'layers': ['l', 2, None]}], 'leaves': 1, 'classes': []}, [array([0., 0., 0.])])
    >>> description, leaves = flatten((np.arange(2), "a"))
    >>> unflatten(root(description), leaves.__getitem__)
    (array([0, 1]), 'a')
    """
    work = _Flattening()
    node = work.node(tree)
    return {"tree": node, "leaves": len(work.leaves), "classes": work.table}, work.leaves


class _Attribute(str):
    """A step of a path that is a field, not an index or key."""

    __slots__ = ()


class _Flattening:
    """One run of `flatten`: what has been met so far."""

    def __init__(self) -> None:
        self.leaves: list[np.ndarray[Any, Any]] = []
        self.table: list[list[Any]] = []
        self._shapes: dict[type, tuple[int, ClassShape]] = {}
        self._met: dict[int, tuple[int, object]] = {}  # keeps the object, so that no other takes its id
        self._above: set[int] = set()
        self._path: list[Any] = []
        self._room = MAX_NODES

    def node(self, value: Any) -> Any:
        """Write one node and all below it."""
        kind = type(value)
        if kind in VALUE_TYPES:
            return encode_value(value)
        if isinstance(value, np.ndarray):
            return ["a", self._leaf(value)]
        if isinstance(value, np.generic):
            return ["s", self._leaf(value)]
        if kind is list or kind is tuple:
            return ["l" if kind is list else "t", *self._children(value, range(len(value)), value)]
        if kind is dict or kind is collections.OrderedDict:
            return ["d" if kind is dict else "o", *self._members(value)]
        if kind not in self._shapes and classes.kind_of(kind) is None:
            if not foreign.is_tensor(kind):
                self._refuse(*_objection(value))
            return ["a", self._leaf(value, self._array_of(value))]
        return self._record(value)

    def _array_of(self, value: Any) -> np.ndarray[Any, Any]:
        try:
            return foreign.array_of(value)
        except TypeError as error:
            raise TypeError(f"{self._where()}: {error}") from None

    def _leaf(self, value: Any, array: np.ndarray[Any, Any] | None = None) -> int:
        """Number a leaf, once for each object; `array` is what NumPy makes of it, if it is not NumPy's own."""
        known = self._met.get(id(value))
        if known is not None:
            return known[0]
        array = np.asarray(value) if array is None else array
        try:
            check_dtype(array.dtype)
        except DTypeError as error:
            summary = f"{self._where()}: {error.summary}"
            raise DTypeError(summary, **{**error.facts, "path": self._where()}, remedy=error.remedy) from None
        if type(value) is not np.ndarray:
            self._check_kind(value)
        self._met[id(value)] = len(self.leaves), value
        self.leaves.append(array)
        return len(self.leaves) - 1

    def _check_kind(self, value: Any) -> None:
        """Refuse what `np.asarray` would take half of. The class of other arrays is lost, but no content is."""
        if isinstance(value, np.generic) and type(value) is not value.dtype.type:
            self._refuse(*_objection(value))
        masked = sys.modules.get("numpy.ma")  # there, if anyone has made such an array
        if masked is not None and isinstance(value, masked.MaskedArray):
            self._refuse("a masked array is two arrays", "Put a.data and a.mask, or a.filled().")

    def _members(self, value: dict[Any, Any]) -> list[Any]:
        keys = list(value)
        for key in keys:
            if type(key) not in KEY_TYPES:
                problem = f"{_article(type(key))} as the key of a dict cannot be shared"
                self._refuse(problem, "Use str, int, float, bool or None as keys.")
        encoded = [encode_value(key) for key in keys]
        children = self._children(value, keys, list(value.values()))
        if all(type(key) is str for key in encoded):
            return [dict(zip(encoded, children, strict=True))]
        return [encoded, children]

    def _record(self, value: Any) -> list[Any]:
        kind = type(value)
        try:
            if kind not in self._shapes:
                shape = classes.shape_of(kind)
                self._shapes[kind] = len(self.table), shape
                self.table.append([*shape[:3], list(shape.fields)])
            index, shape = self._shapes[kind]
            values = classes.take_apart(shape, value)
        except TypeError as error:
            raise TypeError(f"{self._where()}: {error}") from None
        return ["c", index, *self._children(value, [_Attribute(name) for name in shape.fields], values)]

    def _children(self, container: object, steps: Iterable[Any], values: Sequence[Any]) -> list[Any]:
        if id(container) in self._above:
            raise ValueError(f"{self._where()}: this {type(container).__qualname__} contains itself\nBreak the cycle.")
        if len(self._path) == MAX_DEPTH:
            raise ValueError(f"{self._where()}: nests deeper than {MAX_DEPTH} levels\nFlatten the structure.")
        self._room -= len(values)
        if self._room < 0:
            message = f"{self._where()}: the tree has more than {MAX_NODES:,} nodes, counting shared ones each time"
            raise ValueError(f"{message}\nPut numbers in arrays, not in lists.")
        self._above.add(id(container))
        nodes = []
        for step, value in zip(steps, values, strict=True):
            self._path.append(step)
            nodes.append(self.node(value))
            self._path.pop()
        self._above.discard(id(container))
        return nodes

    def _where(self) -> str:
        return _short("".join(map(_step, self._path))) or "the tree itself"

    def _refuse(self, problem: str, remedy: str) -> NoReturn:
        raise TypeError(f"{self._where()}: {problem}\n{remedy}")


def _objection(value: object) -> tuple[str, str]:
    """Say why a value has no place in a tree, and what to do."""
    kind = type(value)
    if isinstance(value, np.generic):
        return f"{_article(kind)} would come back as {_article(value.dtype.type)}", "Convert it to NumPy's own type."
    for base in (dict, list, tuple, int, float, complex, str, bytes):
        if isinstance(value, base):
            return f"{_article(kind)} would come back as {_article(base)}", f"Convert it with {base.__name__}(...)."
    return f"{_article(kind)} cannot be shared", (
        "A tree is made of arrays, dict, list, tuple, namedtuples, dataclasses, numbers, str, bytes and None: "
        "convert it, as with np.asarray(...) or list(...); what a store makes goes into store.dict() or store.list()."
    )


def _step(step: Any) -> str:
    if type(step) is _Attribute:
        return f".{step}"
    # repr refuses an int of very many digits
    return f"[{hex(step) if type(step) is int and step.bit_length() > _WORD else repr(step)}]"


def _article(kind: type) -> str:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _short(text: str) -> str:
    """Leave out the middle of a long text."""
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"  # noqa: PLR2004  about two lines
