"""Semaphores, as in `multiprocessing`, whose permits come back from the dead.

Owns: `Semaphore`, `BoundedSemaphore`.
Must not know: how a guard survives a death.

A semaphore is one word that is waited on, and a word for each process that holds permits. Both are changed under the guard, and what they
were is noted before: who is killed, or interrupted, between the two stores has done neither.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar, Self

from shmarray import objects
from shmarray._format import control, counts, flags
from shmarray._os import futexes
from shmarray.sync import rolls

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    import numpy as np

    from shmarray.membership import Membership


class _StoppedError(Exception):
    """The guard was not to be had in time: whoever has it was stopped."""


class Semaphore(rolls.Roll):
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
    _value, _initial, _changing, _value_before, _entry_before = range(5)  # `_changing`: index of the entry, 0 at rest
    _first = 5
    _bounded: ClassVar[bool] = False

    @classmethod
    def make(cls, member: Membership, value: int = 1, name: str | None = None) -> Self:
        """Make a semaphore with `value` permits; raises `ValueError` if that is negative."""
        if value < 0:
            message = f"a semaphore cannot begin with {value} permits"
            raise ValueError(message)

        def fill(memory: np.ndarray[Any, Any]) -> None:
            memory[[cls._value, cls._initial]] = value

        return cls._create(member, cls._first + control.SLOTS, name, fill)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take a permit; false when there is none at once (`block=False`) or for `timeout` seconds."""
        deadline = objects.deadline_of(timeout if flags.check_block(block) else 0)
        got: list[None] = []
        take = functools.partial(self._take, got)
        try:
            while True:
                if self._words[self._value] > 0 and self._within(take, deadline, _StoppedError):
                    return True
                if not self._wait_change(self._value, 0, deadline):
                    return False
                if self._words[self._value] == 0:
                    self._recover(deadline)
        except _StoppedError:
            return False
        except BaseException:
            if got:
                self.release()
            raise

    def _settle(self) -> None:
        """With the guard held: undo what one who died, or was interrupted, with it has left half done."""
        words = self._words
        if words[self._changing]:
            words[words[self._changing]] = words[self._entry_before]
            words[self._value] = words[self._value_before]
            words[self._changing] = 0

    def _move(self, index: int, entry: int, value: int) -> None:
        """With the guard held: change an entry and the value, both or neither."""
        words = self._words
        words[self._value_before] = words[self._value]
        words[self._entry_before] = words[index]
        words[self._changing] = index
        words[index] = entry
        words[self._value] = value
        words[self._changing] = 0

    def _take(self, got: list[None]) -> bool:
        """With the guard held: take a permit if there is one, and note in `got` that it was taken."""
        self._settle()
        me = self.me() if self._words[self._initial] else None  # else nothing is ever recovered
        if me is not None and not self.entry_of(*me):
            self._give_back(me[0])  # of a dead one, who had this slot before
        value = self._words[self._value]
        if value <= 0:
            return False
        if me is None:
            self._words[self._value] = value - 1
        else:
            self._move(me[0], me[1] | (self.entry_of(*me) + 1), value - 1)
        got.append(None)
        return True

    def _recover(self, deadline: float | None) -> None:
        """Give back the permits of the dead. Raises as `_within`."""
        initial = self._words[self._initial]
        if not self._words[self._changing] and (not initial or not self.dead()):
            return
        self._within(self._recover_all, deadline, _StoppedError)
        self._wake(self._value)

    def _recover_all(self) -> None:
        self._settle()
        for index, _ in self.dead() if self._words[self._initial] else ():
            self._give_back(index)

    def _give_back(self, index: int) -> None:
        """With the guard held: the permits of an entry are there again, as far as the value the semaphore began with."""
        held = self._words[index] & rolls.COUNT
        if held:
            value = self._words[self._value]
            self._move(index, 0, max(value, min(self._words[self._initial], value + held)))

    def release(self, n: int = 1) -> None:
        """Give `n` permits; a bounded one raises `ValueError` if it then had more than it began with.

        `ValueError` also for an `n` below one, `OverflowError` where there would be more than 64 bits can say.
        """
        if type(n) is not int:
            n = counts.check(n, "n")
        if n < 1:
            message = f"n must be one or more, not {n}"
            raise ValueError(message)
        self._within(functools.partial(self._give, n))
        self._wake(self._value, min(n, futexes.EVERYONE))

    def _give(self, n: int) -> None:
        self._settle()
        if self._bounded and self._words[self._value] + n > self._words[self._initial]:
            message = "semaphore or lock released too many times"
            raise ValueError(message)
        if self._words[self._value] + n > counts.MOST:
            message = (
                f"n must be a number that a semaphore can count up to from {self._words[self._value]}, and {n} is not"
            )
            raise OverflowError(message)
        for left in range(n, 0, -1):
            index = self._one_who_holds()
            if index is None:
                self._words[self._value] += left
                break
            self._move(index, self._words[index] - 1, self._words[self._value] + 1)

    def _one_who_holds(self) -> int | None:
        """Index of the entry that has one permit less after a release: this process's, else one on whose behalf it gives.

        Producers take permits that consumers give; they must not seem to hold all that they ever took.
        """
        if not self._words[self._initial]:
            return None  # nothing is recovered, so nobody's share matters
        me = self.me()
        if me is not None and self.entry_of(*me):
            return me[0]
        gone = self.dead()
        if gone:
            return gone[0][0]
        table = self._words[self._first : self._first + control.SLOTS]
        return next((self._first + slot for slot, word in enumerate(table) if word & rolls.COUNT), None)

    def get_value(self) -> int:
        """How many permits there are now."""
        value: int = self._words[self._value]
        return value

    def __enter__(self) -> bool:
        """Take a permit."""
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
