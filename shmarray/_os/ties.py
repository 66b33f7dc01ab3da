"""One process's life tied to another's, and what happens around a fork.

Owns: death by a pipe: the kernel kills the reader when the last writer has gone, in whatever code the reader is. Unlike the
signal of `prctl(PR_SET_PDEATHSIG)` it hangs on the writer's process and not on the one thread that started the reader.
Must not know: which processes these are.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

_F_SETSIG = 10  # the module `fcntl` has no name for it
_ties: list[int] = []  # a tie holds as long as its descriptor is open: for ever


def die_with_writer(fd: int) -> None:
    """Tie this process to a pipe it reads: SIGKILL when its last writer closes it, at once if that has happened.

    What is written to the pipe later kills too. The descriptor itself may be closed: the tie has one of its own.
    """
    tie = os.dup(fd)  # closed by exec, so that what this process starts is not tied as well
    _ties.append(tie)
    fcntl.fcntl(tie, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(tie, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(tie, fcntl.F_SETFL, fcntl.fcntl(tie, fcntl.F_GETFL) | os.O_ASYNC)
    # The kernel reports what happens from now on; what has happened before is asked for.
    poll = select.poll()
    poll.register(tie, select.POLLHUP)
    if any(event & select.POLLHUP for _, event in poll.poll(0)):
        os.kill(os.getpid(), signal.SIGKILL)


def take_standard_input() -> int:
    """Move standard input to another descriptor, which is returned, and leave an empty one in its place."""
    moved = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return moved


def take_standard_output() -> BinaryIO:
    """Move standard output to another descriptor, returned as a file, and leave one in its place that drops what is said."""
    moved = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    return moved


def around_fork(before: Callable[[], None], parent: Callable[[], None], child: Callable[[], None]) -> None:
    """Run functions around every fork from now on: before it, after it in the parent (also if it failed), in the child."""
    os.register_at_fork(before=before, after_in_parent=parent, after_in_child=child)
