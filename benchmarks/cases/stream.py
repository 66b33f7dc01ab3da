"""How many items a second get from process to process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.cases.case import Case, Samples, UnableError
from benchmarks.cases.crowd import Crowd, answers, ask_all, look
from benchmarks.measure import Aim, Measure
from benchmarks.rivals.streaming import Form

if TYPE_CHECKING:
    from benchmarks.cases.crowd import End
    from benchmarks.measure import Scale

_FORMS = {
    "1 KiB": (Form((256,), "<f4", 256), "1,024 bytes of float32, copied in and out"),
    "64 KiB": (Form((16_384,), "<f4", 64), "64 KiB of float32, copied in and out"),
    "frames": (
        Form((1080, 1920, 3), "|u1", 8, in_place=True),
        "full-HD frames (6.2 MB), filled and read in place",
    ),
}
_WIDTHS = (1, 2)
_OURS, _EVENT, _FIFO, _QUEUE = "a channel", "iceoryx2, event", "faster-fifo", "multiprocessing.Queue"
_SPINNING, _POLLING = "a channel, spin=1e-3", "iceoryx2, polling"  # both keep a core busy while they wait
_TWO = "filling two slots, nobody reads"
_SOON = 0.02  # seconds until all begin
_TURN = 16  # items for each look at the clock, where they are small
_FACTORS = {
    "1 KiB": ((2, _EVENT), (2, _POLLING), (1.3, "pyzmq"), (8, _QUEUE)),
    "64 KiB": ((1.5, _EVENT), (1.5, _POLLING), (20, _QUEUE), (5, _FIFO)),
    "frames": ((1.2, _EVENT), (1.2, _POLLING), (70, _QUEUE)),
}


class Stream(Case):
    """Send as fast as goes, for a while; the time for an item is that until all had arrived, divided by their number.

    Each item carries its number in its first and its last element, and the receiver looks at both.
    """

    name: ClassVar[str] = "stream"
    question: ClassVar[str] = "stream arrays from process to process, as fast as goes"
    rivals: ClassVar[tuple[str, ...]] = (
        _OURS,
        _SPINNING,
        _QUEUE,
        "Pipe, bytes into a buffer",
        _FIFO,
        "pyzmq",
        _POLLING,
        _EVENT,
        "slots and two semaphores",
        "filling one slot, nobody reads",
        _TWO,
        "filling all slots, nobody reads",
    )
    aims: ClassVar[tuple[Aim, ...]] = (
        *(
            Aim(f"{form} {width}", _OURS, "rate", factor, rival)
            for form, factors in _FACTORS.items()
            for width in _WIDTHS
            for factor, rival in factors
        ),
        Aim("frames 1", _OURS, "rate", 0.85, _TWO),
        Aim("frames 1", _SPINNING, "rate", 0.85, _TWO),
        *(Aim(f"frames {width}", _SPINNING, "rate", 1.2, _POLLING) for width in _WIDTHS),
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give each kind of item, between one and one, and between two and two."""
        del scale
        words = {1: "one producer, one consumer", 2: "two producers, two consumers"}
        return [
            Measure(f"{key} {width}", f"{title}; {words[width]}", items="items")
            for key, (_, title) in _FORMS.items()
            for width in _WIDTHS
        ]

    @staticmethod
    def rounds(scale: Scale) -> tuple[int, int]:
        """Do fewer: a round has six measures, each of them long."""
        return (1, 2) if scale.quick else (3, 4)

    def set_up(self) -> None:
        """Lay the streams, start the processes."""
        self.open()
        self._crowd = Crowd(self.adapter, self.cleanup, max(_WIDTHS), max(_WIDTHS))
        for width in _WIDTHS:
            for key, (form, _) in _FORMS.items():
                self._crowd.lay(f"{key} {width}", form, width, width)
        if not self._crowd.keys:
            raise UnableError("it has no streams")
        self._crowd.start()

    def round(self) -> Samples:
        """Run each stream once; the first round, which is not counted, looks besides in how many slots frames are."""
        found = {key: [self._run(key)] for key in self._crowd.keys}
        if self.adapter.in_place and not self.facts:
            self.facts["slots that frames are in"] = self._in_flight("frames 1")
        return found

    def _run(self, key: str) -> float:
        """Let all send and receive; gives the time for an item."""
        senders, receivers = self._crowd.of(key)
        begin = time.monotonic() + _SOON
        ask_all(receivers, _consume, key, len(senders))
        ask_all(senders, _produce, key, begin, 2 * self.scale.seconds)
        sent = answers(senders, receivers)
        # Only when nobody sends any more: then whoever reads the ends has read all.
        ask_all(senders, _finish, key, max(1, len(receivers)))
        received = answers(receivers)
        answers(senders)
        total: int = sum(count for count, _ in sent)
        if receivers and sum(count for count, _ in received) != total:
            message = f"{total} items were sent and {sum(count for count, _ in received)} received"
            raise RuntimeError(message)
        last: float = max(end for _, end in received or sent)
        return (last - begin) / total

    def _in_flight(self, key: str) -> int:
        """Count at how many places items lie while they are looked at."""
        (sender,), (receiver,) = self._crowd.of(key)
        receiver.ask(_places, key)
        sender.call(_produce, key, time.monotonic(), self.scale.seconds)
        sender.call(_finish, key, 1)
        return int(receiver.answer())


def _values(form: Form) -> tuple[int, int]:
    """Tell how many numbers items can carry, and what the last carries."""
    return (250, 255) if form.dtype == "|u1" else (1 << 22, -1)


def _produce(end: End, key: str, begin: float, seconds: float) -> tuple[int, float]:
    """Send from `begin` on for so long; gives how many, and when that was over."""
    form, send = end.form(key), end.ends[key]
    modulo, _ = _values(form)
    item = form.blank()
    stop, count, now = begin + seconds, 0, time.monotonic()
    time.sleep(max(0.0, begin - now))
    while not count or now < stop:  # once at least, though it be late
        if form.in_place:
            send(count % modulo)
            count += 1
        else:
            for number in range(count, count + _TURN):
                item[0] = item[-1] = number % modulo
                send(item)
            count += _TURN
        now = time.monotonic()
    return count, now


def _finish(end: End, key: str, times: int) -> None:
    """Send the end, once to each receiver."""
    form, send = end.form(key), end.ends[key]
    _, last = _values(form)
    item = form.blank()
    item.fill(last if form.dtype != "|u1" else 255)
    for _ in range(times):
        send(last if form.in_place else item)


def _consume(end: End, key: str, senders: int) -> tuple[int, float]:
    """Receive until as many ends have come as there are senders; gives how many items, and when the last one came."""
    form, take = end.form(key), end.ends[key]
    modulo, last = _values(form)
    count, now, alone = 0, 0.0, senders == 1
    while senders:
        value = take(look)
        if value == last:
            senders -= 1
            continue
        if alone and value != count % modulo:
            message = f"item {value} came, and {count % modulo} was next"
            raise RuntimeError(message)
        count += 1
        now = time.monotonic()
    return count, now


def _places(end: End, key: str) -> int:
    """Receive until the end; gives at how many addresses items lay."""
    _, last = _values(end.form(key))
    places = set()

    def place(item: Any) -> bool:
        places.add(item.__array_interface__["data"][0])
        return bool(item.item(0) == last)

    while not end.ends[key](place):
        pass
    return len(places)
