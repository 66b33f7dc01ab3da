"""Memory kept warm by processes that are not the owner of their store: a worker whose results others read and drop uses theirs again.

The owner of a store keeps what it frees under a lease, as long as the store is open (`warm`). Another process may well be there longer, and
nobody could take such a lease from it. So it keeps large blocks that it has made by a *mark* alone: a lock of another kind, on one byte of
the file, which the kernel drops with the process. Who is the last to let go of such a block, if that is anonymous, or deletes or
replaces one that has a name, and sees the mark, moves the name aside and leaves the file to who has that (`reaper`, `reclaim`); who closes
the store, or finds no more memory, removes it all the same, and the memory with it, for nobody has the lease.

Owns: which memory this process keeps so, and how much; when it is let go of: with its part in the store, or, if it may come back to that,
when it is not to come back any more (`absences`).
Must not know: NumPy, what is in a block, how a block gets its header.

    named    unmapped here, its name keeps it the block's; when another process has deleted it, `w.INODE`
    waiting  unmapped here, others have it    `a.ID`, a handle's, or `w.ID` when the last one has gone; or one of `w.`
    free     nobody can see it                `w.`

Free it becomes on the proof that `warm` asks for. A SIGKILL anywhere: the mark goes, and a sweep removes the file.
`give_back` runs in finalizers, at any moment, in any thread: system calls only, it never raises and waits for nobody.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from typing import TYPE_CHECKING

from shmarray import exhaustion, memories, reaper, reclaim, reserves, warm
from shmarray._format import header as form
from shmarray._format import names
from shmarray._os import endings, flocks, segments

if TYPE_CHECKING:
    from shmarray.membership import Membership
    from shmarray.memories import Memory
    from shmarray.reserves import Stack
    from shmarray.warm import Pool

_IS_UP = True  # first of the names that the interpreter's end takes away: from then on the kernel sees to what ends
_MOST_WAITING = warm.MOST // 2
_SELDOM = 20  # of the time, what part is spent on counting


class Recycler(reserves.Reserve):
    """What one process keeps: files `w.` of at most `limit` bytes, together with those of all other processes of the store."""

    def __init__(self, member: Membership, limit: int) -> None:
        """Keep nothing yet."""
        super().__init__(member.key.uid, member.block_prefix, limit)
        self._directory, self._entry = member.control.directory, member.key.prefix
        # Bytes kept here when all was counted last; when, at the latest, it is counted again.
        self._counted, self._count_at = 0, 0.0
        warm.register(self)

    def takes(self, size: int) -> bool:
        """Say whether a block of that size is to be one whose memory can be used again."""
        return warm.SMALLEST <= size <= self.limit and self.is_here()

    def has_room(self) -> bool:
        """Say whether one file more can be kept; what was freed first makes room for it."""
        if memories.count() >= warm.most() and (first := self._free.take_first()) is not None:
            self._drop(first)
        return memories.count() < warm.most()

    def adopt(self, fd: segments.Descriptor, size: int) -> Memory:
        """Begin with the file of a draft: the mark that it gets says that its memory is to be used again."""
        flocks.mark(fd, form.KEEPER_MARK)
        return memories.Memory(fd, size, pool=self)

    def take(self, size: int) -> Memory | None:
        """Give the memory freed last that fits, exclusively locked: the proof that nobody sees it. None if there is none."""
        if not self.is_here():
            return None
        self.settle()
        for memory in self._free.last_first():
            if warm.fits(size, memory.size) and self._free.took(memory):
                if memory.taken():
                    return memory
                if memory.links() == 1:
                    self._append(self._free, memory, "free")  # somebody looks at it just now: a janitor
                else:
                    memory.drop()
        return None

    def _takes_back(self, memory: Memory, path: str, *, anonymous: bool) -> bool:
        """Keep it without a lease: of an anonymous block until others have gone, of a named one until the name goes."""
        if memory.is_viewed():
            return False
        if memory.path is None and not anonymous:
            if not memory.is_mine():
                return False
            flocks.unlock(memory.fd)
            if not self._has_lost_name(memory, path):
                return self._keep_named(memory, path)
            self._others_deleted(memory)
            return True
        memory.own_path = path if memory.path is None else None
        return self._keep_or_wait(memory)

    def _keep_or_wait(self, memory: Memory) -> bool:
        if not memory.is_seen():
            return self._keep(memory)
        # Without a lease: who lets go of it last finds the mark. That may have been before this, while the lease was there still.
        if not memory.is_mine():
            return False
        flocks.unlock(memory.fd)
        if not memory.links():
            return False
        self._append(self._waiting, memory, "waiting")
        return True

    def _has_lost_name(self, memory: Memory, path: str) -> bool:
        try:
            info = segments.status_of(path)
        except FileNotFoundError:
            return True
        return (info.st_dev, info.st_ino) != memory.identity

    def _others_deleted(self, memory: Memory) -> None:
        """Wait for those who still have it, if who deleted it has seen the mark, and moved it aside."""
        aside = self._aside_of_named(memory)
        if self._has_lost_name(memory, aside):
            memory.drop()
        else:
            memory.path = aside
            self._append(self._waiting, memory, "waiting")

    def _aside_of_named(self, memory: Memory) -> str:
        return names.aside_of_file(self._prefix, memory.identity[1])

    def _drop_named(self, memory: Memory) -> None:
        memory.drop()
        reaper.last_one_out(
            self._aside_of_named(memory), self._uid
        )  # who deletes it may have seen the mark until just now

    def _keep(self, memory: Memory) -> bool:
        """Keep what nobody sees, and is exclusively locked."""
        if memory.own_path is not None:
            if not reclaim.put_aside(memory.own_path, memory.fd):  # whoever was the last has done it, or has begun to
                reclaim.mark_deleted(memory.fd, memory.size)
            memory.path, memory.own_path = names.aside_of(memory.own_path), None
        elif memory.state == "waiting":
            reclaim.mark_deleted(memory.fd, memory.size)  # who moved it aside may have died before
        if not memory.is_unseen():
            return False
        flocks.unlock(memory.fd)
        if memory.links() != 1:
            return False  # a janitor came between
        self._append(self._free, memory, "free")
        return True

    def _append(self, kept: Stack[Memory], memory: Memory, state: str) -> None:
        memory.state = state
        kept.append(memory)
        while len(self._waiting) > _MOST_WAITING and (first := self._waiting.take_first()) is not None:
            self._drop(first)
        if not self._open:
            self._shrink(0)
        elif state == "free" and (self._free.nbytes() > self._counted or time.monotonic() >= self._count_at):
            self._shrink(self.limit)

    def _shrink(self, limit: int) -> None:
        """Let go of what was freed first until what all keep is within the limit.

        Counting looks at every name in the directory. So it is done again when this process keeps more than it did at the last time, or
        when that is some time ago, measured by what it cost: meanwhile others may keep more than is left.
        """
        began = time.monotonic()
        while self._free and exhaustion.used(self._directory, self._entry + names.WARM) > limit:
            first = self._free.take_first()
            if first is not None:
                self._drop(first)
        self._counted, ended = self._free.nbytes(), time.monotonic()
        self._count_at = ended + _SELDOM * (ended - began)

    def _drop(self, memory: Memory) -> None:
        memory.drop()
        for path in (memory.own_path, memory.own_path and names.aside_of(memory.own_path)):
            if path is not None:  # whoever was the last may have moved it aside, or be about to
                reaper.last_one_out(path, self._uid)

    def settle(self) -> None:
        """Ask again about what others had when this process let go of it. Raises nothing."""
        if self.is_mine():
            self._ask_again()

    def trim(self) -> int:
        """Give all of it back to the system; returns how many bytes. In a forked child there is none: it is the parent's."""
        if not (_IS_UP and self.is_mine()):
            return 0
        self.settle()
        self._forget_named()
        given = 0
        for kept in (self._free, self._waiting):
            while (first := kept.take_first()) is not None:
                given += first.size if kept is self._free else 0
                self._drop(first)
        return given

    def close(self) -> None:
        """Keep nothing any more."""
        self._open = False
        self.trim()


class _End(weakref.ref["Membership"]):
    """The end of a part in a store, noted by a call into C and then seen to: nothing of it is kept any more."""

    __slots__ = ("recycler", "then")

    recycler: Recycler
    then: weakref.ref[Membership]


_ends: dict[int, _End] = {}
_ended: deque[weakref.ref[Membership]] = deque()


def settle() -> None:
    """See to all parts that have ended. At any moment, in any thread: never raises, never waits."""
    if _IS_UP:
        endings.drain(_ended, _close)


_callbacks = endings.Callbacks(settle)


def _close(end: weakref.ref[Membership]) -> None:
    _ends.pop(id(end), None)
    if isinstance(end, _End):
        end.recycler.close()


def pool_of(member: Membership, size: int) -> Pool | Recycler | None:
    """Give what keeps the memory of a block of that size after this process has made it and let go of it; None if nothing does."""
    if size < warm.SMALLEST:
        return None
    pool: Pool | Recycler = member.pool if member.is_owner else _begun(member)
    return pool if pool.takes(size) else None


def reserve_of(member: Membership) -> reserves.Reserve | None:
    """Give what keeps memory of blocks that this process has made, if anything does."""
    if member.is_owner:
        return member.pool  # type: ignore[no-any-return]  # the membership does not know what it keeps
    absence = member.absence
    recycler: Recycler | None = member.recycler or (None if absence is None else absence.recycler)
    return None if recycler is None or not recycler.is_mine() else recycler


def set_aside(member: Membership, fd: segments.Descriptor, path: str, *, beside: bool = False) -> Memory | str | None:
    """Before the block of a file is deleted: move its name aside, if its memory is kept; with `beside`, give it another one besides.

    Gives that memory, if this process keeps it; the new name, if another one does; None if nothing was done. The caller has entered the
    critical section of names, marks the block deleted, and says so (`deleted`).
    """
    info = segments.status(fd)
    reserve = reserve_of(member)
    memory = None if reserve is None else reserve.named(path, (info.st_dev, info.st_ino))
    if reserve is not None and memory is not None:
        return memory if (reserve.keep_beside if beside else reserve.retire)(memory, path) else None
    aside = names.aside_of_file(member.block_prefix, info.st_ino)
    return aside if reclaim.leave_to_keeper(path, fd, aside, beside=beside) else None


def deleted(fd: segments.Descriptor, kept: Memory | str | None) -> None:
    """After that block was marked deleted: let its memory be used again, or give it back."""
    if kept is None:
        reclaim.give_back(fd)
    elif isinstance(kept, str):
        reclaim.left_to_keeper(fd, kept)
    else:
        kept.pool.moved(kept)


def _begun(member: Membership) -> Recycler:
    recycler: Recycler | None = member.recycler
    if recycler is None or not recycler.is_mine():
        settle()
        absence = member.absence
        recycler = None if absence is None else absence.recycler
        if recycler is None or not recycler.is_mine():
            recycler = _new(member)
        if absence is not None:
            absence.recycler = recycler  # which closes it, when this process is not to come back any more
        member.recycler = recycler
    return recycler


def _new(member: Membership) -> Recycler:
    try:
        limit = warm.share(member) if member.control.warm is None else member.control.warm
    except OSError:
        limit = 0  # there is no such directory any more
    recycler = Recycler(member, limit)
    if member.absence is None:
        # What is registered last is called first: a call into C, which no signal handler's exception can come before.
        then = weakref.ref(member, _callbacks.give())
        end = _End(member, _ended.append)
        end.then, end.recycler = then, recycler
        _ends[id(end)] = end
    return recycler
