"""Tasks: values that were taken from a queue and are being dealt with.

Owns: who has how many of them at work, how many have been dealt with, and which are lost with a process that has ended.
Must not know: in which order values are taken, who waits.

At rest, with the guard held, each value that was ever put is one of four: on the shelf, at work in a process, lost, dealt with. Where a
death left a step half done the sum does not add up: what is missing is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from shmarray import objects
from shmarray._format import control
from shmarray.queues import lines
from shmarray.sync import rolls

if TYPE_CHECKING:
    from shmarray.queues.shelves import Shelf

MAXSIZE, JOINERS, DONE_TURN, DONE, LOST, UNSEEN = range(lines.WORDS, lines.WORDS + 6)
"""Words of a queue behind those of its line."""
FIRST = lines.WORDS + 6
ENTRIES = control.SLOTS


class Tasks(rolls.Roll):
    """The tasks of a queue, as this process sees them. Refers to the block and not to the queue, so there is no cycle."""

    __slots__ = ("_shelf",)
    _first = FIRST
    _shelf: Shelf

    @classmethod
    def of(cls, queue: objects.SharedObject, shelf: Shelf) -> Self:
        """Count the tasks of the queue with that shelf."""
        tasks = cls._over(objects.segment_of(queue))
        tasks._shelf = shelf
        return tasks

    @property
    def arena_number(self) -> int:
        """See `keepers.Mendable`."""
        return self._shelf.arena_number

    def _missing(self) -> int:
        """How many values are none of the four, with the guard held."""
        words = self._words
        at_work = words[UNSEEN] + sum(word & rolls.COUNT for word in words[self._first : self._first + ENTRIES])
        missing: int = self._shelf.put_so_far - len(self._shelf) - words[DONE] - words[LOST] - at_work
        return missing

    def mend(self) -> None:
        """After a death, the shelf being mended: what was taken and noted nowhere is lost."""
        missing = self._missing()
        self._words[LOST] += max(0, missing)
        self._words[DONE] += min(0, missing)

    def begin(self) -> None:
        """With the guard held: this process has one task more at work.

        Where all slots are taken, nobody can say afterwards whether it died with that.
        """
        me = self.me()
        if me is None:
            self._words[UNSEEN] += 1
            return
        mine = self.entry_of(*me)
        if not mine:
            self._words[LOST] += self._words[me[0]] & rolls.COUNT  # of who had the slot before, and died
        self._words[me[0]] = me[1] | mine + 1

    def end(self) -> bool:
        """With the guard held: one task has been dealt with; false if there was none."""
        if self._words[DONE] + self._words[LOST] >= self._shelf.put_so_far:
            return False
        entry = self._one_at_work()
        if entry is not None:
            self._words[entry] -= 1
        self._words[DONE] += 1
        self._words[DONE_TURN] += 1
        return True

    def _one_at_work(self) -> int | None:
        """Index of the word from which a task is to go: this process's, or of another that leaves saying so to this one."""
        me = self.me()
        if me is not None and self.entry_of(*me):
            return me[0]
        entries = (UNSEEN, *range(self._first, self._first + ENTRIES))
        return next((index for index in entries if self._words[index] & rolls.COUNT), None)

    def all_done(self) -> bool:
        """Whether all values that were put have been dealt with."""
        done: int = self._words[DONE]
        return done >= self._shelf.put_so_far

    def give_up_lost(self) -> int:
        """With the guard held: count what is lost as dealt with; returns how many."""
        for index, tasks in self.dead():
            self._words[index] = 0
            self._words[LOST] += tasks
        lost: int = self._words[LOST]
        self._words[LOST] = 0
        self._words[DONE] += lost
        if lost:
            self._words[DONE_TURN] += 1
        return lost
