"""Shared objects that keep others: what is put into a queue, a dict, a list.

Owns: *arenas*, blocks that hold the records of such an object and are replaced by a larger one when they are full; *parcels*, values
as bytes, the large ones in a block of their own; how all of these live exactly as long as the object does.
Must not know: in which order records are taken.

Whatever an object keeps hangs on a link whose name ends with the inode of the object's own file (`keeping`): when that file has
gone, by whatever death, whoever sees it removes the link (`reaper.drop_kept`, or a sweep). Nothing else has to be written down.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from shmarray import attachments, blocks, contents, keeping, objects, reaper, shields
from shmarray._format import layouts, names
from shmarray._format.handle import BlockKey
from shmarray._os import late, segments
from shmarray.errors import StoreFullError
from shmarray.guards import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmarray.membership import Membership

Result = TypeVar("Result")
PLAIN, ELSEWHERE = 0, 1
"""Kinds of parcels: the bytes themselves; where they are."""
_LARGE = 32 << 10  # bytes that get a block of their own
_BYTES = np.dtype(np.uint8)
_LEAST_FREE = 8  # this part of an arena at least is free when it is made: else each record that is added makes another
_ALL = (1 << 64) - 1
_WHERE = struct.Struct("<QQ")
_ROOM, _THING = "room", "keep"


class Parcel(NamedTuple):
    """A value as bytes, and the links on which what it refers to hangs."""

    kind: int
    data: bytes | memoryview
    links: list[str]


def dumps(value: Any) -> bytes:
    """Pickle; what only `multiprocessing` can pickle, such as a socket or a connection, its way."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except (TypeError, pickle.PicklingError, AttributeError):
        pickler: Any = late.load("multiprocessing.reduction").ForkingPickler
        return bytes(pickler.dumps(value, pickle.HIGHEST_PROTOCOL))


def signed(number: int) -> int:
    """Write the number of a block as a signed word."""
    return number - (number >> 63 << 64)


def elsewhere(kind: int, data: bytes | memoryview) -> int:
    """How many bytes of a parcel lie in a block of their own."""
    size: int = 0 if kind == PLAIN else _WHERE.unpack(data)[1]
    return size


class Mendable(Protocol):
    """Records in an order."""

    @property
    def arena_number(self) -> int:
        """Number of the arena they lie in; 0 if there is none."""

    def mend(self) -> None:
        """With the guard held: make the words agree with the records, after a death at any line."""


class Arena:
    """The block in which the records of an object lie: eight words, then `size` bytes of room."""

    HEAD = 64
    __slots__ = ("memory", "number", "segment", "size", "words")

    def __init__(self, segment: segments.Segment) -> None:
        """Stand for an attached arena."""
        self.segment = segment
        self.number: int = segment.tag.key.block
        self.size = segment.tag.nbytes - self.HEAD
        self.memory = shields.over(segment).data  # the words lie in what it keeps mapped
        self.words = (ctypes.c_int64 * (self.HEAD // 8)).from_address(segments.address_of(segment))


class Keeper(objects.SharedObject):
    """What keeps: one shared object, as those see it who keep something in it. Everything happens with its guard held."""

    __slots__ = ()

    @classmethod
    def of(cls, shared: objects.SharedObject) -> Self:
        """Keep things in the block of that object. Refers to the block and not to the object, so there is no cycle."""
        return cls._over(objects.segment_of(shared))

    def _attached(self) -> None:
        self._segment.tag.cache[attachments.KEEPS] = True

    @property
    def _segment(self) -> segments.Segment:
        return objects.segment_of(self)

    @property
    def _member(self) -> Membership:
        member: Membership = self._segment.tag.member
        return member

    # -- the guard -----------------------------------------------------------------------------------------------------

    def within(
        self,
        work: Callable[[], Result],
        shelves: Sequence[Mendable],
        deadline: float | None = None,
        late: type[Exception] = TimeoutError,
        *,
        open_to_me: bool = False,
    ) -> Result:
        """Do `work` with the guard held and give what it gives; raises `late` if the guard is not to be had before the deadline.

        If the last holder did not come to the end of what it did, `shelves` are mended before. While inside, this thread cannot get in
        a second time, a finalizer for instance, which gets `GuardError`; with `open_to_me` it can, as inside `with get_lock()`.
        """
        guard = self._guard
        outer = guard.depth if guard.owner == threading.get_ident() else 0
        if outer:
            guard.depth = 0
        else:
            left = None if deadline is None else max(SLICE, deadline - time.monotonic())
            if not guard.acquire(self._array, left):
                raise late
        try:
            guard.depth = 0  # what an RLock left there
            if guard.is_poisoned():
                self._mend(shelves)
            if open_to_me:
                guard.depth = 1
            return work()
        finally:
            # A signal's handler may raise as the first step of leaving; every step may be done twice.
            try:
                self._leave(outer)
            except BaseException:
                self._leave(outer)
                raise

    def _mend(self, shelves: Sequence[Mendable]) -> None:
        for shelf in shelves:
            shelf.mend()
        self._drop_other_arenas({shelf.arena_number for shelf in shelves})
        self._guard.heal()

    def _leave(self, outer: int) -> None:
        """Let the guard go, or go back to how often this thread had it before. May be repeated."""
        if outer:
            self._guard.depth = outer
        elif self._guard.owner == threading.get_ident():
            self._guard.release()

    def spoil(self) -> None:
        """With the guard held, on the way out with an error: whoever enters next mends."""
        self._guard.spoil()

    # -- what is kept --------------------------------------------------------------------------------------------------

    def _link(self, number: int, what: str) -> str:
        """Path of the link on which a block hangs that this object keeps."""
        block = self._segment.tag
        key = block.key._replace(block=number & _ALL, name=None, claim=f"{what}.{block.identity[1]:x}")
        return f"{block.member.block_prefix}{key.claim_entry}"

    def _keep(self, segment: segments.Segment, what: str) -> str:
        link = self._link(segment.tag.key.block, what)
        segments.link(segment.tag.path, link)
        return link

    def make_arena(self, first: int, used: int) -> Arena:
        """Make an arena, all zero, for so many bytes: `first`, doubled until half of it stays free; or what there is room for.

        Raises `StoreFullError`, `StoreClosedError`.
        """
        size, least = first, -(-(used + used // _LEAST_FREE) // segments.PAGE) * segments.PAGE
        while size < 2 * used:
            size *= 2
        try:
            return self._make_arena(size)
        except StoreFullError:
            if size <= least:
                raise
        return self._make_arena(least)

    def _make_arena(self, size: int) -> Arena:
        total = size + Arena.HEAD
        leaf = (_BYTES, layouts.Layout((total,), None, total))
        segment = contents.create(self._member, None, [leaf], kind="Arena")
        self._keep(segment, _ROOM)
        return Arena(segment)

    def find_arena(self, number: int) -> Arena:
        """Attach the arena of that number."""
        return Arena(self._find(number))

    def drop_arena(self, number: int) -> None:
        """Keep an arena no more; it goes when nobody maps it."""
        segments.unlink(self._link(number, _ROOM))

    def _drop_other_arenas(self, numbers: set[int]) -> None:
        """After a death while an arena was being replaced: keep only these. Arenas are made and found with the guard held."""
        directory, prefix = self._member.control.directory, self._member.key.prefix + names.IN_FLIGHT
        ending = f".{_ROOM}.{self._segment.tag.identity[1]:x}"
        for entry in segments.entries(directory, prefix):
            number = entry.removeprefix(prefix).removesuffix(ending)
            if entry.endswith(ending) and int(number, 16) not in {number & _ALL for number in numbers}:
                self.drop_arena(int(number, 16))

    def _find(self, number: int) -> segments.Segment:
        """Attach a block that this object keeps. Raises `ArrayNotFoundError` when the object itself was deleted."""
        key = BlockKey(self._member.key.uid, self._member.key.store, number & _ALL, None, None)
        return blocks.attach(self._member, key)

    def pack(self, value: Any) -> Parcel:
        """Make a parcel of a value; arrays of a store go as handles, which it then keeps.

        Raises what pickling raises, `StoreFullError`, `StoreClosedError`.
        """
        with keeping.kept_in(self._segment.tag.identity[1]) as links:
            data = dumps(value)
            return self.pack_bytes(data, links)

    def pack_bytes(self, data: bytes | memoryview, links: list[str] | None = None) -> Parcel:
        """Make a parcel of bytes. Raises `StoreFullError`, `StoreClosedError`."""
        self._member.require_open()  # nothing goes into what nobody will find
        links = [] if links is None else links
        if len(data) <= _LARGE:
            return Parcel(PLAIN, data, links)
        leaf = (_BYTES, layouts.Layout((len(data),), None, len(data)))
        source = np.frombuffer(data, np.uint8)
        segment = contents.create(self._member, None, [leaf], sources=[source], kind="Parcel")
        links.append(self._keep(segment, _THING))
        return Parcel(ELSEWHERE, _WHERE.pack(segment.tag.key.block, len(data)), links)

    def unpack(self, kind: int, data: bytes) -> Any:
        """Give the value of a parcel that was taken out: what it refers to is the receiver's now."""
        return pickle.loads(data if kind == PLAIN else self._claim(data))  # noqa: S301  of this user's own processes, as in multiprocessing

    @property
    def prefix(self) -> str:
        """What the paths of all files of the store's blocks begin with."""
        return self._member.block_prefix

    def give_back(self, parcel: Parcel) -> None:
        """Take back a parcel that found no place."""
        for link in parcel.links:
            self.release(link)

    def release(self, link: str) -> None:
        """Keep no more what hangs on that link; it goes when nobody has it."""
        reaper.release_claim(self._member.control.directory, self._member.key, os.path.basename(link))

    def unpack_bytes(self, kind: int, data: bytes) -> bytes:
        """Give the bytes of a parcel that was taken out."""
        return data if kind == PLAIN else bytes(self._claim(data))

    def _claim(self, data: bytes) -> memoryview:
        """Map the block of a large parcel, which is kept no more."""
        number, size = _WHERE.unpack(data)
        segment = self._find(number)
        segments.unlink(self._link(number, _THING))
        return memoryview(segment)[:size]

    def show(self, kind: int, data: bytes) -> Any:
        """Give the value of a parcel that stays where it is."""
        with keeping.lent():
            if kind == PLAIN:
                return pickle.loads(data)  # noqa: S301  as above
            number, size = _WHERE.unpack(data)
            return pickle.loads(memoryview(self._find(number))[:size])  # noqa: S301  as above
