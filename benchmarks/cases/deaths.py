"""How long a lock is lost when its holder is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.cases.case import Case, Samples, UnableError
from benchmarks.measure import Aim, Measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from benchmarks.measure import Scale
    from benchmarks.rivals.interface import Locks

_PATIENCE = 30.0
_WHILE = 0.1  # seconds that a process has waited, at most, when the holder is killed
_WITHIN = 0.1  # seconds, the aim
_LEAST = 3
_READER = "read() of an array, a writer waits"


class Deaths(Case):
    """Get in after the holder was killed."""

    name: ClassVar[str] = "deaths"
    question: ClassVar[str] = "get a lock that was waited for when its holder was killed"
    rivals: ClassVar[tuple[str, ...]] = (
        "lock of an array",
        "write() of an array",
        _READER,
        "portalocker",
        "filelock",
        "multiprocessing.Lock",
        "Manager().Lock",
    )
    aims: ClassVar[tuple[Aim, ...]] = (
        Aim("next", "lock of an array", "most", _WITHIN),
        Aim("next", "write() of an array", "most", _WITHIN),
        Aim("next", _READER, "most", _WITHIN),
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the one measure."""
        del scale
        return [Measure("next", "the next gets in after its holder was killed")]

    def set_up(self) -> None:
        """Make the lock."""
        adapter: Locks = self.adapter
        if not adapter.survives:
            raise UnableError("for its next holder would wait for ever")
        self.open()
        self._dice = random.Random(5)  # noqa: S311  the same moments for each contender

    def round(self) -> Samples:
        """Kill some holders, each at another moment of the wait for it."""
        return {"next": [_next(self.adapter, self._dice.uniform(0, _WHILE)) for _ in self.scale.samples(_LEAST)]}


def _next(adapter: Locks, after: float) -> float:
    """Kill the holder when another process has waited for so long; gives the time from the kill until that one is inside."""
    with _process(_hold, adapter) as (holder, its), _process(_follow, adapter) as (follower, line):
        _hear(its, "inside")
        line.send("go")
        _hear(line, "waiting")
        _wait_for_sleep(follower.pid)
        time.sleep(after)
        killed = time.monotonic()
        os.kill(holder.pid, signal.SIGKILL)
        inside = float(_hear(line))
        follower.join(_PATIENCE)
    if inside < killed:
        message = "two had the lock at once"
        raise RuntimeError(message)
    return inside - killed


@contextlib.contextmanager
def _process(role: Any, adapter: Locks) -> Iterator[tuple[Any, Connection]]:
    """Give a forked process in that role and the line to it; it has ended when this has."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=role, args=(adapter, its))
    process.start()
    its.close()
    try:
        yield process, mine
    finally:
        process.kill()
        process.join()
        process.close()
        mine.close()


def _hear(line: Connection, word: str = "") -> Any:
    """Hear what a process says; raises `RuntimeError` if it says nothing, or another word."""
    heard = line.recv() if line.poll(_PATIENCE) else f"nothing for {_PATIENCE:.0f} s"
    if word and heard != word:
        message = f"a process said {heard!r} and not {word!r}"
        raise RuntimeError(message)
    return heard


def _hold(adapter: Locks, line: Connection) -> None:
    """Hold the lock until the end."""
    adapter.renew()
    with adapter.hold():
        line.send("inside")
        line.poll(_PATIENCE)


def _follow(adapter: Locks, line: Connection) -> None:
    """Wait for the lock, and tell by the clock that all processes have in common when it was there."""
    adapter.renew()
    line.recv()
    line.send("waiting")
    with adapter.hold_next():
        inside = time.monotonic()
    line.send(inside)


def _wait_for_sleep(pid: int) -> None:
    """Wait until a process sleeps that has nothing to sleep for but the lock."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] == b"S":
                return
        time.sleep(0.001)
    message = "a process does not come to wait for the lock"
    raise RuntimeError(message)
