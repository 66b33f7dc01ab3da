"""Whether this process puts into a channel, and whether it takes.

Owns: that an entry is in the channel's table from the first object of this process that has the role to the last that is closed.
Must not know: what the others do with the table (`flow`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmarray import guards

if TYPE_CHECKING:
    from shmarray.channels.flow import Flow

_DROPPED = 0


class Role:
    """One role of this process in one channel; objects have it under numbers."""

    __slots__ = ("_ever", "_first", "_flow", "_generation", "_members")

    def __init__(self, flow: Flow, first: int, ever: int) -> None:
        """Be written down in the table that begins at word `first`; word `ever` says that there was someone."""
        self._flow = flow
        self._first = first
        self._ever = ever
        self._members: set[int] = set()
        self._generation = -1

    def has(self, member: int) -> bool:
        """Whether an object of this process has the role; after a fork none has."""
        return self._generation == guards.Process.generation and member in self._members

    def join(self, member: int, deadline: float | None) -> None:
        """Give an object the role. Raises as `Slots.me`; `TimeoutError` as `Waits.within`."""
        me = self._flow.slots.parties.me()
        if self._generation != guards.Process.generation:
            self._members.clear()
            self._generation = guards.Process.generation
        try:
            self._members.add(member)
            self._flow.within(self._flow.slots.put_latch, deadline, self._enter, me)
        except BaseException:
            if not self._flow.slots.parties.is_in(self._first, me):
                self._members.discard(member)
            raise

    def _enter(self, me: int) -> None:
        self._flow.slots.parties.enter(self._first, me)
        self._flow.words[self._ever] = 1

    def forget(self, member: int) -> None:
        """Say that an object was dropped and not closed. The process keeps its role: a worker of a pool has another object in each task.

        Runs in finalizers: no lock, never raises.
        """
        if self.has(member):
            self._members.add(_DROPPED)
            self._members.discard(member)

    def leave(self, member: int) -> None:
        """Take the role from an object that is closed, and from those that were dropped; if it was the last, tell the others."""
        if not self.has(member):
            return
        # First of all from the table: who is interrupted closes once more. Another thread may join meanwhile.
        me = self._flow.slots.parties.me()
        last = self._members <= {member, _DROPPED}
        if last:
            self._flow.slots.parties.leave(self._first, me)
        self._members -= {member, _DROPPED}
        if last and self._members:
            self._flow.slots.parties.enter(self._first, me)
        elif last:
            self._flow.wake_all()
