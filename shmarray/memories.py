"""One file whose memory may be used again, and what a fork does to it.

Owns: the descriptor that keeps the file of such a block open, which lock it has, and this process's own mapping of it.
Must not know: which blocks there are, how much is kept (`warm`).

A mapping that crosses a fork is on one lock with the child: the kernel could not tell whether the child still has it. So what is in use
at a fork is never used again.
"""

from __future__ import annotations

import threading
import weakref

from shmarray._os import flocks, processes, segments

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

    def is_there(self) -> bool:
        """Whether the file still has a name."""
        try:
            return self.is_mine() and segments.status(self.fd).st_nlink > 0
        except (OSError, ValueError):
            return False

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


def count() -> int:
    """How many such files this process has open."""
    return len(_all)


def is_forking() -> bool:
    """Whether a fork is under way: until it is over nothing is kept and nothing is used again, for other threads go on."""
    return _forking[0] > 0


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
