"""Pickling: the whole array goes through the pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.rivals.interface import WORD, PipeHandOff

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from benchmarks.rivals.interface import Array


class Pickled(PipeHandOff):
    """Send and receive the array itself."""

    def resident(self, nbytes: int) -> Any:
        """Make an ordinary array."""
        return np.ones(nbytes // WORD, np.int64)

    def element(self, block: Any) -> Array:
        """It is the array itself."""
        array: Array = block
        return array

    def send(self, pipe: Connection, block: Any) -> None:
        """Pickle it into the pipe."""
        pipe.send(block)

    def receive(self, pipe: Connection) -> Any:
        """Read it out of the pipe."""
        return pipe.recv()


class Unread(Pickled):
    """The limit of what memory it takes: the array is there, and what is sent is one element."""

    def send(self, pipe: Connection, block: Any) -> None:
        """Send one element."""
        super().send(pipe, block[:1].copy())
