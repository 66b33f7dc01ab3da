"""Seats: places of processes in the tables of slabs.

Owns: which seat this process has in a store, who is alive behind the others, and what a fork does to it.
Must not know: what is in a slab.

A seat is a mark on the control file that a mapping keeps (see `flocks`): the kernel frees it when the process ends. A mapping that crosses
a fork is on one lock with the child: then both have the seat, and what was written in it stands until both have let go of it. So
after a fork nobody strikes out anything in that seat any more: the parent takes another one, and writes down there what it still looks
at; so does the child, when it looks at something new.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from shmarray import membership, shields
from shmarray._format import control as layout
from shmarray._format import slab as form
from shmarray._os import processes
from shmarray.errors import ShmArrayError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmarray._os import segments
    from shmarray.membership import Membership

_PLACES = membership.Places(layout.SEAT_MARK, layout.SEAT_EPOCHS_AT, layout.SEATS)
# What a seat that has crossed no fork shares with the list; and an entry for each fork under way, for other threads go on meanwhile. A fork
# changes both by calls into C, which no exception of a signal handler can come before.
_era: list[object] = []
_forking: list[None] = []


class Seat:
    """One seat of this process: its index, and what it writes there. It has it as long as this object lives."""

    __slots__ = ("_era", "_shield", "byte", "index")

    def __init__(self, index: int, epoch: int, memory: segments.Segment, era: object) -> None:
        """Sit down; `memory` keeps the mark."""
        self.index = index
        self.byte = form.seat_byte(epoch)
        self._shield = shields.over(memory)
        self._era = era

    def has_crossed(self) -> bool:
        """Whether a child may have it too: then nothing in it is struck out any more."""
        return bool(_forking) or self._era not in _era


def is_forking() -> bool:
    """Whether a fork is under way: what is written into any seat before it is over, the child may have too."""
    return bool(_forking)


def take(member: Membership) -> Seat | None:
    """Take a seat; None if all are taken. Raises `StoreClosedError`, `StoreFullError`."""
    # Before the mapping is made: should a fork come in between, the seat has crossed it.
    era = next(iter(_era), None)
    if era is None:
        era = object()
        _era.append(era)
    place = member.take_place(_PLACES)
    if place is None:
        return None
    seat = Seat(*place, era)
    # Who leaves the store and comes back has its seat still: but what is taken so leaves enough for those who come for the first time.
    if member.absence is not None:
        is_left_enough = len(alive(member, range(layout.SEATS))) <= layout.SEATS // 2
        member.absence.seat = seat if is_left_enough else None  # the one before has crossed a fork
    return seat


def alive(member: Membership, indices: Iterable[int]) -> dict[int, int]:
    """Tell which of these seats are taken, and the byte that is written there now. Raises `StoreClosedError`."""
    there = member.places_alive(_PLACES, list(indices))
    return {index: form.seat_byte(epoch) for index, epoch in there.items()}


def try_take(member: Membership) -> Seat | None:
    """Take a seat; None if that cannot be, for whatever reason the store gives."""
    try:
        return take(member)
    except (ShmArrayError, OSError):
        return None


processes.around_fork(functools.partial(_forking.append, None), _era.clear)
processes.around_fork(
    _era.clear, _forking.pop
)  # what is registered last is called first before a fork, and last after it
processes.after_fork_in_child(_era.clear)
processes.after_fork_in_child(_forking.clear)
