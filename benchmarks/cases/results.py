"""How fast the results of a running worker get to the process that reads them."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.cases.case import Case, Samples
from benchmarks.measure import Measure
from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.measure import Scale

_SIZE = 64 << 20
_CONTENT = 3
_in_hand: dict[str, Any] = {}
"""In the worker: the array that it puts, and what it has put last."""


class Results(Case):
    """A worker puts an array and says where it is; it is attached, looked at and let go of, and then, untimed, freed by the worker."""

    name: ClassVar[str] = "results"
    question: ClassVar[str] = (
        "have a running worker put 64 MiB, attach what it has put and let go of it, again and again"
    )
    rivals: ClassVar[tuple[str, ...]] = (
        "shmarray, anonymous",
        "SharedMemory",
        "SharedArray",
        "pyarrow",
        "vineyard",
        "open + mmap by hand",
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the one there is."""
        del scale
        return [Measure("results", "a worker's result, 64 MiB", _SIZE)]

    def set_up(self) -> None:
        """Start the worker."""
        self.open()
        self._peer = self.cleanup.enter_context(Peer(type(self.adapter), f"{self.adapter.tag}-peer"))
        self._peer.call(type(self.adapter).join, self.adapter.invitation())
        self._peer.call(_prepare)

    def round(self) -> Samples:
        """Have some results; what keeps memory has it from the second on."""
        for _ in range(3):
            self._once()
        return {"results": [self._once() for _ in self.scale.samples(least=5)]}

    def _once(self) -> float:
        adapter = self.adapter
        start = perf_counter()
        block = adapter.attach(self._peer.call(_put))
        found = int(adapter.view(block)[-1])
        adapter.drop(block)
        del block
        took = perf_counter() - start
        self._peer.call(_free)
        if found != _CONTENT:
            message = f"the array that the worker has put ends with {found}"
            raise RuntimeError(message)
        return took


def _prepare(adapter: Any) -> None:
    del adapter
    _in_hand["source"] = np.full(_SIZE // 8, _CONTENT, dtype=np.int64)


def _put(adapter: Any) -> Any:
    block = _in_hand["block"] = adapter.put(_in_hand["source"])
    return adapter.handle(block)


def _free(adapter: Any) -> None:
    adapter.free(_in_hand["block"])
    del _in_hand["block"]
