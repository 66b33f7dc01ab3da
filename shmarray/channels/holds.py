"""What a thread has in hand, and finding out that it was let go of.

Owns: the lists in which slots in hand are noted, and seeing to what is in one whose block was left without its end. Python calls an
`__exit__` once: an exception out of a signal handler, on its very entry, leaves the slot in a list that nobody knows.
Must not know: how a slot is had.

A list is had by way of a `Hold`, which dies with the block's object, and is used again when the block has ended as it should: so making
and watching one is not done for each block. The callback of the watch is a call into C, which no handler's exception can come before. It
notes the watch; what it says is seen to by whoever makes a new hold, for the one that was lost is missing then, or waits.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from shmarray import guards
from shmarray._os import endings, processes

if TYPE_CHECKING:
    from shmarray._os import segments


class Hold:
    """A list with the slot that a block has in hand, or with nothing."""

    __slots__ = ("__weakref__", "got")

    def __init__(self) -> None:
        """Have nothing in hand."""
        self.got: list[int] = []


class _Watch(weakref.ref[Hold]):
    """A weak reference to a hold, which knows what was in it. Keeps nothing: neither mapping nor store."""

    __slots__ = ("generation", "got", "key", "kind", "segment")

    def __new__(cls, hold: Hold, segment: segments.Segment, side: Any) -> Self:  # noqa: ARG004  as __init__
        """Watch `hold`."""
        return super().__new__(cls, hold, _lost.append)

    def __init__(self, hold: Hold, segment: segments.Segment, side: Any) -> None:
        """Keep what giving back needs; the mapping, and what stands for the subscription here, may end before."""
        super().__init__(hold, _lost.append)  # type: ignore[call-arg]  # the callback goes to both, see weakref.KeyedRef
        self.got = hold.got
        self.segment = weakref.ref(segment)
        self.kind: Any = None if side is None else type(side)
        self.key: tuple[int, int] = (0, 0) if side is None else side.key
        self.generation = guards.Process.generation


_watches: dict[int, _Watch] = {}
_lost: deque[weakref.ref[Hold]] = deque()
"""Watches of holds that have died, until that has been seen to."""


def fresh(segment: segments.Segment, side: Any) -> Hold:
    """Make a hold for slots of that channel, to be filled or taken; for items of a subscription with its `side`."""
    settle()
    hold = Hold()
    watch = _Watch(hold, segment, side)
    _watches[id(watch)] = watch
    return hold


def settle() -> None:
    """Give back what is in hand of blocks that were left without their end. Takes locks: not for finalizers."""
    endings.drain(_lost, _give_back)


def _give_back(watch: weakref.ref[Hold]) -> None:
    _watches.pop(id(watch), None)
    # What was in hand when this process was forked is its parent's.
    if isinstance(watch, _Watch) and watch.got and watch.generation == guards.Process.generation:
        segment = watch.segment()
        if segment is None:
            return  # it is not mapped any more
        flow: Any = segment.tag.cache["flow"]
        if watch.kind is None:
            flow.let_go(watch.got)
        else:
            flow.give_back(watch.kind(flow.slots, *watch.key, 0), watch.got)
        del segment


def _after_fork() -> None:
    """In a forked child: a hold with nothing in it is this process's, to be used again; what was in hand stays the parent's."""
    for watch in list(_watches.values()):
        if not watch.got:
            watch.generation = guards.Process.generation


processes.after_fork_in_child(_after_fork)
