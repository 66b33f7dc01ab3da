"""`multiprocessing.managers.SharedMemoryManager`: a server process that makes each `SharedMemory`."""

from __future__ import annotations

from multiprocessing.managers import SharedMemoryManager
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar

import numpy as np

from benchmarks.rivals.interface import WORD, Adapter, Array, Attaches, Puts


class Managed(Adapter, Attaches, Puts):
    """One `manager.SharedMemory` for each array; it chooses the names."""

    imports: ClassVar[str] = "from multiprocessing.managers import SharedMemoryManager"

    def open(self) -> None:
        """Start the manager."""
        self._manager = SharedMemoryManager()
        self._manager.start()

    def close(self) -> None:
        """Shut it down."""
        self._manager.shutdown()

    def create(self, nbytes: int) -> Any:
        """Let the manager make one."""
        return self._manager.SharedMemory(nbytes)

    def view(self, block: Any) -> Array:
        """Lay an array over its buffer."""
        return np.ndarray(block.size // WORD, np.int64, block.buf)

    def free(self, block: Any) -> None:
        """Close and unlink; a manager has no call to free one block, and takes a second to shut down after this."""
        block.close()
        block.unlink()

    def put(self, array: Array) -> Any:
        """Let the manager make one, lay an array over it, copy."""
        block = self.create(array.nbytes)
        np.ndarray(array.shape, array.dtype, block.buf)[:] = array
        return block

    def handle(self, block: Any) -> Any:
        """Give the name."""
        return block.name

    def attach(self, handle: Any) -> Any:
        """Open it by name."""
        return SharedMemory(handle)

    def drop(self, block: Any) -> None:
        """Close it."""
        block.close()
