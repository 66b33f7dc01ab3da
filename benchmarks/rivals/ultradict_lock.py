"""The lock of `UltraDict`: a byte in shared memory that who waits looks at again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import atomics  # noqa: F401  without it an UltraDict has no such lock, and says so only later
from UltraDict import UltraDict

from benchmarks.rivals.interface import Adapter, Locks

if TYPE_CHECKING:
    import contextlib


class Ultra(Locks, Adapter):
    """`UltraDict(shared_lock=True).lock`; forked processes inherit it. It is lost with its holder."""

    imports: ClassVar[str] = "import UltraDict"
    survives: ClassVar[bool] = False

    def open(self) -> None:
        """Make the dictionary."""
        self._dict = UltraDict(name=self.fresh_name(), create=True, shared_lock=True, buffer_size=10_000)
        self.lock: Any = self._dict.lock
        self.acquire, self.release = self.lock.acquire, self.lock.release

    def close(self) -> None:
        """Remove it."""
        del self.lock, self.acquire, self.release
        self._dict.close()
        self._dict.unlink()

    def hold(self) -> contextlib.AbstractContextManager[Any]:
        """Take the lock as a context manager."""
        return self.lock  # type: ignore[no-any-return]  # it is one
