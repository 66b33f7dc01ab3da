"""Channels in coroutines.

Owns: waiting for a slot or an item without keeping the event loop from its other work, and without a thread for each wait: one thread for
all waits of this process on one word of a channel, that sleeps as everyone does and rests when nobody waits.
Must not know: what is in a slot.
"""

from __future__ import annotations

import threading
from queue import Empty, Full
from typing import TYPE_CHECKING, Any, NamedTuple

from shmarray import guards, objects
from shmarray._format import channel as form
from shmarray._os import late
from shmarray.channels.loans import Loan, Receipt
from shmarray.errors import ChannelClosedError, StoreClosedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from types import TracebackType

    from shmarray.channels.flow import Flow, Side
    from shmarray.channels.lenders import Lender, Source

_LINGER = 1.0
"""Seconds for which the thread is kept when nobody waits."""
_lock = threading.Lock()


class _Pending(NamedTuple):
    """One wait: for the word to be another than `seen`. `keep` keeps the channel mapped."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    seen: int
    keep: Any


class Waiter:
    """All waits of this process for one word of a channel, and the thread that sees to them."""

    def __init__(self, flow: Flow, index: int, line: int) -> None:
        """Wait for word `index`, counted among those who wait at `line`."""
        self._flow = flow
        self._index = index
        self._line = line
        self._pending: list[_Pending] = []
        self._more = threading.Condition()
        self._thread: threading.Thread | None = None
        self.generation = guards.Process.generation

    async def changed(self, seen: int, keep: Any) -> None:
        """Wait until the word is another than `seen`, or it is time to look again. Raises `StoreClosedError`."""
        loop = late.load("asyncio").get_running_loop()
        future = loop.create_future()
        with self._more:
            self._pending.append(_Pending(loop, future, seen, keep))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shmarray channel", daemon=True)
                self._thread.start()
            self._more.notify()
        self._flow.stir(self._index)  # a thread that sleeps already has to see this one too
        await future

    def _run(self) -> None:
        while True:
            with self._more:
                if not self._more.wait_for(lambda: self._pending, _LINGER):
                    self._thread = None
                    return
                keep = self._pending[0].keep
            self._serve()
            del keep

    def _serve(self) -> None:
        """Sleep until nobody waits any more."""
        flow = self._flow
        ticket = [0]
        try:
            flow.count_in(self._line, ticket)
            while True:
                now = flow.words[self._index]
                with self._more:
                    ready = [wait for wait in self._pending if wait.seen != now or wait.future.done()]
                    self._pending = [wait for wait in self._pending if wait not in ready]
                    left = bool(self._pending)
                for wait in ready:
                    _resolve(wait, None)
                if not left:
                    return
                if not self._sleep(now):
                    self._give_all(None)  # time to look whether those at the other end are still there
                    return
        except StoreClosedError as error:
            self._give_all(error)
        finally:
            flow.count_out(self._line, ticket)

    def _sleep(self, seen: int) -> bool:
        """Sleep a slice at most; false when it was slept to its end."""
        flow = self._flow
        flow.rest(self._index, seen, None)
        return bool(flow.words[self._index] != seen)

    def _give_all(self, error: StoreClosedError | None) -> None:
        with self._more:
            waits, self._pending = self._pending, []
        for wait in waits:
            _resolve(wait, error)


def _resolve(wait: _Pending, error: BaseException | None) -> None:
    try:
        wait.loop.call_soon_threadsafe(_finish, wait.future, error)
    except RuntimeError:
        return  # the loop was closed: nobody waits there any more


def _finish(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return  # cancelled
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _waiter(flow: Flow, index: int, line: int) -> Waiter:
    """Give the one for this word in this process; a forked child has its own."""
    with _lock:
        waiter = flow.waiters.get(index)
        if waiter is None or waiter.generation != guards.Process.generation:
            waiter = flow.waiters[index] = Waiter(flow, index, line)
        return waiter


async def _until_item(channel: Lender, seen: int) -> None:
    await _waiter(channel._flow, form.TAIL, form.GETTERS).changed(seen, channel._array)


async def _until_slot(channel: Lender, seen: int) -> None:
    await _waiter(channel._flow, form.FREED, form.PUTTERS).changed(seen, channel._array)


class Loaned:
    """`async with channel.aloan() as frame`: as `Loan`, in a coroutine."""

    __slots__ = ("_channel", "loan")

    def __init__(self, channel: Lender, shape: Any, meta: Any) -> None:
        """Stand ready; `loan` has the rest."""
        self._channel = channel
        self.loan = Loan(channel, 0, shape, meta)

    async def __aenter__(self) -> Any:
        """Claim a slot, when there is one. Raises as `Loan`, but for `queue.Full`."""
        while True:
            seen = self._channel._words[form.FREED]
            try:
                return self.loan.__enter__()
            except Full:
                await _until_slot(self._channel, seen)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish, or drop."""
        self.loan.__exit__(kind, error, trace)


class Received:
    """`async with channel.areceive() as frame`: as `Receipt`, in a coroutine."""

    __slots__ = ("_channel", "item")

    def __init__(self, channel: Lender, side: Side | None, keep: object = None) -> None:
        """Stand ready; `item` has the sequence, time, and so on, and keeps what shall not end before it."""
        self._channel = channel
        self.item = Receipt(channel, side, 0, keep)

    async def __aenter__(self) -> Any:
        """Take the next item, when there is one. Raises as `Receipt`, but for `queue.Empty`."""
        while True:
            seen = self._channel._words[form.TAIL]
            try:
                return self.item.__enter__()
            except Empty:
                await _until_item(self._channel, seen)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the slot back."""
        self.item.__exit__(kind, error, trace)


async def put(channel: Lender, obj: Any, meta: Any) -> bool:
    """Copy an array in, when there is a slot."""
    while True:
        seen = channel._words[form.FREED]
        try:
            return channel.put(obj, block=False, meta=meta)
        except Full:
            await _until_slot(channel, seen)


async def get(channel: Lender, side: Side | None) -> Any:
    """Copy the next item out, when there is one."""
    side = side or channel._consuming()
    while True:
        seen = channel._words[form.TAIL]
        try:
            return channel._get(side, objects.deadline_of(0))
        except Empty:
            await _until_item(channel, seen)


async def steps(source: Source, *, whole: bool) -> AsyncIterator[Any]:
    """Receive until the end of the stream: arrays, or the `whole` items; each slot goes back at the next step."""
    while True:
        received = source.areceive()
        try:
            frame = await received.__aenter__()
        except ChannelClosedError:
            return
        try:
            yield received.item if whole else frame
        finally:
            await received.__aexit__(None, None, None)
