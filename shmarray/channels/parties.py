"""Which processes have a part in a channel.

Owns: how a process is named in the words of a channel, and the tables of producers and consumers. The kernel vouches for each: its slot
in the store's table of processes is marked as long as it lives. Likewise for whoever may use a thing that a forked child inherits.
Must not know: slots of the channel.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from shmarray import guards
from shmarray._format import channel as form
from shmarray._format import control, guard
from shmarray._os import flocks, segments
from shmarray.errors import GuardError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from shmarray.membership import Membership

_EMPTY = bytes(8 * control.SLOTS)


class Parties:
    """The processes of one channel."""

    __slots__ = ("_me", "_member", "_words")

    def __init__(self, words: Any, member: Membership) -> None:
        """Use the words of a channel."""
        self._words = words
        self._member = member
        self._me = (-1, 0)

    def me(self) -> int:
        """Name this process. Raises `GuardError` when the store has no place for one more, `StoreClosedError`."""
        generation, me = self._me
        if generation != guards.Process.generation:
            found = self._member.reader_slot()
            if found is None:
                raise GuardError(
                    f"no process more can use a channel of {self._member.label}: all places are taken",
                    remedy="Let processes that are done with the store end.",
                )
            me = form.party(found[0], guard.epoch_word(found[1]))
            self._words[form.PIDS + found[0]] = os.getpid()
            self._me = (guards.Process.generation, me)
        return me

    def is_me(self, name: int) -> bool:
        """Whether that names this process, which may have no name yet. Raises nothing and asks nobody: for finalizers."""
        generation, me = self._me
        return generation == guards.Process.generation and me == name

    def _entries(self, first: int) -> list[int]:
        """Names of the processes in a table."""
        table = self._words[first : first + control.SLOTS]
        return [form.party(slot, word) for slot, word in enumerate(table) if word]

    def producers(self) -> list[int]:
        """Who puts, or died at it and was not yet found out."""
        return self._entries(form.PRODUCERS)

    def consumers(self) -> list[int]:
        """Who takes, likewise."""
        return self._entries(form.CONSUMERS)

    def enter(self, first: int, me: int) -> None:
        """With the put lock held: write this process into a table."""
        self._words[first + form.slot_of(me)] = form.epoch_of(me)

    def is_in(self, first: int, me: int) -> bool:
        """Whether this process is written into a table."""
        return bool(self._words[first + form.slot_of(me)] == form.epoch_of(me))

    def leave(self, first: int, me: int) -> bool:
        """Strike this process out of a table; says whether it was there. Needs no lock: nobody else writes a living one's entry."""
        index = first + form.slot_of(me)
        there = bool(self._words[index] == form.epoch_of(me))
        if there:
            self._words[index] = 0
        return there

    def nobody_in(self, first: int) -> bool:
        """Whether a table is empty."""
        return ctypes.string_at(ctypes.addressof(self._words) + 8 * first, len(_EMPTY)) == _EMPTY

    def share(self, token: int) -> segments.Segment:
        """Be one of those who may use what that random number names, as long as the mapping is there, also in a forked child.

        Raises `StoreClosedError`.
        """
        fd = self._member.open_control()
        try:
            flocks.share_mark(fd, control.SHARED_MARK + token)
            return segments.map_shared(fd, control.SIZE)
        finally:
            fd.close()

    def _is_shared(self, token: int) -> bool:
        fd = self._member.open_control()
        try:
            return flocks.is_marked(fd, control.SHARED_MARK + token)
        finally:
            fd.close()

    def dead(self, names: AbstractSet[int]) -> set[int]:
        """Which of these processes are gone, by the kernel's word; and which of those are nobody that are whoever shares a mark.

        The latter are named by what is below zero, see `Subscribers.owners`. Raises `StoreClosedError`.
        """
        marks = {name for name in names if name < 0}
        there = set(names) - marks
        alive = self._member.slots_alive(sorted({form.slot_of(party) for party in there})) if there else {}
        return {mark for mark in marks if not self._is_shared(~mark)} | {
            party
            for party in there
            if (slot := form.slot_of(party)) not in alive or guard.epoch_word(alive[slot]) != form.epoch_of(party)
        }
