"""Channels in coroutines.

Owns: waiting for a slot or an item without keeping the event loop from its other work, and without a thread for each wait: one thread for
all waits of this process on one word of a channel, that sleeps as everyone does and rests when nobody waits.
Must not know: what is in a slot.
"""

from __future__ import annotations

import threading
from queue import Empty, Full, SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

from shmarray import guards, objects, scopes
from shmarray._format import channel as form
from shmarray._os import late, processes
from shmarray.channels.loans import Loan, Receipt
from shmarray.errors import ChannelClosedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from types import TracebackType

    from shmarray.channels.flow import Flow, Side
    from shmarray.channels.lenders import Keeper, Lender, Source

_LINGER = 1.0
"""Seconds for which the thread is kept when nobody waits."""


class _Here:
    """What this process has: the lock under which waiters are made."""

    lock = threading.Lock()


def _after_fork() -> None:
    """In a forked child: the lock may be another thread's, who does not go on here."""
    _Here.lock = threading.Lock()


processes.after_fork_in_child(_after_fork)


class _Wait:
    """One wait: for the word to be another than `seen`. `keep` keeps the channel mapped, None when nobody waits any more."""

    __slots__ = ("future", "keep", "loop", "seen")

    def __init__(self, loop: asyncio.AbstractEventLoop, seen: int, keep: Any) -> None:
        """Begin to wait in that loop."""
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.seen = seen
        self.keep = keep


class Waiter:
    """All waits of this process for one word of a channel, and the thread that sees to them.

    A handler may raise at any point of a loop. So the only locks here are C's, whose blocks it cannot come between.
    """

    def __init__(self, flow: Flow, index: int, line: int) -> None:
        """Wait for word `index`, counted among those who wait at `line`."""
        self._flow = flow
        self._index = index
        self._line = line
        self._new: SimpleQueue[_Wait] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.generation = guards.Process.generation

    async def changed(self, seen: int, keep: Any) -> None:
        """Wait until the word is another than `seen`, or it is time to look again. Raises `StoreClosedError`, `StoreFullError`."""
        wait = _Wait(late.load("asyncio").get_running_loop(), seen, keep)
        try:
            self._new.put(wait)
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="shmarray channel", daemon=True)
                    self._thread.start()
            self._flow.stir(self._index)  # a thread that sleeps already has to see this one too
            await wait.future
        except BaseException:
            wait.keep = None
            wait.future.cancel()
            raise

    def _run(self) -> None:
        while True:
            try:
                wait = self._new.get(timeout=_LINGER)
            except Empty:
                with self._lock:
                    if self._new.empty():
                        self._thread = None
                        return
                continue
            keep = wait.keep
            if keep is not None:
                self._serve([wait])
            del wait, keep

    def _serve(self, waits: list[_Wait]) -> None:
        """Sleep until nobody waits any more; the channel stays mapped as long."""
        flow = self._flow
        ticket = [0]
        try:
            flow.count_in(self._line, ticket)
            while True:
                now = flow.words[self._index]
                while not self._new.empty():
                    waits.append(self._new.get())
                for wait in [wait for wait in waits if wait.seen != now or wait.future.done()]:
                    waits.remove(wait)
                    _resolve(wait, None)
                if not waits:
                    return
                if not self._sleep(now):
                    _resolve_all(waits, None)  # time to look whether those at the other end are still there
                    return
        except Exception as error:  # noqa: BLE001  it is raised where it was waited: the store's end, no descriptor to look for the dead
            _resolve_all(waits, error)
        finally:
            flow.count_out(self._line, ticket)

    def _sleep(self, seen: int) -> bool:
        """Sleep a slice at most; false when it was slept to its end."""
        flow = self._flow
        flow.rest(self._index, seen, None)
        return bool(flow.words[self._index] != seen)


def _resolve_all(waits: list[_Wait], error: Exception | None) -> None:
    for wait in waits:
        _resolve(wait, error)


def _resolve(wait: _Wait, error: BaseException | None) -> None:
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
    with _Here.lock:
        waiter = flow.waiters.get(index)
        if waiter is None or waiter.generation != guards.Process.generation:
            waiter = flow.waiters[index] = Waiter(flow, index, line)
        return waiter


async def _until_item(channel: Lender, seen: int) -> None:
    await _waiter(channel._flow, form.TAIL, form.GETTERS).changed(seen, channel._array)


async def _until_slot(channel: Lender, seen: int) -> None:
    await _waiter(channel._flow, form.FREED, form.PUTTERS).changed(seen, channel._array)


class _AsyncScope(scopes.Scope):
    __slots__ = ()

    if not TYPE_CHECKING:  # which finds fault with it where it is not there, as it shall

        def __await__(self) -> NoReturn:
            """Raises `TypeError`."""
            raise TypeError(self._objection("cannot be awaited", ""))


class Loaned(_AsyncScope):
    """`async with channel.aloan() as frame`: as `Loan`, in a coroutine."""

    __slots__ = ("_channel", "loan")
    _opening = "async with channel.aloan() as frame"

    loan: Loan
    """The slot, with `meta` and, after the block, `published`."""

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


class Received(_AsyncScope):
    """`async with channel.areceive() as frame`: as `Receipt`, in a coroutine."""

    __slots__ = ("_channel", "item")
    _opening = "async with channel.areceive() as frame"

    item: Receipt
    """What was received, with `frame`, `meta`, `sequence`, `time` and `missed`."""

    def __init__(self, channel: Lender, side: Side | None, keep: Keeper | None = None) -> None:
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
