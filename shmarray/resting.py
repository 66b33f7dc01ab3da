"""Large arrays that nobody was shown: when one ends, its block rests as it is, until the next array of the same kind.

What `warm` keeps is a file, which nobody may have, is nowhere mapped, and gets another header and another name. Most arrays of a
program that works by itself are of a few kinds and never handed on. Of such a block there is nothing to prove, and nothing to change: no
handle was made, no name given out, no lock taken, no fork crossed, so no other process can know of it. It stays mapped, and a word of its
header says that there is no array in it.

Owns: what must be true for a block to rest when its root has ended (`roots`); the next array in it.
Must not know: how much may rest (`warm`), what an array looks like.

A SIGKILL leaves what one leaves of any anonymous block, which nobody holds then. Who loses such a block to an exception, to a fork, to
anything that is not foreseen here, lets go of its mapping, and it ends as any other (`blocks`).
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from shmarray import attachments, roots
from shmarray._format import control
from shmarray._format import header as form
from shmarray._os.words import WORD_FORMAT

if TYPE_CHECKING:
    from shmarray._os import segments
    from shmarray.membership import Membership
    from shmarray.memories import Memory

_STATE, _EXPOSED, _AGAIN = ((at - form.STATE_AT) >> 3 for at in (form.STATE_AT, form.EXPOSED_AT, form.AGAIN_AT))
_ended = roots.ended
_load, _STORE_AT, _OPEN = WORD_FORMAT.unpack_from, control.STATE_AT, control.OPEN


class Rest:
    """A block that may rest: `kind` is what its arrays look like, `words` are those of its header that change."""

    __slots__ = ("kind", "latest", "memory", "segment", "size", "words")

    def __init__(self, segment: segments.Segment, kind: object, memory: Memory) -> None:
        """Stand for a block that has an array."""
        self.segment, self.kind, self.memory, self.size = segment, kind, memory, memory.size
        at = form.state_offset(memory.size)
        self.words = memoryview(segment)[at : at + form.GUARD_AT - form.STATE_AT].cast("Q")
        self.latest = 0

    def dropped(self, watch: roots.Watch) -> None:
        """After its array has ended: rest; else let go of the mapping. May be repeated."""
        # Once only, whatever comes in between: the next array in it has another watch.
        if self.latest == id(watch):
            self.latest = 0
            pool = self.segment.tag.member.pool
            if _is_unseen(self) and pool.is_here():
                self.words[_STATE] = form.RESTING
                pool.rest(self)


def begin(segment: segments.Segment, kind: object) -> Rest | None:
    """After an array was made: let its block rest when it ends; None if that is not one whose memory may be used again."""
    memory: Any = segment.tag.cache.get(attachments.WARM)
    tag = segment.tag
    return None if memory is None or memory.pool is not tag.member.pool or tag.key.name else Rest(segment, kind, memory)


def take(member: Membership, kind: object) -> Rest | None:
    """Begin another array in the block of that kind which came to rest last; None if there is none. Its bytes are the last one's.

    Raises `StoreClosedError`.
    """
    pool = member.pool
    if pool is None or not pool.resting:
        return None
    if _ended:
        roots.settle()
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


def root_of(rest: Rest) -> roots.Root:
    """Give the root of a new array; when that ends, and with it all views, the block rests, or ends."""
    return roots.over(rest.segment, rest.segment.tag.nbytes, rest)


_UNSEEN = roots.ALONE + 2  # the words of the header, and the watch


def _is_unseen(rest: Rest) -> bool:
    """Say whether nobody can know of the array that has ended, nor has a view of it."""
    cache, memory, words = rest.segment.tag.cache, rest.memory, rest.words
    if words[_STATE] != form.LIVE or words[_EXPOSED] or attachments.OFFERED in cache or attachments.GUARD in cache:
        return False
    if memory.has_crossed() or roots.references(rest) > _UNSEEN:
        return False
    if memory.window is not None:
        if memory.is_viewed():
            return False
        memory.window = None  # it is filled through its own mapping from now on
    return True
