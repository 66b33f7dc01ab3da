"""Store: named and anonymous shared arrays with one lifetime.

Owns: what a user does with a store: open, join, close; make arrays, put, look up, replace, delete; statistics and self-check.
Must not know: files, locks, headers; how anything survives a SIGKILL (`membership`, `blocks`, `reaper`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping
from multiprocessing import util
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from shmarray import arrays, blocks, census, exhaustion, membership, objects, trees
from shmarray._format import layouts, names
from shmarray._os import limits, segments
from shmarray.errors import ArrayExistsError, ArrayNameError, ArrayNotFoundError
from shmarray.guardian import launch

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import ArrayLike, DTypeLike

    from shmarray.arrays import SharedArray
    from shmarray.census import Problem, StoreStats
    from shmarray.guardian.manager import GuardianManager
    from shmarray.membership import Membership

    Order = Literal["C", "F"]
    LikeOrder = Literal["C", "F", "A", "K"]

_ON_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs"})


class Store(MutableMapping[str, Any]):
    """A set of NumPy arrays in shared memory, used by many processes and freed exactly once.

    `Store()` opens a store that this process owns; `name` lets unrelated processes of the same user join it by
    `shmarray.connect(name)`. `capacity` bounds the bytes of all its blocks; `directory` puts them in an ordinary directory
    instead of shared memory, for what does not fit there. `guard="multiprocessing"` makes its locks plain semaphores, which
    hang when their holder is killed, as those of `multiprocessing` do. A store pickles: the receiver gets it connected.

    As a mapping it holds the named arrays. A *named* array lives until it is deleted or the store closes; an *anonymous* one
    as long as any process holds a view of it or a handle to it is in flight. Closing, the end of the `with` block, the end
    of the process and its death by any signal end the store: no name stays, and views stay valid until they are dropped.

    Raises `StoreExistsError` when a store of that name is alive, `StoreFullError` when there is no room, `ArrayNameError` for
    a text that cannot be a name, `FileNotFoundError` or `NotADirectoryError` for the directory.

    >>> import numpy as np, shmarray as sa
    >>> with sa.Store() as store:
    ...     store["x"] = np.eye(3)
    ...     y = store.zeros(1000, dtype="u2", name="y")
    ...     sorted(store)
    ['x', 'y']
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        capacity: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        guard: Literal["robust", "multiprocessing"] = "robust",
    ) -> None:
        """Open a store owned by this process; dead stores of the same user are removed on the way."""
        if name is not None:
            names.check(name, "a store")
        place = _check_directory(directory)
        self._closed = False
        self._at_exit: util.Finalize | None = None
        with exhaustion.explained(place, 0):
            self._member = membership.found(name, place, _check_capacity(capacity), _check_guard(guard))
        try:
            # After other exit work: worker processes have been joined then, and have dropped what they held.
            self._at_exit = util.Finalize(None, self._member.close, exitpriority=-100)
            launch.launch(self._member)
        except BaseException:
            self._member.close()
            raise

    @classmethod
    def _connected(cls, member: Membership) -> Self:
        store = cls.__new__(cls)
        store._closed = False
        store._at_exit = None
        store._member = member
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address: the receiving process joins the store."""
        member = self._open()
        member.require_open()
        return _join, (member.key.uid, member.key.store)

    def _open(self) -> Membership:
        if self._closed:
            raise self._member.closed_error()
        return self._member

    # -- identity ------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """Name under which other processes may connect; None if it has none."""
        return self._member.control.name

    @property
    def id(self) -> str:
        """Identity of the store: 16 hexadecimal digits, part of every file name of its blocks."""
        return f"{self._member.key.store:016x}"

    @property
    def is_owner(self) -> bool:
        """Whether this process opened the store: then closing it here ends it for everyone."""
        return self._member.is_owner

    @property
    def closed(self) -> bool:
        """Whether the store has ended, or was closed here."""
        return self._closed or not self._member.is_open()

    @property
    def guardian_pid(self) -> int | None:
        """Pid of the process that cleans up if the owner is killed; None if there is none now."""
        return launch.guardian_of(self._member)

    @exhaustion.explaining
    def manager(self) -> GuardianManager:
        """Connect to the store's guardian, a `SharedMemoryManager` and `SyncManager`: `dict`, `list`, `Namespace`, ...

        What it serves are proxies: slower than arrays, and gone with the guardian. Raises `StoreClosedError`.
        """
        member = self._open()
        member.require_open()
        return launch.connect(member)

    def __repr__(self) -> str:
        """Say which store it is and whether it is open."""
        label = repr(self.name) if self.name else self.id
        return f"<{type(self).__name__} {label} {'closed' if self.closed else 'open'}>"

    def __eq__(self, other: object) -> bool:
        """Two objects are equal if they stand for the same store."""
        return isinstance(other, Store) and other._member.key == self._member.key

    def __hash__(self) -> int:
        """Hash by identity of the store."""
        return hash(self._member.key)

    # -- making arrays -------------------------------------------------------------------------------------------------

    def empty(self, shape: Any, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None) -> SharedArray:
        """Make an array without setting its elements; like `numpy.empty`. In fresh memory they are zero.

        Raises `ShapeError`, `DTypeError`, `ArrayNameError`, `ArrayExistsError`, `StoreFullError`, `StoreClosedError`.

        >>> import shmarray as sa
        >>> with sa.Store() as store:
        ...     store.empty((2, 3), "f4").shape
        (2, 3)
        """
        return self._make(shape, dtype, order, name)

    def zeros(self, shape: Any, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None) -> SharedArray:
        """Make an array of zeros; like `numpy.zeros`. Raises as `empty` does."""
        return self._make(shape, dtype, order, name)

    def ones(self, shape: Any, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None) -> SharedArray:
        """Make an array of ones; like `numpy.ones`. Raises as `empty` does."""
        return self._make(shape, dtype, order, name, 1)

    def full(
        self, shape: Any, fill_value: Any, dtype: DTypeLike | None = None, order: Order = "C", *, name: str | None = None
    ) -> SharedArray:
        """Make an array filled with a value; like `numpy.full`. Raises as `empty` does."""
        kind = np.asarray(fill_value).dtype if dtype is None else dtype
        return self._make(shape, kind, order, name, fill_value)

    def empty_like(
        self,
        prototype: ArrayLike,
        dtype: DTypeLike | None = None,
        order: LikeOrder = "K",
        *,
        shape: Any = None,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array with the shape, dtype and layout of another; like `numpy.empty_like`. Raises as `empty` does."""
        return self._make_like(prototype, dtype, order, shape, name)

    def zeros_like(
        self,
        a: ArrayLike,
        dtype: DTypeLike | None = None,
        order: LikeOrder = "K",
        *,
        shape: Any = None,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array of zeros like another; like `numpy.zeros_like`. Raises as `empty` does."""
        return self._make_like(a, dtype, order, shape, name)

    def ones_like(
        self,
        a: ArrayLike,
        dtype: DTypeLike | None = None,
        order: LikeOrder = "K",
        *,
        shape: Any = None,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array of ones like another; like `numpy.ones_like`. Raises as `empty` does."""
        return self._make_like(a, dtype, order, shape, name, 1)

    def full_like(
        self,
        a: ArrayLike,
        fill_value: Any,
        dtype: DTypeLike | None = None,
        order: LikeOrder = "K",
        *,
        shape: Any = None,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array like another, filled with a value; like `numpy.full_like`. Raises as `empty` does."""
        return self._make_like(a, dtype, order, shape, name, fill_value)

    def _make_like(
        self, prototype: ArrayLike, dtype: DTypeLike | None, order: LikeOrder, shape: Any, name: str | None, value: Any = None
    ) -> SharedArray:
        model = np.asarray(prototype)
        lengths = layouts.check_shape(model.shape if shape is None else shape)
        letter = _letter(order, "CFAK", "K")
        if letter == "A":
            letter = "F" if model.flags.fnc else "C"
        if letter == "K" and len(lengths) == model.ndim:
            axes: list[int] | str = layouts.axes_of(model.shape, model.strides)
        else:
            axes = "F" if letter == "F" else "C"
        return self._make(lengths, model.dtype if dtype is None else dtype, axes, name, value)

    def _make(
        self, shape: Any, dtype: DTypeLike, order: list[int] | str, name: str | None, value: Any = None
    ) -> SharedArray:
        member = self._open()
        if name is not None:
            names.check(name)
        kind, inner = arrays.element(np.dtype(dtype))
        lengths = (*layouts.check_shape(shape), *inner)
        if isinstance(order, str):
            axes = None if _letter(order, "CF", "C") == "C" else list(reversed(range(len(lengths))))
        else:
            axes = order + list(range(len(order), len(lengths)))
        layout = arrays.layout_of(kind, lengths, axes)

        def fill(view: np.ndarray[Any, Any]) -> None:
            np.copyto(view, value, casting="unsafe")

        segment = arrays.create(member, name, [(kind, layout)], fill=None if value is None else fill)
        return arrays.leaf(segment, 0)

    def put(self, value: Any, *, name: str | None = None) -> Any:
        """Copy an array into shared memory, or a nested dict, list, tuple, namedtuple or dataclass of arrays into one block.

        An array (or anything `numpy.asarray` takes that is no such container) gives a `SharedArray` of the same dtype and
        layout; a nested structure, with numbers, strings and None between the arrays, gives a `SharedTree`. Raises as `empty`
        does, and `TypeError` for what cannot be shared.

        >>> import numpy as np, shmarray as sa
        >>> with sa.Store() as store:
        ...     tree = store.put({"w": np.ones(3), "steps": 7})
        ...     print(tree["w"].sum(), tree["steps"])
        3.0 7
        """
        if name is not None:
            names.check(name)
        return self._put(value, name, replace=False)

    def _put(self, value: Any, name: str | None, *, replace: bool) -> Any:
        member = self._open()
        if trees.is_tree(value):
            return trees.put(member, value, name, replace=replace)
        return arrays.put(member, value, name, replace=replace)

    # -- the mapping of named arrays -----------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """Attach the array, tree or other object of that name as it is now; raises `ArrayNotFoundError` (a `KeyError`)."""
        segment = blocks.lookup(self._open(), names.check(name))
        return objects.open_segment(segment)

    def __setitem__(self, name: str, value: Any) -> None:
        """Publish a value under a name, replacing what is there in one step: readers see the old or the new, whole."""
        self._put(value, names.check(name), replace=True)

    @exhaustion.explaining
    def __delitem__(self, name: str) -> None:
        """Delete the array of that name for everyone; views stay valid. Raises `ArrayNotFoundError`."""
        member = self._open()
        member.require_open()
        if not blocks.delete_name(member, names.check(name)):
            raise ArrayNotFoundError(
                f"there is no array {name!r} in {member.label}", remedy="list(store) shows what is there.", name=name
            )

    def __contains__(self, name: object) -> bool:
        """Say whether there is an array of that name now."""
        member = self._open()
        member.require_open()
        return names.is_name(name) and blocks.has_name(member, name)

    def get(self, name: str, default: Any = None) -> Any:
        """Attach what has that name, or give `default`."""
        try:
            return self[name]
        except (ArrayNotFoundError, ArrayNameError):
            return default

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Attach what has that name; if there is nothing, put `default` there first. Of several who try, one puts."""
        while True:
            try:
                return self[name]
            except ArrayNotFoundError:
                with contextlib.suppress(ArrayExistsError):
                    return self.put(default, name=name)

    @exhaustion.explaining
    def __iter__(self) -> Iterator[str]:
        """Go through the names that are there now, in alphabetical order."""
        member = self._open()
        member.require_open()
        return iter(census.array_names(member))

    @exhaustion.explaining
    def __len__(self) -> int:
        """How many named arrays there are."""
        member = self._open()
        member.require_open()
        return census.count_named(member)

    # -- care ----------------------------------------------------------------------------------------------------------

    @exhaustion.explaining
    def stats(self) -> StoreStats:
        """Count what is in the store and how it stands; the numbers come from the file system, not from our own books."""
        return census.stats(self._open())

    @exhaustion.explaining
    def check(self, *, fix: bool = False) -> list[Problem]:
        """Look at every block of the store; returns what is wrong, an empty list if all is well.

        With `fix`, removes what is provably dead: blocks nobody can reach any more. Damaged blocks are only reported.
        """
        return census.check(self._open(), fix=fix)

    @exhaustion.explaining
    def release_unclaimed(self) -> int:
        """Give up handles that were pickled and never loaded, and the anonymous arrays that only they kept.

        A handle still on its way is given up as well: loading it then raises `ArrayNotFoundError`, unless the array is alive
        elsewhere. Returns how many handles were given up.
        """
        return blocks.release_unclaimed(self._open())

    def close(self) -> None:
        """End the store, if this object opened it: every block is unlinked once. Any other: stop using it.

        Views stay valid until they are dropped. May be called again, and from any thread.
        """
        self._closed = True
        # Another object of the same store, from a pickle or `connect`, ends it no more than another process does.
        if self._at_exit is not None and self._member.is_owner:
            self._member.close()
            self._at_exit.cancel()

    def __enter__(self) -> Self:
        """Begin the scope of the store; raises `StoreClosedError` if it has ended."""
        self._open().require_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the store."""
        self.close()


def connect(name: str) -> Store:
    """Join the running store of that name, from any process of the same user.

    Raises `StoreNotFoundError` when none runs, `ArrayNameError` for a text that cannot be a name. Closing what this returns
    does not end the store.

    >>> import numpy as np, shmarray as sa
    >>> with sa.Store("doc-connect") as store:
    ...     store["x"] = np.arange(4)
    ...     print(sa.connect("doc-connect")["x"].sum())
    6
    """
    names.check(name, "a store")
    return Store._connected(membership.join(membership.find(name)))  # noqa: SLF001  made for this


def _join(uid: int, store: int) -> Store:
    """Load a pickled store."""
    return Store._connected(membership.join(names.StoreKey(uid, store)))  # noqa: SLF001  made for this


def _letter(order: str | None, allowed: str, default: str) -> str:
    """Read an `order` argument as NumPy does: any case, None for the default."""
    letter = default if order is None else str(order).upper()
    if letter not in allowed or len(letter) != 1:
        message = f"order must be one of {', '.join(allowed)}, not {order!r}"
        raise ValueError(message)
    return letter


def _check_capacity(capacity: object) -> int | None:
    if capacity is None:
        return None
    if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)):
        message = f"capacity must be a number of bytes, not {capacity!r}"
        raise TypeError(message)
    if capacity <= 0:
        message = f"capacity must be a positive number of bytes, not {capacity!r}"
        raise ValueError(message)
    return int(capacity)


def _check_guard(guard: str) -> str:
    if guard not in ("robust", "multiprocessing"):
        message = f"guard must be 'robust' or 'multiprocessing', not {guard!r}"
        raise ValueError(message)
    return guard


def _check_directory(directory: str | os.PathLike[str] | None) -> str:
    if directory is None:
        return segments.SHM_DIRECTORY
    place = os.path.realpath(os.fspath(directory))
    if not os.path.isdir(place):
        kind = NotADirectoryError if os.path.exists(place) else FileNotFoundError
        message = f"directory={os.fspath(directory)!r} is not a directory; make it first, or leave the argument out"
        raise kind(message)
    system = limits.file_system(place)
    if system in _ON_NETWORK:
        message = f"directory={os.fspath(directory)!r} is on a network file system ({system}), whose locks cannot prove a death"
        raise ValueError(message)
    return place


__all__ = ["Store", "connect"]

