"""Waiting in line for a shelf: to put something there, to take something from there.

Owns: who sleeps, until when, and who wakes whom.
Must not know: how records lie on the shelf; what users call it.
"""

from __future__ import annotations

import time
from queue import Empty, Full
from typing import TYPE_CHECKING

from shmarray.queues import shelves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmarray.keepers import Keeper, Parcel
    from shmarray.queues.shelves import Shelf

_GETTERS, _PUTTERS, _PUT_TURN, _GET_TURN = range(shelves.WORDS, shelves.WORDS + 4)
WORDS = shelves.WORDS + 4
"""Words of the keeper for a shelf and its line."""
_NOW = 1.0  # seconds that "at once" may take where a guard is in the way, which is held for microseconds
_PAST = 0.0


def _never() -> bool:
    return False


class Line:
    """Those who wait at one shelf."""

    __slots__ = ("_get_turn", "_getters", "_keeper", "_put_turn", "_putters", "_shelf", "_shelves", "_words")

    def __init__(self, keeper: Keeper, shelf: Shelf, base: int, shelves: Sequence[Shelf]) -> None:
        """Use the words of `keeper` from `base` on, behind those of the shelf; `shelves` are all that this keeper has."""
        self._keeper = keeper
        self._words = keeper._words
        self._shelf = shelf
        self._shelves = shelves
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
        keeper, words, waits = self._keeper, self._words, False
        while True:
            if not keeper.enter(self._shelves, None if deadline is None else deadline + _NOW):
                raise Full
            try:
                if not is_full():
                    words[self._putters] -= waits
                    self._shelf.add(parcel.kind, parcel.data)
                    wakes = words[self._getters] > 0
                    if wakes:
                        words[self._put_turn] += 1
                    break
                waits = self._line_up(self._putters, deadline, waits=waits)
                seen = words[self._get_turn]
            except BaseException:
                keeper.spoil()
                raise
            finally:
                keeper.leave()
            if not waits:
                raise Full
            keeper._wait_change(self._get_turn, seen, deadline)
            if is_over():
                deadline = _PAST
        if wakes:
            keeper._wake(self._put_turn, 1)

    def get(
        self, deadline: float | None, taken: Callable[[], None] | None = None, is_over: Callable[[], bool] = _never
    ) -> tuple[int, bytes]:
        """Take a record as soon as there is one; raises `queue.Empty` at the deadline, or when there is none and it `is_over`.

        `taken` is called with the guard held. Raises `StoreClosedError`.
        """
        keeper, words, waits = self._keeper, self._words, False
        while True:
            if not keeper.enter(self._shelves, None if deadline is None else deadline + _NOW):
                raise Empty
            try:
                if len(self._shelf):
                    words[self._getters] -= waits
                    record = self._shelf.take()
                    if taken is not None:
                        taken()
                    wakes = words[self._putters] > 0
                    if wakes:
                        words[self._get_turn] += 1
                    break
                waits = self._line_up(self._getters, deadline, waits=waits)
                seen = words[self._put_turn]
            except BaseException:
                keeper.spoil()
                raise
            finally:
                keeper.leave()
            if not waits:
                raise Empty
            keeper._wait_change(self._put_turn, seen, deadline)
            if is_over():
                deadline = _PAST
        if wakes:
            keeper._wake(self._get_turn, 1)
        return record

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
        words, keeper = self._words, self._keeper
        while not len(self._shelf):
            seen = words[self._put_turn]
            keeper.enter(self._shelves)
            words[self._getters] += 1
            keeper.leave()
            try:
                if len(self._shelf):
                    break
                in_time = keeper._wait_change(self._put_turn, seen, deadline)
            finally:
                keeper.enter(self._shelves)
                words[self._getters] -= 1
                keeper.leave()
            if not in_time or is_over():
                return bool(len(self._shelf))
        return True

    def stir(self) -> None:
        """Wake all who wait here, to look again."""
        for turn in (self._put_turn, self._get_turn):
            self._words[turn] += 1
            self._keeper._wake(turn)
