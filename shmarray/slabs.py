"""Slabs: blocks in which many small arrays lie, each in a cell.

Owns: the file of a slab and this process's mapping of it: making it, finding it, dropping it. Which process makes one is its *maker*,
as long as it takes part in the store; only the maker gives out cells.
Must not know: who looks at which cell (`cells`), which one is given out next (`stocks`).

    file        made by                                removed by
    s.SLAB      its maker, whole, in one step          its maker, when no cell is in use; then whoever is the last to unmap it; a sweep
    h.BLOCK...  `cells`: a handle in flight to a cell  as with any block: it is one more link to the slab's file
    g.BLOCK     `cellguards`: the guard of a cell      the maker, when the cell is free again; a sweep, when the slab is gone

A process keeps a few slabs mapped in which it looks at nothing just now, for the next handle that arrives. A mapping says nothing about
who looks at what: that stands in the seats (`_format.slab`).
"""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from typing import TYPE_CHECKING, Any

from shmarray import blockfiles, drafts, exhaustion, reaper
from shmarray._format import control as layout
from shmarray._format import header as header_form
from shmarray._format import names
from shmarray._format import slab as form
from shmarray._os import flocks, processes, segments
from shmarray.blockfiles import GONE, not_found
from shmarray.errors import ArrayExistsError

if TYPE_CHECKING:
    from shmarray._format.handle import BlockKey
    from shmarray.membership import Membership

_MAKER_MARK = 0
_MOST_IDLE = 8
_write = json.JSONEncoder(separators=(",", ":")).encode


class Slab:
    """One mapped slab. `words` and `bytes` are its data; `views` has, by cell, what this process looks at."""

    __slots__ = (
        *("_records", "bytes", "numbers", "layout", "maker", "number", "path", "segment", "uid", "views", "words"),
        *("forms", "free", "is_ready", "pending", "stock", "worn"),
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
            return flocks.is_marked(fd, _MAKER_MARK)
        finally:
            fd.close()

    def links(self) -> int:
        """How many names the file has: one, and one for each handle in flight. Raises `FileNotFoundError`."""
        return segments.status_of(self.path).st_nlink


_known: dict[tuple[int, int], Slab] = {}
_idle: dict[tuple[int, int], None] = {}
_leaving: dict[int, tuple[weakref.ref[segments.Segment], str, int]] = {}
_members: dict[int, weakref.ref[Membership]] = {}


def find(store: int, number: int) -> Slab | None:
    """Give the slab in which the array of that number lies, if it is mapped here."""
    return _known.get((store, number >> 32))


def enter(member: Membership, slab: Slab) -> Slab:
    """Keep a slab mapped as long as this process takes part in its store; if it is known already, that one is the one to use."""
    store = member.key.store
    if store not in _members or _members[store]() is not member:
        _members[store] = weakref.ref(member, lambda _, store=store: _left(store))  # type: ignore[misc]
    return _known.setdefault((store, slab.number >> 32), slab)


def _left(store: int) -> None:
    """This process takes no part in that store any more: it looks at nothing there, and makes nothing. Runs at any moment."""
    for key in list(_known):
        if key[0] == store:
            drop(store, key[1] << 32)
    _members.pop(store, None)


def drop(store: int, number: int) -> None:
    """Unmap a slab as soon as nothing in it is in use here; if nobody else maps it then, its file goes. Never raises, never waits."""
    slab = _known.pop((store, number >> 32), None)
    _idle.pop((store, number >> 32), None)
    if slab is None:
        return
    stock, slab.stock = slab.stock, None
    if stock is not None:
        stock.forget(slab)
    # Asked when the mapping has ended: this may run while the last root is ending, which has it still.
    watch = weakref.ref(slab.segment, _unmapped)
    _leaving[id(watch)] = watch, slab.path, slab.uid


def _unmapped(watch: weakref.ref[segments.Segment]) -> None:
    left = _leaving.pop(id(watch), None)
    if left is not None:
        reaper.last_one_out(*left[1:])


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
    for key in list(_idle):
        slab = _known.get(key)
        if key[0] == store and (slab is None or not slab.views):
            drop(store, key[1] << 32)


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


def make(member: Membership, size: int, count: int, stock: Any) -> Slab:
    """Make a slab of `count` cells of `size` bytes, of which this process is the maker. Raises as `drafts.Draft` does."""
    while True:
        number = form.slab_number(int.from_bytes(os.urandom(4), "little"))
        if not segments.exists(member.block_prefix + names.slab(number)):
            with contextlib.suppress(ArrayExistsError):  # since just now
                return _made(member, number, size, count, stock)


def _made(member: Membership, number: int, size: int, count: int, stock: Any) -> Slab:
    places = form.Layout(size, count)
    leaf = ["|u1", [places.nbytes], None, 0]
    meta = _write(
        {
            "name": None,
            "leaves": [leaf],
            "tree": None,
            "kind": form.KIND,
            "size": size,
            "count": count,
            "namespace": processes.me().namespace,
        }
    ).encode()
    with drafts.Draft(member, places.nbytes, meta, number=number) as draft:
        flocks.mark(draft.fd, _MAKER_MARK)
        segment = draft.map_unlisted(names.slab(number), segments.SlabSegment)
        path = segment.tag.path
        slab = Slab(number, path, member.key.uid, places, segment, processes.me())
        slab.stock, slab.forms = stock, [None] * count
        try:
            draft.publish(segment)
            segment.tag = None  # which holds the membership: it is to end when nothing in a slab is in use
            return enter(member, slab)
        except ArrayExistsError:
            raise
        except BaseException:
            _known.pop((member.key.store, number >> 32), None)
            segments.unlink(path)
            raise


def attach(member: Membership, key: BlockKey, claim: str | None) -> Slab:
    """Map the slab in which a handle's array lies, by the link in flight or by its own name. Raises as `blocks.attach` does."""
    slab = find(key.store, key.block)
    if slab is not None:
        return slab
    path = member.block_prefix + names.slab(key.block)
    for candidate in (path,) if claim is None else (claim, path):
        with exhaustion.explained(member.control.directory, 0):
            try:
                fd = blockfiles.open_block(candidate)
            except FileNotFoundError:
                continue
            try:
                return enter(member, _mapped(member, key, fd, path))
            finally:
                fd.close()
    if member.state() != layout.OPEN:
        raise member.closed_error()
    raise not_found(member, key, GONE)


def _mapped(member: Membership, key: BlockKey, fd: segments.Descriptor, path: str) -> Slab:
    flocks.share(fd)
    info = segments.status(fd)
    head = blockfiles.read_checked(member.key, fd, info, path)
    places = layout_of(head, path)
    if head.block != form.slab_of(key.block):
        raise blockfiles.corrupt(path, "it is another slab")
    segment = segments.map_shared(fd, info.st_size, kind=segments.SlabSegment)
    maker = processes.Identity(head.pid, head.start, form.namespace_from(head.meta))
    return Slab(head.block, path, member.key.uid, places, segment, maker)


def handles(member: Membership, slab: Slab, number: int) -> list[str]:
    """List the paths of all handles in flight to an array; none where the store has ended."""
    directory, mine = member.control.directory, f"{member.key.prefix}{names.IN_FLIGHT}{number:016x}."
    try:
        found = segments.entries(directory, mine) if slab.links() > 1 else []
    except FileNotFoundError:
        found = []
    return [os.path.join(directory, entry) for entry in found]


def layout_of(head: header_form.Header, path: str) -> form.Layout:
    """Read from its header where everything lies in a slab. Raises `CorruptBlockError` for what is none."""
    try:
        return form.layout_from(head.meta, head.nbytes)
    except ValueError as error:
        raise blockfiles.corrupt(path, str(error)) from None


def _after_fork() -> None:
    """In a forked child: cells are given out by the parent."""
    for slab in list(_known.values()):
        slab.stock = None
        slab.free.clear()
        slab.pending.clear()


processes.after_fork_in_child(_after_fork)
