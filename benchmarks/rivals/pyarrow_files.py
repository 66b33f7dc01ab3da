"""pyarrow: a tensor in a file in shared memory, read where it lies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from benchmarks.rivals.interface import WORD, Array, PipeHandOff, Puts, Reaches

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Tensors(PipeHandOff, Reaches, Puts):
    """`pyarrow.ipc.write_tensor` into a file, `read_tensor` from a memory map; a block is a path with its array, which is not writable."""

    imports: ClassVar[str] = "import pyarrow"

    def put(self, array: Array) -> Any:
        """Write a file, and map it."""
        path = f"/dev/shm/{self.fresh_name()}"  # noqa: S108  the subject
        with pa.OSFile(path, "wb") as file:
            pa.ipc.write_tensor(pa.Tensor.from_numpy(array), file)
        return self.attach(path)

    def filled(self, nbytes: int, value: int) -> Any:
        """Put such an array."""
        return self.put(np.full(nbytes // WORD, value, np.int64))

    def view(self, block: Any) -> Array:
        """It is the array itself."""
        array: Array = block[1]
        return array

    def free(self, block: Any) -> None:
        """Remove the file; the last reference unmaps."""
        os.unlink(block[0])

    def handle(self, block: Any) -> Any:
        """Give the path."""
        return block[0]

    def attach(self, handle: Any) -> Any:
        """Map the file and read the tensor from it."""
        return handle, pa.ipc.read_tensor(pa.memory_map(handle)).to_numpy()

    def drop(self, block: Any) -> None:
        """The last reference unmaps."""

    def resident(self, nbytes: int) -> Any:
        """Make one that is filled."""
        return self.filled(nbytes, 1)

    def mark(self, number: int) -> None:
        """Write the number into the file behind pyarrow's back: its tensors are not writable, and another file would not be resident."""
        path, array = self._block
        with open(path, "r+b", buffering=0) as file:
            file.seek(-array.nbytes, os.SEEK_END)
            file.write(np.int64(number).tobytes())

    def element(self, block: Any) -> Array:
        """It is the array itself."""
        return self.view(block)

    def send(self, pipe: Connection, block: Any) -> None:
        """Send the path."""
        pipe.send(block[0])

    def receive(self, pipe: Connection) -> Any:
        """Receive a path, and map it."""
        return self.attach(pipe.recv())

    def remove(self, block: Any) -> None:
        """Remove the file."""
        self.free(block)
