"""A signal handler or finalizer that uses a channel while its thread is in the midst of a call to it."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray._os import mutexes
from shmarray.channels import quick, slots
from tests.channels_deaths import deaths
from tests.helpers.processes import reap

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray.channels import Channel

ITEM = np.arange(4)


def is_held(latch: Any) -> bool:
    """Say whether this process has a lock."""
    return bool(latch._owner) or (latch._robust and mutexes.mutex_owner(latch.address) != 0)


WAYS: dict[str, Callable[[Channel], object]] = {
    "put": lambda channel: channel.put(ITEM, block=False),
    "put what must be checked": lambda channel: channel.put(ITEM.tolist(), block=False),
    "get": lambda channel: channel.get(block=False),
    "receive": lambda channel: channel.receive(0).__enter__(),
    "stats and loan": lambda channel: (channel.stats(), channel.loan(0).__enter__()),
}


@pytest.mark.parametrize("outer", ["put", "get"])
def test_a_call_that_is_refused_leaves_the_lock_to_the_call_it_interrupted(
    outer: str, either_store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that catches the refusal must not have let go of the lock, which the interrupted call still needs."""
    for way, deed in WAYS.items():
        channel = either_store.channel(4, np.int64, slots=4, full="drop-oldest")
        for _ in range(16):
            channel.put(ITEM)
            channel.get()
        for _ in range(4 if outer == "put" else 2):
            channel.put(ITEM)
        latch = channel._flow.slots.put_latch if outer == "put" else channel._flow.slots.get_latch
        refused = _handle(monkeypatch, latch, functools.partial(deed, channel))
        if outer == "put":
            channel.put(ITEM)
        else:
            assert (channel.get() == ITEM).all()  # the sixteenth: its latency is measured
        # What wants the other lock gets it.
        assert refused == [(outer == "get") == (way in ("get", "receive"))], way
        assert not is_held(latch), way
        assert reap(deaths.in_child(functools.partial(channel.put, ITEM))) == 0, way


def _handle(monkeypatch: pytest.MonkeyPatch, latch: Any, deed: Callable[[], object]) -> list[bool]:
    """Do a deed the next time that the clock is asked with a lock held; gives whether it was refused."""
    refused: list[bool] = []

    def handler() -> int:
        if is_held(latch) and not refused:
            refused.append(False)
            try:
                deed()
            except sa.GuardError:
                refused[0] = True
            assert is_held(latch)
        return time.time_ns()

    for module in (slots, quick):
        monkeypatch.setattr(module, "_now", handler)
    return refused


def test_a_refusal_that_nobody_catches_lets_go_of_the_lock(
    either_store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes out of the interrupted call as any exception would: nothing is held after it, and others go on."""
    channel = either_store.channel(4, np.int64, slots=4)
    channel.put(ITEM)
    real = slots._now

    def handler() -> int:
        for module in (slots, quick):
            monkeypatch.setattr(module, "_now", real)
        channel.put(ITEM, block=False)
        return real()

    for module in (slots, quick):
        monkeypatch.setattr(module, "_now", handler)
    with pytest.raises(sa.GuardError, match="in the midst"):
        channel.put(ITEM)
    assert not is_held(channel._flow.slots.put_latch)
    assert reap(deaths.in_child(lambda: channel.put(ITEM))) == 0
    assert channel.qsize() == 2


def test_a_refusal_on_its_way_that_is_interrupted_by_another_one_lets_go_of_nothing(either_store: sa.Store) -> None:
    """A handler of a handler is refused as well: what either was about to do leaves the lock to the call that has it."""
    channel = either_store.channel(4, np.int64, slots=4)
    latch = channel._flow.slots.put_latch
    assert latch.take(latch.address) == 0
    refusals = []
    for _ in range(2):
        with pytest.raises(sa.GuardError, match="in the midst") as caught:
            latch.enter(latch.take(latch.address), None)
        refusals.append(caught.value)
    for refusal in reversed(refusals):
        latch.abandon(refusal)
        assert is_held(latch)
    latch.let(latch.address)
    assert not is_held(latch)
