"""Aligned eight-byte words in shared memory.

Owns: the one assumption about atomicity: that CPython copies a native "Q" as one aligned 8-byte load in `Struct.unpack_from`, and as one
store in an item of a memoryview, so a reader in another process sees the old value or the new one and never a mixture. (The standard
sizes, "<Q", go byte by byte; and `Struct.pack_into` clears the bytes before it writes them.)
Must not know: what any word means.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap

WORD = 8
WORD_FORMAT = struct.Struct("Q")
"""For those who cannot afford a call: `WORD_FORMAT.unpack_from(memory, offset)[0]` is `load(memory, offset)`."""
_unpack_from = WORD_FORMAT.unpack_from


def load(memory: mmap.mmap, offset: int) -> int:
    """Read the word at `offset` (a multiple of 8)."""
    value: int = _unpack_from(memory, offset)[0]
    return value


def store(memory: mmap.mmap, offset: int, value: int) -> None:
    """Write the word at `offset` (a multiple of 8)."""
    memoryview(memory)[offset : offset + WORD].cast("Q")[0] = value
