"""Counting and checking a store by looking at its files.

Owns: the names, statistics and self-check of a store, all read from the file system and from `/proc`.
Must not know: how blocks are made.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from shmarray import attachments, blockfiles, cellviews, contents, deletion, reaper, seats, slabfiles, warm
from shmarray._format import control as layout
from shmarray._format import header as form
from shmarray._format import names
from shmarray._os import flocks, limits, segments
from shmarray.errors import ShmArrayError
from shmarray.guardian import launch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from shmarray.membership import Membership


_UNFINISHED = "a block that was never finished; its maker is gone"
_ABANDONED = "memory kept for the next array; who kept it is gone"
_UNHELD = "nobody holds it, and no handle to it is in flight"
_STALE = "a handle in flight to a block that was deleted, or that lay in one"
_UNGUARDED = "the lock of a small array that is gone"
_PASSING = (_UNHELD, _UNFINISHED, _ABANDONED, _STALE, _UNGUARDED)
_KINDS = (names.NAMED, names.ANONYMOUS, names.TEMPORARY, names.WARM, names.SLAB, names.GUARD)
_PAUSES = (0.005, 0.02, 0.08, 0.15, 0.3, 0.45)  # seconds between looks at what may be about to go


class StoreStats(NamedTuple):
    """How a store stands. Sizes in bytes.

    `named` and `anonymous` count blocks (a tree is one) and arrays in slabs, `in_flight` handles pickled and not yet loaded (but for
    those that lie in a queue, dict or list, which keeps them), `drafts` blocks being made; `nbytes` is what all files take, `warm` how
    much of that is kept for the next arrays: memory of freed ones, and slabs without any in them; `capacity` the bound if there is one,
    `free` what may still be taken; `attached` is how many blocks this process maps, and arrays in slabs it looks at.
    """

    name: str | None
    id: str
    state: str
    owner_pid: int
    guardian_pid: int | None
    directory: str
    named: int
    anonymous: int
    in_flight: int
    drafts: int
    nbytes: int
    warm: int
    capacity: int | None
    free: int
    attached: int


class Problem(NamedTuple):
    """One thing that is wrong in a store: the file, what is wrong with it, and whether it was removed."""

    path: str
    reason: str
    fixed: bool


def _entries(member: Membership) -> Iterator[tuple[str, str]]:
    """Go through the files of a store: what the entry says after the prefix, and its path."""
    for entry in segments.entries(member.control.directory, member.key.prefix):
        yield entry[len(member.key.prefix) :], os.path.join(member.control.directory, entry)


def array_names(member: Membership) -> list[str]:
    """Names of all named blocks, sorted. A name too long for a file name is read from its block."""
    found = []
    for kind, path in _entries(member):
        if not kind.startswith(names.NAMED):
            continue
        with contextlib.suppress(ValueError, FileNotFoundError):
            name = names.decode(kind[len(names.NAMED) :])
            found.append(_stored_name(path) if name is None else name)
    return sorted(found)


def _stored_name(path: str) -> str:
    """Read the name of a block from its description; raises `ValueError` if it is damaged."""
    fd = segments.open_existing(path, write=False)
    try:
        head = blockfiles.read_header(fd, segments.status(fd).st_size)
    finally:
        fd.close()
    name = contents.decode(head.meta).name
    if name is None:
        message = "the block has no name"
        raise ValueError(message)
    return name


def count_named(member: Membership) -> int:
    """How many named blocks there are."""
    return sum(kind.startswith(names.NAMED) for kind, _ in _entries(member))


def stats(member: Membership) -> StoreStats:
    """Count the files of a store. Raises `StoreClosedError`."""
    member.require_open()
    deletion.settle(member)
    kinds = (*(names.NAMED, names.ANONYMOUS, names.IN_FLIGHT, names.TEMPORARY, names.WARM), *(names.SLAB, names.GUARD))
    counts = dict.fromkeys(kinds, 0)
    size = kept = 0
    found_entries = list(_entries(member))
    for kind, path in found_entries:
        letter = kind[:2]
        if letter in counts:
            counts[letter] += names.keeper_of(kind) is None  # what hangs on a handle in another block is on no way
            if letter != names.IN_FLIGHT:
                with contextlib.suppress(FileNotFoundError):
                    found = segments.status_of(path).st_size
                    size += found
                    rests = letter == names.ANONYMOUS and found >= warm.SMALLEST and blockfiles.is_resting(path, found)
                    counts[letter] -= rests
                    kept += found if rests or letter == names.WARM else 0
    small, spare = _small(member, found_entries)
    capacity, free = member.control.capacity, limits.space(member.control.directory).free
    return StoreStats(
        name=member.control.name,
        id=f"{member.key.store:016x}",
        state=layout.STATES[member.state()],
        owner_pid=member.control.owner[0],
        guardian_pid=launch.guardian_of(member),
        directory=member.control.directory,
        named=counts[names.NAMED],
        anonymous=counts[names.ANONYMOUS] + small,
        in_flight=counts[names.IN_FLIGHT],
        drafts=counts[names.TEMPORARY],
        nbytes=size,
        warm=kept + spare,
        capacity=capacity,
        free=free if capacity is None else max(0, min(free, capacity - size)),
        attached=attachments.attached(member.key.store) + cellviews.count(member.key.store),
    )


def _small(member: Membership, entries: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Count the arrays in slabs that somebody looks at, or to which there is a handle; and the bytes of slabs without any."""
    found = []
    for kind, path in entries:
        if kind.startswith(names.SLAB):
            with contextlib.suppress(OSError, ValueError):
                found.append((slabfiles.read(path), segments.status_of(path).st_size))
    if not found:
        return 0, 0
    handed = {names.number_of(kind) for kind, _ in entries if kind.startswith(names.IN_FLIGHT)}
    alive = seats.alive(member, {index for content, _ in found for index in content.seats})
    counts = [content.in_use(alive, handed) for content, _ in found]
    return sum(counts), sum(size for count, (_, size) in zip(counts, found, strict=True) if not count)


def check(member: Membership, *, fix: bool) -> list[Problem]:
    """Look at every file of a store; with `fix`, remove what is provably dead."""
    hold = member.require_open()
    deletion.settle(member)
    suspects: dict[str, tuple[str, str, int]] = {}
    there = segments.inodes(member.control.directory, member.key.prefix)
    for kind, path in _entries(member):
        with contextlib.suppress(FileNotFoundError):
            # What is wrong only while others are at work on it is not wrong: ask again, and of the same file.
            before = segments.status_of(path).st_ino
            reason = _objection(member, kind, path, there) and _objection(member, kind, path)
            if reason is not None:
                suspects[path] = kind, reason, before
    _acquit(member, suspects)
    problems = []
    for path, (kind, reason, before) in suspects.items():
        with contextlib.suppress(FileNotFoundError):
            if segments.status_of(path).st_ino == before:
                problems.append(Problem(path, reason, fix and _remove_dead(member, kind, path, reason)))
    del hold
    return problems


def _acquit(member: Membership, suspects: dict[str, tuple[str, str, int]]) -> None:
    """Drop from the suspects those that are just being removed: this decides what is reported, never what is removed.

    Between letting go of a block and removing it, its last holder may be kept from running. And a look takes the block's
    exclusive lock for a moment; a holder that lets go just then finds it taken, and leaves the block to the guardian.
    """
    guarded = launch.guardian_of(member) is not None
    pauses = _PAUSES if guarded else _PAUSES[:3]
    for pause in pauses:
        passing = [path for path, (_, reason, _) in suspects.items() if reason in _PASSING]
        if not passing:
            return
        if guarded:
            member.open_control().close()  # its closing is what the guardian is told of: it sweeps
        time.sleep(pause)
        for path in passing:
            kind, _, _ = suspects[path]
            try:
                acquitted = _objection(member, kind, path) is None
            except FileNotFoundError:
                acquitted = True
            if acquitted:
                del suspects[path]


def _remove_dead(member: Membership, kind: str, path: str, reason: str) -> bool:
    """Remove what nobody can reach; what is damaged may be evidence, and stays."""
    if kind.startswith(names.IN_FLIGHT):
        stale = reaper.is_stale_claim(member.control.directory, member.key, kind)
        return stale and reaper.remove_name(path, kind, member.key.uid) is not None
    if reason == _UNGUARDED:
        return reaper.is_stale_guard(member.control.directory, member.key, kind) and segments.unlink(path)
    if reason not in (_UNHELD, _UNFINISHED, _ABANDONED):
        return False
    return reaper.remove_if_unheld(path, member.key.uid, draft=reason != _UNHELD)


def _objection(member: Membership, kind: str, path: str, there: Collection[int] = frozenset()) -> str | None:
    """Say what is wrong with a file of a store; None if nothing is."""
    if kind in (names.CONTROL, names.CLAIM):
        return None
    if kind.startswith(names.IN_FLIGHT):
        stale = reaper.is_stale_claim(member.control.directory, member.key, kind, there)
        return _STALE if stale else None
    if reaper.is_stale_guard(member.control.directory, member.key, kind):
        return _UNGUARDED
    if not kind.startswith(_KINDS):
        return "no file of shmarray has such a name"
    try:
        fd = segments.open_existing(path, write=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        return os.strerror(error.errno or 0)
    try:
        info = segments.status(fd)
        if info.st_uid != member.key.uid or not segments.is_regular(info):
            return f"it belongs to user {info.st_uid}, or is no file"
        if kind.startswith((names.TEMPORARY, names.WARM)):
            left = _UNFINISHED if kind.startswith(names.TEMPORARY) else _ABANDONED
            return left if flocks.try_exclusive(fd) and not flocks.is_marked(fd, form.KEEPER_MARK) else None
        reason = _damage(member, kind, fd, info.st_size)
        if (
            reason is None
            and kind.startswith((names.ANONYMOUS, names.SLAB))
            and info.st_nlink == 1
            and flocks.try_exclusive(fd)
        ):
            reason = _UNHELD
        return reason
    finally:
        fd.close()


def _damage(member: Membership, kind: str, fd: segments.Descriptor, size: int) -> str | None:
    try:
        head = blockfiles.read_header(fd, size)
        name = contents.decode(head.meta).name
    except (ValueError, TypeError, KeyError, IndexError, ShmArrayError) as error:
        return str(error)
    if head.store != member.key.store:
        return "it belongs to another store"
    expected = names.entry_of(head.block, name)
    if kind != expected:
        return f"its header says that it is {expected}"
    return "it was deleted, and its name stayed" if head.state == form.DELETED else None
