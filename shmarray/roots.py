"""Roots: what all views of a block stand on, where somebody has to know when the last of them has gone.

Owns: the array over all data of a mapping, of which every other one is a view; noting its end, at any moment, in any thread; counting who
refers to a mapping. What an end means is its subject's to say.
Must not know: which blocks have such a root, and why.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from shmarray._os import endings

if TYPE_CHECKING:
    from shmarray._os import segments

Root = np.ndarray[Any, np.dtype[Any]]
_IS_UP = True  # first of the names that the interpreter's end takes away: from then on the kernel sees to what ends
_BYTE = np.dtype(np.uint8)
_frombuffer = np.frombuffer


class Subject(Protocol):
    """Whose root may end; `latest` is the number of the watch of the one made last."""

    latest: int

    def dropped(self, watch: Watch) -> None:
        """See to it. At any moment, in any thread; may come twice for one end."""


class Watch(weakref.ref[memoryview]):
    """The end of what a root stands on is noted by a call into C, and then seen to. It keeps the mapping until then."""

    __slots__ = ("segment", "subject", "then")

    segment: segments.Segment
    subject: Subject | None
    then: weakref.ref[memoryview]


_watches: dict[int, Watch] = {}
ended: deque[weakref.ref[memoryview]] = deque()
"""Watches of roots that have ended, until that has been seen to."""
_append = ended.append
_ref, _new = weakref.ref, weakref.ref.__new__


def over(segment: segments.Segment, nbytes: int, subject: Subject) -> Root:
    """Give a new root over `nbytes` bytes, at least one; when it ends, and with it all views, its subject is told."""
    root = _frombuffer(segment, _BYTE, nbytes)
    # Not the root is watched, but the memoryview it stands on, which may outlive it. It has let go of the mapping when
    # its end is noted, so who has a view of the same bytes from it is counted.
    base: Any = root.base
    # What is registered last is called first: a call into C, which no signal handler's exception can come before.
    then = _ref(base, _callback())
    watch = _new(Watch, base, _append)
    watch.then, watch.segment = then, segment
    watch.subject = subject
    subject.latest = id(watch)
    _watches[subject.latest] = watch
    return root


def settle() -> None:
    """See to all roots that have ended. At any moment, in any thread: never raises, never waits."""
    if _IS_UP and ended:
        endings.drain(ended, _see_to)


_callback = endings.Callbacks(settle).give


def _see_to(watch: weakref.ref[memoryview]) -> None:
    if isinstance(watch, Watch):
        if (subject := getattr(watch, "subject", None)) is not None:
            subject.dropped(watch)
            watch.subject = None
        _watches.pop(id(watch), None)


def references(to: Any) -> int:
    """Count who refers to a mapping, the `segment` of `to`: whoever has any view of it, of whatever type, does."""
    return sys.getrefcount(to.segment)


class _Alone:
    """To what only this class refers."""

    segment = object()


ALONE = references(_Alone)
"""What `references` gives where nobody else refers to it."""
