"""Conditions, as in `multiprocessing`.

Owns: `Condition`. All its words are changed with its lock held, which survives its holder; every state between two stores is one
from which the next can go on. Sleepers look again after each slice of time, so a wake-up that was lost with its sender costs a
slice and hangs nobody.
Must not know: how a guard works.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, Self

from shmarray import objects
from shmarray._format import counts
from shmarray._os import futexes
from shmarray.errors import GuardError
from shmarray.locks import Lock, RLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from shmarray.membership import Membership


class Condition(objects.SharedObject):
    """A `multiprocessing.Condition` that travels through any queue; `lock` is a lock of a store, by default an own `RLock`.

    Each notification goes to one that waited before it. After a waiter was killed, a later one may be woken once for nothing, so
    wait in a loop, or with `wait_for`, as always. Raises `GuardError` when the lock is not held.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     changed = store.Condition()
    ...     with changed:
    ...         print(changed.wait_for(lambda: True), changed.wait(timeout=0))
    True False
    """

    __slots__ = ("_lock",)
    _kind = "Condition"
    _tail, _limit, _tokens, _waiters, _turn = range(5)
    _lock: Lock

    @classmethod
    def make(cls, member: Membership, lock: Lock | None = None, name: str | None = None) -> Self:
        """Make a condition of a lock."""
        condition = cls._create(member, 5, name)
        if lock is not None:
            condition._lock = lock
        return condition

    def _attached(self) -> None:
        self._lock = RLock(self._array, self._guard)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a handle, with that of a lock of its own."""
        attach, arguments = super().__reduce__()
        own = self._lock._guard is self._guard
        return (attach, arguments) if own else (_attach_condition, (attach, arguments, self._lock))

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take the lock."""
        return self._lock.acquire(block, timeout)

    def release(self) -> None:
        """Let the lock go."""
        self._lock.release()

    def __enter__(self) -> bool:
        """Take the lock."""
        return self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the lock go."""
        self._lock.release()

    def _require_lock(self) -> None:
        if self._lock._guard.owner != get_ident():
            raise GuardError(
                "the lock of this condition is not held by this thread", remedy="Use `with condition:` around it."
            )

    def wait(self, timeout: float | None = None) -> bool:
        """Let the lock go, wait for a notification, take the lock again; false if none came in `timeout` seconds."""
        self._require_lock()
        deadline = objects.deadline_of(timeout)  # before this one counts among those who wait: it may raise
        words = self._words
        ticket = words[self._tail]
        words[self._tail] = ticket + 1
        words[self._waiters] += 1
        in_time = True
        try:
            while True:
                turn = words[self._turn]
                depth = self._lock._leave_all()
                try:
                    in_time = self._wait_change(self._turn, turn, deadline)
                finally:
                    self._lock._enter_all(depth)
                if words[self._tokens] and ticket < words[self._limit]:
                    words[self._tokens] -= 1
                    return True
                if not in_time:
                    return False
        finally:
            words[self._waiters] = max(0, words[self._waiters] - 1)
            words[self._tokens] = min(words[self._tokens], words[self._waiters])

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until `predicate()` is true; returns its last value, false after `timeout` seconds."""
        deadline = objects.deadline_of(timeout)
        result = predicate()
        while not result:
            left = None if deadline is None else objects.seconds_to(deadline)
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Wake `n` of those who wait."""
        counts.check(n, "n")
        self._require_lock()
        words = self._words
        n = min(n, words[self._waiters] - words[self._tokens])
        if n > 0:
            words[self._limit] = words[self._tail]
            words[self._tokens] += n
            words[self._turn] += 1
            self._wake(self._turn, n)

    def notify_all(self) -> None:
        """Wake all who wait."""
        self.notify(futexes.EVERYONE)

    def __repr__(self) -> str:
        """Show lock and number of waiters."""
        return f"<Condition({self._lock}, {self._words[self._waiters]})>"


def _attach_condition(attach: Callable[..., Condition], arguments: tuple[Any, ...], lock: Lock) -> Condition:
    condition = attach(*arguments)
    condition._lock = lock
    return condition
