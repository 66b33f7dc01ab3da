"""Handles to blocks: which are on their way, and which lie in other blocks.

Owns: what the names of handles say, and what follows for a block when those in which it is kept are gone.
Must not know: how a handle is made; what is in a block.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from shmarray import reaper
from shmarray._format import names
from shmarray._os import segments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmarray._format.names import StoreKey
    from shmarray.inspection.holders import Holders
    from shmarray.inspection.records import Block


class Handles(NamedTuple):
    """The handles to one block: paths of those `in_flight`, and of those whose keeper is gone (`stale`).

    `kept` counts those that lie in other blocks, whose files are the `keepers`.
    """

    in_flight: tuple[str, ...] = ()
    kept: int = 0
    keepers: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()


NONE = Handles()


def sort(key: StoreKey, files: Iterable[tuple[str, str]]) -> dict[str, Handles]:
    """Sort the handles among the files of a store, each given as path and what stands behind the prefix, by the block they lead to."""
    blocks, handles = [], defaultdict(list)
    for path, kind in files:
        if kind.startswith(names.IN_FLIGHT):
            handles[names.holder_of(kind)].append((path, kind))
        else:
            blocks.append(path)
    kept = any(names.keeper_of(kind) is not None for found in handles.values() for _, kind in found)
    there = _inodes(blocks) if kept else {}
    return {block: _handles(key, found, there) for block, found in handles.items()}


def _inodes(paths: Iterable[str]) -> dict[int, str]:
    there = {}
    for path in paths:
        try:
            there[segments.status_of(path).st_ino] = path
        except OSError:
            continue  # gone meanwhile
    return there


def _handles(key: StoreKey, found: list[tuple[str, str]], there: dict[int, str]) -> Handles:
    in_flight, stale, kept, keepers = [], [], 0, []
    for path, kind in found:
        keeper = names.keeper_of(kind)
        if keeper is None:
            in_flight.append(path)
        elif keeper in there:
            kept += 1
            keepers.append(there[keeper])
        elif reaper.is_stale_claim(os.path.dirname(path), key, kind):
            stale.append(path)
        else:
            kept += 1  # in a block that came after the files were listed
    return Handles(tuple(in_flight), kept, tuple(sorted(set(keepers))), tuple(stale))


def follow(blocks: Iterable[Block], holders: Holders) -> list[Block]:
    """Call dead what is kept only in blocks that nobody can reach: it goes with them, and what is kept in it as well.

    Blocks that keep each other in a circle stay live: nobody removes them before the store ends.
    """
    found = list(blocks)
    dead = {block.file: block for block in found if block.state == "dead" and block.name is None}
    changed = bool(dead)
    while changed:
        changed = False
        for index, block in enumerate(found):
            alone = block.state == "live" and block.name is None and not (block.holders or block.unclaimed)
            if alone and block.kept_in and all(file in dead for file in block.kept_in) and holders.is_free(block.file):
                reason = f"it is kept in {os.path.basename(block.kept_in[0])}, which nobody can reach"
                found[index] = dead[block.file] = replace(block, state="dead", reason=reason)
                changed = True
    return found
