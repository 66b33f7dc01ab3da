"""How long an array takes that nobody keeps: create, touch one byte, free."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

from benchmarks.cases.case import Case, Samples, size_title
from benchmarks.measure import Aim, Measure

if TYPE_CHECKING:
    from benchmarks.measure import Scale

_SIZES = (4 << 10, 1 << 20, 64 << 20)


class Lifecycle(Case):
    """Create, touch, free."""

    name: ClassVar[str] = "lifecycle"
    question: ClassVar[str] = "create an array, touch one byte, free it"
    rivals: ClassVar[tuple[str, ...]] = (
        "shmarray",
        "shmarray, anonymous",
        "SharedMemory",
        "SharedMemoryManager",
        "SharedArray",
        "shared-ndarray2",
        "torch",
        "open + mmap by hand",
    )
    aims: ClassVar[tuple[Aim, ...]] = tuple(
        Aim(str(size), "shmarray, anonymous", "time", bound, than)
        for size in _SIZES
        for than, bound in (("SharedMemory", 1 / 8), ("SharedMemoryManager", 1 / 100))
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give three sizes."""
        del scale
        return [Measure(str(size), size_title(size)) for size in _SIZES]

    def set_up(self) -> None:
        """Open what the contender needs."""
        self.open()

    def round(self) -> Samples:
        """Take some of each size."""
        found: Samples = {str(size): [self._once(size) for _ in self.scale.samples()] for size in _SIZES}
        self.adapter.settle()
        return found

    def _once(self, size: int) -> float:
        adapter = self.adapter
        start = perf_counter()
        block = adapter.create(size)
        adapter.view(block)[0] = 1
        adapter.free(block)
        del block
        return perf_counter() - start
