"""Whoever dies in the midst of changes that belong together may leave a slot free that is in use again when the rest is made up."""

from __future__ import annotations

import os
import queue
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from shmarray._format import channel as form
from shmarray.channels.slots import Slots
from tests.channels_deaths import deaths
from tests.helpers.processes import reap

if TYPE_CHECKING:
    from collections.abc import Callable

    import shmarray as sa
    from shmarray.channels import Channel

SIZE = 8


def item(number: int) -> Any:
    """Make an item that says which it is."""
    return np.full(SIZE, number)


def die_in_the_midst(self: Slots) -> None:
    """Make the first of the changes, and die."""
    index, _, value = self._words[form.JOURNAL + 1 : form.JOURNAL + 4]
    self._words[index] = value
    os.kill(os.getpid(), signal.SIGKILL)


def killed(deed: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a child do something, and die in the midst of its changes."""

    def act() -> None:
        monkeypatch.setattr(Slots, "_make_changes", die_in_the_midst)
        deed()

    assert reap(deaths.in_child(act)) == -signal.SIGKILL


@pytest.fixture
def channel(store: sa.Store) -> Channel:
    """A queue of two items, both there; the older one is dropped by a producer that dies in the midst of it."""
    made = store.channel(SIZE, np.int64, slots=2, full="drop-oldest")
    for number in (1, 2):
        made.put(item(number))
    return made


def test_what_lies_in_it_by_then_is_delivered_once(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, and only what was dropped is missing."""
    killed(lambda: channel.put(item(3)), monkeypatch)
    channel.put(item(4))
    assert [int(channel.get(timeout=5)[0]) for _ in range(2)] == [2, 4]
    with pytest.raises(queue.Empty):
        channel.get_nowait()
    stats = channel.stats()
    assert (stats.dropped, stats.lost, stats.depth) == (1, 0, 0)


def test_who_fills_it_by_then_has_it_alone(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else fills it at the same time, and what is taken meanwhile is whole."""
    killed(lambda: channel.put(item(3)), monkeypatch)
    with channel.loan(timeout=5) as frame:
        frame[:] = 4
        with channel.receive(timeout=5) as found:
            assert (found == 2).all()
            with pytest.raises(queue.Full):
                channel.put(item(5), block=False)
        with channel.loan(timeout=5) as other:
            assert not np.shares_memory(frame, other)
            other[:] = 6
        assert (frame == 4).all()
    assert [int(channel.get(timeout=5)[0]) for _ in range(2)] == [6, 4]


def test_a_slot_that_was_lost_with_its_consumer_is_filled_once(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sees to the dead may die of it as well."""
    channel = store.channel(SIZE, np.int64, slots=1, full="block")
    channel.put(item(1))

    def take_and_die() -> None:
        channel.receive(timeout=5).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    assert reap(deaths.in_child(take_and_die)) == -signal.SIGKILL
    killed(channel._flow.look_for_deaths, monkeypatch)
    with channel.loan(timeout=5) as frame:
        frame[:] = 2
        channel._flow.look_for_deaths()
        with pytest.raises(queue.Empty):
            channel.get_nowait()
        with pytest.raises(queue.Full):
            channel.put(item(3), block=False)
        assert (frame == 2).all()
    assert int(channel.get(timeout=5)[0]) == 2
    assert channel.stats().lost == 1
