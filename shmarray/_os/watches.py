"""Being told: that a process has ended, that a file was let go.

Owns: `pidfd` and `inotify`. The kernel reports `IN_CLOSE_WRITE` for a file when the last reference to an open description of
it goes, and a mapping is such a reference: so the end of a lease is an event, whether by unmapping, exit or SIGKILL.
Must not know: which files, which processes.
"""

from __future__ import annotations

import ctypes
import errno
import os

from shmarray._os import processes

_libc = ctypes.CDLL(None, use_errno=True)
_IN_ATTRIB = 0x4
_IN_CLOSE_WRITE = 0x8
_IN_DELETE_SELF = 0x400
_LINKS = _IN_ATTRIB | _IN_DELETE_SELF
_IN_CLOEXEC = os.O_CLOEXEC
_IN_NONBLOCK = os.O_NONBLOCK


def death_of(pid: int, start: int) -> int | None:
    """Open a descriptor that becomes readable when that very process ends; None if it has ended already.

    Raises `OSError` (ENOSYS) where the kernel has no pidfd.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # The descriptor is bound to one process now; if that is another one than meant, the one meant has ended.
    if processes.start_time(pid) != start:
        os.close(fd)
        return None
    return fd


def letting_go(path: str) -> int | None:
    """Open a descriptor that becomes readable when a writer lets go of the file, or a link to it is removed.

    None where the user has no inotify instance left: the caller then has to look from time to time.
    """
    fd = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
    if fd < 0:
        return None
    if _libc.inotify_add_watch(fd, os.fsencode(path), _IN_CLOSE_WRITE | _LINKS) < 0:
        os.close(fd)
        return None
    return int(fd)


def narrow(fd: int, file: int, *, to_links: bool) -> None:
    """Have `fd`, which watches that open file, report only removed links from now on; or again all that it did at first."""
    # By the descriptor, for the file may have no name any more. Where that fails all is reported as before, which wakes up
    # the caller more often.
    path = b"/proc/self/fd/%d" % file
    _libc.inotify_add_watch(fd, path, _LINKS if to_links else _IN_CLOSE_WRITE | _LINKS)


def drain(fd: int) -> None:
    """Forget the events that were reported so far."""
    while True:
        try:
            if not os.read(fd, 1 << 16):
                return
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return
            raise
