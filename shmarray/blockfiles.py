"""The file of a block, before and besides being attached.

Owns: opening it, reading and checking its header, marking it deleted, telling whether a name leads to it and what messages call it;
saying what is wrong with a file, or that there is none.
Must not know: what this process has attached; what a description says.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from shmarray import controls, reclaim
from shmarray._format import header as form
from shmarray._format import kinds, names
from shmarray._os import segments, words
from shmarray.errors import ArrayNotFoundError, CorruptBlockError, ShmArrayError

if TYPE_CHECKING:
    from shmarray._format.handle import BlockKey
    from shmarray._format.names import StoreKey
    from shmarray.membership import Membership

GONE = "is not there: it was deleted, or all who held it have gone"
BY_NAME = -1
"""The number in a key that means whichever block has the name now."""
_TAIL = 1024  # one read fetches header and description of nearly every block


def identity_of(info: os.stat_result) -> tuple[int, int]:
    """Device and inode of a file."""
    return info.st_dev, info.st_ino


def leads_to(path: str, identity: tuple[int, int]) -> bool:
    """Say whether a name is that of the file with this device and inode."""
    try:
        return identity_of(segments.status_of(path)) == identity
    except FileNotFoundError:
        return False


def mark_deleted(fd: segments.Descriptor) -> None:
    """Tell those who still map the block that handles to it are stale. A foreign or damaged file is left alone."""
    size = segments.status(fd).st_size
    if size >= form.SIZE and segments.read(fd, 8, size - form.SIZE) == form.MAGIC:
        reclaim.mark_deleted(fd, size)


def is_resting(path: str, size: int) -> bool:
    """Say whether a block of `size` bytes has no array in it, for its maker keeps it for the next one. Raises `FileNotFoundError`."""
    try:
        fd = open_block(path)
    except CorruptBlockError:
        return False
    try:
        return segments.is_regular(segments.status(fd)) and segments.read(
            fd, words.WORD, form.state_offset(size)
        ) == form.RESTING.to_bytes(words.WORD, "little")
    finally:
        fd.close()


def expose(segment: segments.Segment) -> str:
    """Give out the name of a block's file: with it anyone can map it without a lease, so its memory is never used again."""
    words.store(segment, form.exposed_offset(segment.tag.file_size), form.EXPOSED)
    path: str = segment.tag.path
    return path.rpartition("/")[2]


def open_block(path: str) -> segments.Descriptor:
    """Open a block; raises `CorruptBlockError` for what is no file or may not be opened."""
    try:
        return segments.open_existing(path)
    except (PermissionError, IsADirectoryError) as error:
        raise corrupt(path, os.strerror(error.errno or 0)) from None
    except OSError as error:
        if error.errno in controls.NOT_A_FILE:
            raise corrupt(path, os.strerror(error.errno)) from None
        raise


def read_checked(key: StoreKey, fd: segments.Descriptor, info: os.stat_result, path: str) -> form.Header:
    """Read the header of an open block of that store; raises `CorruptBlockError` for what is none."""
    try:
        if info.st_uid != key.uid:
            message = f"it belongs to user {info.st_uid}, not {key.uid}"
            raise form.DamagedError(message)
        if not stat.S_ISREG(info.st_mode) or info.st_size % form.PAGE or info.st_size < form.PAGE:
            message = f"a file of {info.st_size} bytes is no block: it was truncated, or is not ours"
            raise form.DamagedError(message)
        head = read_header(fd, info.st_size)
        if head.store != key.store:
            message = "it belongs to another store"
            raise form.DamagedError(message)
    except form.DamagedError as error:
        raise corrupt(path, str(error)) from None
    return head


def read_header(fd: segments.Descriptor, size: int) -> form.Header:
    """Read and check the header of an open block of `size` bytes; raises `DamagedError`."""
    length = min(size, _TAIL)
    tail = segments.read(fd, length, size - length)
    try:
        return form.unpack(tail, size)
    except (form.TooShortError, form.TornError):
        # No system call promises that eight bytes are written, or read, in one step.
        needed = form.meta_size(tail) + form.SIZE
        return form.unpack(segments.read(fd, needed, size - needed), size)


def gone(member: Membership, key: BlockKey, reason: str, meta: bytes = b"") -> ShmArrayError:
    """Describe a handle or name whose file is not there: its store has ended, or else as `not_found`."""
    return not_found(member, key, reason, meta) if member.is_open() else member.closed_error()


def not_found(member: Membership, key: BlockKey, reason: str, meta: bytes = b"") -> ArrayNotFoundError:
    """Describe a handle or name that leads to nothing, for whatever `reason`."""
    noun = kinds.noun(meta)
    what = f"the {noun} {key.name!r}" if key.name is not None else f"the anonymous {noun} of this handle"
    if key.name is None:
        remedy = f"Keep the {noun} alive until its handle has been loaded, or give it a name."
    elif key.block == BY_NAME:
        remedy = "list(store) shows what is there."
    else:
        remedy = f"Look it up again with store[{key.name!r}]; list(store) shows what is there."
    return ArrayNotFoundError(
        f"{what} {reason} in {member.label}",
        remedy=remedy,
        name=key.name,
        store=member.control.name or f"{key.store:016x}",
    )


def noun_at(key: StoreKey, path: str) -> str:
    """What messages call that which has this name in that store; `kinds.ANY` where that cannot be told."""
    try:
        noun, inode = _noun_of(key, path)
        if noun != kinds.REFERENCE:
            return noun
        # The object that the name was given to hangs on a link of the name's; where there are several, it has others with it.
        directory, _ = os.path.split(path)
        found = [
            entry
            for entry in segments.entries(directory, key.prefix + names.IN_FLIGHT)
            if names.keeper_of(entry[len(key.prefix) :]) == inode
        ]
        return _noun_of(key, os.path.join(directory, found[0]))[0] if len(found) == 1 else kinds.ANY
    except OSError:
        return kinds.ANY


def _noun_of(key: StoreKey, path: str) -> tuple[str, int]:
    fd = open_block(path)
    try:
        info = segments.status(fd)
        return kinds.noun(read_checked(key, fd, info, path).meta), info.st_ino
    finally:
        fd.close()


def corrupt(path: str, reason: str) -> CorruptBlockError:
    """Describe a file that cannot be attached, or be replaced."""
    return CorruptBlockError(
        f"{path} cannot be attached: {reason}",
        remedy="Nothing was changed. `python -m shmarray doctor` shows what it is; delete the array to get rid of it.",
        path=path,
        reason=reason,
    )
