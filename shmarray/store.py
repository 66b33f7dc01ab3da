"""Store: named and anonymous shared arrays with one lifetime.

Owns: what a user does with a store: open, join, close; make arrays, put, look up, replace, delete; statistics and self-check.
Must not know: files, locks, headers; how anything survives a SIGKILL (`membership`, `blocks`, `reaper`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from shmarray import (
    blocks,
    census,
    controls,
    deletion,
    exhaustion,
    founding,
    joining,
    objects,
    settings,
    shortage,
    stocks,
)
from shmarray._format import flags, names
from shmarray._os import late, segments
from shmarray.constructors import Constructors
from shmarray.errors import ArrayExistsError, ArrayNameError, ArrayNotFoundError
from shmarray.filing import Filing
from shmarray.guardian import launch
from shmarray.hosting import hosted
from shmarray.streaming import Streaming
from shmarray.vocabulary import Vocabulary
from shmarray.warm import Pool

if TYPE_CHECKING:
    import os
    from multiprocessing import util
    from types import TracebackType

    from shmarray.census import Problem, StoreStats
    from shmarray.membership import Membership

_OURS = frozenset({"_address", "_at_exit", "_closed", "_member"})  # what a store's object has for this process alone


class Store(Constructors, Filing, Streaming, Vocabulary, hosted.Hosted, MutableMapping[str, Any]):
    """A set of NumPy arrays in shared memory, used by many processes and freed exactly once.

    `Store()` opens a store that this process owns; `name` lets unrelated processes of the same user join it by
    `shmarray.connect(name)`. `capacity` bounds the bytes of all its blocks; `directory` puts them in an ordinary directory
    instead of shared memory, for what does not fit there. `guard="robust"` makes locks that survive the death of their holder;
    `guard="multiprocessing"` plain semaphores, which hang when their holder is killed, as those of `multiprocessing` do; None, the
    default, takes robust ones where the system has them (see the attribute `guard`). A store pickles: the receiver gets it connected; one
    of a subclass is of that class there, and has its attributes.

    `warm` bounds the bytes of memory that this process keeps of arrays it has freed, for the next ones, and those that other processes
    keep of what they made: pages that are there already cost a tenth of fresh ones. None is an eighth of the memory file system, 0
    nothing; `trim()` gives it back (`docs/performance.md`).

    `small` is the size in bytes up to which anonymous arrays share files, *slabs*, so that many of them cost little: no file, mapping or
    descriptor each. None is 32 KiB in shared memory, and 0 in any other directory, where each array has a file of its own.

    `copy_threads` is how many threads of a process share the copying of a large array, into the store or out of it (`put`,
    `a.copy()`); None is one for each core that the process may use, at most 4. They are there for the one copy only.

    `address=(host, port)` with `authkey` also serves the registered types to managers of `multiprocessing` on the network: whoever
    knows the key can then run any code as this user, and what is said is not encrypted (`docs/hosting.md`). Off by default.

    As a mapping it holds the named arrays. A *named* array lives until it is deleted or the store closes; an *anonymous* one
    as long as any process holds a view of it or a handle to it is in flight. Closing, the end of the `with` block, the end
    of the process and its death by any signal end the store: no name stays, and views stay valid until they are dropped.

    Raises `StoreExistsError` when a store of that name is alive, `StoreFullError` when there is no room, `ArrayNameError` for
    a text that cannot be a name, `GuardError` for `guard="robust"` where there are no such locks, `FileNotFoundError` or
    `NotADirectoryError` for the directory.

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
        guard: Literal["robust", "multiprocessing"] | None = None,
        warm: int | None = None,
        small: int | None = None,
        copy_threads: int | None = None,
        address: tuple[str, int] | None = None,
        authkey: bytes | None = None,
    ) -> None:
        """Open a store owned by this process; dead stores of the same user are removed on the way."""
        if name is not None:
            names.check(name, "a store")
        hosted.check_network(address, authkey)
        place = settings.check_directory(directory)
        kept = None if warm is None else settings.check_bytes(warm, "warm", least=0)
        bound = settings.check_small(small, place)
        threads = settings.check_threads(copy_threads)
        self._closed = False
        self._at_exit: util.Finalize[None] | None = None
        with exhaustion.explained(segments.SHM_DIRECTORY, 0):  # where its names are; what is larger says so itself
            self._member = founding.found(
                name, place, settings.check_capacity(capacity), settings.check_guard(guard), bound, threads, kept
            )
        self._member.pool = Pool(self._member, kept)
        try:
            # After other exit work: worker processes have been joined then, and have dropped what they held.
            self._at_exit = late.load("multiprocessing.util").Finalize(
                None, _close_at_exit, (self._member,), exitpriority=-100
            )
            launch.launch(self._member)
            if address is not None:
                self._serve_network(address, authkey)
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
        """Pickle as an address: the receiving process joins the store. Of a subclass, with its own attributes."""
        member = self._running()
        address = member.key.uid, member.key.store
        if type(self) is Store:
            return _join, address
        return _join, (*address, type(self)), {name: value for name, value in vars(self).items() if name not in _OURS}

    def _open(self) -> Membership:
        if self._closed:
            raise self._member.closed_error()
        return self._member

    def _running(self) -> Membership:
        member = self._open()
        member.require_open()
        return member

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
    def guard(self) -> str:
        """Kind of its locks: "robust", or "multiprocessing", which are lost with their holder."""
        return self._member.control.guard

    @property
    def guardian_pid(self) -> int | None:
        """Pid of the process that cleans up if the owner is killed; None if there is none now."""
        return launch.guardian_of(self._member)

    def __repr__(self) -> str:
        """Say which store it is and whether it is open."""
        label = repr(self.name) if self.name else self.id
        plain = "" if self.guard == "robust" else f", guard={self.guard!r}"
        return f"<{type(self).__name__} {label} {'closed' if self.closed else 'open'}{plain}>"

    def __eq__(self, other: object) -> bool:
        """Two objects are equal if they stand for the same store."""
        return isinstance(other, Store) and other._member.key == self._member.key

    def __hash__(self) -> int:
        """Hash by identity of the store."""
        return hash(self._member.key)

    # -- the mapping of named arrays -----------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """Attach the array, tree or other object of that name as it is now; raises `ArrayNotFoundError` (a `KeyError`)."""
        segment = blocks.lookup(self._open(), name)
        return objects.open_segment(segment)

    def __setitem__(self, name: str, value: Any) -> None:
        """Publish a value under a name, replacing what is there in one step: readers see the old or the new, whole.

        What is published is a copy, but for the array or tree that has that name already, all of it: that stays as it is. So
        `store["x"] += 1` adds in place, to what everyone sees, as with a dict of arrays.
        """
        if not objects.is_named(self._open(), names.check(name), value):
            self._put(value, name, replace=True)

    @exhaustion.explaining
    def __delitem__(self, name: str) -> None:
        """Delete the array of that name for everyone; views stay valid. Raises `ArrayNotFoundError`."""
        member = self._running()
        if not deletion.delete_name(member, names.check(name)):
            raise ArrayNotFoundError(
                f"there is no array {name!r} in {member.label}", remedy="list(store) shows what is there.", name=name
            )

    def __contains__(self, name: object) -> bool:
        """Say whether there is an array of that name now."""
        member = self._running()
        return names.is_name(name) and deletion.has_name(member, name)

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

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        """Raises `TypeError`: NumPy would take the names for the data."""
        message = "a store is no array, but a mapping of names to arrays\nTake one of them: store[name]; list(store) shows what is there."
        raise TypeError(message)

    @exhaustion.explaining
    def __iter__(self) -> Iterator[str]:
        """Go through the names that are there now, in alphabetical order."""
        return iter(census.array_names(self._running()))

    @exhaustion.explaining
    def __len__(self) -> int:
        """How many named arrays there are."""
        return census.count_named(self._running())

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
        return census.check(self._open(), fix=flags.check(fix, "fix"))

    @exhaustion.explaining
    def release_unclaimed(self) -> int:
        """Give up handles that were pickled and never loaded, and the anonymous arrays that only they kept.

        A handle still on its way is given up as well: loading it then raises `ArrayNotFoundError`, unless the array is alive
        elsewhere. Returns how many handles were given up.
        """
        return deletion.release_unclaimed(self._open())

    def trim(self) -> int:
        """Give the memory of freed arrays back to the system that is kept for the next ones; returns how many bytes.

        What other processes keep of large arrays goes as well. It is given back by itself before `StoreFullError` is raised.
        Large arrays of others that this process has attached and let go of are unmapped too; they are mapped for the next time, and hold
        memory only if they were deleted meanwhile.
        """
        member = self._open()
        given: int = stocks.trim(member.key.store)
        for keeper in (member.pool, member.recycler, member.idle):
            given += 0 if keeper is None else keeper.trim()
        return given + shortage.relieve_of_kept(member)

    def close(self) -> None:
        """End the store, if this object opened it: every block is unlinked once. Any other: stop using it.

        Views stay valid until they are dropped. May be called again, and from any thread.
        """
        self._closed = True
        # Another object of the same store, from a pickle or `connect`, ends it no more than another process does.
        if self._at_exit is not None and self._member.is_owner:
            stocks.leave(self._member)  # first: what this process maps no more, the sweep finds to be nobody's
            self._member.close()
            stocks.leave(self._member)
            self._at_exit.cancel()

    def __enter__(self) -> Self:
        """Begin the scope of the store; raises `StoreClosedError` if it has ended."""
        self._running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()


def _close_at_exit(member: Membership) -> None:
    """Close a store at the end of the program that opened it."""
    objects.ending.append(None)
    member.close()


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
    return Store._connected(joining.join(controls.find(name)))


def _join(uid: int, store: int, kind: type[Store] = Store) -> Store:
    """Load a pickled store."""
    return kind._connected(joining.join(names.StoreKey(uid, store)))


__all__ = ["Store", "connect"]
