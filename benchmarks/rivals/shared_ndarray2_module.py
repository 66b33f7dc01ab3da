"""shared-ndarray2: an array and the `SharedMemory` of a manager in one object that pickles."""

from __future__ import annotations

import pickle
from multiprocessing.managers import SharedMemoryManager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from shared_ndarray2 import SharedNDArray

from benchmarks.rivals.interface import WORD, Array, Attaches, PipeHandOff, Puts

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class SharedNDArrays(PipeHandOff, Attaches, Puts):
    """`SharedNDArray.from_shape` and `from_array`; it has no calls to close and free, so its `shm` is used for that."""

    imports: ClassVar[str] = "import shared_ndarray2"

    def open(self) -> None:
        """Start the manager."""
        self._manager = SharedMemoryManager()
        self._manager.start()

    def close(self) -> None:
        """Shut it down."""
        self._manager.shutdown()

    def create(self, nbytes: int) -> Any:
        """Let the manager make one."""
        return SharedNDArray.from_shape(self._manager, (nbytes // WORD,), np.dtype(np.int64))

    def view(self, block: Any) -> Array:
        """Ask for the array."""
        array: Array = block.get()
        return array

    def free(self, block: Any) -> None:
        """Close and unlink."""
        block.shm.close()
        block.shm.unlink()

    def put(self, array: Array) -> Any:
        """Let the manager make one with this content."""
        return SharedNDArray.from_array(self._manager, array)

    def handle(self, block: Any) -> Any:
        """Pickle it."""
        return pickle.dumps(block, pickle.HIGHEST_PROTOCOL)

    def attach(self, handle: Any) -> Any:
        """Load the pickle."""
        return pickle.loads(handle)

    def drop(self, block: Any) -> None:
        """Close it."""
        block.shm.close()

    def resident(self, nbytes: int) -> Any:
        """Make one that is filled."""
        return self.filled(nbytes, 1)

    def element(self, block: Any) -> Array:
        """Ask for the array."""
        return self.view(block)

    def send(self, pipe: Connection, block: Any) -> None:
        """Send it as anything else is sent."""
        pipe.send(block)

    def receive(self, pipe: Connection) -> Any:
        """Receive one, which opens it."""
        return pipe.recv()

    def done(self, block: Any) -> None:
        """Close it again."""
        block.shm.close()

    def remove(self, block: Any) -> None:
        """Close and unlink."""
        self.free(block)
