"""torch: tensors in shared memory, which travel through torch's own pickling; strategy `file_system`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.multiprocessing

from benchmarks.rivals.interface import WORD, Array, Creates, PipeHandOff, Puts

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Tensors(PipeHandOff, Creates, Puts):
    """`tensor.share_memory_()`, which copies the tensor into a new file. It has no name that could be asked for again and again."""

    imports: ClassVar[str] = "import torch"

    def __init__(self, tag: str) -> None:
        """Choose the strategy, in each process."""
        super().__init__(tag)
        torch.multiprocessing.set_sharing_strategy("file_system")

    def create(self, nbytes: int) -> Any:
        """Make a tensor, and share it."""
        return torch.empty(nbytes // WORD, dtype=torch.int64).share_memory_()

    def view(self, block: Any) -> Array:
        """Lay an array over it."""
        array: Array = block.numpy()
        return array

    def free(self, block: Any) -> None:
        """The last reference frees it."""

    def put(self, array: Array) -> Any:
        """Lay a tensor over the array, and share that, which copies."""
        return torch.from_numpy(array).share_memory_()

    def resident(self, nbytes: int) -> Any:
        """Make one that is filled."""
        return torch.ones(nbytes // WORD, dtype=torch.int64).share_memory_()

    def element(self, block: Any) -> Array:
        """Lay an array over it."""
        return self.view(block)

    def send(self, pipe: Connection, block: Any) -> None:
        """Send the tensor; torch has told `multiprocessing` how."""
        pipe.send(block)

    def receive(self, pipe: Connection) -> Any:
        """Receive a tensor."""
        return pipe.recv()
