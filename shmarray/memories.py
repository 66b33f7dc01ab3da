"""One file whose memory may be used again, and what a fork does to it.

Owns: the descriptor that keeps the file of such a block open, which lock it has, and this process's own mapping of it.
Must not know: which blocks there are, how much is kept (`warm`).

A mapping that crosses a fork is on one lock with the child: the kernel could not tell whether the child still has it. So what is in use
at a fork is never used again. That must hold even if a signal handler raises in the midst of the hooks, for the fork goes on then.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import functools
import os
import sys
import threading
import weakref
from typing import Any

from shmarray import reclaim
from shmarray._format import header as form
from shmarray._os import endings, flocks, processes, segments

_all: dict[int, weakref.ref[Memory]] = {}
# Forks change these lists by calls into C alone, which no exception of a signal handler can come before.
forking: list[None] = []
"""An entry for each fork under way: until it is over nothing is kept and nothing is used again, for other threads go on."""
# What a memory that has crossed no fork since it was mapped shares with the list.
_era: list[object] = []
_SEASONED = 64  # uses after which a memory is put into large pages, which costs some times what filling it does
_MERGED_IN = 32  # uses in which that is done
LARGE_PAGES = os.environ.get("SHMARRAY_LARGE_PAGES", "") != "0"
"""Whether memory that is used again is put into large pages, where the kernel does so. The environment may say otherwise."""
_UNSEEN = 3  # references to a window: its memory's, a local one, an argument


class Memory:
    """One file that may be used again. `window` is this process's own mapping of it, through which it is filled."""

    __slots__ = (
        *("__weakref__", "_era", "_merged", "_mergeable", "_uses", "fd", "identity"),
        *("maker", "own_path", "path", "pool", "size", "state", "window"),
    )

    def __init__(
        self, fd: segments.Descriptor, size: int, info: os.stat_result | None = None, pool: Any = None
    ) -> None:
        """Begin with the file of a draft, the lease of which `fd` has; `pool` is who keeps it afterwards."""
        info = info or segments.status(fd)
        self.fd = fd
        self.identity = info.st_dev, info.st_ino
        self.size = size
        self.pool = pool
        self.path: str | None = None  # its name, while that is not the block's
        self.own_path: str | None = None  # the name of an anonymous block that is not mapped here any more
        self.window: segments.Segment | None = None
        self._uses = 0
        # Bytes from the beginning on that are in large pages, or cannot be; and how many fill such pages.
        self._merged, self._mergeable = 0, size // segments.LARGE_PAGE * segments.LARGE_PAGE if LARGE_PAGES else 0
        self.begin()
        if segments.has_forked_since(fd):
            self._era = object()  # by a signal handler, before this: a child has it too
        number = id(self)
        _all[number] = weakref.ref(self, endings.once(functools.partial(_close, fd, self.identity, number)))
        segments.keep_open(fd)  # only now: from here on nobody else closes it in a child

    def begin(self) -> None:
        """Before it is mapped by this thread: what crosses a fork from now on does so with the mapping."""
        self.begin_era()
        self.hold()

    def begin_era(self) -> None:
        """Note that no fork came between this moment and now."""
        try:
            self._era = _era[0]
        except IndexError:
            era = object()  # never one that was there before: a fork may have ended it just now
            _era.append(era)
            self._era = era

    def hold(self) -> None:
        """Note that this thread is at work on it: another one that forks does not close it."""
        self.state, self.maker = "making", threading.get_ident()

    def has_crossed(self) -> bool:
        """Whether it cannot be used again, for a fork may have given it to a child."""
        return self._era not in _era

    def is_lost(self) -> bool:
        """Whether that is so while it is in use here; what was unmapped before a fork is not the child's."""
        return self.state == "live" and self.has_crossed()

    def taken(self) -> bool:
        """Begin to use it again; false if that cannot be."""
        self.begin()
        return not forking and not self.is_seen()

    def is_seen(self) -> bool:
        """Take the exclusive lock; true if somebody maps it or has a handle to it, or it was removed."""
        # No lock where a handle is in flight: who loads it, perhaps a signal handler of this thread, would wait for it.
        return self.links() != 1 or not flocks.try_exclusive(self.fd) or segments.status(self.fd).st_nlink != 1

    def is_mine(self) -> bool:
        """Whether the descriptor is still that of the file: programs that make daemons of themselves close all numbers there are."""
        return _leads_to(self.fd, self.identity)

    def open_window(self) -> segments.Segment:
        """Map it for filling; the first time that touches every page, later ones find it mapped."""
        window = self.window
        if window is None:
            window = self.window = segments.map_shared(self.fd, self.size, populate=True)
        self.season(window)
        return window

    def season(self, window: segments.Segment) -> None:
        """Count that it is used again; put a part of what is so again and again into large pages, each time another part."""
        if self._merged >= self._mergeable:
            return
        self._uses += 1
        if self._uses >= _SEASONED:
            pages = self._mergeable // segments.LARGE_PAGE
            part = min(-(-pages // _MERGED_IN) * segments.LARGE_PAGE, self._mergeable - self._merged)
            refused = segments.merge(window, self._merged, part)
            self._merged = self._mergeable if refused == errno.EINVAL else self._merged + part

    def is_unseen(self) -> bool:
        """Whether nobody was told the name of the file, which leads to a mapping without a lease, and there is no view of the window."""
        return not self.is_viewed() and segments.read(self.fd, 8, form.exposed_offset(self.size)) == bytes(8)

    def is_viewed(self) -> bool:
        """Whether there is still a view of the window: who was given one to fill the block may have kept it."""
        return (window := self.window) is not None and sys.getrefcount(window) > _UNSEEN

    def links(self) -> int:
        """How many names the file has; 0 also if the descriptor is another file's by now."""
        try:
            info = segments.status(self.fd)
        except (OSError, ValueError):  # ValueError: closed by a fork in another thread
            return 0
        return info.st_nlink if (info.st_dev, info.st_ino) == self.identity else 0

    def take_lease_again(self) -> bool:
        """Take the lease that was let go of; false if that cannot be: the file has lost its names, or the descriptor is no more."""
        self.begin_era()
        if forking or not self.is_mine() or not flocks.try_share(self.fd) or not self.links():
            return False
        self.state = "live"
        return True

    def leave_to_others(self) -> bool:
        """Let go of the lease of what nobody here looks at; false if that may not be, or nobody else has it, nor a handle to it."""
        if forking or self.has_crossed():
            return False
        self.hold()  # from here on a fork in another thread leaves the descriptor alone; one before has closed it
        if not self.is_mine():
            return False
        is_last = flocks.let_go(self.fd)
        links = self.links()
        if not links or (is_last and links == 1):
            return False
        self.state = "idle"
        # Last: a handler of this thread may have forked meanwhile, and given a child the same description, which it unlocks as well.
        return not self.has_crossed()

    def let_go(self) -> None:
        """Stop keeping it. What is left of it is a block like any other, or nothing."""
        self._era = object()
        self.window = None
        path, self.path = self.path, None
        if path is not None:
            segments.unlink(path)
        self.close()

    def drop(self) -> None:
        """Let go of what is not mapped here any more, or is looked at by nobody: its memory goes too, if it has no name left."""
        mine = not self.has_crossed() and not self.is_viewed()  # else its lock says nothing: a child has the same
        self._era = object()
        self.window = None
        path, self.path = self.path, None
        if path is not None:
            segments.unlink(path)
        if mine and self.is_mine():
            reclaim.give_back(self.fd)
        self.close()

    def close(self) -> None:
        """Close the descriptor; if the number is another file's by now, never."""
        _close(self.fd, self.identity)


def _leads_to(fd: segments.Descriptor, identity: tuple[int, int]) -> bool:
    try:
        info = segments.status(fd)
    except (OSError, ValueError):  # ValueError: closed by a fork in another thread
        return False
    return (info.st_dev, info.st_ino) == identity


def _close(fd: segments.Descriptor, identity: tuple[int, int], number: int = 0) -> None:
    """Close the descriptor of a memory, which may have gone: by an exception, and without having been let go of."""
    _all.pop(number, None)
    if _leads_to(fd, identity):
        fd.close()
    elif not fd.closed:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(fd))  # its destructor would close the number, whosever that is now


def keep_lease(fd: segments.Descriptor, info: os.stat_result) -> Memory | None:
    """Keep a descriptor of a lease, by which it can be let go of and taken again; None if that cannot be: then it ends with the mapping."""
    if forking:
        return None
    try:
        memory = Memory(segments.duplicate(fd), info.st_size, info)
    except OSError:
        return None  # there is no descriptor to spare
    memory.state = "live"
    return memory


def count() -> int:
    """How many such files this process has open."""
    return len(_all)


def _known() -> list[Memory]:
    return [memory for found in list(_all.values()) if (memory := found()) is not None]


def _before_fork() -> None:
    """Close what a child has no use for: its copies would keep the memory as long as it lives.

    What is mapped now will be the child's too, on one lock with this process: it is never used again, also if this is interrupted.
    """
    for memory in _known():
        memory.window = None
        # Looked at after `forking` was lengthened: who is about to give it back has either held it before, or sees that and keeps nothing.
        if memory.state == "live":
            with contextlib.suppress(OSError):  # its name stays, a sweep removes it
                memory.let_go()


def _close_all() -> None:
    """Close, in a child, what is the parent's, but for the draft of this thread, which goes on; at exit, while one can ask whose it is."""
    me = threading.get_ident()
    for memory in _known():
        if memory.state != "making" or memory.maker != me:
            memory.close()


# Before a fork what is registered last runs first, after it what is registered first. While one is under way nothing is kept and nothing
# used again, for other threads go on; and what they have mapped meanwhile is of the era that ends with it.
processes.around_fork(_before_fork, _era.clear)
processes.around_fork(functools.partial(forking.append, None), forking.pop)
processes.after_fork_in_child(forking.clear)
# What the fork of a signal handler came into the midst of goes on in the child too, on one lock with the parent.
processes.after_fork_in_child(_era.clear)
processes.after_fork_in_child(_close_all)
atexit.register(_close_all)
