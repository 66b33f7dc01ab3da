"""The slabs that this process maps.

Owns: what is known of a mapped slab, the table in which it is found again, the end of its mapping; the lock under which slabs and cells are
changed. A slab is mapped once: each view of a cell would strike out the byte of the other one. A process keeps a few slabs mapped in
which it looks at nothing just now, for the next handle that arrives; also while it is absent from the store (`absences`), and then without
their leases. A mapping says nothing about who looks at what: that stands in the seats (`_format.slab`).
Must not know: how a slab is made, found and checked (`slabs`), who looks at which cell (`cells`).

While a process is absent it looks at nothing, and the leases of its slabs are let go of by asking for the exclusive lock, as with an
anonymous block (`idling`): who gets it, and sees no handle in flight, was the last. Who comes back takes the lease by the same descriptor,
and then sees whether the file still has a name: what has none is no slab any more, and may have lost its memory (`reclaim`).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from shmarray import membership, memories, reaper, reclaim
from shmarray._format import slab as form
from shmarray._os import endings, flocks, processes, segments

if TYPE_CHECKING:
    from shmarray.absences import Absence
    from shmarray.membership import Membership

_IS_UP = True  # first of the names that the interpreter's end takes away: from then on the kernel sees to what ends
MAKER_MARK = 0
_MOST_IDLE = 8


class Slab:
    """One mapped slab. `words` and `bytes` are its data; `views` has, by cell, what this process looks at."""

    __slots__ = (
        *("_records", "bytes", "layout", "maker", "memory", "number", "numbers", "path", "segment", "uid", "views"),
        *("forms", "free", "is_ready", "pending", "stock", "words", "worn"),
    )

    def __init__(
        self,
        number: int,
        path: str,
        uid: int,
        places: form.Layout,
        segment: segments.Segment,
        maker: processes.Identity,
    ) -> None:
        """Stand for a mapping."""
        self.maker = maker
        self.memory: memories.Memory | None = None  # by what its lease is let go of, and taken again, around an absence
        self.number = number
        self.path = path
        self.uid = uid
        self.layout = places
        self._records = places.records
        # By cell: which of the slab's words is the first of its record, its number.
        self.numbers = range(places.records >> 3, places.seats >> 3, form.RECORD >> 3)
        self.segment = segment
        self.bytes = memoryview(segment)
        self.words = self.bytes.cast("Q")
        self.views: dict[int, Any] = {}
        self.stock: Any = None
        # The maker's: cells that are free; by cell, what its record says behind number and state, where that is known; how many are free no
        # more, for their numbers would recur; those it has dropped and others may see; whether it is on the stock's list.
        self.free: list[int] = []
        self.forms: list[Any] = []
        self.worn = 0
        self.pending: set[int] = set()
        self.is_ready = False

    @property
    def is_empty(self) -> bool:
        """To its maker: whether no array is in it."""
        return len(self.free) + self.worn == self.layout.count

    def word(self, cell: int, offset: int) -> int:
        """Read a word of a cell's record."""
        return self.words[(self._records + form.RECORD * cell + offset) >> 3]  # `index`, without the call

    def set_word(self, cell: int, offset: int, value: int) -> None:
        """Write a word of a cell's record."""
        self.words[(self._records + form.RECORD * cell + offset) >> 3] = value

    def index(self, cell: int, offset: int) -> int:
        """Tell which of the slab's words that is."""
        return (self._records + form.RECORD * cell + offset) >> 3

    def describe(self, cell: int, words: bytes) -> None:
        """Write what a cell's record says behind number and state, while no array is there."""
        at = self._records + form.RECORD * cell + form.DESCRIBED
        self.bytes[at : at + len(words)] = words

    def has_maker(self) -> bool:
        """Whether the process that made it is there, as far as can be known. Raises `OSError`."""
        if processes.is_provably_gone(self.maker):
            return False  # a child that it had forked has the mark still
        try:
            fd = segments.open_existing(self.path, write=False)
        except FileNotFoundError:
            return False
        try:
            return flocks.is_marked(fd, MAKER_MARK)
        finally:
            fd.close()

    def links(self) -> int:
        """How many names the file has: one, and one for each handle in flight. Raises `FileNotFoundError`."""
        return segments.status_of(self.path).st_nlink


class Here:
    """What this process has: the lock under which everything about slabs and cells is changed."""

    lock = threading.RLock()
    settling = False


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
        then = weakref.ref(member, settle)
        part = _Part(member, ended.append)
        part.then, part.store, part.absence = then, store, member.absence
        _parts[store] = part


def settle(_: object = None) -> None:
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
    for key in list(_known):
        slab = forget(store, key[1] << 32) if key[0] == store else None
        if slab is not None and (absence is None or not _left_to_others(slab, absence)):
            _let_go(slab)
    _parts.pop(store, None)


def _left_to_others(slab: Slab, absence: Absence) -> bool:
    """Keep a slab mapped while this process is absent, without its lease; false if it is to be unmapped."""
    memory, there = slab.memory, absence.slabs
    try:
        if memory is None or slab.stock is not None or slab.views or not memory.leave_to_others():
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
    last = reclaim.open_large(slab.path, slab.uid, slab.layout.nbytes)
    segments.unlink(slab.path)
    forget(store, slab.number)
    _let_go(slab, last)


def _let_go(slab: Slab, last: segments.Descriptor | None = None) -> None:
    stock, slab.stock = slab.stock, None
    if stock is not None:
        stock.forget(slab)
    # Asked when the mapping has ended: this may run while the last root is ending, which has it still.
    then = weakref.ref(slab.segment, settle)
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
    return [slab for slab in list(_known.values()) if slab.stock is stock]


def _after_fork() -> None:
    """In a forked child: cells are given out by the parent, and the lock may be another thread's, who does not go on here."""
    Here.lock, Here.settling = threading.RLock(), False
    for slab in list(_known.values()):
        slab.stock = None
        slab.free.clear()
        slab.pending.clear()


processes.after_fork_in_child(_after_fork)
