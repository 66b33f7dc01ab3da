"""Locks on files, by `filelock`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import filelock

from benchmarks.rivals.locking import OfFile

if TYPE_CHECKING:
    import contextlib


class FileLock(OfFile):
    """`filelock.FileLock`."""

    def renew(self) -> None:
        """Make the object of this process."""
        self.lock: Any = filelock.FileLock(self.path())
        self.acquire = lambda: self.lock.acquire(poll_interval=1e-4)
        self.release = self.lock.release

    def hold_next(self) -> contextlib.AbstractContextManager[Any]:
        """Take the lock, looking for it often."""
        return self.acquire()  # type: ignore[no-any-return]  # it is one

    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Take the lock as a context manager."""
        return self.lock  # type: ignore[no-any-return]  # it is one
