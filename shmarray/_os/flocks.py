"""Kernel locks that a mapping keeps and the kernel drops.

Owns: two kinds of lock on a file. A *lease* is `flock(LOCK_SH)` on a fresh open file description that is then mapped: the
kernel keeps it exactly as long as the mapping, through exit and SIGKILL, with no descriptor held. A *mark* is an open
file description lock on one byte, also kept by a mapping: it says who a particular party is (the owner, the guardian) and
serialises short critical sections. The two kinds do not see each other.
Must not know: which files exist and why.

Never unlock what a fork may have shared: the description is then the child's too, and an unlock would drop the lock of both. Such locks end
by closing and unmapping alone.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections import deque
from typing import Protocol


class HasFileno(Protocol):
    """An open file, whoever owns it."""

    def fileno(self) -> int:
        """Number of its descriptor."""


flock, TRY_SHARE = fcntl.flock, fcntl.LOCK_SH | fcntl.LOCK_NB
"""For those who cannot afford a call: `flock(number, TRY_SHARE)` is `try_share`, but for its error."""
_to_the_end = deque[None](maxlen=0).extend
_FLOCK = struct.Struct("hhqqi4x")
_FIRST_MARK = 1 << 40  # beyond the end of every file of ours; locks may lie there
PATIENCE = 10.0
"""Seconds to wait for a janitor's exclusive lock; it holds one for microseconds, unless it was stopped."""


def share(fd: HasFileno) -> None:
    """Take the lease. Waits while a janitor looks at the file; raises `TimeoutError` after `PATIENCE` seconds."""
    # flock has no timed wait, so this asks again, at growing distance. The first try succeeds unless a janitor is there.
    pause, deadline = 20e-6, None
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            now = time.monotonic()
            if deadline is None:
                deadline = now + PATIENCE
            elif now > deadline:
                message = f"a process has held the exclusive lock of descriptor {fd.fileno()} for {PATIENCE:.0f} s; is it stopped?"
                raise TimeoutError(message) from None
            time.sleep(pause)
            pause = min(2 * pause, 2e-3)
        else:
            return


def try_share(fd: HasFileno) -> bool:
    """Take the lease, or exchange the exclusive lock for it, without waiting; false if another has the exclusive lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_exclusive(fd: HasFileno) -> bool:
    """Take the exclusive lock if nobody holds a lease: true is the kernel's proof that no mapping of the file exists."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def let_go(fd: HasFileno) -> bool:
    """Let go of the lease as `unlock` does; true if nobody else had one. Of several who ask at once the last one finds that it is.

    Asking loses the lease, whatever the answer. Where it is the exclusive lock, that ends in the same call into C: a handler of this
    thread, which comes in between two such calls, may wait for the lease itself.
    """
    number = fd.fileno()
    try:
        _to_the_end(map(flock, (number, number), (fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN)))
    except BlockingIOError:
        fcntl.flock(number, fcntl.LOCK_UN)
        return False
    return True


def unlock(fd: HasFileno) -> None:
    """Let go of the lease, or the exclusive lock, though the file stays mapped and open; never where a fork has shared the description."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def mark(fd: HasFileno, number: int) -> bool:
    """Take mark `number` on this open file description unless another description has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST_MARK + number, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def share_mark(fd: HasFileno, number: int) -> None:
    """Take mark `number` on this open file description beside others that share it. Raises `BlockingIOError` if one has it alone."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _FIRST_MARK + number, 1, 0))


def wait_mark(fd: HasFileno, number: int) -> None:
    """Take mark `number`, waiting for whoever has it; the kernel frees it when they end. A signal's handler may raise."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST_MARK + number, 1, 0))


def is_marked(fd: HasFileno, number: int) -> bool:
    """Say whether some other open file description holds mark `number`."""
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST_MARK + number, 1, 0)
    answer = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))
    return bool(answer[0] != fcntl.F_UNLCK)
