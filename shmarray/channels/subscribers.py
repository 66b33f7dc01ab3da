"""Who sees the items of a broadcast.

Owns: the table of subscriptions: what each comes to next, which slot it holds, what it missed; when a slot has been seen by all.
Must not know: how anything waits; what is in a slot.

A subscription's *cursor* is the number of the item it comes to next. An item counts how many subscriptions have not had it; the last one
to be
done with it frees its slot, so publishing costs the same for any number of them. That count follows from the cursors and from what is held,
and is found again from them (`recount`) when a process died in the midst. Joining and leaving take both locks; all else that of those who
take. A subscription holds one item at a time. Who is done with it and cannot have the lock, because its holder was stopped, says so in the
word that names it, and goes on: who needs the slot counts anew.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shmarray._format import channel as form
from shmarray.errors import StoreFullError

if TYPE_CHECKING:
    from collections.abc import Callable

_ENTRIES = [form.SUBSCRIBERS + number * form.SUBSCRIBER_WORDS for number in range(form.MOST_SUBSCRIBERS)]


class Subscribers:
    """The table of one channel. Every method wants the get lock held, unless it says otherwise."""

    __slots__ = ("_change", "_count", "_records", "_ring", "_words")

    def __init__(self, words: Any, geometry: form.Geometry, change: Callable[..., None]) -> None:
        """Use the words of a channel; `change` sets several of them, all or none."""
        self._words = words
        self._change = change
        self._count = geometry.slots
        self._records = [geometry.record(slot) for slot in range(self._count)]
        self._ring = geometry.ring

    def _there(self) -> list[int]:
        return [entry for entry in _ENTRIES if self._words[entry]] if self._words[form.MODE] else []

    def count(self) -> int:
        """How many there are. Needs the put lock, or is a look."""
        return len(self._there())

    def owners(self) -> set[int]:
        """Name the processes that have one; where it is whoever shares its mark, by the token turned below zero (`~`). A look."""
        return {self._owner(entry) for entry in self._there()}

    def _owner(self, entry: int) -> int:
        owner: int = self._words[entry]
        return ~self._words[entry + form.TOKEN] if owner == form.LEFT else owner

    def entries(self) -> list[int]:
        """Where each one's words begin. A look."""
        return self._there()

    def join(self, me: int, joined: list[int]) -> None:
        """With both locks held: subscribe a process to all that is published from now on; what `Seat` wants to know into `joined`.

        Raises `StoreFullError` if there are as many as can be.
        """
        words = self._words
        entry = next((entry for entry in _ENTRIES if not words[entry]), None)
        if entry is None:
            raise StoreFullError(
                f"this channel has {form.MOST_SUBSCRIBERS} subscriptions, which is as many as can be",
                remedy="Close those that are not used any more, or let several consumers share one.",
                limit=form.MOST_SUBSCRIBERS,
            )
        token = int.from_bytes(os.urandom(7), "little")
        words[entry + form.CURSOR] = tail = words[form.TAIL]
        words[entry + form.HELD] = words[entry + form.MISSED] = words[entry + form.SEEN] = 0
        words[entry + form.CLOSING] = 0
        words[entry + form.TOKEN] = token
        joined += (entry, token, tail)
        words[entry] = me
        words[form.SUBSCRIBED] = self.count()

    def adopt(self, entry: int, token: int, me: int) -> bool:
        """Let a subscription be that of this process, to which it has travelled; false if it is there no more.

        What has an item in hand stays with the process that has it: if another's death ended it, the slot would be filled under the reader.
        """
        there = self.is_there(entry, token)
        if there and self._words[entry + form.HELD] <= 0:
            self._words[entry] = me
        return there

    def is_there(self, entry: int, token: int) -> bool:
        """Whether a subscription was neither closed nor dropped nor buried."""
        return self._words[entry] not in (0, form.GONE) and bool(self._words[entry + form.TOKEN] == token)

    def leave(self, entry: int, token: int) -> bool:
        """With both locks held: end a subscription; if it has an item in hand, when that is given back. May be repeated. Gives True."""
        self.settle()
        if self.is_there(entry, token) and self._words[entry + form.HELD]:
            self._words[entry + form.CLOSING] = 1
        elif self.is_there(entry, token):
            self._words[entry] = 0
            self._words[form.SUBSCRIBED] = self.count()
            self.recount()
        return True

    def bury(self, dead: set[int]) -> bool:
        """With both locks held: end the subscriptions of the dead; says whether there were any."""
        self.settle()
        gone = [entry for entry in self._there() if self._owner(entry) in dead]
        for entry in gone:
            self._words[entry] = 0
        if gone:
            self._words[form.SUBSCRIBED] = self.count()
            self.recount()
        return bool(gone)

    def desert(self, entry: int, token: int) -> None:
        """Leave a subscription to be buried by whoever needs its slots: one store and no lock, for finalizers."""
        if self.is_there(entry, token):
            self._words[entry] = form.GONE

    def leave_to_children(self, entry: int, token: int) -> None:
        """Leave a subscription to those who share its mark, one of whom may have taken it already: one store, for finalizers."""
        if self.is_there(entry, token):
            self._words[entry] = form.LEFT

    def leave_alone(self, entry: int, token: int) -> None:
        """Without the locks, which are not to be had: `leave`, left to be made true by whoever needs its slots. May be repeated."""
        if self.is_there(entry, token):
            self._words[entry + form.CLOSING] = 1
            if self._words[entry + form.HELD] <= 0:  # else who gives it back sees the word before
                self._words[entry] = form.GONE

    def are_untidy(self) -> bool:
        """Whether there are subscriptions to bury, or items that were laid down. A look."""
        return any(self._words[entry] == form.GONE or self._words[entry + form.HELD] < 0 for entry in _ENTRIES)

    def settle(self) -> None:
        """Be done with what was laid down: as if it were given back now."""
        words = self._words
        laid = [entry for entry in self._there() if words[entry + form.HELD] < 0]
        if laid:
            self.recount()  # which does not count it any more
        for entry in laid:
            words[entry + form.HELD] = 0
            words[entry + form.SEEN] += 1
            words[form.RECEIVED] += 1
            if words[entry + form.CLOSING]:
                words[entry] = form.GONE

    def are_done(self) -> bool:
        """Whether everyone has had, and given back, all that was published."""
        words = self._words
        return all(
            words[entry + form.CURSOR] == words[form.TAIL] and words[entry + form.HELD] <= 0 for entry in self._there()
        )

    def depth(self, entry: int) -> int:
        """How many items a subscription has before it. A look."""
        ahead: int = self._words[form.TAIL] - self._words[entry + form.CURSOR]
        return max(0, ahead)

    def take(self, entry: int, got: list[int]) -> bool:
        """Hold the next item, its slot into `got`; false if there is none."""
        words = self._words
        cursor = words[entry + form.CURSOR]
        if cursor == words[form.TAIL]:
            return False
        slot = words[self._ring + cursor % self._count]
        got.append(slot)
        # Held first: between the two it counts once as not seen, and never as seen.
        words[entry + form.HELD] = slot + 1
        words[entry + form.CURSOR] = cursor + 1
        return True

    def give_back(self, entry: int, token: int, slot: int) -> None:
        """Be done with an item that is held; the last one frees its slot. May be repeated."""
        words = self._words
        if not self.is_there(entry, token) or words[entry + form.HELD] != slot + 1:
            return
        record = self._records[slot]
        left = words[record + form.PENDING] - 1
        words[record + form.PENDING] = left
        words[entry + form.HELD] = 0
        words[entry + form.SEEN] += 1
        words[form.RECEIVED] += 1
        if left <= 0:
            words[form.HINT] = slot
            words[record] = form.FREE
        if words[entry + form.CLOSING]:
            words[entry] = form.GONE

    def lay_down(self, entry: int, token: int, slot: int) -> None:
        """Without the lock: be done with an item that is held, and leave the counting to others (`settle`). May be repeated."""
        if self.is_there(entry, token) and self._words[entry + form.HELD] == slot + 1:
            self._words[entry + form.HELD] = -slot - 1  # no other process writes it as long as it is above zero

    def untake(self, entry: int, token: int, slot: int) -> None:
        """Come again to an item that was held and not seen. May be repeated."""
        words = self._words
        if self.is_there(entry, token) and words[entry + form.HELD] == slot + 1:
            number = words[self._records[slot] + form.NUMBER]
            if words[entry + form.CURSOR] == number + 1:
                words[entry + form.CURSOR] = number
                words[entry + form.HELD] = 0
            else:
                # What comes after it was dropped meanwhile; so it is missed as well.
                self._change((entry + form.MISSED, words[entry + form.MISSED] + 1), (entry + form.HELD, 0))
                self.recount()
            if words[entry + form.CLOSING]:
                words[entry] = form.GONE

    def recount(self) -> None:
        """Count anew, for each item, who has not had it; free what all have had."""
        words = self._words
        there = [(words[entry + form.CURSOR], words[entry + form.HELD]) for entry in self._there()]
        tail = words[form.TAIL]
        for slot, record in enumerate(self._records):
            state = words[record]
            number = state & form.REST
            if state & form.KIND == form.READY and number < tail:
                left = sum(held == slot + 1 or cursor <= number for cursor, held in there)
                words[record + form.PENDING] = left
                if not left:
                    words[record] = form.FREE

    def evict(self) -> int:
        """Drop the oldest item that nobody holds, for all who have not come to it: they miss it. Gives its slot, free; -1 if none.

        With both locks held.
        """
        words = self._words
        if self.are_untidy():
            self.bury({form.GONE})  # which may make room; and nobody misses what only those who have gone had not seen
            free = next((slot for slot, record in enumerate(self._records) if not words[record]), -1)
            if free >= 0:
                return free
        there = self._there()
        held = {words[entry + form.HELD] - 1 for entry in there}
        ready = [
            (words[record] & form.REST, slot)
            for slot, record in enumerate(self._records)
            if words[record] & form.KIND == form.READY and slot not in held
        ]
        if not ready:
            return -1
        number, slot = min(ready)
        late = [entry for entry in there if words[entry + form.CURSOR] <= number]
        for entry in late:
            # What lies before it and is held by others is missed with it: the order is that of publishing.
            missed = words[entry + form.MISSED] + number + 1 - words[entry + form.CURSOR]
            changes = ((entry + form.MISSED, missed), (entry + form.CURSOR, number + 1))
            dropped = ((form.DROPPED, words[form.DROPPED] + 1),) if entry == late[-1] else ()
            self._change(*changes, *dropped)
        self.recount()  # which frees it
        return slot
