"""Semaphores, as in `multiprocessing`, whose permits come back from the dead.

Owns: `Semaphore`, `BoundedSemaphore`.
Must not know: how a guard survives a death.

A semaphore is one word that is waited on, and a word for each process that holds permits. Both are changed under the guard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from shmarray import objects
from shmarray._format import control
from shmarray.sync import rolls

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    import numpy as np

    from shmarray.membership import Membership


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
            me = self.me()
            if me is not None:
                self._words[me[0]] = me[1] | (self.entry_of(*me) + 1)
        finally:
            self._guard.release()
        return True

    def _recover(self) -> None:
        """Give back the permits of the dead."""
        if not self._words[1] or not self.dead():
            return
        self._guard.acquire(self._array)
        try:
            for index, held in self.dead():
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
            me = self.me()
            if me is not None:
                self._words[me[0]] = me[1] | max(0, self.entry_of(*me) - n)
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
