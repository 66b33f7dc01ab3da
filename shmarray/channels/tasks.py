"""Copies that were got and are still being dealt with, and waiting until all is done.

Owns: what `get` begins, `task_done` ends, and `join` waits for; giving up what dead processes had.
Must not know: how items are taken.

A word for each process counts its copies: the epoch of its slot above, the number in the low 32 bits. All with the get lock held.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shmarray import objects
from shmarray._format import channel as form
from shmarray._format import control, guard
from shmarray.errors import LostTaskError

if TYPE_CHECKING:
    from shmarray.channels.flow import Flow, Side

_clock = time.monotonic
_COUNT = (1 << 32) - 1


def begin(flow: Flow, begun: list[int]) -> None:
    """Count one copy as begun by this process, and in `begun`."""
    me = flow.slots.parties.me()
    index, epoch = form.UNDONE + form.slot_of(me), form.epoch_of(me) << 32
    word = flow.words[index]
    # An entry of another epoch is a dead process's that had this slot: its tasks are lost, and whoever joins is not told any more.
    flow.words[index] = word + 1 if word & ~_COUNT == epoch else epoch | 1
    begun.append(1)


def done(flow: Flow, side: Side, got: list[int], begun: list[int]) -> None:
    """With the item in `got` copied: count the copy as begun, and give the slot back. May be repeated."""
    if got:
        if not begun:
            begin(flow, begun)
        side.give_back(got[0])
        got.clear()


def undo(flow: Flow, begun: list[int]) -> None:
    """After an exception, without the lock: nobody has got the copies that were counted in `begun`. As `Waits.see_to`."""
    if begun:
        flow.see_to(begun, _clock(), _undo, flow, begun)
        flow.after_giving_back()


def _undo(flow: Flow, begun: list[int]) -> None:
    if begun:
        end(flow)
        begun.clear()


def end(flow: Flow) -> bool:
    """Count one copy as done, of this process or else of another; false if there is none."""
    me = flow.slots.parties.me()
    index = form.UNDONE + form.slot_of(me)
    if not flow.words[index] & _COUNT:
        index = next((index for index, _ in _undone(flow)), -1)
        if index < 0:
            return False
    flow.words[index] -= 1
    return True


def _undone(flow: Flow) -> list[tuple[int, int]]:
    table = flow.words[form.UNDONE : form.UNDONE + control.SLOTS]
    return [(form.UNDONE + slot, word) for slot, word in enumerate(table) if word & _COUNT]


def join(flow: Flow, deadline: float | None) -> bool:
    """Wait until nothing is on its way or being dealt with; false at the deadline. Raises `LostTaskError`, `StoreClosedError`."""
    words, latch = flow.words, flow.slots.get_latch
    ticket = [0]
    try:
        while True:
            flow.pay(deadline)
            seen = words[form.DONE]
            if flow.within(latch, deadline, _try_join, flow, ticket):
                return True
            in_time = objects.wait_change(words, form.DONE, seen, deadline, flow.member)
            flow.look_for_deaths()
            _give_up_lost(flow, deadline)
            if not in_time:
                return flow.within(latch, deadline, _all_done, flow)
    finally:
        flow.count_out(form.JOINERS, ticket)


def _try_join(flow: Flow, ticket: list[int]) -> bool:
    """With the get lock held: see whether all is done; be counted among those who wait for it."""
    flow.line_up(form.JOINERS, None, ticket)
    return _all_done(flow)


def _all_done(flow: Flow) -> bool:
    return flow.slots.is_drained() and not _undone(flow)


def _give_up_lost(flow: Flow, deadline: float | None) -> None:
    undone = _undone(flow)
    if not undone:
        return
    alive = flow.member.slots_alive([index - form.UNDONE for index, _ in undone])
    dead = [
        (index, word)
        for index, word in undone
        if (slot := index - form.UNDONE) not in alive or guard.epoch_word(alive[slot]) != word >> 32
    ]
    lost = flow.within(flow.slots.get_latch, deadline, _strike_out, flow, dead) if dead else 0
    if lost:
        flow.wake_joiners()
        raise LostTaskError(
            f"{lost} of the items got from {flow.label} are lost: who had got them has ended without saying task_done()",
            remedy="Put them again, and join again; they count as dealt with.",
            name=flow.name,
            count=lost,
        )


def _strike_out(flow: Flow, dead: list[tuple[int, int]]) -> int:
    lost = 0
    for index, word in dead:
        if flow.words[index] == word:
            flow.words[index] = 0
            lost += word & _COUNT
    return lost
