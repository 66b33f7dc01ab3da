"""Small arrays in cells of slabs, as one process looks at them.

Owns: which cells this process looks at, and how others get to know it: its bytes in the seats of a slab. Attaching by a handle, making
handles, deleting.
Must not know: which cell is given out next (`stocks`); what the array in a cell looks like.

A view of a cell is a NumPy array over all its bytes, the *root*; there is one in a process for each cell. Every other array over the cell
stands on a memoryview of the root, so that who has the base of an array, or the base of that, has the root. Its order, in which nobody can
be missed:

    looking      root made and entered; the byte in the seat written; fence; then the record must say that the array is there, and
                 that its maker is not asking just now. What says otherwise is dropped again.
    asking       (`stocks`) the maker writes that it asks; fence; then looks for handles in flight, then at all seats. A handle becomes
                 a byte and never the reverse without a view, so that nothing slips through between the two looks.
    dropping     C code has dropped the last view, and with it the root; then the byte is struck out.

A root's end is noted by a call into C, and seen to under the lock, or by whoever has the lock: nobody waits in a finalizer.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from typing import TYPE_CHECKING

import numpy as np

from shmarray import cellviews, exhaustion, keeping, seats, slabmaps, slabs
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._format import slab as form
from shmarray._format.handle import BlockKey
from shmarray._os import endings, fences, segments, words
from shmarray.blockfiles import GONE, corrupt, gone, not_found
from shmarray.cellviews import View
from shmarray.errors import ShmArrayError

if TYPE_CHECKING:
    from collections import deque

    from shmarray.membership import Membership
    from shmarray.seats import Seat
    from shmarray.slabwords import Slab

Root = cellviews.Root
_BYTE, _frombuffer = np.dtype(np.uint8), np.frombuffer
_PAUSE, _LOOK_AFTER, _PATIENCE = 20e-6, 0.05, 10.0  # seconds


Here = slabmaps.Here
_views, view_of = cellviews.known, cellviews.view_of
ended: deque[weakref.ref[Root]] = Here.ended
_append = ended.append
_load, _STORE_AT, _OPEN = words.WORD_FORMAT.unpack_from, layout.STATE_AT, layout.OPEN
_ref, _new = weakref.ref, weakref.ref.__new__


def current_seat(member: Membership) -> Seat | None:
    """With the lock held: give the seat in which this process writes now; None if there is none to be had.

    Raises `StoreClosedError`, `StoreFullError` when it has none yet and cannot ask.
    """
    seat: Seat | None = member.seat
    if seat is None:
        taken = seats.take(member)
        # A signal handler of this thread may have come here meanwhile, and look at something by a seat of its own: that one stays.
        if member.seat is None:
            member.seat = taken
        seat = member.seat
    elif seat.has_crossed() and not seats.is_forking() and (fresh := seats.try_take(member)) is not None:
        # Entered in both, until the old one is let go of; what is dropped meanwhile is struck out in neither.
        mine = [view for view in list(_views.values()) if view.member is member]
        for view in mine:
            view.offered = True
            view.slab.bytes[view.slab.layout.seat(fresh.index) + view.cell] = fresh.byte
        fences.fence()
        for view in mine:
            # Its maker may have read the new seat's bytes before, and not have asked yet who is alive behind the old one.
            if view.slab.stock is None and view.slab.word(view.cell, form.ASKED):
                _wait(view.slab, view.cell)
        if member.seat is seat:  # as above
            member.seat = fresh
        seat = member.seat
    return seat


def renew_seat(member: Membership) -> None:
    """After a fork, take another seat, so that what was dropped since is known to be. Whatever stands against it, it waits."""
    with Here.lock, contextlib.suppress(ShmArrayError, OSError):
        if member.seat is not None:
            current_seat(member)
    settle()


def look(member: Membership, slab: Slab, cell: int, number: int, seat: Seat | None, *, offered: bool) -> Root:
    """With the lock held: look at a cell, or give the root that is there. What the record says is the caller's to see, afterwards.

    Without a seat the cell is marked as one that is never used again.
    """
    while True:
        view: View | None = slab.views.get(cell)
        if view is not None and (root := view()) is not None:
            if view.number == number:
                view.offered = view.offered or offered
                return root
            if view.number == slab.word(cell, form.NUMBER):
                raise not_found(member, BlockKey(member.key.uid, member.key.store, number, None, None), GONE)
            # Another thread's, of a handle to what is gone, which it is about to drop: it will strike out nothing of this one.
        if slab.stock is not None and slab.word(cell, form.ASKED):
            # In the midst of this thread's own asking, for the lock is held: who looks now is not to wait for the answer, but is one.
            slab.set_word(cell, form.ASKED, 0)
        nbytes = min(max(slab.word(cell, form.NBYTES), 1), slab.layout.size)
        entered = enter(member, slab, cell, number, seat, nbytes, instead=view, offered=offered)
        if entered is not None:
            return entered


def enter(
    member: Membership,
    slab: Slab,
    cell: int,
    number: int,
    seat: Seat | None,
    nbytes: int,
    *,
    instead: View | None,
    offered: bool,
) -> Root | None:
    """With the lock held: begin to look at so many bytes of a cell of which this process has no view, but an entry of one that has ended.

    None if that is another one by now: a signal handler of this thread has come to look at it in between.
    """
    root = _frombuffer(slab.segment, _BYTE, nbytes, slab.layout.size * cell)
    # What is registered last is called first: a call into C, which no signal handler's exception can come before.
    then, ident = _ref(root, _callbacks.give()), id(root)
    view = _new(View, root, _append)
    # No call from here on: no signal handler finds a view that does not know what it is of.
    view.then, view.guard, view.ident = then, None, ident
    view.slab, view.cell, view.number, view.member, view.offered = slab, cell, number, member, offered
    views = slab.views
    if (views[cell] if cell in views else None) is not instead:  # noqa: SIM401  `get` is a call
        return None
    # Entered first: a root that ended before and is seen to now, in this thread, then strikes out nothing of this one.
    views[cell] = _views[ident] = view
    if seat is None:
        slab.set_word(cell, form.PINNED, 1)
    else:
        slab.bytes[slab.layout.seats + slab.layout.count * seat.index + cell] = seat.byte
    return root


def settle() -> None:
    """See to all roots that have ended, unless another thread is at it or at work on cells: then it does, afterwards. Never waits."""
    lock = Here.lock
    while ended and not Here.settling:
        got: list[bool] = []
        try:
            got.extend(map(lock.acquire, (False,)))  # one call into C: it says whether the lock is held at each moment
            if True not in got:
                return
            Here.settling = True
            while ended:
                view = ended[0]
                _dropped(view)
                if ended and ended[0] is view:  # only now; and unless this is a child by now, that a handler has forked
                    ended.popleft()
        finally:
            if True in got:
                Here.settling = False
                lock.release()
    if slabmaps.ended:
        slabmaps.settle()


Here.settle = settle
_callbacks = endings.Callbacks(settle)


def _dropped(view: weakref.ref[Root]) -> None:
    """Strike out the byte of a cell whose root has ended, unless there is a new one. May be repeated."""
    if not isinstance(view, View):
        return
    if _views.get(view.ident) is view:
        del _views[view.ident]
    slab, cell = view.slab, view.cell
    seat: Seat | None = view.member.seat
    crossed = seat is None or seat.has_crossed()
    views = slab.views
    # No call from here on, up to where the entry is gone: a signal handler that comes to look at the cell does so before or after.
    if cell not in views or views[cell] is not view:
        return
    if seat is not None and not crossed:
        slab.bytes[slab.layout.seats + slab.layout.count * seat.index + cell] = 0
    del views[cell]
    if slab.stock is not None:
        slab.stock.dropped(slab, cell, known=view.offered or crossed)
    elif not slab.views:
        slabmaps.is_idle(view.member.key.store, slab)
    if not slab.views:
        leases = view.member.leases
        if not (leases and _load(leases[0], _STORE_AT)[0] == _OPEN):  # `is_open`, without the call
            slabmaps.leave(view.member)


def attach(member: Membership, key: BlockKey) -> Root:
    """Look at the array a handle names; a link in flight is claimed and removed. Raises as `blocks.attach` does."""
    member.require_open()
    claim = None if key.claim is None else f"{member.block_prefix}{key.claim_entry}"
    cell = form.cell_of(key.block)
    with Here.lock:
        slab = slabs.attach(member, key, claim)
        if cell >= slab.layout.count:
            raise not_found(member, key, "was never there")
        seat = current_seat(member)
        known = slab.views.get(cell)
        root = look(member, slab, cell, key.block, seat, offered=True)
        is_new = slab.views.get(cell) is not known
    if ended or slabmaps.ended:
        settle()
    if is_there(slab, cell, key.block):
        # What the handle kept is kept by the byte now; looking for the link is the fence, if it is there.
        stays = keeping.lending.active and names.keeper_of(key.claim_entry or "") is not None
        if claim is not None and (segments.exists(claim) if stays else segments.unlink(claim)):
            return root
        fences.fence()
        if is_there(slab, cell, key.block) and not (is_new and _is_alone(member, slab, cell, seat)):
            return root
    del root  # now, and not with the traceback
    raise gone(member, key, GONE)


def _is_alone(member: Membership, slab: Slab, cell: int, mine: Seat | None) -> bool:
    """Say whether nobody but this process, since just now, looks at an array to which there is no handle: then it has gone before."""
    if slab.word(cell, form.PINNED) or slabs.handles(member, slab, slab.word(cell, form.NUMBER)):
        return False
    # After the look for handles: who loads one looks before it is gone.
    places = slab.layout
    column = bytes(slab.bytes[places.seats + cell : places.seats + form.SEATS * places.count : places.count])
    there = [index for index, byte in enumerate(column) if byte and (mine is None or index != mine.index)]
    alive = seats.alive(member, there) if there else {}
    return not any(column[index] == byte for index, byte in alive.items())


def is_there(slab: Slab, cell: int, number: int) -> bool:
    """Say whether the array of that number is in its cell, for handles to it; waits while its maker asks who sees it.

    Raises `TimeoutError` when the maker does not finish: it was stopped.
    """
    if slab.word(cell, form.ASKED):
        _wait(slab, cell)
    # In this order: the state of the array that comes next must not be taken for that of the one which was there before.
    return slab.word(cell, form.STATE) == form.LIVE and slab.word(cell, form.NUMBER) == number


def _wait(slab: Slab, cell: int) -> None:
    """Wait until the maker has its answer; if it has died, there is nobody who would use the cell again."""
    began = looked = time.monotonic()
    while asked := slab.word(cell, form.ASKED):
        if asked != 1:
            raise corrupt(slab.path, f"its maker asks {asked:#x} who uses an array, which is no question")
        time.sleep(_PAUSE)
        now = time.monotonic()
        if now - looked > _LOOK_AFTER:
            looked = now
            if not slab.has_maker():
                return
        if now - began > _PATIENCE:
            message = f"the process that made {slab.path} has been asking for {_PATIENCE:.0f} s who uses an array; is it stopped?"
            raise TimeoutError(message)


def offer(view: View) -> BlockKey:
    """Make a key that may travel, with a link in flight that keeps the array until it is claimed. Raises as `blocks.offer` does."""
    member, slab = view.member, view.slab
    hold = member.require_open()
    view.offered = True
    store, ending = member.key, keeping.destination.ending
    key = BlockKey(store.uid, store.store, view.number, None, os.urandom(6).hex() + ending)
    claim = f"{member.block_prefix}{key.claim_entry}"
    try:
        segments.link(slab.path, claim)
    except FileNotFoundError:
        raise gone(member, view.key, "has been deleted") from None
    except OSError as error:
        exhaustion.explain(error, member.control.directory, 0)
        raise
    try:
        if words.load(hold, layout.STATE_AT) != layout.OPEN:
            raise member.closed_error()
        # Its maker may have looked for handles just before this link; at the seats it looks after that. The byte stays until then.
        _wait(slab, view.cell)
        if not is_live(view):
            raise not_found(member, view.key, "has been deleted")
    except BaseException:
        segments.unlink(claim)
        raise
    if ending:
        keeping.destination.made.append(claim)
    return key


def is_live(view: View) -> bool:
    """Say whether handles to this array are good: it was not deleted. Its number stands as long as this process looks at it."""
    return view.slab.word(view.cell, form.STATE) == form.LIVE and view.slab.word(view.cell, form.NUMBER) == view.number


def delete(view: View) -> bool:
    """Delete an array for everyone: no new attach by a handle; false if it was deleted before. Views stay valid."""
    if not is_live(view):
        return False
    slab, member = view.slab, view.member
    slab.set_word(view.cell, form.STATE, form.DELETED)
    view.offered = True  # its cell is looked at before it is used again
    for path in slabs.handles(member, slab, view.number):
        segments.unlink(path)
    return True
