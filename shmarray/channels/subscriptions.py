"""Subscriptions, as users see them.

Owns: `Subscription`: one reader of a broadcast, that may travel to the process that reads.
Must not know: the table (`subscribers`).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Self

from shmarray import objects, shields
from shmarray._format import flags
from shmarray._os import processes
from shmarray.channels import aio, holds
from shmarray.channels.loans import Receipt, steps
from shmarray.channels.sides import SubscriptionSide
from shmarray.errors import StoreFullError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from shmarray.channels.flow import Flow

_forks = [0]


def _count_fork() -> None:
    _forks[0] += 1


def _nothing() -> None:
    pass


processes.around_fork(_count_fork, _nothing)


class Seat:
    """One place in the table of subscriptions, left to be buried when this is dropped. Keeps the memory, and not the channel's object."""

    __slots__ = ("__weakref__", "_finalizer", "_flow", "side")

    side: SubscriptionSide

    def __init__(self, channel: Any, entry: int, token: int, ahead: int, *, travels: bool = True) -> None:
        """Stand for the subscription in the table at `entry`, which has come to item `ahead`. It `travels` if a child may use it."""
        self._flow: Flow = channel._flow
        self.side = SubscriptionSide(self._flow.slots, entry, token, ahead)
        whole = shields.over(objects.segment_of(channel))
        forks = _forks[0] if travels else None
        # A forked child shares the mark by this mapping, as long as it has this too.
        mark = self._flow.slots.parties.share(token)
        self._finalizer = weakref.finalize(self, _desert, self._flow, self.side, forks, (whole, mark))
        self._finalizer.atexit = False

    @classmethod
    def make(cls, channel: Any, deadline: float | None = None, *, travels: bool = True) -> Self:
        """Subscribe this process to a channel. Raises `StoreFullError`; `TimeoutError` as `Waits.within`."""
        flow = channel._flow
        joined: list[int] = []
        try:
            me = flow.slots.parties.me()
            try:
                flow.with_both(flow.slots.subscribers.join, me, joined, deadline=deadline)
            except StoreFullError:
                if not flow.look_for_deaths():  # what the dead had, and what was dropped, is there until somebody looks
                    raise
                flow.with_both(flow.slots.subscribers.join, me, joined, deadline=deadline)
            return cls(channel, *joined, travels=travels)
        except BaseException:
            if joined and not flow.both_briefly(flow.slots.subscribers.leave, *joined[:2]):
                flow.slots.subscribers.leave_alone(*joined[:2])
            raise

    def send(self) -> None:
        """Let this be dropped without consequences: it has travelled, as this process's."""
        self.side.adopt(self._flow)
        self._finalizer.detach()

    def close(self) -> None:
        """End the subscription. May be repeated."""
        holds.settle()
        self._flow.pay_soon()
        if not self._flow.both_briefly(self._leave):
            self._flow.slots.subscribers.leave_alone(*self.side.key)
        self._finalizer.detach()
        self._flow.wake_all()

    def _leave(self) -> bool:
        left = self._flow.slots.subscribers.leave(*self.side.key)
        self._flow.count_anew()  # another process, by which it was waited and which has died, is known to nobody any more
        return left


class Subscription:
    """Every item of a broadcast from the moment it was made on, in order, for one reader at a time.

    Made by `Channel.subscribe`, also on behalf of another process: it travels as an argument or through a queue, and is then that
    process's. While it lives a producer waits for it (`full="block"`), or drops what it is late for (`missed`); `close()` ends it, as the
    death of its process does; what is in hand stays as it is until it is given back.

    >>> import numpy as np, shmarray as sa
    >>> with sa.Store() as store:
    ...     channel = store.channel(3, np.int64, mode="broadcast")
    ...     with channel.subscribe() as first, channel.subscribe() as second:
    ...         channel.put([1, 2, 3])
    ...         print(first.get(), second.get())
    True
    [1 2 3] [1 2 3]
    """

    __slots__ = ("_channel", "_seat", "_takes", "side")

    side: SubscriptionSide

    def __init__(self, channel: Any, seat: Seat) -> None:
        """Have a place in the channel's table."""
        self._channel = channel
        self._seat = seat
        self.side = seat.side
        self._takes: list[holds.Hold] = []

    @classmethod
    def make(cls, channel: Any) -> Self:
        """Subscribe this process to a channel. Raises `StoreFullError`."""
        return cls(channel, Seat.make(channel))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a handle; whoever loads it has the subscription from then on."""
        self._seat.send()
        return _load, (type(self), self._channel, *self.side.key, self.side.ahead)

    def _owned(self) -> SubscriptionSide:
        """Give the side to take by, which makes it this process's: it may have come here by a fork. Raises `ChannelClosedError`."""
        self.side.require_there()
        return self.side

    @property
    def missed(self) -> int:
        """How many items were dropped because this subscription was late (`full="drop-oldest"`)."""
        return self.side.missed()

    def receive(self, timeout: float | None = None) -> Receipt:
        """Take the next item, to be read in place; see `Channel.receive`. Only one at a time."""
        return Receipt(self._channel, self._owned(), timeout, self)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take the next item as a private copy; see `Channel.get`."""
        return self._channel._get(self._owned(), objects.deadline_of(timeout if flags.check_block(block) else 0))

    def get_nowait(self) -> Any:
        """`get(block=False)`."""
        return self.get(block=False)

    def areceive(self) -> aio.Received:
        """Take the next item in a coroutine: `async with subscription.areceive() as frame`."""
        return aio.Received(self._channel, self._owned(), self)

    async def aget(self) -> Any:
        """Take the next item as a private copy, in a coroutine."""
        return await aio.get(self._channel, self._owned())

    def qsize(self) -> int:
        """How many items there are to come."""
        return self.side.depth()

    def empty(self) -> bool:
        """Whether no item is to come now."""
        return self.qsize() == 0

    def __iter__(self) -> Iterator[Any]:
        """Go through the items until the producers have closed the channel; each slot goes back at the next step."""
        return steps(self, whole=False)

    def __aiter__(self) -> AsyncIterator[Any]:
        """Go through the items in a coroutine."""
        return aio.steps(self, whole=False)

    def items(self) -> Iterator[Receipt]:
        """Go through the items as `receive` gives them: each has `frame`, `sequence`, `time`, `meta`, `missed`. Else as iterating."""
        return steps(self, whole=True)

    def aitems(self) -> AsyncIterator[Receipt]:
        """`items`, in a coroutine: `async for item in ...aitems()`."""
        return aio.steps(self, whole=True)

    def close(self) -> None:
        """Unsubscribe. May be repeated."""
        self._seat.close()

    def __enter__(self) -> Self:
        """Give the subscription itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Show how much there is to come."""
        return f"<Subscription to {self._channel!r}: {self.qsize()} to come, {self.missed} missed>"


def _load(cls: type[Subscription], channel: Any, entry: int, token: int, ahead: int) -> Subscription:
    """Load a handle: the subscription is this process's from now on. Raises `ChannelClosedError` if it has ended."""
    subscription = cls(channel, Seat(channel, entry, token, ahead))
    if not subscription.side.adopt(channel._flow):
        raise subscription.side.ended()
    return subscription


def _desert(flow: Flow, side: SubscriptionSide, forks: int | None, kept: tuple[Any, ...]) -> None:
    """Run when a subscription is dropped without having been closed, or having travelled. What was `kept` ends after it."""
    del kept
    # A child that was forked since may be about to use it: then it ends with the last process that has it.
    side.desert(flow, to_children=forks is not None and forks != _forks[0])
