"""The cells that this process gives out: its stock of memory for small arrays.

Owns: which cell is the next, when another slab is made or one removed, and the proof that nobody sees a cell any more. To its maker a cell
is always one of these:

    free      on the list of its slab; the one freed last is given out first, for it is still in the processor's cache
    viewed    this process looks at it (`cells`)
    pending   this process has dropped it, and others may see it: they are asked when there is no free cell left

An array that nobody was offered and that crossed no fork is free as soon as this process drops it. Of any other the maker asks as
written in `cells`. A SIGKILL anywhere: the slab has no maker any more, and goes with the last who has it mapped.
Must not know: what an array looks like.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import operator
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from shmarray import cells, membership, sightings, slabmaps, slabs, warm
from shmarray._format import control, names
from shmarray._format import slab as form
from shmarray._os import fences, processes, segments, words
from shmarray.errors import ShmArrayError, StoreFullError

if TYPE_CHECKING:
    from shmarray.cells import Root
    from shmarray.membership import Membership
    from shmarray.seats import Seat
    from shmarray.slabwords import Slab

    Place = tuple[Slab, int]
    Fresh = tuple[Root, bool]
    """The root of a new array, and whether its bytes are zeros already."""

_set_item: Any = operator.setitem
_load, _STORE_AT, _OPEN = words.WORD_FORMAT.unpack_from, control.STATE_AT, control.OPEN
# Words behind the number, in a record.
_STATE, _PINNED, _GUARDED, _BORN = (at >> 3 for at in (form.STATE, form.PINNED, form.GUARDED, form.BORN))
_FIRST, _LARGEST = 128 << 10, 2 << 20  # bytes of cells in the first slab of a size, and at most
_FEWEST, _MOST = 4, 2048  # cells in one
_SPARE, _SPARE_OF_OTHERS = 64 << 20, 8 << 20
"""Bytes of slabs of one size without any array in them that the owner of a store keeps for the next ones; and that others keep."""


class Form(NamedTuple):
    """What an array looks like that can lie in a cell: its bytes, those of such a cell, and what the slab says of it."""

    nbytes: int
    size: int
    meta: bytes


class Stock:
    """The slabs of one cell size that this process has made in one store. Everything happens with the lock of `cells` held."""

    __slots__ = ("__weakref__", "_given", "_limit", "_ready", "_size", "_slabs", "_spare", "_store")

    def __init__(self, member: Membership, size: int) -> None:
        """Begin with none."""
        self._store = member.key.store
        self._size = size
        self._limit = _SPARE_OF_OTHERS if member.pool is None else min(_SPARE, member.pool.limit)
        self._slabs: list[Slab] = []
        self._ready: list[Slab] = []  # those with free cells, and perhaps some without
        self._given = 0  # cells given out since all pending ones were asked about
        self._spare = 0  # slabs all of whose cells are free
        warm.register(self)

    # -- giving out ----------------------------------------------------------------------------------------------------

    def give(self, member: Membership, seat: Seat, array: Form) -> Fresh | None:
        """Put a new array into a cell, and look at it; None in a child forked in the midst of this. Raises as `slabs.make` does."""
        slab, cell, at = self._next(member)
        record = slab.words
        before = record[at]
        if not _busy:
            return None
        number = before + form.A_GENERATION if before else form.number_of(slab.number, cell, 1)
        if slab.forms[cell] is array:  # nobody else has seen the last one, and what its record says holds for this one
            record[at + _BORN] = time_ns()
        else:
            slab.forms[cell] = None
            slab.describe(cell, form.described(array.nbytes, time_ns(), array.meta))
            slab.forms[cell] = array
        enter, root = cells.enter, None
        while root is None:
            root = enter(member, slab, cell, number, seat, array.nbytes, instead=slab.views.get(cell), offered=False)
        record[at] = number
        record[at + _STATE] = form.LIVE
        self._given += 1
        return root, not before

    def _next(self, member: Membership) -> tuple[Slab, int, int]:
        """Take a cell from the list of a slab in which one is free; the third is the first word of its record."""
        while True:
            while self._ready:
                slab = self._ready[-1]
                try:
                    cell = slab.free.pop()
                except IndexError:
                    self._ready.pop()
                    slab.is_ready = False
                    continue
                if len(slab.free) + slab.worn == slab.layout.count - 1:
                    self._spare -= 1
                # What a call that was cut short has lost may have been found twice.
                at = slab.numbers[cell]
                if cell not in slab.views and slab.words[at + _STATE] == form.FREE:
                    return slab, cell, at
            if self._given >= self._total() // 2 > 0 and len(_busy) == 1:
                self.ask(member)
                if self._ready:
                    continue
            self._grow(member)

    def _total(self) -> int:
        return sum(slab.layout.count for slab in self._slabs)

    def _grow(self, member: Membership) -> None:
        """Use one from before an absence, or make another slab: as large as all there are, within bounds."""
        count = min(max(_FIRST, self._total() * self._size), _LARGEST) // self._size
        new = functools.partial(slabs.make, member, self._size, min(max(count, _FEWEST), _MOST), self)
        slab = slabmaps.find_own(member, self._size, self) or new()
        self._slabs.append(slab)
        self._given += len(slab.pending)
        self._spare += slab.is_empty
        self._set_ready(slab)

    def _set_ready(self, slab: Slab) -> None:
        if not slab.is_ready:
            slab.is_ready = True
            self._ready.append(slab)

    # -- taking back ---------------------------------------------------------------------------------------------------

    def dropped(self, slab: Slab, cell: int, *, known: bool) -> None:
        """This process has dropped a cell; `known`: others may know it. At any moment; never raises."""
        record, at = slab.words, slab.numbers[cell]
        if record[at + _STATE] == form.FREE:
            return  # a stale handle led here: it is on the list, or will be found to be missing there
        if known or record[at + _PINNED] or record[at + _GUARDED]:
            slab.pending.add(cell)
        else:
            record[at + _STATE] = form.FREE
            self._free(slab, cell, record[at])

    def _free(self, slab: Slab, cell: int, number: int) -> None:
        """Put a cell that nobody sees on the list; `number` is that of the last array in it."""
        if number & form.WORN == form.WORN:
            slab.worn += 1
        else:
            slab.free.append(cell)
            if not slab.is_ready:
                self._set_ready(slab)
        if len(slab.free) + slab.worn == slab.layout.count:  # `is_empty`, without the call
            self._spare += 1
            if slab.worn or self._spare * slab.layout.nbytes > self._limit:
                self._remove(slab)

    def _remove(self, slab: Slab) -> int:
        """Give back a slab all of whose cells are free; returns its bytes."""
        self._spare -= 1
        slab.free.clear()  # whatever comes, none of them is given out again: an array in a file without a name cannot be sent
        slab.worn = slab.layout.count
        slabmaps.remove(self._store, slab)
        self.forget(slab)
        return slab.layout.nbytes

    def forget(self, slab: Slab) -> None:
        """Give nothing out of that slab any more."""
        for kept in (self._slabs, self._ready):
            if slab in kept:
                kept.remove(slab)
        slab.is_ready = False
        if not self._slabs and _stocks.get((self._store, self._size)) is self:
            del _stocks[self._store, self._size]

    def trim(self) -> int:
        """Give back all slabs in which there is no array; returns how many bytes."""
        with cells.Here.lock:
            member = membership.near(self._store)
            if member is not None and not _busy:
                try:
                    _busy.append(None)
                    cells.renew_seat(member)
                    with contextlib.suppress(ShmArrayError, OSError):  # what others may still see stays
                        self.ask(member)
                finally:
                    _busy.clear()
            given = sum(self._remove(slab) for slab in list(self._slabs) if slab.is_empty and slab.is_mine)
        cells.settle()
        return given

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask(self, member: Membership) -> None:
        """Free the pending cells that nobody sees. Raises what asking the kernel raises; then all are pending still."""
        self._given = 0
        self._find_lost()
        pending = [(slab, cell) for slab in self._slabs for cell in list(slab.pending) if cell not in slab.views]
        seen = sightings.seen(member, pending)
        suspects = [place for place in pending if place not in seen]
        if not suspects:
            return
        # Known before the first word is written, and one call into C: whatever comes, each is answered.
        places = [slab.index(cell, form.ASKED) for slab, cell in suspects]
        answers = map(_set_item, [slab.words for slab, _ in suspects], places, itertools.repeat(0))
        answer: Any = functools.partial(collections.deque, answers, 0)
        try:
            for slab, cell in suspects:
                slab.set_word(cell, form.ASKED, 1)
            fences.fence()
            # In this order: a handle becomes a byte and not the reverse, for who is asked makes no handle without having a byte.
            handed = sightings.in_flight(member, suspects)
            seen = sightings.seen(member, suspects)
            for slab, cell in suspects:
                lives = slab.word(cell, form.STATE) != form.DELETED  # to what is deleted no handle leads
                if (slab, cell) in seen or (lives and (slab, cell) in handed):
                    continue
                # Unless a finalizer of this thread has looked, or asked, in the midst of this: then the answer is an old one.
                if slab.word(cell, form.ASKED):
                    self._take_back(member, slab, cell)
        finally:
            answer()

    def _take_back(self, member: Membership, slab: Slab, cell: int) -> None:
        if slab.word(cell, form.GUARDED):
            segments.unlink(member.block_prefix + names.guard(slab.word(cell, form.NUMBER)))
            slab.set_word(cell, form.GUARDED, 0)
        slab.forms[cell] = None
        slab.set_word(cell, form.STATE, form.FREE)
        slab.pending.discard(cell)
        self._free(slab, cell, slab.word(cell, form.NUMBER))

    def _find_lost(self) -> None:
        """Find the cells that a call lost which an exception of a signal handler cut short."""
        self._spare = 0
        self._slabs[:] = [slab for slab in self._slabs if slab.is_mine]
        self._slabs.extend(slab for slab in slabmaps.made_for(self) if slab not in self._slabs)
        for slab in self._slabs:
            if len(slab.free) + slab.worn + len(slab.views) + len(slab.pending) < slab.layout.count:
                there = {*slab.free, *slab.views, *slab.pending}
                lost = [cell for cell in range(slab.layout.count) if cell not in there]
                slab.pending.update(cell for cell in lost if slab.word(cell, form.STATE) != form.FREE)
                lost = [cell for cell in lost if slab.word(cell, form.STATE) == form.FREE]
                slab.worn = sum(_is_worn(slab, cell) for cell in lost)
                slab.free.extend(cell for cell in lost if not _is_worn(slab, cell))
            if slab.free:
                self._set_ready(slab)
            self._spare += slab.is_empty


def _is_worn(slab: Slab, cell: int) -> bool:
    """Say whether a cell stays out of use: its numbers would begin to recur."""
    return slab.word(cell, form.NUMBER) & form.WORN == form.WORN


_stocks: dict[tuple[int, int], Stock] = {}
# An entry for each call under way: what begins in the midst of another one, out of a finalizer, finds it half done.
_busy: list[None] = []


def allocate(member: Membership, array: Form) -> Fresh | None:
    """Put a new anonymous array into a cell; None if it is to be a block of its own: there is no seat, or no room.

    The bytes are those of an array that was here before, unless they are said to be clear. Raises `StoreClosedError`.
    """
    if not fences.ORDERED:
        return None
    leases = member.leases
    if not (leases and _load(leases[0], _STORE_AT)[0] == _OPEN):
        raise member.closed_error()
    key = member.key.store, array.size
    try:
        with cells.Here.lock:
            depth = len(_busy)
            try:
                _busy.append(None)
                seat = member.seat
                if seat is None or seat.has_crossed():
                    seat = cells.current_seat(member)
                    if seat is None or seat.has_crossed():
                        return None  # what is written into it is not struck out: the cell would not be used again
                stock = _stocks.get(key)
                if stock is None:
                    stock = _stocks[key] = Stock(member, key[1])
                return stock.give(member, seat, array)
            except StoreFullError:
                return None  # a block of its own needs less; if there is no room for that either, it says so
            finally:
                del _busy[depth:]
    finally:
        if cells.ended or slabmaps.ended:
            cells.settle()


def leave(member: Membership) -> None:
    """After the store was closed here: keep nothing of its slabs but what is in use."""
    with cells.Here.lock:
        slabmaps.leave(member)
    cells.settle()


def trim(store: int) -> int:
    """Give back the slabs of a store in which there is no array; returns how many bytes. Unmap others' that are not in use."""
    with cells.Here.lock:
        slabmaps.drop_idle(store)
    cells.settle()
    return sum(stock.trim() for key, stock in list(_stocks.items()) if key[0] == store)


def _after_fork() -> None:
    """In a forked child: the stock is the parent's."""
    _stocks.clear()
    _busy.clear()


processes.after_fork_in_child(_after_fork)
