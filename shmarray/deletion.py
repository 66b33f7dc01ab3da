"""Ends of blocks that a user asks for.

Owns: deleting an array, a name, or handles that nobody claims. What is removed without being asked for is `reaper`'s.
Must not know: NumPy, what a description says.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shmarray import attachments, blockfiles, cells, reaper, reclaim, recycling, roots, warm
from shmarray._format import header as form
from shmarray._format import names
from shmarray._os import segments, words
from shmarray.errors import CorruptBlockError, StoreClosedError

if TYPE_CHECKING:
    from shmarray.membership import Membership


def delete(segment: segments.Segment) -> bool:
    """Remove an attached block's name, and the links in flight; false if it was deleted or replaced before."""
    block: attachments.Block = segment.tag
    if not attachments.is_live(segment):
        return False
    anonymous = block.key.name is None
    claimed = anonymous
    probe = _open(block) if anonymous or block.file_size >= warm.SMALLEST else None
    try:
        section = block.member.changing()
    except StoreClosedError:
        return False
    try:
        if not attachments.is_live(segment):
            return False
        # A replacer may have died between moving the name and marking this block: the name is then another's.
        removed, left, memory = False, False, None
        aside = names.aside_of(block.path) or names.aside_of_file(block.member.block_prefix, block.identity[1])
        if blockfiles.leads_to(block.path, block.identity):
            memory = _memory_of(block)
            removed = memory is not None and memory.pool.retire(memory, block.path)
            if not removed and probe is not None:
                removed = left = reclaim.leave_to_keeper(block.path, probe, aside)
            if not removed:
                attachments.give_back_after(segment)
                removed = segments.unlink(block.path)
        if removed and anonymous and probe is not None:
            # Without its own name it gets no more handles; those that there are it counts, and the name that its memory has aside.
            claimed = segments.status(probe).st_nlink > (left or (memory is not None and memory.path is not None))
        words.store(segment, form.state_offset(block.file_size), form.DELETED)
        if memory is not None:
            memory.pool.moved(memory)
        if left and probe is not None:
            reclaim.left_to_keeper(probe, aside)
        if probe is not None:
            probe.close()
    finally:
        block.member.changed(section)
    if claimed:  # only then: looking for them is looking at every name in the directory
        _drop_claims(block.member, f"{names.IN_FLIGHT}{block.key.block:016x}.")
    return removed


def _memory_of(block: attachments.Block) -> Any:
    """Give the memory of a block that this process has made, if it is to be used again."""
    pool = recycling.reserve_of(block.member)
    if pool is None:
        return None
    return block.cache.get(attachments.WARM) or pool.named(block.path, block.identity)


def _open(block: attachments.Block) -> segments.Descriptor | None:
    """Open the file of a block, to ask how many names it has; None where that cannot be, or its name is another one's."""
    try:
        fd = reclaim.open_own(block.path, block.key.uid)
    except OSError:
        return None  # there is no descriptor to spare
    if fd is not None and blockfiles.identity_of(segments.status(fd)) != block.identity:
        fd.close()
        return None
    return fd


def delete_name(member: Membership, name: str) -> bool:
    """Remove the block of that name, whatever it is; false if there is none."""
    mine = attachments.mapped(member.key.store, name)
    if mine is not None and attachments.WARM in mine.tag.cache and delete(mine):
        return True
    path = member.block_prefix + names.NAMED + names.encode(name)
    section = member.changing()
    try:
        try:
            fd = blockfiles.open_block(path)
        except FileNotFoundError:
            return False
        except CorruptBlockError as error:
            try:
                return segments.unlink(path)
            except OSError:
                raise error from None
        try:
            kept = recycling.set_aside(member, fd, path)
            if kept is None:
                segments.unlink(path)
            blockfiles.mark_deleted(fd)
            recycling.deleted(fd, kept)
        finally:
            fd.close()
    finally:
        member.changed(section)
    return True


def has_name(member: Membership, name: str) -> bool:
    """Say whether there is a block of that name now."""
    return segments.exists(member.block_prefix + names.NAMED + names.encode(name))


def _drop_claims(member: Membership, kind: str, *, kept: bool = True) -> int:
    """Remove handles in flight; with `kept`, also those that lie in a queue or the like. Returns how many."""
    directory, prefix = os.path.split(member.block_prefix + kind)
    removed = 0
    for entry in segments.entries(directory, prefix):
        found = entry[len(member.key.prefix) :]
        if kept or names.keeper_of(found) is None:
            removed += reaper.remove_name(os.path.join(directory, entry), found, member.key.uid) is not None
    return removed


def settle(member: Membership) -> None:
    """See to what this process has let go of: blocks whose end was cut short, and memory that others still had then."""
    roots.settle()
    attachments.settle()
    cells.settle()
    cells.renew_seat(member)
    if member.pool is not None:
        member.pool.settle()


def release_unclaimed(member: Membership) -> int:
    """Remove every link in flight, then the anonymous blocks that nobody maps; returns how many links."""
    hold = member.require_open()
    removed = _drop_claims(member, names.IN_FLIGHT, kept=False)
    settle(member)
    reaper.remove_unheld(member.control.directory, member.key)
    del hold
    return removed
