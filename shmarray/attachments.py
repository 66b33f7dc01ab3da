"""What this process has attached.

Owns: what is known of an attached block, the tables in which its mapping is found again, the end of a mapping.
Must not know: NumPy, how a block is found, opened, checked or made (`blocks`, `drafts`), what a description says.

The tables hold weak references, so they keep nothing. A mapping in them may be idle (see `idling`): it has another tag then.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from shmarray import idling, reaper, reclaim
from shmarray._format import header as form
from shmarray._os import endings, segments, words

if TYPE_CHECKING:
    from shmarray._format.handle import BlockKey
    from shmarray.membership import Membership

_IS_UP = True  # first of the names that the interpreter's end takes away: from then on the kernel sees to what ends
K = TypeVar("K")
KEEPS, WARM, OFFERED, GUARD, _LAST = "keeps", "warm", "offered", idling.GUARD, "last"
"""In the cache of a block: that other blocks' handles lie in it; its memory, which may be used again after it; that a handle to it was
made, if it is anonymous; its guard, once that was asked for; a descriptor through which its memory is given back, once it was deleted."""


class Block(NamedTuple):
    """What is known of an attached block: `tag` of its mapping. Holds the membership, so the store stays joined.

    `identity` is device and inode: what says whether a name still leads to this block.
    """

    member: Membership
    key: BlockKey
    path: str
    file_size: int
    nbytes: int
    meta: bytes
    identity: tuple[int, int]
    cache: dict[str, object]


class _Watch(weakref.ref[segments.Segment]):
    """A weak reference to an anonymous block, or one whose memory may be used again, called back after C code has unmapped it.

    Other named blocks need no call: a callback in Python is a place where an exception of a signal handler is lost. `block` is None while
    the mapping is idle: when that ends nothing is owed, and until then nothing here keeps the store joined.
    """

    __slots__ = ("block", "key", "then")

    block: Block | None
    key: tuple[int, int]
    then: weakref.ref[segments.Segment]

    def __new__(cls, segment: segments.Segment, block: Block) -> Self:  # noqa: ARG004  as __init__
        """Watch `segment`. What is registered last is called first: a call into C, which no signal handler's exception can come before."""
        then = weakref.ref(segment, _callbacks.give())
        self = super().__new__(cls, segment, _ended.append)
        self.then = then
        return self

    def __init__(self, segment: segments.Segment, block: Block) -> None:
        """Keep what the last look needs."""
        super().__init__(segment, _ended.append)  # type: ignore[call-arg]  # the callback goes to both, see weakref.KeyedRef
        self.block = block
        self.key = block.key.store, block.key.block


_attached: dict[tuple[int, int], weakref.ref[segments.Segment]] = {}
_named: dict[tuple[int, str], weakref.ref[segments.Segment]] = {}  # what had a name when this process last looked
_pins: dict[int, _Watch] = {}
_ended: deque[weakref.ref[segments.Segment]] = deque()
"""Watches of blocks that were unmapped, until that has been seen to."""
_tidy_at = [256]


def settle() -> None:
    """See to all blocks that were unmapped: that which has just been, and those where an exception of a signal handler came between."""
    if _IS_UP:
        endings.drain(_ended, _unmapped)


_callbacks = endings.Callbacks(settle)


def _unmapped(watch: weakref.ref[segments.Segment]) -> None:
    """Run after an anonymous block was unmapped, at any moment, in any thread: system calls only, never raises, never waits."""
    _pins.pop(id(watch), None)
    if isinstance(watch, _Watch):
        if _attached.get(watch.key) is watch:
            _attached.pop(watch.key, None)  # a newer entry lost here is mapped again: time only
        block = watch.block
        if block is None:
            return  # it was idle: who had the lease has been the last
        if block.key.name is not None and _named.get((block.key.store, block.key.name)) is watch:
            _named.pop((block.key.store, block.key.name), None)  # it has the block, and that the part in the store
        anonymous = block.key.name is None
        kept: Any = block.cache.pop(idling.KEPT, None)
        if kept is not None:
            kept.memory.close()  # the lease hangs on it as well
        last: Any = block.cache.pop(_LAST, None)
        if last is not None:
            reclaim.give_back(last)
            last.close()
        memory: Any = block.cache.pop(WARM, None)
        if memory is not None and memory.pool.give_back(memory, block.path, anonymous=anonymous):
            return
        if not anonymous:
            return
        if reaper.last_one_out(block.path, block.key.uid) and KEEPS in block.cache:
            reaper.drop_kept(block.member.control.directory, block.key.store_key, block.identity[1])


def give_back_after(segment: segments.Segment) -> None:
    """Before a block is deleted which this process maps: have its memory given back when that ends, if nobody has it then."""
    block: Block = segment.tag
    fd = reclaim.open_large(block.path, block.key.uid, block.file_size)
    if fd is not None and block.cache.setdefault(_LAST, fd) is fd:
        _pin(segment, block)


def _tidy() -> None:
    """Forget references to named blocks that were unmapped; for when there are many entries."""
    forget_dead(_attached)
    forget_dead(_named)
    _tidy_at[0] = 2 * (len(_attached) + len(_named)) + 256


def forget_dead(table: dict[K, Any]) -> None:
    """Drop the entries of a table of weak references whose blocks were unmapped."""
    # Keys alone: making tuples may start the collector, and with it code that changes the table.
    for key in list(table):
        if (watch := table.get(key)) is not None and watch() is None and table.get(key) is watch:
            table.pop(key, None)


def _pin(segment: segments.Segment, block: Block) -> _Watch:
    watch = _Watch(segment, block)
    _pins[id(watch)] = watch
    return watch


def register(segment: segments.Segment, block: Block) -> segments.Segment:
    """Enter a mapping into the table; if another thread was faster, its mapping is the one to use. A copy's stays out."""
    segment.tag = block
    watch: weakref.ref[segments.Segment]
    called = block.key.name is None or WARM in block.cache
    watch = _pin(segment, block) if called else weakref.ref(segment)
    kept: Any = block.cache.get(idling.KEPT)
    if called and kept is not None:
        kept.watch = watch
    if block.key.name is not None:
        _named[block.key.store, block.key.name] = watch
        if len(_attached) + len(_named) >= _tidy_at[0]:
            _tidy()
    while True:
        first = _attached.setdefault((block.key.store, block.key.block), watch)
        if first is watch:
            return segment
        other = looked_at(first)
        if other is not None:
            return other if other.tag.identity == block.identity else segment
        if _attached.get((block.key.store, block.key.block)) is first:
            _attached[block.key.store, block.key.block] = watch
            return segment


def is_live(segment: segments.Segment) -> bool:
    """Say whether handles to this mapped block are good: it was neither deleted nor replaced."""
    return words.load(segment, form.state_offset(segment.tag.file_size)) == form.LIVE


def looked_at(watch: weakref.ref[segments.Segment] | None) -> segments.Segment | None:
    """Give the mapping of an entry of a table; None if there is none any more, or it is idle."""
    segment = watch() if watch is not None else None
    return segment if segment is not None and type(segment.tag) is Block else None


def awake(watch: weakref.ref[segments.Segment] | None) -> segments.Segment | None:
    """The same, of one that is idle too, if it can be looked at again: then it is as if it had never been idle."""
    segment = watch() if watch is not None else None
    return segment if segment is not None and (type(segment.tag) is Block or idling.wake(segment) is not None) else None


def attached_as(store: int, number: int) -> segments.Segment | None:
    """Give the mapping of the block with that number, awake; None if there is none. Not a promise that it is live."""
    return awake(_attached.get((store, number)))


def named(store: int, name: str) -> segments.Segment | None:
    """Give the mapping of the block that had this name when this process last looked, awake; not a promise that it still has it."""
    return awake(_named.get((store, name)))


def is_known(store: int, number: int, identity: tuple[int, int]) -> segments.Segment | None:
    """Give the mapping of the block with that number, if it is looked at and is that of the file `identity`."""
    segment = looked_at(_attached.get((store, number)))
    return segment if segment is not None and segment.tag.identity == identity else None


def known(store: int, number: int, name: str | None) -> segments.Segment | None:
    """Give the block of a handle if this process maps it, its store is open and it was not deleted; else None: look closer."""
    segment = looked_at(_attached.get((store, number)))
    if segment is None or segment.tag.key.name != name or not segment.tag.member.is_open() or not is_live(segment):
        return None
    return segment


def mapped(store: int, name: str) -> segments.Segment | None:
    """Give the block that had this name when this process last looked, if it is mapped here; not a promise that it still has it."""
    return looked_at(_named.get((store, name)))


def attached(store: int) -> int:
    """How many blocks of that store this process maps, but for those that rest."""
    found = [looked_at(_attached.get(key)) for key in list(_attached) if key[0] == store]
    return sum(words.load(s, form.state_offset(s.tag.file_size)) != form.RESTING for s in found if s is not None)
