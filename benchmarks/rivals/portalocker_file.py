"""Locks on files, by `portalocker`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import portalocker

from benchmarks.rivals.locking import OfFile

if TYPE_CHECKING:
    import contextlib


class PortaLocker(OfFile):
    """`portalocker.Lock`."""

    def renew(self) -> None:
        """Make the object of this process."""
        self.lock: Any = portalocker.Lock(self.path(), mode="a", timeout=60, check_interval=1e-4)
        self.acquire, self.release = self.lock.acquire, self.lock.release

    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Take the lock as a context manager."""
        return self.lock  # type: ignore[no-any-return]  # it is one
