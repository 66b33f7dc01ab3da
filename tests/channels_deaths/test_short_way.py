"""What is put and got the short way is done in the name of the process that does it, and loses nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

import shmarray as sa
from shmarray.errors import LostTaskError
from tests.channels_deaths import deaths
from tests.helpers.processes import reap

if TYPE_CHECKING:
    from shmarray.channels import Channel

ITEM = np.arange(4)


def test_a_forked_child_takes_in_its_own_name(store: sa.Store) -> None:
    """It is a consumer from its first `get` on, and what it got and did not deal with is lost with it, not with its parent."""
    channel = store.channel(4, np.int64, slots=4)
    for _ in range(2):
        channel.put(ITEM)
        channel.get()
        channel.task_done()

    def play() -> None:
        channel.put(ITEM)
        channel.get()
        assert os.getpid() in channel.stats().consumers

    assert reap(deaths.in_child(play)) == 0
    with pytest.raises(LostTaskError):
        channel.join(20)
    assert channel.join(20)


def test_a_put_into_a_channel_that_was_ended_drops_nothing(store: sa.Store) -> None:
    """What is there can still be taken, also where the oldest would have made room."""
    for size in (4, 100_000):
        channel: Channel = store.channel(size, np.int64, slots=2, full="drop-oldest")
        for number in (1, 2):
            channel.put(np.full(size, number))
        channel.end()
        with pytest.raises(sa.ChannelClosedError):
            channel.put(np.full(size, 3))
        assert [int(item[0]) for item in channel] == [1, 2]
        assert channel.stats().dropped == 0
