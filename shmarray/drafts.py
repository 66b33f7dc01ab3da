"""A block in the making.

Owns: the first part of a block's life: reserved, filled, given its header and guard, published in one step (see the table in
`blocks`). With a capacity the draft has a temporary name `t.`, so that a count of the directory sees what is being made. Memory that was
kept warm has one anyway, and is there already: only its header is new.
Must not know: NumPy, dtypes, what a description says.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

from shmarray import attachments, blockfiles, exhaustion, memories, reaper, recycling, shortage
from shmarray._format import control as layout
from shmarray._format import guard, names
from shmarray._format import header as form
from shmarray._format.handle import BlockKey
from shmarray._os import files, flocks, mutexes, processes, segments, words
from shmarray.attachments import Block
from shmarray.errors import ArrayExistsError, GuardError, StoreFullError

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from shmarray.membership import Membership

R = TypeVar("R")
_GUARDS = {"multiprocessing": guard.pack(guard.PLAIN, mutexes.fresh_semaphore())}
if not mutexes.NOT_ROBUST:
    _GUARDS["robust"] = guard.pack(guard.ROBUST, mutexes.fresh_mutex())


class Draft:
    """A block in the making: reserved and mapped, visible to nobody. Fill `segment`, then `publish`.

    Leaving the `with` block without publishing leaves nothing behind.
    """

    def __init__(
        self,
        member: Membership,
        nbytes: int,
        meta: bytes,
        *,
        reserve: bool = True,
        again: bool = False,
        number: int | None = None,
    ) -> None:
        """Reserve the memory, or, with `again`, take what is kept warm, and let it be kept after this block.

        `number` is the block's, if it is not to be any; those of slabs and their cells begin with a bit that is not set in any other.
        Raises `StoreFullError` before any byte is touched, `StoreClosedError` on a closed store, `GuardError` where the store's blocks
        have robust mutexes and this process cannot make one.
        """
        self._hold = member.require_open()
        if member.control.guard not in _GUARDS:
            raise _no_guard(member)
        attachments.settle()
        reaper.settle()
        self.member = member
        self.nbytes = nbytes
        self.meta = meta
        self.size = form.file_size(nbytes, len(meta))
        self.block_id = int.from_bytes(os.urandom(8), "little") >> 1 if number is None else number
        self.window: segments.Segment | None = None
        """Memory that was used before, through which it is to be filled: what is in it is still the last block's data."""
        self._memory: memories.Memory | None = None
        self._published = False
        self._shown = False  # whether others may have seen it, published or taken back: then its bytes are theirs too
        pool = recycling.pool_of(member, self.size) if again else None
        if pool is not None:
            memory = pool.take(self.size)
            if memory is None or not self._begin_again(memory):
                self._begin(reserve=reserve)
                if pool.has_room():
                    self._memory = pool.adopt(self.fd, self.size)
        else:
            self._begin(reserve=reserve)

    def _begin(self, *, reserve: bool) -> None:
        """Reserve fresh memory; what is kept warm is given back before there is said to be no more."""
        self._with_what_is_kept(functools.partial(self._reserve, reserve=reserve))

    def _with_what_is_kept(self, step: Callable[[], R]) -> R:
        """Do what needs memory; if there is not enough, once more without what is kept warm, or has been dropped and is still there."""
        with contextlib.suppress(StoreFullError):
            return step()
        shortage.relieve(self.member)
        return step()

    def _reserve(self, *, reserve: bool) -> None:
        directory, capacity = self.member.control.directory, self.member.control.capacity
        with exhaustion.explained(directory, self.size):
            exhaustion.require(directory, self.size)
            self.fd, self.temporary = segments.create_leased(directory, self._draft_name)
            try:
                if capacity is not None:
                    self._account(capacity)
                segments.resize(self.fd, self.size)
                self._reserved = reserve
                if reserve:
                    segments.reserve(self.fd, 0, self.size)
            except BaseException:
                self._abandon()
                raise

    def _begin_again(self, memory: memories.Memory) -> bool:
        """Take over memory that nobody else can see: it is exclusively locked until its header is another.

        False if it was removed, or cannot be mapped: fresh memory then, or an error that says what there is not enough of.
        """
        self._memory, self.fd, self.size = memory, memory.fd, memory.size
        self.temporary, memory.path = memory.path, None
        try:
            self._write_header()
            flocks.share(self.fd)
            if segments.status(self.fd).st_nlink == 1:
                self.window = memory.open_window()
                self._reserved = True
                return True
            self._abandon()  # a janitor came between the two locks
        except OSError:
            self._abandon()
        except BaseException:
            self._abandon()
            raise
        self._memory = None
        self.size = form.file_size(self.nbytes, len(self.meta))
        return False

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
        self._with_what_is_kept(functools.partial(self._explained, segments.write, self.fd, data, offset))

    def pour(self, file: io.FileIO, position: int, offset: int, size: int) -> int | None:
        """Have the kernel copy bytes of a file into the block, as `files.pour` says; a full file system is `StoreFullError`."""
        step = functools.partial(self._explained, files.pour, file, position, self.fd, offset, size)
        return self._with_what_is_kept(step)

    def reserve(self) -> None:
        """Reserve what was not; for who meant to write it by system call and could not."""
        self._with_what_is_kept(functools.partial(self._explained, segments.reserve, self.fd, 0, self.size))
        self._reserved = True

    def _explained(self, call: Callable[..., R], *args: Any) -> R:
        with exhaustion.explained(self.member.control.directory, self.size):
            return call(*args)

    def _write_header(self) -> None:
        """Say what the block is; its state is live, and nobody can know of it before it is published."""
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
        segments.write(self.fd, data, offset)

    def map(self, name: str | None) -> segments.Segment:
        """Write the header, where there is none yet, and map the block."""
        key = self._key(name)
        return attachments.register(*self._mapped(key, key.entry, segments.Segment))

    def map_unlisted(self, entry: str, kind: type[segments.Segment] = segments.Segment) -> segments.Segment:
        """Map what is not to be found by its number: its file is called `entry`, and nobody removes it when it is unmapped."""
        segment, block = self._mapped(self._key(None), entry, kind)
        segment.tag = block
        return segment

    def _key(self, name: str | None) -> BlockKey:
        return BlockKey(self.member.key.uid, self.member.key.store, self.block_id, name, None)

    def _mapped(self, key: BlockKey, entry: str, kind: type[segments.Segment]) -> tuple[segments.Segment, Block]:
        path = self.member.block_prefix + entry
        if not self._reserved:
            # The data were written, which reserves; only what lies behind them is missing.
            rest = self.size - self.nbytes
            self._with_what_is_kept(functools.partial(self._explained, segments.reserve, self.fd, self.nbytes, rest))
        with exhaustion.explained(self.member.control.directory, self.size):
            if self.window is None:
                self._write_header()
            segment = segments.map_shared(self.fd, self.size, kind=kind)
        identity = blockfiles.identity_of(segments.status(self.fd))
        cache: dict[str, object] = {} if self._memory is None else {attachments.WARM: self._memory}
        return segment, Block(self.member, key, path, self.size, self.nbytes, self.meta, identity, cache)

    def publish(self, segment: segments.Segment, *, replace: bool = False, sole: bool = False) -> None:
        """Make the block visible under its name, whole, in one step; `sole`: others may give one that name at the same time.

        Raises `ArrayExistsError` when the name is taken and `replace` is false, `StoreClosedError` when the store was closed
        meanwhile: whoever publishes looks again after linking, so a sweep at close misses nothing.
        """
        block: Block = segment.tag
        with exhaustion.explained(self.member.control.directory, self.size), self._store_may_end():
            self._shown = True
            if replace:
                self._replace(block.path)
            elif self.temporary is not None and block.key.name is None and not sole:
                # Nobody else can have this name. A second link, were it to stay, would count as a handle in flight.
                segments.replace(self.temporary, block.path)
            else:
                try:
                    segments.publish(self.fd, block.path, self.temporary)
                except FileExistsError:
                    self._shown = block.key.name is None
                    raise _exists(block) from None
            self.temporary = None
        if words.load(self._hold, layout.STATE_AT) != layout.OPEN:
            segments.unlink(block.path)
            raise self.member.closed_error()
        self._published = True

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
                kept = None if old is None else recycling.set_aside(self.member, old, path, beside=True)
                try:
                    segments.replace(temporary, path)
                except (IsADirectoryError, PermissionError) as error:
                    raise blockfiles.corrupt(path, os.strerror(error.errno or 0)) from None
                if old is not None:
                    blockfiles.mark_deleted(old)
                    recycling.deleted(old, kept)
            finally:
                if old is not None:
                    old.close()
        finally:
            self.member.changed(section)

    def _abandon(self, *, discard: bool = False) -> None:
        if self.temporary is not None:
            segments.unlink(self.temporary)
            self.temporary = None
        # Memory that was to be used again may have been let go of with its mapping, before this.
        if discard and (self._memory is None or self._memory.is_mine()):
            with contextlib.suppress(OSError):
                segments.discard(self.fd, self.size)
        if self._memory is not None:
            self._memory.let_go()  # closes the descriptor, and never another's
        else:
            self.fd.close()

    def __enter__(self) -> Self:
        """Begin to fill."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the descriptor, unless the memory is to be used again: the mapping holds the lease. What was not published is gone."""
        if self._published and self._memory is not None:
            self._memory.state = "live"
            if not self._memory.has_crossed():
                return
        # The traceback of whatever came in between holds the mapping: the memory goes now, so that whoever catches it can go on.
        self._abandon(discard=not self._shown and self.window is None)


def _exists(block: Block) -> ArrayExistsError:
    return ArrayExistsError(
        f"the {blockfiles.noun_at(block.member.key, block.path)} {block.key.name!r} is already in {block.member.label}",
        remedy=f"Replace it with store[{block.key.name!r}] = array, delete it first, or choose another name.",
        name=block.key.name,
    )


def _no_guard(member: Membership) -> GuardError:
    return GuardError(
        f"what is made in {member.label} has a robust mutex, and this process has none ({mutexes.NOT_ROBUST})",
        remedy="Open the store with guard='multiprocessing', or run this process with the C library of the one that opened it.",
        store=member.control.name or f"{member.key.store:016x}",
    )
