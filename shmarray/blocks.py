"""One block, from birth to unlink.

Owns: the life cycle of a block in this process and in the file system, and the table of what this process has attached:

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

A block is closed (unmapped) by C code when the last view in the process dies, and unlinked by whoever `reaper` allows.
Must not know: NumPy, dtypes, what a description says.

With a capacity the draft has a temporary name `t.`, so that a count of the directory sees what is being made.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from shmarray import blockfiles, exhaustion, keeping, reaper
from shmarray._format import control as layout
from shmarray._format import header as form
from shmarray._format import kinds, names
from shmarray._format.handle import BlockKey
from shmarray._os import endings, flocks, segments, words
from shmarray.errors import ArrayNotFoundError

if TYPE_CHECKING:
    from shmarray.membership import Membership

K = TypeVar("K")
_load = words.WORD_FORMAT.unpack_from
GONE = "is not there: it was deleted, or all who held it have gone"
KEEPS, WARM, OFFERED, GUARD = "keeps", "warm", "offered", "guard"
"""In the cache of a block: that other blocks' handles lie in it; its memory, which may be used again after it; that a handle to it was
made, if it is anonymous; its guard, once that was asked for."""
_BY_NAME = -1  # the number in a key that means whichever block has the name now
_SEEN = "seen"  # in the cache of a block: the store's count of changes when its name was last seen to lead to it


class Block(NamedTuple):
    """What is known of an attached block: `tag` of its mapping. Holds the membership, so the store stays joined.

    `identity` is device and inode: what says whether a name still leads to this block.
    """

    member: Membership
    key: BlockKey
    path: str
    file_size: int
    nbytes: int
    meta: bytes
    identity: tuple[int, int]
    cache: dict[str, object]


class _Watch(weakref.ref[segments.Segment]):
    """A weak reference to an anonymous block, or one whose memory may be used again, called back after C code has unmapped it.

    Other named blocks need no call: a callback in Python is a place where an exception of a signal handler is lost.
    """

    __slots__ = ("block", "then")

    then: weakref.ref[segments.Segment]

    def __new__(cls, segment: segments.Segment, block: Block) -> Self:  # noqa: ARG004  as __init__
        """Watch `segment`. What is registered last is called first: a call into C, which no signal handler's exception can come before."""
        then = weakref.ref(segment, settle)
        self = super().__new__(cls, segment, _ended.append)
        self.then = then
        return self

    def __init__(self, segment: segments.Segment, block: Block) -> None:
        """Keep what the last look needs."""
        super().__init__(segment, _ended.append)  # type: ignore[call-arg]  # the callback goes to both, see weakref.KeyedRef
        self.block = block


_attached: dict[tuple[int, int], weakref.ref[segments.Segment]] = {}
_named: dict[tuple[int, str], weakref.ref[segments.Segment]] = {}  # what had a name when this process last looked
_pins: dict[int, _Watch] = {}
_ended: deque[weakref.ref[segments.Segment]] = deque()
"""Watches of blocks that were unmapped, until that has been seen to."""
_tidy_at = [256]


def settle(_: object = None) -> None:
    """See to all blocks that were unmapped: that which has just been, and those where an exception of a signal handler came between."""
    endings.drain(_ended, _unmapped)


def _unmapped(watch: weakref.ref[segments.Segment]) -> None:
    """Run after an anonymous block was unmapped, at any moment, in any thread: system calls only, never raises, never waits."""
    _pins.pop(id(watch), None)
    if isinstance(watch, _Watch):
        key = watch.block.key
        if _attached.get((key.store, key.block)) is watch:
            _attached.pop((key.store, key.block), None)  # a newer entry lost here is mapped again: time only
        block = watch.block
        anonymous = block.key.name is None
        memory = block.cache.pop(WARM, None)
        if memory is not None and block.member.pool.give_back(memory, block.path, anonymous=anonymous):
            return
        if not anonymous:
            return
        if reaper.last_one_out(block.path, key.uid) and KEEPS in block.cache:
            reaper.drop_kept(block.member.control.directory, key.store_key, block.identity[1])


def _tidy() -> None:
    """Forget references to named blocks that were unmapped; for when there are many entries."""
    forget_dead(_attached)
    forget_dead(_named)
    _tidy_at[0] = 2 * (len(_attached) + len(_named)) + 256


def forget_dead(table: dict[K, Any]) -> None:
    """Drop the entries of a table of weak references whose blocks were unmapped."""
    # Keys alone: making tuples may start the collector, and with it code that changes the table.
    for key in list(table):
        if (watch := table.get(key)) is not None and watch() is None and table.get(key) is watch:
            table.pop(key, None)


def register(segment: segments.Segment, block: Block) -> segments.Segment:
    """Enter a mapping into the table; if another thread was faster, its mapping is the one to use. A copy's stays out."""
    segment.tag = block
    watch: weakref.ref[segments.Segment]
    if block.key.name is None or WARM in block.cache:
        watch = pinned = _Watch(segment, block)
        _pins[id(pinned)] = pinned
    else:
        watch = weakref.ref(segment)
    if block.key.name is not None:
        _named[block.key.store, block.key.name] = watch
        if len(_attached) + len(_named) >= _tidy_at[0]:
            _tidy()
    while True:
        first = _attached.setdefault((block.key.store, block.key.block), watch)
        if first is watch:
            return segment
        other = first()
        if other is not None:
            return other if other.tag.identity == block.identity else segment
        if _attached.get((block.key.store, block.key.block)) is first:
            _attached[block.key.store, block.key.block] = watch
            return segment


def is_live(segment: segments.Segment) -> bool:
    """Say whether handles to this mapped block are good: it was neither deleted nor replaced."""
    return words.load(segment, form.state_offset(segment.tag.file_size)) == form.LIVE


def known(store: int, number: int, name: str | None) -> segments.Segment | None:
    """Give the block of a handle if this process maps it, its store is open and it was not deleted; else None: look closer."""
    watch = _attached.get((store, number))
    segment = watch() if watch is not None else None
    if segment is None or segment.tag.key.name != name or not segment.tag.member.is_open() or not is_live(segment):
        return None
    return segment


def mapped(store: int, name: str) -> segments.Segment | None:
    """Give the block that had this name when this process last looked, if it is mapped here; not a promise that it still has it."""
    watch = _named.get((store, name))
    return watch() if watch is not None else None


def attached(store: int) -> int:
    """How many blocks of that store this process maps, but for those that rest."""
    found = [watch() for key in list(_attached) if key[0] == store and (watch := _attached.get(key)) is not None]
    return sum(words.load(s, form.state_offset(s.tag.file_size)) != form.RESTING for s in found if s is not None)


def not_found(member: Membership, key: BlockKey, reason: str, meta: bytes = b"") -> ArrayNotFoundError:
    """Describe a handle or name that leads to nothing, for whatever `reason`."""
    noun = kinds.noun(meta)
    what = f"the {noun} {key.name!r}" if key.name is not None else f"the anonymous {noun} of this handle"
    if key.name is None:
        remedy = f"Keep the {noun} alive until its handle has been loaded, or give it a name."
    elif key.block == _BY_NAME:
        remedy = "list(store) shows what is there."
    else:
        remedy = f"Look it up again with store[{key.name!r}]; list(store) shows what is there."
    return ArrayNotFoundError(
        f"{what} {reason} in {member.label}",
        remedy=remedy,
        name=key.name,
        store=member.control.name or f"{key.store:016x}",
    )


def attach(member: Membership, key: BlockKey) -> segments.Segment:
    """Map the block a handle names, or return the mapping this process has; a link in flight is claimed and removed.

    Raises `ArrayNotFoundError` (deleted, replaced, never there), `StoreClosedError`, `CorruptBlockError`, `StoreFullError`.
    """
    hold = member.require_open()
    claim = None if key.claim is None else f"{member.block_prefix}{key.claim_entry}"
    watch = _attached.get((key.store, key.block))
    segment = watch() if watch is not None else None
    if segment is None or segment.tag.key.name != key.name:
        segment = _attach_new(member, key, claim)
    elif not is_live(segment):
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
    if member.state() != layout.OPEN:
        raise member.closed_error()
    raise not_found(member, key, GONE)


def lookup(member: Membership, name: str) -> segments.Segment:
    """Map the block that has this name now. Raises as `attach` does, and `ArrayNameError`."""
    hold = member.require_open()
    watch = _named.get((member.key.store, name)) if type(name) is str else None
    segment = watch() if watch is not None else None
    if segment is not None:
        block: Block = segment.tag
        changes = _load(hold, layout.CHANGES_AT)[0]
        if _load(segment, block.file_size - form.SIZE + form.STATE_AT)[0] == form.LIVE:
            # No change has begun since the name was seen to lead here, and none was under way then: so it still does.
            if block.cache.get(_SEEN) == changes:
                return segment
            if blockfiles.leads_to(block.path, block.identity) and is_live(segment):
                if not changes % 2:
                    block.cache[_SEEN] = changes
                return segment
    key = BlockKey(member.key.uid, member.key.store, _BY_NAME, names.check(name), None)
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
    if member.state() != layout.OPEN:
        raise member.closed_error()
    raise not_found(member, key, "is not there")


def _map_checked(member: Membership, key: BlockKey, fd: segments.Descriptor, path: str) -> segments.Segment:
    """Take the lease, check every field, map. The order matters: after the lease nobody removes it as unheld."""
    flocks.share(fd)
    info = segments.status(fd)
    head = blockfiles.read_checked(member.key, fd, info, path)
    if key.block not in (_BY_NAME, head.block):
        raise not_found(member, key, "has been replaced")
    if info.st_nlink == 0 or head.state != form.LIVE:
        raise not_found(member, key, "has been deleted or replaced", head.meta)
    identity = info.st_dev, info.st_ino
    if key.block == _BY_NAME and not blockfiles.leads_to(path, identity):
        # Opened under this name, and leased after the file had become another block's: a number tells, a name does not.
        raise not_found(member, key, "has been replaced")
    if key.block != head.block or key.claim is not None:
        key = BlockKey(key.uid, key.store, head.block, key.name, None)
    watch = _attached.get((key.store, key.block))
    segment = watch() if watch is not None else None
    if segment is not None and segment.tag.identity == identity:
        return segment
    segment = segments.map_shared(fd, info.st_size)
    return register(segment, Block(member, key, path, info.st_size, head.nbytes, head.meta, identity, {}))


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
    block.cache[OFFERED] = True
    key = BlockKey(key.uid, key.store, key.block, None, os.urandom(6).hex() + destination.ending)
    claim = f"{member.block_prefix}{key.claim_entry}"
    try:
        segments.link(block.path, claim)
    except FileNotFoundError:
        if member.state() != layout.OPEN:
            raise member.closed_error() from None
        raise not_found(member, block.key, "has been deleted", block.meta) from None
    except OSError as error:
        exhaustion.explain(error, member.control.directory, 0)
        raise
    if _load(hold, layout.STATE_AT)[0] != layout.OPEN:
        segments.unlink(claim)
        raise member.closed_error()
    if destination.ending:
        destination.made.append(claim)
    return key
