"""A handler raises at every point at which it can, and the process goes on: no lock is held, no slot gone, the counts are exact."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import shmarray as sa
from tests.channels_deaths import deaths, scenes
from tests.channels_deaths.scenes import LARGE, NEW, SLOTS, SMALL, Stand
from tests.helpers.processes import reap
from tests.helpers.tracing import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

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
}


def settle(stand: Stand) -> None:
    """Be done with what was had."""
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
    scene = QUEUES[name]
    stand = Stand(either_store, size, **scene.options)

    def ready() -> None:
        stand.put(*scene.there)
        if scene.ready is not None:
            scene.ready(stand)

    verify = partial(balances, stand, scene)
    assert deaths.interrupt_everywhere(ready, partial(scene.deed, stand), verify, step=step) > 1
    assert reap(deaths.in_child(partial(scenes.put, stand))) == 0


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
