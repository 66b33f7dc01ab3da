"""Bare shared memory and lists in it, as in `multiprocessing.shared_memory`.

Owns: `SharedMemory`, `ShareableList`.
Must not know: how blocks live, how a guard survives a death.
"""

from __future__ import annotations

import struct
import types
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from shmarray import objects
from shmarray._format import counts
from shmarray._os import segments
from shmarray.errors import ArrayNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shmarray.membership import Membership

_BYTES = np.dtype(np.uint8)


class SharedMemory(objects.SharedObject):
    """A `multiprocessing.shared_memory.SharedMemory` that goes when its last user does, and with its store at the latest.

    `buf` is its `size` bytes, zero at first. Travels through any queue or argument. `name` is what `multiprocessing`'s class can attach
    it by: `SharedMemory(name=...)`; before Python 3.13 give that one to nobody who ends first, for its tracker then unlinks it.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     memory = store.SharedMemory(16)
    ...     memory.buf[:5] = b"hello"
    ...     print(bytes(memory.buf[:5]), memory.size)
    b'hello' 16
    """

    __slots__ = ("_buf",)
    _kind = "SharedMemory"

    @classmethod
    def make(cls, member: Membership, size: int, name: str | None = None) -> Self:
        """Make one of `size` bytes; `ValueError` if that is not positive."""
        if size <= 0:
            message = f"size must be a positive number of bytes, not {size}"
            raise ValueError(message)
        return cls._create(member, int(size), name, dtype=_BYTES)

    def _attached(self) -> None:
        segment = objects.segment_of(self)
        self._buf: memoryview | None = memoryview(segment)[: segment.tag.nbytes]

    @property
    def buf(self) -> memoryview | None:
        """The memory; None once closed."""
        return self._buf

    @property
    def name(self) -> str:
        """File name of the block."""
        return str(self._array.block_name)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return int(self._array.nbytes)

    def close(self) -> None:
        """Give up `buf` in this process, by this object; arrays made of it stay valid. May be repeated.

        Raises `BufferError` while something has `buf` itself locked.
        """
        if self._buf is not None:
            self._buf.release()
            self._buf = None

    def unlink(self) -> None:
        """Delete it for everyone; who has it may go on. `ArrayNotFoundError` (a `FileNotFoundError`) if that was done before."""
        segment = objects.segment_of(self)
        if not segments.exists(segment.tag.path):
            raise ArrayNotFoundError(
                f"{segment.tag.path} is not there: it has been deleted", remedy="Unlink once.", name=self.name
            )
        super().unlink()

    def __repr__(self) -> str:
        """Show name and size."""
        return f"SharedMemory({self.name!r}, size={self.size})"


_NONE, _BOOL, _INT, _FLOAT, _STR, _BYTES_TYPE = range(6)
_INT64 = struct.Struct("<q")
_FLOAT64 = struct.Struct("<d")
_ALIGN = 8
_SLOT = 3  # words of a slot: what it holds, where its room begins, how large that is


class ShareableList(objects.SharedObject):
    r"""A `multiprocessing.shared_memory.ShareableList` without its faults, that travels through any queue or argument.

    Of a fixed number of `int` (64 bits), `float`, `bool` (NumPy's become Python's), `str`, `bytes`, `None`; each may be replaced by
    another of them that fits into its room, which is that of the first value: 8 bytes for a number, for a text its length in UTF-8 or
    up to 8 bytes more. Keeps trailing NULs. A value that is read is one that was written, whole, also after a writer was killed.
    Raises `ValueError` for what does not fit, `TypeError` for other types, `IndexError`.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     row = store.ShareableList(["grün", 3, None, b"end\0"])
    ...     row[1] = 4
    ...     print(list(row), row.index(None))
    ['grün', 4, None, b'end\x00'] 2
    """

    __slots__ = ()
    _kind = "ShareableList"

    @classmethod
    def make(cls, member: Membership, sequence: Iterable[Any] = (), name: str | None = None) -> Self:
        """Make one with these values."""
        coded = [_encode(value) for value in sequence]
        rooms = [_room(kind, data) for kind, data in coded]
        table = 8 * (1 + _SLOT * len(coded))
        starts = [table + 2 * sum(rooms[:number]) for number in range(len(coded))]

        def fill(memory: np.ndarray[Any, Any]) -> None:
            words = memory.view(np.int64)
            words[0] = len(coded)
            for number, (kind, data) in enumerate(coded):
                words[1 + _SLOT * number : 1 + _SLOT * (number + 1)] = (
                    _holds(kind, 0, len(data)),
                    starts[number],
                    rooms[number],
                )
                memory[starts[number] : starts[number] + len(data)] = np.frombuffer(data, np.uint8)

        return cls._create(member, table + 2 * sum(rooms), name, fill, _BYTES)

    def __len__(self) -> int:
        """How many values there are."""
        count: int = self._words[0]
        return count

    def _slot(self, position: int) -> int:
        """Index of the first word of a slot. Raises `IndexError`, `TypeError`."""
        if type(position) is not int:
            position = counts.position(position, "the position in a ShareableList")
        length = len(self)
        place = position + length if position < 0 else position
        if not 0 <= place < length:
            message = "index out of range"
            raise IndexError(message)
        return 1 + _SLOT * place

    def _load(self, at: int) -> tuple[int, bytes]:
        """Kind and bytes of a value, with the guard held."""
        holds, start, room = self._words[at : at + _SLOT]
        start += room * (holds >> 4 & 1)
        return holds & 15, self._array[start : start + (holds >> 8)].tobytes()

    def __getitem__(self, position: int) -> Any:
        """Read a value."""
        at = self._slot(position)
        self._guard.acquire(self._array)
        try:
            kind, data = self._load(at)
        finally:
            self._guard.release()
        return _decode(kind, data)

    def __setitem__(self, position: int, value: Any) -> None:
        """Replace a value; the old one is there until the new one is, whole."""
        at = self._slot(position)
        kind, data = _encode(value)
        self._guard.acquire(self._array)
        try:
            holds, start, room = self._words[at : at + _SLOT]
            if len(data) > room:
                message = f"a value of {len(data)} bytes exceeds available storage: it does not fit into the {room} of position {position}"
                raise ValueError(message)
            half = 1 - (holds >> 4 & 1)
            begin = start + room * half
            self._array[begin : begin + len(data)] = np.frombuffer(data, np.uint8)
            self._words[at] = _holds(kind, half, len(data))
        finally:
            self._guard.release()

    def __iter__(self) -> Iterator[Any]:
        """Go through the values as they are when reached."""
        return (self[position] for position in range(len(self)))

    def __contains__(self, value: object) -> bool:
        """Whether a value is there."""
        return any(mine == value for mine in self)

    def count(self, value: Any) -> int:
        """How often a value is there."""
        return sum(mine == value for mine in self)

    def index(self, value: Any) -> int:
        """Where a value is first; `ValueError` if it is not there."""
        for position, mine in enumerate(self):
            if mine == value:
                return position
        message = f"{value!r} not in this container"
        raise ValueError(message)

    @property
    def format(self) -> str:
        """What `multiprocessing`'s class says of the values: one code of `struct` for each."""
        codes = {_NONE: "xxxxxx?x", _BOOL: "xxxxxxx?", _INT: "q", _FLOAT: "d"}
        slots = [self._slot(position) for position in range(len(self))]
        return "".join(codes.get(self._words[at] & 15) or f"{self._words[at + 2]}s" for at in slots)

    @property
    def shm(self) -> SharedMemory:
        """The block as bare memory."""
        return SharedMemory._over(objects.segment_of(self))

    def __repr__(self) -> str:
        """Show the values."""
        return f"ShareableList({list(self)!r}, name={self._array.block_name!r})"

    def __class_getitem__(cls, item: Any, /) -> types.GenericAlias:
        """Be generic for type hints."""
        return types.GenericAlias(cls, item)


def _room(kind: int, data: bytes) -> int:
    """How many bytes a value gets: as many as of the standard class, which counts the characters of a text, or more if it needs more."""
    if kind not in (_STR, _BYTES_TYPE):
        return _ALIGN
    length = len(data.decode("utf-8", "surrogatepass")) if kind == _STR else len(data)
    return _ALIGN * max(length // _ALIGN + 1, -(-len(data) // _ALIGN))


def _holds(kind: int, half: int, length: int) -> int:
    return kind | half << 4 | length << 8


def _encode(value: Any) -> tuple[int, bytes]:
    """Write a value as bytes, and its kind. Raises `TypeError`, `ValueError`."""
    if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= _ALIGN:
        value = value.item()  # NumPy's numbers are kept as Python's
    if value is None:
        return _NONE, b""
    if isinstance(value, bool):
        return _BOOL, bytes([value])
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            message = f"{value} does not fit into 64 bits"
            raise ValueError(message)
        return _INT, _INT64.pack(value)
    if isinstance(value, float):
        return _FLOAT, _FLOAT64.pack(value)
    if isinstance(value, str):
        return _STR, value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return _BYTES_TYPE, bytes(value)
    message = f"a ShareableList holds int, float, bool, str, bytes and None, not {type(value).__name__}"
    raise TypeError(message)


def _decode(kind: int, data: bytes) -> Any:
    if kind == _NONE:
        return None
    if kind == _BOOL:
        return data != b"\0"
    if kind == _INT:
        return _INT64.unpack(data)[0]
    if kind == _FLOAT:
        return _FLOAT64.unpack(data)[0]
    return data.decode("utf-8", "surrogatepass") if kind == _STR else data


__all__ = ["ShareableList", "SharedMemory"]
