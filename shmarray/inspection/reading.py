"""Reading one block, and judging whether it is alive.

Owns: what a block's file says, and what its state is in a store that stands as it does.
Must not know: where files are found.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shmarray import blockfiles, contents
from shmarray._format import header as form
from shmarray._format import names, slab
from shmarray._os import flocks, segments
from shmarray.errors import ShmArrayError
from shmarray.inspection import channels
from shmarray.inspection.access import Accesses
from shmarray.inspection.holders import is_alive
from shmarray.inspection.records import Block, Process

if TYPE_CHECKING:
    from shmarray.inspection.holders import Holders
    from shmarray.inspection.links import Handles
    from shmarray.inspection.records import Store

UNREADABLE = (ValueError, TypeError, KeyError, IndexError, RecursionError, ShmArrayError)
"""What reading a damaged or foreign file raises."""

_BLOCKS = (names.NAMED, names.ANONYMOUS, names.TEMPORARY, names.WARM, names.SLAB, names.GUARD)
_TRIES = 5  # how often a name is read again that is being replaced all the time
_ENDED = {
    "closed": "its store is closed",
    "dead": "the owner of its store died",
    "leftover": "nobody takes part in its store any more",
    "orphan": "the control file of its store is gone",
}


def status(path: str) -> os.stat_result | None:
    """Status of the file of that name itself; None if it is not there."""
    try:
        return segments.status_of(path)
    except OSError:
        return None


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode that a name stands for now; None if for nothing."""
    info = status(path)
    return None if info is None else (info.st_dev, info.st_ino)


def text(error: BaseException) -> str:
    """Say what was wrong, without the path, which the reader sees anyway."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, ShmArrayError):
        return os.strerror(error.errno)
    return error.summary if isinstance(error, ShmArrayError) else str(error) or type(error).__name__


class Reader:
    """Reads the blocks of one store."""

    def __init__(self, store: Store, holders: Holders, now: float, *, elsewhere: bool) -> None:
        """Read blocks of `store`; `now` is in seconds since the epoch, `elsewhere`: its owner is of another pid namespace."""
        self._store = store
        self._holders = holders
        self._now = now
        self._elsewhere = elsewhere
        self._accesses = Accesses(store.control, elsewhere=elsewhere)
        self._creators: dict[tuple[int, int], Process] = {}

    def block(self, path: str, kind: str, handles: Handles) -> Block | None:
        """Describe a block, of which the file name says `kind`, and to which there are `handles`; None if it has gone meanwhile."""
        block, unclaimed = None, len(handles.in_flight)
        for _ in range(_TRIES):
            try:
                fd = segments.open_existing(path, write=False)
            except FileNotFoundError:
                return None
            except OSError as error:
                return Block(path, "damaged", unclaimed=unclaimed, reason=text(error))
            try:
                info = segments.status(fd)
                facts = self._read(kind, fd, info)
            finally:
                fd.close()
            judged = self._judged(path, facts, handles)
            block = Block(file=path, unclaimed=unclaimed, kept_in=handles.keepers, **judged)
            # What was deleted or replaced while it was read is not what this name stands for now.
            if identity(path) == (info.st_dev, info.st_ino):
                return block
        return block

    def stranded(self, entry: str, handles: Handles) -> Block | None:
        """Describe handles whose block `entry` is not there: it was deleted, and they were not."""
        # A handle is never made before its block, and never outlives it but by a deletion that was cut short.
        paths = handles.in_flight + handles.stale
        gone = bool(paths) and not segments.exists(os.path.join(self._store.directory, entry))
        info = status(paths[0]) if gone else None
        if info is None:
            return None
        return Block(
            file=paths[0],
            state="dead",
            kind="handle",
            bytes=info.st_size,
            file_bytes=info.st_size,
            holders=self._holders.of(info, self._store.directory),
            unclaimed=len(handles.in_flight),
            reason="its array was deleted, and this handle to it stayed",
        )

    def _read(self, kind: str, fd: segments.Descriptor, info: os.stat_result) -> dict[str, Any]:
        """Read an open block: fields of `Block`."""
        if not segments.is_regular(info) or not kind.startswith(_BLOCKS):
            return {"state": "damaged", "reason": "no block is a file like that"}
        holders = self._holders.of(info, self._store.directory)
        facts: dict[str, Any] = {"bytes": info.st_size, "file_bytes": info.st_size, "holders": holders}
        if kind.startswith(names.TEMPORARY):
            return {**facts, "state": "making", "kind": "draft"}
        if kind.startswith(names.WARM):
            return {**facts, "state": "warm", "kind": "memory"}
        try:
            head = blockfiles.read_header(fd, info.st_size)
            facts |= self._described(kind, head)
            if facts["kind"] == slab.KIND:
                places = slab.layout_from(head.meta, head.nbytes)
                facts["arrays"] = len(slab.occupied(segments.read(fd, slab.RECORD * places.count, places.records)))
            if facts["kind"] == "Channel":
                content = contents.decode(head.meta)
                facts["channel"] = channels.read(fd, content, head.nbytes, elsewhere=self._elsewhere)
        except UNREADABLE as error:
            return {**facts, "state": "damaged", "reason": text(error)}
        if self._holders.aloof:
            return facts
        waiters = self._holders.waiting(holders, info, self._store.directory)
        guard = self._accesses.of(fd, info.st_size, holders, waiters)
        if guard is not None and not holders and not flocks.try_exclusive(fd):
            guard = replace(guard, waiters=None)  # a process that cannot be seen from here maps it
        return {**facts, "guard": guard}

    def _described(self, kind: str, head: form.Header) -> dict[str, Any]:
        """Take what the header says; raises `ValueError` if it is that of another block."""
        content = contents.decode(head.meta)
        expected = names.entry_of(head.block, content.name)
        if f"{head.store:016x}" != self._store.id or kind != expected:
            message = f"its header is that of {expected} in the store {head.store:016x}"
            raise ValueError(message)
        facts: dict[str, Any] = {
            "state": "live",
            "kind": str(content.kind or ("array" if content.tree is None else "tree")),
            "name": content.name,
            "arrays": len(content.leaves),
            "bytes": head.nbytes,
            "creator": self._creator(head.pid, head.start),
            "age": max(0.0, self._now - head.born / 1e9),
        }
        if head.state == form.RESTING:
            return {"state": "warm", "kind": "memory"}
        if head.state == form.DELETED:
            facts.update(state="dead", reason="it was deleted, and its name stayed")
        if kind.startswith(names.GUARD):
            facts.update(kind="guard", arrays=0)
        if facts["kind"] == "array":
            dtype, place = content.leaves[0]
            facts.update(shape=place.shape, dtype=str(dtype))
        return facts

    def _creator(self, pid: int, start: int) -> Process:
        if (pid, start) not in self._creators:
            alive = is_alive(pid, start)
            self._creators[pid, start] = Process(pid, None if self._elsewhere and not alive else alive)
        return self._creators[pid, start]

    def _judged(self, path: str, facts: dict[str, Any], handles: Handles) -> dict[str, Any]:
        """Say whether a block that is in order can still be attached."""
        if facts["state"] in ("dead", "damaged") or self._store.state == "damaged":
            return facts
        if self._store.state in _ENDED:
            return {**facts, "state": "dead", "reason": _ENDED[self._store.state]}
        named = facts.get("name") is not None
        # Who maps it idly is among its holders, and has no lease: the lock is asked.
        if named or handles.kept or not self._holders.is_free(path):
            return facts
        if facts["kind"] == "guard":
            entry = os.path.basename(path)
            kind = ".".join(entry.split(".")[3:])
            if segments.exists(os.path.join(os.path.dirname(path), entry.removesuffix(kind) + names.holder_of(kind))):
                return facts  # it stays as long as the array, whoever has it
            return {**facts, "state": "dead", "reason": "the array of which it is the lock is gone"}
        if facts["state"] == "warm":
            return {**facts, "state": "dead", "reason": "who kept it is gone"}
        if facts["state"] == "making":
            return {**facts, "state": "dead", "reason": "it was never finished, and its maker is gone"}
        if handles.in_flight:
            reason = "only handles keep it that were pickled and not loaded yet"
            return {**facts, "state": "unclaimed", "reason": reason}
        if handles.stale:
            return {**facts, "state": "dead", "reason": "the object in which it was kept is gone"}
        return {**facts, "state": "dead", "reason": "nobody holds it, and no handle to it is in flight"}
