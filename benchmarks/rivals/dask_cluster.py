"""dask: arrays scattered to the worker of a local cluster, over sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from distributed import Client, LocalCluster

from benchmarks.rivals.interface import WORD, Adapter, HandsOff, Puts

if TYPE_CHECKING:
    from benchmarks.rivals.interface import Array


class Scattered(Adapter, HandsOff, Puts):
    """`client.scatter` and `client.submit`. A block is a future; its data are in the memory of the worker."""

    imports: ClassVar[str] = "import distributed"

    def open(self) -> None:
        """Start scheduler and worker, without a dashboard, on this machine alone."""
        self._cluster = LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50, host="127.0.0.1"
        )
        self._client = Client(self._cluster)

    def close(self) -> None:
        """End them."""
        self._client.close()
        self._cluster.close()

    def put(self, array: Array) -> Any:
        """Scatter it; without a hash of its content, which would cost more than the copy."""
        return self._client.scatter(array, hash=False)

    def free(self, block: Any) -> None:
        """Release the future; the worker forgets the data some time later."""
        block.release()

    def begin(self, nbytes: int) -> None:
        """Make the array, and let the worker import what it needs."""
        self._array: Array = np.ones(nbytes // WORD, np.int64)
        self.mark(0)
        self.trip()

    def mark(self, number: int) -> None:
        """Scatter another array, untimed: what was scattered cannot be changed."""
        self._array[0] = number
        self._block = self.put(self._array)

    def trip(self) -> int:
        """Let the worker read the first element."""
        return int(self._client.submit(_first, self._block, pure=False).result())

    def trip_and_back(self) -> int:
        """Let the worker return the array."""
        array: Array = self._client.submit(_same, self._block, pure=False).result()
        return int(array[0])

    def end(self) -> None:
        """Release the future."""
        self.free(self._block)


def _first(array: Array) -> int:
    return int(array[0])


def _same(array: Array) -> Array:
    return array
