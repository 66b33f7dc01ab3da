"""What an array costs as NumPy's users use it: indexing, slicing, arithmetic."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.cases.case import Case, Samples
from benchmarks.measure import Aim, Measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Scale

_SMALL, _LARGE = 1_000, 1_000_000
_PLAIN = "a plain ndarray"
_TIMES = 200  # operations for one sample, where one is too short to time


class Use(Case):
    """Operations on one array of float64; a result is an array of NumPy's own, whatever the operands are."""

    name: ClassVar[str] = "use"
    question: ClassVar[str] = "work with an array of float64"
    rivals: ClassVar[tuple[str, ...]] = ("shmarray", _PLAIN)
    aims: ClassVar[tuple[Aim, ...]] = (
        *(Aim(measure, "shmarray", "time", 1.3, _PLAIN) for measure in ("item", "slice", "add", "sum")),
        Aim("large", "shmarray", "time", 1.1, _PLAIN),
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the operations."""
        del scale
        return [
            Measure("item", "one element of 1,000: a[7]"),
            Measure("slice", "a view of 1,000 elements: a[10:20]"),
            Measure("add", "a + 1 of 1,000 elements"),
            Measure("sum", "a.sum() of 1,000 elements"),
            Measure("large", "np.multiply(a, 2, out=b) of 1,000,000 elements"),
        ]

    def set_up(self) -> None:
        """Make the arrays."""
        self.open()
        small = self.adapter.put(np.arange(_SMALL, dtype=np.float64))
        large, out = self.adapter.put(np.ones(_LARGE)), np.ones(_LARGE)
        self.cleanup.callback(self.adapter.free, small)
        self.cleanup.callback(self.adapter.free, large)
        self._operations: dict[str, tuple[Callable[[], Any], int]] = {
            "item": (lambda: small[7], _TIMES),
            "slice": (lambda: small[10:20], _TIMES),
            "add": (lambda: small + 1, _TIMES),
            "sum": (small.sum, _TIMES),
            "large": (lambda: np.multiply(large, 2, out=out), 1),
        }

    def round(self) -> Samples:
        """Take some of each."""
        return {
            name: [_timed(operation, times) for _ in self.scale.samples(least=10)]
            for name, (operation, times) in self._operations.items()
        }


def _timed(operation: Callable[[], Any], times: int) -> float:
    start = perf_counter()
    for _ in range(times):
        operation()
    return (perf_counter() - start) / times
