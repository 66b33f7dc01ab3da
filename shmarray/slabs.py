"""Slabs: blocks in which many small arrays lie, each in a cell.

Owns: the file of a slab: making it, finding it. Which process makes one is its *maker*, as long as it takes part in the store, and again
when it comes back to that (`absences`); only the maker gives out cells.
Must not know: who looks at which cell (`cells`), which one is given out next (`stocks`).

    file        made by                                removed by
    s.SLAB      its maker, whole, in one step          its maker, when no cell is in use; then whoever is the last to unmap it; a sweep
    h.BLOCK...  `cells`: a handle in flight to a cell  as with any block: it is one more link to the slab's file
    g.BLOCK     `cellguards`: the guard of a cell      the maker, when the cell is free again; a sweep, when the slab is gone
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from shmarray import blockfiles, drafts, exhaustion, memories, slabmaps, slabwords, warm
from shmarray._format import header as header_form
from shmarray._format import names
from shmarray._format import slab as form
from shmarray._os import flocks, processes, segments
from shmarray.blockfiles import GONE, gone
from shmarray.errors import ArrayExistsError
from shmarray.slabwords import Slab

if TYPE_CHECKING:
    from shmarray._format.handle import BlockKey
    from shmarray.membership import Membership

_write = json.JSONEncoder(separators=(",", ":")).encode


def make(member: Membership, size: int, count: int, stock: Any) -> Slab:
    """Make a slab of `count` cells of `size` bytes, of which this process is the maker. Raises as `drafts.Draft` does."""
    while True:
        number = form.slab_number(int.from_bytes(os.urandom(4), "little"))
        if not segments.exists(member.block_prefix + names.slab(number)):
            with contextlib.suppress(ArrayExistsError):  # since just now
                return _made(member, number, size, count, stock)


def _made(member: Membership, number: int, size: int, count: int, stock: Any) -> Slab:
    places = form.Layout(size, count)
    leaf = ["|u1", [places.nbytes], None, 0]
    meta = _write(
        {
            "name": None,
            "leaves": [leaf],
            "tree": None,
            "kind": form.KIND,
            "size": size,
            "count": count,
            "namespace": processes.me().namespace,
        }
    ).encode()
    with drafts.Draft(member, places.nbytes, meta, number=number) as draft:
        flocks.mark(draft.fd, slabwords.MAKER_MARK)
        memory = _kept(member, draft.fd)
        segment = draft.map_unlisted(names.slab(number), segments.SlabSegment)
        path = segment.tag.path
        slab = Slab(number, path, member.key.uid, places, segment, processes.me())
        slab.memory, slab.stock, slab.forms = memory, stock, [None] * count
        slab.free.extend(range(count - 1, -1, -1))
        try:
            draft.publish(segment)
            segment.tag = None  # which holds the membership: it is to end when nothing in a slab is in use
            return slabmaps.enter(member, slab)
        except ArrayExistsError:
            raise
        except BaseException:
            slabmaps.forget(member.key.store, number)
            segments.unlink(path)
            raise


def attach(member: Membership, key: BlockKey, claim: str | None) -> Slab:
    """Map the slab in which a handle's array lies, by the link in flight or by its own name. Raises as `blocks.attach` does."""
    if slabmaps.ended:
        slabmaps.settle()
    slab = slabmaps.find(key.store, key.block)
    if slab is not None:
        return slab
    slab = slabmaps.find_again(member, form.slab_of(key.block))
    if slab is not None:
        return slab
    path = member.block_prefix + names.slab(key.block)
    for candidate in (path,) if claim is None else (claim, path):
        with exhaustion.explained(member.control.directory, 0):
            try:
                fd = blockfiles.open_block(candidate)
            except FileNotFoundError:
                continue
            try:
                return slabmaps.enter(member, _mapped(member, key, fd, path))
            finally:
                fd.close()
    raise gone(member, key, GONE)


def _mapped(member: Membership, key: BlockKey, fd: segments.Descriptor, path: str) -> Slab:
    flocks.share(fd)
    info = segments.status(fd)
    head = blockfiles.read_checked(member.key, fd, info, path)
    places = layout_of(head, path)
    if head.block != form.slab_of(key.block):
        raise blockfiles.corrupt(path, "it is another slab")
    memory = _kept(member, fd)
    segment = segments.map_shared(fd, info.st_size, kind=segments.SlabSegment)
    maker = processes.Identity(head.pid, head.start, form.namespace_from(head.meta))
    slab = Slab(head.block, path, member.key.uid, places, segment, maker)
    slab.memory = memory
    return slab


def _kept(member: Membership, fd: segments.Descriptor) -> memories.Memory | None:
    """Keep the descriptor of the lease that `fd` has, before that is mapped, if this process may leave the store and come back."""
    keeps = member.absence is not None and memories.count() < warm.most() // 2
    return memories.keep_lease(fd, segments.status(fd)) if keeps else None


def handles(member: Membership, slab: Slab, number: int) -> list[str]:
    """List the paths of all handles in flight to an array; none where the store has ended."""
    directory, mine = member.control.directory, f"{member.key.prefix}{names.IN_FLIGHT}{number:016x}."
    try:
        found = segments.entries(directory, mine) if slab.links() > 1 else []
    except FileNotFoundError:
        found = []
    return [os.path.join(directory, entry) for entry in found]


def layout_of(head: header_form.Header, path: str) -> form.Layout:
    """Read from its header where everything lies in a slab. Raises `CorruptBlockError` for what is none."""
    try:
        return form.layout_from(head.meta, head.nbytes)
    except ValueError as error:
        raise blockfiles.corrupt(path, str(error)) from None
