"""Memory of blocks that are removed.

Owns: opening a file that is to be removed, if it is one of that user; giving the memory of a removed block back at once, though a process
that looks at it no more still maps it (see `idling`).
Must not know: who may remove what (`reaper`), what is in a block.
"""

from __future__ import annotations

import errno

from shmarray._format import header, names
from shmarray._os import flocks, segments, words

_NOT_OURS = (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)
_WORTH = 1 << 16  # bytes: the memory of what is smaller may stay for as long as somebody maps it


def open_own(path: str, uid: int) -> segments.Descriptor | None:
    """Open a file of that user; None if it is not there, a symbolic link, not a file or another user's."""
    try:
        fd = segments.open_existing(path)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return None
        raise
    ours = False
    try:
        info = segments.status(fd)
        ours = info.st_uid == uid and segments.is_regular(info)
    finally:
        if not ours:
            fd.close()
    return fd if ours else None


def open_large(path: str, uid: int, size: int) -> segments.Descriptor | None:
    """Open a block whose memory is worth giving back; None if it cannot be: then that ends with the last mapping."""
    try:
        return open_own(path, uid) if size >= _WORTH else None
    except OSError:
        return None


def unlink(path: str, uid: int, size: int) -> bool:
    """Remove a name of a file of `size` bytes, and with the last one its memory, as `give_back` does; false if it was not there."""
    fd = open_large(path, uid, size)
    try:
        removed = segments.unlink(path)
        if fd is not None:
            give_back(fd)
        return removed
    finally:
        if fd is not None:
            fd.close()


def mark_deleted(fd: segments.Descriptor, size: int) -> None:
    """Write into the header of a block of `size` bytes that it was deleted."""
    at = header.state_offset(size)
    try:
        segments.write(fd, header.DELETED.to_bytes(words.WORD, "little"), at)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        # The process may not write so far into a file (RLIMIT_FSIZE); through a mapping it may.
        words.store(segments.map_shared(fd, size), at, header.DELETED)


def put_aside(path: str, fd: segments.Descriptor) -> bool:
    """End an anonymous block that nobody holds, and is exclusively locked, and leave its memory to who has the mark; false if it has ended.

    What opened it before and takes the lease only then finds it deleted, or with another number.
    """
    aside = names.aside_of(path)
    if aside is None:
        return False
    try:
        segments.replace(path, aside)
    except FileNotFoundError:
        return False
    mark_deleted(fd, segments.status(fd).st_size)
    return True


def leave_to_keeper(path: str, fd: segments.Descriptor, aside: str, *, beside: bool = False) -> bool:
    """Before a block is deleted: move its name aside for the process that keeps its memory by a mark; false if there is none.

    With `beside` its name stays, for another block is to take it. The caller takes part in the store, and marks the block deleted
    afterwards: until then `fd` has the lease, so that the keeper does not use the memory before.
    """
    if not flocks.is_marked(fd, header.KEEPER_MARK) or not flocks.try_share(fd):
        return False
    try:
        if beside:
            segments.link(path, aside)
        else:
            segments.replace(path, aside)
            segments.unlink(
                path
            )  # where somebody died between these steps, both were names of this file, and the kernel left both
    except FileExistsError:
        return True  # as above
    except FileNotFoundError:
        return False
    return True


def left_to_keeper(fd: segments.Descriptor, aside: str) -> None:
    """After the block was marked deleted: remove what has nobody to keep it any more, who looked for it before it was there."""
    if not flocks.is_marked(fd, header.KEEPER_MARK) and segments.unlink(aside):
        give_back(fd)


def give_back(fd: segments.Descriptor) -> None:
    """After a block has lost its names: give the memory of its data back at once, though processes that look at it no more still map it.

    Only if the kernel says that nobody has the lease, and nobody was told the file's name, which leads to a mapping without one. The
    header stays, and says so. Takes the exclusive lock of what has no name any more. Never raises.
    """
    try:
        info = segments.status(fd)
        size = info.st_size
        # The order matters: of several who remove a name each, whoever removes the last one must not find the lock with another.
        if size < _WORTH or info.st_nlink or not flocks.try_exclusive(fd):
            return
        data = header.unseen(segments.read(fd, header.SIZE, size - header.SIZE))
        if data:
            # Before the lock is let go of: who had it open, or maps it idly, takes the lease only then, and looks at the state.
            mark_deleted(fd, size)
            segments.discard(fd, data // segments.PAGE * segments.PAGE)
    except (OSError, ValueError):
        return
