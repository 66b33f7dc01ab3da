"""The limits of every put and get: `np.copyto` into memory that is there already, in one thread and in two; the sum of such memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.rivals.interface import Adapter, Puts

if TYPE_CHECKING:
    from benchmarks.rivals.interface import Array


class CopyTo(Adapter, Puts):
    """Copy into private memory that has been written before."""

    def __init__(self, tag: str) -> None:
        """Begin without memory."""
        super().__init__(tag)
        self._memory: Array | None = None

    def put(self, array: Array) -> Any:
        """Copy; the warm-up round makes the memory."""
        if self._memory is None or self._memory.shape != array.shape:
            self._memory = np.ones_like(array)
        np.copyto(self._memory, array)
        return self._memory

    def free(self, block: Any) -> None:
        """Keep the memory for the next put."""


class Summed(CopyTo):
    """Read private memory that has been written before; another process has the same of its own."""

    def handle(self, block: Any) -> Any:
        """Say how much it is, and of what."""
        return len(block), int(block[0])

    def attach(self, handle: Any) -> Any:
        """Give the memory; the first time makes it."""
        if self._memory is None:
            self._memory = np.full(*handle)
        return self._memory

    def view(self, block: Any) -> Array:
        """It is the array itself."""
        array: Array = block
        return array

    def drop(self, block: Any) -> None:
        """Keep the memory for the next time."""


class CopyInTwoThreads(CopyTo):
    """The same, each half by a thread of its own: NumPy lets others run while it copies."""

    def put(self, array: Array) -> Any:
        """Copy; the warm-up round makes the memory."""
        if self._memory is None or self._memory.shape != array.shape:
            self._memory = np.ones_like(array)
        half = len(array) // 2
        other = threading.Thread(target=np.copyto, args=(self._memory[half:], array[half:]))
        other.start()
        np.copyto(self._memory[:half], array[:half])
        other.join()
        return self._memory
