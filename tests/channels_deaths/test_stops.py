"""Who is stopped (SIGSTOP) is not dead: others wait for it, or run into their timeout, and all go on when it does."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from shmarray.channels import slots, waits
from tests.channels_deaths import deaths
from tests.helpers.processes import reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import shmarray as sa
    from shmarray.channels import Channel

SIZES = (4, 20_000)
LATE = (queue.Full, queue.Empty, TimeoutError)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a lock not as long as usual, in this process and its forked children."""
    monkeypatch.setattr(waits, "_GRACE", 0.1)
    monkeypatch.setattr(waits, "_BRIEF", 0.1)
    monkeypatch.setattr(slots, "_PATIENCE", 0.1)


def item(size: int, number: int = 7) -> Any:
    """Give an item."""
    return np.full(size, number)


def take(channel: Channel) -> None:
    """Take an item."""
    channel.get(timeout=20)


@contextlib.contextmanager
def stopped(channel: Channel, latch: Any, deed: Callable[[], object]) -> Iterator[None]:
    """Have a child that is stopped with a lock of the channel held; let it go on at the end."""
    pid = deaths.stopped(latch, deed)
    try:
        yield
    finally:
        assert deaths.go_on(pid) == 0


def too_late(deed: Callable[[], object], *, at_all: bool = True) -> None:
    """Do what cannot be done now: it says so, in its time and some seconds."""
    began = time.monotonic()
    try:
        deed()
    except LATE:
        pass
    else:
        assert not at_all
    assert time.monotonic() - began < 30, "it ran into no timeout"


def enter(thing: Any) -> None:
    """Begin a block, and end it."""
    with thing:
        pass


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("full", ["block", "drop-oldest"])
def test_a_putter_that_is_stopped_with_the_lock_held_keeps_nobody_beyond_their_timeout(
    size: int, full: Any, store: sa.Store
) -> None:
    """Those who put say `queue.Full` or `TimeoutError`, those who come for the first time too; those who take go on."""
    channel = store.channel(size, np.int64, slots=2, full=full)
    channel.put(item(size, 1))
    with stopped(channel, channel._flow.slots.put_latch, lambda: channel.put(item(size, 2))):
        too_late(lambda: channel.put(item(size), timeout=0.1))
        too_late(lambda: channel.put(item(size), block=False))
        too_late(lambda: enter(channel.loan(0.1)))

        def first() -> None:
            too_late(lambda: channel.put(item(size), timeout=0.1))  # of this process

        assert reap(deaths.in_child(first)) == 0
    assert [int(channel.get(timeout=20)[0]) for _ in range(2)] == [1, 2]
    assert channel.stats().held == ()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["queue", "broadcast"])
def test_a_taker_that_is_stopped_with_the_lock_held_keeps_nobody_beyond_their_timeout(
    mode: Any, size: int, store: sa.Store
) -> None:
    """Those who take say `queue.Empty` or `TimeoutError`; those who have to drop something to put run into their timeout too."""
    channel = store.channel(size, np.int64, slots=2, full="drop-oldest", mode=mode)
    source: Any = channel.subscribe() if mode == "broadcast" else channel
    channel.put(item(size, 0))
    source.get()
    for number in (1, 2):
        channel.put(item(size, number))
    with stopped(channel, channel._flow.slots.get_latch, lambda: take_of(channel, mode)):
        too_late(lambda: source.get(timeout=0.1))
        too_late(lambda: source.get(block=False))
        too_late(lambda: enter(source.receive(0.1)))
        too_late(lambda: channel.put(item(size), timeout=0.1))
        too_late(lambda: channel.put(item(size), block=False))
        too_late(lambda: enter(channel.loan(0.1)))
        with contextlib.suppress(TimeoutError):
            assert not channel.join(0.1)
    assert channel.put(item(size, 3), timeout=20)
    found = int(source.get(timeout=20)[0])
    assert found in (2, 3)
    channel._flow.look_for_deaths()
    assert channel.stats().held == ()


def in_time(deed: Callable[[], object]) -> None:
    """Do what must not wait for one that is stopped."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            deed()
        except BaseException as error:  # noqa: BLE001  the test looks at it
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for one that is stopped"
    assert errors == []


def passes(channel: Channel, size: int, mode: str) -> None:
    """Another process, and this one has done nothing more, can fill every slot; and empty it."""
    numbers = range(10, 10 + channel.slots)

    def fill() -> None:
        mine = channel.subscribe() if mode == "broadcast" else channel
        for number in numbers:
            assert channel.put(item(size, number), timeout=20)
        assert [int(mine.get(timeout=20)[0]) for _ in numbers] == list(numbers)

    assert reap(deaths.in_child(fill)) == 0
    channel._flow.look_for_deaths()
    stats = channel.stats()
    assert (stats.held, stats.subscribers, stats.depth) == ((), (), 0)
    assert (stats.waiting_to_send, stats.waiting_to_receive) == (0, 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["queue", "broadcast"])
@pytest.mark.parametrize("closing", ["not", "before", "after"])
def test_an_item_is_given_back_beside_one_that_is_stopped_with_the_lock_held(
    mode: Any, size: int, closing: str, store: sa.Store
) -> None:
    """Its block ends, what it was taken by can be closed; the slot is there for others once they have the lock."""
    channel = store.channel(size, np.int64, slots=1, mode=mode)
    again = pickle.loads(pickle.dumps(channel))
    source: Any = again.subscribe() if mode == "broadcast" else again
    channel.put(item(size, 0))
    with source.receive(20) as frame:
        assert (frame == 0).all()
    channel.put(item(size, 1))
    receipt = source.receive(20)
    frame = receipt.__enter__()
    with stopped(channel, channel._flow.slots.get_latch, lambda: look_in(channel, mode)):
        if closing == "before":
            in_time(source.close)
        assert (frame == 1).all()
        in_time(lambda: receipt.__exit__(None, None, None))
        if closing == "after":
            in_time(source.close)
        assert channel.stats().held == ()
    if mode == "broadcast" and closing == "not":
        channel.put(item(size, 2), timeout=20)
        assert source.get(timeout=20)[0] == 2
        source.close()
    passes(channel, size, mode)
    assert channel.stats().received == 3 + (mode == "broadcast" and closing == "not")


@pytest.mark.parametrize("size", SIZES)
def test_what_was_given_back_beside_one_that_is_stopped_is_seen_to_by_who_needs_the_slot(
    size: int, store: sa.Store
) -> None:
    """A subscription that has done with its item, and is used no more, holds up nobody; one that has not, does."""
    channel = store.channel(size, np.int64, slots=2, mode="broadcast")
    with channel.subscribe() as done, channel.subscribe() as reads:
        for number in range(2):
            channel.put(item(size, number))
        receipt = done.receive(20)
        receipt.__enter__()
        with stopped(channel, channel._flow.slots.get_latch, lambda: look_in(channel, "broadcast")):
            in_time(lambda: receipt.__exit__(None, None, None))
        assert done.get(timeout=20)[0] == 1
        with reads.receive(20) as frame:
            too_late(lambda: channel.put(item(size), block=False))
            assert (frame == 0).all()
        assert channel.put(item(size, 2), block=False)
        assert reads.get(timeout=20)[0] == 1
        assert [int(each.get(timeout=20)[0]) for each in (done, reads)] == [2, 2]
        assert channel.stats().received == 6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["queue", "broadcast"])
def test_a_loan_is_dropped_beside_one_that_is_stopped_with_the_lock_held(mode: Any, size: int, store: sa.Store) -> None:
    """The block ends by its exception; its slot is there for others."""
    channel = store.channel(size, np.int64, slots=1, mode=mode)
    loan = channel.loan(20)
    loan.__enter__()
    with stopped(channel, channel._flow.slots.put_latch, partial(put_in_vain, channel, size)):
        in_time(lambda: loan.__exit__(ZeroDivisionError, ZeroDivisionError(), None))
        assert channel.stats().held == ()
        in_time(channel.close)
    channel = pickle.loads(pickle.dumps(channel))
    if mode == "queue":
        with contextlib.suppress(queue.Empty):
            channel.get(block=False)  # if the one that was stopped found the slot
    passes(channel, size, mode)


def look_in(channel: Channel, mode: str) -> None:
    """Have the lock of those who take for a moment."""
    if mode == "broadcast":
        channel.subscribe().close()
    else:
        get_in_vain(channel)


def take_of(channel: Channel, mode: str) -> None:
    """Take an item, or of a broadcast begin to."""
    if mode == "broadcast":
        channel.subscribe().close()
    else:
        take(channel)


def test_who_waits_when_a_lock_is_not_to_be_had_any_more_is_told_in_time(store: sa.Store) -> None:
    """It was counted among those who wait; that it cannot be counted out does not keep it."""
    channel = store.channel(4, np.int64, slots=1)
    channel.put(item(4))
    empty = store.channel(4, np.int64, slots=1)
    empty.put(item(4))
    empty.get()

    def wait_to_put() -> None:
        too_late(lambda: channel.put(item(4), timeout=0.5))

    def wait_to_get() -> None:
        too_late(lambda: empty.get(timeout=0.5))

    for wait, of, waiting, latch, deed in (
        (wait_to_put, channel, "waiting_to_send", channel._flow.slots.put_latch, partial(put_in_vain, channel)),
        (wait_to_get, empty, "waiting_to_receive", empty._flow.slots.get_latch, partial(get_in_vain, empty)),
    ):
        pid = deaths.in_child(wait)
        wait_until(lambda: getattr(of.stats(), waiting) == 1, 20)  # noqa: B023  called in this round only
        with stopped(of, latch, deed):
            assert reap(pid) == 0


def put_in_vain(channel: Channel, size: int = 4) -> None:
    """Look for a slot where there is none."""
    with contextlib.suppress(queue.Full):
        channel.put(item(size), block=False)


def get_in_vain(channel: Channel) -> None:
    """Look for an item where there is none."""
    with contextlib.suppress(queue.Empty):
        channel.get(block=False)


def test_who_was_stopped_with_a_slot_in_hand_has_it_when_it_goes_on(store: sa.Store) -> None:
    """A stop is no death: nobody buries it, fills its slot, or takes its item, however long it lasts."""
    channel = store.channel(20_000, np.int64, slots=3, redeliver=True)
    channel.put(item(20_000, 1))

    def hold() -> None:
        with channel.loan(20) as filled, channel.receive(20) as read:
            filled[:10_000] = 5
            os.kill(os.getpid(), signal.SIGSTOP)
            filled[10_000:] = 5
            assert (read == 1).all()

    pid = deaths.in_child(hold)
    wait_until(lambda: deaths.is_stopped(pid), 20)
    assert channel._flow.look_for_deaths() is False
    channel.put(item(20_000, 2), timeout=20)
    too_late(lambda: channel.put(item(20_000), timeout=0.2))
    assert channel.get(timeout=20)[0] == 2
    too_late(lambda: channel.get(timeout=0.2))
    assert sorted(kind for _, kind, _ in channel.stats().held) == ["loan", "receive"]
    assert deaths.go_on(pid) == 0
    assert (channel.get(timeout=20) == 5).all()
    assert channel.stats().held == ()
