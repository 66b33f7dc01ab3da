"""Who may remove which name, and on what proof.

Owns: every removal of a file of ours that its user did not ask for by name. The proof is always the kernel's:

    file                  may be removed by                    on the proof that
    anonymous block       the last to unmap it; a sweep        its exclusive lock is free (nobody maps it) and it has one
                                                               link (no handle is in flight)
    handle in flight      a sweep                              the block it leads to was deleted; or the block in which it
                                                               lies has no name any more (no file has its inode)
    slab                  its maker; the last to unmap it; a    the maker knows that nobody sees an array in it; the others as with
                          sweep                                an anonymous block
    guard of a small      the array's maker; a sweep           nobody sees the array; its slab is gone
    array
    name of a draft       a sweep                              its exclusive lock is free (its maker holds the lease)
    memory kept warm      a sweep                              its exclusive lock is free (who keeps it holds the lease), and
                                                               so is the mark that other processes than the owner have
    all blocks of a store its owner, closing it                the owner says so, after marking the store closed
                          the guardian                         the owner has ended (pidfd), after marking the store dead
    control file, claim   whoever gets the exclusive lock of   nobody takes part in the store any more; all blocks go first
                          both; never anyone else

Must not know: what is in a block; NumPy. It runs in finalizers, at any moment, in any thread: system calls only, every step
may be repeated, and it waits for nobody.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from shmarray import reclaim, slabfiles
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._format.header import KEEPER_MARK, DamagedError
from shmarray._os import flocks, segments
from shmarray.reclaim import open_own

if TYPE_CHECKING:
    from collections.abc import Collection

_owed: deque[str] = deque()
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_DOTS_OF_KEPT = 6  # in the name of a handle that lies in another block: shmarray.UID.STORE.h.BLOCK.RANDOM.KEEPER
_UNHELD = (names.ANONYMOUS, names.TEMPORARY, names.WARM, names.SLAB)
_MAY_STAY_MAPPED = (names.NAMED, names.ANONYMOUS, names.WARM, names.SLAB)
_STAYS = (names.CONTROL, names.CLAIM)


class Outcome(NamedTuple):
    """What became of one store: whether it is gone, how many blocks and bytes went, and why it is left if it is."""

    key: names.StoreKey
    removed: bool
    blocks: int
    bytes: int
    reason: str


def remove_if_unheld(path: str, uid: int, *, draft: bool = False, kept: bool = False) -> bool:
    """Remove a block if nobody maps it and no handle to it is in flight; false if it stays or is not there.

    The name of a draft is no handle, and may be the second name of a block that was just published. The memory of a block that somebody
    will use again, by the mark on it, stays under another name; not with `kept`: that goes too.
    """
    fd = open_own(path, uid)
    if fd is None:
        return False
    try:
        # No lock where a handle is in flight: who loads it, perhaps a signal handler of this thread, would wait for it.
        if not draft and segments.status(fd).st_nlink != 1:
            return False
        # The link count is read again after the lock: whoever let go of the block before it has been seen.
        info = None if not flocks.try_exclusive(fd) else segments.status(fd)
        if info is None or (info.st_nlink != 1 and not draft):
            return False
        if not kept and flocks.is_marked(fd, KEEPER_MARK):
            ended = reclaim.put_aside(path, fd)
            # Who has the mark may let go of it meanwhile, and looks for the file then: one of the two sees the other.
            if not ended or flocks.is_marked(fd, KEEPER_MARK):
                return ended
            path = names.aside_of(path) or path
        removed = segments.unlink(path)
        reclaim.give_back(fd)
        return removed
    finally:
        fd.close()


def last_one_out(path: str, uid: int) -> bool:
    """After this process unmapped an anonymous block: remove it if this was the last, and say so. Never raises.

    Without a free descriptor the question stays open and is asked again by `settle`; the guardian asks it too.
    """
    try:
        return remove_if_unheld(path, uid)
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            _owed.append(f"{uid}:{path}")
        return False


def settle() -> None:
    """Ask again about the blocks for which there was no descriptor."""
    for _ in range(len(_owed)):
        try:
            uid, _, path = _owed.popleft().partition(":")
        except IndexError:
            return
        last_one_out(path, int(uid))


def remove_unheld(directory: str, key: names.StoreKey, *, kept: bool = False) -> int:
    """Remove what no process of a living store can reach any more, with `kept` also what is kept by a mark; returns how many blocks."""
    removed = 0
    while True:
        found = segments.entries(directory, key.prefix)
        nested = any(entry.count(".") == _DOTS_OF_KEPT for entry in found)
        there = segments.inodes(directory, key.prefix) if nested else set()
        live = slabfiles.LiveCells(directory, key)
        gone = 0
        for entry in sorted(found, key=lambda entry: not entry.startswith(names.IN_FLIGHT, len(key.prefix))):
            kind, path = entry[len(key.prefix) :], os.path.join(directory, entry)
            if (
                is_stale_claim(directory, key, kind, there)
                or live.has_lost(kind)
                or is_stale_guard(directory, key, kind)
            ):
                remove_name(path, kind, key.uid)
            elif kind.startswith(_UNHELD):
                gone += remove_if_unheld(path, key.uid, draft=kind.startswith((names.TEMPORARY, names.WARM)), kept=kept)
        removed += gone
        # What has gone may have been what handles lay in, which kept others.
        if not (gone and nested):
            return removed


def remove_name(path: str, kind: str, uid: int) -> int | None:
    """Remove a name of a block, with the last one its memory; returns how many bytes the file has, None if the name was not there."""
    try:
        size = segments.status_of(path).st_size
    except FileNotFoundError:
        return None
    leads_to = names.holder_of(kind) if kind.startswith(names.IN_FLIGHT) else kind
    removed = reclaim.unlink(path, uid, size) if leads_to.startswith(_MAY_STAY_MAPPED) else segments.unlink(path)
    return size if removed else None


def release_claim(directory: str, key: names.StoreKey, entry: str) -> None:
    """Remove a handle in flight, and the block if nobody else has it."""
    segments.unlink(os.path.join(directory, entry))
    block = entry[len(key.prefix) + len(names.IN_FLIGHT) :].partition(".")[0]
    last_one_out(os.path.join(directory, f"{key.prefix}{names.ANONYMOUS}{block}"), key.uid)


def drop_kept(directory: str, key: names.StoreKey, inode: int) -> None:
    """After the block with this inode was removed: remove the handles that lay in it, and the blocks only they kept. Never raises."""
    ending = f".{inode:x}"
    try:
        for entry in segments.entries(directory, key.prefix + names.IN_FLIGHT):
            if entry.endswith(ending) and names.keeper_of(entry[len(key.prefix) :]) == inode:
                release_claim(directory, key, entry)
    except OSError:
        return  # the guardian finds them


def is_stale_claim(directory: str, key: names.StoreKey, kind: str, there: Collection[int] = frozenset()) -> bool:
    """Say whether an entry is a handle in flight to a block that was deleted, or that lies in one that is gone.

    The block's own name is older than any handle, and goes before them only when the block is deleted. The block in which a
    handle lies is older than it too; where its inode is not among those `there`, a fresh look decides, in which whatever is
    older than the handle must be seen. (An inode that was given to another file only makes the handle stay.)
    """
    if not kind.startswith(names.IN_FLIGHT):
        return False
    keeper = names.keeper_of(kind)
    if keeper is not None and keeper not in there and keeper not in segments.inodes(directory, key.prefix):
        return True
    return not segments.exists(os.path.join(directory, key.prefix + names.holder_of(kind)))


def is_stale_guard(directory: str, key: names.StoreKey, kind: str) -> bool:
    """Say whether an entry is the guard of an array whose slab is gone: a slab has its name before, and none is made twice."""
    return kind.startswith(names.GUARD) and not segments.exists(
        os.path.join(directory, key.prefix + names.holder_of(kind))
    )


def remove_blocks(directory: str, key: names.StoreKey) -> tuple[int, int]:
    """Remove every block of a store that is closed or dead; returns how many, and their bytes.

    Mapped memory stays valid: POSIX keeps it until the last view is gone.
    """
    count = size = 0
    try:
        found = segments.entries(directory, key.prefix)
    except FileNotFoundError:
        return 0, 0
    for entry in found:
        kind = entry[len(key.prefix) :]
        if kind in _STAYS:
            continue
        path = os.path.join(directory, entry)
        try:
            removed = remove_name(path, kind, key.uid)
        except OSError:
            continue  # a directory, or another user's file: it stays, the rest goes all the same
        if removed is not None and not kind.startswith(names.IN_FLIGHT):
            count, size = count + 1, size + removed
    return count, size


def control_path(key: names.StoreKey) -> str:
    """Where the control file of a store is."""
    return os.path.join(segments.SHM_DIRECTORY, key.prefix + names.CONTROL)


def claim_path(directory: str, key: names.StoreKey) -> str:
    """Where the claim of a store on a directory outside shared memory is."""
    return os.path.join(directory, key.prefix + names.CLAIM)


def name_path(uid: int, name: str) -> str:
    """Where the second link to the control file of a named store is."""
    return os.path.join(segments.SHM_DIRECTORY, names.store_link(uid, name))


def release_name(fd: segments.Descriptor, uid: int, name: str | None) -> bool:
    """Remove the second link to the control file open as `fd`, and never that of another store of the same name.

    All who remove such a link hold the mark of the file it leads to, so between the look and the removal it cannot change.
    False if someone else is at it now.
    """
    if name is None:
        return True
    if not flocks.mark(fd, layout.NAME_MARK):
        return False
    path = name_path(uid, name)
    mine = segments.status(fd)
    try:
        there = segments.status_of(path)
    except FileNotFoundError:
        return True
    if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
        segments.unlink(path)
    return True


def finish(path: str, uid: int) -> Outcome:
    """Remove a store, whole, if nobody takes part in it; `path` is any link to its control file. May be repeated."""
    nobody = names.control_file(os.path.basename(path)) or names.StoreKey(uid, 0)
    fd = open_own(path, uid)
    if fd is None:
        there = segments.exists(path)
        reason = "it is not a file of this user" if there else ""
        return Outcome(nobody, removed=not there, blocks=0, bytes=0, reason=reason)
    try:
        if not flocks.try_exclusive(fd):
            return Outcome(nobody, removed=False, blocks=0, bytes=0, reason="a process takes part in it")
        try:
            record, _ = layout.unpack(segments.read(fd, layout.SIZE + 1, 0))
        except DamagedError as error:
            return Outcome(nobody, removed=False, blocks=0, bytes=0, reason=str(error))
        key = names.StoreKey(uid, record.store)
        if _is_copy(fd, key) or nobody.store not in (0, key.store):
            # The lock of a copy says nothing about the store it was copied from.
            return Outcome(nobody, removed=False, blocks=0, bytes=0, reason="it is a copy of another control file")
        return _finish_locked(fd, key, record)
    finally:
        fd.close()


def _is_copy(fd: segments.Descriptor, key: names.StoreKey) -> bool:
    mine = segments.status(fd)
    try:
        true = segments.status_of(control_path(key))
    except FileNotFoundError:
        return False
    return (true.st_dev, true.st_ino) != (mine.st_dev, mine.st_ino)


def _finish_locked(fd: segments.Descriptor, key: names.StoreKey, record: layout.Control) -> Outcome:
    claim = None
    if record.directory != segments.SHM_DIRECTORY:
        claim = open_own(claim_path(record.directory, key), key.uid)
    try:
        if claim is not None and not flocks.try_exclusive(claim):
            return Outcome(key, removed=False, blocks=0, bytes=0, reason="a process holds its claim on the directory")
        count, size = remove_blocks(record.directory, key)
        if claim is not None:
            segments.unlink(claim_path(record.directory, key))
        if not release_name(fd, key.uid, record.name):
            return Outcome(key, removed=False, blocks=count, bytes=size, reason="another process is removing it")
        segments.unlink(control_path(key))
    finally:
        if claim is not None:
            claim.close()
    return Outcome(key, removed=True, blocks=count, bytes=size, reason="")


def collect(uid: int, directory: str = segments.SHM_DIRECTORY) -> list[Outcome]:
    """Remove every store of a user that is provably dead; in a directory outside shared memory, claims without a store too."""
    outcomes = []
    for entry in segments.entries(segments.SHM_DIRECTORY, names.user_prefix(uid)):
        key = names.control_file(entry)
        if key is not None:
            outcomes.append(finish(control_path(key), uid))
        else:
            _remove_unfounded(entry, uid)
    if directory != segments.SHM_DIRECTORY:
        outcomes += _collect_claims(uid, directory)
    return outcomes


def _remove_unfounded(entry: str, uid: int) -> None:
    """Remove a control file that was never finished, on a file system where it had a name before."""
    key = names.store_of(entry)
    if (
        key is not None
        and entry[len(key.prefix) :].startswith(names.TEMPORARY)
        and not segments.exists(control_path(key))
    ):
        remove_if_unheld(os.path.join(segments.SHM_DIRECTORY, entry), uid, draft=True)


def _collect_claims(uid: int, directory: str) -> list[Outcome]:
    """Remove what stores of an earlier boot left in an ordinary directory: their control files went with the memory."""
    outcomes = []
    for entry in segments.entries(directory, names.user_prefix(uid)):
        key = names.store_of(entry)
        if key is None or not entry.endswith("." + names.CLAIM) or segments.exists(control_path(key)):
            continue
        path = os.path.join(directory, entry)
        fd = open_own(path, uid)
        if fd is None:
            continue
        try:
            if flocks.try_exclusive(fd):
                count, size = remove_blocks(directory, key)
                segments.unlink(path)
                outcomes.append(Outcome(key, removed=True, blocks=count, bytes=size, reason=""))
            else:
                outcomes.append(Outcome(key, removed=False, blocks=0, bytes=0, reason="a process takes part in it"))
        finally:
            fd.close()
    return outcomes
