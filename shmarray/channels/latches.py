"""The two locks of a channel.

Owns: entering and leaving one, word of a death in between, and putting things right when an exception comes out of the midst.
Must not know: what is guarded.

As the guard of a block, a latch is a robust mutex, or a plain semaphore where the store has those; but it knows nothing of readers, and
does not say who has it, so it costs half. All that is done with it held takes microseconds.
"""

from __future__ import annotations

import errno
import os
import time
from threading import get_ident, get_native_id
from typing import TYPE_CHECKING, Any

from shmarray._os import mutexes
from shmarray.errors import GuardError
from shmarray.guards import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

_TURNS = 10 if (os.cpu_count() or 1) > 1 else 0
_FREE, _DIED, _BUSY, _LATE = mutexes.FREE, mutexes.OWNER_DIED, mutexes.BUSY, mutexes.TIMED_OUT


class Latch:
    """A lock at an address; `mend` puts right what it guards, and is called with it held."""

    __slots__ = ("_owner", "_refusals", "_robust", "address", "let", "mend", "take")

    def __init__(self, address: int, mend: Callable[[], None], *, robust: bool) -> None:
        """Stand for the lock; nobody here holds it."""
        self.address = address
        self.mend = mend
        self._robust = robust
        self._owner = 0
        self._refusals: list[GuardError] = []  # on their way; several, where a handler is interrupted by another one
        # To be called with the address, by whoever cannot afford a call of Python's: `take` answers 0, or what `enter` wants to know.
        self.take: Callable[[int], int] = mutexes.mutex_trylock if robust else self._take_plain
        self.let: Callable[[int], Any] = mutexes.mutex_unlock if robust else self._let_plain

    def enter(self, code: int, deadline: float | None) -> bool:
        """Go on after `take` answered `code`, not 0; false at the deadline. Raises `GuardError` if this thread is inside already."""
        for _ in range(_TURNS):
            if code != _BUSY:
                break
            code = self.take(self.address)  # it is held for a microsecond: a sleep and a wake take longer
        while code in (_BUSY, _LATE):
            left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
            if left <= 0:
                return False
            code = self._wait(left)
        if code == _DIED:
            self.mend()
            mutexes.mutex_consistent(self.address)
        elif code == errno.EDEADLK:
            refusal = GuardError(
                "this thread is in the midst of a call to this channel: a signal handler or finalizer cannot use it now",
                remedy="Let the handler set a flag, and use the channel after it.",
            )
            self._refusals.append(refusal)
            raise refusal
        elif code != _FREE:
            raise OSError(code, f"the lock of a channel answers {code}: its bytes are damaged")
        return True

    def _wait(self, seconds: float) -> int:
        if self._robust:
            return mutexes.mutex_wait(self.address, seconds)
        if self._owner == get_ident():
            return errno.EDEADLK
        return self._noted(*mutexes.semaphore_wait(self.address, seconds))

    def is_mine(self) -> bool:
        """Whether this thread has the lock."""
        if self._robust:
            return mutexes.mutex_owner(self.address) == get_native_id()
        return self._owner == get_ident()

    def abandon(self, error: BaseException) -> None:
        """After an exception, from wherever: if this thread has the lock, put things right and let it go."""
        if any(error is refusal for refusal in self._refusals):
            self._refusals.remove(error)  # type: ignore[arg-type]  # it is one of them
            return  # the lock is that of the call which was interrupted, and which may go on
        if self.is_mine():
            try:
                self.mend()
            finally:
                if self._robust:  # it may have come with word of a death; else this changes nothing
                    mutexes.mutex_consistent(self.address)
                self.let(self.address)

    def _take_plain(self, address: int) -> int:
        return self._noted(mutexes.semaphore_trywait, (address,))

    def _let_plain(self, address: int) -> None:
        self._owner = 0
        mutexes.semaphore_post(address)

    def _noted(self, call: Any, arguments: tuple[Any, ...]) -> int:
        """Take the semaphore, and note whose it is: C code puts the answer where it is found, for a handler may raise after any call."""
        answers: list[int] = []
        me = get_ident()
        try:
            answers.extend(map(call, *zip(arguments)))
        finally:
            if answers == [0]:
                self._owner = me  # no call any more: a handler could raise after it
        return _FREE if answers == [0] else _BUSY


def fresh(*, robust: bool) -> bytes:
    """Give the bytes of a lock that nobody holds."""
    return mutexes.fresh_mutex() if robust else mutexes.fresh_semaphore()
