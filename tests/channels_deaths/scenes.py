"""Scenes: a channel with something in it, and what a process does with it when it is killed or interrupted.

Owns: the channel and what was put into it by the one who stays; the deeds; the books of both, and that all slots are there.
Must not know: how a process is killed.

The lines of this file count as places to be killed at, so that a process also dies with a slot in hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import queue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from tests.channels_deaths import deaths
from tests.helpers.processes import reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

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
        self.missed = self.ahead = self.extra_missed = 0
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
        # The kernel drops the locks of who was reaped with its mappings, and whoever reads of those in /proc may keep them for a moment.
        wait_until(self._only_we_live, PATIENCE, "one who was killed is still thought to live")
        found: list[int] = []
        source = self.channel if self.mine is None else self.mine
        for _ in range(2):
            self.channel._flow._looked = 0.0  # it is time to look for the dead
            with contextlib.suppress(queue.Empty):
                while True:
                    item = source.get_nowait()
                    assert (item == item[0]).all(), f"torn: {item}"
                    found.append(int(item[0]))
                    self.channel.task_done()
        return found

    def _only_we_live(self) -> bool:
        slots = self.channel._flow.slots
        return slots._named() - {slots.parties.me()} <= slots.dead()

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
        # A thread that waited for coroutines notices a little later that they have gone.
        wait_until(lambda: not self.channel.stats().waiting_to_send + self.channel.stats().waiting_to_receive, 5, where)
        stats = self.channel.stats()
        assert stats.held == (), where
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


def loop(stand: Stand) -> None:
    """Go through two items, and leave the loop."""
    for item in source(stand).items():
        assert (item.frame == item.frame[0]).all()
        if item.sequence % 2:
            break


def step(stand: Stand) -> None:
    """Go through one item, and leave the loop."""
    for item in source(stand).items():
        assert (item.frame == item.frame[0]).all()
        break


def close_inside(stand: Stand) -> None:
    """Unsubscribe with an item in hand."""
    with source(stand).receive(PATIENCE) as frame:
        source(stand).close()
        assert (frame == frame[0]).all()


def lay_down(stand: Stand) -> None:
    """Read the next item in place, and give it back as one that cannot have the lock."""
    with pytest.MonkeyPatch.context() as patch, source(stand).receive(PATIENCE) as frame:
        assert (frame == frame[0]).all()
        patch.setattr(type(stand.channel._flow), "briefly", _in_vain)


def get_alone(stand: Stand) -> None:
    """Take the next item as a copy; if it is large, as one that cannot have the lock to count it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(stand.channel._flow), "_until", _in_vain)
        get_one(stand)


def leave_alone(stand: Stand) -> None:
    """Take the next item and not see it, as one that cannot have the lock to leave it to others."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ZeroDivisionError):
        patch.setattr(type(stand.channel._flow), "_until", _in_vain)
        patch.setattr(stand.channel, "_reads", [None] * stand.channel.slots)  # views that are known need not be made
        patch.setattr(type(stand.channel), "_view", _fail)
        with source(stand).receive(PATIENCE):
            raise AssertionError("it was seen")


def _fail(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError


def get_and_pay(stand: Stand) -> None:
    """Count it when the lock is there again, as who waits does."""
    get_alone(stand)
    look_for_deaths(stand)


def leave_and_pay(stand: Stand) -> None:
    """Leave it when the lock is there again."""
    leave_alone(stand)
    look_for_deaths(stand)


def close(stand: Stand) -> None:
    """Unsubscribe."""
    source(stand).close()


def close_alone(stand: Stand) -> None:
    """Unsubscribe as one that cannot have the lock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(stand.channel._flow), "briefly", _in_vain)
        source(stand).close()


def _in_vain(*_: Any) -> None:
    """Find a lock held by one that was stopped."""


def hand_on(stand: Stand) -> None:
    """Have the subscription travel, and read the next item where it arrives."""
    arrived = pickle.loads(pickle.dumps(source(stand)))
    with arrived.receive(PATIENCE) as frame:
        assert (frame == frame[0]).all()
    arrived.close()


# -- deeds in coroutines -----------------------------------------------------------------------------------------------


async def _aput(stand: Stand) -> None:
    """Put the new item."""
    await stand.channel.aput(stand.item(NEW))


async def _alend(stand: Stand) -> None:
    """Fill a slot in place, in two steps."""
    async with stand.channel.aloan(meta="new") as frame:
        frame[: stand.size // 2] = NEW
        await asyncio.sleep(0)
        frame[stand.size // 2 :] = NEW


async def _aspoil(stand: Stand) -> None:
    """Fill half of a slot, and think better of it."""
    with contextlib.suppress(ZeroDivisionError):
        async with stand.channel.aloan() as frame:
            frame[: stand.size // 2] = NEW
            raise ZeroDivisionError


async def _aget(stand: Stand) -> None:
    """Take the next item as a copy, and note that it was had."""
    stand.had = await source(stand).aget()


async def _areceive(stand: Stand) -> None:
    """Read the next item in place."""
    async with source(stand).areceive() as frame:
        await asyncio.sleep(0)
        assert (frame == frame[0]).all()


async def _aloop(stand: Stand) -> None:
    """Go through two items, and leave the loop."""
    async with contextlib.aclosing(source(stand).aitems()) as items:
        async for item in items:
            assert (item.frame == item.frame[0]).all()
            if item.sequence % 2:
                break


async def _astep(stand: Stand) -> None:
    """Go through one item, and leave the loop."""
    async with contextlib.aclosing(source(stand).aitems()) as items:
        async for item in items:
            assert (item.frame == item.frame[0]).all()
            break


async def _await_slot(stand: Stand) -> None:
    """Wait for a slot, which comes of an item that another coroutine takes."""
    waiting = asyncio.create_task(_aput(stand))
    await deaths.somebody_waits(stand.channel, waiting)
    await _areceive(stand)
    await waiting


async def _await_item(stand: Stand) -> None:
    """Wait for an item, which another coroutine puts."""
    waiting = asyncio.create_task(_areceive(stand))
    await deaths.somebody_waits(stand.channel, waiting)
    await _aput(stand)
    await waiting


async def _wait_for_slot(stand: Stand) -> None:
    """Wait for a slot in vain."""
    await _cancelled(stand, _aput(stand))


async def _wait_for_item(stand: Stand) -> None:
    """Wait for an item in vain."""
    await _cancelled(stand, _areceive(stand))


async def _cancelled(stand: Stand, deed: Coroutine[Any, Any, None]) -> None:
    waiting = asyncio.create_task(deed)
    await deaths.somebody_waits(stand.channel, waiting)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


def _in_loop(main: Callable[[Stand], Coroutine[Any, Any, None]]) -> Callable[[Stand], None]:
    """Make a deed of a coroutine."""

    def deed(stand: Stand) -> None:
        with asyncio.Runner() as runner:
            # What a task was interrupted by is not to be logged: pytest would keep it, and with it the channel.
            runner.get_loop().set_exception_handler(_in_vain)
            runner.run(main(stand))

    return deed


aput, alend, aspoil = map(_in_loop, (_aput, _alend, _aspoil))
aget, areceive, aloop = map(_in_loop, (_aget, _areceive, _aloop))
astep = _in_loop(_astep)
await_slot, await_item = map(_in_loop, (_await_slot, _await_item))
wait_for_slot, wait_for_item = map(_in_loop, (_wait_for_slot, _wait_for_item))


# -- what is used by deeds, and made ready for them --------------------------------------------------------------------


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


def subscribe_for_another(stand: Stand) -> None:
    """Have a subscription for whoever dies or is interrupted, that comes to what is put from now on."""
    stand.extra = stand.channel.subscribe()


def let_come(*numbers: int, then: Callable[[Stand], Any] | None = None) -> Callable[[Stand], None]:
    """Let the one who stays have had items that the other has before it; the books begin after that."""

    def ready(stand: Stand) -> None:
        subscribe_for_another(stand)
        for number in numbers:
            stand.put(number)
            assert stand.drain() == [number]
        if then is not None:
            then(stand)
        stand.since()

    return ready


def desert(stand: Stand) -> None:
    """Drop the other subscription."""
    stand.extra = None


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
    return source(stand).receive(PATIENCE)
