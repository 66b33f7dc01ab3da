"""One block, from birth to unlink.

Owns: finding, opening and checking a block, handing it on, and its life cycle:

    state        file                          how it gets there            a SIGKILL here
    draft        none (or `t.`: see below)     `Draft`: reserved, filled    the kernel frees it; a sweep removes `t.`
    live         `n.NAME` or `a.ID`            `Draft.publish`: one link    named: lives on; anonymous: last one out, or sweep
    in flight    `h.ID.RANDOM` besides         `offer`: one more link       the link keeps it until it is claimed
    kept         `h.ID.RANDOM.INODE` besides   `offer`, `keep` in `kept`    the link goes with the block that has the inode
    claimed      the link removed again        `attach` by that link        mapped before the link goes: never unheld between
    superseded   name moved to another block   `Draft.publish(replace)`     one rename: old or new, never neither
    deleted      name removed, then marked     `deletion`                   unmarked: stale handles find no name anyway
    warm         `w.`                          `warm`: freed by the owner   nobody holds it any more: a sweep removes `w.`
    resting      `a.ID`, marked                `resting`: never shown       as a live one

A block is closed (unmapped) by C code when the last view in the process dies, or stays mapped for a while (`idling`), and is unlinked by
whoever `reaper` allows.
Must not know: NumPy, dtypes, what a description says.

With a capacity the draft has a temporary name `t.`, so that a count of the directory sees what is being made.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shmarray import attachments, blockfiles, exhaustion, idling, keeping
from shmarray._format import control as layout
from shmarray._format import header as form
from shmarray._format import kinds, names
from shmarray._format.handle import BlockKey
from shmarray._os import flocks, segments, words
from shmarray.attachments import Block
from shmarray.blockfiles import BY_NAME, GONE, gone, not_found
from shmarray.errors import ArrayNotFoundError

if TYPE_CHECKING:
    from shmarray.membership import Membership

_load = words.WORD_FORMAT.unpack_from
_SEEN = "seen"  # in the cache of a block: the store's count of changes when its name was last seen to lead to it


def attach(member: Membership, key: BlockKey) -> segments.Segment:
    """Map the block a handle names, or return the mapping this process has; a link in flight is claimed and removed.

    Raises `ArrayNotFoundError` (deleted, replaced, never there), `StoreClosedError`, `CorruptBlockError`, `StoreFullError`.
    """
    hold = member.require_open()
    claim = None if key.claim is None else f"{member.block_prefix}{key.claim_entry}"
    segment = attachments.attached_as(key.store, key.block)
    if segment is None or segment.tag.key.name != key.name:
        segment = _attach_new(member, key, claim)
    elif not attachments.is_live(segment):
        raise not_found(member, key, "has been deleted or replaced", segment.tag.meta)
    claim_link(member, key)
    del hold
    return segment


def claim_link(member: Membership, key: BlockKey) -> None:
    """Once the block is mapped here, and only then, remove the link in flight: at no moment is the block held by neither link nor lease."""
    entry = key.claim_entry
    if entry is not None and not (keeping.lending.active and names.keeper_of(entry) is not None):
        segments.unlink(f"{member.block_prefix}{entry}")


def _attach_new(member: Membership, key: BlockKey, claim: str | None) -> segments.Segment:
    path = member.block_prefix + key.entry
    for candidate in (path,) if claim is None else (claim, path):
        try:
            fd = blockfiles.open_block(candidate)
            try:
                return _map_checked(member, key, fd, path)
            finally:
                fd.close()
        except ArrayNotFoundError:
            raise
        except FileNotFoundError:
            continue
        except OSError as error:
            exhaustion.explain(error, member.control.directory, 0)
            raise
    raise gone(member, key, GONE)


def lookup(member: Membership, name: str) -> segments.Segment:
    """Map the block that has this name now. Raises as `attach` does, and `ArrayNameError`."""
    hold = member.require_open()
    segment = attachments.named(member.key.store, name) if type(name) is str else None
    if segment is not None:
        block: Block = segment.tag
        changes = _load(hold, layout.CHANGES_AT)[0]
        if _load(segment, block.file_size - form.SIZE + form.STATE_AT)[0] == form.LIVE:
            # No change has begun since the name was seen to lead here, and none was under way then: so it still does.
            if block.cache.get(_SEEN) == changes:
                return segment
            if blockfiles.leads_to(block.path, block.identity) and attachments.is_live(segment):
                if not changes % 2:
                    block.cache[_SEEN] = changes
                return segment
    key = BlockKey(member.key.uid, member.key.store, BY_NAME, names.check(name), None)
    path = member.block_prefix + key.entry
    last: segments.Descriptor | None = None
    while True:
        with exhaustion.explained(member.control.directory, 0):
            try:
                fd = blockfiles.open_block(path)
            except FileNotFoundError:
                break
            try:
                return _map_checked(member, key, fd, path)
            except ArrayNotFoundError:
                # Replaced between opening and looking: the name leads to the next now. The one before stays open, so no inode recurs.
                again = last is None or blockfiles.identity_of(segments.status(fd)) != blockfiles.identity_of(
                    segments.status(last)
                )
                if last is not None:
                    last.close()
                if not again:
                    fd.close()
                    raise
            except BaseException:
                fd.close()
                raise
            last = fd
    del hold
    raise gone(member, key, "is not there")


def _map_checked(member: Membership, key: BlockKey, fd: segments.Descriptor, path: str) -> segments.Segment:
    """Take the lease, check every field, map. The order matters: after the lease nobody removes it as unheld."""
    flocks.share(fd)
    info = segments.status(fd)
    head = blockfiles.read_checked(member.key, fd, info, path)
    if key.block not in (BY_NAME, head.block):
        raise not_found(member, key, "has been replaced")
    if info.st_nlink == 0 or head.state != form.LIVE:
        raise not_found(member, key, "has been deleted or replaced", head.meta)
    identity = info.st_dev, info.st_ino
    if key.block == BY_NAME and not blockfiles.leads_to(path, identity):
        # Opened under this name, and leased after the file had become another block's: a number tells, a name does not.
        raise not_found(member, key, "has been replaced")
    if key.block != head.block or key.claim is not None:
        key = BlockKey(key.uid, key.store, head.block, key.name, None)
    segment = attachments.is_known(key.store, key.block, identity)
    if segment is not None:
        return segment
    cache: dict[str, object] = {}
    if head.nbytes and kinds.is_data(head.meta):
        kept = idling.begin(fd, info, head.nbytes, head.block)
        if kept is not None:
            cache[idling.KEPT] = kept
    segment = segments.map_shared(fd, info.st_size)
    return attachments.register(
        segment, Block(member, key, path, info.st_size, head.nbytes, head.meta, identity, cache)
    )


def offer(segment: segments.Segment) -> BlockKey:
    """Make a key that may travel; for an anonymous block, with a link in flight that keeps it until it is claimed.

    Raises `ArrayNotFoundError` when the block was deleted, `StoreClosedError` when its store has ended.
    """
    block: Block = segment.tag
    member, key, destination = block.member, block.key, keeping.destination
    hold = member.require_open()
    if _load(segment, block.file_size - form.SIZE + form.STATE_AT)[0] != form.LIVE:
        raise not_found(member, key, "has been deleted or replaced", block.meta)
    if key.name is not None:
        return key
    block.cache[attachments.OFFERED] = True
    key = BlockKey(key.uid, key.store, key.block, None, os.urandom(6).hex() + destination.ending)
    claim = f"{member.block_prefix}{key.claim_entry}"
    try:
        segments.link(block.path, claim)
    except FileNotFoundError:
        raise gone(member, block.key, "has been deleted", block.meta) from None
    except OSError as error:
        exhaustion.explain(error, member.control.directory, 0)
        raise
    if _load(hold, layout.STATE_AT)[0] != layout.OPEN:
        segments.unlink(claim)
        raise member.closed_error()
    if destination.ending:
        destination.made.append(claim)
    return key
