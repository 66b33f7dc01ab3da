"""The short way to have a slot in hand: for producers, and for the consumers of a queue.

Owns: claiming, publishing, taking and giving back in one piece, each without a call of Python's on the way, when nothing stands in it: the
lock is free, there is a slot or an item, nothing is owed. Whatever else is said no to, and goes the long way (`flow`).
Also the short way to wait for an item.
Must not know: waiting for a slot; how a broadcast is read; what is in a slot.

The steps are those of `slots`, each a store. What a thread has got is in a list, as in `flow`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from shmarray._format import channel as form
from shmarray.guards import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray.channels.flow import Flow

    Step = Callable[[list[int]], bool]

_now = time.time_ns
_clock = time.monotonic
_READY, _FREE = form.READY, form.FREE
_TAIL, _HEAD, _HINT, _ENDED = form.TAIL, form.HEAD, form.HINT, form.ENDED
_NUMBER, _STAMP = form.NUMBER, form.STAMP
_GETTERS, _PUTTERS, _JOINERS, _RETURNED = form.GETTERS, form.PUTTERS, form.JOINERS, form.RETURNED_COUNT
_ASLEEP, _SUBSCRIBED, _PENDING = form.ASLEEP, form.SUBSCRIBED, form.PENDING
_LOW = (1 << 32) - 1


class Giving(NamedTuple):
    """What a producer does with a slot; each says whether it could be done at once."""

    claim: Step
    publish: Step


class Taking(NamedTuple):
    """What a consumer does with an item; each says whether it could be done at once. `take` is also given the ticket of one who waits."""

    take: Callable[..., bool]
    give_back: Step


def giving(flow: Flow) -> Giving:
    """Make the steps of a producer, for this process."""
    return Giving(_claimer(flow), _publisher(flow))


def _claimer(flow: Flow) -> Step:
    words, slots, latch = flow.words, flow.slots, flow.slots.put_latch
    take, let, address = latch.take, latch.let, latch.address
    records, me = slots.records, slots.parties.me()
    loaned = form.LOANED | me

    def claim(got: list[int]) -> bool:
        try:
            code = take(address)
            if code and not latch.enter(code, _clock() + SLICE):
                return False
            if not words[_ENDED]:
                slot = words[_HINT]
                if words[records[slot]]:
                    slot = slots.find()
                if slot >= 0:
                    got.append(slot)
                    words[records[slot]] = loaned
            let(address)
        except BaseException as error:
            if got:  # with the lock still held, for else the slot may be another's
                slots.discard(got[0], me)
                got.clear()
            latch.abandon(error)
            raise
        return bool(got)

    return claim


def _publisher(flow: Flow) -> Step:
    words, slots, latch = flow.words, flow.slots, flow.slots.put_latch
    take, let, address = latch.take, latch.let, latch.address
    records, ring, count = slots.records, slots.geometry.ring, slots.geometry.slots
    me = slots.parties.me()
    wake, broadcasts = flow.waker_of_takers(), words[form.MODE] == form.BROADCAST

    woken = 0

    def publish(got: list[int]) -> bool:
        nonlocal woken
        try:
            code = take(address)
            if code and not latch.enter(code, _clock() + SLICE):
                return False
            slot = got[0]
            record, number = records[slot], words[_TAIL]
            words[record + _NUMBER] = number
            words[record + _STAMP] = _now()
            words[ring + number % count] = slot
            if broadcasts:
                audience = words[_SUBSCRIBED]
                words[record + _PENDING] = audience
                words[record] = _READY | number if audience else _FREE
            else:
                words[record] = _READY | number
            words[_TAIL] = number + 1
            got.clear()
            let(address)
        except BaseException as error:
            if got:
                slots.discard(got[0], me)
                got.clear()
            latch.abandon(error)
            raise
        if words[_GETTERS]:  # as `Waits.wake_takers`
            asleep = words[_ASLEEP]
            if broadcasts or (asleep != woken and asleep <= number + 1):
                woken = asleep
                wake()
        return True

    return publish


def taking(flow: Flow) -> Taking:
    """Make the steps of a consumer of a queue, for this process."""
    words, slots, latch = flow.words, flow.slots, flow.slots.get_latch
    lock, let, address = latch.take, latch.let, latch.address
    records, ring, count = slots.records, slots.geometry.ring, slots.geometry.slots
    me = slots.parties.me()
    taken, each, owed = form.TAKEN | me, form.EACH, flow.owed

    def take(got: list[int], ticket: list[int] | None = None) -> bool:
        if owed:
            return False
        try:
            code = lock(address)
            if code and not latch.enter(code, _clock() + SLICE):
                return False
            head = words[_HEAD]
            if head != words[_TAIL] and not words[_RETURNED]:
                slot = words[ring + head % count]
                got.append(slot)
                words[records[slot]] = taken
                if not head % each:
                    slots.note_latency(slot)
                words[_HEAD] = head + 1
                if ticket is not None:
                    flow.served(ticket)
            let(address)
        except BaseException as error:
            if got and latch.is_mine():
                slots.untake(got[0], me)
                got.clear()
            latch.abandon(error)
            raise
        if words[_GETTERS]:
            flow.pass_on()
        return bool(got)

    def give_back(got: list[int]) -> bool:
        try:
            code = lock(address)
            if code and not latch.enter(code, _clock() + SLICE):
                return False
            slot = got[0]
            words[_HINT] = slot
            words[records[slot]] = _FREE
            got.clear()
            let(address)
        except BaseException as error:
            latch.abandon(error)
            raise
        if words[_PUTTERS] or words[_JOINERS]:
            flow.after_giving_back()
        return True

    return Taking(take, give_back)


def waiter(flow: Flow) -> Callable[[Callable[[list[int]], Any], float | None], Any]:
    """Make what waits for an item as long as nothing but the lack of one is in the way; it gives None if it is not to be had that way.

    It is given what tries to have one, and is called with the ticket of one who waits. What is done between being woken and having the item
    is what a message takes to arrive: so it is little.
    """
    words, sleep = flow.words, flow.sleeper_for_item()

    def wait(attempt: Callable[[list[int]], Any], deadline: float | None) -> Any:
        ticket = [0]
        try:
            flow.count_in(_GETTERS, ticket, deadline)
            while True:
                seen = words[_TAIL]
                item = attempt(ticket)
                if item is not None:
                    return item
                if not flow.may_sleep(deadline):
                    break
                words[_ASLEEP] = seen + 1
                sleep(seen & _LOW)
                if words[_TAIL] == seen:
                    break  # for a slice nothing has come, or a signal has: the long way looks for reasons
            flow.count_out(_GETTERS, ticket)
        except BaseException:
            flow.count_out(_GETTERS, ticket)
            raise
        return None

    return wait
