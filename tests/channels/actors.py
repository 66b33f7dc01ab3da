"""What child processes do in the tests of channels; importable, so that every start method finds it."""

from __future__ import annotations

from typing import Any

import numpy as np


def produce(channel: Any, numbers: range) -> None:
    """Put numbers, each in every element of an item."""
    for number in numbers:
        with channel.loan() as frame:
            frame[...] = number


def put_all(channel: Any, numbers: range) -> int:
    """Put copies, and close."""
    with channel:
        for number in numbers:
            channel.put(np.full(4, number))
    return len(numbers)


def consume(channel: Any) -> list[int]:
    """Receive until the end of the stream."""
    found = []
    for frame in channel:
        assert (frame == frame.flat[0]).all()
        found.append(int(frame.flat[0]))
    return found


def put_one(channel: Any, number: int) -> bool:
    """Put one item, as a task of a pool does: its object of the channel is dropped after it."""
    return bool(channel.put(np.full(4, number)))


def echo(channel: Any, back: Any) -> None:
    """Send every item back by another channel."""
    with back:
        for frame in channel:
            back.put(frame)


def collect(source: Any, found: Any) -> None:
    """Get from a subscription until the end; put all into a queue at the end."""
    found.put([int(item[0]) for item in source])


def send_through(channel: Any, pipe: Any) -> None:
    """Send a channel through a pipe."""
    pipe.send(channel)


def get_one(subscription: Any) -> tuple[int, int, int]:
    """Receive one item: its number, how many were missed before it, and by the subscription in all."""
    with (item := subscription.receive(30)):
        return item.sequence, item.missed, subscription.missed
