"""SharedArray: NumPy arrays over named shared memory, written in C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import SharedArray

from benchmarks.rivals.interface import WORD, Array, Attaches, PipeHandOff, Puts

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class SharedArrays(PipeHandOff, Attaches, Puts):
    """`SharedArray.create`, `attach` and `delete`; a block is a name with its array."""

    imports: ClassVar[str] = "import SharedArray"

    def create(self, nbytes: int) -> Any:
        """Create it under a name."""
        name = f"shm://{self.fresh_name()}"
        return name, SharedArray.create(name, nbytes // WORD, np.int64)

    def view(self, block: Any) -> Array:
        """It is the array itself."""
        array: Array = block[1]
        return array

    def free(self, block: Any) -> None:
        """Delete the name; the last reference unmaps."""
        SharedArray.delete(block[0])

    def put(self, array: Array) -> Any:
        """Create, copy."""
        name = f"shm://{self.fresh_name()}"
        shared = SharedArray.create(name, array.shape, array.dtype)
        shared[:] = array
        return name, shared

    def handle(self, block: Any) -> Any:
        """Give the name."""
        return block[0]

    def attach(self, handle: Any) -> Any:
        """Attach by name."""
        return handle, SharedArray.attach(handle)

    def drop(self, block: Any) -> None:
        """The last reference unmaps."""

    def resident(self, nbytes: int) -> Any:
        """Make one that is filled."""
        return self.filled(nbytes, 1)

    def element(self, block: Any) -> Array:
        """It is the array itself."""
        return self.view(block)

    def send(self, pipe: Connection, block: Any) -> None:
        """Send the name."""
        pipe.send(block[0])

    def receive(self, pipe: Connection) -> Any:
        """Receive a name, and attach."""
        return self.attach(pipe.recv())

    def remove(self, block: Any) -> None:
        """Delete the name."""
        self.free(block)
