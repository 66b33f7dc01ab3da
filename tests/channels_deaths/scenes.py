"""Scenes: a channel with something in it, and what a process does with it when it is killed or interrupted.

Owns: the channel and what was put into it by the one who stays; the deeds; the books of both, and that all slots are there.
Must not know: how a process is killed.

The lines of this file count as places to be killed at, so that a process also dies with a slot in hand.
"""

from __future__ import annotations

import contextlib
import os
import queue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.helpers.processes import reap

if TYPE_CHECKING:
    from collections.abc import Callable

    import shmarray as sa

SMALL, LARGE = 6, 12_000
"""Elements of an item that is copied with the lock held, and of one that is not."""
SLOTS = 3
NEW = 99
"""The item that is put by whoever dies of it."""
PATIENCE = 20.0


class Books(NamedTuple):
    """What a channel says it has seen."""

    sent: int
    received: int
    dropped: int
    lost: int


class Stand:
    """A channel and the one who stays: this process."""

    def __init__(self, store: sa.Store, size: int, **options: Any) -> None:
        """Make a channel; to a broadcast this process subscribes."""
        self.store = store
        self.size = size
        self.options = options
        self.channel = store.channel(size, np.int64, slots=SLOTS, **options)
        self.broadcasts = options.get("mode") == "broadcast"
        self.keeps = options.get("redeliver", False)
        self.policy = options.get("full", "block")
        self.mine = self.channel.subscribe() if self.broadcasts else None
        self.extra: Any = None
        self.had: Any = None
        self.missed = 0
        self.put(0)
        assert self.drain() == [0]
        self.before = self.books()

    def item(self, number: int) -> Any:
        """Give an item: its number everywhere."""
        return np.full(self.size, number)

    def put(self, *numbers: int) -> None:
        """Put items."""
        for number in numbers:
            assert self.channel.put(self.item(number), timeout=PATIENCE)

    def drain(self) -> list[int]:
        """Take all there is, the dead being looked for; each item must be whole."""
        found: list[int] = []
        source = self.channel if self.mine is None else self.mine
        for _ in range(2):
            self.channel._flow._looked = 0.0  # it is time to look for the dead
            with contextlib.suppress(queue.Empty):
                while True:
                    item = source.get_nowait()
                    assert (item == item[0]).all(), f"torn: {item}"
                    found.append(int(item[0]))
                    if self.mine is None:
                        self.channel.task_done()
        return found

    def books(self) -> Books:
        """Look at the counts."""
        stats = self.channel.stats()
        return Books(stats.sent, stats.received, stats.dropped, stats.lost)

    def since(self) -> Books:
        """Say what came to the counts since they were last looked at, and begin anew."""
        now = self.books()
        then, self.before = self.before, now
        return Books(*(new - old for new, old in zip(now, then, strict=True)))

    def is_whole(self, where: str) -> None:
        """Nobody has anything in hand or waits, and every slot can be filled, and emptied in order."""
        stats = self.channel.stats()
        assert stats.held == (), where
        assert (stats.waiting_to_send, stats.waiting_to_receive) == (0, 0), where
        assert stats.depth == 0, where
        assert len(stats.subscribers) == self.broadcasts, where
        numbers = range(50, 50 + SLOTS)
        for number in numbers:
            assert self.channel.put(self.item(number), block=False), where
        assert self.channel.full(), where
        if self.policy == "block":
            with contextlib.suppress(queue.Full):
                self.channel.put(self.item(1), block=False)
                raise AssertionError(where)
        assert self.drain() == list(numbers), where
        if not self.broadcasts:
            assert self.channel.join(PATIENCE), where
        self.before = self.books()


# -- deeds -------------------------------------------------------------------------------------------------------------


def put(stand: Stand) -> None:
    """Put the new item, whatever the policy makes of it."""
    stand.channel.put(stand.item(NEW), block=False)


def lend(stand: Stand) -> None:
    """Fill a slot in place, in two steps."""
    with stand.channel.loan(0, meta="new") as frame:
        frame[: stand.size // 2] = NEW
        frame[stand.size // 2 :] = NEW


def spoil(stand: Stand) -> None:
    """Fill half of a slot, and think better of it."""
    with contextlib.suppress(ZeroDivisionError), stand.channel.loan(0) as frame:
        frame[: stand.size // 2] = NEW
        raise ZeroDivisionError


def get(stand: Stand) -> None:
    """Take the next item as a copy, and say that it is dealt with."""
    taken = source(stand).get(timeout=PATIENCE)
    assert (taken == taken[0]).all()
    if not stand.broadcasts:
        stand.channel.task_done()


def get_one(stand: Stand) -> None:
    """Take the next item as a copy, and note that it was had."""
    stand.had = source(stand).get(timeout=PATIENCE)


def say_done(stand: Stand) -> None:
    """Say of a copy that it is dealt with."""
    stand.channel.task_done()


def receive(stand: Stand) -> None:
    """Read the next item in place."""
    with source(stand).receive(PATIENCE) as frame:
        first = int(frame[0])
        assert (frame == first).all()


def source(stand: Stand) -> Any:
    """Give what this process takes from: of a broadcast a subscription made for it, or its own."""
    return stand.channel if stand.extra is None else stand.extra


def wait_to_put(stand: Stand) -> None:
    """Wait for a slot in vain."""
    with contextlib.suppress(queue.Full):
        stand.channel.put(stand.item(NEW), timeout=0.002)
        raise AssertionError("there was a slot")


def wait_to_get(stand: Stand) -> None:
    """Wait for an item in vain."""
    with contextlib.suppress(queue.Empty):
        source(stand).get(timeout=0.002)
        raise AssertionError("there was an item")


def wait_to_join(stand: Stand) -> None:
    """Wait in vain until all is done."""
    assert not stand.channel.join(0.002)


def subscribe(stand: Stand) -> None:
    """Subscribe, publish, see that, unsubscribe."""
    with stand.channel.subscribe() as mine:
        stand.channel.put(stand.item(NEW), block=False)
        with mine.receive(PATIENCE) as frame:
            assert (frame == NEW).all()


def begin(stand: Stand) -> None:
    """Be a producer and a consumer for a moment, with another object of the channel."""
    with stand.store.open_channel(stand.options["name"]) as again:
        again.put(stand.item(NEW), block=False)
        again.get(timeout=PATIENCE)
        again.task_done()


def look_for_deaths(stand: Stand) -> None:
    """Take from the dead what they had."""
    stand.channel._flow._looked = 0.0
    stand.channel._flow.look_now_and_then()


def die_with(*deeds: Callable[[Stand], Any]) -> Callable[[Stand], None]:
    """Let others die, each with a slot in hand."""

    def ready(stand: Stand) -> None:
        for deed in deeds:
            assert reap(_dying(stand, deed)) == 9

    return ready


def _dying(stand: Stand, deed: Callable[[Stand], Any]) -> int:
    pid = os.fork()
    if not pid:
        try:
            deed(stand).__enter__()
            os._exit(9)
        finally:
            os._exit(1)
    return pid


def lent(stand: Stand) -> Any:
    """Have a slot to fill."""
    return stand.channel.loan(PATIENCE)


def taken(stand: Stand) -> Any:
    """Have an item to read."""
    return stand.channel.receive(PATIENCE)
