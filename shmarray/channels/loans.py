"""A slot in hand: to fill it, or to read what is in it.

Owns: `Loan` and `Receipt`, the context managers that `Channel.loan` and `receive` return.
Must not know: how a slot is found, or waited for (`flow`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray import guards, objects, scopes
from shmarray._format import channel as form
from shmarray.errors import ChannelClosedError, GuardError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from shmarray.channels.flow import Side
    from shmarray.channels.hands import Taking
    from shmarray.channels.holds import Hold
    from shmarray.channels.lenders import Keeper, Lender, Source

_here = guards.Process
_NOTHING: list[int] = []
"""What all have in hand who have nothing in hand; nothing is ever put into it."""


class Loan(scopes.Scope):
    """A `with` block that fills a slot in place; the item is published when it ends, and dropped when an exception ends it.

    The array is the slot itself: once out of the block it must not be written any more.
    """

    __slots__ = (
        *("_channel", "_generation", "_got", "_hold", "_lengths", "_shape"),
        *("_short", "_timeout", "meta", "published"),
    )
    _opening = "with channel.loan() as frame"

    meta: Any
    """What goes with the item; may be set inside the block. Anything that pickles into the channel's `meta_bytes`."""
    published: bool
    """After the block: whether others get it. False with `full="drop-new"` when there was no room."""

    def __init__(self, channel: Lender, timeout: float | None, shape: Any, meta: Any) -> None:
        """Stand ready; nothing is claimed before the `with` block begins. Raises as `futexes.deadline_of` does."""
        if timeout is not None and type(timeout) is not int:
            objects.deadline_of(timeout)  # a wrong one shows now, and not first when no slot is free
        self._channel = channel
        self._timeout = timeout
        self._shape = shape
        self._got = _NOTHING
        self._hold: Hold | None = None
        self.meta = meta
        self.published = False

    def __enter__(self) -> Any:
        """Claim a slot; gives its arrays. Raises `queue.Full`, `ChannelClosedError`, `StoreClosedError`, `ShapeError`."""
        # With few calls: a slot that was filled before has driven most of this out of the processor's cache.
        channel, shape = self._channel, self._shape
        if self._got:
            raise _in_hand()
        self._lengths = lengths = () if shape is None and not channel._form.varying else channel._form.lengths(shape)
        self._short = short = channel._giving if channel._generation == _here.generation else None
        try:
            hold = channel._lends.pop()
        except IndexError:
            hold = channel._new_hold(None)
        self._hold, self._got = hold, hold.got
        got = hold.got
        try:
            if short is None or not short.claim(got):
                deadline = objects.deadline_of(self._timeout)
                me = channel._producing(deadline)
                if not channel._flow.claim(me, deadline, got):
                    self._generation = _here.generation
                    return channel._spare(lengths)
            self._generation = _here.generation
            known = channel._writes[got[0]]
            return known[...] if type(known) is np.ndarray else channel._view(got[0], lengths, write=True)
        except BaseException:
            self._drop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish, or drop. It was dropped when this raises: `ValueError` for metadata that are too large, `TimeoutError`.

        The latter two seconds after the loan's timeout, counted from here on, where a process was stopped with the channel's lock held.
        """
        got = self._got
        if self._generation != _here.generation:
            return  # in a child that was forked inside the block, the slot is the parent's
        if not got:
            self._drop()
            return
        channel, short = self._channel, self._short
        try:
            if kind is None:
                if self._lengths or self.meta is not None:
                    channel._describe(got[0], self._lengths, self.meta)
                else:
                    channel._words[channel._flow.slots.records[got[0]] + form.META] = 0
                if short is None or not short.publish(got):
                    deadline = objects.deadline_of(self._timeout)
                    channel._flow.publish(got, channel._flow.slots.parties.me(), deadline)
                self.published = True
                self._rest()
            else:
                self._drop()
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._got:
            flow = self._channel._flow
            flow.discard(self._got, flow.slots.parties.me())
        self._rest()

    def _rest(self) -> None:
        """Let the hold be used by others."""
        hold, self._hold, self._got = self._hold, None, _NOTHING
        if hold is not None:
            self._channel._lends.append(hold)


class Receipt(scopes.Scope):
    """A `with` block that reads an item in place; its slot goes back when it ends.

    The arrays are the slot itself, not writable: what is to be kept must be copied.
    """

    __slots__ = (
        "_channel",
        "_generation",
        "_got",
        "_hold",
        "_keep",
        "_pool",
        "_short",
        "_side",
        "_timeout",
        "meta",
        "missed",
        "sequence",
        "time",
    )
    _opening = "with channel.receive() as frame"

    meta: Any
    """What the producer gave with the item; None if nothing."""
    sequence: int
    """Number of the item in the channel, from 0."""
    time: float
    """When it was published: seconds since the epoch."""
    missed: int
    """Of a broadcast: how many items were dropped, for this subscription, since the one before."""

    def __init__(self, channel: Lender, side: Side | None, timeout: float | None, keep: Keeper | None = None) -> None:
        """Stand ready; nothing is taken before the `with` block begins. `keep` is what ends when it is dropped, and its slots with it.

        Raises as `futexes.deadline_of` does.
        """
        if timeout is not None and type(timeout) is not int:
            objects.deadline_of(timeout)
        self._channel = channel
        self._keep = keep
        self._side = side
        self._timeout = timeout
        self._got = _NOTHING
        self._hold: Hold | None = None
        self._pool = channel._takes if keep is None else keep._takes

    def __enter__(self) -> Any:
        """Take the next item; gives its arrays. Raises `queue.Empty`, `ChannelClosedError`, `StoreClosedError`."""
        channel = self._channel
        if self._got:
            raise _in_hand()
        quick = self._side is None and channel._generation == _here.generation
        self._short = short = channel._taking if quick else None
        try:
            hold = self._pool.pop()
        except IndexError:
            side = self._side or channel._side or channel._consuming(objects.deadline_of(self._timeout))
            hold = channel._new_hold(side)
        self._hold, self._got = hold, hold.got
        got = hold.got
        try:
            if short is None or not short.take(got):
                deadline = objects.deadline_of(self._timeout)
                if short is None or not self._wait(short, deadline):
                    side = self._side or channel._consuming(deadline)
                    self._side = side
                    channel._flow.take(side, deadline, got)
            self._generation = _here.generation
            return self._described(got[0])
        except BaseException:
            self._leave()
            raise

    def _objection(self, problem: str, used: str) -> str:
        if self._got:
            return f"{type(self).__name__} {problem}: the data are its frame\nWrite `item.frame{used}`."
        return super()._objection(problem, used)

    def _wait(self, short: Taking, deadline: float | None) -> bool:
        """Wait the short way; false if that does not do."""
        soon, got = self._channel._soon, self._got
        if soon is None or self._timeout == 0:
            return False
        return soon(lambda ticket: short.take(got, ticket) or None, deadline) is not None

    def _described(self, slot: int) -> Any:
        channel = self._channel
        words, record = channel._words, channel._flow.slots.records[slot]
        self.sequence = words[record + form.NUMBER]
        self.time = words[record + form.STAMP] / 1e9
        self.missed = self._side.newly_missed() if self._side is not None else 0
        self.meta = channel._meta(record) if words[record + form.META] else None
        known = channel._reads[slot]
        return known[...] if type(known) is np.ndarray else channel._view(slot, channel._lengths(record), write=False)

    @property
    def frame(self) -> Any:
        """The arrays, as long as the item is in hand. Raises `GuardError` before and after that: the slot is somebody else's."""
        got, channel = self._got, self._channel
        if not got:
            raise GuardError(
                "this item is not in hand: its block or step has ended, or has not begun",
                remedy="Use `frame` inside, and keep frame.copy() beyond it.",
            )
        return channel._view(got[0], channel._lengths(channel._flow.slots.geometry.record(got[0])), write=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the slot back."""
        if self._generation == _here.generation:
            try:
                self._return()
            except BaseException:
                if self._got:
                    self._return()
                raise

    def _return(self) -> None:
        got, short = self._got, self._short
        if got and (short is None or not short.give_back(got)):
            self._channel._flow.give_back(self._taker(), got)
        self._rest()

    def _leave(self) -> None:
        """Leave an item that nobody has seen to the next."""
        if self._got:
            self._channel._flow.untake(self._taker(), self._got, self._hold)
            if self._got:
                self._hold = None  # still in hand until whoever was stopped with the lock goes on: for no other block
        self._rest()

    def _rest(self) -> None:
        """Let the hold be used by others."""
        hold, self._hold, self._got = self._hold, None, _NOTHING
        if hold is not None:
            self._pool.append(hold)

    def _taker(self) -> Side:
        """Give the side by which it was taken: of a queue the channel's, which may be closed by now."""
        return self._side or self._channel._side or self._channel._consuming(None)


def _in_hand() -> GuardError:
    return GuardError(
        "this `with` block has a slot in hand already",
        remedy="Call loan() or receive() for each `with` block.",
    )


def steps(source: Source, *, whole: bool) -> Iterator[Any]:
    """Receive until the end of the stream: arrays, or the `whole` items; each slot goes back at the next step, or when the loop is left."""
    while True:
        item = source.receive()
        try:
            frame = item.__enter__()
        except ChannelClosedError:
            return
        try:
            yield item if whole else frame
        finally:
            item.__exit__(None, None, None)
