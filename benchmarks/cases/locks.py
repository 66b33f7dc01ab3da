"""What a lock between processes costs, alone and when four want it."""

from __future__ import annotations

import multiprocessing
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.cases.case import Case, Samples
from benchmarks.measure import Aim, Measure

if TYPE_CHECKING:
    from benchmarks.measure import Scale
    from benchmarks.rivals.interface import Locks

_BATCH = 50  # one alone is shorter than what it takes to read the clock
_PROCESSES = 4
_COUNTED = 2  # the first round that counts
_MANAGER = "Manager().Lock"


class Locking(Case):
    """Take a lock and let it go."""

    name: ClassVar[str] = "locks"
    question: ClassVar[str] = "take a lock between processes and let it go"
    rivals: ClassVar[tuple[str, ...]] = (
        "lock of an array",
        "write() of an array",
        "multiprocessing.Lock",
        _MANAGER,
        "portalocker",
        "filelock",
        "UltraDict",
    )
    once: ClassVar[tuple[str, ...]] = ("crowd",)
    aims: ClassVar[tuple[Aim, ...]] = (
        Aim("alone", "lock of an array", "median", 1.2e-6),
        Aim("with", "write() of an array", "median", 3e-6),
        Aim("alone", "lock of an array", "rate", 10, "portalocker"),
        Aim("alone", "lock of an array", "rate", 10, "filelock"),
        Aim("alone", "lock of an array", "rate", 50, _MANAGER),
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the two ways to write it, and the crowd."""
        del scale
        return [
            Measure("alone", "acquire and release, nobody else there"),
            Measure("with", "the same as a `with` block"),
            Measure("crowd", f"{_PROCESSES} processes at once, time for each of all that were done"),
        ]

    def set_up(self) -> None:
        """Make the lock."""
        self.open()
        self._round = 0

    def round(self) -> Samples:
        """Time some batches, and a crowd the first time."""
        adapter: Locks = self.adapter
        alone = [_alone(adapter) for _ in self.scale.samples()]
        held = [_held(adapter) for _ in self.scale.samples()]
        crowd = []
        self._round += 1
        if self._round == _COUNTED:
            # Once a session, and for long: who gets the lock in a moment is who has a processor.
            counts, seconds = _crowd(adapter, 10 * self.scale.seconds)
            crowd = [seconds / sum(counts)]
            self.facts["least share of a fair one"] = round(min(counts) * len(counts) / sum(counts), 2)
        return {"alone": alone, "with": held, "crowd": crowd}


def _alone(adapter: Locks) -> float:
    acquire, release = adapter.acquire, adapter.release
    start = perf_counter()
    for _ in range(_BATCH):
        acquire()
        release()
    return (perf_counter() - start) / _BATCH


def _held(adapter: Locks) -> float:
    start = perf_counter()
    for _ in range(_BATCH):
        with adapter.hold():
            pass
    return (perf_counter() - start) / _BATCH


def _crowd(adapter: Locks, seconds: float) -> tuple[list[int], float]:
    """Let processes take the lock as often as they can; gives how often each had it, and how long that went on."""
    context: Any = multiprocessing.get_context("fork")
    pipes, running = [], []
    for _ in range(_PROCESSES):
        mine, its = context.Pipe()
        process = context.Process(target=_hammer, args=(adapter, its, seconds))
        process.start()
        its.close()
        pipes.append(mine)
        running.append(process)
    for pipe in pipes:
        pipe.recv()
    begin = monotonic() + 0.01
    for pipe in pipes:
        pipe.send(begin)
    counts = [pipe.recv() for pipe in pipes]
    for process in running:
        process.join()
    return counts, seconds


def _hammer(adapter: Locks, pipe: Any, seconds: float) -> None:
    adapter.renew()
    acquire, release = adapter.acquire, adapter.release
    pipe.send(None)
    begin = pipe.recv()
    while monotonic() < begin:
        pass
    count, end = 0, begin + seconds
    while not count or monotonic() < end:  # once at least, though it be late
        acquire()
        count += 1
        release()
    pipe.send(count)
