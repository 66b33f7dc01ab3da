"""Pipes, as in `multiprocessing`, whose ends travel.

Owns: `pipe`, `Connection`.
Must not know: how records lie in memory, how a block is removed.

A pipe is one block with two rings of records, and one small block for each end. Whoever has an end maps its block, so the kernel
knows whether the other end is still anywhere: mapped by a process, or in a handle on its way. When it is nowhere, what was
sent can still be received, and then comes `EOFError`. A word of each ring counts the bytes of large messages, which do not lie in it.
"""

from __future__ import annotations

import os
from queue import Empty, Full
from typing import TYPE_CHECKING, Any, Self

from shmarray import keepers, objects, reaper
from shmarray._format import counts
from shmarray._os import late, segments
from shmarray.queues import lines, shelves

if TYPE_CHECKING:
    from types import TracebackType

    from shmarray.membership import Membership

_ROOM = 1 << 20  # bytes on their way after which whoever sends waits
_ENDS = 2 * lines.WORDS
_LARGE = _ENDS + 2
_WORDS = _LARGE + 2


class _Ring(shelves.Ring):
    """Messages that go one way."""

    __slots__ = ("_large",)

    def __init__(self, keeper: keepers.Keeper, way: int) -> None:
        """Use the words of one of the two ways."""
        super().__init__(keeper, way * lines.WORDS)
        self._large = _LARGE + way

    def used(self) -> int:
        """How many bytes are on their way, in the ring and in blocks of their own."""
        large: int = self._words[self._large]
        return super().used() + large

    def add(self, kind: int, data: bytes | memoryview) -> None:
        """See `Shelf`."""
        super().add(kind, data)
        self._words[self._large] += keepers.elsewhere(kind, data)

    def take(self) -> tuple[int, bytes]:
        """See `Shelf`."""
        kind, data = super().take()
        self._words[self._large] -= keepers.elsewhere(kind, data)
        return kind, data

    def mend(self) -> None:
        """After a death: count the messages, and the bytes, anew."""
        super().mend()
        arena = self.arena()
        read = [] if arena is None else [self._read(arena, at) for at, _ in self.records()]
        self._words[self._large] = sum(keepers.elsewhere(kind, data) for _, kind, data in read)


class _Pipe(objects.SharedObject):
    """Both directions, and the numbers of the blocks that stand for the ends."""

    __slots__ = ("keeper", "lines", "rings")
    _kind = "Pipe"

    def _attached(self) -> None:
        self.keeper = keepers.Keeper.of(self)
        self.rings = [_Ring(self.keeper, way) for way in (0, 1)]
        self.lines = [
            lines.Line(self.keeper, ring, way * lines.WORDS, self.rings) for way, ring in enumerate(self.rings)
        ]


class _End(objects.SharedObject):
    """What exists as long as anyone has that end."""

    __slots__ = ()
    _kind = "PipeEnd"

    @property
    def number(self) -> int:
        """Number of its block."""
        number: int = objects.segment_of(self).tag.key.block
        return number


class Connection(objects.Shareable):
    """One end of a pipe, as `multiprocessing.connection.Connection`; picklable, and arrays of a store pass as handles.

    `recv` raises `EOFError` when the other end is gone, `send` `BrokenPipeError`; what was sent before is received first. Sending
    waits while a mebibyte is on its way. There is no descriptor: `fileno` raises `OSError`; use `poll`.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     one, other = store.Pipe()
    ...     one.send(["hello", 1])
    ...     print(other.recv(), other.poll())
    ['hello', 1] False
    """

    __slots__ = ("__weakref__", "_end", "_flags", "_number", "_pipe")

    def __init__(self, pipe: _Pipe, end: _End, number: int, flags: tuple[bool, bool]) -> None:
        """Be end `number`, which may be read, written."""
        self._pipe: _Pipe | None = pipe
        self._end: _End | None = end
        self._number = number
        self._flags = flags

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as handles; the end is open as long as one is on its way."""
        pipe = self._open()
        return Connection, (pipe, self._end, self._number, self._flags)

    def _open(self) -> _Pipe:
        if self._pipe is None:
            message = "handle is closed"
            raise OSError(message)
        return self._pipe

    def _side(self, *, reads: bool) -> tuple[_Pipe, lines.Line]:
        pipe = self._open()
        if not self._flags[not reads]:
            message = f"connection is {'write' if reads else 'read'}-only"
            raise OSError(message)
        return pipe, pipe.lines[self._number if reads else 1 - self._number]

    @property
    def closed(self) -> bool:
        """Whether this object was closed."""
        return self._pipe is None

    @property
    def readable(self) -> bool:
        """Whether `recv` is possible."""
        return self._flags[0]

    @property
    def writable(self) -> bool:
        """Whether `send` is possible."""
        return self._flags[1]

    def fileno(self) -> int:
        """Raise `OSError`: memory has no descriptor to wait for."""
        self._open()
        message = "a pipe of a store has no descriptor; use poll(), or multiprocessing.Pipe() where one is needed"
        raise OSError(message)

    def close(self) -> None:
        """Let the end go; the other one is told when nobody has it any more. May be repeated."""
        pipe, self._pipe, self._end = self._pipe, None, None
        if pipe is not None:
            for line in pipe.lines:
                line.stir()

    def __enter__(self) -> Self:
        """Begin the scope of this end."""
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close this end."""
        self.close()

    # -- the other end -------------------------------------------------------------------------------------------------

    def _is_alone(self) -> bool:
        """Whether nobody has the other end: its block is gone, or may go, by the kernel's word.

        At its end the store removes that block too: that is `StoreClosedError`, and not the end of a pipe.
        """
        pipe = self._open()
        block = objects.segment_of(pipe).tag
        other = pipe._words[_ENDS + 1 - self._number] & 0xFFFF_FFFF_FFFF_FFFF
        path = f"{block.member.block_prefix}{block.key._replace(block=other).entry}"
        if not reaper.remove_if_unheld(path, block.key.uid) and segments.exists(path):
            return False
        block.member.require_open()  # a store is marked closed before anything of it is removed
        return True

    # -- sending and receiving -----------------------------------------------------------------------------------------

    def send(self, obj: Any) -> None:
        """Send what can be pickled. Raises `BrokenPipeError`, `OSError` on a closed or read-only end, what pickling raises."""
        pipe, line = self._side(reads=False)
        self._send(pipe, line, pipe.keeper.pack(obj))

    def _send(self, pipe: _Pipe, line: lines.Line, parcel: keepers.Parcel) -> None:
        ring = pipe.rings[1 - self._number]
        try:
            if self._is_alone():
                raise BrokenPipeError(32, os.strerror(32))
            try:
                line.put(parcel, None, lambda: ring.used() > _ROOM, self._is_alone)
            except Full:
                raise BrokenPipeError(32, os.strerror(32)) from None
        except BaseException:
            pipe.keeper.give_back(parcel)
            raise

    def _receive(self) -> tuple[_Pipe, int, bytes]:
        pipe, line = self._side(reads=True)
        try:
            return pipe, *line.get(None, None, self._is_alone)
        except Empty:
            raise EOFError from None

    def recv(self) -> Any:
        """Receive the next value; waits for one. Raises `EOFError` when there is none and the other end is gone."""
        pipe, kind, data = self._receive()
        return pipe.keeper.unpack(kind, data)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to receive, within `timeout` seconds (None: wait). True as well at the end: `recv` then says so."""
        _, line = self._side(reads=True)
        if line.has_record(objects.deadline_of(timeout), self._is_alone):
            return True
        return self._is_alone()

    def send_bytes(self, buf: bytes | bytearray | memoryview, offset: int = 0, size: int | None = None) -> None:
        """Send bytes, from `offset` on, `size` of them; `ValueError` if there are not so many."""
        pipe, line = self._side(reads=False)
        view = memoryview(buf).cast("B")
        offset = counts.position(offset, "offset")
        size = None if size is None else counts.position(size, "size")
        if offset < 0 or (size is not None and size < 0):
            message = "offset and size must not be negative"
            raise ValueError(message)
        if offset > len(view) or (size is not None and offset + size > len(view)):
            message = f"buffer length {len(view)} < offset {offset} + size {size or 0}"
            raise ValueError(message)
        data = view[offset:] if size is None else view[offset : offset + size]
        self._send(pipe, line, pipe.keeper.pack_bytes(data))

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive the bytes of the next message; more than `maxlength` are an `OSError`, and lost."""
        if maxlength is not None and counts.position(maxlength, "maxlength") < 0:
            message = "negative maxlength"
            raise ValueError(message)
        pipe, kind, data = self._receive()
        found = pipe.keeper.unpack_bytes(kind, data)
        if maxlength is not None and len(found) > maxlength:
            message = f"a message of {len(found)} bytes is longer than {maxlength}"
            raise OSError(message)
        return found

    def recv_bytes_into(self, buf: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Receive the bytes of the next message into a buffer; returns how many. `BufferTooShort` carries what did not fit."""
        target = memoryview(buf).cast("B")
        if target.readonly:
            message = f"the buffer is read-only ({type(buf).__name__}): give a bytearray or an array"
            raise TypeError(message)
        offset = counts.position(offset, "offset")  # before a message is taken
        if not 0 <= offset <= len(target):
            message = f"offset {offset} is not within a buffer of {len(target)} bytes"
            raise ValueError(message)
        found = self.recv_bytes()
        if len(found) > len(target) - offset:
            raise late.load("multiprocessing").BufferTooShort(found)
        target[offset : offset + len(found)] = found
        return len(found)

    def __repr__(self) -> str:
        """Say which end it is."""
        return f"<Connection, {'closed' if self.closed else f'end {self._number} of a pipe'}>"


def pipe(member: Membership, *, duplex: bool = True) -> tuple[Connection, Connection]:
    """Make a pipe; returns its ends. Without `duplex` the first only receives and the second only sends."""
    shared = _Pipe._create(member, _WORDS)
    ends = [_End._create(member, 1) for _ in range(2)]
    for index, end in enumerate(ends):
        shared._words[_ENDS + index] = keepers.signed(end.number)
    flags = ((True, True), (True, True)) if duplex else ((True, False), (False, True))
    one, other = (Connection(shared, end, index, flags[index]) for index, end in enumerate(ends))
    return one, other
