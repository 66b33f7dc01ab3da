"""Deaths and interruptions at every step of what is done with a channel.

Owns: which steps those are; stopping a process with a lock held.
Must not know: what the deed is, and what must hold then.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from shmarray._format import channel as form
from shmarray._os import mutexes
from tests.helpers import sweeps
from tests.helpers.processes import reap, wait_until
from tests.helpers.tracing import Interrupted, Interrupter, within_package

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from shmarray.channels import Channel
    from shmarray.channels.latches import Latch

_COUNTED = ("channels/", "_format/channel.py", "objects.py", "membership.py", "_os/mutexes.py", "_os/futexes.py")
_HERE = os.path.join("channels_deaths", "scenes.py")


def of_channels(filename: str) -> bool:
    """Say whether the lines of a source file are to be died at: those of channels, what they call with a lock held, and the deeds."""
    if filename.endswith(_HERE):
        return True
    return within_package(filename).startswith(_COUNTED)


def in_child(deed: Callable[[], object]) -> int:
    """Do a deed in a forked child, in which no cycle collector comes in between; returns its pid."""
    return sweeps.in_child(deed, collect=False)


def sweep(
    ready: Callable[[], object],
    deed: Callable[[], object],
    verify: Callable[[str], object],
    *,
    first: int = 1,
    step: int = 1,
) -> int:
    """Kill a child before every `step`-th line of a deed; see `sweeps.sweep`."""
    return sweeps.sweep(ready, deed, verify, of_channels, first=first, step=step, collect=False)


class CtrlC(Interrupted, KeyboardInterrupt):
    """What comes out of an event loop at once, and not as what one task or callback has failed with."""


_RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class _Interrupter(Interrupter):
    """Raises everywhere but where a generator or coroutine goes on.

    There a handler's exception comes out of the `yield`, with the blocks around it; a profiler's before it, without them.
    """

    error = CtrlC

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_flags & _RESUMED:
            super()._event(frame, event, arg)


def interrupt_everywhere(
    ready: Callable[[], object],
    deed: Callable[[], object],
    verify: Callable[[str], object],
    *,
    first: int = 1,
    step: int = 1,
) -> int:
    """Interrupt a deed at every `step`-th point; see `sweeps.interrupt_everywhere`."""
    return sweeps.interrupt_everywhere(
        ready, deed, verify, of_channels, first=first, step=step, interrupter=_Interrupter
    )


async def somebody_waits(channel: Channel, task: asyncio.Task[Any]) -> None:
    """Let others run until somebody is counted as waiting, or the task that should be has ended."""
    words, lines = channel._words, (form.PUTTERS, form.GETTERS)
    async with asyncio.timeout(20):
        while not task.done() and not any(words[line] for line in lines):  # noqa: ASYNC110  it is no event of this process
            await asyncio.sleep(0.001)


class StopInside:
    """Stops this process (SIGSTOP) at its first line with a lock held; it goes on when it is told to (SIGCONT)."""

    def __init__(self, latch: Latch) -> None:
        """Watch for that lock."""
        self._address = latch.address
        self.stopped = False

    def __enter__(self) -> None:
        """Begin to watch."""
        sys.settrace(self._enter)

    def __exit__(self, *exc: object) -> None:
        """Watch no more."""
        sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        return self._step if of_channels(frame.f_code.co_filename) else None

    def _step(self, _frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line" and not self.stopped and mutexes.mutex_owner(self._address) == os.getpid():
            self.stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)
        return self._step


def is_stopped(pid: int) -> bool:
    """Say whether a process was stopped by a signal."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"T"


def stopped(latch: Latch, deed: Callable[[], object]) -> int:
    """Do a deed in a child that is stopped as soon as it has a lock; returns its pid once that is so."""

    def run() -> None:
        with StopInside(latch):
            deed()

    pid = in_child(run)
    wait_until(lambda: is_stopped(pid), 20, "the child was not stopped with the lock held")
    return pid


def go_on(pid: int) -> int:
    """Let a stopped child go on, and wait for its end."""
    os.kill(pid, signal.SIGCONT)
    return reap(pid)
