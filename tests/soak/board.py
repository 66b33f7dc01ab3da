"""What the processes of one troupe and their lane tell each other past every queue: signs of life, the end, what went wrong.

Owns: a mapped file of words, a column of them for each part in the troupe, and a file of lines.
Must not know: what is being done.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from typing import Any

OWNER = 0
STEPS, LOADED, POISONED = 0, 1, 2
_COUNTS = 4
_WORD = struct.Struct("=Q")
_FINAL, _STOP, _COUNTED = 0, 8, 16
_SIZE = 4096


class Board:
    """Words that all processes of a troupe see.

    `final` is set before the store's end is brought about, so that whoever is refused work before it was refused wrongly; `stop`
    asks the workers to end.
    """

    def __init__(self, path: str) -> None:
        """Map the file, which is made if it is not there."""
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _SIZE)
            self._memory = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)

    def _get(self, at: int) -> int:
        return int(_WORD.unpack_from(self._memory, at)[0])

    def _set(self, at: int, value: int) -> None:
        _WORD.pack_into(self._memory, at, value)

    @property
    def final(self) -> bool:
        """Whether the end of the store may have come."""
        return bool(self._get(_FINAL))

    @property
    def stop(self) -> bool:
        """Whether workers are to end."""
        return bool(self._get(_STOP))

    def announce_end(self) -> None:
        """Set `final`."""
        self._set(_FINAL, 1)

    def ask_to_stop(self) -> None:
        """Set `stop`."""
        self._set(_STOP, 1)

    def count(self, slot: int, what: int = STEPS) -> None:
        """Count a step, which is a sign of life, or something else, in the column of a part."""
        at = _COUNTED + _WORD.size * (_COUNTS * slot + what)
        self._set(at, self._get(at) + 1)

    def counted(self, slot: int, what: int = STEPS) -> int:
        """How many there were."""
        return self._get(_COUNTED + _WORD.size * (_COUNTS * slot + what))


class Journal:
    """A file to which every process of a troupe appends what went wrong, one line at a time."""

    def __init__(self, path: str) -> None:
        """Name the file."""
        self.path = path

    def write(self, kind: str, detail: str) -> None:
        """Append a line."""
        line = json.dumps({"kind": kind, "pid": os.getpid(), "detail": detail}) + "\n"
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)

    def read(self) -> list[dict[str, Any]]:
        """All that was written."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except FileNotFoundError:
            return []
