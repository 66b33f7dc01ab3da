"""The words of a channel, and how an item is described.

Owns: where each 64-bit word of a channel lies, what the state of a slot says, and how latencies are counted.
Must not know: locks, processes, NumPy.

    0     what never changes: mode, policy, slots, bytes of a slot, flags, words of a record, bytes of metadata, nanoseconds to spin
    8     lock of those who put (64 bytes)      16   lock of those who take
    24    tail: items published                 32   head: items taken, in a queue
    40    putters who wait; turn of freed slots; the slot that was freed last; joiners who wait; turn of what was done
    48    takers who wait; the tail that is the first to wake one of them
    56    counters changed by who puts          64   counters changed by who takes
    72    journal                               88   latencies, a histogram
    216   pids, by slot of the store's table of processes
    320   producers, by the same                424  consumers
    528   copies not yet said to be done with   632  subscribers, eight words each
    1144  records of the slots, then the ring

Words that different processes write lie on different cache lines. The ring says which slot has item `n`: at `n` modulo slots. The
state of a slot is one word, so each step of its life is one store:

    free      0
    loaned    a producer fills it: LOANED | process
    ready     it can be taken: READY | number of the item
    taken     a consumer has it: TAKEN | process
    returned  its consumer died, and it is to be given to another: RETURNED | number
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from shmarray._format import control

MODE, FULL, SLOTS, STRIDE, FLAGS, RECORD_WORDS, META_ROOM, SPIN = range(8)
PUT_LOCK, GET_LOCK = 8, 16
TAIL, HEAD = 24, 32
PUTTERS, FREED, HINT, JOINERS, DONE = range(40, 45)
GETTERS, ASLEEP = 48, 49
REFUSED, ENDED, PRODUCED = 56, 57, 58
DROPPED, LOST, RETURNED_COUNT, AGAIN, CONSUMED, SUBSCRIBED, RECEIVED, WAIT_ERA = range(64, 72)
JOURNAL, LATENCY = 72, 88
"""The journal: how many changes are to be made, then for each the index of a word, its old value and its new one."""
PIDS, PRODUCERS, CONSUMERS = 216, 216 + control.SLOTS, 216 + 2 * control.SLOTS
UNDONE, SUBSCRIBERS = 216 + 3 * control.SLOTS, 216 + 4 * control.SLOTS
MOST_SUBSCRIBERS = 64
OWNER, CURSOR, HELD, MISSED, SEEN, TOKEN, CLOSING = range(7)
"""Words of a subscriber: process, next item, slot it holds plus one (below zero: it is done with it, which is still to be counted), items
it missed, items it had, which subscription it is, and whether it was closed with an item in hand."""
SUBSCRIBER_WORDS = 8
RECORDS = SUBSCRIBERS + MOST_SUBSCRIBERS * SUBSCRIBER_WORDS
STATE, NUMBER, STAMP, META, PENDING, LENGTHS = range(6)
"""Words of a record: state, number of the item, when it was published (nanoseconds since the epoch), bytes of its metadata,
subscribers that have not had it yet; then lengths that vary, and the metadata."""

QUEUE, BROADCAST = 0, 1
BLOCK, DROP_NEW, DROP_OLDEST = 0, 1, 2
MODES = {"queue": QUEUE, "broadcast": BROADCAST}
POLICIES = {"block": BLOCK, "drop-new": DROP_NEW, "drop-oldest": DROP_OLDEST}
REDELIVER, STAY = 1, 2

FREE = 0
LOANED, READY, TAKEN, RETURNED = (kind << 60 for kind in range(1, 5))
KIND = 7 << 60
REST = LOANED - 1

_EPOCH_SHIFT = 8
_LEAST = 8  # latencies below 2 ** 8 ns fall into the first bucket
_PARTS = 4  # buckets for each doubling
EACH = 16
"""The latency of one item in so many is measured."""
BUCKETS = PIDS - LATENCY  # up to 2 ** 40 ns


class Geometry(NamedTuple):
    """How many slots there are and how their words lie."""

    slots: int
    record_words: int

    @property
    def ring(self) -> int:
        """Index of the ring's first word."""
        return RECORDS + self.slots * self.record_words

    @property
    def words(self) -> int:
        """How many words there are."""
        return self.ring + self.slots

    def record(self, slot: int) -> int:
        """Index of a slot's record."""
        return RECORDS + slot * self.record_words


def record_words(lengths: int, meta_room: int) -> int:
    """Words of a record with so many lengths that vary and so many bytes of metadata: whole cache lines."""
    return -(-(LENGTHS + lengths + -(-meta_room // 8)) // 8) * 8


GONE, LEFT = 255, 254
"""In place of a process, as no process is named: a subscription that was dropped, and that nobody has cleared away yet; and one that was
dropped when children forked since might use it, which is there as long as anyone shares the mark that its token names."""


def party(slot: int, epoch: int) -> int:
    """Name a process in one number: its slot in the store's table, and that slot's epoch as 16 bits."""
    return epoch << _EPOCH_SHIFT | slot


def slot_of(party: int) -> int:
    """Slot of a process in the store's table."""
    return party & ((1 << _EPOCH_SHIFT) - 1)


def epoch_of(party: int) -> int:
    """Epoch of that slot."""
    return party >> _EPOCH_SHIFT


def bucket(nanoseconds: int) -> int:
    """In which bucket of the histogram a latency counts."""
    if nanoseconds < 1 << _LEAST:
        return 0
    bits = nanoseconds.bit_length()
    return min(BUCKETS - 1, _PARTS * (bits - _LEAST - 1) + (nanoseconds >> (bits - 3) & 3))


@functools.cache
def bucket_top(index: int) -> float:
    """Upper end of a bucket, in seconds."""
    doublings, part = divmod(index, _PARTS)
    return float((1 << (_LEAST + doublings)) * (1 + (part + 1) / _PARTS) / 1e9)
