"""Waiting in line for a shelf: to put something there, to take something from there.

Owns: who sleeps, until when, and who wakes whom.
Must not know: how records lie on the shelf; what users call it.
"""

from __future__ import annotations

import functools
import time
from queue import Empty, Full
from typing import TYPE_CHECKING

from shmarray.queues import shelves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmarray.keepers import Keeper, Mendable, Parcel, Result
    from shmarray.queues.shelves import Shelf

_GETTERS, _PUTTERS, _PUT_TURN, _GET_TURN = range(shelves.WORDS, shelves.WORDS + 4)
WORDS = shelves.WORDS + 4
"""Words of the keeper for a shelf and its line."""
_NOW = 1.0  # seconds that "at once" may take where a guard is in the way, which is held for microseconds


def _never() -> bool:
    return False


class Line:
    """Those who wait at one shelf."""

    __slots__ = ("_get_turn", "_getters", "_keeper", "_mendable", "_put_turn", "_putters", "_shelf", "_words")

    def __init__(self, keeper: Keeper, shelf: Shelf, base: int, mendable: Sequence[Mendable]) -> None:
        """Use the words of `keeper` from `base` on, behind those of the shelf; `mendable` is all that this keeper has."""
        self._keeper = keeper
        self._words = keeper._words
        self._shelf = shelf
        self._mendable = mendable
        self._getters, self._putters = base + _GETTERS, base + _PUTTERS
        self._put_turn, self._get_turn = base + _PUT_TURN, base + _GET_TURN

    def put(
        self,
        parcel: Parcel,
        deadline: float | None,
        is_full: Callable[[], bool],
        is_over: Callable[[], bool] = _never,
    ) -> None:
        """Put a parcel as soon as the shelf is not full; raises `queue.Full` at the deadline, or once it `is_over`.

        Raises `StoreFullError`, `StoreClosedError`; nothing was put then.
        """
        waits = False
        while True:
            found, waits, seen = self._keeper.within(
                functools.partial(self._try_put, parcel, deadline, is_full, waits=waits),
                self._mendable,
                None if deadline is None else deadline + _NOW,
                Full,
            )
            if found:
                break
            if not waits:
                raise Full
            self._keeper._wait_change(self._get_turn, seen, deadline)
            if is_over():
                deadline = time.monotonic()
        if seen:
            self._keeper._wake(self._put_turn, 1)

    def _try_put(
        self, parcel: Parcel, deadline: float | None, is_full: Callable[[], bool], *, waits: bool
    ) -> tuple[bool, bool, int]:
        """With the guard held: put a parcel if there is room. Gives whether it was put, whether to wait, and the turn to wait for.

        After a put the last says whether to wake someone.
        """
        words, before = self._words, self._shelf.put_so_far
        try:
            if is_full():
                waits = self._line_up(self._putters, deadline, waits=waits)
                return False, waits, words[self._get_turn]
            words[self._putters] -= waits
            self._shelf.add(parcel.kind, parcel.data)
            parcel.links.clear()  # they are the shelf's now
            wakes = words[self._getters] > 0
            if wakes:
                words[self._put_turn] += 1
        except BaseException:
            # An exception out of a signal's handler may come when the record is there already.
            self._keeper.spoil()
            self._shelf.mend()
            if self._shelf.put_so_far > before:
                parcel.links.clear()
            raise
        return True, False, wakes

    def get(
        self, deadline: float | None, taken: Callable[[], None] | None = None, is_over: Callable[[], bool] = _never
    ) -> tuple[int, bytes]:
        """Take a record as soon as there is one; raises `queue.Empty` at the deadline, or when there is none and it `is_over`.

        `taken` is called with the guard held. Raises `StoreClosedError`.
        """
        waits = False
        while True:
            record, waits, seen = self._keeper.within(
                functools.partial(self._try_get, deadline, taken, waits=waits),
                self._mendable,
                None if deadline is None else deadline + _NOW,
                Empty,
            )
            if record is not None:
                break
            if not waits:
                raise Empty
            self._keeper._wait_change(self._put_turn, seen, deadline)
            if is_over():
                deadline = time.monotonic()
        if seen:
            self._keeper._wake(self._get_turn, 1)
        return record

    def _try_get(
        self, deadline: float | None, taken: Callable[[], None] | None, *, waits: bool
    ) -> tuple[tuple[int, bytes] | None, bool, int]:
        """With the guard held: take a record if there is one. Gives it, whether to wait, and the turn to wait for.

        With a record the last says whether to wake someone.
        """
        words = self._words
        try:
            if not len(self._shelf):
                waits = self._line_up(self._getters, deadline, waits=waits)
                return None, waits, words[self._put_turn]
            words[self._getters] -= waits
            record = self._shelf.take()
            if taken is not None:
                taken()
            wakes = words[self._putters] > 0
            if wakes:
                words[self._get_turn] += 1
        except BaseException:
            self._keeper.spoil()
            raise
        return record, False, wakes

    def _line_up(self, line: int, deadline: float | None, *, waits: bool) -> bool:
        """With the guard held: be counted among those who wait, once; be counted out at the deadline. Says which.

        Who is killed while it waits stays counted: then others are woken for nothing, which costs a system call and no more.
        """
        in_time = deadline is None or time.monotonic() < deadline
        if in_time != waits:
            self._words[line] += 1 if in_time else -1
        return in_time

    def has_record(self, deadline: float | None, is_over: Callable[[], bool]) -> bool:
        """Wait until there is a record, which stays; false at the deadline, or once it `is_over`."""
        while not len(self._shelf):
            seen = self._words[self._put_turn]
            self._count_waiting(1)
            try:
                if len(self._shelf):
                    break
                in_time = self._keeper._wait_change(self._put_turn, seen, deadline)
            finally:
                self._count_waiting(-1)
            if not in_time or is_over():
                return bool(len(self._shelf))
        return True

    def _count_waiting(self, change: int) -> None:
        def count() -> None:
            self._words[self._getters] += change

        self.within(count)

    def within(self, work: Callable[[], Result]) -> Result:
        """Do `work` with the guard held; see `Keeper.within`."""
        return self._keeper.within(work, self._mendable)

    def stir(self) -> None:
        """Wake all who wait here, to look again."""
        for turn in (self._put_turn, self._get_turn):
            self._words[turn] += 1
            self._keeper._wake(turn)
