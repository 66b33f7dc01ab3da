"""shmarray itself, in the ways one can use it.

Must not know: anything of shmarray that is not public.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import time
from typing import TYPE_CHECKING, Any, ClassVar

import shmarray
from benchmarks.rivals.interface import WORD, Attaches, PipeHandOff, Puts

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from benchmarks.rivals.interface import Array

_PATIENCE = 10.0
_QUIET = 0.03


class Named(PipeHandOff, Attaches, Puts):
    """Named arrays of one store; another process reaches them by a handle: what an array pickles as."""

    imports: ClassVar[str] = "import shmarray"

    def open(self) -> None:
        """Open a store."""
        self.store = shmarray.Store()
        self._guardian = self.store.guardian_pid

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def settle(self) -> None:
        """Wait until the guardian sleeps, or has ended if the store is closed."""
        if self._guardian is not None:
            _wait_for_end(self._guardian) if self.store.closed else _wait_for_rest(self._guardian)

    def invitation(self) -> Any:
        """Give the store, which pickles as its address."""
        return self.store

    def join(self, invitation: Any) -> None:
        """Keep the store that was joined by loading it."""
        self.store = invitation

    def create(self, nbytes: int) -> Any:
        """`store.empty` with a name."""
        return self.store.empty(nbytes // WORD, "i8", name=self.fresh_name())

    def view(self, block: Any) -> Array:
        """It is the array itself."""
        array: Array = block
        return array

    def free(self, block: Any) -> None:
        """Delete it."""
        block.unlink()

    def put(self, array: Array) -> Any:
        """`store.put` with a name."""
        return self.store.put(array, name=self.fresh_name())

    def cool(self) -> None:
        """Trim the store."""
        self.store.trim()

    def handle(self, block: Any) -> Any:
        """Pickle the array."""
        return pickle.dumps(block, pickle.HIGHEST_PROTOCOL)

    def attach(self, handle: Any) -> Any:
        """Load the pickle."""
        return pickle.loads(handle)

    def drop(self, block: Any) -> None:
        """Nothing but the last reference keeps it."""

    def resident(self, nbytes: int) -> Any:
        """Make an array that is filled."""
        block = self.create(nbytes)
        block[:] = 1
        return block

    def element(self, block: Any) -> Array:
        """It is the array itself."""
        return self.view(block)

    def send(self, pipe: Connection, block: Any) -> None:
        """Send the array as anything else is sent."""
        pipe.send(block)

    def receive(self, pipe: Connection) -> Any:
        """Receive an array, and keep it until the next one has come: so it stays attached."""
        self._kept = pipe.recv()
        return self._kept

    def remove(self, block: Any) -> None:
        """Delete it."""
        block.unlink()


class LookedUp(Named):
    """Named arrays that another process reaches by their name, as it would a `SharedMemory`."""

    def handle(self, block: Any) -> Any:
        """Give the name."""
        return block.name

    def attach(self, handle: Any) -> Any:
        """`store[name]`."""
        return self.store[handle]


class Anonymous(Named):
    """Arrays without a name, which live as long as anybody holds them, handles in flight included."""

    def create(self, nbytes: int) -> Any:
        """`store.empty` without a name."""
        return self.store.empty(nbytes // WORD, "i8")

    def put(self, array: Array) -> Any:
        """`store.put` without a name."""
        return self.store.put(array)

    def free(self, block: Any) -> None:
        """The last reference frees it."""

    def remove(self, block: Any) -> None:
        """The last reference frees it."""


class AttachedEachTime(Named):
    """A worker that holds no array while it waits for the next: each hand-off maps it anew."""

    def receive(self, pipe: Connection) -> Any:
        """Receive an array, and keep nothing."""
        return pipe.recv()


def _wait_for_end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        watch = os.pidfd_open(pid)
        try:
            select.select([watch], [], [], _PATIENCE)
        finally:
            os.close(watch)


def _wait_for_rest(pid: int) -> None:
    """Wait until a process has used no processor time for a moment; nothing else says that it has finished starting up."""
    deadline = time.monotonic() + _PATIENCE
    last = -1.0
    while time.monotonic() < deadline and (now := _used(pid)) != last:
        last = now
        time.sleep(_QUIET)


def _used(pid: int) -> float:
    """Nanoseconds that the threads of a process have run; 0 if it has ended."""
    try:
        total = 0
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(total)
