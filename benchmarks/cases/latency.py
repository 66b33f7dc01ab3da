"""How long an item is on its way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.cases.case import Case, Samples
from benchmarks.cases.crowd import Crowd, answers
from benchmarks.measure import Aim, Measure
from benchmarks.rivals.streaming import Form

if TYPE_CHECKING:
    from benchmarks.cases.crowd import End
    from benchmarks.measure import Scale

_FORM = Form((128,), "<i8", 8)
_KEY = "stamps"
_PACE = 1e-3
_OURS, _EVENT, _LIMIT = "a channel", "iceoryx2, event", "slots and two semaphores"


class Latency(Case):
    """Send an item every millisecond to a receiver that sleeps; each carries the time at which it was sent."""

    name: ClassVar[str] = "latency"
    question: ClassVar[str] = "send 1,024 bytes to a process that waits for them, a thousand times a second"
    rivals: ClassVar[tuple[str, ...]] = (
        _OURS,
        "a channel, spin=1e-3",
        "multiprocessing.Queue",
        "Pipe, bytes into a buffer",
        "faster-fifo",
        "pyzmq",
        "iceoryx2, polling",
        _EVENT,
        _LIMIT,
    )
    aims: ClassVar[tuple[Aim, ...]] = tuple(
        Aim(measure, _OURS, "time", 1.2, rival) for measure in ("one way", "late") for rival in (_EVENT, _LIMIT)
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give all items, and the slowest of a hundred in each round."""
        del scale
        return [
            Measure("one way", "from before it is sent until it has been read"),
            Measure("late", "the 99th percentile of a round"),
        ]

    def set_up(self) -> None:
        """Lay the stream, start the processes."""
        self.open()
        self._crowd = Crowd(self.adapter, self.cleanup, 1, 1)
        self._crowd.lay(_KEY, _FORM, 1, 1)
        self._crowd.start()

    def round(self) -> Samples:
        """Send some, in step with the clock."""
        (sender,), (receiver,) = self._crowd.of(_KEY)
        count = 20 if self.scale.quick else 200
        receiver.ask(_collect, _KEY, count)
        sender.ask(_pace, _KEY, count)
        _, found = answers([sender, receiver])
        return {"one way": found, "late": [float(np.percentile(found, 99))]}


def _pace(end: End, key: str, count: int) -> None:
    """Send items that carry the time, one in each interval."""
    send, item = end.ends[key], end.form(key).blank()
    begin = time.monotonic() + _PACE
    for number in range(count):
        time.sleep(max(0.0, begin + number * _PACE - time.monotonic()))
        item[0] = time.monotonic_ns()
        send(item)


def _collect(end: End, key: str, count: int) -> list[float]:
    """Receive so many; gives how long each was on its way, by the clock that all processes have in common."""
    take = end.ends[key]
    return [take(_age) for _ in range(count)]


def _age(item: Any) -> float:
    return float(1e-9 * (time.monotonic_ns() - item.item(0)))
