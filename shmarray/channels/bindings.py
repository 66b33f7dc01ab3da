"""What stands for a channel in a process.

Owns: the words and slots of an attached channel, viewing and describing what is in a slot, being a producer or a consumer.
Must not know: what a user does with it (`channel`).
"""

from __future__ import annotations

import itertools
import pickle
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray import arrays, contents, guards, objects
from shmarray._format import channel as form
from shmarray._os import mutexes
from shmarray.channels import hands, holds, quick
from shmarray.channels.flow import Flow
from shmarray.channels.forms import Form
from shmarray.channels.roles import Role
from shmarray.channels.sides import QueueSide
from shmarray.channels.subscriptions import Seat
from shmarray.errors import ChannelClosedError, CorruptBlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmarray._os import segments
    from shmarray.channels.flow import Side
    from shmarray.channels.holds import Hold

MOST_SLOTS = 1 << 16
SMALL = 64 << 10
"""Bytes of an item up to which it is copied with the lock held: one turn of the lock instead of two."""
_FEW = 1024
"""Slots up to which all are viewed beforehand, for the short way."""
_numbers = itertools.count(1)


class Binding(objects.SharedObject):
    """An attached channel."""

    __slots__ = (
        *("_data", "_dtype", "_finalizer", "_flow", "_form", "_generation", "_get_now", "_giving"),
        *("_is_quick", "_lends", "_number", "_put_now", "_reads", "_roles", "_seats", "_shape"),
        *("_side", "_soon", "_takes", "_taking", "_writes"),
    )

    def _attached(self) -> None:
        segment = objects.segment_of(self)
        try:
            self._form = Form.described(contents.describe(segment).tree)
            self._data: np.ndarray[Any, Any] = arrays.leaf(segment, 1).view(np.ndarray)
            flow = segment.tag.cache.get("flow") or _flow_of(segment, self)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise contents.undescribed(segment.tag, error) from None
        self._flow: Flow = flow
        self._roles: tuple[Role, Role] = segment.tag.cache["roles"]
        self._number = next(_numbers)
        self._side: Side | None = None
        self._seats: dict[int, Seat] = {}
        self._generation = -1
        self._lends: list[Hold] = []
        self._takes: list[Hold] = []
        self._finalizer: weakref.finalize[Any, Any] | None = None
        count = self._words[form.SLOTS]
        self._writes: list[Any] = [None] * count
        field = self._form.fields[0]
        self._is_quick = (
            self._form.is_single and not self._form.varying and self._form.nbytes <= SMALL and count <= _FEW
        )
        self._dtype, self._shape = field.dtype, field.bounds
        # The short ways, of an object that is a producer or consumer already, in the process of that generation.
        self._giving: hands.Giving | None = None
        self._taking: hands.Taking | None = None
        self._put_now: Callable[[Any], bool] | None = None
        self._get_now: Callable[[list[int] | None], Any] | None = None
        self._soon: Callable[[Callable[[list[int]], Any], float | None], Any] | None = None
        self._reads: list[Any] = [None] * count

    def _producing(self, deadline: float | None) -> int:
        """Be a producer; gives the name of this process."""
        role = self._roles[0]
        if not role.has(self._number):
            self._join(role, deadline)
            self._giving = hands.giving(self._flow)
            if self._is_quick:
                self._put_now = quick.putter(self._flow, self._all(self._writes, write=True))
        return self._flow.slots.parties.me()

    def _consuming(self, deadline: float | None = None) -> Side:
        """Be a consumer, or have a subscription; gives the side to take by."""
        if self._words[form.MODE] == form.BROADCAST:
            return (self._seat() or self._sit_down(deadline)).side
        if not self._roles[1].has(self._number):
            self._side = QueueSide(self._flow.slots)
            self._join(self._roles[1], deadline)
            self._taking = hands.taking(self._flow)
            self._soon = hands.waiter(self._flow)
            if self._is_quick:
                self._get_now = quick.getter(self._flow, self._all(self._reads, write=False))
        return self._side  # type: ignore[return-value]  # set with the role

    def _seat(self) -> Seat | None:
        """Give the subscription that this object has by itself; in a forked child: not that of the parent."""
        return self._seats.get(guards.Process.generation)

    def _sit_down(self, deadline: float | None) -> Seat:
        """Subscribe this object, once, though several threads come at the same time."""
        self._require_open()
        made = Seat.make(self, deadline, travels=False)
        seat = self._seats.setdefault(guards.Process.generation, made)
        if seat is not made:
            made.close()
        return seat

    def _require_open(self) -> None:
        if self._number < 0:
            raise ChannelClosedError(
                "this object of the channel is closed",
                remedy="Use another: store[name], or one that travelled here.",
                name=self.name,
            )

    def _join(self, role: Role, deadline: float | None) -> None:
        self._require_open()
        if self._finalizer is None:
            self._finalizer = weakref.finalize(self, _forget, self._roles, self._number)
            self._finalizer.atexit = False  # the end of the process is seen by all
        role.join(self._number, deadline)
        if self._generation != guards.Process.generation:
            # What a forked child inherited would take and put in its parent's name.
            self._forget_short_ways()
            self._generation = guards.Process.generation

    def _forget_short_ways(self) -> None:
        self._put_now = self._get_now = self._giving = self._taking = self._soon = None

    def _all(self, views: list[Any], *, write: bool) -> list[Any]:
        """View every slot."""
        views[:] = [self._form.view(memory, (), write=write) for memory in self._data]
        return views

    def _new_hold(self, side: Side | None) -> Hold:
        """Make what has slots in hand, of a subscription if that is the side."""
        return holds.fresh(objects.segment_of(self), None if self._words[form.MODE] == form.QUEUE else side)

    def _view(self, slot: int, lengths: Sequence[int], *, write: bool) -> Any:
        """View a slot as an item; whoever gets it cannot change what is kept here."""
        if lengths or self._form.varying:
            return self._form.view(self._data[slot], lengths, write=write)
        known = self._writes if write else self._reads
        if known[slot] is None:
            known[slot] = self._form.view(self._data[slot], (), write=write)
        found = known[slot]
        return found[...] if self._form.is_single else {name: array[...] for name, array in found.items()}

    def _spare(self, lengths: Sequence[int]) -> Any:
        """Private memory for an item that is dropped."""
        return self._form.view(np.empty(self._data.shape[1], np.uint8), lengths, write=True)

    def _lengths(self, record: int) -> tuple[int, ...]:
        if not self._form.varying:
            return ()
        return tuple(self._words[record + form.LENGTHS : record + form.LENGTHS + self._form.varying])

    def _describe(self, slot: int, lengths: Sequence[int], meta: Any) -> None:
        self._describe_packed(slot, lengths, None if meta is None else self._pack(meta))

    def _pack(self, meta: Any) -> bytes:
        packed = pickle.dumps(meta, pickle.HIGHEST_PROTOCOL)
        if len(packed) > self._words[form.META_ROOM]:
            message = f"the metadata take {len(packed)} bytes, and the channel has {self._words[form.META_ROOM]} for them (meta_bytes)"
            raise ValueError(message)
        return packed

    def _describe_packed(self, slot: int, lengths: Sequence[int], packed: bytes | None) -> None:
        """Write beside an item what its lengths and its metadata are."""
        words, record = self._words, self._flow.slots.geometry.record(slot)
        if lengths:
            words[record + form.LENGTHS : record + form.LENGTHS + len(lengths)] = lengths
        words[record + form.META] = 0 if packed is None else len(packed)
        if packed is not None:
            start = 8 * (record + form.LENGTHS + self._form.varying)
            self._bytes()[start : start + len(packed)] = np.frombuffer(packed, np.uint8)

    def _meta(self, record: int) -> Any:
        start = 8 * (record + form.LENGTHS + self._form.varying)
        return pickle.loads(  # noqa: S301  a process of the same user wrote it, as all that travels
            self._bytes()[start : start + self._words[record + form.META]].tobytes()
        )

    def _bytes(self) -> np.ndarray[Any, Any]:
        return self._array.view(np.ndarray).view(np.uint8)

    def _item(self, slot: int) -> Any:
        """View an item that was taken."""
        return self._view(slot, self._lengths(self._flow.slots.geometry.record(slot)), write=False)


def _flow_of(segment: segments.Segment, channel: Binding) -> Flow:
    """Make what all objects of this process that stand for a channel have in common."""
    words, cache = channel._words, segment.tag.cache
    geometry = form.Geometry(words[form.SLOTS], words[form.RECORD_WORDS])
    if not 1 <= geometry.slots <= MOST_SLOTS or geometry.words > len(words) or channel._data.shape[0] != geometry.slots:
        raise CorruptBlockError(
            f"{segment.tag.path} is not a channel that this version knows",
            remedy="Let both processes use the same version of shmarray.",
            path=segment.tag.path,
        )
    if channel._guard.member.control.guard == "robust" and mutexes.NOT_ROBUST:
        channel._guard.acquire(None)  # raises: the locks of a channel are of the kind that the guard is of
    flow = Flow(words, channel._guard.member, channel.name)
    roles = Role(flow, form.PRODUCERS, form.PRODUCED), Role(flow, form.CONSUMERS, form.CONSUMED)
    cache.setdefault("roles", roles)
    return cache.setdefault("flow", flow)  # type: ignore[no-any-return]


def _forget(roles: tuple[Role, Role], number: int) -> None:
    """Run when an object that stands for a channel is dropped."""
    for role in roles:
        role.forget(number)
