"""`multiprocessing.shared_memory.SharedMemory`, used by hand as its documentation shows."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.rivals.interface import WORD, Array, Attaches, PipeHandOff, Puts

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class ByHand(PipeHandOff, Attaches, Puts):
    """One `SharedMemory` for each array; another process opens it by its name, each time."""

    imports: ClassVar[str] = "from multiprocessing import shared_memory"

    def create(self, nbytes: int) -> Any:
        """Create it under a name."""
        return SharedMemory(self.fresh_name(), create=True, size=nbytes)

    def view(self, block: Any) -> Array:
        """Lay an array over its buffer."""
        return np.ndarray(block.size // WORD, np.int64, block.buf)

    def free(self, block: Any) -> None:
        """Close and unlink."""
        block.close()
        block.unlink()

    def put(self, array: Array) -> Any:
        """Create, lay an array over it, copy."""
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

    def resident(self, nbytes: int) -> Any:
        """Make one that is filled."""
        block = self.create(nbytes)
        self.view(block)[:] = 1
        return block

    def element(self, block: Any) -> Array:
        """Lay an array over its buffer."""
        return self.view(block)

    def send(self, pipe: Connection, block: Any) -> None:
        """Send name, shape and dtype."""
        pipe.send((block.name, (block.size // WORD,), "<i8"))

    def receive(self, pipe: Connection) -> Any:
        """Receive a name, and open it."""
        name, _, _ = pipe.recv()
        return SharedMemory(name)

    def done(self, block: Any) -> None:
        """Close it again."""
        block.close()

    def remove(self, block: Any) -> None:
        """Close and unlink."""
        self.free(block)


class MappingKept(ByHand):
    """The same with a dictionary of what is open already, in both processes."""

    def __init__(self, tag: str) -> None:
        """Begin with nothing open."""
        super().__init__(tag)
        self._open: dict[str, SharedMemory] = {}

    def resident(self, nbytes: int) -> Any:
        """Make one that is filled, and remember it."""
        block = super().resident(nbytes)
        self._open[block.name] = block
        return block

    def receive(self, pipe: Connection) -> Any:
        """Receive a name, and look it up."""
        name, _, _ = pipe.recv()
        block = self._open.get(name)
        if block is None:
            block = self._open[name] = SharedMemory(name)
        return block

    def done(self, block: Any) -> None:
        """Keep it open."""

    def remove(self, block: Any) -> None:
        """Close and unlink."""
        self._open.clear()
        self.free(block)
