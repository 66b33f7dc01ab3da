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
import operator
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from shmarray._format import classes
from shmarray._format.classes import DATACLASS, NAMEDTUPLE, ClassShape
from shmarray._format.dtypes import check_dtype
from shmarray._format.values import VALUE_TYPES, decode_value, encode_value
from shmarray.errors import DTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: How deep containers may nest, and how many nodes (leaves, values, containers) a tree may have.
MAX_DEPTH = 100
MAX_NODES = 1 << 20

_KEY_TYPES = frozenset([str, int, float, bool, type(None)])
_LEAVES = {"a": "array", "s": "scalar"}
_SEQUENCES = {"l": "list", "t": "tuple"}
_MAPPINGS = {"d": "dict", "o": "OrderedDict"}


def flatten(tree: object) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
    """Take a structure apart: a description for `json.dumps`, and its arrays. Nothing is copied.

    Containers are dict (keys: str, int, float, bool, None), OrderedDict, list, tuple, and instances of namedtuples and
    dataclasses that can be imported by name; between the arrays may stand NumPy scalars, int, float, complex, bool,
    str, bytes and None. Arrays come as plain `ndarray` views, one for each object, however often it occurs; scalars
    as 0-d arrays.

    Raises, always naming the path: `DTypeError` for a dtype that cannot be shared (with `path`, `field`, `dtype`),
    `TypeError` for any other type, `ValueError` for a cycle, more than `MAX_DEPTH` levels or `MAX_NODES` nodes.

    >>> flatten({"w": np.zeros(3), "layers": [2, None]})
    ({'tree': ['d', {'w': ['a', 0], 'layers': ['l', 2, None]}], 'leaves': 1, 'classes': []}, [array([0., 0., 0.])])
    """
    work = _Flattening()
    node = work.node(tree)
    return {"tree": node, "leaves": len(work.leaves), "classes": work.table}, work.leaves


def root(description: object) -> Node:
    """Open a description at its top; `ValueError` if it is malformed. Deeper nodes are looked at when reached."""
    match description:
        case {"tree": tree, "leaves": leaves, "classes": [*entries], **rest} if not rest and type(leaves) is int:
            return Node(tree, _Table([_read_class(entry) for entry in entries], leaves))
        case _:
            raise ValueError("not the description of a tree")


def unflatten(node: Node, leaf: Callable[[int], Any]) -> Any:
    """Build the structure below `node`; `leaf(i)` gives the array of leaf i, of which a scalar is element `[()]`.

    Raises `ValueError` if the description is malformed or needs a class that is not to be had here; what `leaf` raises
    passes through.

    >>> description, leaves = flatten([np.arange(2), "a"])
    >>> unflatten(root(description), leaves.__getitem__)
    [array([0, 1]), 'a']
    """
    return _build(node, leaf, 0)


class Node:
    """One node of a description. It looks at itself only, so a tree need not be built to be walked.

    `kind` is "dict", "OrderedDict", "list", "tuple", "namedtuple", "dataclass", "array" or "scalar" (both are leaves), or
    "value". Whatever meets something malformed raises `ValueError`.
    """

    __slots__ = ("_children", "_keyed", "_raw", "_shape", "_start", "_table", "kind")

    def __init__(self, raw: Any, table: _Table) -> None:
        """Look at one node: of which kind it is, and that it is complete."""
        self.kind = "value"
        self._raw = raw
        self._table = table
        # A list or tuple, or a class, has its children behind its tag; they are left there, since they may be many.
        self._children: Sequence[Any] = ()
        self._start = 0
        self._keyed: dict[Any, Any] | None = None
        self._shape: ClassShape | None = None
        if type(raw) is list:
            self._read(raw)
        else:
            decode_value(raw)

    def _read(self, raw: list[Any]) -> None:
        match raw:
            case ["a" | "s" as tag, index] if type(index) is int and 0 <= index < self._table.leaves:
                self.kind = _LEAVES[tag]
            case ["l" | "t" as tag, *_]:
                self.kind, self._children, self._start = _SEQUENCES[tag], raw, 1
            case ["d" | "o" as tag, dict(keyed)]:
                self.kind, self._keyed = _MAPPINGS[tag], keyed
            case ["d" | "o" as tag, list(keys), list(children)] if len(keys) == len(children):
                self.kind, self._children = _MAPPINGS[tag], children
            case ["c", index, *children] if type(index) is int and 0 <= index < len(self._table.shapes):
                self._shape = self._table.shapes[index]
                self.kind, self._children, self._start = self._shape.kind, raw, 2
                if len(children) != len(self._shape.fields):
                    raise ValueError(f"a tree has a {self._shape.name} with too many or too few fields")
            case _:
                decode_value(raw)

    def __len__(self) -> int:
        """Count the children."""
        return len(self._children) - self._start if self._keyed is None else len(self._keyed)

    @property
    def fields(self) -> tuple[str, ...]:
        """Field names of a namedtuple or dataclass; of others, none."""
        return self._shape.fields if self._shape is not None else ()

    @property
    def leaf(self) -> int:
        """Index of the leaf; `TypeError` unless the kind is "array" or "scalar"."""
        if self.kind not in _LEAVES.values():
            raise TypeError(f"a {self.kind} is no leaf")
        index: int = self._raw[1]
        return index

    @property
    def value(self) -> Any:
        """The Python object (or `numpy.str_`, `numpy.bytes_`); `TypeError` unless the kind is "value"."""
        if self.kind != "value":
            raise TypeError(f"a {self.kind} is no value")
        return decode_value(self._raw)

    def keys(self) -> list[Any]:
        """Give what `child` takes: keys of a mapping, field names of a dataclass, indices of anything else."""
        if self.kind in _MAPPINGS.values():
            return list(self._by_key())
        return list(self.fields) if self.kind == DATACLASS else list(range(len(self)))

    def children(self) -> list[Node]:
        """Give all children, in the order of `keys`."""
        below = self._children[self._start :] if self._keyed is None else self._keyed.values()
        return [Node(child, self._table) for child in below]

    def child(self, key: Any) -> Node:
        """Give one child, or raise `KeyError` or `IndexError` as its container would. A namedtuple takes names too."""
        if self.kind in _MAPPINGS.values():
            return Node(self._by_key()[key], self._table)
        if self.kind == DATACLASS or (self.kind == NAMEDTUPLE and isinstance(key, str)):
            if key not in self.fields:
                raise KeyError(key)
            key = self.fields.index(key)
        index, size = operator.index(key), len(self)
        if not -size <= index < size:
            raise IndexError(f"index {index} of a {self.kind} of {size}")
        return Node(self._children[self._start + index % size], self._table)

    def assemble(self, children: list[Any]) -> Any:
        """Make the container that this node stands for of its finished children."""
        if self._shape is not None:
            try:
                return classes.rebuild(self._shape, self._table.find(self._shape), children)
            except (TypeError, AttributeError) as error:
                raise ValueError(f"a tree has a {self._shape.name} that cannot be made: {error}") from error
        match self.kind:
            case "list":
                return children
            case "tuple":
                return tuple(children)
            case "dict":
                return dict(zip(self._by_key(), children, strict=True))
            case _:
                return collections.OrderedDict(zip(self._by_key(), children, strict=True))

    def _by_key(self) -> dict[Any, Any]:
        if self._keyed is None:
            keys = [decode_value(key) for key in self._raw[1]]
            keyed = dict(zip(keys, self._children, strict=True))
            if len(keyed) != len(keys) or not all(type(key) in _KEY_TYPES for key in keys):
                raise ValueError("a tree has a dict with keys that no dict can have")
            self._keyed = keyed
        return self._keyed


class _Table:
    """What all nodes of one description share."""

    def __init__(self, shapes: list[ClassShape], leaves: int) -> None:
        self.shapes = shapes
        self.leaves = leaves
        self._found: dict[ClassShape, type] = {}

    def find(self, shape: ClassShape) -> type:
        if shape not in self._found:
            self._found[shape] = classes.find(shape)
        return self._found[shape]


def _read_class(entry: object) -> ClassShape:
    match entry:
        case ["namedtuple" | "dataclass" as kind, str(module), str(name), [*fields]]:
            if all(type(field) is str for field in fields) and len(set(fields)) == len(fields):
                return ClassShape(kind, module, name, tuple(fields))
    raise ValueError("a tree has a table of classes that means nothing")


def _build(node: Node, leaf: Callable[[int], Any], depth: int) -> Any:
    if node.kind == "array":
        return leaf(node.leaf)
    if node.kind == "scalar":
        return leaf(node.leaf)[()]
    if node.kind == "value":
        return node.value
    if depth == MAX_DEPTH:
        raise ValueError(f"a tree nests deeper than {MAX_DEPTH} levels")
    return node.assemble([_build(child, leaf, depth + 1) for child in node.children()])


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
        if classes.kind_of(kind) is None:
            self._refuse(*_objection(value))
        return self._record(value)

    def _leaf(self, value: Any) -> int:
        known = self._met.get(id(value))
        if known is not None:
            return known[0]
        try:
            check_dtype(value.dtype)
        except DTypeError as error:
            summary = f"{self._where()}: {error.summary}"
            raise DTypeError(summary, **{**error.facts, "path": self._where()}, remedy=error.remedy) from None
        if isinstance(value, np.generic) and type(value) is not value.dtype.type:
            self._refuse(*_objection(value))
        if (masked := sys.modules.get("numpy.ma")) is not None and isinstance(value, masked.MaskedArray):
            self._refuse("a masked array is two arrays", "Put its data and its mask, or a.filled().")
        self._met[id(value)] = len(self.leaves), value
        self.leaves.append(np.asarray(value))
        return len(self.leaves) - 1

    def _members(self, value: dict[Any, Any]) -> list[Any]:
        keys = list(value)
        for key in keys:
            if type(key) not in _KEY_TYPES:
                problem = f"{_article(type(key))} as the key of a dict cannot be shared ({_short(repr(key))})"
                self._refuse(problem, "Use str, int, float, bool or None as keys.")
        encoded = [encode_value(key) for key in keys]
        children = self._children(value, keys, list(value.values()))
        if all(type(key) is str for key in encoded) and all(type(key) is str for key in keys):
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
        steps = [f".{step}" if type(step) is _Attribute else f"[{step!r}]" for step in self._path]
        return _short("".join(steps)) or "the tree itself"

    def _refuse(self, problem: str, remedy: str) -> NoReturn:
        raise TypeError(f"{self._where()}: {problem}\n{remedy}")


def _objection(value: object) -> tuple[str, str]:
    """Say why a value has no place in a tree, and what to do."""
    kind = type(value)
    problem = f"{_article(kind)} cannot be shared"
    for base in (dict, list, tuple, bool, int, float, complex, str, bytes):
        if isinstance(value, base):
            problem = f"{_article(kind)} would come back as {_article(base)}"
            return problem, f"Convert it with {base.__name__}(...), or make it a dataclass."
    if isinstance(value, np.generic):
        return f"{_article(kind)} would come back as {_article(value.dtype.type)}", "Convert it to NumPy's own type."
    return problem, (
        "A tree is made of arrays, dict, list, tuple, namedtuples, dataclasses, numbers, str, bytes and None: "
        "convert it, as with np.asarray(...) or list(...)."
    )


def _article(kind: type) -> str:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _short(text: str) -> str:
    """Leave out the middle of a long text."""
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"  # noqa: PLR2004  about two lines
