"""Locks between processes.

Owns: what a user writes to have one lock in several processes, of each kind.
Must not know: how long it takes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.rivals.interface import Adapter, Locks

if TYPE_CHECKING:
    from multiprocessing.managers import SyncManager

    import shmarray


class Ours(Locks, Adapter):
    """The lock of a shared array."""

    def open(self) -> None:
        """Open a store and make the array."""
        import shmarray  # noqa: PLC0415  in the process alone that measures it

        self.store = shmarray.Store()
        self.array: shmarray.SharedArray = self.store.zeros(8)
        self.lock: Any = self.array.lock
        self.acquire, self.release = self.lock.acquire, self.lock.release

    def close(self) -> None:
        """Close the store."""
        del self.array, self.lock, self.acquire, self.release
        self.store.close()

    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Take the lock as a context manager."""
        return self.lock  # type: ignore[no-any-return]  # it is one


class Write(Ours):
    """Exclusive access to a shared array: a lock, and the mark of what its death would mean."""

    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Begin exclusive access."""
        return self.array.write()

    def hold_next(self) -> contextlib.AbstractContextManager[Any]:
        """Begin exclusive access, also to what was left half done."""
        return self.array.write(heal=True)


class Read(Write):
    """Shared access to a shared array; what comes next is exclusive."""

    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Begin shared access."""
        return self.array.read()


class OfMultiprocessing(Locks, Adapter):
    """`multiprocessing.Lock`, which is lost with its holder."""

    survives: ClassVar[bool] = False

    def open(self) -> None:
        """Make it."""
        self.lock: Any = multiprocessing.Lock()
        self.acquire, self.release = self.lock.acquire, self.lock.release

    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Take the lock as a context manager."""
        return self.lock  # type: ignore[no-any-return]  # it is one


class OfManager(OfMultiprocessing):
    """`Manager().Lock`: a proxy."""

    def open(self) -> None:
        """Start the manager, and make it."""
        self.manager: SyncManager = multiprocessing.Manager()
        self.lock = self.manager.Lock()
        self.acquire, self.release = self.lock.acquire, self.lock.release

    def close(self) -> None:
        """End the manager."""
        self.manager.shutdown()


class OfFile(Locks, Adapter):
    """A lock on a file."""

    def open(self) -> None:
        """Make a place for it."""
        self.place = tempfile.mkdtemp(prefix=self.tag)
        self.renew()

    def path(self) -> str:
        """Where the file is."""
        return os.path.join(self.place, "lock")

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path())
        os.rmdir(self.place)
