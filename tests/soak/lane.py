"""One lane: troupe after troupe, kill after kill, and the look from outside at what each death leaves.

Owns: choosing whom to kill and when, and judging: names in `/dev/shm` and in directories, ends of processes, standard error.
Must not know: what the processes do in their stores.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import tempfile
import time
from typing import TYPE_CHECKING, Any

from shmarray import reaper
from tests.helpers import leaks
from tests.helpers.processes import is_running
from tests.soak.board import LOADED, OWNER, POISONED, STEPS
from tests.soak.players import Part
from tests.soak.tally import Tally
from tests.soak.troupe import Bystander, Troupe

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = ("fork", "spawn", "forkserver")
_PR_SET_CHILD_SUBREAPER = 36
_HANG = 45.0  # seconds without a sign of life
_PROMISED = 1.0
_KIND = {"torn": "torn", "vanished": "vanished", "refused": "refused", "crash": "crashes"}


class Lane:
    """Plays until enough processes were killed."""

    def __init__(self, seed: int, kills: int, until: float, say: Callable[[int], None]) -> None:
        """Aim at that many kills, but end at the time `until`; `say` is told how many there were."""
        self.rng = random.Random(seed)  # noqa: S311  no secret
        self.kills = kills
        self.until = until
        self.say = say
        self.tally = Tally()
        self.killed: set[int] = set()
        self.left: list[Troupe] = []
        self._ones = 0
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> Tally:
        """Play."""
        with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
            self._beside = Bystander()
            number = 0
            while self.tally.killed < self.kills and time.monotonic() < self.until:
                place = os.path.join(scratch, str(number))
                os.mkdir(place)
                self._play(place, number)
                number += 1
                shutil.rmtree(place, ignore_errors=True)
            self._collect()
            self.ended(self._beside.pid, self._beside.end())
            if not self._wait(lambda: not self._strangers(), 15):
                self.tally.fault("processes", "the bystander's guardian stays")
        return self.tally

    def stop(self) -> None:
        """Kill all that is below."""
        while below := self._strangers() | self._beside.pids():
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._beside.forget()
        reaper.collect(os.geteuid())

    # -- a troupe ------------------------------------------------------------------------------------------------------

    def _play(self, place: str, number: int) -> None:
        method = self.rng.choice(METHODS)
        variant = self.rng.choice(("plain", "plain", "name", "capacity", "directory"))
        choices: dict[str, dict[str, Any]] = {
            "plain": {},
            "name": {"name": f"soak-{os.getpid()}"},  # the same each time: taken over from the dead
            "capacity": {"capacity": 4 << 20},
            "directory": {"directory": place},
        }
        options = choices[variant]
        board, journal = os.path.join(place, "board"), os.path.join(place, "journal")
        part = Part(method, self.rng.randrange(1 << 32), self.rng.choice((2, 3)), board, journal, options)
        troupe = Troupe(place, part, self.ended)
        self.tally.troupes += 1
        self.tally.methods[method] += 1
        if self._begin(troupe):
            for _ in range(self.rng.randrange(3, 20)):
                self._kill_one(troupe)
            self._end(troupe)
        self.tally.steps += troupe.counted(STEPS)
        self.tally.loaded += troupe.counted(LOADED)
        self.tally.poisoned += troupe.counted(POISONED)
        self._judge(troupe, number)

    def _begin(self, troupe: Troupe) -> bool:
        """Wait until the store is open; false if that failed."""
        well = self._wait(lambda: not troupe.listen(0.01) or len(troupe.workers) == troupe.part.workers, _HANG)
        if not well or not troupe.store:
            self.tally.fault("hangs", f"troupe with {troupe.part.method} did not start")
            return False
        self._all_left_is_gone("not removed by the next store")
        return True

    def _kill_one(self, troupe: Troupe) -> None:
        """Let them work for a while, then kill a worker, or now and then the guardian."""
        # Mostly one that is at work; now and then one that is just starting.
        if self.rng.random() < 0.9:
            self._wait(lambda: not troupe.listen(0.002) or bool(troupe.at_work()), _HANG)
        self._work_for(troupe, self.rng.expovariate(1 / self.rng.choice((0.01, 0.05, 0.25))))
        if troupe.guardian not in self.killed and self.rng.random() < 0.03:
            self._kill(troupe.guardian, "guardian")
            return
        slot = self.rng.choice(troupe.at_work() or list(troupe.workers))
        if troupe.workers[slot] not in self.killed:
            self._kill(troupe.workers[slot], "worker")

    def _work_for(self, troupe: Troupe, seconds: float) -> None:
        """Let them work; one that gives no sign of life for long hangs."""
        troupe.listen(seconds)
        for slot in (OWNER, *troupe.workers):
            if troupe.silent_for(slot) > _HANG:
                self._hangs(troupe, slot)

    def _hangs(self, troupe: Troupe, slot: int) -> None:
        pid = troupe.pid_of(slot)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
        time.sleep(1)  # it writes where it is
        self.tally.fault("hangs", f"process {pid} of a troupe with {troupe.part.method}: {troupe.said()}")
        self._kill(pid, "hanging")

    def _kill(self, pid: int, role: str) -> None:
        if not is_running(pid):
            return
        self.killed.add(pid)
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
                self._kill(pid, role)
        else:
            self._kill(troupe.owner, "owner")
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
        group = [
            (pid, "group") for pid in below if not any("resource_tracker" in word for word in leaks.command_line(pid))
        ]
        for pid, role in self._shuffled([*group, (troupe.owner, "owner"), (troupe.guardian, "guardian")]):
            self._kill(pid, role)

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
            self.tally.fault(
                "slow" if cleared else "leaked", f"{took:.2f} s after the owner's death: {sorted(troupe.files())[:5]}"
            )
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
        self._all_left_is_gone("not collected")

    def _all_left_is_gone(self, what: str) -> None:
        """See that dead stores are gone; another lane may just be at it."""
        for troupe in self.left:
            if not self._wait(lambda: not troupe.files(), 5):  # noqa: B023  used at once
                self.tally.fault("leaked", f"{what}: {sorted(troupe.files())[:5]}")
        self.left.clear()

    # -- judging -------------------------------------------------------------------------------------------------------

    def ended(self, pid: int, code: int | None) -> None:
        """Judge how a process ended."""
        if pid in self.killed or code in (0, None):
            return
        if code == 1:
            self._ones += 1  # judged with what it said
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
        for kind, detail in troupe.journal():
            self.tally.fault(_KIND.get(kind, "errors"), f"troupe {number}, {troupe.part.method}: {detail}")
        lines, unborn = troupe.complaints()
        for line in lines:
            self.tally.fault("stderr", line)
        for _ in range(self._ones - unborn):
            self.tally.fault("crashes", "a process ended with 1")
        self._ones = 0
        troupe.pipe.close()
        if wrong := self._beside.look():
            self.tally.fault("vanished", f"a store that nobody touched: {wrong}")

    def _strangers(self) -> set[int]:
        """Processes below this lane that are not the bystander's; those that ended are reaped and judged."""
        table = leaks.parents()
        for pid in [pid for pid, parent in table.items() if parent == os.getpid()]:
            with contextlib.suppress(ChildProcessError):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.ended(pid, os.waitstatus_to_exitcode(status))
        return leaks.descendants(os.getpid()) - self._beside.pids()

    def _wait(self, predicate: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        pause = 0.0005
        while not predicate():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        return True
