"""What a lane looks after: a troupe, that is one store and its processes, and a store beside that nobody touches.

Owns: starting both, and what can be asked of them from outside: files, signs of life, what was said.
Must not know: who is killed when.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from typing import TYPE_CHECKING

import shmarray as sa
from tests.helpers import leaks
from tests.soak import players
from tests.soak.board import OWNER, Board, Journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

# What multiprocessing itself says: its tracker clears up its own semaphores after a kill; a process whose parent was killed while
# it started it finds half of its orders, or no semaphores.
_TRACKER = re.compile(
    r".*resource_tracker.*(?:leaked semaphore objects|'/mp-).*\n|\s+warnings\.warn\('resource_tracker.*\n"
)
_UNBORN = re.compile(
    r"Traceback \(most recent call last\):\n(?:  .*\n)*?  File \".*/multiprocessing/(?:spawn|forkserver)\.py\".*\n(?:  .*\n)*"
    r"(?:EOFError|FileNotFoundError|ConnectionResetError|BrokenPipeError|_pickle\.UnpicklingError)\b.*\n"
)


def fork(function: Callable[[], None]) -> int:
    """Fork a process that does one thing."""
    pid = os.fork()
    if pid:
        return pid
    status = players.FAILED
    try:
        function()
        status = 0
    finally:
        os._exit(status)


class Troupe:
    """One store and its processes."""

    def __init__(self, scratch: str, part: players.Part, ended: Callable[[int, int | None], None]) -> None:
        """Fork the owner; `ended` is told how each worker ends of whose end the owner knows."""
        self.part = part
        self._tell = ended
        self.board = Board(part.board)
        self.errors = os.path.join(scratch, "stderr")
        self.workers: dict[int, int] = {}
        self._begun: dict[int, int] = {}
        self._signs: dict[int, tuple[int, float]] = {}
        self.store = ""
        self.guardian = 0
        ours, theirs = multiprocessing.Pipe()
        self.owner = fork(lambda: self._own(ours, theirs))
        theirs.close()
        self.pipe = ours

    def _own(self, ours: Connection, theirs: Connection) -> None:
        ours.close()
        fd = os.open(self.errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.setsid()
        players.own(self.part, theirs)

    def listen(self, seconds: float) -> bool:
        """Hear what the owner says for some time; false when it has ended."""
        deadline = time.monotonic() + seconds
        while self.pipe.poll(max(0.0, deadline - time.monotonic())):
            try:
                what, first, second = self.pipe.recv()
            except (EOFError, ConnectionError):
                return False
            if what == "open":
                self.store, self.guardian = first, second
            elif what == "worker":
                self.workers[first] = second
                self._begun[first] = self.board.counted(first)
            elif what == "ended":
                self._tell(first, second)
        return True

    def at_work(self) -> list[int]:
        """Slots of the workers that have done something since they were started."""
        return [slot for slot in self.workers if self.board.counted(slot) > self._begun[slot]]

    def files(self) -> set[str]:
        """What there is of the store's files."""
        mark = f".{self.store}."
        places = {leaks.SHM, self.part.options.get("directory", leaks.SHM)}
        return {
            name.partition(mark)[2] for place in places for name in leaks.shm_entries(directory=place) if mark in name
        }

    def counted(self, what: int) -> int:
        """How many all have counted."""
        return sum(self.board.counted(slot, what) for slot in range(OWNER, self.part.workers + 1))

    def silent_for(self, slot: int) -> float:
        """Seconds since a process gave a new sign of life, as far as was looked."""
        now, steps = time.monotonic(), self.board.counted(slot)
        if self._signs.get(slot, (-1, 0.0))[0] != steps:
            self._signs[slot] = (steps, now)
        return now - self._signs[slot][1]

    def pid_of(self, slot: int) -> int:
        """Process that plays a part."""
        return self.owner if slot == OWNER else self.workers[slot]

    def said(self) -> str:
        """What was written to standard error."""
        try:
            with open(self.errors, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def complaints(self) -> tuple[list[str], int]:
        """The same without what multiprocessing itself says; and how many processes said that they could not be started."""
        said, unborn = _UNBORN.subn("", _TRACKER.sub("", self.said()))
        return said.splitlines(), unborn

    def journal(self) -> list[tuple[str, str]]:
        """What processes wrote down that went wrong: its kind, and the rest."""
        return [(entry["kind"], entry["detail"]) for entry in Journal(self.part.journal).read()]


class Bystander:
    """A store beside all the dying, which nobody touches."""

    def __init__(self) -> None:
        """Fork its owner, which looks at its arrays whenever it is asked."""
        self._pipe, theirs = multiprocessing.Pipe()
        self.pid = fork(lambda: self._own(theirs))
        theirs.close()
        self._guardian: int = self._pipe.recv()

    def _own(self, pipe: Connection) -> None:
        self._pipe.close()
        with sa.Store() as store:
            held = store.full(1000, 7.0)
            store.full(1000, 7.0, name="beside")
            pipe.send(store.guardian_pid or 0)
            while pipe.recv():
                wrong = ""
                try:
                    if not ((held == 7).all() and (store["beside"] == 7).all() and not store.check()):
                        wrong = "changed"
                except sa.ShmArrayError as error:
                    wrong = str(error)
                pipe.send(wrong)

    def pids(self) -> set[int]:
        """Its processes."""
        return {self.pid, self._guardian} - {0}

    def forget(self) -> None:
        """Take no more care of them."""
        self.pid = self._guardian = 0

    def look(self) -> str:
        """Let it look; gives what is wrong, nothing if all is well."""
        self._pipe.send(True)
        wrong: str = self._pipe.recv()
        return wrong

    def end(self) -> int:
        """Let it close; gives its exit code."""
        self._pipe.send(False)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.forget()
        return code
