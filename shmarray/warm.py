"""Memory kept warm: files of freed blocks, which the owner of a store uses again.

What other processes keep is the subject of `recycling`.

The first touch of a page of fresh shared memory costs ten times what copying it costs. So what the owner frees it keeps, within bounds,
and hands out again: the file, with all its pages, gets a new header and a new name.

Owns: which memory is kept, and the proof that nobody can see it any more. The states of one file:

    making   a draft is being filled          no name, `t.`, or `w.`
    live     its block is in use here         the block's; `w.` once the block was deleted while views of it were left
    resting  mapped here, nobody else's ever  the block's: see `resting`
    named    unmapped here, its name keeps it the block's
    waiting  unmapped here, others have it    `w.`, or that of an anonymous block
    free     nobody can see it                `w.`

Free it becomes only on the kernel's word: this process has unmapped it, gets the exclusive lock on it, and it has one link, so nobody else
maps it and no handle is in flight. Where others still have it, it waits for them under this process's lease, and is asked about again
when the next block is made. Who opened it before and takes the lease only now finds a header that says "deleted", or later another
block's number, and lets go. What is in use at a fork is never used again (`memories`).
What fails any of this is left to `reaper` like any other block. A SIGKILL anywhere leaves a file that nobody holds: a sweep removes it.
Must not know: NumPy, what is in a block, how a block gets its header.

`give_back` runs in finalizers, at any moment, in any thread: system calls only, it never raises and waits for nobody.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Protocol

from shmarray import memories, reaper, reclaim, reserves
from shmarray._os import endings, flocks, limits, processes, segments
from shmarray.reserves import Sized, Stack

if TYPE_CHECKING:
    from shmarray.membership import Membership
    from shmarray.memories import Memory

_SETTING = os.environ.get("SHMARRAY_SMALLEST_WARM", "")
SMALLEST = int(_SETTING) if _SETTING.isdecimal() else 1 << 20
"""Bytes below which a file is not kept: then its pages are not what it costs. The environment may say otherwise."""
MOST = 64
"""Files in use and free together, for each costs a descriptor."""
_MOST_WAITING = MOST // 2  # handles that nobody will load must not take all the places
_MOST_RESTING = MOST // 4  # so that one look through them is short
_pools: weakref.WeakValueDictionary[int, Trimmed] = weakref.WeakValueDictionary()
_SLACK = 4  # a file is used again for what leaves at most a fifth of it unused
_SHARE_OF_MEMORY, _SHARE_OF_CAPACITY, _GREATEST = 8, 4, 2 << 30


class Trimmed(Protocol):
    """Something that keeps memory and gives it back."""

    def trim(self) -> int:
        """Give it back; returns how many bytes."""


class Pool(reserves.Reserve):
    """The memory that the owner of one store keeps: at most `limit` bytes of it free at a time."""

    def __init__(self, member: Membership, limit: int | None) -> None:
        """Keep up to `limit` bytes; None: a share of the memory there is, or of the store's capacity."""
        super().__init__(member.key.uid, member.block_prefix, share(member) if limit is None else limit)
        self.resting = Stack[Sized]()
        """Blocks that rest; what is dropped from the list ends as any other block."""
        register(self)

    def takes(self, size: int) -> bool:
        """Say whether a block of that size is to be one whose memory can be used again."""
        return SMALLEST <= size <= self.limit and self.is_here()

    def has_room(self) -> bool:
        """Say whether one file more can be kept; what was freed first, and was of no use just now, makes room for it."""
        if memories.count() >= most() and not self._drop_first(self._free) and self.resting.take_first():
            self._drop_first(self._free)
        return memories.count() < most()

    def take(self, size: int) -> Memory | None:
        """Give the memory freed last that fits, exclusively locked: the proof that nobody sees it. None if there is none."""
        if not self.is_here():
            return None
        self.settle()
        for rest in self.resting.last_first():
            if fits(size, rest.size) and self.resting.took(rest):
                del rest  # what was of another kind: it is free now, or gone
                break
        for memory in self._free.last_first():
            if fits(size, memory.size) and self._free.took(memory):
                if memory.taken():
                    return memory
                memory.drop()
        return None

    def adopt(self, fd: segments.Descriptor, size: int) -> Memory:
        """Begin with the file of a draft."""
        return memories.Memory(fd, size, pool=self)

    def rest(self, block: Sized) -> None:
        """Keep a block as it is, within the bounds. At any moment; never raises."""
        resting = self.resting
        resting.append(block)
        if len(resting) > 1 or self._free or self._waiting or not self._open:
            if len(resting) > _MOST_RESTING:
                resting.take_first()
            self._shrink(self.limit if self._open else 0)

    def wake(self) -> None:
        """Let go of all blocks that rest."""
        while self.resting.take_first() is not None:
            pass

    def _takes_back(self, memory: Memory, path: str, *, anonymous: bool) -> bool:
        """Keep the memory, or the lease: of an anonymous block until others have gone, and of a named one until the name goes."""
        if memory.path is None and not anonymous:
            return self._keep_named(memory, path)
        memory.own_path = path if memory.path is None else None
        return self._keep_or_wait(memory)

    def _has_lost_name(self, memory: Memory, path: str) -> bool:  # noqa: ARG002  who deletes it leaves nothing to us
        return not memory.links()

    def _keep_or_wait(self, memory: Memory) -> bool:
        return self._wait(memory) if memory.is_seen() else self._keep(memory)

    def _wait(self, memory: Memory) -> bool:
        """Hold the lease, which the question whether somebody sees it may have cost, while others have the block."""
        if not memory.is_mine() or not flocks.try_share(memory.fd) or segments.status(memory.fd).st_nlink == 0:
            return False
        self._append(self._waiting, memory, "waiting")
        return True

    def _append(self, kept: Stack[Memory], memory: Memory, state: str) -> None:
        """Keep it, within the bound; nothing at all if another thread has closed the store meanwhile."""
        memory.state = state
        kept.append(memory)
        self._shrink(self.limit if self._open else 0)

    def settle(self) -> None:
        """Ask again about what others had when this process let go of it, and let go of what others deleted. Raises nothing."""
        if not self.is_mine():
            return
        self._ask_again()

    def _drop(self, memory: Memory) -> None:
        memory.drop()
        if memory.own_path is not None:
            reaper.last_one_out(memory.own_path, self._uid)

    def _keep(self, memory: Memory) -> bool:
        """Keep what nobody else sees, exclusively locked."""
        path = memory.own_path
        if not memory.is_unseen():
            return False
        if memory.path is None and (path is None or not self.retire(memory, path)):
            return False
        memory.own_path = None
        # Before the lease is shared again: who opened it as the block it was must find that out.
        reclaim.mark_deleted(memory.fd, memory.size)
        if not flocks.try_share(memory.fd) or segments.status(memory.fd).st_nlink != 1:
            return False  # a janitor came between
        self._append(self._free, memory, "free")
        return True

    def trim(self) -> int:
        """Give all free memory back to the system; returns how many bytes. In a forked child there is none: it is the parent's."""
        if not self.is_mine():
            return 0
        self.settle()
        self.wake()
        self._forget_named()
        return self._shrink(0)

    def close(self) -> None:
        """Keep nothing any more."""
        self._open = False
        self.trim()

    def _shrink(self, limit: int) -> int:
        """Let go of what was freed first, then of what others have, until the rest is within the limit; returns what was free."""
        given = 0
        while len(self._waiting) > _MOST_WAITING:
            self._drop_first(self._waiting)
        while self._free.nbytes() + self._waiting.nbytes() + self.resting.nbytes() > limit:
            dropped = self._drop_first(self._free)
            given += dropped
            if not dropped and not self._drop_first(self._waiting):
                self.resting.take_first()
        return given

    def _drop_first(self, kept: Stack[Memory]) -> int:
        """Let go of what is first in the list; returns its bytes."""
        memory = kept.take_first()
        if memory is None:
            return 0
        self._drop(memory)
        return memory.size


def most() -> int:
    """How many files this process may keep open, with those in use that it may keep then."""
    return min(MOST, limits.descriptors()[0] // 4)


def register(pool: Trimmed) -> None:
    """Have something else that keeps memory give it back when there is no more."""
    _pools[id(pool)] = pool


def trim_all() -> int:
    """Give back what this process keeps for any of its stores; returns how many bytes."""
    return sum(pool.trim() for pool in endings.living(_pools))


def fits(size: int, kept: int) -> bool:
    """Say whether a file of so many bytes is used again for one of `size`."""
    return size <= kept <= size + size // _SLACK


def share(member: Membership) -> int:
    """How much is kept where the user does not say."""
    share = limits.space(member.control.directory).total // _SHARE_OF_MEMORY
    if member.control.capacity is not None:
        share = min(share, member.control.capacity // _SHARE_OF_CAPACITY)
    return min(share, _GREATEST)


def _wake_all() -> None:
    """Around a fork: what rests is mapped, and would be the child's too. So it goes to what is free, of which the child has nothing.

    In the child: what rests nevertheless is the parent's.
    """
    for pool in endings.living(_pools):
        if isinstance(pool, Pool):
            pool.wake()


# Registered after the hooks of `memories`, so run before them: what is to keep memory must find that no fork is under way yet.
processes.around_fork(_wake_all, list)
processes.after_fork_in_child(_wake_all)
