"""What a way to share arrays can do, as adapters say it.

Owns: the abilities (`Creates`, `Puts`, `Reaches`, `Attaches`, `HandsOff`, `Locks`); a case measures whoever has the one it is about.
Must not know: any particular way.

A *block* is whatever an adapter makes of an array: cases only pass it on. What is timed is exactly one of these calls, or a
row of them, so an adapter does in each what a user of that rival would write, and nothing else. Arrays are one-dimensional,
of int64.
"""

from __future__ import annotations

import abc
import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.peer import Peer

if TYPE_CHECKING:
    import contextlib
    from multiprocessing.connection import Connection

Array = np.ndarray[Any, np.dtype[np.int64]]
WORD = 8
_ANSWER = 8


class UnableError(Exception):
    """A contender cannot do what is asked of it on this machine; the message says why. It is no failure of the benchmark."""


class Adapter:
    """One way to share arrays, in one process. Names it gives begin with `tag`, so that what is left can be found."""

    #: What a user imports for it besides numpy.
    imports: ClassVar[str] = ""

    def __init__(self, tag: str) -> None:
        """Prepare; starts nothing."""
        self.tag = tag
        self._numbers = itertools.count()

    def fresh_name(self) -> str:
        """Give a name that was not used before."""
        return f"{self.tag}-{next(self._numbers)}"

    def open(self) -> None:
        """Start what it needs before the first array: a store, a manager."""

    def close(self) -> None:
        """End what `open` started."""

    def settle(self) -> None:
        """Wait, untimed, until what `open` or `close` started in the background has come to rest."""

    def invitation(self) -> Any:
        """Give what a peer needs to join."""

    def join(self, invitation: Any) -> None:
        """Join, in a peer, what another process has opened."""

    def leave(self) -> None:
        """In a peer that is about to end: let go of what it has joined."""


class Creates(abc.ABC):
    """Makes and frees arrays."""

    @abc.abstractmethod
    def create(self, nbytes: int) -> Any:
        """Make a block of that size, contents undefined."""

    @abc.abstractmethod
    def view(self, block: Any) -> Array:
        """Give the array of a block."""

    @abc.abstractmethod
    def free(self, block: Any) -> None:
        """Free a block for everyone. The caller drops its reference next, and counts that in."""


class Puts(abc.ABC):
    """Copies an array in."""

    @abc.abstractmethod
    def put(self, array: Array) -> Any:
        """Make a block with this content."""

    @abc.abstractmethod
    def free(self, block: Any) -> None:
        """Free a block, as in `Creates`."""

    def cool(self) -> None:  # noqa: B027  most keep nothing
        """Give back what is kept of freed blocks, untimed: the next gets fresh memory."""


class Reaches(abc.ABC):
    """Reaches an array that another process has made, and that need not be writable."""

    @abc.abstractmethod
    def filled(self, nbytes: int, value: int) -> Any:
        """Make a block, untimed, whose elements are all the same."""

    @abc.abstractmethod
    def view(self, block: Any) -> Array:
        """Give the array of a block, as in `Creates`."""

    @abc.abstractmethod
    def free(self, block: Any) -> None:
        """Free a block, as in `Creates`."""

    @abc.abstractmethod
    def handle(self, block: Any) -> Any:
        """Give what another process needs to find the block; it pickles."""

    @abc.abstractmethod
    def attach(self, handle: Any) -> Any:
        """Reach the block of another process."""

    @abc.abstractmethod
    def drop(self, block: Any) -> None:
        """Let go of an attached block; the caller drops its reference next, and counts that in."""


class Attaches(Creates, Reaches):
    """Reaches an array that another process has made, and both may write it."""

    def filled(self, nbytes: int, value: int) -> Any:
        """Create and fill."""
        block = self.create(nbytes)
        self.view(block)[:] = value
        return block


class HandsOff(abc.ABC):
    """Hands one array to a running worker, again and again."""

    @abc.abstractmethod
    def begin(self, nbytes: int) -> None:
        """Start the worker, and make the array as it is before it is handed off."""

    @abc.abstractmethod
    def mark(self, number: int) -> None:
        """Write a number into the array's first element, untimed: the worker must answer with it."""

    @abc.abstractmethod
    def trip(self) -> int:
        """Hand the array off; returns the worker's answer: the first element."""

    @abc.abstractmethod
    def trip_and_back(self) -> int:
        """Hand the array off, and be handed it back; returns its first element."""

    @abc.abstractmethod
    def end(self) -> None:
        """End the worker and free the array."""


class Locks(abc.ABC):
    """A lock that several processes share."""

    acquire: Any
    """Call it to take the lock; waits."""
    release: Any
    """Call it to let the lock go."""
    survives: ClassVar[bool] = True
    """Whether another gets the lock when its holder is killed."""

    @abc.abstractmethod
    def open(self) -> None:
        """Make the lock."""

    def renew(self) -> None:  # noqa: B027  most need nothing
        """In a forked process: make what it needs of its own."""

    @abc.abstractmethod
    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Give the lock as what a `with` block takes."""

    def hold_next(self) -> contextlib.AbstractContextManager[Any]:
        """Give what a `with` block takes to get the lock also when its last holder was killed with it."""
        return self.hold()


class PipeHandOff(HandsOff, Adapter):
    """Hands off over a `multiprocessing.Pipe` to a worker that waits at its other end.

    The number that is marked says what the worker does: it answers an even one, and sends the array back on an odd one.
    """

    @abc.abstractmethod
    def resident(self, nbytes: int) -> Any:
        """Make the block that is handed off, untimed."""

    @abc.abstractmethod
    def element(self, block: Any) -> Array:
        """Give an array that begins with the first element of a block."""

    @abc.abstractmethod
    def send(self, pipe: Connection, block: Any) -> None:
        """Send a block."""

    @abc.abstractmethod
    def receive(self, pipe: Connection) -> Any:
        """Receive a block."""

    def done(self, block: Any) -> None:
        """Let go of a block that was received."""

    def remove(self, block: Any) -> None:
        """Free what `resident` made."""

    def begin(self, nbytes: int) -> None:
        """Start the worker, and make the array."""
        self._peer = Peer(type(self), self.tag)
        self._block = self.resident(nbytes)
        self._peer.call(type(self).join, self.invitation())
        self._peer.begin(_serve)

    def mark(self, number: int) -> None:
        """Write the number."""
        self.element(self._block)[0] = number

    def trip(self) -> int:
        """Hand off and be answered."""
        self.send(self._peer.pipe, self._block)
        return int.from_bytes(self._peer.pipe.recv_bytes(), "little")

    def trip_and_back(self) -> int:
        """Hand off and be handed it back."""
        self.send(self._peer.pipe, self._block)
        block = self.receive(self._peer.pipe)
        number = int(self.element(block)[0])
        self.done(block)
        return number

    def end(self) -> None:
        """End worker and array."""
        self._peer.end()
        self.remove(self._block)
        del self._block


def _serve(adapter: PipeHandOff, pipe: Connection) -> None:
    """Be the worker: receive, read one element, answer with it or send the array back, until the pipe is closed."""
    while True:
        try:
            block = adapter.receive(pipe)
        except EOFError:
            return
        number = int(adapter.element(block)[0])
        if number % 2:
            adapter.send(pipe, block)
        else:
            pipe.send_bytes(number.to_bytes(_ANSWER, "little"))
        adapter.done(block)
        del block  # what the adapter does not keep is not attached while the next one is waited for
