"""`gc`: remove what is provably dead.

Owns: in which order that is done, how long it waits for others who are at the same work, what is said of it, and what is said of
what had to stay.
Must not know: any proof; `reaper` and `inspection` have them.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from shmarray import inspection, reaper
from shmarray._format import names
from shmarray._os import segments
from shmarray.cli import ls, table
from shmarray.cli.answers import FINE, FOUND, Answer, UsageError, as_json
from shmarray.cli.table import Screen, count
from shmarray.exhaustion import size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from shmarray.inspection import Block, Store, Survey

_PATIENCE = 2.0
"""Seconds without any change after which what is still there is said to stay."""
_PAUSE = 0.02

SUMMARY = "remove what dead processes left; nothing that may be in use is touched"


@dataclass(frozen=True, slots=True)
class Removed:
    """Something that was removed, or would be: a store, the blocks of one without a control file, unreachable blocks."""

    what: str
    store: str
    name: str | None
    blocks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Left:
    """Something that had to stay: a store or a file, why, and what to do about it."""

    what: str
    store: str | None
    name: str | None
    file: str | None
    blocks: int
    bytes: int
    reason: str
    remedy: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which arguments `gc` takes."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    parser.add_argument(
        "--directory", metavar="DIR", help="look in this Store(directory=...) too: what is left there after a reboot"
    )
    parser.add_argument("--json", action="store_true", help="write JSON for programs")


def run(options: argparse.Namespace, where: Screen) -> Answer:
    """Collect. Raises `UsageError` for a directory that is none."""
    if options.directory is not None and not os.path.isdir(options.directory):
        message = f"--directory {options.directory!r} is not a directory"
        raise UsageError(message)
    directory = segments.SHM_DIRECTORY if options.directory is None else os.path.realpath(options.directory)
    removed, after = _collect_all(directory, dry_run=options.dry_run)
    left = what_stays(after, foreseen=options.dry_run)
    alive = sum(store.state == "open" for store in after.stores)
    blocks, size = sum(item.blocks for item in removed), sum(item.bytes for item in removed)
    code = FOUND if left else FINE
    if options.json:
        facts = {
            "dry_run": options.dry_run,
            "removed": [asdict(item) for item in removed],
            "left": [asdict(item) for item in left],
            "alive": alive,
            "removed_blocks": blocks,
            "removed_bytes": size,
        }
        return Answer(as_json("gc", facts), code)
    freed = "would be freed" if options.dry_run else "freed"
    total = f"{count(blocks, 'block')}, {size_text(size)} {freed}; {count(alive, 'living store')} not touched"
    return Answer(_text(removed, left, total, where, dry_run=options.dry_run), code)


def _foresee(before: Survey) -> list[Removed]:
    removed = []
    for store in before.stores:
        if store.removable:
            gone = [block for block in store.blocks if store.state == "leftover" or block.state != "damaged"]
            removed.append(_removed(store.state, store, gone))
        elif dead := _unreachable(store):
            removed.append(_removed("unreachable", store, dead))
    return removed


def _unreachable(store: Store) -> list[Block]:
    return [block for block in store.blocks if store.state == "open" and block.state == "dead" and block.name is None]


def _removed(what: str, store: Store, gone: Iterable[Block]) -> Removed:
    counted = [block for block in gone if block.kind != "handle"]
    return Removed(what, store.id, store.name, len(counted), sum(block.file_bytes for block in counted))


def _collect_all(directory: str, *, dry_run: bool) -> tuple[list[Removed], Survey]:
    """Collect until only what others use is left; returns what went, or would go, and how it stands then.

    Another collector has the exclusive lock of a store while it removes it, and whoever makes a survey has it for a moment. To us
    that looks like a participant that cannot be seen. Those two let go by themselves: this decides what is reported and tried
    again, never what is removed.
    """
    removed: list[Removed] = []
    found = inspection.survey([directory])
    seen, since = None, time.monotonic()
    while True:
        if not dry_run:
            removed += _collect(found, directory)
            found = inspection.survey([directory])
        passing = {store.id: len(store.blocks) for store in found.stores if _may_be_passing(store, foreseen=dry_run)}
        if passing != seen:
            seen, since = passing, time.monotonic()
        if not passing or time.monotonic() - since > _PATIENCE:
            return _foresee(found) if dry_run else removed, found
        time.sleep(_PAUSE)  # the kernel tells nobody when such a lock is free
        if dry_run:
            found = inspection.survey([directory])


def _may_be_passing(store: Store, *, foreseen: bool) -> bool:
    """Whether a store is still there, or with `foreseen` not removable, perhaps only because someone else is at it or looks at it."""
    if store.removable:
        return not foreseen and not (store.blocks and all(block.state == "damaged" for block in store.blocks))
    makers = [block.creator for block in store.blocks if store.state == "orphan"]
    used = (
        store.participants
        or any(block.holders for block in store.blocks)
        or any(maker and maker.alive for maker in makers)
    )
    return store.state in ("closed", "dead", "orphan") and not used and not _is_ending(store)


def _collect(before: Survey, directory: str) -> list[Removed]:
    known = {store.id: store for store in before.stores}
    # First what `reaper.collect` does not know, or does not count.
    removed = [item for store in before.stores for item in _remove(store, before.uid)]
    for outcome in reaper.collect(before.uid, directory):
        store = known.get(f"{outcome.key.store:016x}")
        expected = store is not None and store.removable
        # What only has the name of a control file is not gone, whatever was said of it.
        gone = outcome.removed and expected and not segments.exists(reaper.control_path(outcome.key))
        if outcome.blocks or gone:
            name = store.name if store else None
            removed.append(Removed("leftover", f"{outcome.key.store:016x}", name, outcome.blocks, outcome.bytes))
    return removed


def _remove(store: Store, uid: int) -> list[Removed]:
    """Remove blocks without a control file, a store whose control file has only its name, and what cannot be reached."""
    if store.state == "orphan" and store.removable:
        blocks, size = inspection.remove_orphan(store, uid)
        return [Removed("orphan", store.id, store.name, blocks, size)] if blocks else []
    key = names.StoreKey(uid, int(store.id, 16))
    if store.removable and store.control is not None and store.control != reaper.control_path(key):
        outcome = reaper.finish(store.control, uid)
        return [Removed("leftover", store.id, store.name, outcome.blocks, outcome.bytes)] if outcome.removed else []
    dead = _unreachable(store)
    if dead:
        reaper.remove_unheld(store.directory, key)
    gone = [block for block in dead if not segments.exists(block.file)]
    return [_removed("unreachable", store, gone)] if gone else []


def what_stays(found: Survey, *, foreseen: bool = False) -> list[Left]:
    """List what is not in order and had to stay. With `foreseen`, what may be removed is taken for removed."""
    left = []
    for store in found.stores:
        if store.state == "open" or (store.state == "orphan" and store.removable):
            left += [_left_block(block, store) for block in store.blocks if block.state == "damaged"]
        elif not (store.removable and foreseen) and not _is_ending(store):
            left.append(_left_store(store, found))
    return left + [_left_file(stray.file, stray.bytes, stray.reason) for stray in found.strays]


def _is_ending(store: Store) -> bool:
    """Whether a guardian is at its work: then the store goes without us."""
    return store.state in ("closed", "dead") and store.guardian is not None and store.guardian.alive is True


def _left_block(block: Block, store: Store) -> Left:
    remedy = f"It is not proven to be ours. If you know what it is: rm -r {table.quote(block.file)}"
    if store.state == "open" and block.name is not None:
        remedy = f"Delete the array: del store[{block.name!r}]"
    return Left("block", store.id, store.name, block.file, 1, block.file_bytes, block.reason or "", remedy)


def _left_file(file: str, size: int, reason: str) -> Left:
    remedy = f"It is not proven to be ours. If you know what it is: rm -r {table.quote(file)}"
    return Left("file", None, None, file, 0, size, reason, remedy)


def _left_store(store: Store, found: Survey) -> Left:
    users = ", ".join(ls.party(inspection.Process(pid, alive=True), found.commands) for pid in store.participants[:3])
    if store.state == "damaged":
        remedy = f"When no process uses that store any more: rm {table.quote(store.control or '')}, then gc again."
        reason = store.reason or ""
    elif store.state == "orphan":
        reason = store.reason or "it came about just now"
        remedy = "Run gc again when that process has ended."
    elif users:
        reason = f"its owner has ended and these processes still take part in it: {users}"
        remedy = "It goes when they end, or drop its arrays."
    else:
        reason = store.reason or "a process takes part in it that cannot be seen from here"
        remedy = "Run gc again when that process has ended."
    return Left(store.state, store.id, store.name, store.control, len(store.blocks), store.bytes, reason, remedy)


def _text(removed: list[Removed], left: list[Left], total: str, where: Screen, *, dry_run: bool) -> str:
    verb = "would remove" if dry_run else "removed"
    text = []
    for item in removed:
        kind = {"orphan": "blocks without a control file, of ", "unreachable": "blocks that nobody can reach, of "}
        what = f"{kind.get(item.what, '')}{ls.label(item.name, item.store)}"
        amount = f"{count(item.blocks, 'block')}, {size_text(item.bytes)}"
        text.append(table.wrap(f"{verb} {what}: {amount}", where, rest="    "))
    for entry in left:
        what = entry.file or ""
        if entry.what not in ("file", "block"):
            what = f"{ls.label(entry.name, entry.store)}, {entry.what}, {size_text(entry.bytes)}"
        text.append(table.wrap(f"left {what}: {entry.reason}", where, rest="    "))
        text.append(table.wrap(entry.remedy, where, "    -> ", "       "))
    return "".join(text) + f"{total}\n"
