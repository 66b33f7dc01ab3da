"""Processes that stand still at every line of an operation while something else happens.

Owns: bringing processes to pause (SIGSTOP before their n-th line), one for each line, and letting them go on.
Must not know: what happens meanwhile, and what must hold then.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from tests.faults import deaths, operations, witnesses
from tests.faults.operations import NUMBERS, OPERATIONS
from tests.faults.plays import points
from tests.helpers.processes import is_running

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.stage import Actor, Stage

_SOON = 10.0
_STUCK = 0.3


class PausePlay:
    """An owner, a guest that takes part to the end, and as many processes as an operation has lines, each pausing before one."""

    def __init__(self, stage: Stage, operation: str, *, deep: bool, **options: Any) -> None:
        """Open the store, and let the guest come."""
        self.stage = stage
        self.number = NUMBERS[operation]
        self.operation = OPERATIONS[self.number]
        self.deep = deep
        self.owner = stage.fork()
        self.blob, self.store, self.guardian = self.owner.do(witnesses.open_store, options)
        self.guest = stage.fork()
        self.guest.do(witnesses.join, self.blob)
        self.paused: dict[int, int] = {}

    def pause(self, most: int) -> None:
        """Let about that many processes come to pause."""
        ticket = self.owner.do(operations.prepare, self.number, 0)
        rehearsal = self.stage.fork()
        if not self.operation.joins:
            rehearsal.do(witnesses.come, self.blob)
        total = rehearsal.do(deaths.count, self.number, ticket, self.deep)
        self.leave(rehearsal)
        self.owner.do(witnesses.mend)
        # All tickets first: whoever pauses may hold a lock that the owner needs for the next.
        tickets = {n: self.owner.do(operations.prepare, self.number, n) for n in points(total, most, deep=self.deep)}
        for n, handed in tickets.items():
            self.paused[self.stage.fork_process(self._player(handed, n))] = n
        self._wait_for_pauses()

    def _player(self, ticket: Any, n: int) -> Callable[[], None]:
        return lambda: deaths.pause_in(self.blob, self.number, ticket, n, self.deep)

    def _wait_for_pauses(self) -> None:
        """Wait until all pause, or have ended; but one that holds a lock of the store keeps others from coming so far."""
        before, since = -1, time.monotonic()
        while (now := sum(_stands(pid) for pid in self.paused)) < len(self.paused):
            if now != before:
                before, since = now, time.monotonic()
            elif now > len(self.paused) / 3 and time.monotonic() - since > _STUCK:
                return
            assert time.monotonic() - since < _SOON, f"only {now} of {len(self.paused)} come to pause"
            time.sleep(0.005)

    def go_on(self) -> None:
        """Let them go on to their end, which must be a good one."""
        while left := [pid for pid in self.paused if pid not in self.stage.statuses]:
            for pid in left:
                # Whoever was kept from coming to its pause may come to it only now.
                if not is_running(pid):
                    self.stage.status(pid)
                elif _stands(pid):
                    os.kill(pid, signal.SIGCONT)
            time.sleep(0.001)
        bad = {n: self.stage.status(pid) for pid, n in self.paused.items() if self.stage.status(pid)}
        assert not bad, f"status by line: {bad}\n{self.stage.said()}"

    def leave(self, *actors: Actor) -> None:
        """Let actors end in the ordinary way."""
        for actor in actors:
            actor.leave()
            assert self.stage.status(actor.pid) == 0
            self.stage.dismiss(actor)


def _stands(pid: int) -> bool:
    """Say whether a process is stopped, or has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t", b"Z")
    except (FileNotFoundError, ProcessLookupError):
        return True
