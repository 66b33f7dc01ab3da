"""One lane: troupe after troupe, kill after kill, and the look from outside at what each death leaves.

Owns: choosing whom to kill and when, and judging: names in `/dev/shm` and in directories, ends of processes, standard error.
Must not know: what the processes do in their stores.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import random
import re
import shutil
import signal
import tempfile
import time
from typing import TYPE_CHECKING, Any

import shmarray as sa
from shmarray import reaper
from tests.helpers import leaks
from tests.helpers.processes import is_running
from tests.soak import players
from tests.soak.board import OWNER, Board, Journal
from tests.soak.players import Part
from tests.soak.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

METHODS = ("fork", "spawn", "forkserver")
_PR_SET_CHILD_SUBREAPER = 36
_HANG = 45.0  # seconds without a sign of life
_PROMISED = 1.0
_KIND = {"torn": "torn", "vanished": "vanished", "refused": "refused", "crash": "crashes"}
# What multiprocessing itself says: its tracker clears up its own semaphores after a kill; a process whose parent was killed while
# it started it finds half of its orders, or no semaphores.
_TRACKER = re.compile(r".*resource_tracker.*(?:leaked semaphore objects|'/mp-).*\n|\s+warnings\.warn\('resource_tracker.*\n")
_UNBORN = re.compile(
    r"Traceback \(most recent call last\):\n(?:  .*\n)*?  File \".*/multiprocessing/(?:spawn|forkserver)\.py\".*\n(?:  .*\n)*"
    r"(?:EOFError|FileNotFoundError|ConnectionResetError|BrokenPipeError|_pickle\.UnpicklingError)\b.*\n"
)


class Troupe:
    """One store and its processes."""

    def __init__(self, lane: Lane, scratch: str, part: Part) -> None:
        """Fork the owner, and wait until its store is open and its workers are started."""
        self.lane = lane
        self.part = part
        self.board = Board(part.board)
        self.errors = os.path.join(scratch, "stderr")
        self.killed: set[int] = set()
        self.workers: dict[int, int] = {}
        self.beaten: dict[int, int] = {}
        self.store = ""
        self.guardian = 0
        ours, theirs = multiprocessing.Pipe()
        self.owner = lane.fork(lambda: self._own(ours, theirs))
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
                self.beaten[first] = self.board.beats(first)
            elif what == "ended":
                self.lane.ended(first, second)
        return True

    def at_work(self) -> list[int]:
        """Slots of the workers that have done something since they were started."""
        return [slot for slot in self.workers if self.board.beats(slot) > self.beaten[slot]]

    def files(self) -> set[str]:
        """What there is of the store's files."""
        mark = f".{self.store}."
        places = {leaks.SHM, self.part.options.get("directory", leaks.SHM)}
        return {name.partition(mark)[2] for place in places for name in leaks.shm_entries(directory=place) if mark in name}

    def beats(self) -> int:
        """Steps done by all."""
        return sum(self.board.beats(slot) for slot in range(OWNER, self.part.workers + 1))


class Lane:
    """Plays until enough processes were killed."""

    def __init__(self, seed: int, kills: int, until: float, say: Callable[[int], None]) -> None:
        """Aim at that many kills, but end at the time `until`; `say` is told how many there were."""
        self.rng = random.Random(seed)
        self.kills = kills
        self.until = until
        self.say = say
        self.tally = Tally()
        self.killed: set[int] = set()
        self.left: list[Troupe] = []
        self.unborn = 0
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> Tally:
        """Play."""
        with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
            self._beside = Bystander(self)
            number = 0
            while self.tally.killed < self.kills and time.monotonic() < self.until:
                place = os.path.join(scratch, str(number))
                os.mkdir(place)
                self._play(place, number)
                number += 1
                shutil.rmtree(place)
            self._collect()
            self._beside.end()
            self._no_process_is_left()
        return self.tally

    def stop(self) -> None:
        """Kill all that is below."""
        while below := self._strangers() | self._beside.pids():
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._beside.forget()
        reaper.collect(os.geteuid())

    def fork(self, function: Callable[[], None]) -> int:
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

    # -- a troupe ------------------------------------------------------------------------------------------------------

    def _play(self, place: str, number: int) -> None:
        method = self.rng.choice(METHODS)
        variant = self.rng.choice(("plain", "plain", "name", "capacity", "directory"))
        options: dict[str, Any] = {
            "plain": {},
            "name": {"name": f"soak-{os.getpid()}"},  # the same each time: taken over from the dead
            "capacity": {"capacity": 4 << 20},
            "directory": {"directory": place},
        }[variant]
        board, journal = os.path.join(place, "board"), os.path.join(place, "journal")
        part = Part(method, self.rng.randrange(1 << 32), self.rng.choice((2, 3)), board, journal, options)
        troupe = Troupe(self, place, part)
        self.tally.troupes += 1
        self.tally.methods[method] += 1
        if self._begin(troupe):
            for _ in range(self.rng.randrange(2, 14)):
                self._kill_one(troupe)
            self._end(troupe)
        self.tally.steps += troupe.beats()
        self._judge(troupe, number)

    def _begin(self, troupe: Troupe) -> bool:
        """Wait until the store is open; false if that failed."""
        well = self._wait(lambda: not troupe.listen(0.01) or len(troupe.workers) == troupe.part.workers, _HANG)
        if not well or not troupe.store:
            self.tally.fault("hangs", f"troupe with {troupe.part.method} did not start")
            return False
        # What others left is gone now that a store was opened.
        for earlier in self.left:
            if earlier.files():
                self.tally.fault("leaked", f"not removed by the next store: {sorted(earlier.files())[:5]}")
        self.left.clear()
        return True

    def _kill_one(self, troupe: Troupe) -> None:
        """Wait a moment, then kill a worker, or now and then the guardian."""
        self._work_for(troupe, self.rng.expovariate(1 / 0.03))
        if troupe.guardian not in self.killed and self.rng.random() < 0.06:
            self._kill(troupe.guardian, "guardian", troupe)
            return
        # Mostly one that is at work; now and then one that is just starting.
        if self.rng.random() < 0.9:
            self._wait(lambda: not troupe.listen(0.002) or bool(troupe.at_work()), _HANG)
        candidates = troupe.at_work() or list(troupe.workers)
        slot = self.rng.choice(candidates)
        if troupe.workers[slot] not in self.killed:
            self._kill(troupe.workers[slot], "worker", troupe)

    def _work_for(self, troupe: Troupe, seconds: float) -> None:
        """Let them work; one that gives no sign of life for long hangs."""
        troupe.listen(seconds)
        now = time.monotonic()
        for slot in (OWNER, *troupe.workers):
            beats = troupe.board.beats(slot)
            last, since = self._signs.get((troupe.store, slot), (-1, now))
            if beats != last:
                self._signs[troupe.store, slot] = (beats, now)
            elif now - since > _HANG:
                self._hangs(troupe, slot)

    _signs: dict[tuple[str, int], tuple[int, float]] = {}  # noqa: RUF012  one lane in a process

    def _hangs(self, troupe: Troupe, slot: int) -> None:
        pid = troupe.owner if slot == OWNER else troupe.workers[slot]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
        time.sleep(1)  # it writes where it is
        self.tally.fault("hangs", f"process {pid} of a troupe with {troupe.part.method}: {_read(troupe.errors)}")
        self._signs.pop((troupe.store, slot), None)
        self._kill(pid, "hanging", troupe)

    def _kill(self, pid: int, role: str, troupe: Troupe) -> None:
        if not is_running(pid):
            return
        self.killed.add(pid)
        troupe.killed.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.tally.kills[role] += 1
            self.say(self.tally.killed)

    # -- its end -------------------------------------------------------------------------------------------------------

    def _end(self, troupe: Troupe) -> None:
        endings = ("owner", "owner and guardian", "all", "close", "close beside workers")
        how = self.rng.choices(endings, (8, 3, 4, 2, 2))[0]
        self.tally.endings[how] += 1
        self._work_for(troupe, self.rng.expovariate(1 / 0.05))
        if how.startswith("close"):
            self._close(troupe, how)
            return
        troupe.board.announce_end()
        if how == "all":
            self._kill_all(troupe)
        elif how == "owner and guardian":
            for pid, role in self._shuffled([(troupe.owner, "owner"), (troupe.guardian, "guardian")]):
                self._kill(pid, role, troupe)
        else:
            self._kill(troupe.owner, "owner", troupe)
        if troupe.guardian in self.killed:
            self._without_guardian(troupe)
        else:
            self._with_guardian(troupe)

    def _shuffled(self, things: list[tuple[int, str]]) -> list[tuple[int, str]]:
        self.rng.shuffle(things)
        return things

    def _kill_all(self, troupe: Troupe) -> None:
        """Kill the whole group, but for the tracker, whose semaphores nobody else would remove."""
        below = leaks.descendants(troupe.owner)
        group = [(pid, "group") for pid in below if not any("resource_tracker" in word for word in leaks.command_line(pid))]
        for pid, role in self._shuffled([*group, (troupe.owner, "owner"), (troupe.guardian, "guardian")]):
            self._kill(pid, role, troupe)

    def _close(self, troupe: Troupe, how: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            troupe.pipe.send(how)
        self._wait(lambda: not troupe.listen(0.01), _HANG)
        if not self._wait(lambda: not is_running(troupe.owner), _HANG):
            self._hangs(troupe, OWNER)
        alone = troupe.guardian in self.killed
        # A worker that the store outlived keeps the control file; without a guardian the next store removes it.
        if alone and how == "close beside workers":
            self._leave(troupe)
        elif not self._wait(lambda: not troupe.files(), 10):
            self.tally.fault("leaked", f"{how}, {troupe.part.method}: {sorted(troupe.files())[:5]}")

    def _with_guardian(self, troupe: Troupe) -> None:
        began = time.monotonic()
        cleared = self._wait(lambda: troupe.files() <= {"ctl", "dir"}, 15)
        took = time.monotonic() - began
        self.tally.clearing.append(took)
        if took > _PROMISED:
            self.tally.fault("slow" if cleared else "leaked", f"{took:.2f} s after the owner's death: {sorted(troupe.files())[:5]}")
        self._workers_end(troupe)
        if not self._wait(lambda: not troupe.files() and not is_running(troupe.guardian), 15):
            what = sorted(troupe.files()) or "the guardian stays"
            self.tally.fault("leaked", f"after the last participant: {what}")

    def _workers_end(self, troupe: Troupe) -> None:
        """Workers end by themselves when the store has; those whose store has no guardian are asked to."""
        if troupe.guardian in self.killed:
            troupe.board.ask_to_stop()
        pids = [pid for pid in troupe.workers.values() if pid not in self.killed]
        if not self._wait(lambda: not any(is_running(pid) for pid in pids), _HANG):
            for slot, pid in troupe.workers.items():
                if is_running(pid):
                    self._hangs(troupe, slot)

    def _without_guardian(self, troupe: Troupe) -> None:
        self._workers_end(troupe)
        self._wait(lambda: not self._strangers(), 10)
        self._leave(troupe)

    def _leave(self, troupe: Troupe) -> None:
        """Nobody is left to clear up: the next does it, which is the next store, or a call that does nothing else."""
        self.tally.left_for_the_next += bool(troupe.files())
        self.left.append(troupe)
        # What is in a directory goes with the lane's own scratch, so it cannot wait for the next store.
        if "directory" in troupe.part.options or self.rng.random() < 0.5:
            self._collect()

    def _collect(self) -> None:
        reaper.collect(os.geteuid())
        for troupe in self.left:
            if troupe.files():
                self.tally.fault("leaked", f"not collected: {sorted(troupe.files())[:5]}")
        self.left.clear()

    # -- judging -------------------------------------------------------------------------------------------------------

    def ended(self, pid: int, code: int | None) -> None:
        """Judge how a process ended."""
        if pid in self.killed or code in (0, None):
            return
        if code == 1:
            self.unborn += 1  # judged with what it said
        else:
            self.tally.fault("crashes", f"process {pid} ended with {code}")

    def _judge(self, troupe: Troupe, number: int) -> None:
        """When all is over: processes, journal, standard error."""
        if not self._wait(lambda: not self._strangers(), 15):
            for pid in self._strangers():
                self.tally.fault("processes", f"{pid}: {' '.join(leaks.command_line(pid))[:200]}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._wait(lambda: not self._strangers(), 15)
        for entry in Journal(troupe.part.journal).read():
            self.tally.fault(_KIND.get(entry["kind"], "errors"), f"troupe {number}, {troupe.part.method}: {entry['detail']}")
        said, unborn = _UNBORN.subn("", _TRACKER.sub("", _read(troupe.errors)))
        for line in said.splitlines():
            self.tally.fault("stderr", line)
        for _ in range(self.unborn - unborn):
            self.tally.fault("crashes", "a process ended with 1")
        self.unborn = 0
        troupe.pipe.close()
        self._beside.look()

    def _strangers(self) -> set[int]:
        """Processes below this lane that are not the bystander's; those that ended are reaped and judged."""
        table = leaks.parents()
        for pid in [pid for pid, parent in table.items() if parent == os.getpid()]:
            with contextlib.suppress(ChildProcessError):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.ended(pid, os.waitstatus_to_exitcode(status))
        return leaks.descendants(os.getpid()) - self._beside.pids()

    def _no_process_is_left(self) -> None:
        if not self._wait(lambda: not self._strangers(), 15):
            self.tally.fault("processes", "the bystander's guardian stays")

    def _wait(self, predicate: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        pause = 0.0005
        while not predicate():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        return True


class Bystander:
    """A store beside all the dying, which nobody touches."""

    def __init__(self, lane: Lane) -> None:
        """Fork its owner, which looks at its arrays whenever it is asked."""
        self._lane = lane
        self._pipe, theirs = multiprocessing.Pipe()
        self._pid = lane.fork(lambda: self._own(theirs))
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
        return {self._pid, self._guardian} - {0}

    def forget(self) -> None:
        """Take no more care of them."""
        self._pid = self._guardian = 0

    def look(self) -> None:
        """Let it look."""
        self._pipe.send(True)
        wrong = self._pipe.recv()
        if wrong:
            self._lane.tally.fault("vanished", f"a store that nobody touched: {wrong}")

    def end(self) -> None:
        """Let it close."""
        self._pipe.send(False)
        self._lane.ended(self._pid, os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]))
        self.forget()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
