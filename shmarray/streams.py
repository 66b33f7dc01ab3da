"""Streams of bytes from which arrays are loaded.

Owns: reading exactly so many bytes from anything that has `readinto`, whatever it gives at a time, and what to say when it
gives too few.
Must not know: formats, blocks.
"""

from __future__ import annotations

import errno
import io
from typing import TYPE_CHECKING, Any

from shmarray._os import files
from shmarray.errors import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 4 << 20
_SKIPPED = 1 << 16
_MEASURED = (
    io.FileIO,
    io.BufferedReader,
    io.BufferedRandom,
    io.BytesIO,
)  # others may have to read all to find their end


class Source:
    """A stream, read from where it stands; `label` is what it is called in messages.

    `size` is that of an ordinary file that was opened for this, and read from its beginning: then it is the array's alone.
    """

    def __init__(self, file: Any, label: str, size: int | None = None) -> None:
        """Begin where the stream stands."""
        self.file = file
        self.label = label
        self.size = size
        self.position = 0
        """Bytes taken so far."""
        self._ahead = b""
        """Bytes read and not taken yet."""

    @property
    def is_whole(self) -> bool:
        """Whether the file is there for one array alone."""
        return self.size is not None

    def peek(self, count: int) -> bytes:
        """Give the next `count` bytes without taking them; fewer where the stream ends."""
        piece = bytearray(count - len(self._ahead))
        self._ahead += piece[: sum(self._fill(memoryview(piece)))]
        return self._ahead[:count]

    def take(self, count: int) -> bytes:
        """Give the next `count` bytes; raises `FileFormatError` where the stream ends before."""
        data = bytearray(count)
        for _ in self.into(memoryview(data)):
            pass
        return bytes(data)

    def skip(self, count: int) -> None:
        """Leave out `count` bytes; raises `FileFormatError` where the stream ends before."""
        left = self.left()
        if left is not None:
            if left < count:
                raise self.too_short(count, left)
            self.file.seek(count - len(self._ahead), io.SEEK_CUR)
            self._ahead = b""
            self.position += count
            return
        while count:
            count -= len(self.take(min(count, _SKIPPED)))

    def into(self, view: memoryview) -> Iterator[int]:
        """Fill `view` piece by piece; gives the bytes of each. Raises `FileFormatError` where the stream ends before."""
        ready = min(len(self._ahead), len(view))
        if ready:
            view[:ready] = self._ahead[:ready]
            self._ahead = self._ahead[ready:]
            self.position += ready
            yield ready
        done = ready
        for count in self._fill(view[ready:]):
            done += count
            self.position += count
            yield count
        if done < len(view):
            raise self.too_short(len(view), done)

    def _fill(self, view: memoryview) -> Iterator[int]:
        """Read until `view` is full or the stream ends; gives the bytes of each read."""
        done = 0
        while done < len(view):
            with view[done : done + _PIECE] as piece:  # released after: no stream can write here later
                size = len(piece)
                try:
                    count = self.file.readinto(piece)
                except EOFError:  # how `gzip` and `zipfile` say that they miss something
                    return
            if count is None:
                message = f"{self.label} has no bytes ready and does not wait for them: set it to block"
                raise BlockingIOError(errno.EAGAIN, message)
            if not 0 <= count <= size:
                message = f"readinto of {self.label} says that it read {count} of {size} bytes"
                raise OSError(errno.EIO, message)
            if count == 0:
                return
            done += count
            yield count

    def left(self) -> int | None:
        """How many bytes are still to come, if that can be told without reading them."""
        if self.size is not None:
            return max(0, self.size - self.position)
        if not isinstance(self.file, _MEASURED):
            return None
        return self.measure() if isinstance(self.file, io.BytesIO) or files.length(self.file) is not None else None

    def measure(self) -> int:
        """How many bytes are still to come; raises `FileFormatError` if the stream cannot seek."""
        if not self._can_seek():
            raise FileFormatError(
                f"{self.label}: its length cannot be told before it has been read",
                remedy="Give the whole shape.",
                path=self.label,
            )
        here: int = self.file.tell()
        end: int = self.file.seek(0, io.SEEK_END)
        self.file.seek(here)
        return max(0, end - here) + len(self._ahead)

    def rewind(self) -> bool:
        """Go back to where the stream stood at first; false if it cannot seek."""
        if not self._can_seek():
            return False
        self.file.seek(-(self.position + len(self._ahead)), io.SEEK_CUR)
        self._ahead, self.position = b"", 0
        return True

    def expect_end(self) -> None:
        """Raise `FileFormatError` if the stream goes on."""
        if self.peek(1):
            raise FileFormatError(
                f"{self.label}: more bytes follow than its header says",
                remedy="It may be damaged: write it anew, or fetch it again.",
                path=self.label,
            )

    def _can_seek(self) -> bool:
        return (
            hasattr(self.file, "seek")
            and hasattr(self.file, "tell")
            and (not hasattr(self.file, "seekable") or self.file.seekable())
        )

    def too_short(self, expected: int, found: int) -> FileFormatError:
        """Describe a stream that ends before it should."""
        return FileFormatError(
            f"{self.label}: it ends too soon: {found} bytes came where {expected} were to come",
            remedy="It was cut off, or is still being written: write it anew, or fetch it again; of raw data, check dtype and shape.",
            path=self.label,
            expected=expected,
            found=found,
        )
