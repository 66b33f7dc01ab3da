"""Channels, as users see them.

Owns: `Channel`: making one, putting, getting, lending slots and items; the interface of `multiprocessing.Queue`.
Must not know: what happens to a slot (`slots`), who waits (`flow`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from shmarray import guards, objects
from shmarray._format import channel as form
from shmarray._format import flags
from shmarray.channels import aio, bindings, holds, statistics, tasks
from shmarray.channels.loans import Loan, Receipt, steps
from shmarray.channels.subscriptions import Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from shmarray.channels.flow import Side
    from shmarray.channels.statistics import ChannelStats

_here = guards.Process


class Channel(bindings.Binding):
    """A stream of arrays from producers to consumers, through slots in shared memory, without a copy.

    Made by `Store.channel`; travels through any queue or argument, and is found by its name. Producers fill a slot in place
    (`with ch.loan() as frame`), consumers read it in place (`with ch.receive() as frame`); `put` and `get` copy. Any number of processes
    and threads on both sides may come and go. A process is a producer from its first `loan` or `put` until it closes the channel or
    ends; when the last one has, consumers take what is left, and then get `ChannelClosedError` (an `EOFError`), or their loop ends.

    Whoever is killed with a slot in hand loses it: what was half filled nobody sees; what was being read is lost and counted, or with
    `redeliver=True` given to another consumer.

    >>> import numpy as np, shmarray as sa
    >>> with sa.Store() as store:
    ...     channel = store.channel((2, 3), np.float32, slots=4)
    ...     with channel.loan() as frame:
    ...         frame[:] = 7
    ...     with channel.receive() as frame:
    ...         print(frame.sum())
    42.0
    """

    __slots__ = ()
    _kind = "Channel"

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """How many slots there are: items that can be on their way at once."""
        count: int = self._words[form.SLOTS]
        return count

    @property
    def mode(self) -> str:
        """`"queue"`: each item goes to one consumer; `"broadcast"`: to every subscriber."""
        return self.stats().mode

    @property
    def full_policy(self) -> str:
        """What becomes of an item for which there is no slot: `"block"`, `"drop-new"`, `"drop-oldest"`."""
        return self.stats().full

    def stats(self) -> ChannelStats:
        """Look how the channel stands: what was sent, received, dropped, who holds which slot, how long items took."""
        return statistics.look(self._words, self._flow.slots)

    # -- lending -------------------------------------------------------------------------------------------------------

    def loan(self, timeout: float | None = None, *, shape: Any = None, meta: Any = None) -> Loan:
        """Lend a free slot, to be filled in place: `with channel.loan() as frame`. Waits for one up to `timeout` seconds.

        `frame` is an `ndarray`, or a dict of them where the channel has fields; what is in it is undefined. `shape` is needed where a
        length varies (of fields: a mapping), else the largest. `meta` goes with the item. Entering raises `queue.Full` at the timeout,
        `ChannelClosedError` when the channel was ended, or no slot is free and its consumers have all gone, `StoreClosedError`,
        `ShapeError`.
        """
        return Loan(self, timeout, shape, meta)

    def receive(self, timeout: float | None = None) -> Receipt:
        """Take the next item, to be read in place: `with channel.receive() as frame`. Waits for one up to `timeout` seconds.

        `frame` is as of `loan`, and not writable. The object itself has `sequence`, `time`, `meta` and `missed`. Entering raises
        `queue.Empty` at the timeout, `ChannelClosedError` at the end of the stream, `StoreClosedError`.
        """
        return Receipt(self, None, timeout)

    def aloan(self, *, shape: Any = None, meta: Any = None) -> aio.Loaned:
        """Lend a free slot in a coroutine: `async with channel.aloan() as frame`. Others run while there is none."""
        return aio.Loaned(self, shape, meta)

    def areceive(self) -> aio.Received:
        """Take the next item in a coroutine: `async with channel.areceive() as frame`. Others run while there is none."""
        return aio.Received(self, None)

    def __iter__(self) -> Iterator[Any]:
        """Go through the items until the producers have closed the channel; each slot goes back at the next step."""
        return steps(self, whole=False)

    def __aiter__(self) -> AsyncIterator[Any]:
        """Go through the items in a coroutine, until the producers have closed the channel."""
        return aio.steps(self, whole=False)

    def items(self) -> Iterator[Receipt]:
        """Go through the items as `receive` gives them: each has `frame`, `sequence`, `time`, `meta`, `missed`. Else as iterating."""
        return steps(self, whole=True)

    def aitems(self) -> AsyncIterator[Receipt]:
        """`items`, in a coroutine: `async for item in ...aitems()`."""
        return aio.steps(self, whole=True)

    def subscribe(self) -> Subscription:
        """Subscribe to a broadcast: gives what gets every item that is published from now on. It travels, and must be closed.

        Raises `ValueError` for a channel that is a queue, `StoreFullError` when there are too many.
        """
        if self._words[form.MODE] != form.BROADCAST:
            message = "only a broadcast has subscribers; make the channel with mode='broadcast'"
            raise ValueError(message)
        return Subscription.make(self)

    # -- copying: the interface of multiprocessing.Queue -----------------------------------------------------------------

    def put(self, obj: Any, block: bool = True, timeout: float | None = None, *, meta: Any = None) -> bool:  # noqa: FBT001, FBT002
        """Copy an array in (a dict of them where the channel has fields). False if it was dropped, with `full="drop-new"`.

        Raises `queue.Full`, `ChannelClosedError`, `StoreClosedError`, `ShapeError`, `TypeError` for a dtype that would lose something.
        """
        if block is not True:
            block = flags.check_block(block)
        if timeout is not None and block:
            objects.deadline_of(timeout)  # a wrong one shows now, and not first when no slot is free
        now = self._put_now
        if (
            now is not None
            and type(obj) is np.ndarray
            and obj.dtype is self._dtype
            and obj.shape == self._shape
            and meta is None
            and self._generation == _here.generation
            and now(obj)
        ):
            return True
        item, lengths = self._form.check(obj)
        deadline = objects.deadline_of(timeout if block else 0)
        me = self._producing(deadline)
        if self._form.nbytes > bindings.SMALL:
            return self._put_large(item, lengths, me, deadline, meta)
        packed = None if meta is None else self._pack(meta)

        def work(slot: int) -> None:
            self._form.fill(self._view(slot, lengths, write=True), item)
            self._describe_packed(slot, lengths, packed)
            self._flow.slots.publish(slot)

        if not self._flow.claim_and(deadline, work):
            return False
        if self._words[form.GETTERS]:
            self._flow.wake_takers()
        return True

    def _put_large(self, item: Any, lengths: tuple[int, ...], me: int, deadline: float | None, meta: Any) -> bool:
        got: list[int] = []
        if not self._flow.claim(me, deadline, got):
            return False
        try:
            self._form.fill(self._view(got[0], lengths, write=True), item)
            self._describe(got[0], lengths, meta)
            self._flow.publish(got, me, deadline)
        finally:
            if got:
                self._flow.discard(got, me)
        return True

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take the next item as a private copy. Raises as `receive`."""
        if block is not True:
            block = flags.check_block(block)
        if timeout is not None and block:
            objects.deadline_of(timeout)
        now = self._get_now if self._generation == _here.generation else None
        if now is not None and (item := now(None)) is not None:
            return item
        deadline = objects.deadline_of(timeout if block else 0)
        soon = self._soon
        if now is not None and soon is not None and block and (item := soon(now, deadline)) is not None:
            return item
        return self._get(self._consuming(deadline), deadline)

    def _get(self, side: Side, deadline: float | None) -> Any:
        """Take the next item by that side, and copy it."""
        holds.settle()  # a subscription has one item in hand at a time
        flow = self._flow
        got: list[int] = []
        begun: list[int] = []

        def copied(got: list[int]) -> Any:
            return self._form.copy(self._item(got[0]))

        def work(got: list[int]) -> Any:
            item = copied(got)
            tasks.done(flow, side, got, begun)
            return item

        try:
            if self._form.nbytes > bindings.SMALL:
                flow.take(side, deadline, got)
                item = copied(got)
                flow.see_to(got, deadline, tasks.done, flow, side, got, begun)
            else:
                item = flow.take_and(side, deadline, got, work)
            flow.after_giving_back()
        except BaseException:
            flow.untake(side, got)
            tasks.undo(flow, begun)
            raise
        return item

    async def aput(self, obj: Any, *, meta: Any = None) -> bool:
        """`put`, in a coroutine: others run while there is no free slot."""
        return await aio.put(self, obj, meta)

    async def aget(self) -> Any:
        """`get`, in a coroutine: others run while there is no item."""
        return await aio.get(self, None)

    def put_nowait(self, obj: Any) -> bool:
        """`put(obj, block=False)`."""
        return self.put(obj, block=False)

    def get_nowait(self) -> Any:
        """`get(block=False)`."""
        return self.get(block=False)

    def qsize(self) -> int:
        """How many items can be taken now; of a broadcast, by the subscription of this object."""
        if self._words[form.MODE] == form.QUEUE:
            return self._flow.slots.depth()
        seat = self._seat()
        return seat.side.depth() if seat is not None else 0

    def empty(self) -> bool:
        """Whether no item can be taken now; another process may put one at any moment."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether no slot is free now."""
        return self._flow.slots.is_full()

    def task_done(self) -> None:
        """Say that one item that `get` gave has been dealt with; `ValueError` if that is said more often.

        What was received is dealt with when its block ends.
        """
        self._flow.pay(None)  # what is being dealt with may still be to be counted
        if not self._flow.with_get(tasks.end, self._flow):
            message = "task_done() called too many times"
            raise ValueError(message)
        self._flow.after_giving_back()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every item that was published has been taken and dealt with; false after `timeout` seconds.

        Raises `LostTaskError` when a process has ended that had got items and not said `task_done()`; then they count as dealt with.
        """
        return tasks.join(self._flow, objects.deadline_of(timeout))

    def close(self) -> None:
        """Put nothing more, and take nothing more, by this object. The last producer to close ends the stream. May be repeated.

        Raises `ChannelClosedError` from then on, here; what was put is there for the consumers.
        """
        number = abs(self._number)
        self._number = -number
        self._forget_short_ways()
        self._flow.pay_soon()
        for role in self._roles:
            role.leave(number)
        seat = self._seat()
        if seat is not None:
            seat.close()

    def end(self) -> None:
        """Let nothing more be put, by anyone; what is there can still be taken."""
        self._flow.end()

    def __enter__(self) -> Self:
        """Give the channel itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it, for this object."""
        self.close()

    def __repr__(self) -> str:
        """Show what goes through it, and how much is in it."""
        shapes = ", ".join(f"{field.lengths} {field.dtype}" for field in self._form.fields)
        return f"<Channel of {shapes}: {self.mode}, {self.slots} slots, {self._flow.slots.depth()} items>"
