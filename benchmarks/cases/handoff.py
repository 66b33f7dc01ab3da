"""How long it takes to hand an array of 64 MiB to a worker that is running, and to have its answer."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

from benchmarks.cases.case import Case, Samples
from benchmarks.measure import Aim, Measure

if TYPE_CHECKING:
    from benchmarks.measure import Scale

_SIZE = 64 << 20
_LIMIT = "200 bytes over the same Pipe"


class HandOff(Case):
    """Hand an array off; the worker answers with its first element, or sends the array back."""

    name: ClassVar[str] = "handoff"
    question: ClassVar[str] = "hand a 64 MiB array to a running worker, which reads its first element"
    rivals: ClassVar[tuple[str, ...]] = (
        "shmarray",
        "shmarray, anonymous",
        "shmarray, attached each time",
        "SharedMemory",
        "SharedMemory, mapping kept",
        "pickle over a Pipe",
        "joblib",
        "SharedArray",
        "shared-ndarray2",
        "pyarrow",
        "torch",
        "ray",
        "vineyard",
        "dask",
        _LIMIT,
        "200 bytes by send_bytes",
    )
    aims: ClassVar[tuple[Aim, ...]] = tuple(
        Aim(measure, ours, "time", 1.5, _LIMIT)
        for ours in ("shmarray", "shmarray, anonymous")
        for measure in ("answered", "sent back")
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the two ways a worker replies."""
        del scale
        return [Measure("answered", "and answers with it"), Measure("sent back", "and sends the array back")]

    def set_up(self) -> None:
        """Start the worker, make the array."""
        self._number = 0
        self.open()
        self.adapter.begin(_SIZE)
        self.cleanup.callback(self.adapter.end)

    def round(self) -> Samples:
        """Make some trips of each kind."""
        return {
            "answered": [self._trip(odd=0) for _ in self.scale.samples()],
            "sent back": [self._trip(odd=1) for _ in self.scale.samples()],
        }

    def _trip(self, *, odd: int) -> float:
        """Make one trip. The worker answers an even number, and sends the array back on an odd one."""
        self._number += 2
        adapter, number = self.adapter, self._number + odd
        adapter.mark(number)
        trip = adapter.trip_and_back if odd else adapter.trip
        start = perf_counter()
        answer = trip()
        took = perf_counter() - start
        if answer != number:
            message = f"the worker read {answer}, and {number} was in the array"
            raise RuntimeError(message)
        return took
