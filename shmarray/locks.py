"""Locks and scoped access, as users see them.

Owns: `Lock`, `RLock`, and the context managers that `read()` and `write()` of an array return.
Must not know: how a guard works (`guards`), NumPy.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from shmarray import blocks, cellguards, cells, cellviews, guards, joining, scopes, shields
from shmarray._format import flags, slab
from shmarray._format.handle import BlockKey
from shmarray._os import futexes
from shmarray.errors import GuardTimeoutError, PoisonedError

if TYPE_CHECKING:
    from types import TracebackType

    from shmarray._os import segments
    from shmarray.guards import Guard

T = TypeVar("T")
_here = guards.Process
L = TypeVar("L", bound="Lock")


class Access(scopes.Scope, Generic[T]):
    """A `with` block inside which this thread has access to what a block holds; gives the value to work with.

    Once out of the block, the value must not be used: views outlive their guard, and nothing can stop them.
    """

    __slots__ = ("_generation", "_guard", "_keep", "_timeout")

    def __init__(self, guard: Guard, value: T, timeout: float | None) -> None:
        """Stand ready; nothing is acquired before the `with` block begins. Raises as `futexes.deadline_of` does."""
        if timeout is not None:
            futexes.deadline_of(timeout)  # a wrong one shows now, and not first when somebody else is inside
        self._guard = guard
        self._keep = [value]  # what the guard keeps while it is held, and how it is known whose hold that is
        self._timeout = timeout
        self._generation = -1

    def _timed_out(self, what: str) -> GuardTimeoutError:
        holder = self._guard.holder()
        reason = f"process {holder[0]} has it" if holder else "it is being read, or others were first"
        return GuardTimeoutError(
            f"{self._guard.label} could not be {what} within {self._timeout} s: {reason}",
            remedy="Wait longer, or see who holds it with `python -m shmarray ls`.",
            name=self._guard.key.name,
            holder=holder[0] if holder else None,
            timeout=self._timeout,
        )

    def _poisoned(self, poison: tuple[int, float] | None) -> PoisonedError:
        poison = poison or (0, 0.0)  # healed by another just now
        return PoisonedError(
            f"process {poison[0]} died while it was writing {self._guard.label}: the data may be half old and half new",
            remedy="Enter with write(heal=True) and put them right; leaving that block cleanly clears the mark.",
            name=self._guard.key.name,
            pid=poison[0],
            since=poison[1],
        )


class WriteAccess(Access[T]):
    """Exclusive access."""

    __slots__ = ("_heal",)
    _opening = "with a.write() as view"

    def __init__(self, guard: Guard, value: T, timeout: float | None, *, heal: bool) -> None:
        """Stand ready; with `heal`, poisoned data are entered, and declared sound by a clean exit."""
        # As the base class does; a call would cost a twentieth of all this.
        if timeout is not None:
            futexes.deadline_of(timeout)
        self._guard = guard
        self._keep = [value]
        self._timeout = timeout
        self._generation = -1
        self._heal = heal if heal is False else flags.check(heal, "heal")

    def __enter__(self) -> T:
        """Acquire; raises `GuardTimeoutError`, `PoisonedError`, `GuardError`."""
        if not self._guard.acquire(self._keep, self._timeout):
            raise self._timed_out("written")
        self._generation = _here.generation
        if not self._heal and self._guard.is_poisoned():
            poison = self._guard.poison()
            self._guard.release()
            raise self._poisoned(poison)
        return self._keep[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release. In a child forked inside the block there is nothing to release: the guard is the parent's."""
        if self._generation == _here.generation:
            if self._heal and kind is None:
                self._guard.heal()
            self._guard.release()

    def __del__(self) -> None:
        """Release what `__exit__` did not: an exception from a signal handler may come as its very first step."""
        keep = getattr(self, "_keep", None)  # not even the constructor may have come to its end
        if keep is not None and self._guard.kept is keep and self._guard.owner == get_ident():
            self._guard.release()


class ReadAccess(Access[T]):
    """Shared access."""

    __slots__ = ()
    _opening = "with a.read() as view"

    def __enter__(self) -> T:
        """Acquire; raises `GuardTimeoutError`, `PoisonedError`, `GuardError`."""
        if not self._guard.acquire_shared(self._keep, self._timeout):
            raise self._timed_out("read")
        self._generation = _here.generation
        if self._guard.is_poisoned():
            poison = self._guard.poison()
            self._guard.release_shared()
            raise self._poisoned(poison)
        return self._keep[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release. In a child forked inside the block there is nothing to release: the guard is the parent's."""
        if self._generation == _here.generation:
            self._guard.release_shared()

    def __del__(self) -> None:
        """Release what `__exit__` did not, as `WriteAccess` does."""
        keep = getattr(self, "_keep", None)
        if keep is not None and self._guard.readers.get(get_ident()) is keep:
            self._guard.release_shared()


class Lock:
    """A `multiprocessing.Lock` that survives the death of its holder and travels through any queue.

    Not re-entrant, and owned: only the thread that acquired it may release it. When a holder is killed the next gets the lock, after
    some 0.05 seconds of looking; with `Store(guard="multiprocessing")` it waits for ever. Lives in a block; the lock object keeps it.
    Usable in `multiprocessing.Condition`. Raises `GuardError` (a `ValueError`) for a second acquire by the same thread that waits, or a
    release by another.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     lock = store.Lock()
    ...     with lock:
    ...         print(lock.holder() is not None, lock.acquire(block=False))
    True False
    """

    __slots__ = ("__weakref__", "_guard", "_root")

    def __init__(self, root: Any, guard: Guard) -> None:
        """Stand for the guard of the block that `root`, a view of its memory, keeps mapped."""
        self._root = root
        self._guard = guard

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take the lock; false when it is not free at once (`block=False`) or after `timeout` seconds."""
        if block is True or flags.check_block(block):
            if timeout is not None:
                futexes.deadline_of(timeout)  # a wrong one shows also when the lock is free
            return self._guard.acquire(self._root, timeout)
        return self._guard.acquire(self._root, 0)

    def release(self) -> None:
        """Let the lock go. Raises `GuardError` if this thread does not have it."""
        self._guard.release()

    def __enter__(self) -> bool:
        """Take the lock."""
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the lock go."""
        self.release()

    def holder(self) -> tuple[int, float] | None:
        """Who holds the lock: its pid, and since when in seconds of the epoch; None if nobody does."""
        return self._guard.holder()

    def locked(self) -> bool:
        """Whether someone holds the lock now."""
        return self._guard.holder() is not None

    @property
    def name(self) -> str | None:
        """Name of the block it is the guard of; None if that is anonymous."""
        return self._guard.key.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a handle."""
        view = cellviews.view_of(self._root)
        key = blocks.offer(segment_behind(self._root)) if view is None else cells.offer(view)
        return _attach, (type(self), tuple(key))

    def __eq__(self, other: object) -> bool:
        """Two objects are equal if they are the same lock."""
        return type(other) is type(self) and other._guard.key == self._guard.key

    def __hash__(self) -> int:
        """Hash by identity of the block."""
        return hash(self._guard.key)

    def __repr__(self) -> str:
        """Say which lock it is and who holds it."""
        holder = self.holder()
        kind = type(self).__name__
        what = f" of {self._guard.label}"
        if self._guard.noun == kind:  # it is the lock of nothing else
            what = "" if self.name is None else f" {self.name!r}"
        return f"<{kind}{what}, {f'held by {holder[0]}' if holder else 'free'}>"

    # What multiprocessing.Condition asks of a lock.

    @property
    def _semlock(self) -> Lock:
        return self

    def _is_mine(self) -> bool:
        return self._guard.owner == get_ident()

    def _count(self) -> int:
        return int(self._is_mine())

    def _leave_all(self) -> int:
        """Let the lock go, however often this thread has it; returns what `_enter_all` takes."""
        self._guard.release()
        return 1

    def _enter_all(self, depth: int) -> None:  # noqa: ARG002  as RLock does
        self._guard.acquire(self._root)


class RLock(Lock):
    """A `multiprocessing.RLock`: a `Lock` that its holder may acquire again, and must release as often."""

    __slots__ = ()

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take the lock, once more if this thread has it already; false as of `Lock.acquire`."""
        # Without a depth this thread is in the midst of a change (`keepers`), into which nothing else may come.
        if self._is_mine() and self._guard.depth:
            flags.check_block(block)
            self._guard.depth += 1
            return True
        if not super().acquire(block, timeout):
            return False
        self._guard.depth = 1
        return True

    def release(self) -> None:
        """Undo one acquire; the last lets the lock go. Raises `GuardError` if this thread does not have it."""
        if self._is_mine() and self._guard.depth > 1:
            self._guard.depth -= 1
        else:
            if self._is_mine():
                self._guard.depth = 0
            self._guard.release()

    def _count(self) -> int:
        return self._guard.depth if self._is_mine() else 0

    def _leave_all(self) -> int:
        depth = self._guard.depth
        self._guard.release()
        return depth

    def _enter_all(self, depth: int) -> None:
        self._guard.acquire(self._root)
        self._guard.depth = depth


def segment_behind(root: Any) -> segments.Segment:
    """Find the mapping that a view of all its memory keeps: a memoryview, or an array over one."""
    view = root if isinstance(root, memoryview) else root.base
    while not isinstance(view, memoryview):
        view = view.base
    segment: segments.Segment = view.obj  # type: ignore[assignment]  # what a block's memoryview is of
    return segment


def over(kind: type[L], segment: segments.Segment) -> L:
    """Stand for the lock of an attached block."""
    return kind(shields.over(segment), guards.guard_of(segment))


def _attach(kind: type[Lock], key: tuple[Any, ...]) -> Lock:
    """Load the handle of a lock. Raises as `blocks.attach` does."""
    block_key = BlockKey(*key)
    member = joining.join(block_key.store_key)
    if slab.is_cell(block_key.block):
        root = cells.attach(member, block_key)
        return kind(root, cellguards.guard_of(cast("cellviews.View", cellviews.view_of(root))))
    return over(kind, blocks.attach(member, block_key))
