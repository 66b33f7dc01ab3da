"""Locks and scoped access, as users see them.

Owns: `Lock`, and the context managers that `read()` and `write()` of an array return.
Must not know: how a guard works (`guards`), NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shmarray import guards
from shmarray.errors import GuardTimeoutError, PoisonedError

if TYPE_CHECKING:
    from types import TracebackType

    from shmarray.guards import Guard

T = TypeVar("T")


class Access(Generic[T]):
    """A `with` block inside which this thread has access to what a block holds; gives the value to work with.

    Once out of the block, the value must not be used: views outlive their guard, and nothing can stop them.
    """

    __slots__ = ("_generation", "_guard", "_timeout", "_value")

    def __init__(self, guard: Guard, value: T, timeout: float | None) -> None:
        """Stand ready; nothing is acquired before the `with` block begins."""
        self._guard = guard
        self._value = value
        self._timeout = timeout

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

    def _poisoned(self, poison: tuple[int, float]) -> PoisonedError:
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

    def __init__(self, guard: Guard, value: T, timeout: float | None, *, heal: bool) -> None:
        """Stand ready; with `heal`, poisoned data are entered, and declared sound by a clean exit."""
        super().__init__(guard, value, timeout)
        self._heal = heal

    def __enter__(self) -> T:
        """Acquire; raises `GuardTimeoutError`, `PoisonedError`, `GuardError`."""
        if not self._guard.acquire(self._value, self._timeout):
            raise self._timed_out("written")
        self._generation = guards.generation()
        if not self._heal:
            poison = self._guard.poison()
            if poison is not None:
                self._guard.release()
                raise self._poisoned(poison)
        return self._value

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Release. In a child forked inside the block there is nothing to release: the guard is the parent's."""
        if self._generation == guards.generation():
            if self._heal and kind is None:
                self._guard.heal()
            self._guard.release()


class ReadAccess(Access[T]):
    """Shared access."""

    __slots__ = ()

    def __enter__(self) -> T:
        """Acquire; raises `GuardTimeoutError`, `PoisonedError`, `GuardError`."""
        if not self._guard.acquire_shared(self._value, self._timeout):
            raise self._timed_out("read")
        self._generation = guards.generation()
        poison = self._guard.poison()
        if poison is not None:
            self._guard.release_shared()
            raise self._poisoned(poison)
        return self._value

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Release. In a child forked inside the block there is nothing to release: the guard is the parent's."""
        if self._generation == guards.generation():
            self._guard.release_shared()


class Lock:
    """A `multiprocessing.Lock` that survives the death of its holder and travels through any queue.

    Not re-entrant, and owned: only the thread that acquired it may release it. Lives in a block; holding the lock object keeps
    the block. Raises `GuardError` for a second acquire by the same thread, or a release by another.
    """

    __slots__ = ("_guard", "_root")

    def __init__(self, root: Any, guard: Guard) -> None:
        """Stand for the guard of the block that `root` keeps mapped."""
        self._root = root
        self._guard = guard

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take the lock; false when it is not free at once (`block=False`) or after `timeout` seconds."""
        return self._guard.acquire(self._root, timeout if block else 0)

    def release(self) -> None:
        """Let the lock go."""
        self._guard.release()

    def __enter__(self) -> bool:
        """Take the lock."""
        return self._guard.acquire(self._root)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let the lock go."""
        self._guard.release()

    def holder(self) -> tuple[int, float] | None:
        """Who holds the lock: pid and time since the epoch in seconds; None if nobody does."""
        return self._guard.holder()
