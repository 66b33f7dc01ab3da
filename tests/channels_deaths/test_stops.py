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

from shmarray.channels import slots, tasks, waits
from tests.channels_deaths import deaths
from tests.helpers.processes import kill_and_reap, reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import shmarray as sa
    from shmarray.channels import Channel

SIZES = (4, 20_000)
BRIEF = 0.04
"""Seconds for which those wait who wait in vain: as long as one that is stopped is kept so, any time shows the same."""
LATE = (queue.Full, queue.Empty, TimeoutError)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a lock not as long as usual, in this process and its forked children."""
    monkeypatch.setattr(waits, "_GRACE", BRIEF)
    monkeypatch.setattr(waits, "_BRIEF", BRIEF)
    monkeypatch.setattr(slots, "_PATIENCE", BRIEF)


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
        too_late(lambda: channel.put(item(size), timeout=BRIEF))
        too_late(lambda: channel.put(item(size), block=False))
        too_late(lambda: enter(channel.loan(BRIEF)))

        def first() -> None:
            too_late(lambda: channel.put(item(size), timeout=BRIEF))  # of this process

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
        too_late(lambda: source.get(timeout=BRIEF))
        too_late(lambda: source.get(block=False))
        too_late(lambda: enter(source.receive(BRIEF)))
        too_late(lambda: channel.put(item(size), timeout=BRIEF))
        too_late(lambda: channel.put(item(size), block=False))
        too_late(lambda: enter(channel.loan(BRIEF)))
        with contextlib.suppress(TimeoutError):
            assert not channel.join(BRIEF)
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


# -- what is published, and what is begun and cannot be ended now ------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["queue", "broadcast"])
def test_who_publishes_beside_one_that_is_stopped_with_the_lock_held_is_told_in_time(
    mode: Any, size: int, store: sa.Store
) -> None:
    """A loan with a timeout is dropped with `TimeoutError`: nobody sees it, and its slot is there. Time to fill it does not count."""
    channel = store.channel(size, np.int64, slots=2, mode=mode)
    source: Any = channel.subscribe() if mode == "broadcast" else channel
    again = pickle.loads(pickle.dumps(channel))
    loan = again.loan(BRIEF)
    with loan as frame:
        frame[:] = 1
        time.sleep(1.5 * BRIEF)
    assert loan.published
    loan = again.loan(BRIEF)
    loan.__enter__()[:] = 2
    with stopped(channel, channel._flow.slots.put_latch, partial(channel.put, item(size, 3))):
        with pytest.raises(TimeoutError, match="stopped"):
            loan.__exit__(None, None, None)
        assert not loan.published
        assert channel.stats().held == ()
    again.close()
    assert [int(source.get(timeout=20)[0]) for _ in range(2)] == [1, 3]
    assert source.empty()
    if mode == "broadcast":
        source.close()
    channel = pickle.loads(pickle.dumps(channel))
    passes(channel, size, mode)


@pytest.mark.parametrize("size", SIZES)
def test_a_loan_without_a_timeout_is_published_when_the_stopped_one_goes_on(size: int, store: sa.Store) -> None:
    """As long it waits; nothing of it is lost."""
    channel = store.channel(size, np.int64, slots=2)
    published = threading.Event()

    def publish() -> None:
        with channel.loan() as frame:
            frame[:] = 1
            ready.set()
            go.wait(20)
        published.set()

    ready, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    assert ready.wait(20)
    with stopped(channel, channel._flow.slots.put_latch, partial(channel.put, item(size, 2))):
        go.set()
        assert not published.wait(0.3)
    thread.join(20)
    assert sorted(int(channel.get(timeout=20)[0]) for _ in range(2)) == [1, 2]


def stops_inside(
    monkeypatch: pytest.MonkeyPatch, name: str, channel: Channel, latch: Any, deed: Callable[[], object], **does: Any
) -> list[int]:
    """Have a child be stopped with a lock held when an item is next filled or copied, in this process; gives its pid, then.

    `raises` is raised by that.
    """
    pids: list[int] = []
    form = type(channel._form)
    real, me = getattr(form, name), os.getpid()

    def stop(*arguments: Any) -> Any:
        if os.getpid() == me and not pids:
            pids.append(deaths.stopped(latch, deed))
            if "raises" in does:
                raise does["raises"]
        return real(*arguments)

    monkeypatch.setattr(form, name, stop)
    return pids


@pytest.mark.parametrize("mode", ["queue", "broadcast"])
def test_a_large_item_is_put_in_time_or_not_at_all(mode: Any, store: sa.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its producer had the lock to have a slot, and has it not to publish; the item is nowhere, and can be put again."""
    channel = store.channel(20_000, np.int64, slots=2, mode=mode)
    source: Any = channel.subscribe() if mode == "broadcast" else channel
    latch = channel._flow.slots.put_latch
    pids = stops_inside(monkeypatch, "fill", channel, latch, lambda: enter_and_drop(channel.loan(0)))
    with pytest.raises(TimeoutError, match="stopped"):
        channel.put(item(20_000, 1), timeout=BRIEF)
    assert channel.stats().held == ()
    assert deaths.go_on(pids[0]) == 0
    channel.put(item(20_000, 2), timeout=20)
    assert source.get(timeout=20)[0] == 2
    if mode == "broadcast":
        source.close()
    passes(channel, 20_000, mode)


def enter_and_drop(loan: Any) -> None:
    """Have a slot, and give it back."""
    with contextlib.suppress(ZeroDivisionError), loan:
        raise ZeroDivisionError


@pytest.mark.parametrize("mode", ["queue", "broadcast"])
@pytest.mark.parametrize("then", ["task_done", "join", "get", "wait", "close"])
def test_a_large_item_is_got_in_time_though_it_cannot_be_counted(
    mode: Any, then: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in hand until its consumer next has to do with the channel; then it is one that was got, and its slot is free."""
    channel = store.channel(20_000, np.int64, slots=2, mode=mode)
    source: Any = channel.subscribe() if mode == "broadcast" else channel
    for number in (1, 2):
        channel.put(item(20_000, number))
    latch = channel._flow.slots.get_latch
    pids = stops_inside(monkeypatch, "copy", channel, latch, partial(channel._flow.with_get, len, ()))
    found: list[Any] = []
    in_time(lambda: found.append(source.get(timeout=BRIEF)))
    assert (found[0] == 1).all()
    assert [kind for _, kind, _ in channel.stats().held] == ["receive"]
    too_late(lambda: source.get(timeout=BRIEF))
    assert deaths.go_on(pids[0]) == 0
    if then == "task_done":
        channel.task_done()
    elif then == "join":
        assert not channel.join(BRIEF)
    elif then == "wait":
        channel._flow._looked = 0.0
        channel._flow.look_now_and_then()
    elif then == "close":
        source.close()
    assert channel.stats().held == () or then == "get"
    again = pickle.loads(pickle.dumps(channel))
    if then != "close" or mode == "queue":
        assert (source if then != "close" else again).get(timeout=20)[0] == 2
        again.task_done()
    if then != "task_done":
        again.task_done()
    with pytest.raises(ValueError, match="too many"):
        again.task_done()
    assert again.join(20)
    if mode == "broadcast":
        source.close()
    passes(again, 20_000, mode)


def test_who_is_killed_before_it_could_count_what_it_got_has_not_had_it(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `redeliver` another gets it, and nobody is said to deal with it."""
    channel = store.channel(20_000, np.int64, slots=2, redeliver=True)
    channel.put(item(20_000, 1))
    ready = os.pipe()

    def consume() -> None:
        inner = stops_inside(monkeypatch, "copy", channel, channel._flow.slots.get_latch, partial(get_in_vain, channel))
        channel.get(timeout=BRIEF)
        os.write(ready[1], b"%d" % inner[0])
        signal.pause()

    pid = deaths.in_child(consume)
    inner = int(os.read(ready[0], 20))
    assert [kind for _, kind, _ in channel.stats().held] == ["receive"]
    kill_and_reap(pid)
    os.kill(inner, signal.SIGKILL)  # it is a child of the one that was killed
    assert (channel.get(timeout=20) == 1).all()
    channel.task_done()
    assert channel.join(20)
    assert (channel.stats().held, channel.stats().redelivered, channel.stats().lost) == ((), 1, 0)
    for end in ready:
        os.close(end)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["queue", "broadcast"])
@pytest.mark.parametrize("how", ["get", "receive"])
def test_an_item_that_nobody_has_seen_is_left_in_time(
    mode: Any, size: int, how: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying it, or its metadata, raises: that comes out at once, and the item comes again, to this process or another."""
    channel = store.channel(size, np.int64, slots=2, mode=mode)
    source: Any = channel.subscribe() if mode == "broadcast" else channel
    source.receive(0)  # this process is a consumer
    channel.put(item(size, 1), meta=Spoiled())
    channel.put(item(size, 2))
    latch = channel._flow.slots.get_latch
    deed = partial(channel._flow.with_get, len, ())
    if how == "get" and size == SIZES[0]:
        with pytest.raises(ZeroDivisionError):
            raise_with_lock(monkeypatch, channel, source)
    elif how == "get":
        pids = stops_inside(monkeypatch, "copy", channel, latch, deed, raises=ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            source.get(timeout=BRIEF)
    else:
        pids = []
        monkeypatch.setattr(Spoiled, "load", staticmethod(lambda: pids.append(deaths.stopped(latch, deed))))
        with pytest.raises(ZeroDivisionError):
            enter(source.receive(BRIEF))
    if how == "receive" or size != SIZES[0]:
        assert [kind for _, kind, _ in channel.stats().held] == ["receive"]
        assert deaths.go_on(pids[0]) == 0
        assert reap(deaths.in_child(channel._flow.pay_soon)) == 0  # it is not the child's
        assert [kind for _, kind, _ in channel.stats().held] == ["receive"]
    assert [int(source.get(timeout=20)[0]) for _ in range(2)] == [1, 2]
    for _ in range(2):
        channel.task_done()
    assert channel.join(20)
    assert channel.stats().held == ()
    if mode == "broadcast":
        source.close()
    passes(channel, size, mode)


class Spoiled:
    """Metadata that cannot be loaded."""

    @staticmethod
    def load() -> None:
        """Do something before."""

    def __reduce__(self) -> Any:
        """Raise when it is loaded."""
        return _spoil, ()


def _spoil() -> None:
    Spoiled.load()
    raise ZeroDivisionError


def raise_with_lock(monkeypatch: pytest.MonkeyPatch, channel: Channel, source: Any) -> None:
    """Have copying raise, of an item that is copied with the lock held: then it is left with the lock held too."""
    with monkeypatch.context() as patch:
        patch.setattr(type(channel._form), "copy", lambda *_: 1 // 0)
        patch.setattr(channel, "_get_now", None)
        source.get(timeout=BRIEF)


def test_a_copy_that_nobody_got_is_uncounted_in_time(store: sa.Store) -> None:
    """Whoever joins is not kept by it afterwards."""
    channel = store.channel(4, np.int64, slots=2)
    channel.put(item(4))
    channel.get()
    channel.task_done()
    begun: list[int] = []
    channel._flow.with_get(tasks.begin, channel._flow, begun)
    with stopped(channel, channel._flow.slots.get_latch, partial(channel._flow.with_get, len, ())):
        in_time(lambda: tasks.undo(channel._flow, begun))
    assert channel.join(20)
    with pytest.raises(ValueError, match="too many"):
        channel.task_done()


def test_a_subscription_is_loaded_beside_one_that_is_stopped_with_the_lock_held(store: sa.Store) -> None:
    """It is whose it is from when that one has first taken by it."""
    channel = store.channel(4, np.int64, slots=2, mode="broadcast")
    ready, go = os.pipe(), os.pipe()
    handle = pickle.dumps(channel.subscribe())
    channel.put(item(4, 1))

    def load() -> None:
        os.read(go[0], 1)
        loaded = pickle.loads(handle)
        os.write(ready[1], b"!")
        assert loaded.get(timeout=20)[0] == 1
        assert [each.pid for each in channel.stats().subscribers] == [os.getpid()]
        loaded.close()

    pid = deaths.in_child(load)
    with stopped(channel, channel._flow.slots.get_latch, partial(channel._flow.with_get, len, ())):
        os.write(go[1], b"!")
        in_time(lambda: os.read(ready[0], 1))
    assert reap(pid) == 0
    passes(channel, 4, "broadcast")
    for end in (*ready, *go):
        os.close(end)


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
