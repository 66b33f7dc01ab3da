"""Mappings that stay where nobody looks at them any more: whoever attaches the same array again takes no page fault.

A process that attaches a large block which another one made keeps the descriptor through which it took the lease. When its last view has
gone the lease is let go of, and the mapping stays: it is *idle*, and nobody looks at it. Who attaches the block again takes the lease
again, by the same descriptor, and then looks whether the file is still that block; if not, the mapping ends.

Owns: which blocks are kept so, how many, when the lease is let go of, and the proof that the mapping may be looked at again.
Must not know: how a block is found, opened and checked at first (`blocks`), NumPy, what is in it.

Why it is safe:

- The lease is let go of only when nothing in this process refers to the mapping but this module (CPython's count of references), and no
  fork came while it was looked at: a child shares the lease, so unlocking would be for both. What crossed one ends as any other.
- Before that is asked for the last time, the mapping's tag is exchanged. Whoever has got the mapping from a table of weak references reads
  the tag after that: it sees the other one, and looks closer, or its reference was counted.
- An anonymous block ends with the last who has it. So a lease on one is let go of by asking for the exclusive lock: who gets it, and sees
  no handle in flight, was the last, and does not keep the mapping; who does not get it leaves the block to those who have a lease.
- A block that is used again for another array, or was deleted, has another number or another state in its header; both are read with the
  lease held. The page of the header is never given back as long as somebody maps it.
- What was given out by `block_name` is not kept: whoever maps it by that name has no lease, so its memory cannot be given back.
- Memory does not stay for an idle mapping: whoever removes a block, or is the last to let go of a removed one, gives its memory back if the
  kernel says that nobody has the lease (`reclaim.give_back`). Where the last one was killed, or has no descriptor, an idle mapping keeps
  the memory until its process lets go of the next block, is short of memory, or leaves the store.
- A SIGKILL leaves nothing: the kernel ends the mapping, and there is no lease.
"""

from __future__ import annotations

import struct
import weakref
from typing import TYPE_CHECKING, Any

from shmarray import memories, roots, warm
from shmarray._format import control
from shmarray._format import header as form
from shmarray._os import endings, flocks, processes, segments, words

if TYPE_CHECKING:
    import os

    from shmarray.membership import Membership
    from shmarray.memories import Memory

MOST = 8
"""Idle mappings of one store: each costs a descriptor."""
_ALWAYS = 4  # files that a process keeps open without asking how many it may
KEPT, GUARD = "kept", "guard"
"""In the cache of a block that is mapped here: what lets its mapping stay; its guard, which keeps the store joined."""
# Two words, each of which is read in one step (`words`).
_look = struct.Struct(f"Q{form.STATE_AT - form.BLOCK_AT - words.WORD}xQ").unpack_from
_forking, _make = memories.forking, tuple.__new__
_pread, _flock, _SHARE = segments.pread, flocks.flock, flocks.TRY_SHARE
_over, _ref = roots.over, weakref.ref
_UNSEEN = roots.ALONE + 1  # a variable
_load, _STORE_AT, _OPEN = words.WORD_FORMAT.unpack_from, control.STATE_AT, control.OPEN


class Marker:
    """The tag of idle mappings of one store."""

    __slots__ = ("home",)

    def __init__(self, member: Membership) -> None:
        """Stand for that store."""
        self.home = weakref.ref(member)


class Leaving:
    """The tag of a mapping of which it is being found out whether it may be idle: says all that the block says."""

    __slots__ = ("block",)

    def __init__(self, block: Any) -> None:
        """Stand for that block."""
        self.block = block

    def __getattr__(self, name: str) -> Any:
        """Answer who has got the mapping from a table before, and its lease with it."""
        return getattr(self.block, name)


class Idle:
    """The idle mappings of one store, by the number of the object, first that which came first."""

    __slots__ = ("__weakref__", "kepts", "limit", "marker")

    def __init__(self, member: Membership) -> None:
        """Begin with none."""
        self.kepts: dict[int, Kept] = {}
        self.marker = Marker(member)
        try:
            self.limit: int = warm.share(member) if member.pool is None else member.pool.limit
        except OSError:
            self.limit = 0  # there is no such directory any more

    def belong_to(self, member: Membership) -> None:
        """Stay mapped for a process that takes part in the store anew."""
        self.marker.home = weakref.ref(member)

    def add(self, kept: Kept) -> None:
        """Enter what is idle from now on; what came first, and is deleted or too much, goes."""
        kepts = self.kepts
        kepts[id(kept.segment)] = kept
        for number in list(kepts):
            one = kepts.get(number)
            if one is None or one is kept:
                continue
            if len(kepts) <= MOST and sum(other.memory.size for other in list(kepts.values())) <= self.limit:
                if not one.memory.links():
                    self.end(number)
                return
            self.end(number)

    def end(self, number: int) -> int:
        """Let a mapping end; returns how many bytes that gives back: those of what was deleted."""
        kept = self.kepts.pop(number, None)
        if kept is None:
            return 0
        there = kept.memory.links()
        kept.memory.close()
        return 0 if there else kept.memory.size

    def trim(self) -> int:
        """Let all mappings end; returns how many bytes that gives back."""
        return sum(self.end(number) for number in list(self.kepts))


_all: weakref.WeakValueDictionary[int, Idle] = weakref.WeakValueDictionary()


class Kept:
    """What lets the mapping of one block stay: the descriptor of its lease, and what is known of the block while it is idle."""

    __slots__ = (
        *("at", "expected", "exposed_at", "facts", "fileno", "kind", "latest"),
        *("memory", "nbytes", "number", "root", "segment", "watch"),
    )

    def __init__(self, memory: Memory, nbytes: int, number: int) -> None:
        """Stand for a block with so many bytes of data, whose lease `memory` has."""
        self.memory, self.nbytes = memory, nbytes
        self.fileno, self.at = memory.fd.fileno(), memory.size - form.SIZE + form.BLOCK_AT
        self.exposed_at = form.exposed_offset(memory.size)
        self.number, self.expected = number.to_bytes(words.WORD, "little"), (number, form.LIVE)
        # While it is idle: the mapping, and what is known of the block; without the membership, so that it joins no store.
        self.segment: segments.Segment | None = None
        self.facts: tuple[Any, ...] = ()
        self.kind: Any = None
        self.root: Any = _no_root
        self.latest = 0
        self.watch: Any = None
        """Of an anonymous block: what asks, when its mapping ends, whether this process was the last; not while it is idle."""

    def dropped(self, watch: roots.Watch) -> None:
        """After a root has ended: let go of the lease if it was the last, and may be let go of. May be repeated."""
        segment, memory = watch.segment, self.memory
        tag = segment.tag
        if memory.state != "live" or type(tag) is Marker:
            return
        block = tag.block if type(tag) is Leaving else tag
        member: Membership = block.member
        if _forking or memory.has_crossed():
            segment.tag = block
            return
        idle: Idle = member.idle or _begun(member)
        # What was deleted, or ended with its store, is let go of in the same way: then its memory goes.
        may_stay = memory.size <= idle.limit and member.is_open() and not _load(segment, self.exposed_at)[0]
        if (may_stay or not memory.links()) and roots.references(watch) <= _UNSEEN:
            segment.tag = Leaving(block)
            memory.hold()  # from here on a fork in another thread leaves the descriptor alone; one before has closed it
            # Who had it from a table before is counted now, who comes later sees the other tag.
            if roots.references(watch) <= _UNSEEN and memory.is_mine():
                self._leave(segment, block, idle)
                return
            memory.state = "live"
        segment.tag = block

    def _leave(self, segment: segments.Segment, block: Any, idle: Idle) -> None:
        """Let go of the lease. Where an exception comes in between, the mapping ends."""
        memory, watch = self.memory, self.watch
        segment.tag = idle.marker
        is_last = False
        if watch is None:
            flocks.unlock(memory.fd)
        else:
            is_last = flocks.let_go(memory.fd)
        # The order matters: whoever removes the block looks at the lease after that.
        links = memory.links()
        if links == 0:
            memory.drop()
            return
        if watch is not None:
            if is_last and links == 1:
                return  # no handle is in flight either: with the mapping the block ends
            watch.block = None
        for what in (KEPT, GUARD):
            block.cache.pop(what, None)
        self.facts, self.kind, self.segment = block[1:], type(block), segment
        memory.state = "idle"
        idle.add(self)
        # Last: a handler of this thread may have forked meanwhile, and given a child the same description; a later fork finds it there.
        if memory.has_crossed():
            idle.end(id(segment))


def _begun(member: Membership) -> Idle:
    idle = Idle(member)
    _all[id(idle)] = idle
    warm.register(idle)
    member.idle = member.idle or idle  # another thread may have been faster
    if member.absence is not None:
        member.absence.idle = member.idle
    return member.idle  # type: ignore[no-any-return]  # the membership does not know what it keeps


def _no_root() -> None:
    return None


def begin(fd: segments.Descriptor, info: os.stat_result, nbytes: int, number: int) -> Kept | None:
    """Before a block is mapped by this descriptor, whose lease it has: let the mapping stay; None if it is not worth that."""
    size = info.st_size
    if size < warm.SMALLEST or (memories.count() >= _ALWAYS and memories.count() >= warm.most() // 2):
        return None
    memory = memories.keep_lease(fd, info)
    return None if memory is None else Kept(memory, nbytes, number)


def root_of(segment: segments.Segment, kept: Kept) -> roots.Root:
    """Give the root of such a block, the same one as long as there is any view of it."""
    root: roots.Root | None = kept.root()
    if root is None:
        root = _over(segment, kept.nbytes, kept)
        kept.root = _ref(root)
    return root


def wake(segment: segments.Segment) -> Kept | None:
    """Begin to look at an idle mapping again; None if it cannot be: then it ends, or another thread has it."""
    marker = segment.tag
    member = marker.home() if type(marker) is Marker else None
    if member is None or member.idle is None:
        return None
    kept: Kept | None = member.idle.kepts.pop(id(segment), None)
    if kept is None:
        return None
    leases, memory, at, watch = member.leases, kept.memory, kept.at, kept.watch
    block: Any = _make(kept.kind, (member, *kept.facts))
    kept.segment, kept.facts = None, ()
    if watch is not None:
        # From here on whoever asks may find a lease, so this process is to ask as well when the mapping ends.
        block.cache[KEPT] = kept
        watch.block = block
    memory.begin_era()
    try:
        if (
            not _forking
            and leases
            and _load(leases[0], _STORE_AT)[0] == _OPEN
            and _pread(kept.fileno, 8, at) == kept.number  # else it is another file's by now, and not to be locked
            and _flock(kept.fileno, _SHARE) is None
            and _look(segment, at) == kept.expected
            and (watch is None or memory.links())
        ):
            memory.state = "live"
            segment.tag = block
            block.cache[KEPT] = kept  # last: until then the mapping ends with an exception, and the lease with it
            return kept
    except OSError:
        pass  # somebody has the exclusive lock; or the descriptor was closed by a fork: this is a child
    memory.close()
    return None


def again(segment: segments.Segment) -> roots.Root | None:
    """Begin to look at an idle mapping again, and give its root; None if it cannot be, or is not idle."""
    kept = wake(segment)
    return None if kept is None else root_of(segment, kept)


def _let_go() -> bool:
    """Let all mappings end, where there is no descriptor or no room for another one; says whether there were any."""
    idles = [idle for idle in endings.living(_all) if idle.kepts]
    for idle in idles:
        idle.trim()
    return bool(idles)


def _forget() -> None:
    """In a forked child: what is idle is the parent's. It is unmapped, and the descriptors, which share the parent's leases, are closed."""
    for idle in endings.living(_all):
        idle.kepts.clear()


processes.after_fork_in_child(_forget)
segments.relieved_by(_let_go)
