"""Large arrays that nobody was shown: when one ends, its block rests as it is, until the next array of the same kind.

What `warm` keeps is a file, which nobody may have, is nowhere mapped, and gets another header and another name. Most arrays of a
program that works by itself are of a few kinds and never handed on. Of such a block there is nothing to prove, and nothing to change: no
handle was made, no name given out, no lock taken, no fork crossed, so no other process can know of it. It stays mapped, and a word of its
header says that there is no array in it.

Owns: the root of such an array (a NumPy array over all its bytes, of which every other one is a view), and what that stands on, whose end
says that the last view has gone; what must be true for a block to rest; the next array in it.
Must not know: how much may rest (`warm`), what an array looks like.

A SIGKILL leaves what one leaves of any anonymous block, which nobody holds then. Who loses such a block to an exception, to a fork, to
anything that is not foreseen here, lets go of its mapping, and it ends as any other (`blocks`).
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray import blocks
from shmarray._format import control
from shmarray._format import header as form
from shmarray._os import endings
from shmarray._os.words import WORD_FORMAT

if TYPE_CHECKING:
    from shmarray._os import segments
    from shmarray.membership import Membership
    from shmarray.memories import Memory

Root = np.ndarray[Any, np.dtype[Any]]
_BYTE = np.dtype(np.uint8)
_frombuffer = np.frombuffer
_STATE, _EXPOSED, _AGAIN = ((at - form.STATE_AT) >> 3 for at in (form.STATE_AT, form.EXPOSED_AT, form.AGAIN_AT))
_load, _STORE_AT, _OPEN = WORD_FORMAT.unpack_from, control.STATE_AT, control.OPEN


class Rest:
    """A block that may rest: `kind` is what its arrays look like, `words` are those of its header that change."""

    __slots__ = ("kind", "memory", "segment", "size", "watch", "words")

    def __init__(self, segment: segments.Segment, kind: object, memory: Memory) -> None:
        """Stand for a block that has an array."""
        self.segment, self.kind, self.memory, self.size = segment, kind, memory, memory.size
        at = form.state_offset(memory.size)
        self.words = memoryview(segment)[at : at + form.GUARD_AT - form.STATE_AT].cast("Q")
        self.watch: _Watch | None = None


class _Watch(weakref.ref[memoryview]):
    """The end of what a root stands on is noted by a call into C, and then seen to."""

    __slots__ = ("rest", "then")

    rest: Rest | None
    then: weakref.ref[memoryview]


_watches: dict[int, _Watch] = {}
_ended: deque[weakref.ref[memoryview]] = deque()
_append = _ended.append
_ref, _new = weakref.ref, weakref.ref.__new__


def begin(segment: segments.Segment, kind: object) -> Rest | None:
    """After an array was made: let its block rest when it ends; None if that is not one whose memory may be used again."""
    memory: Any = segment.tag.cache.get(blocks.WARM)
    return None if memory is None or segment.tag.key.name is not None else Rest(segment, kind, memory)


def take(member: Membership, kind: object) -> Rest | None:
    """Begin another array in the block of that kind which came to rest last; None if there is none. Its bytes are the last one's.

    Raises `StoreClosedError`.
    """
    pool = member.pool
    if pool is None or not pool.resting:
        return None
    if _ended:
        settle()
    leases = member.leases
    if not (leases and _load(leases[0], _STORE_AT)[0] == _OPEN):  # `require_open`, without the call
        raise member.closed_error()
    for rest in pool.resting.last_first():
        if (rest.kind is kind or rest.kind == kind) and pool.resting.took(rest):
            memory: Memory = rest.memory
            if memory.has_crossed():
                continue
            memory.season(rest.segment)
            words = rest.words
            words[_AGAIN], words[_AGAIN + 1] = form.again(time_ns())
            words[_STATE] = form.LIVE
            return rest  # type: ignore[no-any-return]  # the pool does not know what it keeps
    return None


def root_of(rest: Rest) -> Root:
    """Give the root of a new array; when that ends, and with it all views, the block rests, or ends."""
    root = _frombuffer(rest.segment, _BYTE, rest.segment.tag.nbytes)
    # Not the root is watched, but the memoryview it stands on, which may outlive it. It has let go of the mapping when
    # its end is noted, so who has a view of the same bytes from it is counted.
    base: Any = root.base
    # What is registered last is called first: a call into C, which no signal handler's exception can come before.
    then = _ref(base, settle)
    watch = _new(_Watch, base, _append)
    watch.then, watch.rest, rest.watch = then, rest, watch
    _watches[id(watch)] = watch
    return root


def settle(_: object = None) -> None:
    """See to all roots that have ended. At any moment, in any thread: never raises, never waits."""
    if _ended:
        endings.drain(_ended, _dropped)


def _dropped(watch: weakref.ref[memoryview]) -> None:
    """Let the block of a root that has ended rest; else let go of it. May be repeated."""
    if not isinstance(watch, _Watch) or (rest := getattr(watch, "rest", None)) is None:
        return
    # Once only, whatever comes in between: the next array in it has another watch.
    if rest.watch is watch:
        rest.watch = None
        pool = rest.segment.tag.member.pool
        if _is_unseen(rest) and pool.is_here():
            rest.words[_STATE] = form.RESTING
            pool.rest(rest)
    watch.rest = None
    _watches.pop(id(watch), None)


def _references(rest: Any) -> int:
    """Count who refers to a mapping: whoever has any view of it, of whatever type, does."""
    return sys.getrefcount(rest.segment)


class _Alone:
    """To what only this class refers."""

    segment = object()


_UNSEEN = _references(_Alone) + 1  # the words of the header


def _is_unseen(rest: Rest) -> bool:
    """Say whether nobody can know of the array that has ended, nor has a view of it."""
    cache, memory, words = rest.segment.tag.cache, rest.memory, rest.words
    if words[_STATE] != form.LIVE or words[_EXPOSED] or blocks.OFFERED in cache or blocks.GUARD in cache:
        return False
    if memory.has_crossed() or _references(rest) > _UNSEEN:
        return False
    if memory.window is not None:
        if memory.is_viewed():
            return False
        memory.window = None  # it is filled through its own mapping from now on
    return True
