"""Reading the description of a tree: node by node, or all at once.

Owns: what a well-formed description is, and how a node of it is looked at or made into what it stands for. `trees` has
the table of how each node is written.
Must not know: where leaves are kept, files, processes.
"""

from __future__ import annotations

import collections
import operator
from typing import TYPE_CHECKING, Any

from shmarray._format import classes
from shmarray._format.classes import DATACLASS, NAMEDTUPLE, ClassShape
from shmarray._format.values import decode_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: How deep containers may nest.
MAX_DEPTH = 100
#: The types that keys of a dict may have. A subclass is none: its type would be lost.
KEY_TYPES = frozenset([str, int, float, bool, type(None)])

_LEAVES = {"a": "array", "s": "scalar"}
_SEQUENCES = {"l": "list", "t": "tuple"}
_MAPPINGS = {"d": "dict", "o": "OrderedDict"}


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

    >>> unflatten(root({"tree": ["l", ["a", 0], "text", ["a", 0]], "leaves": 1, "classes": []}), "leaf {}".format)
    ['leaf 0', 'text', 'leaf 0']
    """
    return _build(node, leaf, 0)


class Node:
    """One node of a description. It looks at itself only, so a tree need not be built to be walked.

    `kind` is "dict", "OrderedDict", "list", "tuple", "namedtuple", "dataclass", "array" or "scalar" (both are leaves),
    or "value". Whatever meets something malformed raises `ValueError`.
    """

    __slots__ = ("_children", "_keyed", "_raw", "_shape", "_start", "_table", "_value", "kind")

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
        self._value: Any = None
        if type(raw) is list:
            self._read(raw)
        else:
            self._value = decode_value(raw)

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
                self._value = decode_value(raw)

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
        return self._value

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
            if len(keyed) != len(keys) or not all(type(key) in KEY_TYPES for key in keys):
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
            names = tuple(field for field in fields if isinstance(field, str))
            if len(fields) == len(names) == len(set(names)):
                return ClassShape(kind, module, name, names)
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
