"""What one process keeps to use its memory again.

Owns: the lists of what is kept, from which threads and finalizers take; when what was let go of is kept, or waited for.
Must not know: whose the memory is, on what proof it is free, how much of it is kept (`warm`, `recycling`).
"""

from __future__ import annotations

import abc
import contextlib
import os
from typing import TYPE_CHECKING, Protocol, TypeVar

from shmarray import memories
from shmarray.memories import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sized(Protocol):
    """Something that takes so many bytes."""

    size: int


S = TypeVar("S", bound=Sized)


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

    def __init__(self, uid: int, limit: int) -> None:
        """Keep nothing yet, and at most so many bytes."""
        self._uid, self.limit = uid, limit
        self._process = os.getpid()
        self._free, self._waiting = Stack[Memory](), Stack[Memory]()
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

    def _ask_again(self) -> None:
        """See whether others still have what is waited for. Raises nothing."""
        for memory in list(self._waiting):
            if self._waiting.took(memory):
                try:
                    settled = self._keep_or_wait(memory)
                except (OSError, ValueError):
                    settled = False
                if not settled:
                    self._drop(memory)

    @abc.abstractmethod
    def _takes_back(self, memory: Memory, path: str, *, anonymous: bool) -> bool:
        """Keep what this process has unmapped just now, or wait for others; false if it is to be dropped."""

    @abc.abstractmethod
    def _keep_or_wait(self, memory: Memory) -> bool:
        """Keep what nobody sees, wait for what others have; false if neither can be."""

    @abc.abstractmethod
    def _drop(self, memory: Memory) -> None:
        """Let go of what others may still have: if they have not, this process was the last."""
