"""Whoever uses a channel is killed at every line, and those who stay go on: all slots are there, no item is torn, the books balance.

By default at every thirteenth line, in turn with small items and with large ones; with `--deep` at every one with both.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from shmarray.errors import LostTaskError
from tests.channels_deaths import deaths, scenes
from tests.channels_deaths.scenes import LARGE, NEW, SLOTS, SMALL, Stand

if TYPE_CHECKING:
    from collections.abc import Callable

    import shmarray as sa

ALL = tuple(range(1, SLOTS + 1))
DROP_NEW: dict[str, Any] = {"full": "drop-new"}
DROP_OLDEST: dict[str, Any] = {"full": "drop-oldest"}
AGAIN: dict[str, Any] = {"redeliver": True}
BROADCAST: dict[str, Any] = {"mode": "broadcast"}


class Scene(NamedTuple):
    """Options of the channel; what is put before; what the one who dies does, and whether it takes, or puts; what is made ready besides."""

    options: dict[str, Any]
    there: tuple[int, ...]
    deed: Callable[[Stand], None]
    takes: int = 0
    ready: Callable[[Stand], None] | None = None


QUEUES = {
    "put": Scene({}, ALL[:-1], scenes.put),
    "lend": Scene({}, ALL[:-1], scenes.lend),
    "spoil a loan": Scene({}, ALL[:-1], scenes.spoil),
    "put that is dropped": Scene(DROP_NEW, ALL, scenes.put),
    "lend what is dropped": Scene(DROP_NEW, ALL, scenes.lend),
    "put where there is room": Scene(DROP_OLDEST, (1,), scenes.put),
    "put and evict": Scene(DROP_OLDEST, ALL, scenes.put),
    "lend and evict": Scene(DROP_OLDEST, ALL, scenes.lend),
    "put and evict what was redelivered": Scene(
        DROP_OLDEST | AGAIN, ALL, scenes.put, 0, scenes.die_with(scenes.taken, scenes.taken)
    ),
    "get": Scene({}, ALL, scenes.get, 1),
    "get the last": Scene({}, (1,), scenes.get, 1),
    "receive": Scene({}, ALL, scenes.receive, 1),
    "get, to be redelivered": Scene(AGAIN, ALL, scenes.get, 1),
    "receive, to be redelivered": Scene(AGAIN, ALL, scenes.receive, 1),
    "receive what was redelivered": Scene(AGAIN, ALL, scenes.receive, 1, scenes.die_with(scenes.taken, scenes.taken)),
    "wait to put": Scene({}, ALL, scenes.wait_to_put),
    "wait to get": Scene({}, (), scenes.wait_to_get),
    "wait to join": Scene({}, (1,), scenes.wait_to_join),
    "come and go": Scene({"name": "dying"}, (), scenes.begin, 1),
    "bury": Scene({}, ALL[:-1], scenes.look_for_deaths, 2, scenes.die_with(scenes.lent, scenes.taken, scenes.taken)),
    "bury, to redeliver": Scene(
        AGAIN, ALL[:-1], scenes.look_for_deaths, 0, scenes.die_with(scenes.lent, scenes.taken, scenes.taken)
    ),
    "go through a loop": Scene({}, ALL, scenes.loop, 2),
    "lay down": Scene({}, ALL, scenes.lay_down, 1),
    "put in a coroutine": Scene({}, ALL[:-1], scenes.aput),
    "lend in a coroutine": Scene({}, ALL[:-1], scenes.alend),
    "spoil a loan in a coroutine": Scene({}, ALL[:-1], scenes.aspoil),
    "lend and evict in a coroutine": Scene(DROP_OLDEST, ALL, scenes.alend),
    "get in a coroutine": Scene({}, ALL, scenes.aget, 1),
    "receive in a coroutine": Scene({}, ALL, scenes.areceive, 1),
    "receive in a coroutine, to be redelivered": Scene(AGAIN, ALL, scenes.areceive, 1),
    "go through a loop in a coroutine": Scene({}, ALL, scenes.aloop, 2),
    "wait in a coroutine for a slot": Scene({}, ALL, scenes.await_slot, 1),
    "wait in a coroutine for an item": Scene({}, (), scenes.await_item, 1),
    "wait in a coroutine for a slot in vain": Scene({}, ALL, scenes.wait_for_slot),
    "wait in a coroutine for an item in vain": Scene({}, (), scenes.wait_for_item),
}


def drained_and_joined(stand: Stand) -> list[int]:
    """Take all there is; what the dead had got as copies and not dealt with, `join` gives up."""
    found = stand.drain()
    with contextlib.suppress(LostTaskError):
        assert stand.channel.join(scenes.PATIENCE)
    assert stand.channel.join(scenes.PATIENCE)
    return found


def balances(stand: Stand, scene: Scene, where: str) -> None:
    """What was put is in the books once, and in order; at most what was in hand is missing."""
    found = drained_and_joined(stand)
    sent, received, dropped, lost = stand.since()
    published = [*scene.there, NEW][:sent]
    assert sent in (len(scene.there), len(scene.there) + (scene.deed in PUTTERS)), where
    assert sorted(set(found)) == [number for number in published if number in found], (where, found)
    assert found == sorted(found) or stand.keeps, (where, found)
    assert len(found) == len(set(found)), (where, found)
    late = dropped if scene.options.get("full") == "drop-oldest" else 0
    assert sent == received + late + lost, (where, sent, received, dropped, lost)
    missing = len(published) - len(found)
    by_the_dead = received - len(found)
    assert missing == lost + late + by_the_dead, (where, found, lost, dropped, received)
    assert dropped <= 1, where
    assert lost + by_the_dead <= scene.takes, where
    if stand.keeps:
        assert lost == 0, where
    stand.is_whole(where)


PUTTERS = (
    *(scenes.put, scenes.lend, scenes.begin),
    *(scenes.aput, scenes.alend, scenes.await_slot, scenes.await_item),
)


def _first(name: str, size: int, step: int) -> int:
    """Line of the first death: another for each scene, and for large items in the middle between two of the small ones'."""
    return 1 + (len(name) + (size == LARGE) * step // 2) % step


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", QUEUES)
def test_who_uses_a_queue_and_is_killed_at_any_line_disturbs_nobody(
    name: str, size: int, step: int, store: sa.Store
) -> None:
    """Nothing but what it had in hand is gone, that is counted, or goes to another; every slot comes back."""
    scene = QUEUES[name]
    stand = Stand(store, size, **scene.options)

    def ready() -> None:
        stand.put(*scene.there)
        if scene.ready is not None:
            scene.ready(stand)

    verify = partial(balances, stand, scene)
    assert (
        deaths.sweep(ready, partial(scene.deed, stand), verify, first=_first(name, size, step), step=step) > 40 // step
    )
    stand.channel.unlink()


def _hand_over(stand: Stand) -> None:
    """Have one that a forked child has already made its own, and died with, an item in hand."""
    scenes.subscribe_for_another(stand)
    stand.put(8)
    scenes.die_with(lambda stand: scenes.source(stand).receive(scenes.PATIENCE))(stand)


BROADCASTS = {
    "put": Scene({}, ALL[:-1], scenes.put),
    "lend": Scene({}, ALL[:-1], scenes.lend),
    "put and evict": Scene(DROP_OLDEST, ALL, scenes.put),
    "lend and evict": Scene(DROP_OLDEST, ALL, scenes.lend),
    "subscribe": Scene({}, (), scenes.subscribe),
    "get": Scene({}, ALL, scenes.get, 1, scenes.subscribe_for_another),
    "receive": Scene({}, ALL, scenes.receive, 1, scenes.subscribe_for_another),
    "wait to get": Scene({}, (), scenes.wait_to_get, 0, scenes.subscribe_for_another),
    "put and evict for one who died": Scene(DROP_OLDEST, ALL[:-1], scenes.put, 0, _hand_over),
    "bury": Scene({}, ALL[:-2], scenes.look_for_deaths, 0, _hand_over),
    "get, the last to have it": Scene({}, (), scenes.get, 1, scenes.let_come(*ALL)),
    "receive, the last to have it": Scene({}, (), scenes.receive, 1, scenes.let_come(*ALL)),
    "receive after what was missed": Scene(DROP_OLDEST, (), scenes.receive, 1, scenes.let_come(*ALL, 4, 5)),
    "go through a loop": Scene({}, (), scenes.loop, 2, scenes.let_come(*ALL)),
    "close with an item in hand": Scene({}, ALL, scenes.close_inside, 1, scenes.subscribe_for_another),
    "close without the lock": Scene({}, (), scenes.close_alone, 0, scenes.let_come(*ALL)),
    "lay down": Scene({}, ALL, scenes.lay_down, 1, scenes.subscribe_for_another),
    "lay down, the last to have it": Scene({}, (), scenes.lay_down, 1, scenes.let_come(*ALL)),
    "receive after one was laid down": Scene({}, (), scenes.receive, 1, scenes.let_come(*ALL, then=scenes.lay_down)),
    "close after one was laid down": Scene({}, (), scenes.close, 1, scenes.let_come(*ALL, then=scenes.lay_down)),
    "put where one was laid down": Scene({}, (), scenes.put, 0, scenes.let_come(*ALL, then=scenes.lay_down)),
    "put where one was deserted": Scene({}, (), scenes.put, 0, scenes.let_come(*ALL, then=scenes.desert)),
    "put and evict where one was laid down": Scene(
        DROP_OLDEST, (), scenes.put, 0, scenes.let_come(*ALL, then=scenes.lay_down)
    ),
    "hand on": Scene({"name": "handed on"}, ALL, scenes.hand_on, 1, scenes.subscribe_for_another),
    "put in a coroutine": Scene({}, ALL[:-1], scenes.aput),
    "get in a coroutine": Scene({}, ALL, scenes.aget, 1, scenes.subscribe_for_another),
    "receive in a coroutine": Scene({}, ALL, scenes.areceive, 1, scenes.subscribe_for_another),
    "go through a loop in a coroutine": Scene({}, (), scenes.aloop, 2, scenes.let_come(*ALL)),
    "wait in a coroutine for a slot": Scene({}, (), scenes.await_slot, 1, scenes.let_come(*ALL)),
    "wait in a coroutine for an item": Scene({}, (), scenes.await_item, 1, scenes.subscribe_for_another),
    "wait in a coroutine for a slot in vain": Scene({}, (), scenes.wait_for_slot, 0, scenes.let_come(*ALL)),
    "wait in a coroutine for an item in vain": Scene({}, (), scenes.wait_for_item, 0, scenes.subscribe_for_another),
}


def reaches_all(stand: Stand, scene: Scene, before: tuple[int, ...], where: str) -> None:
    """The one who stays has everything in order; what it has not, it was told that it missed; who died holds nothing up."""
    if stand.extra is not None:
        stand.extra.close()  # as its death would, where it has not made it its own
        stand.extra = None
    found = drained_and_joined(stand)
    sent, _, dropped, lost = stand.since()
    published = [*before, *scene.there, NEW][:sent]
    assert stand.mine is not None
    missed = stand.mine.missed - stand.missed
    stand.missed = stand.mine.missed
    assert sent - len(before) - len(scene.there) in (0, 1), where
    assert found == published[missed:], (where, found, published, missed)
    assert lost == 0, where
    if scene.ready is _hand_over:
        # What the dead had in hand is missed too; and it counts as dropped when it was for all who were late: these are two.
        assert missed in (0, 2), where
        assert dropped <= missed, where
    else:
        assert missed == dropped, (where, missed, dropped)
    assert dropped <= (stand.policy == "drop-oldest"), where
    stand.is_whole(where)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", BROADCASTS)
def test_who_takes_part_in_a_broadcast_and_is_killed_at_any_line_disturbs_nobody(
    name: str, size: int, step: int, store: sa.Store
) -> None:
    """Every subscriber that lives gets every item that was not dropped for it; no slot waits for the dead."""
    scene = BROADCASTS[name]
    stand = Stand(store, size, mode="broadcast", **scene.options)
    before = (8,) if scene.ready is _hand_over else ()

    def ready() -> None:
        if scene.ready is not None:
            scene.ready(stand)
        stand.put(*scene.there)

    verify = partial(reaches_all, stand, scene, before)
    assert (
        deaths.sweep(ready, partial(scene.deed, stand), verify, first=_first(name, size, step), step=step) > 20 // step
    )
    stand.channel.unlink()
