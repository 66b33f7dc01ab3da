"""SharedTree: a nested structure of arrays in one block.

Owns: putting a dict, list, tuple, namedtuple or dataclass with all its arrays into one block, and reading it lazily.
Must not know: how a structure is written down (`_format.trees`), how a block lives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from shmarray import arrays, attachments, blockfiles, blocks, contents, deletion, joining
from shmarray._format import counts
from shmarray._format import trees as form
from shmarray._format.handle import BlockKey
from shmarray.guards import guard_of
from shmarray.locks import Lock, ReadAccess, WriteAccess

if TYPE_CHECKING:
    from types import TracebackType

    from shmarray._os import segments
    from shmarray.membership import Membership


_SHOWN = 8  # keys in a repr
_WRITE = "Write into a leaf, tree[key][...] = value, or put another tree under the name."


class SharedTree:
    """A nested structure of arrays in one block, read lazily; its handle is small however many leaves there are.

    Like the outermost container it stands for, a read-only `Mapping` (dict, dataclass) or `Sequence` (list, tuple,
    namedtuple); fields of a namedtuple or dataclass are attributes too, but for those called like a method or property of the
    tree itself (`values`, `name`, ...), which only `tree["values"]` reaches. Leaves become `SharedArray`s when touched: they may
    be written, the structure may not. Made by `store.put`; lives and pickles as a `SharedArray` does.

    >>> import numpy as np, shmarray as sa
    >>> with sa.Store() as store:
    ...     tree = store.put({"layers": [np.ones(2), np.zeros(3)], "epoch": 4}, name="model")
    ...     tree["layers"][1][:] = 5
    ...     print(store["model"]["layers"][1].sum(), len(tree["layers"]), tree["epoch"])
    15.0 2 4
    """

    # Held is not the mapping but an array over it: NumPy's references are what the cycle collector does not look into.
    _root: np.ndarray[Any, Any]
    _node: form.Node
    _path: tuple[Any, ...]

    def __init__(self, *_: Any, **__: Any) -> None:
        """Raises `TypeError`: a store makes trees."""
        message = (
            f"a {type(self).__name__} is made by store.put, of a dict, list, tuple, namedtuple or dataclass of arrays"
        )
        raise TypeError(message)

    @classmethod
    def _over(cls, root: np.ndarray[Any, Any], node: form.Node, path: tuple[Any, ...]) -> Self:
        tree = cls.__new__(cls)
        for name, value in (("_root", root), ("_node", node), ("_path", path)):
            object.__setattr__(tree, name, value)
        return tree

    @property
    def lock(self) -> Lock:
        """The guard of the whole block, as a `multiprocessing.Lock`; see `SharedArray.lock`."""
        return Lock(self._root, guard_of(self._segment))

    def write(self, timeout: float | None = None, *, heal: bool = False) -> WriteAccess[Self]:
        """Begin exclusive access to the whole block; see `SharedArray.write`."""
        return WriteAccess(guard_of(self._segment), self, timeout, heal=heal)

    def read(self, timeout: float | None = None) -> ReadAccess[Self]:
        """Begin shared access to the whole block; leaves reached through what it gives cannot be written to."""
        root = self._root.view()
        root.flags.writeable = False
        return ReadAccess(guard_of(self._segment), type(self)._over(root, self._node, self._path), timeout)

    @property
    def _segment(self) -> segments.Segment:
        return _segment_of(self._root)

    @property
    def name(self) -> str | None:
        """Name of the whole tree in its store; None if it is anonymous."""
        block: attachments.Block = self._segment.tag
        return block.key.name

    @property
    def block_name(self) -> str:
        """File name of the block that holds the whole tree; see `SharedArray.block_name`."""
        return blockfiles.expose(self._segment)

    def unflatten(self) -> Any:
        """Build the original structure; its arrays are `SharedArray`s in this memory, not copies."""
        return form.unflatten(self._node, lambda index: _leaf(self._root, index))

    def __copy__(self) -> Any:
        """Copy into private memory: the original structure with plain arrays."""
        return form.unflatten(self._node, lambda index: _leaf(self._root, index).copy(order="K"))

    def __deepcopy__(self, memo: Any) -> Any:
        """Copy into private memory: the original structure with plain arrays."""
        return self.__copy__()

    def unlink(self) -> None:
        """Delete the whole tree for everyone, like `SharedArray.unlink`. May be repeated."""
        deletion.delete(self._segment)

    def __enter__(self) -> Self:
        """Begin a scope that frees the tree at its end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the whole tree for everyone."""
        self.unlink()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a handle: the block and the path to this part of it."""
        return _attach, (tuple(blocks.offer(self._segment)), self._path)

    def __getattr__(self, name: str) -> Any:
        """Reach a field of a namedtuple or dataclass."""
        if not name.startswith("_") and name in self._node.fields:
            return self._child(name)
        message = f"{type(self).__name__} has no attribute {name!r}"
        raise AttributeError(message)

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises `AttributeError`: the structure is fixed."""
        message = f"{type(self).__name__}.{name} cannot be set: a tree's structure and numbers are fixed\n{_WRITE}"
        raise AttributeError(message)

    def _put_back(self, key: Any, value: Any) -> None:
        """Take what lies there already, as `tree[key] += 1` gives it: it was changed in place. Raises `TypeError` for anything else."""
        there = self.__getitem__(key) if isinstance(value, np.ndarray) else None
        if not isinstance(there, np.ndarray) or _facts(there) != _facts(value):
            message = f"a {type(self).__name__} does not take another value for {key!r}: a tree's structure and numbers are fixed\n{_WRITE}"
            raise TypeError(message)

    def _child(self, key: Any) -> Any:
        return _view(self._root, self._node.child(key), (*self._path, key))

    def __len__(self) -> int:
        """How many children the outermost container has."""
        return len(self._node)

    def __repr__(self) -> str:
        """Say what kind of container it stands for and what its children are called."""
        keys = self._node.keys()
        shown = ", ".join(repr(key) for key in keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
        return f"<{type(self).__name__} {self._node.kind} of {len(keys)}: {shown}>"


class SharedMapping(SharedTree, Mapping[Any, Any]):
    """A `SharedTree` that stands for a dict or a dataclass."""

    def __getitem__(self, key: Any) -> Any:
        """Reach a child."""
        return self._child(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take the leaf that lies there already: so `tree[key] += 1` adds in place. Raises `TypeError` for any other value."""
        self._put_back(key, value)

    def __iter__(self) -> Iterator[Any]:
        """Go through the keys, in their order."""
        return iter(self._node.keys())

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        """Raises `TypeError`: NumPy would take the keys for the data. As an object (`dtype=object`), NumPy gets the tree itself."""
        if dtype is not None and np.dtype(dtype).kind == "O":
            box = np.empty((), object)
            box[()] = self
            return box
        keys = self._node.keys()
        remedy = (
            f"Take what is in it: tree[{keys[0]!r}], or list(tree.values())." if keys else "There is nothing in it."
        )
        message = f"a tree ({self._node.kind}) is no array\n{remedy}"
        raise TypeError(message)

    __eq__ = object.__eq__  # comparing arrays gives arrays: equality of contents has no truth value
    __hash__ = object.__hash__


class SharedSequence(SharedTree, Sequence[Any]):
    """A `SharedTree` that stands for a list, a tuple or a namedtuple."""

    def __getitem__(self, index: Any) -> Any:
        """Reach a child; a slice gives a list of children."""
        if isinstance(index, slice):
            return [self._child(position) for position in range(*index.indices(len(self)))]
        size = len(self)
        if type(index) is not int:
            index = counts.position(index, f"the position in a {self._node.kind}")
        if not -size <= index < size:
            message = f"index {index} of a {self._node.kind} of {size}"
            raise IndexError(message)
        return self._child(index % size)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Take the leaf that lies there already: so `tree[index] += 1` adds in place. Raises `TypeError` for any other value."""
        self._put_back(index, value)


def _facts(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Tell where an array lies and how."""
    return contents.address_of(array), array.shape, array.strides, array.dtype


def _segment_of(root: np.ndarray[Any, Any]) -> segments.Segment:
    segment = contents.segment_of(root)
    if segment is None:
        message = "the memory of a tree is not a block"
        raise RuntimeError(message)
    return segment


def _leaf(root: np.ndarray[Any, Any], index: int) -> arrays.SharedArray:
    array = arrays.leaf(_segment_of(root), index)
    array.flags.writeable = root.flags.writeable
    return array


def _view(root: np.ndarray[Any, Any], node: form.Node, path: tuple[Any, ...]) -> Any:
    """Give what stands at a node: an array, a value, or a tree below it."""
    if node.kind == "value":
        return node.value
    if node.kind in ("array", "scalar"):
        array = _leaf(root, node.leaf)
        return array if node.kind == "array" else array[()]
    kind = SharedMapping if node.kind in ("dict", "OrderedDict", "dataclass") else SharedSequence
    return kind._over(root, node, path)


def is_tree(value: object) -> bool:
    """Say whether `put` takes a value for a nested structure and not for an array."""
    if isinstance(value, (dict, list, tuple, SharedTree)):
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def block_of_whole(tree: SharedTree) -> segments.Segment | None:
    """Give the block of which this is all; None for a part of a tree."""
    return None if tree._path else tree._segment


def put(member: Membership, value: Any, name: str | None, *, replace: bool = False) -> Any:
    """Copy a nested structure into one new block. Raises as `_format.trees.flatten` and `contents.create` do."""
    description, leaves = form.flatten(value.unflatten() if isinstance(value, SharedTree) else value)
    laid_out = [(leaf.dtype, contents.layout_like(leaf)) for leaf in leaves]
    segment = contents.create(member, name, laid_out, sources=leaves, tree=description, replace=replace)
    return open_segment(segment)


def open_segment(segment: segments.Segment) -> Any:
    """Give what a block holds: a `SharedArray`, or a `SharedTree`. Raises `CorruptBlockError`."""
    description = contents.describe(segment)
    if description.tree is None:
        return arrays.leaf(segment, 0)
    try:
        return _view(contents.root_of(segment), form.root(description.tree), ())
    except ValueError as error:
        _refuse(segment, error)


def _refuse(segment: segments.Segment, error: Exception) -> NoReturn:
    raise contents.undescribed(segment.tag, error) from None


def _attach(key: tuple[Any, ...], path: tuple[Any, ...]) -> Any:
    """Load a handle of a tree or of a part of one."""
    block_key = BlockKey(*key)
    segment = blocks.attach(joining.join(block_key.store_key), block_key)
    description = contents.describe(segment)
    try:
        node = form.root(description.tree)
        for step in path:
            node = node.child(step)
        return _view(contents.root_of(segment), node, tuple(path))
    except (ValueError, KeyError, IndexError) as error:
        _refuse(segment, error)


__all__ = ["SharedTree"]
