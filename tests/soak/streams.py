"""The soak of channels, `python -m tests.soak.streams --kills 2000`: who puts and who takes is killed at random; the books must balance.

Owns: plays, each one channel with its producers and consumers; choosing whom to kill and when; what is counted from outside, in a file that
every process maps; the verdict.
Must not know: how a channel works.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from typing import Any, NamedTuple

# One thread a process is enough, and a fork of a process with more of them is warned of. NumPy reads it when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import shmarray as sa
from tests.soak import parts
from tests.soak.parts import Ledger, Part

PRODUCERS = 60
_HANG = 45.0
_KILLS_A_PLAY = 40
_NAME = "stream"


class Play(NamedTuple):
    """What is played."""

    method: str
    mode: str
    full: str
    redeliver: bool
    size: int
    slots: int
    producers: int
    consumers: int

    @classmethod
    def choose(cls, rng: random.Random, methods: tuple[str, ...]) -> Play:
        """Choose one."""
        mode = rng.choice(("queue", "queue", "broadcast"))
        return cls(
            rng.choice(methods),
            mode,
            rng.choice(("block", "block", "drop-new", "drop-oldest")),
            mode == "queue" and rng.random() < 0.4,
            rng.choice(parts.SIZES),
            rng.choice((1, 2, 4, 20)),
            rng.choice((1, 2, 3)),
            rng.choice((1, 2, 3)),
        )


@dataclasses.dataclass
class Report:
    """What was counted, over all plays, and what was wrong."""

    plays: int = 0
    kills: Counter[str] = dataclasses.field(default_factory=Counter)
    methods: Counter[str] = dataclasses.field(default_factory=Counter)
    items: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: list[str] = dataclasses.field(default_factory=list)

    @property
    def killed(self) -> int:
        """Processes that were killed."""
        return sum(self.kills.values())

    def text(self, seed: int, seconds: float) -> str:
        """Everything, for a person."""

        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{count} {what}" for what, count in counts.most_common())

        return "\n".join(
            [
                f"seed {seed}, {seconds:.0f} s, {self.plays} channels; start methods: {listed(self.methods)}",
                f"killed {self.killed}: {listed(self.kills)}",
                f"items: {listed(self.items)}",
                *self.faults,
                f"verdict: {'NOT SOUND' if self.faults else 'sound'}",
            ]
        )


class _Stage:
    """One play while it goes on."""

    def __init__(self, play: Play, rng: random.Random, report: Report, place: str) -> None:
        self.play = play
        self.rng = rng
        self.report = report
        self.place = place
        self.context: Any = multiprocessing.get_context(play.method)
        if play.method == "forkserver":
            self.context.set_forkserver_preload(["tests.soak.parts"])
        self.ledger = Ledger(os.path.join(place, "ledger"), PRODUCERS)
        self.running: dict[str, list[tuple[Any, Any]]] = {"producer": [], "consumer": []}
        self.born: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()

    def run(self, kills: int) -> None:
        """Play until so many were killed; then let all come to their end, and judge."""
        play = self.play
        with sa.Store() as store:
            self.channel = store.channel(
                play.size,
                "i8",
                slots=play.slots,
                mode=play.mode,  # type: ignore[arg-type]  # chosen from what there is
                full=play.full,  # type: ignore[arg-type]
                redeliver=play.redeliver,
                name=_NAME,
            )
            self._take_part()
            for role, count in (("consumer", play.consumers), ("producer", play.producers)):
                for _ in range(count):
                    self._start(role)
            try:
                while self.killed.total() < kills and self.born["producer"] < PRODUCERS - 1 and not self.report.faults:
                    self._kill_one()
                self.ledger.stop()
                self._join("producer")
                self.channel.close()
                self._join("consumer")
                if not self.report.faults:
                    self._judge(store)
            finally:
                self._end_all()
                del self.channel

    def _take_part(self) -> None:
        """Put and take, so that no stream ends and no producer is left alone when all others are dead at one moment."""
        self.channel.put(parts.item(self.play.size, PRODUCERS - 1, 0))
        if self.play.mode == "queue":
            self.channel.get()

    def _start(self, role: str) -> None:
        number = self.born[role]
        self.born[role] += 1
        part = Part(
            role,
            number,
            self.rng.randrange(1 << 32),
            self.ledger.path,
            self.play.redeliver,
            os.path.join(self.place, "stderr"),
        )
        given: Any = self.channel
        if role == "consumer" and self.play.mode == "broadcast" and self.rng.random() < 0.5:
            given = self.channel.subscribe()  # in its name
        process = self.context.Process(target=parts.act, args=(part, given, self.play.size))
        process.start()
        self.running[role].append((process, given))

    def _kill_one(self) -> None:
        """Let them work for a while, then kill one; another takes its place."""
        time.sleep(self.rng.expovariate(1 / self.rng.choice((0.002, 0.01, 0.05))))
        role = self.rng.choice(("producer", "consumer"))
        if self.rng.random() < 0.7 and not self._wait_for_work(role, self.rng.choice((1, 3))):
            self._fault(f"no {role} does anything: {self.channel.stats()}")
            return
        self._renew()
        if self.born["producer"] >= PRODUCERS - 1:
            return
        process, given = self.running[role].pop(self.rng.randrange(len(self.running[role])))
        if process.exitcode is not None:
            self._fault(f"a {role} has ended with {process.exitcode}: {self._said()}")
            return
        process.kill()
        process.join()
        process.close()
        self.killed[role] += 1
        self.report.kills[role] += 1
        if given is not self.channel:
            given.close()  # whether it came to use it or not
        self._start(role)

    def _wait_for_work(self, role: str, steps: int) -> bool:
        """Wait until those of a role have done something; false if that takes too long."""
        goal, until = self.ledger.worked(role) + steps, time.monotonic() + _HANG
        while self.ledger.worked(role) < goal:
            self._renew()
            if self.born["producer"] >= PRODUCERS - 1:
                return True
            if time.monotonic() > until:
                return False
            time.sleep(0.0005)
        return True

    def _renew(self) -> None:
        """Replace producers that have put as many items as one can: without them nobody has anything to do."""
        for entry in [entry for entry in self.running["producer"] if entry[0].exitcode == 0]:
            self.running["producer"].remove(entry)
            entry[0].close()
            if self.born["producer"] < PRODUCERS - 1:
                self._start("producer")

    def _join(self, role: str) -> None:
        until = time.monotonic() + _HANG
        for process, given in self.running[role]:
            process.join(max(0.1, until - time.monotonic()))
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGABRT)
                process.join()
                self._fault(f"a {role} hangs: {self._said()}")
            elif process.exitcode:
                self._fault(f"a {role} ended with {process.exitcode}: {self._said()}")
            if given is not self.channel:
                given.close()

    def _end_all(self) -> None:
        for process, _ in (*self.running["producer"], *self.running["consumer"]):
            with contextlib.suppress(ValueError):
                process.kill()
                process.join()
                process.close()
        self.running.clear()

    def _said(self) -> str:
        try:
            with open(os.path.join(self.place, "stderr"), encoding="utf-8", errors="replace") as file:
                return file.read()[-4000:]
        except FileNotFoundError:
            return ""

    def _fault(self, what: str) -> None:
        self.report.faults.append(f"{self.play}: {what}")

    # -- the books -----------------------------------------------------------------------------------------------------

    def _judge(self, store: sa.Store) -> None:
        """All have ended: what was put was seen once, or counted; nobody has anything; every slot can be filled."""
        again = store.open_channel(_NAME)
        again._flow.look_for_deaths()
        stats = again.stats()
        late = stats.dropped if self.play.full == "drop-oldest" else 0
        sent = stats.sent - 1  # one was this process's
        self.report.items.update(sent=sent, lost=stats.lost, redelivered=stats.redelivered, dropped=stats.dropped)
        done, seen, twice = self.ledger.books()
        facts = f"{stats}; {done} done, {seen} seen, {twice} of them twice; killed {dict(self.killed)}"
        rules = {
            "somebody has a slot": stats.held == (),
            "somebody is thought to wait": (stats.waiting_to_send, stats.waiting_to_receive) == (0, 0),
            "something was left": stats.depth == 0,
            "somebody is thought to take part": (stats.producers, stats.consumers, stats.subscribers) == ((), (), ()),
            "what was said to be put is not": done <= sent <= done + self.killed["producer"],
            "too much is lost": stats.lost <= self.killed["consumer"],
        }
        if self.play.mode == "queue":
            self.report.items["received"] += stats.received - 1
            unseen = sent - late - seen
            rules["what is counted is not what was taken"] = sent == stats.received - 1 + late + stats.lost
            rules["an item came twice"] = twice <= (stats.redelivered if self.play.redeliver else 0)
            # One that was in a dead hand, and was dropped when it was to be given to another, had been seen.
            again_late = self.killed["consumer"] if self.play.redeliver and late else 0
            rules["an item is gone"] = -again_late <= unseen <= (0 if self.play.redeliver else self.killed["consumer"])
            rules["it was to be redelivered"] = not (self.play.redeliver and stats.lost)
            rules["more went again than was in hand"] = stats.redelivered <= self.killed["consumer"]
        for what, holds in rules.items():
            if not holds:
                self._fault(f"{what}: {facts}")
        with contextlib.suppress(queue.Full):
            for number in range(self.play.slots):
                if not again.put(parts.item(self.play.size, 0, number), block=False):
                    raise queue.Full
            if self.play.mode == "queue" and not again.full():
                self._fault("there are more slots than there are")
            return
        self._fault(f"slots are gone: {again.stats()}")


def run(kills: int, seed: int, until: float, methods: tuple[str, ...] = ("fork", "spawn", "forkserver")) -> Report:
    """Play until so many were killed, or it is time, or something is wrong."""
    rng = random.Random(seed)  # noqa: S311  no secret
    report = Report()
    while report.killed < kills and time.monotonic() < until and not report.faults:
        play = Play.choose(rng, methods)
        report.plays += 1
        report.methods[play.method] += 1
        with tempfile.TemporaryDirectory(prefix="streams-") as place:
            few = _KILLS_A_PLAY if play.method == "fork" else _KILLS_A_PLAY // 4
            _Stage(play, rng, report, place).run(min(rng.randrange(5, few), kills - report.killed))
        if sys.stderr.isatty():
            print(f"\r{report.killed}/{kills} killed ", end="", file=sys.stderr, flush=True)
    return report


def main(words: list[str]) -> int:
    """Run; returns 0 if all was sound, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.streams", description="Kill who puts into channels and takes from them."
    )
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill (default 200)")
    parser.add_argument("--minutes", type=float, default=30.0, help="end after that time (default 30)")
    parser.add_argument("--seed", type=int, help="for the same choices again (not the same timing)")
    parser.add_argument("--methods", default="fork,spawn,forkserver", help="start methods (default: all)")
    given = parser.parse_args(words)
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    report = run(given.kills, seed, began + 60 * given.minutes, tuple(given.methods.split(",")))
    print(report.text(seed, time.monotonic() - began))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
