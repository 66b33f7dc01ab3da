"""Keeping the cycle collector from taking a mapping for garbage, and from telling of an end that may not come.

Owns: the one object that holds a mapping and that the collector does not look into: a NumPy array over it. Whatever else refers to a
mapping (a memoryview, a list, an object of ours) the collector looks through; were all of these in one unreachable cycle, it
would run the callbacks of the mapping's end before that end, or unmap what the kernel still leads through: a held mutex.
Must not know: what is mapped, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from shmarray._os import segments

_BYTES = np.dtype(np.uint8)


def over(segment: segments.Segment) -> np.ndarray[Any, Any]:
    """View all bytes of a mapping; it cannot end before this does."""
    return np.frombuffer(segment, _BYTES)


def token() -> np.ndarray[Any, Any]:
    """Give what ends when the object that has it is taken apart, and not before.

    Of an object of its own kind, in a cycle, the collector tells those who watch it that it has ended before it is sure of that: a
    `__del__` may bring it back to life.
    """
    return np.empty(0, _BYTES)
