"""What it costs a producer that several processes get each of its items."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from benchmarks.cases.case import Case, Samples
from benchmarks.cases.crowd import Crowd, answers, ask_all, look
from benchmarks.measure import Aim, Measure
from benchmarks.rivals.streaming import Form

if TYPE_CHECKING:
    from benchmarks.cases.crowd import End
    from benchmarks.measure import Scale

_FORM = Form((16_384,), "<f4", 64, broadcast=True)
_BURST = 32  # fewer than there are slots: nobody has to wait for a subscriber
_WIDTHS = (1, 2, 4, 8)
_OURS = "a channel"
_FLAT = 1.5


class Broadcast(Case):
    """Send a burst of items that all subscribers get; what counts is the processor time of the producer, with all its threads.

    Time on the clock would be that of the subscribers, which want the same processors.
    """

    name: ClassVar[str] = "broadcast"
    question: ClassVar[str] = "send 64 KiB to each of several processes; the sender's processor time for an item"
    rivals: ClassVar[tuple[str, ...]] = (
        _OURS,
        "multiprocessing.Queue",
        "Pipe, bytes into a buffer",
        "pyzmq",
        "iceoryx2, event",
    )
    aims: ClassVar[tuple[Aim, ...]] = (Aim("8", _OURS, "time", _FLAT, _OURS, than_measure="1"),)

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give so many subscribers."""
        del scale
        return [Measure(str(width), "one subscriber" if width == 1 else f"{width} subscribers") for width in _WIDTHS]

    @staticmethod
    def rounds(scale: Scale) -> tuple[int, int]:
        """Do fewer: each contender starts nine processes."""
        return (1, 2) if scale.quick else (3, 4)

    def set_up(self) -> None:
        """Lay the streams, start the processes."""
        self.open()
        self._crowd = Crowd(self.adapter, self.cleanup, 1, max(_WIDTHS))
        for width in _WIDTHS:
            self._crowd.lay(str(width), _FORM, 1, width)
        self._crowd.start()

    def round(self) -> Samples:
        """Send some bursts to each number of subscribers."""
        return {key: [self._burst(key) for _ in self.scale.samples(least=2, most=50)] for key in self._crowd.keys}

    def _burst(self, key: str) -> float:
        (sender,), receivers = self._crowd.of(key)
        before = sender.call(_used)
        ask_all(receivers, _take, key)
        sender.ask(_send, key)
        answers([sender, *receivers])
        return float(sender.call(_used) - before) / _BURST


def _used(end: End) -> float:
    """Tell how long this process has run, in all its threads."""
    del end
    return time.process_time()


def _send(end: End, key: str) -> None:
    send, item = end.ends[key], end.form(key).blank()
    for number in range(_BURST):
        item[0] = item[-1] = number
        send(item)


def _take(end: End, key: str) -> None:
    take = end.ends[key]
    for number in range(_BURST):
        if take(look) != number:
            message = f"item {number} did not come"
            raise RuntimeError(message)
