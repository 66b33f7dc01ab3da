"""A handler raises at every point at which it can, and the process goes on: no lock is held, no slot gone, the counts are exact."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import queue
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import shmarray as sa
from shmarray.channels import aio
from tests.channels_deaths import deaths, scenes
from tests.channels_deaths.scenes import LARGE, NEW, SLOTS, SMALL, Stand
from tests.helpers.processes import reap, wait_until
from tests.helpers.tracing import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALL = tuple(range(1, SLOTS + 1))
DROP_OLDEST: dict[str, Any] = {"full": "drop-oldest"}
AGAIN: dict[str, Any] = {"redeliver": True}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say nothing of an interruption in a destructor, where no exception can come out."""

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, Interrupted):
            sys.__unraisablehook__(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", hook)


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The thread that waits for coroutines goes soon when it has had nothing to do: see that it does."""
    monkeypatch.setattr(aio, "_LINGER", 0.02)
    yield
    wait_until(lambda: not [each for each in threading.enumerate() if each.name.startswith("shmarray channel")], 20)


class Scene(NamedTuple):
    """Options of the channel; what is there; what is interrupted; whether it puts, and whether it can lose an item; what is ready."""

    options: dict[str, Any]
    there: tuple[int, ...]
    deed: Callable[[Stand], None]
    puts: bool = False
    takes: bool = False
    ready: Callable[[Stand], None] | None = None


QUEUES = {
    "put": Scene({}, ALL[:-1], scenes.put, puts=True),
    "lend": Scene({}, ALL[:-1], scenes.lend, puts=True),
    "spoil a loan": Scene({}, ALL[:-1], scenes.spoil),
    "put that is dropped": Scene({"full": "drop-new"}, ALL, scenes.put),
    "put and evict": Scene(DROP_OLDEST, ALL, scenes.put, puts=True),
    "lend and evict": Scene(DROP_OLDEST, ALL, scenes.lend, puts=True),
    "get": Scene({}, ALL, scenes.get_one, takes=True),
    "receive": Scene({}, ALL, scenes.receive, takes=True),
    "receive what comes again": Scene(AGAIN, ALL, scenes.receive, False, True, scenes.die_with(scenes.taken)),
    "wait to put": Scene({}, ALL, scenes.wait_to_put),
    "wait to get": Scene({}, (), scenes.wait_to_get),
    "wait to join": Scene({}, (1,), scenes.wait_to_join),
    "look for deaths": Scene(
        AGAIN, ALL[:-1], scenes.look_for_deaths, False, False, scenes.die_with(scenes.lent, scenes.taken)
    ),
    "go through a loop": Scene({}, (1,), scenes.step, takes=True),
    "lay down": Scene({}, ALL, scenes.lay_down, takes=True),
    "get without the lock": Scene({}, ALL, scenes.get_alone, takes=True),
    "leave without the lock": Scene({}, ALL, scenes.leave_alone, takes=True),
    "have left without the lock": Scene({}, ALL, scenes.leave_and_pay, takes=True),
    "have got without the lock": Scene({}, ALL, scenes.get_and_pay, takes=True),
}
OF_COROUTINES = {
    "put in a coroutine": Scene({}, ALL[:-1], scenes.aput, puts=True),
    "lend in a coroutine": Scene({}, ALL[:-1], scenes.alend, puts=True),
    "spoil a loan in a coroutine": Scene({}, ALL[:-1], scenes.aspoil),
    "lend and evict in a coroutine": Scene(DROP_OLDEST, ALL, scenes.alend, puts=True),
    "get in a coroutine": Scene({}, ALL, scenes.aget, takes=True),
    "receive in a coroutine": Scene({}, ALL, scenes.areceive, takes=True),
    "go through a loop in a coroutine": Scene({}, (1,), scenes.astep, takes=True),
    "wait in a coroutine for a slot": Scene({}, ALL, scenes.await_slot, puts=True, takes=True),
    "wait in a coroutine for an item": Scene({}, (), scenes.await_item, puts=True, takes=True),
    "wait in a coroutine for a slot in vain": Scene({}, ALL, scenes.wait_for_slot),
    "wait in a coroutine for an item in vain": Scene({}, (), scenes.wait_for_item),
}


def settle(stand: Stand) -> None:
    """Be done with what was had; let go of what an exception keeps in circles, so that what was in hand of it comes back."""
    if stand.channel.stats().held:
        gc.collect()
    if stand.had is not None:
        stand.had = None
        stand.channel.task_done()


def balances(stand: Stand, scene: Scene, where: str) -> None:
    """What was put is in the books once; at most what the interrupted call had taken is missing."""
    had = stand.had is not None
    settle(stand)
    found = stand.drain()
    assert stand.channel.join(0.5), f"{where}: somebody is still thought to deal with an item"
    with pytest.raises(ValueError, match="too many"):
        stand.channel.task_done()
    sent, received, dropped, lost = stand.since()
    assert sent - len(scene.there) in (0, scene.puts), where
    published = [*scene.there, NEW][:sent]
    late = dropped if scene.options.get("full") == "drop-oldest" else 0
    assert sorted(set(found)) == [number for number in published if number in found], (where, found)
    assert len(found) == len(set(found)), (where, found)
    assert lost == 0, where
    assert sent == received + late, (where, sent, received, late)
    missing = len(published) - len(found) - late
    assert missing == received - len(found), where
    assert missing <= scene.takes, (where, found)
    assert missing >= had, (where, found)
    stand.is_whole(where)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", QUEUES)
def test_who_is_interrupted_at_any_point_with_a_queue_goes_on(
    name: str, size: int, either_store: sa.Store, request: pytest.FixtureRequest
) -> None:
    """At most the item whose `get` it was is gone; nothing is held, nobody is counted who does not wait.

    Of a large item only the copying is another: with it at every third point, and with `--deep` at every one.
    """
    step = 1 if size == SMALL or request.config.getoption("--deep") else 3
    sweep_queue(QUEUES[name], size, either_store, step=step)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", OF_COROUTINES)
def test_whose_coroutine_is_interrupted_at_any_point_with_a_queue_goes_on(
    name: str, size: int, either_store: sa.Store, stride: int
) -> None:
    """The same, when its event loop has ended by that."""
    sweep_queue(OF_COROUTINES[name], size, either_store, 1 + len(name) % stride, stride)


def sweep_queue(scene: Scene, size: int, either_store: sa.Store, first: int = 1, step: int = 1) -> None:
    """Interrupt a deed at every so many-th point."""
    stand = Stand(either_store, size, **scene.options)

    def ready() -> None:
        stand.put(*scene.there)
        if scene.ready is not None:
            scene.ready(stand)

    verify = partial(balances, stand, scene)
    assert deaths.interrupt_everywhere(ready, partial(scene.deed, stand), verify, first=first, step=step) > 0
    assert reap(deaths.in_child(partial(scenes.put, stand))) == 0


SHARED = scenes.subscribe_for_another
BROADCASTS = {
    "put": Scene({}, ALL[:-1], scenes.put, puts=True),
    "lend": Scene({}, ALL[:-1], scenes.lend, puts=True),
    "put and evict": Scene(DROP_OLDEST, ALL, scenes.put, puts=True),
    "lend and evict": Scene(DROP_OLDEST, ALL, scenes.lend, puts=True),
    "get": Scene({}, ALL, scenes.get_one, False, True, SHARED),
    "receive": Scene({}, ALL, scenes.receive, False, True, SHARED),
    "get, the last to have it": Scene({}, (), scenes.get_one, False, True, scenes.let_come(*ALL)),
    "receive, the last to have it": Scene({}, (), scenes.receive, False, True, scenes.let_come(*ALL)),
    "receive after what was missed": Scene(DROP_OLDEST, (), scenes.receive, False, True, scenes.let_come(*ALL, 4, 5)),
    "go through a loop": Scene({}, (1,), scenes.step, False, True, SHARED),
    "close": Scene({}, ALL, scenes.close, False, False, SHARED),
    "close with an item in hand": Scene({}, ALL, scenes.close_inside, False, True, SHARED),
    "close without the lock": Scene({}, (), scenes.close_alone, False, False, scenes.let_come(*ALL)),
    "lay down": Scene({}, ALL, scenes.lay_down, False, True, SHARED),
    "lay down, the last to have it": Scene({}, (), scenes.lay_down, False, True, scenes.let_come(*ALL)),
    "receive after one was laid down": Scene(
        {}, (), scenes.receive, False, True, scenes.let_come(*ALL, then=scenes.lay_down)
    ),
    "close after one was laid down": Scene(
        {}, (), scenes.close, False, False, scenes.let_come(*ALL, then=scenes.lay_down)
    ),
    "put where one was laid down": Scene({}, (), scenes.put, True, False, scenes.let_come(*ALL, then=scenes.lay_down)),
    "put where one was deserted": Scene({}, (), scenes.put, True, False, scenes.let_come(*ALL, then=scenes.desert)),
    "put and evict where one was laid down": Scene(
        DROP_OLDEST, (), scenes.put, True, False, scenes.let_come(*ALL, then=scenes.lay_down)
    ),
    "get without the lock": Scene({}, ALL, scenes.get_alone, False, True, SHARED),
    "have got without the lock": Scene({}, ALL, scenes.get_and_pay, False, True, SHARED),
    "leave without the lock": Scene({}, ALL, scenes.leave_alone, False, True, SHARED),
    "have left without the lock": Scene({}, ALL, scenes.leave_and_pay, False, True, SHARED),
    "hand on": Scene({"name": "interrupted"}, ALL, scenes.hand_on, False, True, SHARED),
    "subscribe": Scene({}, (), scenes.subscribe, True, False),
    "wait to get": Scene({}, (), scenes.wait_to_get, False, False, SHARED),
    "wait to put": Scene({}, ALL, scenes.wait_to_put),
    "wait to join": Scene({}, (1,), scenes.wait_to_join),
    "look for deaths": Scene(
        {}, (), scenes.look_for_deaths, False, False, scenes.let_come(8, then=scenes.die_with(scenes.taken))
    ),
    "put in a coroutine": Scene({}, ALL[:-1], scenes.aput, puts=True),
    "lend and evict in a coroutine": Scene(DROP_OLDEST, ALL, scenes.alend, puts=True),
    "get in a coroutine": Scene({}, ALL, scenes.aget, False, True, SHARED),
    "receive in a coroutine": Scene({}, ALL, scenes.areceive, False, True, SHARED),
    "go through a loop in a coroutine": Scene({}, (1,), scenes.astep, False, True, SHARED),
    "wait in a coroutine for a slot": Scene({}, (), scenes.await_slot, True, True, scenes.let_come(*ALL)),
    "wait in a coroutine for an item": Scene({}, (), scenes.await_item, True, True, SHARED),
    "wait in a coroutine for a slot in vain": Scene({}, (), scenes.wait_for_slot, False, False, scenes.let_come(*ALL)),
    "wait in a coroutine for an item in vain": Scene({}, (), scenes.wait_for_item, False, False, SHARED),
}


CLOSING = (scenes.close, scenes.close_inside, scenes.close_alone, scenes.hand_on, scenes.look_for_deaths)


def rest_of(stand: Stand, scene: Scene, where: str) -> None:
    """The interrupted one has all that was before it, but for what it had just taken, and in order; then it unsubscribes."""
    subscription, stand.extra = stand.extra, None
    seen: list[int] = []
    try:
        while not subscription.empty():
            item = subscription.get(timeout=5)
            assert (item == item[0]).all(), where
            stand.channel.task_done()
            seen.append(int(item[0]))
    except sa.ChannelClosedError:
        assert scene.deed in CLOSING, where
    else:
        old = len(seen) - (NEW in seen)
        assert stand.ahead - old - subscription.missed + stand.extra_missed in (0, scene.takes), (where, seen)
    assert seen == sorted(seen), (where, seen)
    subscription.close()


def reaches_all(stand: Stand, scene: Scene, where: str) -> None:
    """All that was published comes to the one who stays; the interrupted one goes on."""
    settle(stand)
    stand.channel._flow.look_for_deaths()
    if stand.extra is not None:
        rest_of(stand, scene, where)
    found = stand.drain()
    sent, _, dropped, lost = stand.since()
    published = [*scene.there, NEW][:sent]
    assert sent - len(scene.there) in (0, scene.puts), where
    assert stand.mine is not None
    missed = stand.mine.missed - stand.missed
    stand.missed = stand.mine.missed
    assert found == published[missed:], (where, found, published, missed)
    assert missed == dropped or scene.ready is not None, (where, missed, dropped)
    assert lost == 0, where
    assert stand.channel.join(0.5), f"{where}: somebody is still thought to deal with an item"
    with pytest.raises(ValueError, match="too many"):
        stand.channel.task_done()
    stand.is_whole(where)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", BROADCASTS)
def test_who_is_interrupted_at_any_point_with_a_broadcast_goes_on(
    name: str, size: int, either_store: sa.Store, stride: int
) -> None:
    """At most the item that it had just taken is gone for it, and for nobody else; nothing is held, all slots are there."""
    scene = BROADCASTS[name]
    stand = Stand(either_store, size, mode="broadcast", **scene.options)

    def ready() -> None:
        if scene.ready is not None:
            scene.ready(stand)
        stand.put(*scene.there)
        if stand.extra is not None:
            stand.ahead, stand.extra_missed = stand.extra.qsize(), stand.extra.missed

    verify = partial(reaches_all, stand, scene)
    first = 1 + len(name) % stride
    assert deaths.interrupt_everywhere(ready, partial(scene.deed, stand), verify, first=first, step=stride) > 0
    assert reap(deaths.in_child(partial(scenes.put, stand))) == 0
    stand.channel.unlink()


class Again:
    """An object of a channel by which alone this process puts or takes."""

    _numbers = itertools.count()

    def __init__(self, store: sa.Store, **options: Any) -> None:
        """Make the channel."""
        self.channel = store.channel(4, np.int64, slots=2, name=f"again {next(self._numbers)}", **options)
        self.store = store
        self.object: Any = None

    def ready(self) -> None:
        """Have a new object."""
        self.object = self.store.open_channel(str(self.channel.name))

    def put(self) -> None:
        """Put, for the first time."""
        self.object.put(np.arange(4), block=False)

    def get(self) -> None:
        """Take, for the first time, in vain."""
        with contextlib.suppress(queue.Empty, sa.ChannelClosedError):
            self.object.get(block=False)

    def drain(self) -> None:
        """Take what there is."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.object.get(block=False)

    def close(self) -> None:
        """Close."""
        self.object.close()


@pytest.mark.parametrize("mode", ["queue", "broadcast"])
def test_who_is_interrupted_becoming_one_of_a_channel_is_one_or_is_not(mode: str, either_store: sa.Store) -> None:
    """It can go on, is then known as what it is, and is known no more when it has closed."""
    again = Again(either_store, mode=mode)
    me = (os.getpid(),)

    def verify(where: str) -> None:
        again.put()
        again.drain()
        stats = again.channel.stats()
        assert stats.producers == me, where
        if mode == "queue":
            assert stats.consumers == me, where
        else:
            assert [each.pid for each in stats.subscribers] == list(me), where
        again.close()
        again.channel._flow.look_for_deaths()
        stats = again.channel.stats()
        assert (stats.producers, stats.consumers, stats.subscribers, stats.held) == ((), (), (), ()), where
        assert stats.depth == 0, where

    for deed in (again.put, again.get):
        assert deaths.interrupt_everywhere(again.ready, deed, verify) > 5
    again.channel.unlink()


@pytest.mark.parametrize("mode", ["queue", "broadcast"])
def test_who_is_interrupted_closing_can_close_again(mode: str, either_store: sa.Store) -> None:
    """After that nobody puts or takes any more, whatever the first attempt has done."""
    again = Again(either_store, mode=mode)

    def ready() -> None:
        again.ready()
        again.put()
        again.get()

    def verify(where: str) -> None:
        again.close()
        again.channel._flow.look_for_deaths()
        stats = again.channel.stats()
        assert (stats.producers, stats.consumers, stats.subscribers) == ((), (), ()), where

    assert deaths.interrupt_everywhere(ready, again.close, verify) > 1
    again.channel.unlink()
