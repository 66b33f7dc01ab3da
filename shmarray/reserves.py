"""What one process keeps to use its memory again.

Owns: the lists of what is kept, from which threads and finalizers take; when what was let go of is kept, or waited for; what becomes of the
names of blocks whose memory is kept.
Must not know: whose the memory is, on what proof it is free, how much of it is kept (`warm`, `recycling`).
"""

from __future__ import annotations

import abc
import contextlib
import os
from typing import TYPE_CHECKING, Protocol, TypeVar

from shmarray import memories
from shmarray._format import names
from shmarray._os import segments
from shmarray.memories import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sized(Protocol):
    """Something that takes so many bytes."""

    size: int


S = TypeVar("S", bound=Sized)
_MOST_NAMED = 16


class Stack(list[S]):
    """What is kept, in the order in which it came. Threads, and finalizers in the midst of them, take from it: each one goes to one."""

    __slots__ = ()

    def took(self, one: S) -> bool:
        """Take it out; false if somebody else was faster."""
        try:
            self.remove(one)
        except ValueError:
            return False
        return True

    def take_first(self) -> S | None:
        """Take out what came first; None if there is nothing."""
        first = next(iter(list(self)), None)
        return first if first is not None and self.took(first) else None

    def last_first(self) -> Iterator[S]:
        """Go through what is there now, beginning with what came last."""
        return reversed(list(self))

    def nbytes(self) -> int:
        """How many bytes all of it takes."""
        return sum(one.size for one in list(self))


class Reserve(abc.ABC):
    """Files that one process keeps to use their memory again: those that are free, and those that others have, for which it waits."""

    def __init__(self, uid: int, prefix: str, limit: int) -> None:
        """Keep nothing yet, and at most so many bytes; `prefix` is how the paths of the store's files begin."""
        self._uid, self._prefix, self.limit = uid, prefix, limit
        self._process = os.getpid()
        self._free, self._waiting = Stack[Memory](), Stack[Memory]()
        self._named: dict[str, Memory] = {}
        self._open = True

    def is_mine(self) -> bool:
        """Whether it is this process's, and not that of a parent."""
        return self._process == os.getpid()

    def is_here(self) -> bool:
        """Whether anything can be kept: it was not closed, it is this process's, and no fork is under way."""
        return self._open and self.is_mine() and not memories.forking

    def give_back(self, memory: Memory, path: str, *, anonymous: bool) -> bool:
        """After this process unmapped a live block of that name: keep its memory, or wait for others; false if neither."""
        memory.hold()
        try:
            if not memory.has_crossed() and self.is_here() and self._takes_back(memory, path, anonymous=anonymous):
                return True
        except (OSError, ValueError):
            pass  # the store was swept, or a fork in another thread closed it
        if self.is_mine():
            with contextlib.suppress(OSError):
                memory.drop()
        return False

    def retire(self, memory: Memory, path: str) -> bool:
        """Instead of unlinking the name of a block, move it aside. False if its memory cannot be used again."""
        if memory.is_lost() or not self.is_here():
            return False
        aside = self._aside()
        try:
            segments.replace(path, aside)
        except FileNotFoundError:
            return False  # another thread has closed the store
        self._has_moved(memory, aside)
        if self._named.get(path) is memory:
            del self._named[path]
            memory.state = "moved"
        return True

    def keep_beside(self, memory: Memory, path: str) -> bool:
        """Before a name is moved to another block: give the memory of the one that has it a name of its own. False as `retire`."""
        if not self.is_here() or self._named.pop(path, None) is not memory:
            return False
        aside = self._aside()
        segments.link(path, aside)
        memory.state = "moved"
        self._has_moved(memory, aside)
        return True

    def _has_moved(self, memory: Memory, aside: str) -> None:
        """Note the new name; whoever let go of it, or swept the store, may have looked before that was there."""
        memory.path = aside
        if memory.is_lost() or not self._open:
            memory.path = None
            segments.unlink(aside)

    def moved(self, memory: Memory) -> None:
        """After a named block was marked deleted whose name was moved aside: use its memory when nobody sees it.

        Not before: marking is writing to the file, which could be another block's by then.
        """
        if memory.state == "moved":
            self._append(self._waiting, memory, "waiting")

    def named(self, path: str, identity: tuple[int, int]) -> Memory | None:
        """Give the memory of a named block that this process made and has no view of; `identity` is that of the file of that name."""
        memory = self._named.get(path)
        return memory if memory is not None and memory.identity == identity else None

    def _keep_named(self, memory: Memory, path: str) -> bool:
        """Remember it: should this process replace or delete it, there is its memory. Whoever else does takes nothing from us but that."""
        memory.state = "named"
        before, self._named[path] = self._named.get(path), memory
        if before is not None:
            self._drop_named(before)
        while len(self._named) > _MOST_NAMED or sum(kept.size for kept in list(self._named.values())) > self.limit:
            oldest = next(iter(list(self._named)), "")
            if (kept := self._named.pop(oldest, None)) is not None:
                self._drop_named(kept)
        if not self._open:
            self._forget(path, memory)
        return True

    def _forget(self, path: str, memory: Memory) -> None:
        if self._named.pop(path, None) is memory:
            self._drop_named(memory)

    def _drop_named(self, memory: Memory) -> None:
        memory.drop()

    def _forget_named(self) -> None:
        for path in list(self._named):
            if (memory := self._named.get(path)) is not None:
                self._forget(path, memory)

    def _aside(self) -> str:
        return f"{self._prefix}{names.WARM}{os.urandom(8).hex()}"

    def _ask_again(self) -> None:
        """See whether others still have what is waited for, and let go of what others deleted. Raises nothing."""
        for path in list(self._named):  # keys alone: making tuples may start the collector, and with it `give_back`
            named = self._named.get(path)
            if named is not None and self._has_lost_name(named, path) and self._named.pop(path, None) is named:
                self._others_deleted(named)
        for memory in list(self._waiting):
            if self._waiting.took(memory):
                try:
                    settled = self._keep_or_wait(memory)
                except (OSError, ValueError):
                    settled = False
                if not settled:
                    self._drop(memory)

    @abc.abstractmethod
    def _has_lost_name(self, memory: Memory, path: str) -> bool:
        """Say whether another process has deleted a named block, or given its name to another one."""

    def _others_deleted(self, memory: Memory) -> None:
        """See to the memory of such a block. Raises nothing."""
        self._drop_named(memory)

    @abc.abstractmethod
    def _takes_back(self, memory: Memory, path: str, *, anonymous: bool) -> bool:
        """Keep what this process has unmapped just now, or wait for others; false if it is to be dropped."""

    @abc.abstractmethod
    def _keep_or_wait(self, memory: Memory) -> bool:
        """Keep what nobody sees, wait for what others have; false if neither can be."""

    @abc.abstractmethod
    def _drop(self, memory: Memory) -> None:
        """Let go of what others may still have: if they have not, this process was the last."""

    @abc.abstractmethod
    def _append(self, kept: Stack[Memory], memory: Memory, state: str) -> None:
        """Keep it, within the bound; nothing at all if another thread has closed the store meanwhile."""
