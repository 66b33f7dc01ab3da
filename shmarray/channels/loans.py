"""A slot in hand: to fill it, or to read what is in it.

Owns: `Loan` and `Receipt`, the context managers that `Channel.loan` and `receive` return.
Must not know: how a slot is found, or waited for (`flow`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmarray import guards, objects
from shmarray._format import channel as form
from shmarray.errors import ChannelClosedError, GuardError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from shmarray.channels.flow import Side
    from shmarray.channels.lenders import Lender, Source


class Loan:
    """A `with` block that fills a slot in place; the item is published when it ends, and dropped when an exception ends it.

    The array is the slot itself: once out of the block it must not be written any more.
    """

    __slots__ = ("_channel", "_generation", "_got", "_lengths", "_me", "_shape", "_timeout", "meta", "published")

    meta: Any
    """What goes with the item; may be set inside the block. Anything that pickles into the channel's `meta_bytes`."""
    published: bool
    """After the block: whether others get it. False with `full="drop-new"` when there was no room."""

    def __init__(self, channel: Lender, timeout: float | None, shape: Any, meta: Any) -> None:
        """Stand ready; nothing is claimed before the `with` block begins."""
        self._channel = channel
        self._timeout = timeout
        self._shape = shape
        self._got: list[int] = []
        self.meta = meta
        self.published = False

    def __enter__(self) -> Any:
        """Claim a slot; gives its arrays. Raises `queue.Full`, `ChannelClosedError`, `StoreClosedError`, `ShapeError`."""
        channel = self._channel
        _only_once(self._got)
        self._lengths = channel._form.lengths(self._shape)
        deadline = objects.deadline_of(self._timeout)
        self._me = channel._producing(deadline)
        self._generation = guards.Process.generation
        if channel._flow.claim(self._me, deadline, self._got):
            try:
                return channel._view(self._got[0], self._lengths, write=True)
            except BaseException:
                channel._flow.discard(self._got, self._me)
                raise
        return channel._spare(self._lengths)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish, or drop. Raises `ValueError` for metadata that are too large; then it was dropped."""
        if not self._got or self._generation != guards.Process.generation:
            return  # in a child that was forked inside the block, the slot is the parent's
        channel = self._channel
        try:
            if kind is None:
                channel._describe(self._got[0], self._lengths, self.meta)
                channel._flow.publish(self._got, self._me)
                self.published = True
            else:
                channel._flow.discard(self._got, self._me)
        except BaseException:
            if self._got:
                channel._flow.discard(self._got, self._me)
            raise


class Receipt:
    """A `with` block that reads an item in place; its slot goes back when it ends.

    The arrays are the slot itself, not writable: what is to be kept must be copied.
    """

    __slots__ = ("_channel", "_generation", "_got", "_keep", "_side", "_timeout", "meta", "missed", "sequence", "time")

    meta: Any
    """What the producer gave with the item; None if nothing."""
    sequence: int
    """Number of the item in the channel, from 0."""
    time: float
    """When it was published: seconds since the epoch."""
    missed: int
    """Of a broadcast: how many items were dropped, for this subscription, since the one before."""

    def __init__(self, channel: Lender, side: Side | None, timeout: float | None, keep: object = None) -> None:
        """Stand ready; nothing is taken before the `with` block begins. `keep` is what ends when it is dropped, and its slots with it."""
        self._channel = channel
        self._keep = keep
        self._side = side
        self._timeout = timeout
        self._got: list[int] = []

    def __enter__(self) -> Any:
        """Take the next item; gives its arrays. Raises `queue.Empty`, `ChannelClosedError`, `StoreClosedError`."""
        channel = self._channel
        _only_once(self._got)
        deadline = objects.deadline_of(self._timeout)
        side = self._side or channel._consuming(deadline)
        self._side = side
        self._generation = guards.Process.generation
        channel._flow.take(side, deadline, self._got)
        try:
            return self._described(self._got[0])
        except BaseException:
            self._return()
            raise

    def _described(self, slot: int) -> Any:
        channel = self._channel
        words = channel._words
        record = channel._flow.slots.geometry.record(slot)
        self.sequence = words[record + form.NUMBER]
        self.time = words[record + form.STAMP] / 1e9
        self.missed = self._side.newly_missed() if self._side is not None else 0
        self.meta = channel._meta(record) if words[record + form.META] else None
        return channel._view(slot, channel._lengths(record), write=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the slot back."""
        if self._generation == guards.Process.generation:
            try:
                self._return()
            except BaseException:
                if self._got:
                    self._return()
                raise

    def _return(self) -> None:
        if self._side is not None:
            self._channel._flow.give_back(self._side, self._got)


def _only_once(got: list[int]) -> None:
    if got:
        raise GuardError(
            "this `with` block has a slot in hand already",
            remedy="Call loan() or receive() for each `with` block.",
        )


def frames(source: Source) -> Iterator[Any]:
    """Receive until the end of the stream; each slot goes back at the next step, or when the loop is left."""
    while True:
        item = source.receive()
        try:
            frame = item.__enter__()
        except ChannelClosedError:
            return
        try:
            yield frame
        finally:
            item.__exit__(None, None, None)
