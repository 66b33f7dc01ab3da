"""The slots of a channel: who has which, and what comes next.

Owns: every step of a slot's life, and putting right what a death has left half done. Each step is one store; what follows it (counts, the
ring's ends) is found again from the states.
Must not know: what is in a slot; who waits and how (`lines`).

    step       lock       stores                                          a death in between
    claim      put        state LOANED                                    `bury` frees what the dead have
    publish    put        number, ring, state READY, tail                 READY from the tail on is freed
    take       get        state TAKEN, head                               the head goes past what is not READY
    evict      put, get   state FREE, head, count: by the journal         `mend_gets` makes them
    give back  get        state FREE                                      -
    lose       put, get   state FREE or RETURNED, count: likewise         `mend_gets` makes them

A queue's slot has one reader, written in its state. For a broadcast see `subscribers`. Where stores of one processor may be seen by
another in a different order (all but x86), the two locks are one.
"""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray._format import channel as form
from shmarray._os import fences
from shmarray.channels.latches import Latch
from shmarray.channels.parties import Parties

if TYPE_CHECKING:
    from shmarray.channels.subscribers import Subscribers
    from shmarray.membership import Membership

_PATIENCE = 2.0  # seconds for which those who put wait for the lock of those who take
_FEW = 16  # slots that are looked through one by one
_now = time.time_ns


class Slots:
    """The slots of one channel, as this process sees them."""

    __slots__ = (
        *("_broadcasts", "_count", "_evicts", "_redelivers", "_ring", "_states", "_words"),
        *("geometry", "get_latch", "parties", "put_latch", "records", "subscribers"),
    )
    subscribers: Subscribers
    """Who sees the items of a broadcast."""

    def __init__(self, words: Any, member: Membership) -> None:
        """Use these words, a ctypes array."""
        self._words = words
        self.parties = Parties(words, member)
        self._count = count = words[form.SLOTS]
        self.geometry = geometry = form.Geometry(count, words[form.RECORD_WORDS])
        self.records = [geometry.record(slot) for slot in range(count)]
        self._ring = geometry.ring
        self._states = np.frombuffer(words, np.int64)[form.RECORDS : geometry.ring : geometry.record_words]
        self._broadcasts = words[form.MODE] == form.BROADCAST
        self._evicts = words[form.FULL] == form.DROP_OLDEST
        self._redelivers = bool(words[form.FLAGS] & form.REDELIVER)
        robust = member.control.guard == "robust"
        address = ctypes.addressof(words)
        self.put_latch = Latch(address + 8 * form.PUT_LOCK, self.mend_puts, robust=robust)
        self.get_latch = Latch(address + 8 * form.GET_LOCK, self.mend_gets, robust=robust)
        if not fences.ORDERED:
            self.get_latch = self.put_latch = Latch(self.put_latch.address, self._mend_all, robust=robust)

    # -- putting: with the put lock held -------------------------------------------------------------------------------

    def claim(self, slot: int, me: int) -> None:
        """Let a slot that was found be this process's to fill."""
        self._words[self.records[slot]] = form.LOANED | me

    def find(self) -> int:
        """Find a free slot, that which was freed last if there are several; make room if that is the policy. -1 if there is none.

        As long as the lock is held it may be filled and published at once, without claiming it.
        """
        words = self._words
        slot: int = words[form.HINT]
        if words[self.records[slot]]:
            slot = words[form.TAIL] % self._count  # that of the item so many before, which is likely to be done with
            if words[self.records[slot]]:
                slot = self._search()
                if slot < 0 and self._evicts:
                    slot = self._evict()
        return slot

    def _search(self) -> int:
        if self._count <= _FEW:
            words = self._words
            for slot, record in enumerate(self.records):
                if not words[record]:
                    return slot
            return -1
        free = np.flatnonzero(self._states == form.FREE)
        return int(free[0]) if len(free) else -1

    def publish(self, slot: int) -> None:
        """Let what is in a slot be the next item."""
        words, record = self._words, self.records[slot]
        number = words[form.TAIL]
        words[record + form.NUMBER] = number
        words[record + form.STAMP] = _now()
        words[self._ring + number % self._count] = slot
        if self._broadcasts:
            audience = words[form.SUBSCRIBED]
            words[record + form.PENDING] = audience
            words[record] = form.READY | number if audience else form.FREE
        else:
            words[record] = form.READY | number
        words[form.TAIL] = number + 1

    def discard(self, slot: int, me: int) -> None:
        """Give back a slot that was claimed and shall not be published. Needs no lock."""
        if self._words[self.records[slot]] == form.LOANED | me:
            self._words[self.records[slot]] = form.FREE
            self._words[form.HINT] = slot

    def _evict(self) -> int:
        """Drop the oldest item that nobody has in hand; gives its slot, free. -1 if there is none, or the lock is not to be had."""
        latch = self.get_latch
        if latch is self.put_latch:
            return self._evict_locked()
        try:
            code = latch.take(latch.address)
            if code and not latch.enter(code, time.monotonic() + _PATIENCE):
                return -1
            slot = self._evict_locked()
            latch.let(latch.address)
        except BaseException as error:
            latch.abandon(error)
            raise
        return slot

    def _evict_locked(self) -> int:
        if self._broadcasts:
            return self.subscribers.evict()
        words = self._words
        dropped = (form.DROPPED, words[form.DROPPED] + 1)
        slot = self._oldest_returned() if words[form.RETURNED_COUNT] else -1
        if slot >= 0:
            left = (form.RETURNED_COUNT, words[form.RETURNED_COUNT] - 1)
            self.change((self.records[slot], form.FREE), left, dropped)
            return slot
        head = words[form.HEAD]
        if head == words[form.TAIL]:
            return -1
        slot = int(words[self._ring + head % self._count])
        self.change((self.records[slot], form.FREE), (form.HEAD, head + 1), dropped)
        return slot

    def change(self, *changes: tuple[int, int]) -> None:
        """With the get lock held: set several words, all or none, whoever dies."""
        words, at = self._words, form.JOURNAL
        for number, (index, value) in enumerate(changes):
            words[at + 1 + 3 * number : at + 4 + 3 * number] = (index, words[index], value)
        words[at] = len(changes)
        self._make_changes()

    def _make_changes(self) -> None:
        """Set the words that the journal says. May be repeated, also by another process, which finds some that are set.

        A slot that was set free is there for those who put, who do not wait for the get lock of a dead one: so a word that has gone on
        from what it became is left alone. No word takes the value again that it had before.
        """
        words, at = self._words, form.JOURNAL
        for number in range(words[at]):
            index, before, value = words[at + 1 + 3 * number : at + 4 + 3 * number]
            if words[index] == before:
                words[index] = value
        words[at] = 0

    # -- taking: with the get lock held --------------------------------------------------------------------------------

    def take(self, me: int, got: list[int]) -> bool:
        """Take the next item of a queue, its slot into `got`; false if there is none."""
        words = self._words
        if words[form.RETURNED_COUNT]:
            slot = self._oldest_returned()
            if slot >= 0:
                got.append(slot)
                words[self.records[slot]] = form.TAKEN | me
                words[form.RETURNED_COUNT] -= 1
                words[form.AGAIN] += 1
                return True
        head = words[form.HEAD]
        if head == words[form.TAIL]:
            return False
        slot = words[self._ring + head % self._count]
        got.append(slot)
        words[self.records[slot]] = form.TAKEN | me
        words[form.HEAD] = head + 1
        return True

    def _oldest_returned(self) -> int:
        words = self._words
        returned = [
            (words[record + form.NUMBER], slot)
            for slot, record in enumerate(self.records)
            if words[record] & form.KIND == form.RETURNED
        ]
        return min(returned)[1] if returned else -1

    def give_back(self, slot: int, me: int) -> None:
        """Let a slot that was taken be free. May be repeated."""
        if self._words[self.records[slot]] == form.TAKEN | me:
            self._words[form.HINT] = slot
            self._words[self.records[slot]] = form.FREE

    def let_go(self, got: list[int], me: int) -> bool:
        """Let the slot in `got`, which was claimed or taken and is in nobody's hand any more, be free. Gives True. Needs no lock."""
        if got and self._words[self.records[got[0]]] in (form.LOANED | me, form.TAKEN | me):
            self._words[form.HINT] = got[0]
            self._words[self.records[got[0]]] = form.FREE
        got.clear()
        return True

    def untake(self, slot: int, me: int) -> None:
        """Give an item that was taken and not seen to the next who asks. May be repeated."""
        record = self.records[slot]
        if self._words[record] == form.TAKEN | me:
            self._return(record)

    def _return(self, record: int) -> None:
        words = self._words
        again = (form.RETURNED_COUNT, words[form.RETURNED_COUNT] + 1)
        self.change((record, form.RETURNED | words[record + form.NUMBER]), again)

    def is_full(self) -> bool:
        """Whether no slot is free. A look."""
        return bool(np.all(self._states != form.FREE))

    def states(self) -> list[int]:
        """The state of every slot. A look."""
        return [self._words[record] for record in self.records]

    def has_all_back(self) -> bool:
        """Whether there is nothing to take, and nothing in another process's hand that could come back. A look."""
        if self.depth():
            return False
        mine = form.TAKEN | self.parties.me()
        return not self._redelivers or all(state & form.KIND != form.TAKEN or state == mine for state in self.states())

    def is_drained(self) -> bool:
        """With the get lock held: whether all that was published has been taken and given back."""
        if self._broadcasts:
            return self.subscribers.are_done()
        kinds = {state & form.KIND for state in self.states()}
        return not self.depth() and not kinds & {form.TAKEN, form.RETURNED}

    def number(self, slot: int) -> int:
        """Number of the item in a slot."""
        number: int = self._words[self.records[slot] + form.NUMBER]
        return number

    def word(self, index: int) -> int:
        """Read a word."""
        word: int = self._words[index]
        return word

    def depth(self) -> int:
        """How many items can be taken; exact with both locks held."""
        count: int = self._words[form.TAIL] - self._words[form.HEAD] + self._words[form.RETURNED_COUNT]
        return max(0, count)

    def note_latency(self, slot: int) -> None:
        """Count how long an item waited, from its publishing until now."""
        took = _now() - self._words[self.records[slot] + form.STAMP]
        self._words[form.LATENCY + form.bucket(max(0, took))] += 1

    # -- after a death -------------------------------------------------------------------------------------------------

    def mend_puts(self) -> None:
        """With the put lock held: undo a publishing that was cut short, and count the subscribers."""
        words = self._words
        tail = words[form.TAIL]
        for record in self.records:
            if words[record] & form.KIND == form.READY and words[record] & form.REST >= tail:
                words[record] = form.FREE
        if self._broadcasts:
            words[form.SUBSCRIBED] = self.subscribers.count()

    def mend_gets(self) -> None:
        """With the get lock held: make the head and the counts agree with the states."""
        words = self._words
        self._make_changes()
        if self._broadcasts:
            self.subscribers.recount()
            return
        tail = words[form.TAIL]
        while words[form.HEAD] < tail:
            head = words[form.HEAD]
            if words[self.records[words[self._ring + head % self._count]]] == form.READY | head:
                break
            words[form.HEAD] = head + 1  # it was taken, and then this was left to do
        for record in self.records:
            state = words[record]
            if state & form.KIND == form.READY and state & form.REST < words[form.HEAD]:
                self._lose(record)  # it was copied (see `quick`), and then this was left to do
        states = [words[record] & form.KIND for record in self.records]
        words[form.RETURNED_COUNT] = states.count(form.RETURNED)

    def _mend_all(self) -> None:
        self.mend_puts()
        self.mend_gets()

    def _lose(self, record: int) -> None:
        """See to an item whose consumer died: it is given to another, or lost and counted."""
        if self._redelivers:
            self._return(record)
        else:
            self.change((record, form.FREE), (form.LOST, self._words[form.LOST] + 1))

    def _named(self) -> set[int]:
        """Name every process that has a part in the channel."""
        words = self._words
        there = {*self.parties.producers(), *self.parties.consumers(), *self.subscribers.owners()}
        states = (words[record] for record in self.records)
        there |= {state & form.REST for state in states if state & form.KIND in (form.LOANED, form.TAKEN)}
        return there

    def dead(self) -> set[int]:
        """Name the processes with a part in the channel that the kernel says are gone. Raises `StoreClosedError`."""
        return self.parties.dead(self._named())

    def bury(self, dead: set[int]) -> bool:
        """With both locks held: take from the dead what they have; says whether that was anything."""
        words, changed = self._words, False
        for first in (form.PRODUCERS, form.CONSUMERS):
            for party in dead:
                changed |= party > form.GONE and self.parties.leave(first, party)
        for record in self.records:
            state = words[record]
            if state & form.REST in dead and state & form.KIND in (form.LOANED, form.TAKEN):
                changed = True
                if state & form.KIND == form.LOANED:
                    words[record] = form.FREE
                else:
                    self._lose(record)
        return self.subscribers.bury(dead) or changed
