"""How fast another process reads an array that it attaches anew each time."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.cases.case import Case, Samples
from benchmarks.measure import Aim, Measure
from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.measure import Scale

_SIZE = 64 << 20
_CONTENT = 3
_BEFORE = 110  # puts before: what keeps memory of freed arrays has used it again and again


class Get(Case):
    """Attach, sum, drop; the array is the last of many that were put and freed."""

    name: ClassVar[str] = "get"
    question: ClassVar[str] = "attach a 64 MiB array of another process, sum it and let go of it, again and again"
    rivals: ClassVar[tuple[str, ...]] = (
        "shmarray",
        "SharedMemory",
        "SharedArray",
        "pyarrow",
        "ray",
        "vineyard",
        "open + mmap by hand",
        "sum of faulted memory",
    )
    aims: ClassVar[tuple[Aim, ...]] = (
        Aim("get", "shmarray", "rate", 0.9, "sum of faulted memory"),
        Aim("get", "shmarray", "rate", 1.0, "ray"),
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the one there is."""
        del scale
        return [Measure("get", "attach, sum and let go, 64 MiB", _SIZE)]

    def set_up(self) -> None:
        """Put and free many arrays, then one that stays; start the process that reads it."""
        self.open()
        source = np.full(_SIZE // 8, _CONTENT, dtype=np.int64)
        for _ in range(2 if self.scale.quick else _BEFORE):
            block = self.adapter.put(source)
            self.adapter.free(block)
            del block
        block = self.adapter.put(source)
        self.cleanup.callback(self.adapter.free, block)
        self._handle = self.adapter.handle(block)
        self._peer = self.cleanup.enter_context(Peer(type(self.adapter), f"{self.adapter.tag}-peer"))
        self._peer.call(type(self.adapter).join, self.adapter.invitation())

    def round(self) -> Samples:
        """Read it some times."""
        return {"get": self._peer.call(_read_all, self._handle, self.scale)}


def _read_all(adapter: Any, handle: Any, scale: Scale) -> list[float]:
    return [_read(adapter, handle) for _ in scale.samples(least=5)]


def _read(adapter: Any, handle: Any) -> float:
    start = perf_counter()
    block = adapter.attach(handle)
    total = int(adapter.view(block).sum())
    adapter.drop(block)
    del block
    took = perf_counter() - start
    if total != _CONTENT * (_SIZE // 8):
        message = f"the array that was read sums up to {total}"
        raise RuntimeError(message)
    return took
