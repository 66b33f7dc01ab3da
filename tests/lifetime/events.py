"""What happens to names in a directory, as the kernel reports it: who was made, moved, removed, in order.

Owns: one inotify descriptor, read through `ctypes`. Must not know: whose names they are.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from types import TracebackType

_FROM, _TO, _CREATE, _DELETE, _OVERFLOW = 0x40, 0x80, 0x100, 0x200, 0x4000
_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Counts(NamedTuple):
    """How often each name was made, by creating, linking or moving to it, and how often it went."""

    made: Counter[str]
    gone: Counter[str]


class Events:
    """All changes of names in a directory between construction and `counts()`."""

    def __init__(self, directory: str, mark: str) -> None:
        """Watch names in `directory` that contain `mark`."""
        self._mark = mark
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        assert _libc.inotify_add_watch(self._fd, os.fsencode(directory), _FROM | _TO | _CREATE | _DELETE) >= 0
        self._counts = Counts(Counter(), Counter())

    def counts(self) -> Counts:
        """Read what was reported until now."""
        while select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, 1 << 20)
            while data:
                _, mask, _, length = _HEAD.unpack_from(data)
                assert not mask & _OVERFLOW, "the kernel dropped events"
                name = data[_HEAD.size : _HEAD.size + length].rstrip(b"\0").decode()
                data = data[_HEAD.size + length :]
                if self._mark in name:
                    (self._counts.made if mask & (_CREATE | _TO) else self._counts.gone)[name] += 1
        return self._counts

    def __enter__(self) -> Self:
        """Watch."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        os.close(self._fd)
