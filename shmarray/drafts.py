"""A block in the making.

Owns: the first part of a block's life: reserved, filled, given its header and guard, published in one step (see the table in
`blocks`). With a capacity the draft has a temporary name `t.`, so that a count of the directory sees what is being made.
Must not know: NumPy, dtypes, what a description says.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Self

from shmarray import blockfiles, blocks, exhaustion, reaper
from shmarray._format import control as layout
from shmarray._format import guard, names
from shmarray._format import header as form
from shmarray._format.handle import BlockKey
from shmarray._os import mutexes, processes, segments, words
from shmarray.errors import ArrayExistsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from shmarray.membership import Membership

_GUARDS = {
    "robust": guard.pack(guard.ROBUST, mutexes.fresh_mutex()),
    "multiprocessing": guard.pack(guard.PLAIN, mutexes.fresh_semaphore()),
}


class Draft:
    """A block in the making: reserved and mapped, visible to nobody. Fill `segment`, then `publish`.

    Leaving the `with` block without publishing leaves nothing behind.
    """

    def __init__(self, member: Membership, nbytes: int, meta: bytes, *, reserve: bool = True) -> None:
        """Reserve the memory; raises `StoreFullError` before any byte is touched, `StoreClosedError` on a closed store."""
        self._hold = member.require_open()
        reaper.settle()
        self.member = member
        self.nbytes = nbytes
        self.meta = meta
        self.size = form.file_size(nbytes, len(meta))
        self.block_id = int.from_bytes(os.urandom(8), "little")
        directory = member.control.directory
        with exhaustion.explained(directory, self.size):
            exhaustion.require(directory, self.size)
            self.fd, self.temporary = segments.create_leased(directory, self._draft_name)
            try:
                if member.control.capacity is not None:
                    self._account(member.control.capacity)
                segments.resize(self.fd, self.size)
                self._reserved = reserve
                if reserve:
                    segments.reserve(self.fd, 0, self.size)
            except BaseException:
                self._abandon()
                raise

    def _draft_name(self) -> str:
        return names.draft(self.member.key, os.urandom(8).hex())

    def _account(self, capacity: int) -> None:
        """Enter the block into the store's account, or raise `StoreFullError`.

        The account is an upper bound kept in the control file: creation adds, nothing subtracts. When it would pass the
        capacity, the directory is counted, which is the truth; a death between two lines only makes the bound too high.
        """
        lock = self.member.exclusively(layout.CAPACITY_MARK)
        try:
            used = words.load(self._hold, layout.USED_AT)
            if used + self.size > capacity:
                used = exhaustion.used(self.member.control.directory, self.member.key.prefix)
                words.store(self._hold, layout.USED_AT, used)
            if used + self.size > capacity:
                what = f"the capacity of {self.member.label} is exhausted"
                directory, prefix = self.member.control.directory, self.member.key.prefix
                raise exhaustion.full(what, directory, self.size, limit=capacity, used=used, prefix=prefix)
            segments.resize(self.fd, self.size)
            if self.temporary is None:
                path = os.path.join(self.member.control.directory, self._draft_name())
                segments.publish(self.fd, path)
                self.temporary = path
            words.store(self._hold, layout.USED_AT, words.load(self._hold, layout.USED_AT) + self.size)
        finally:
            lock.close()

    def write(self, data: memoryview, offset: int = 0) -> None:
        """Copy bytes into the block; a full file system is `StoreFullError`, also where nothing was reserved."""
        with exhaustion.explained(self.member.control.directory, self.size):
            segments.write(self.fd, data, offset)

    def map(self, name: str | None) -> segments.Segment:
        """Write the header and map the block."""
        me = processes.me()
        head = form.Header(
            file_size=self.size,
            nbytes=self.nbytes,
            store=self.member.key.store,
            block=self.block_id,
            pid=me.pid,
            start=me.start,
            born=time.time_ns(),
            state=form.LIVE,
            meta=self.meta,
        )
        offset, data = form.pack(head, _GUARDS[self.member.control.guard])
        key = BlockKey(self.member.key.uid, self.member.key.store, self.block_id, name, None)
        path = self.member.block_prefix + key.entry
        with exhaustion.explained(self.member.control.directory, self.size):
            if not self._reserved:
                # The data were written, which reserves; only what lies behind them is missing.
                segments.reserve(self.fd, self.nbytes, self.size - self.nbytes)
            segments.write(self.fd, data, offset)
            segment = segments.map_shared(self.fd, self.size)
        identity = blockfiles.identity_of(segments.status(self.fd))
        return blocks.register(
            segment, blocks.Block(self.member, key, path, self.size, self.nbytes, self.meta, identity, {})
        )

    def publish(self, segment: segments.Segment, *, replace: bool = False) -> None:
        """Make the block visible under its name, whole, in one step.

        Raises `ArrayExistsError` when the name is taken and `replace` is false, `StoreClosedError` when the store was closed
        meanwhile: whoever publishes looks again after linking, so a sweep at close misses nothing.
        """
        block: blocks.Block = segment.tag
        with exhaustion.explained(self.member.control.directory, self.size), self._store_may_end():
            if replace:
                self._replace(block.path)
            elif self.temporary is not None and block.key.name is None:
                # Nobody else can have this name. A second link, were it to stay, would count as a handle in flight.
                segments.replace(self.temporary, block.path)
            else:
                try:
                    segments.publish(self.fd, block.path, self.temporary)
                except FileExistsError:
                    raise _exists(block) from None
            self.temporary = None
        if words.load(self._hold, layout.STATE_AT) != layout.OPEN:
            segments.unlink(block.path)
            raise self.member.closed_error()

    @contextlib.contextmanager
    def _store_may_end(self) -> Iterator[None]:
        """A name that vanishes in here was swept with the store."""
        try:
            yield
        except FileNotFoundError:
            if self.member.is_open():
                raise
            raise self.member.closed_error() from None

    def appear(self) -> str:
        """Have a temporary name, if there is none yet: handles that lie in a block go when no file has its inode any more."""
        if self.temporary is None:
            temporary = os.path.join(self.member.control.directory, self._draft_name())
            with exhaustion.explained(self.member.control.directory, self.size):
                segments.publish(self.fd, temporary)
            self.temporary = temporary
        return self.temporary

    def _replace(self, path: str) -> None:
        """Move the name to this block, then mark the block that had it."""
        temporary = self.appear()
        section = self.member.changing()
        try:
            try:
                old = segments.open_existing(path)
            except OSError:
                old = None  # not there, or nothing of ours: the move tells
            try:
                try:
                    segments.replace(temporary, path)
                except (IsADirectoryError, PermissionError) as error:
                    raise blockfiles.corrupt(path, os.strerror(error.errno or 0)) from None
                if old is not None:
                    blockfiles.mark_deleted(old)
            finally:
                if old is not None:
                    old.close()
        finally:
            self.member.changed(section)

    def _abandon(self) -> None:
        if self.temporary is not None:
            segments.unlink(self.temporary)
            self.temporary = None
        self.fd.close()

    def __enter__(self) -> Self:
        """Begin to fill."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the descriptor; the mapping holds the lease from here on. What was not published is gone."""
        self._abandon()


def _exists(block: blocks.Block) -> ArrayExistsError:
    return ArrayExistsError(
        f"an array called {block.key.name!r} is already in {block.member.label}",
        remedy=f"Replace it with store[{block.key.name!r}] = array, delete it first, or choose another name.",
        name=block.key.name,
    )
