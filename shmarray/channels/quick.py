"""The short way through a channel, for small items that are copied.

Owns: putting and getting in one piece, without a call of Python's on the way, when nothing stands in it: the item has the very form of the
channel, the lock is free, there is a slot or an item, nothing is owed. Whatever else is said no to, and goes the long way (`flow`).
Must not know: waiting; how a broadcast is read.

The steps are those of `slots`, each a store. An item is copied into a slot that is free, and stays so until it is published: whoever dies
before has done nothing. An item is copied out while it is ready; then the head goes past it, and then its slot is free: whoever dies
between the two leaves an item that is ready and before the head, which `Slots.mend_gets` counts as lost, or gives again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from shmarray._format import channel as form
from shmarray.channels import tasks
from shmarray.guards import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from shmarray.channels.flow import Flow

_now = time.time_ns
_clock = time.monotonic
_READY, _FREE, _LOANED, _TAKEN = form.READY, form.FREE, form.LOANED, form.TAKEN
_TAIL, _HEAD, _HINT, _ENDED = form.TAIL, form.HEAD, form.HINT, form.ENDED
_NUMBER, _STAMP, _META = form.NUMBER, form.STAMP, form.META
_GETTERS, _PUTTERS, _JOINERS, _RETURNED = form.GETTERS, form.PUTTERS, form.JOINERS, form.RETURNED_COUNT
_ASLEEP, _SUBSCRIBED, _PENDING = form.ASLEEP, form.SUBSCRIBED, form.PENDING
_COUNT = (1 << 32) - 1
_CACHED = 256 << 10
"""Bytes of all slots up to which it does not matter which is used next: they are in the processor's cache, all of them."""


def putter(flow: Flow, views: Sequence[np.ndarray[Any, Any]]) -> Callable[[Any], bool]:
    """Make what copies an array that has the form of the items in, if that can be done at once; it says whether it was."""
    words, slots, latch = flow.words, flow.slots, flow.slots.put_latch
    take, let, address = latch.take, latch.let, latch.address
    records, ring, count = slots.records, slots.geometry.ring, slots.geometry.slots
    wake, broadcasts = flow.waker_of_takers(), words[form.MODE] == form.BROADCAST
    # In turn, where that costs nothing: so nobody has to be told which slot was freed last.
    in_turn = count * words[form.STRIDE] <= _CACHED

    woken = 0

    def put_now(array: Any) -> bool:
        nonlocal woken
        try:
            code = take(address)
            if code and not latch.enter(code, _clock() + SLICE):
                return False
            number = words[_TAIL]
            slot = number % count if in_turn else words[_HINT]
            record = records[slot]
            if words[record] and not words[_ENDED]:  # else nothing is dropped to make room
                slot = slots.find()
                record = records[slot]
            done = slot >= 0 and not words[_ENDED]
            if done:
                views[slot][...] = array
                words[record + _NUMBER] = number
                words[record + _STAMP] = _now()
                words[record + _META] = 0
                words[ring + number % count] = slot
                if broadcasts:
                    audience = words[_SUBSCRIBED]
                    words[record + _PENDING] = audience
                    words[record] = _READY | number if audience else _FREE
                else:
                    words[record] = _READY | number
                words[_TAIL] = number + 1
            let(address)
        except BaseException as error:
            latch.abandon(error)
            raise
        if words[_GETTERS]:  # as `Waits.wake_takers`
            asleep = words[_ASLEEP]
            if broadcasts or (asleep != woken and asleep <= number + 1):
                woken = asleep
                wake()
        return done

    return put_now


def getter(flow: Flow, views: Sequence[np.ndarray[Any, Any]]) -> Callable[[list[int] | None], Any]:
    """Make what copies the next item out of a queue, if there is one that can be had at once; else it gives None.

    It is given the ticket of one who waits, to be counted out with the item.
    """
    words, slots, latch = flow.words, flow.slots, flow.slots.get_latch
    take, let, address = latch.take, latch.let, latch.address
    records, ring, count = slots.records, slots.geometry.ring, slots.geometry.slots
    me = slots.parties.me()
    undone, epoch = form.UNDONE + form.slot_of(me), form.epoch_of(me) << 32
    in_turn = count * words[form.STRIDE] <= _CACHED
    each, owed = form.EACH, flow.owed

    def get_now(ticket: list[int] | None = None) -> Any:
        if owed:
            return None
        item = None
        gone = 0
        try:
            code = take(address)
            if code and not latch.enter(code, _clock() + SLICE):
                return None
            head = words[_HEAD]
            if head != words[_TAIL] and not words[_RETURNED]:
                slot = words[ring + head % count]
                record = records[slot]
                item = views[slot].copy()
                if not head % each:
                    slots.note_latency(slot)
                words[_HEAD] = head + 1
                begun = words[undone]
                words[undone] = begun + 1 if begun & ~_COUNT == epoch else epoch | 1
                gone = 1
                if not in_turn:
                    words[_HINT] = slot
                words[record] = _FREE
                if ticket is not None:
                    flow.served(ticket)
            let(address)
            if words[_PUTTERS] or words[_JOINERS]:
                flow.after_giving_back()
            if words[_GETTERS]:
                flow.pass_on()
        except BaseException as error:
            latch.abandon(error)
            tasks.undo(flow, [1] * gone)
            raise
        return item

    return get_now
