"""Who waits when the others are gone, or the store is, is told so at once or a little later, and never waits for ever."""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.channels_deaths import deaths
from tests.helpers.processes import Child, kill_and_reap, reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray.channels import Channel

ITEM = np.arange(4)

OWNER = """
import sys, numpy as np, shmarray as sa
from tests.helpers.processes import report
with sa.Store("ends-" + sys.argv[1]) as store:
    channel = store.channel(4, np.int64, slots=1, name="full", stay=True)
    channel.put(np.arange(4))
    store.channel(4, np.int64, slots=1, name="empty", stay=True).put(np.arange(4))
    store.channel(4, np.int64, slots=1, name="broadcast", mode="broadcast", stay=True).put(np.arange(4))
    report("open")
    input()
"""


def wait_all(store: sa.Store) -> list[tuple[str, Callable[[], object], Callable[[], bool]]]:
    """Every way to wait: what it is called, doing it, and whether somebody does it."""
    full, empty, sent = (store.open_channel(name) for name in ("full", "empty", "broadcast"))
    empty.get()
    empty.task_done()
    subscription = sent.subscribe()

    def waits(channel: Channel, what: str) -> Callable[[], bool]:
        return lambda: getattr(channel.stats(), what) > 0

    return [
        ("put", lambda: full.put(ITEM), waits(full, "waiting_to_send")),
        ("loan", lambda: full.loan().__enter__(), waits(full, "waiting_to_send")),
        ("join", full.join, lambda: full._words[43] > 0),
        ("get", empty.get, waits(empty, "waiting_to_receive")),
        ("receive", lambda: empty.receive().__enter__(), waits(empty, "waiting_to_receive")),
        ("receive from a broadcast", lambda: subscription.receive().__enter__(), waits(sent, "waiting_to_receive")),
    ]


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_who_waits_in_a_store_whose_owner_has_gone_is_told(how: str) -> None:
    """`StoreClosedError`, whatever it waits for: a slot, an item, or the end of all work.

    With `stay`: the owner is the only producer too, and a stream that ends with its producers may be found to have ended first.
    """
    name = f"{os.getpid()}-{how}"
    with Child(OWNER, name) as owner:
        owner.wait_for("open")
        store = sa.connect("ends-" + name)
        said: dict[str, str] = {}

        def wait_in(what: str, deed: Callable[[], object]) -> None:
            try:
                deed()
            except BaseException as error:  # noqa: BLE001  it is compared
                said[what] = type(error).__name__

        ways = wait_all(store)
        threads = [threading.Thread(target=wait_in, args=way[:2], daemon=True) for way in ways]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(waits() for _, _, waits in ways), 20)
        if how == "killed":
            owner.kill()
        else:
            owner.tell()
            owner.finish()
        for thread in threads:
            thread.join(30)
        assert said == {what: "StoreClosedError" for what, _, _ in ways}
        ways.clear()
        threads.clear()
        del thread
        store.close()


def in_hand(channel: Channel, deed: Callable[[], object]) -> int:
    """Let a child do a deed and then hold on until it is killed; gives its pid when the deed is done."""
    done, theirs = os.pipe()

    def play() -> None:
        deed()
        os.write(theirs, b"!")
        threading.Event().wait()

    pid = deaths.in_child(play)
    os.read(done, 1)
    os.close(done)
    os.close(theirs)
    return pid


@pytest.mark.parametrize("mode", ["queue", "broadcast"])
@pytest.mark.parametrize("when", ["while it waits", "before"])
def test_when_all_producers_are_killed_what_is_there_is_taken_and_then_the_stream_ends(
    mode: Any, when: str, store: sa.Store
) -> None:
    """Also for who waits already, and with a half-filled item that is nobody's."""
    channel = store.channel(4, np.int64, slots=8, mode=mode)
    source: Any = channel.subscribe() if mode == "broadcast" else channel
    waiting = when == "while it waits"
    loans: list[Any] = []

    def produce() -> None:
        for _ in range(2):
            channel.put(ITEM)
        loans.append(channel.loan())
        loans[0].__enter__()

    pids = [in_hand(channel, produce) for _ in range(1 if waiting else 2)]
    if waiting:
        for _ in range(2):
            source.get()
        timer = threading.Timer(0.1, lambda: kill_and_reap(pids[0]))
        timer.start()
    else:
        for pid in pids:
            kill_and_reap(pid)
    for _ in range(0 if waiting else 4):
        source.get(timeout=30)
    with pytest.raises(sa.ChannelClosedError):
        source.get(timeout=30)
    if waiting:
        timer.join()
    assert channel.stats().held == ()
    assert channel.stats().producers == ()


@pytest.mark.parametrize("stay", [False, True])
def test_when_all_consumers_are_killed_producers_are_told_unless_they_stay(stay: Any, store: sa.Store) -> None:
    """Who waits for a slot is told at once; with `stay` it waits for the next consumer, who takes what there is."""
    channel = store.channel(4, np.int64, slots=2, stay=stay)
    channel.put(ITEM)
    items: list[Any] = []

    def consume() -> None:
        items.append(channel.receive())
        items[0].__enter__()

    pid = in_hand(channel, consume)
    channel.put(ITEM)
    kill_and_reap(pid)
    if stay:
        channel.put(ITEM, timeout=30)  # into the slot that came back
        with pytest.raises(queue.Full):
            channel.put(ITEM, timeout=0.2)
        assert [int(channel.get(timeout=30)[1]) for _ in range(2)] == [1, 1]
    else:
        channel.put(ITEM, timeout=30)
        with pytest.raises(sa.ChannelClosedError):
            channel.put(ITEM, timeout=30)
        with pytest.raises(sa.ChannelClosedError), channel.loan(30):
            pass
    assert (channel.stats().lost, channel.stats().held) == (1, ())


def test_when_all_subscribers_are_killed_nothing_keeps_the_producer(store: sa.Store) -> None:
    """A broadcast without subscribers is one that nobody sees: it goes on."""
    channel = store.channel(4, np.int64, slots=2, mode="broadcast")
    kept: list[Any] = []

    def subscribe() -> None:
        kept.append(channel.subscribe())

    pids = [in_hand(channel, subscribe) for _ in range(3)]
    for _ in range(2):
        channel.put(ITEM)
    for pid in pids:
        kill_and_reap(pid)
    for _ in range(5):
        assert channel.put(ITEM, timeout=30)
    assert channel.stats().subscribers == ()


def test_a_child_killed_between_its_fork_and_its_first_use_takes_nothing_along(store: sa.Store) -> None:
    """Roles, items in hand and subscriptions of the parent are as they were."""
    channel = store.channel(4, np.int64, slots=3, redeliver=True)
    for _ in range(2):
        channel.put(ITEM)
    with channel.receive() as frame, channel.loan() as filled:
        for _ in range(5):
            kill_and_reap(in_hand(channel, lambda: None))
        assert reap(deaths.in_child(lambda: None)) == 0
        channel._flow.look_for_deaths()
        stats = channel.stats()
        assert stats.producers == stats.consumers == (os.getpid(),)
        assert len(stats.held) == 2
        assert (frame == ITEM).all()
        filled[:] = 9
    assert [int(channel.get(timeout=5)[3]) for _ in range(2)] == [3, 9]
    assert channel.stats().redelivered == 0
