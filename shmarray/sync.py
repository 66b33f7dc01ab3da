"""Semaphores, events, conditions and barriers, as in `multiprocessing`.

Owns: `Semaphore`, `BoundedSemaphore`, `Event`, `Condition`, `Barrier`.
Must not know: how blocks live, how a guard survives a death.

Each is a few words in a block. A change of more than one word is made under the block's guard, and every state between two
stores is one from which the next can go on. Sleepers look again after each slice of time, so a wake-up that was lost with its
sender costs a slice and hangs nobody.
"""

from __future__ import annotations

import threading
from multiprocessing import util
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Self

from shmarray import guards, objects
from shmarray._format import control, guard
from shmarray._os import futexes
from shmarray.errors import GuardError
from shmarray.locks import Lock, RLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import numpy as np

    from shmarray.membership import Membership

BrokenBarrierError = threading.BrokenBarrierError
_COUNT = (1 << 32) - 1


class _Roll(objects.SharedObject):
    """A shared object with one word for each process that takes part, whose life the kernel vouches for.

    An entry is a number in its low 32 bits and the epoch of the process's slot above; an entry of another epoch is a dead one's.
    """

    __slots__ = ("_slot",)
    _first: ClassVar[int]
    """Index of the first entry; `control.SLOTS` follow."""

    def _attached(self) -> None:
        self._slot: tuple[int, int, int] | None = None

    def _me(self) -> tuple[int, int] | None:
        """Index of this process's entry, and its epoch shifted; None if all slots are taken."""
        if self._slot is None or self._slot[0] != guards.generation():
            found = self._guard.member.reader_slot()
            if found is None:
                return None
            self._slot = (guards.generation(), self._first + found[0], guard.epoch_word(found[1]) << 32)
        return self._slot[1:]

    def _entry(self, index: int, epoch: int) -> int:
        word: int = self._words[index]
        return word & _COUNT if word & ~_COUNT == epoch else 0

    def _dead(self) -> list[tuple[int, int]]:
        """Entries of processes that the kernel says are gone: index and number."""
        table = self._words[self._first : self._first + control.SLOTS]
        taken = [slot for slot, word in enumerate(table) if word & _COUNT]
        alive = self._guard.member.slots_alive(taken) if taken else {}
        return [
            (self._first + slot, table[slot] & _COUNT)
            for slot in taken
            if slot not in alive or guard.epoch_word(alive[slot]) << 32 != table[slot] & ~_COUNT
        ]


class Semaphore(_Roll):
    """A `multiprocessing.Semaphore` that travels through any queue.

    Permits of a process that was killed come back, as far as the value the semaphore began with: what was made to count
    resources recovers, what was made to send signals (it begins with 0) counts on as it did.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     permits = store.Semaphore(2)
    ...     with permits:
    ...         print(permits.get_value())
    1
    """

    __slots__ = ()
    _kind = "Semaphore"
    _first = 2  # after: value, initial value
    _bounded: ClassVar[bool] = False

    @classmethod
    def make(cls, member: Membership, value: int = 1, name: str | None = None) -> Self:
        """Make a semaphore with `value` permits; raises `ValueError` if that is negative."""
        if value < 0:
            message = f"a semaphore cannot begin with {value} permits"
            raise ValueError(message)

        def fill(memory: np.ndarray[Any, Any]) -> None:
            memory[:2] = value

        return cls._create(member, 2 + control.SLOTS, name, fill)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take a permit; false when there is none at once (`block=False`) or for `timeout` seconds."""
        deadline = objects.deadline_of(timeout if block else 0)
        while True:
            if self._words[0] > 0 and self._take():
                return True
            if not self._wait_change(0, 0, deadline):
                return False
            if self._words[0] == 0:
                self._recover()

    def _take(self) -> bool:
        self._guard.acquire(self._array)
        try:
            value = self._words[0]
            if value <= 0:
                return False
            self._words[0] = value - 1
            me = self._me()
            if me is not None:
                self._words[me[0]] = me[1] | (self._entry(*me) + 1)
        finally:
            self._guard.release()
        return True

    def _recover(self) -> None:
        """Give back the permits of the dead."""
        if not self._words[1] or not self._dead():
            return
        self._guard.acquire(self._array)
        try:
            for index, held in self._dead():
                self._words[0] = max(self._words[0], min(self._words[1], self._words[0] + held))
                self._words[index] = 0
        finally:
            self._guard.release()
        self._wake(0)

    def release(self, n: int = 1) -> None:
        """Give `n` permits; a bounded one raises `ValueError` if it then had more than it began with."""
        if n < 1:
            message = f"n must be one or more, not {n}"
            raise ValueError(message)
        self._guard.acquire(self._array)
        try:
            if self._bounded and self._words[0] + n > self._words[1]:
                message = "semaphore or lock released too many times"
                raise ValueError(message)
            me = self._me()
            if me is not None:
                self._words[me[0]] = me[1] | max(0, self._entry(*me) - n)
            self._words[0] += n
        finally:
            self._guard.release()
        self._wake(0, n)

    def get_value(self) -> int:
        """How many permits there are now."""
        value: int = self._words[0]
        return value

    def __enter__(self) -> bool:
        """Take a permit."""
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give it back."""
        self.release()

    def __repr__(self) -> str:
        """Show the value."""
        return f"<{type(self).__name__}(value={self.get_value()})>"


class BoundedSemaphore(Semaphore):
    """A `Semaphore` that cannot be released more often than it was acquired: `ValueError`."""

    __slots__ = ()
    _kind = "BoundedSemaphore"
    _bounded = True


class Event(objects.SharedObject):
    """A `multiprocessing.Event` that travels through any queue; setting it is one store, so no death can leave it half-set.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     ready = store.Event()
    ...     ready.set()
    ...     print(ready.wait(timeout=1))
    True
    """

    __slots__ = ()
    _kind = "Event"

    @classmethod
    def make(cls, member: Membership, name: str | None = None) -> Self:
        """Make an event that is not set."""
        return cls._create(member, 1, name)

    def is_set(self) -> bool:
        """Whether the event is set."""
        return bool(self._words[0])

    def set(self) -> None:
        """Set the event and wake all who wait for it."""
        self._words[0] = 1
        self._wake(0)

    def clear(self) -> None:
        """Unset the event."""
        self._words[0] = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set; false after `timeout` seconds."""
        deadline = objects.deadline_of(timeout)
        while not self._words[0]:
            if not self._wait_change(0, 0, deadline):
                return bool(self._words[0])
        return True

    def __repr__(self) -> str:
        """Show whether it is set."""
        return f"<Event {'set' if self.is_set() else 'unset'}>"


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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let the lock go."""
        self._lock.release()

    def _require_lock(self) -> None:
        if self._lock._guard.owner != get_ident():
            raise GuardError("the lock of this condition is not held by this thread", remedy="Use `with condition:` around it.")

    def wait(self, timeout: float | None = None) -> bool:
        """Let the lock go, wait for a notification, take the lock again; false if none came in `timeout` seconds."""
        self._require_lock()
        words = self._words
        ticket = words[self._tail]
        words[self._tail] = ticket + 1
        words[self._waiters] += 1
        deadline = objects.deadline_of(timeout)
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


class Barrier(_Roll):
    """A `multiprocessing.Barrier` that travels through any queue, and breaks when a process that takes part is killed.

    A process takes part from its first `wait` until it ends; one that ends normally just leaves. `action` runs in one of the
    processes when all have come, and must be picklable. Raises `threading.BrokenBarrierError`.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     barrier = store.Barrier(1)
    ...     print(barrier.wait(), barrier.broken)
    0 False
    """

    __slots__ = ("_action", "_leaving", "_timeout")
    _kind = "Barrier"
    _parties, _count, _generation, _broken, _spoilt, _turn = range(6)
    _first = 6

    @classmethod
    def make(
        cls,
        member: Membership,
        parties: int,
        action: Callable[[], Any] | None = None,
        timeout: float | None = None,
        name: str | None = None,
    ) -> Self:
        """Make a barrier for `parties` threads or processes; raises `ValueError` if that is less than one."""
        if parties < 1:
            message = f"a barrier needs at least one party, not {parties}"
            raise ValueError(message)

        def fill(memory: np.ndarray[Any, Any]) -> None:
            memory[cls._parties] = parties
            memory[cls._spoilt] = -1

        barrier = cls._create(member, cls._first + control.SLOTS, name, fill)
        barrier._action, barrier._timeout = action, timeout
        return barrier

    def _attached(self) -> None:
        super()._attached()
        self._action: Callable[[], Any] | None = None
        self._timeout: float | None = None
        self._leaving: tuple[int, util.Finalize] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a handle, with action and default timeout."""
        attach, arguments = super().__reduce__()
        return _attach_barrier, (attach, arguments, self._action, self._timeout)

    @property
    def parties(self) -> int:
        """How many have to come."""
        count: int = self._words[self._parties]
        return count

    @property
    def n_waiting(self) -> int:
        """How many wait now."""
        count: int = self._words[self._count]
        return count

    @property
    def broken(self) -> bool:
        """Whether the barrier is broken."""
        return bool(self._words[self._broken])

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all have come; returns this one's number, from 0 to parties - 1.

        After `timeout` seconds, or if a process that takes part is killed, the barrier breaks for all.
        """
        deadline = objects.deadline_of(self._timeout if timeout is None else timeout)
        self._guard.acquire(self._array)
        try:
            index, generation = self._arrive()
        finally:
            self._guard.release()
        if generation is not None:
            self._wait_for_others(generation, deadline)
        return index

    def _arrive(self) -> tuple[int, int | None]:
        """With the guard held: be counted; the last one runs the action and opens. None as generation: it is open."""
        words = self._words
        if words[self._broken]:
            raise BrokenBarrierError
        if words[self._count] == 0:
            for index, _ in self._dead():
                words[index] = 0  # who died while nobody waited is missed by nobody
        self._take_part()
        index, generation = words[self._count], words[self._generation]
        words[self._count] = index + 1
        if index + 1 < words[self._parties]:
            return index, generation
        try:
            if self._action is not None:
                self._action()
        except BaseException:
            self._break()
            raise
        self._open()
        return index, None

    def _take_part(self) -> None:
        me = self._me()
        if me is None:
            return
        self._words[me[0]] = me[1] | 1
        if self._leaving is None or self._leaving[0] != guards.generation():
            leaving = util.Finalize(self, _clear, args=(self._words, me[0], self._array), exitpriority=0)
            self._leaving = (guards.generation(), leaving)

    def _wait_for_others(self, generation: int, deadline: float | None) -> None:
        words = self._words
        while words[self._generation] == generation and not words[self._broken]:
            turn = words[self._turn]
            if words[self._generation] != generation:
                break
            in_time = self._wait_change(self._turn, turn, deadline)
            if words[self._generation] == generation and (not in_time or self._dead()):
                self.abort()
        if words[self._spoilt] == generation or (words[self._broken] and words[self._generation] == generation):
            raise BrokenBarrierError

    def _open(self) -> None:
        self._words[self._count] = 0
        self._words[self._generation] += 1
        self._words[self._turn] += 1
        self._wake(self._turn)

    def _break(self) -> None:
        self._words[self._broken] = 1
        self._words[self._turn] += 1
        self._wake(self._turn)

    def abort(self) -> None:
        """Break the barrier: all who wait, and all who come, get `BrokenBarrierError` until `reset`."""
        self._guard.acquire(self._array)
        try:
            self._break()
        finally:
            self._guard.release()

    def reset(self) -> None:
        """Make the barrier whole and empty; those who wait get `BrokenBarrierError`."""
        self._guard.acquire(self._array)
        try:
            if self._words[self._count]:
                self._words[self._spoilt] = self._words[self._generation]
            for index, _ in self._dead():
                self._words[index] = 0
            self._words[self._broken] = 0
            self._open()
        finally:
            self._guard.release()


def _clear(words: Any, index: int, keep: object) -> None:
    """At the normal end of a process, or of its last barrier object: take part no more. `keep` keeps the memory mapped."""
    del keep
    words[index] = 0


def _attach_barrier(
    attach: Callable[..., Barrier], arguments: tuple[Any, ...], action: Callable[[], Any] | None, timeout: float | None
) -> Barrier:
    barrier = attach(*arguments)
    barrier._action, barrier._timeout = action, timeout
    return barrier
