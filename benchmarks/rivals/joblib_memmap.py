"""joblib: arrays dumped into a file in shared memory, mapped by `numpy.memmap`, handed to workers of loky."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

import joblib
import numpy as np
from joblib.externals.loky import get_reusable_executor

from benchmarks.rivals.interface import WORD, Adapter, HandsOff, Puts

if TYPE_CHECKING:
    from benchmarks.rivals.interface import Array


class Joblib(Adapter, HandsOff, Puts):
    """`joblib.dump`, `joblib.load(mmap_mode=...)`, `joblib.Parallel`."""

    imports: ClassVar[str] = "import joblib"

    def put(self, array: Array) -> Any:
        """Dump into shared memory, and map."""
        path = f"/dev/shm/{self.fresh_name()}"  # noqa: S108  where joblib keeps its own
        joblib.dump(array, path)
        return path, joblib.load(path, mmap_mode="r+")

    def free(self, block: Any) -> None:
        """Remove the file; the last reference unmaps."""
        os.unlink(block[0])

    def begin(self, nbytes: int) -> None:
        """Start its workers, and map the array: what is a memmap already is not copied again."""
        self._path, self._array = self.put(np.ones(nbytes // WORD, np.int64))
        self._parallel = joblib.Parallel(n_jobs=2)
        self._parallel.__enter__()
        self.trip()

    def mark(self, number: int) -> None:
        """Write the number."""
        self._array[0] = number

    def trip(self) -> int:
        """Let a worker read the first element."""
        (number,) = self._parallel([joblib.delayed(_first)(self._array)])
        return int(number)

    def trip_and_back(self) -> int:
        """Let a worker return the array."""
        (array,) = self._parallel([joblib.delayed(_same)(self._array)])
        return int(array[0])

    def end(self) -> None:
        """End the workers, remove the file."""
        self._parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True)
        os.unlink(self._path)


def _first(array: Array) -> int:
    return int(array[0])


def _same(array: Array) -> Array:
    return array
