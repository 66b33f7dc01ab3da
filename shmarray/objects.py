"""Shared objects that are not arrays to their user: the base of locks, events, values, queues.

Owns: an object whose state is the data of one block, guarded by the block's guard; how it pickles, is found by name, and
waits for a word of its state to change.
Must not know: what any such object does.

An object lives as an array does: anonymous as long as any process holds it or a handle to it is in flight, named until it is
deleted, and no longer than its store.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np

from shmarray import arrays, blocks, contents, joining, locks, trees, wholes
from shmarray._format import layouts
from shmarray._format.handle import BlockKey
from shmarray._os import futexes, late, segments
from shmarray.errors import ArrayNotFoundError, CorruptBlockError
from shmarray.guards import SLICE, Guard, guard_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmarray.membership import Membership

_WORD = np.dtype(np.int64)
L = TypeVar("L", bound=locks.Lock)
_KINDS: dict[str, Callable[[segments.Segment], Any]] = {
    "Lock": functools.partial(locks.over, locks.Lock),
    "RLock": functools.partial(locks.over, locks.RLock),
}


_LATE: dict[str, str] = {}


class Shareable:
    """A mark for what `store["name"] = it` gives a name by a reference."""

    __slots__ = ()


class SharedObject(Shareable):
    """State in a block, shared by every process that has the object; picklable through any queue or argument."""

    __slots__ = ("__weakref__", "_array", "_guard", "_words")
    _kind: ClassVar[str] = ""

    _array: arrays.SharedArray
    """All data of the block; keeps the mapping."""
    _words: Any
    """The same as signed 64-bit integers, each read and written in one instruction (a ctypes array)."""
    _guard: Guard

    def __init_subclass__(cls) -> None:
        """Enter the class among those that a store finds by name."""
        if cls._kind:
            _KINDS[cls._kind] = cls._over

    @classmethod
    def _create(
        cls,
        member: Membership,
        shape: Any,
        name: str | None = None,
        fill: Callable[[np.ndarray[Any, Any]], None] | None = None,
        dtype: np.dtype[Any] = _WORD,
    ) -> Self:
        """Make an object whose state is such an array, zero but for what `fill` writes into it before anyone sees it."""
        layout = contents.layout_of(dtype, shape)
        return cls._over(contents.create(member, name, [(dtype, layout)], fill=fill, kind=cls._kind))

    @classmethod
    def _over(cls, segment: segments.Segment) -> Self:
        """Stand for the object in an attached block."""
        shared = cls.__new__(cls)
        shared._array = arrays.leaf(segment, 0)
        shared._words = (ctypes.c_int64 * (shared._array.nbytes // 8)).from_address(segments.address_of(segment))
        shared._guard = guard_of(segment)
        shared._attached()
        return shared

    def _attached(self) -> None:
        """Prepare what a process needs beside the shared state; called for each object that stands for a block."""

    @property
    def name(self) -> str | None:
        """Name of the object in its store; None if it is anonymous."""
        return self._array.name

    def unlink(self) -> None:
        """Delete the object for everyone: no new attach. Those who have it may go on. May be repeated."""
        self._array.unlink()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a handle."""
        return _attach, (type(self), tuple(blocks.offer(segment_of(self))))

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _address(self, index: int) -> int:
        """Where word `index` is; its low 32 bits are what a futex waits on."""
        return ctypes.addressof(self._words) + 8 * index

    def _wait_change(self, index: int, seen: int, deadline: float | None) -> bool:
        """Sleep while the low half of word `index` is that of `seen`; returns after one slice at most, to look again.

        False when the deadline (of `time.monotonic`) has passed. Signal handlers run between slices. Raises `StoreClosedError` when
        the store has ended: whoever could have changed the word may be gone, and nobody shall wait for ever.
        """
        return wait_change(self._words, index, seen, deadline, self._guard.member)

    def _wake(self, index: int, count: int = futexes.EVERYONE) -> None:
        """Wake up to `count` sleepers on word `index`; change the word before."""
        futexes.wake(self._address(index), count)


ending: list[None] = []
"""Not empty when a store of this process has been closed by the end of the program: who waits then in a thread is not to be told of it."""


def wait_change(words: Any, index: int, seen: int, deadline: float | None, member: Membership) -> bool:
    """Sleep on word `index` of a ctypes array of words; see `SharedObject._wait_change`."""
    left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
    if left <= 0:
        return False
    futexes.wait(ctypes.addressof(words) + 8 * index, seen & 0xFFFF_FFFF, left)
    if words[index] == seen and not member.is_open():
        if ending and threading.current_thread() is not threading.main_thread():
            threading.Event().wait()  # for ever: this is a daemon thread, which the interpreter's end does not wait for
        member.require_open()
    return True


deadline_of = futexes.deadline_of


def seconds_to(deadline: float) -> float:
    """How long it is to a moment of `time.monotonic`."""
    return deadline - time.monotonic()


def segment_of(shared: SharedObject) -> segments.Segment:
    """The mapped block of a shared object."""
    segment = contents.segment_of(shared._array)
    if segment is None:
        message = "a shared object lost its block"
        raise RuntimeError(message)
    return segment


def _attach(cls: type[SharedObject], key: tuple[Any, ...]) -> SharedObject:
    """Load a handle of a shared object. Raises as `blocks.attach` does."""
    block_key = BlockKey(*key)
    segment = blocks.attach(joining.join(block_key.store_key), block_key)
    _check_kind(segment, cls._kind)
    return cls._over(segment)


def _check_kind(segment: segments.Segment, kind: str) -> None:
    found = contents.describe(segment).kind
    if found != kind:
        raise CorruptBlockError(
            f"{segment.tag.path} holds {found or 'an array'}, not {kind}",
            remedy="The handle was made by another version; make the object anew.",
            path=segment.tag.path,
        )


def come_late(module: str, kinds: Iterable[str]) -> None:
    """Say which module to load when a block of one of these kinds is met; loading it adds them."""
    _LATE.update(dict.fromkeys(kinds, module))


def add_kind(kind: str, opener: Callable[[segments.Segment], Any]) -> None:
    """Say how to open what a block of that kind holds."""
    _KINDS[kind] = opener


def open_segment(segment: segments.Segment) -> Any:
    """Give what a block holds: an array, a tree, or a shared object."""
    whole = wholes.of(segment)
    if whole is not None:
        return arrays.of_whole(segment, whole)
    again = contents.is_described(segment)
    description = contents.describe(segment)
    kind = description.kind
    if kind is None:
        opened = trees.open_segment(segment)
        if again and description.tree is None:
            wholes.note(segment, opened)  # for the next time: it stays attached here
        return opened
    if kind not in _KINDS and kind in _LATE:
        late.load(_LATE[kind])
    if kind not in _KINDS:
        raise CorruptBlockError(
            f"{segment.tag.path} holds {kind!r}, which this shmarray does not know",
            remedy="It was made by a newer version: let both processes use the same.",
            path=segment.tag.path,
        )
    return _KINDS[kind](segment)


def is_named(member: Membership, name: str, value: Any) -> bool:
    """Say whether a name leads to this very array or tree, all of it: giving it that name again changes nothing."""
    if isinstance(value, trees.SharedTree):
        segment = trees.block_of_whole(value)
    elif type(value) is arrays.SharedArray:
        segment = contents.segment_of(value)
    else:
        return False
    if segment is None or segment.tag.key.name != name or segment.tag.member.key != member.key:
        return False
    try:
        there = blocks.lookup(member, name)
    except ArrayNotFoundError:
        return False
    # A process may have mapped it twice: before a fork and after.
    if there.tag.key.block != segment.tag.key.block:
        return False
    if type(value) is not arrays.SharedArray:
        return True
    opened = open_segment(there)
    return (
        type(opened) is arrays.SharedArray
        and contents.spec_in(there, opened)[:-1]
        == contents.spec_in(segment, value)[:-1]  # the last is whether it may be written
    )


def create_lock(member: Membership, kind: type[L], name: str | None) -> L:
    """Make a lock: a block without data, whose guard it is."""
    layout = layouts.Layout((0,), None, 0)
    return locks.over(kind, contents.create(member, name, [(np.dtype(np.uint8), layout)], kind=kind.__name__))
