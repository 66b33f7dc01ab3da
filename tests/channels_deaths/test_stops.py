"""Who is stopped (SIGSTOP) is not dead: others wait for it, or run into their timeout, and all go on when it does."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
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


def put_in_vain(channel: Channel) -> None:
    """Look for a slot where there is none."""
    with contextlib.suppress(queue.Full):
        channel.put(item(4), block=False)


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
