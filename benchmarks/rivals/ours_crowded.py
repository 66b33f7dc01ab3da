"""shmarray with a store that holds many arrays besides.

Must not know: anything of shmarray that is not public.
"""

from __future__ import annotations

from typing import Any, ClassVar

from benchmarks.rivals.ours import Named


class Crowded(Named):
    """A store with some named arrays in it, which this process holds."""

    count: ClassVar[int] = 10

    def fill(self, nbytes: int) -> None:
        """Make the others."""
        self._others = [self.create(nbytes) for _ in range(self.count)]

    def empty(self) -> None:
        """Delete them."""
        others = self.__dict__.pop("_others", [])
        while others:
            self.free(others.pop())

    def find(self, name: str) -> Any:
        """Look an array up by its name."""
        return self.store[name]


class Thousand(Crowded):
    """The same with a thousand."""

    count: ClassVar[int] = 1_000


class TenThousand(Crowded):
    """The same with ten thousand."""

    count: ClassVar[int] = 10_000
