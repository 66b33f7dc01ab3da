"""Blocks whose control file is gone: on what proof they may be removed.

Owns: that proof. By our own rules there are none: the control file is there before all blocks, and goes after them, by
whoever has its exclusive lock. So a block that is seen, and has no control file when that is looked for *after* it was
seen, is of a store in which nobody takes part. But somebody may have removed the control file by hand, under a living
store. So all of this has to hold besides, or all files of that store stay:

    no process maps any of its blocks           asked of the kernel, block by block; it sees other pid namespaces too
    no process that made one of them is alive   by pid and start time
    no process maps shared memory that has no   it might be the control file. The blocks of others that were deleted and
    name any more                               are still looked at count too: doubt means alive

A block that is damaged is not proven to be ours, and stays.
Must not know: how a block is removed (`reaper`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shmarray import reaper
from shmarray._format import names
from shmarray._os import segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shmarray.inspection.holders import Holders
    from shmarray.inspection.records import Block, Store


def doubt(blocks: Sequence[Block], holders: Holders, named: Iterable[tuple[int, int]]) -> str | None:
    """Say why the blocks of a store without a control file may still be in use; None if they are provably not.

    `named` are the files (device, inode) that have a name in shared memory.
    """
    for block in blocks:
        if block.holders:
            return f"process {block.holders[0]} maps one of its blocks"
        if block.creator is not None and block.creator.alive:
            return f"process {block.creator.pid}, which made one of its blocks, is alive"
        if not holders.is_free(block.file):
            return "a process that cannot be seen from here holds one of its blocks"
    unnamed = holders.of_unnamed(segments.status_of(segments.SHM_DIRECTORY).st_dev, named)
    if unnamed:
        return f"process {unnamed[0]} maps shared memory that has no name, which may be its control file"
    return None


def remove_orphan(store: Store, uid: int) -> tuple[int, int]:
    """Remove the blocks of a removable orphan, each under its own exclusive lock; returns how many, and their bytes."""
    key = names.StoreKey(uid, int(store.id, 16))
    damaged = {block.file for block in store.blocks if block.state == "damaged"}
    count = size = 0
    for entry in segments.entries(store.directory, key.prefix):
        path = os.path.join(store.directory, entry)
        if path in damaged or segments.exists(reaper.control_path(key)):
            continue
        try:
            info = segments.status_of(path)
        except FileNotFoundError:
            continue
        # A handle is one more link to a block that nobody can attach: it holds nothing.
        if reaper.remove_if_unheld(path, uid, draft=True) and info.st_nlink == 1:
            count, size = count + 1, size + info.st_size
    return count, size
