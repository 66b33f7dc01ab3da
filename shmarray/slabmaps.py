"""The slabs that this process maps.

Owns: the table in which a mapped slab is found again, the end of its mapping; the lock under which slabs and cells are changed. A slab is
mapped once: each view of a cell would strike out the byte of the other one. A process keeps a few slabs mapped in which it looks at nothing
just now, for the next handle that arrives; also while it is absent from the store (`absences`), and then without their leases. A mapping
says nothing about who looks at what: that stands in the seats (`_format.slab`).
Must not know: how a slab is made, found and checked (`slabs`), who looks at which cell (`cells`).

While a process is absent it looks at nothing, and the leases of its slabs are let go of by asking for the exclusive lock, as with an
anonymous block (`idling`): who gets it, and sees no handle in flight, was the last. Who comes back takes the lease by the same descriptor,
and then sees whether the file still has a name: what has none is no slab any more, and may have lost its memory (`reclaim`). So it is with
slabs of others, and with those that this process has made: its mark on them stays, and out of what is still there it gives again. While it
is absent none of its cells is used again, for nobody else asks who looks at them.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from shmarray import membership, memories, reaper, reclaim
from shmarray._os import endings, processes, segments

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray.absences import Absence
    from shmarray.membership import Membership
    from shmarray.slabwords import Slab

_IS_UP = True  # first of the names that the interpreter's end takes away: from then on the kernel sees to what ends
_MOST_IDLE = 8


class Here:
    """What this process has: the lock under which everything about slabs and cells is changed."""

    lock = threading.RLock()
    settling = False
    ended: ClassVar[deque[Any]] = deque()
    """What `cells` has noted to be at its end."""
    settle: Callable[[], None] = staticmethod(lambda: None)
    """See to that. Whoever has had the lock calls it, for who finds the lock taken leaves it to him."""


class _Part(weakref.ref["Membership"]):
    """The part in one store of which this process maps slabs: its end is noted by a call into C, and then seen to."""

    __slots__ = ("absence", "store", "then")

    absence: Absence | None
    store: int
    then: weakref.ref[Membership]


class _Leaving(weakref.ref["segments.Segment"]):
    """A mapping that is to end. `last`: by what it is asked then whether it was the last, or its memory is given back."""

    __slots__ = ("last", "path", "then", "uid")

    last: memories.Memory | segments.Descriptor | None
    path: str
    then: weakref.ref[segments.Segment]
    uid: int


_known: dict[tuple[int, int], Slab] = {}
_idle: dict[tuple[int, int], None] = {}
_leaving: dict[int, _Leaving] = {}
_parts: dict[int, _Part] = {}
ended: deque[weakref.ref[Any]] = deque()
"""Parts and mappings that have ended, until that has been seen to."""


def find(store: int, number: int) -> Slab | None:
    """Give the slab in which the array of that number lies, if it is mapped here."""
    return _known.get((store, number >> 32))


def enter(member: Membership, slab: Slab) -> Slab:
    """Keep a slab mapped as long as this process takes part in its store; if it is known already, that one is the one to use."""
    _take_part(member)
    return _known.setdefault((member.key.store, slab.number >> 32), slab)


def _take_part(member: Membership) -> None:
    """Be told when that part in a store ends."""
    store = member.key.store
    part = _parts.get(store)
    if part is None or part() is not member:
        # What is registered last is called first: a call into C, which no signal handler's exception can come before.
        then = weakref.ref(member, _callbacks.give())
        part = _Part(member, ended.append)
        part.then, part.store, part.absence = then, store, member.absence
        _parts[store] = part


def settle() -> None:
    """See to all that has ended, unless another thread is at work on slabs: then it does, afterwards. Never raises, never waits."""
    lock = Here.lock if _IS_UP else None
    while lock is not None and ended:
        got: list[bool] = []
        try:
            got.extend(map(lock.acquire, (False,)))  # one call into C: it says whether the lock is held at each moment
            if True not in got:
                return
            endings.drain(ended, _see_to)
        finally:
            if True in got:
                lock.release()
    if Here.ended:  # of which another thread had to leave the end to this one
        Here.settle()


_callbacks = endings.Callbacks(settle)


def _see_to(one: weakref.ref[Any]) -> None:
    if isinstance(one, _Leaving):
        _unmapped(one)
    elif isinstance(one, _Part):
        _left(one)


def _left(part: _Part) -> None:
    """This process takes no part in that store any more: it looks at nothing there, and makes nothing. May be repeated."""
    if _parts.get(part.store) is not part:
        return  # it has come to take part anew
    store, absence = part.store, part.absence
    member = membership.near(store)
    if member is not None:
        # So it has, and may have found one of them: that must not be mapped twice, for both would have the same bytes in the seat.
        _take_part(member)
        return
    there = [key for key in list(_known) if key[0] == store]
    for key in there:
        if (known := _known.get(key)) is not None:
            _give_nothing(
                known
            )  # before the first lease is let go of: nothing is given out of what may lose its memory
    for key in there:
        slab = forget(store, key[1] << 32)
        if slab is not None and slab.views:
            _known.setdefault(key, slab)  # a signal handler has come to take part meanwhile, and looks into it
        elif slab is not None and (absence is None or not _left_to_others(slab, absence)):
            _let_go(slab)
    member = membership.near(store)
    if member is not None:
        _take_part(member)
        return
    _parts.pop(store, None)


def _left_to_others(slab: Slab, absence: Absence) -> bool:
    """Keep a slab mapped while this process is absent, without its lease; false if it is to be unmapped."""
    memory, there = slab.memory, absence.slabs
    try:
        if memory is None or slab.views or not memory.leave_to_others():
            return False
    except (OSError, ValueError):
        return False  # the descriptor was closed
    there.pop(slab.number, None)
    for number in list(there):
        if (other := there.get(number)) is not None and (len(there) >= _MOST_IDLE or not other.memory.links()):
            there.pop(number, None)
    there[slab.number] = slab
    return True


def find_again(member: Membership, number: int) -> Slab | None:
    """Give a slab that stayed mapped, with its lease; None if there is none, or it has gone meanwhile."""
    slab: Slab | None = None if member.absence is None else member.absence.slabs.pop(number, None)
    if slab is None or slab.memory is None:
        return None
    try:
        if slab.memory.take_lease_again():
            return enter(member, slab)
    except (OSError, ValueError):
        pass  # the descriptor was closed
    slab.memory.drop()  # whoever removed it may have found this lease, and have left its memory to us
    return None


def find_own(member: Membership, size: int, stock: Any) -> Slab | None:
    """Give out of a slab with such cells that this process has made before it was absent; None if there is none."""
    store = member.key.store
    absent = [] if member.absence is None else list(member.absence.slabs.values())
    for slab in [*absent, *(slab for key, slab in list(_known.items()) if key[0] == store)]:
        if slab.is_mine and slab.stock is None and slab.layout.size == size:
            found = find_again(member, slab.number) if slab in absent else slab
            if found is not None and found.is_mine:
                _idle.pop((store, found.number >> 32), None)
                found.stock = stock
                return found
    return None


def forget(store: int, number: int) -> Slab | None:
    """Find a slab no more; gives it, if it was known."""
    _idle.pop((store, number >> 32), None)
    return _known.pop((store, number >> 32), None)


def drop(store: int, number: int) -> None:
    """Unmap a slab as soon as nothing in it is in use here; if nobody else maps it then, its file goes. Never raises, never waits."""
    slab = forget(store, number)
    if slab is not None:
        _let_go(slab)


def remove(store: int, slab: Slab) -> None:
    """Remove a slab in which there is no array, as its maker; its memory goes with this process's mapping, whoever maps it idly."""
    own = slab.memory is not None and slab.memory.is_mine()  # its descriptor has a lease too, and is what is asked then
    last = None if own else reclaim.open_large(slab.path, slab.uid, slab.layout.nbytes)
    segments.unlink(slab.path)
    forget(store, slab.number)
    _let_go(slab, last)


def _give_nothing(slab: Slab) -> None:
    """Let its stock give nothing out of it any more. May be repeated."""
    if slab.stock is not None:
        slab.stock.forget(slab)
        slab.stock = None


def _let_go(slab: Slab, last: segments.Descriptor | None = None) -> None:
    _give_nothing(slab)
    # Asked when the mapping has ended: this may run while the last root is ending, which has it still.
    then = weakref.ref(slab.segment, _callbacks.give())
    watch = _Leaving(slab.segment, ended.append)  # last, for it is called first: see `enter`
    watch.then, watch.path, watch.uid, watch.last = then, slab.path, slab.uid, last or slab.memory
    _leaving[id(watch)] = watch


def _unmapped(watch: _Leaving) -> None:
    """Remove the file of a slab if this process was the last that mapped it; of one without a name, the memory. May be repeated."""
    last = watch.last
    _leaving.pop(id(watch), None)
    if isinstance(last, memories.Memory) and (last.links() or not last.is_mine()):
        last.close()  # the lease hangs on it as well; unless a fork has closed it before
        last = None
    if last is None:
        reaper.last_one_out(watch.path, watch.uid)
    elif isinstance(last, memories.Memory):
        last.drop()
    else:
        reclaim.give_back(last)
        last.close()


def is_idle(store: int, slab: Slab) -> None:
    """Note that this process looks at nothing in a slab that another one made: a few such stay mapped. Never raises."""
    key = (store, slab.number >> 32)
    if _known.get(key) is slab and slab.stock is None:
        _idle.pop(key, None)
        _idle[key] = None
        for old in list(_idle)[:-_MOST_IDLE]:
            known = _known.get(old)
            if known is None or known.views:
                _idle.pop(old, None)
            else:
                drop(old[0], old[1] << 32)


def drop_idle(store: int) -> None:
    """Keep no slab mapped in which this process looks at nothing, but for those it made. With the lock of `cells` held."""
    settle()
    for key in list(_idle):
        slab = _known.get(key)
        if key[0] == store and (slab is None or not slab.views):
            drop(store, key[1] << 32)
    member = membership.near(store)
    if member is not None and member.absence is not None:
        member.absence.slabs.clear()


def leave(member: Membership) -> None:
    """After the store has ended: keep nothing of it mapped but what is in use, nor the seat when that is nothing. With that lock held."""
    store = member.key.store
    for key in list(_known):
        if key[0] == store and not _known[key].views:
            drop(store, key[1] << 32)
    if not any(key[0] == store for key in list(_known)):
        member.seat = None


def made_for(stock: Any) -> list[Slab]:
    """Give the slabs out of which that stock gives, as they were made: it may not know of one yet."""
    return [slab for slab in list(_known.values()) if slab.stock is stock and slab.is_mine]


def _after_fork() -> None:
    """In a forked child: cells are given out by the parent, and the lock may be another thread's, who does not go on here."""
    Here.lock, Here.settling = threading.RLock(), False
    for slab in list(_known.values()):
        slab.stock = None
        slab.free.clear()
        slab.pending.clear()


processes.after_fork_in_child(_after_fork)
