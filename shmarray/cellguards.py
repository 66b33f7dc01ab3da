"""Guards of small arrays, which lie in cells.

Owns: the file in which such a guard is. It is made when it is first asked for: the header of a block without data, under a name that
follows from the array's number, so that the file system says who made it first.
Must not know: the protocol of a guard (`guards`).

It stays as long as the array, whoever holds it, for it may have to tell that somebody died at work. The array's maker removes it when
nobody looks at the array any more; where there is no maker, a sweep does, after the slab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmarray import attachments, blockfiles, cells, drafts, exhaustion, guards
from shmarray._format import names
from shmarray._format import slab as form
from shmarray._os import flocks, segments
from shmarray.errors import ArrayExistsError

if TYPE_CHECKING:
    from shmarray.cellviews import View
    from shmarray.guards import Guard

_META = b'{"name":null,"leaves":[["|u1",[0],null,0]],"tree":null}'


def guard_of(view: View) -> Guard:
    """Give the guard of an array in a cell, the same one for every view in this process. Raises as `drafts.Draft` does.

    After the store has ended there is only one that this process has used before.
    """
    segment = view.guard
    if segment is None:
        segment = _find(view)
        while segment is None:
            try:
                segment = _make(view)
            except ArrayExistsError:
                segment = _find(view)  # somebody was faster; None if the store was swept since
        with cells.Here.lock:  # two threads may map it twice, and then use one of the two
            if view.guard is None:
                view.guard = segment
    return guards.guard_of(view.guard)


def _find(view: View) -> segments.Segment | None:
    """Map the guard that is there; None if there is none."""
    member = view.member
    member.require_open()
    path = member.block_prefix + names.guard(view.number)
    with exhaustion.explained(member.control.directory, 0):
        try:
            fd = blockfiles.open_block(path)
        except FileNotFoundError:
            return None
        try:
            flocks.share(fd)
            info = segments.status(fd)
            head = blockfiles.read_checked(member.key, fd, info, path)
            if head.block != view.number:
                raise blockfiles.corrupt(path, "it is the guard of another array")
            segment = segments.map_shared(fd, info.st_size)
            segment.tag = attachments.Block(
                member, view.key, path, info.st_size, head.nbytes, head.meta, blockfiles.identity_of(info), {}
            )
            return segment
        finally:
            fd.close()


def _make(view: View) -> segments.Segment:
    """Make the guard; raises `ArrayExistsError` if there is one by now."""
    # Before it has a name: the maker of the cell removes what this says is there.
    view.slab.set_word(view.cell, form.GUARDED, 1)
    with drafts.Draft(view.member, 0, _META, number=view.number) as draft:
        segment = draft.map_unlisted(names.guard(view.number))
        draft.publish(segment, sole=True)
    return segment
