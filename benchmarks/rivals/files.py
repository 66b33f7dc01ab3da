"""The limit of making and reaching a block: the system calls alone, with no promise kept."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np

from benchmarks.rivals.interface import Adapter, Array, Attaches, Puts

_PIECE = 1 << 30


class OpenAndMap(Adapter, Attaches, Puts):
    """A file in shared memory, opened and mapped; the descriptor is closed, or kept by the mapping before Python 3.13."""

    def fresh_name(self) -> str:
        """Give a path."""
        return f"/dev/shm/{super().fresh_name()}"  # noqa: S108  the subject

    def create(self, nbytes: int) -> Any:
        """Create, set the size, map."""
        path = self.fresh_name()
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, nbytes)
        memory = mmap.mmap(fd, nbytes)
        os.close(fd)
        return path, memory

    def view(self, block: Any) -> Array:
        """Lay an array over the mapping."""
        return np.frombuffer(block[1], np.int64)

    def free(self, block: Any) -> None:
        """Unlink; the last reference unmaps."""
        os.unlink(block[0])

    def put(self, array: Array) -> Any:
        """Write by system call, which takes no page fault, and map."""
        path = self.fresh_name()
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        data, done = array.data.cast("B"), 0
        while done < len(data):
            done += os.pwrite(fd, data[done : done + _PIECE], done)
        memory = mmap.mmap(fd, len(data))
        os.close(fd)
        return path, memory

    def handle(self, block: Any) -> Any:
        """Give the path."""
        return block[0]

    def attach(self, handle: Any) -> Any:
        """Open, map, close."""
        fd = os.open(handle, os.O_RDWR | os.O_CLOEXEC)
        memory = mmap.mmap(fd, 0)
        os.close(fd)
        return handle, memory

    def drop(self, block: Any) -> None:
        """The last reference unmaps."""
