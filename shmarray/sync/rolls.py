"""Who takes part in a shared object.

Owns: a shared object with one word for each process that takes part, whose life the kernel vouches for.
Must not know: what the words count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

from shmarray import guards, objects
from shmarray._format import control, guard

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")
COUNT = (1 << 32) - 1
_GRACE = 1.0
"""Seconds beyond the deadline for which the guard is waited for: it is held for microseconds, unless its holder was stopped."""


class Roll(objects.SharedObject):
    """A shared object with one word for each process that takes part, whose life the kernel vouches for.

    An entry is a number in its low 32 bits and the epoch of the process's slot above; an entry of another epoch is a dead one's.
    """

    __slots__ = ("_slot",)
    _first: ClassVar[int]
    """Index of the first entry; `control.SLOTS` follow."""

    def _attached(self) -> None:
        self._slot: tuple[int, int, int] | None = None

    def _within(self, work: Callable[[], R], deadline: float | None = None, late: type[Exception] = TimeoutError) -> R:
        """Do `work` with the guard held and give what it gives; raises `late` if that is not to be had until well after the deadline."""
        held = self._guard
        left = None if deadline is None else max(0.0, objects.seconds_to(deadline)) + _GRACE
        if not held.acquire(self._array, left):
            raise late
        try:
            return work()
        finally:
            # A signal's handler may raise as the first step of leaving.
            try:
                held.release()
            except BaseException:
                held.give_back()
                raise

    def me(self) -> tuple[int, int] | None:
        """Index of this process's entry, and its epoch shifted; None if all slots are taken."""
        if self._slot is None or self._slot[0] != guards.generation():
            found = self._guard.member.reader_slot()
            if found is None:
                return None
            self._slot = (guards.generation(), self._first + found[0], guard.epoch_word(found[1]) << 32)
        return self._slot[1:]

    def entry_of(self, index: int, epoch: int) -> int:
        """Number in the entry at `index`, if it is of that epoch; else 0."""
        word: int = self._words[index]
        return word & COUNT if word & ~COUNT == epoch else 0

    def dead(self) -> list[tuple[int, int]]:
        """Entries of processes that the kernel says are gone: index and number."""
        table = self._words[self._first : self._first + control.SLOTS]
        taken = [slot for slot, word in enumerate(table) if word & COUNT]
        alive = self._guard.member.slots_alive(taken) if taken else {}
        return [
            (self._first + slot, table[slot] & COUNT)
            for slot in taken
            if slot not in alive or guard.epoch_word(alive[slot]) << 32 != table[slot] & ~COUNT
        ]
