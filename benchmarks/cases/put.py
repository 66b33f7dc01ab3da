"""How fast an array gets into shared memory."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmarks.cases.case import Case, Samples, size_title
from benchmarks.measure import Aim, Measure

if TYPE_CHECKING:
    from benchmarks.measure import Scale
    from benchmarks.rivals.interface import Array

_SMALL, _LARGE = 64 << 20, 1 << 30
_SERVERS = ("ray", "vineyard")
_OURS = ("shmarray", "shmarray, anonymous")


class Put(Case):
    """Copy an array in; freeing it again is measured with it besides.

    Each is freed before the next is put, so a contender that keeps memory of what was freed uses it again; but for the "fresh" ones.
    """

    name: ClassVar[str] = "put"
    question: ClassVar[str] = "copy an array into shared memory"
    rivals: ClassVar[tuple[str, ...]] = (
        *_OURS,
        "SharedMemory",
        "SharedMemoryManager",
        "joblib",
        "SharedArray",
        "shared-ndarray2",
        "pyarrow",
        "torch",
        "ray",
        "vineyard",
        "dask",
        "open + mmap by hand",
        "np.copyto into faulted memory",
        "np.copyto in two threads",
    )
    aims: ClassVar[tuple[Aim, ...]] = tuple(
        Aim(f"{what} {size}", ours, "rate", bound, than)
        for ours in _OURS
        for what, size, bound, than in (
            ("fresh", _SMALL, 1.8, "SharedMemory"),
            ("put", _SMALL, 7.0, "SharedMemory"),
            ("put", _SMALL, 1.0, "np.copyto into faulted memory"),
            *((what, _SMALL, 1.2, server) for what in ("fresh", "put") for server in _SERVERS),
            ("put", _LARGE, 1.0, "vineyard"),
            ("put", _LARGE, 1.6, "np.copyto into faulted memory"),
            ("put", _LARGE, 12.0, "SharedMemory"),
        )
    )

    @staticmethod
    def sizes(scale: Scale) -> tuple[int, ...]:
        """Give the sizes: the large one is not for a quick look."""
        return (_SMALL,) if scale.quick else (_SMALL, _LARGE)

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give put into fresh memory, put again and again, and put and free, in each size."""
        titles = {
            "fresh": "put into fresh memory",
            "put": "put, again and again",
            "put and free": "put and free, again and again",
        }
        return [
            Measure(f"{what} {size}", f"{title}, {size_title(size)}", size)
            for size in Put.sizes(scale)
            for what, title in titles.items()
            if what != "fresh" or size == _SMALL
        ]

    @staticmethod
    def rounds(scale: Scale) -> tuple[int, int]:
        """Do fewer where a round takes long."""
        return (scale.sessions, scale.rounds) if scale.quick else (3, 4)

    def set_up(self) -> None:
        """Open what the contender needs, and make the small source."""
        self.open()
        self._small = _source(_SMALL)

    def round(self) -> Samples:
        """Put some of each size. The large source is there only while it is needed."""
        found: Samples = {}
        for size in self.sizes(self.scale):
            source = self._small if size == _SMALL else _source(size)
            if size == _SMALL:
                found[f"fresh {size}"] = [
                    self._fresh(source) for _ in self.scale.samples(least=1 if self.scale.quick else 2)
                ]
            # What keeps memory has it from the first, and has mapped all of it from the second; a server that frees some time
            # later, and was started anew to be cold, needs some more.
            for _ in self.scale.samples(least=6) if size == _SMALL else range(2):
                self._once(source)
            pairs = [self._once(source) for _ in self.scale.samples(least=2)]
            found[f"put {size}"] = [pair[0] for pair in pairs]
            found[f"put and free {size}"] = [pair[1] for pair in pairs]
        self.adapter.settle()
        return found

    def _fresh(self, source: Array) -> float:
        self.adapter.cool()
        return self._once(source)[0]

    def _once(self, source: Array) -> tuple[float, float]:
        adapter = self.adapter
        start = perf_counter()
        block = adapter.put(source)
        put = perf_counter()
        adapter.free(block)
        del block
        return put - start, perf_counter() - start


def _source(size: int) -> Array:
    """Make a source whose every page is there and differs from the others."""
    return np.arange(size // 8, dtype=np.int64)
