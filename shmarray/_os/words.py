"""Aligned eight-byte words in shared memory.

Owns: the one assumption about atomicity: an aligned 8-byte load or store through a `memoryview` cast to "Q" is one machine
instruction, so a reader in another process sees the old value or the new one and never a mixture.
Must not know: what any word means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap

WORD = 8


def load(memory: mmap.mmap, offset: int) -> int:
    """Read the word at `offset` (a multiple of 8)."""
    # A view for each access: a memoryview shared by threads is not safe on free-threaded builds.
    with memoryview(memory) as raw, raw.cast("Q") as words:
        return words[offset // WORD]


def store(memory: mmap.mmap, offset: int, value: int) -> None:
    """Write the word at `offset` (a multiple of 8)."""
    with memoryview(memory) as raw, raw.cast("Q") as words:
        words[offset // WORD] = value
