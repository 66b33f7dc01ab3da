"""The limits of every hand-off over a pipe: 200 bytes, more than a handle has, sent as an object or bare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.rivals.interface import WORD, PipeHandOff

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from benchmarks.rivals.interface import Array

_SIZE = 200


class Bare(PipeHandOff):
    """Send 200 bytes by `send_bytes`, whatever the size of the array, and lay an array over them."""

    def resident(self, nbytes: int) -> Any:  # noqa: ARG002  it is the same for every size
        """Make the message."""
        return np.ones(_SIZE // WORD, np.int64)

    def element(self, block: Any) -> Array:
        """It is the message itself."""
        array: Array = block
        return array

    def send(self, pipe: Connection, block: Any) -> None:
        """Send the bytes."""
        pipe.send_bytes(block)

    def receive(self, pipe: Connection) -> Any:
        """Receive the bytes."""
        return np.frombuffer(pipe.recv_bytes(), np.int64)


class Message(Bare):
    """Send 200 bytes by `send`, as arrays are sent."""

    def send(self, pipe: Connection, block: Any) -> None:
        """Send a bytes object."""
        pipe.send(block.tobytes())

    def receive(self, pipe: Connection) -> Any:
        """Receive it."""
        return np.frombuffer(pipe.recv(), np.int64)
