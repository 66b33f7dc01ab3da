"""Memory kept warm: files of freed blocks, which the owner of a store uses again.

The first touch of a page of fresh shared memory costs ten times what copying it costs. So what the owner frees it keeps, within bounds,
and hands out again: the file, with all its pages, gets a new header and a new name.

Owns: which memory is kept, and the proof that nobody can see it any more. The states of one file:

    making   a draft is being filled          no name, `t.`, or `w.`
    live     its block is in use here         the block's; `w.` once the block was deleted while views of it were left
    waiting  unmapped here, others have it    the same
    free     nobody can see it                `w.`

Free it becomes only on the kernel's word: this process has unmapped it, gets the exclusive lock on it, and it has one link, so nobody else
maps it and no handle is in flight. Where others still have it, it waits for them under this process's lease, and is asked about again
when the next block is made. Who opened it before and takes the lease only now finds a header that says "deleted", or later another
block's number, and lets go. A mapping that crosses a fork shares this process's lock, so what is in use at a fork is never used again.
What fails any of this is left to `reaper` like any other block. A SIGKILL anywhere leaves a file that nobody holds: a sweep removes it.
Must not know: NumPy, what is in a block, how a block gets its header.

`give_back` runs in finalizers, at any moment, in any thread: system calls only, it never raises and waits for nobody.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

from shmarray import reaper
from shmarray._format import header as form
from shmarray._format import names
from shmarray._os import flocks, limits, processes, segments

if TYPE_CHECKING:
    from shmarray.membership import Membership

_SETTING = os.environ.get("SHMARRAY_SMALLEST_WARM", "")
SMALLEST = int(_SETTING) if _SETTING.isdecimal() else 1 << 20
"""Bytes below which a file is not kept: then its pages are not what it costs. The environment may say otherwise."""
MOST = 64
"""Files in use and free together, for each costs a descriptor."""
_SLACK = 4  # a file is used again for what leaves at most a fifth of it unused
_SHARE_OF_MEMORY, _SHARE_OF_CAPACITY, _GREATEST = 8, 4, 2 << 30

_all: dict[int, weakref.ref[Memory]] = {}
_forking = [0]
_lost: list[segments.Descriptor] = []


class Memory:
    """One file that may be used again. `window` is this process's own mapping of it, through which it is filled."""

    __slots__ = ("__weakref__", "crossed", "fd", "identity", "maker", "own_path", "path", "size", "state", "window")

    def __init__(self, fd: segments.Descriptor, size: int) -> None:
        """Begin with the file of a draft, the lease of which `fd` has."""
        info = segments.status(fd)
        self.fd = fd
        self.identity = info.st_dev, info.st_ino
        self.size = size
        self.path: str | None = None  # its name, while that is not the block's
        self.own_path: str | None = None  # the name of an anonymous block that is not mapped here any more
        self.window: segments.Segment | None = None
        self.crossed = False  # a fork may have given it to a child
        segments.keep_open(fd)
        self.make()
        number = id(self)
        _all[number] = weakref.ref(self, lambda _: _all.pop(number, None))
        self._look_out()

    def make(self) -> None:
        """Note that this thread is making a block of it."""
        self.state, self.maker = "making", threading.get_ident()

    def _look_out(self) -> None:
        """After it can be seen by `_before_fork`: the flag is set before that looks, so one of the two sees the other."""
        if _forking[0]:
            self.crossed = True

    def taken(self) -> bool:
        """Begin to use it again; false if that cannot be."""
        self.make()
        self._look_out()
        return not self.crossed and not self.is_seen()

    def is_seen(self) -> bool:
        """Take the exclusive lock; true if somebody maps it or has a handle to it, or it was removed."""
        return not self.is_mine() or not flocks.try_exclusive(self.fd) or segments.status(self.fd).st_nlink != 1

    def is_mine(self) -> bool:
        """Whether the descriptor is still that of the file: programs that make daemons of themselves close all numbers there are."""
        try:
            info = segments.status(self.fd)
        except (OSError, ValueError):  # ValueError: closed by a fork in another thread
            return False
        return (info.st_dev, info.st_ino) == self.identity

    def open_window(self) -> segments.Segment:
        """Map it for filling; the first time that touches every page, later ones find it mapped."""
        window = self.window
        if window is None:
            window = self.window = segments.map_shared(self.fd, self.size, populate=True)
        return window

    def let_go(self) -> None:
        """Stop keeping it. What is left of it is a block like any other, or nothing."""
        self.crossed = True
        self.window = None
        path, self.path = self.path, None
        if path is not None:
            segments.unlink(path)
        self.close()

    def close(self) -> None:
        """Close the descriptor; if the number is another file's by now, never."""
        if self.is_mine():
            self.fd.close()
        elif not self.fd.closed:
            _lost.append(self.fd)


class Pool:
    """The memory that the owner of one store keeps: at most `limit` bytes of it free at a time."""

    def __init__(self, member: Membership, limit: int | None) -> None:
        """Keep up to `limit` bytes; None: a share of the memory there is, or of the store's capacity."""
        self._prefix = member.block_prefix
        self._owner = os.getpid()
        self._free: list[Memory] = []
        self._waiting: list[Memory] = []
        self._uid = member.key.uid
        self._open = True
        self.limit = _share(member) if limit is None else limit

    def _is_here(self) -> bool:
        return self._open and self._owner == os.getpid() and not _forking[0]

    def takes(self, size: int) -> bool:
        """Say whether a block of that size is to be one whose memory can be used again."""
        return SMALLEST <= size <= self.limit and len(_all) < MOST and self._is_here()

    def take(self, size: int) -> Memory | None:
        """Give the memory freed last that fits, exclusively locked: the proof that nobody sees it. None if there is none."""
        if not self._is_here():
            return None
        self.settle()
        for memory in reversed(list(self._free)):
            if size <= memory.size <= size + size // _SLACK and _remove(self._free, memory):
                if memory.taken():
                    return memory
                memory.let_go()
        return None

    def retire(self, memory: Memory, path: str) -> bool:
        """Instead of unlinking the name of a live block of this process, move it aside. False if it cannot be used again."""
        if memory.crossed or not self._is_here():
            return False
        aside = f"{self._prefix}{names.WARM}{os.urandom(8).hex()}"
        segments.replace(path, aside)
        memory.path = aside
        return True

    def give_back(self, memory: Memory, path: str | None) -> bool:
        """After this process unmapped a live block: keep its memory, or its lease until the others have gone; false if neither.

        `path` is the name of an anonymous block; None for a named one, of which only what was retired can be kept.
        """
        memory.own_path = path
        try:
            if (memory.path or path) and not memory.crossed and self._is_here() and self._keep_or_wait(memory):
                return True
            if self._owner == os.getpid():
                memory.let_go()
        except (OSError, ValueError):
            return False  # the store was swept, or a fork in another thread closed it
        return False

    def _keep_or_wait(self, memory: Memory) -> bool:
        return self._wait(memory) if memory.is_seen() else self._keep(memory)

    def _wait(self, memory: Memory) -> bool:
        """Hold the lease, which the question whether somebody sees it may have cost, while others have the block."""
        if not memory.is_mine() or not flocks.try_share(memory.fd) or segments.status(memory.fd).st_nlink == 0:
            return False
        memory.state = "waiting"
        self._waiting.append(memory)
        self._shrink(self.limit)
        return True

    def settle(self) -> None:
        """Ask again about what others had when this process let go of it. Raises nothing."""
        for memory in list(self._waiting):
            if _remove(self._waiting, memory):
                try:
                    settled = not memory.crossed and self._keep_or_wait(memory)
                except (OSError, ValueError):
                    settled = False
                if not settled:
                    self._drop(memory)

    def _drop(self, memory: Memory) -> None:
        """Let go of what others may still have: if they have not, this process was the last."""
        memory.let_go()
        if memory.own_path is not None:
            reaper.last_one_out(memory.own_path, self._uid)

    def _keep(self, memory: Memory) -> bool:
        """Keep what nobody else sees, exclusively locked."""
        path = memory.own_path
        if memory.path is None and (path is None or not self.retire(memory, path)):
            return False
        memory.own_path = None
        # Before the lease is shared again: who opened it as the block it was must find that out.
        segments.write(memory.fd, form.DELETED.to_bytes(8, "little"), form.state_offset(memory.size))
        if not flocks.try_share(memory.fd) or segments.status(memory.fd).st_nlink != 1:
            return False  # a janitor came between
        memory.state = "free"
        self._free.append(memory)
        self._shrink(self.limit)
        if not self._open:
            self.trim()  # closed meanwhile
        return True

    def free(self) -> int:
        """How many bytes are kept and free."""
        return sum(memory.size for memory in list(self._free))

    def trim(self) -> int:
        """Give all free memory back to the system; returns how many bytes."""
        self.settle()
        return self._shrink(0)

    def close(self) -> None:
        """Keep nothing any more."""
        self._open = False
        if self._owner == os.getpid():
            self.trim()

    def _shrink(self, limit: int) -> int:
        """Let go of what was freed first, then of what others have, until the rest is within the limit; returns what was free."""
        given = 0
        while self.free() + sum(memory.size for memory in list(self._waiting)) > limit:
            for kept in (self._free, self._waiting):
                memory = next(iter(list(kept)), None)
                if memory is not None and _remove(kept, memory):
                    given += memory.size if kept is self._free else 0
                    self._drop(memory)
                    break
        return given


def _remove(kept: list[Memory], memory: Memory) -> bool:
    """Take it out of the list; false if another thread, or a finalizer in this one, was faster."""
    try:
        kept.remove(memory)
    except ValueError:
        return False
    return True


def _share(member: Membership) -> int:
    """How much is kept where the user does not say."""
    share = limits.space(member.control.directory).total // _SHARE_OF_MEMORY
    if member.control.capacity is not None:
        share = min(share, member.control.capacity // _SHARE_OF_CAPACITY)
    return min(share, _GREATEST)


def _known() -> list[Memory]:
    return [memory for found in list(_all.values()) if (memory := found()) is not None]


def _before_fork() -> None:
    """What is mapped now will be the child's too, on one lock with this process: it is never used again.

    Windows are closed: a child's copy of one would keep the memory as long as the child lives. Until the fork is over nothing is kept
    and nothing is used again, for other threads go on until then.
    """
    _forking[0] += 1
    for memory in _known():
        memory.window = None
        if memory.state in ("making", "live"):
            memory.crossed = True
        if memory.state == "live":
            try:
                memory.let_go()
            except OSError:
                continue  # its name stays, a sweep removes it


def _after_in_parent() -> None:
    _forking[0] -= 1


def _after_in_child() -> None:
    """Close what is kept, which is the parent's: all but the draft of the thread that forked, which goes on here."""
    _forking[0] = 0
    me = threading.get_ident()
    for memory in _known():
        if memory.state != "making" or memory.maker != me:
            memory.close()


processes.around_fork(_before_fork, _after_in_parent)
processes.after_fork_in_child(_after_in_child)
