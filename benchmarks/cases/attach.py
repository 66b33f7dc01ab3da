"""How long another process takes to reach an array of 64 MiB and read its first element."""

from __future__ import annotations

import pickle
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.cases.case import Case, Samples
from benchmarks.measure import Aim, Measure, Scale
from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.rivals.interface import Adapter

_SIZE = 64 << 20
_CONTENT = 7
_NEW, _NEW_SIZE = 20, 4 << 10
_OURS = ("shmarray", "shmarray, looked up by name")


class Attach(Case):
    """Attach and read one element, in a process that has joined the store already."""

    name: ClassVar[str] = "attach"
    question: ClassVar[str] = "reach a 64 MiB array of another process and read its first element"
    rivals: ClassVar[tuple[str, ...]] = (
        *_OURS,
        "SharedMemory",
        "SharedMemoryManager",
        "SharedArray",
        "shared-ndarray2",
        "pyarrow",
        "ray",
        "vineyard",
        "open + mmap by hand",
    )
    aims: ClassVar[tuple[Aim, ...]] = tuple(
        Aim(measure, ours, "median", bound) for ours in _OURS for measure, bound in (("first", 60e-6), ("again", 5e-6))
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the situations, from the coldest to the warmest, and the coldest once more with what comes before it."""
        del scale
        return [
            Measure("first", "the first attach of a fresh process"),
            Measure("new", "an array that is new to a process which has attached others"),
            Measure("dropped", "again, after it was dropped"),
            Measure("again", "again, while attached"),
            Measure("joining", "the first attach of a fresh process, joining included"),
        ]

    def set_up(self) -> None:
        """Make the array, and start a process that will attach it again and again."""
        self.open()
        block = self.adapter.filled(_SIZE, _CONTENT)
        self.cleanup.callback(self.adapter.free, block)
        self._handle = self.adapter.handle(block)
        self._peer = self.cleanup.enter_context(self._start())
        self._peer.call(type(self.adapter).join, self.adapter.invitation())

    def _start(self) -> Peer:
        return Peer(type(self.adapter), f"{self.adapter.tag}-peer")

    def round(self) -> Samples:
        """Attach once in each of some fresh processes, then often in the one that stays, there also what is new."""
        found: Samples = {"first": [], "joining": []}
        invitation = self.adapter.invitation()
        for _ in range(1 if self.scale.quick else 2):
            with self._start() as fresh:
                fresh.call(type(self.adapter).join, invitation)
                found["first"].append(fresh.call(_once, self._handle))
            if invitation is not None:
                with self._start() as fresh:
                    found["joining"].append(fresh.call(_join_and_attach, pickle.dumps(invitation), self._handle))
        found.update(self._peer.call(_again, self._handle, self.scale))
        blocks = [self.adapter.filled(_NEW_SIZE, _CONTENT) for _ in range(_NEW)]
        try:
            found["new"] = self._peer.call(_each, [self.adapter.handle(block) for block in blocks])
        finally:
            while blocks:
                self.adapter.free(blocks.pop())
        return found


def _once(adapter: Any, handle: Any) -> float:
    start = perf_counter()
    block = adapter.attach(handle)
    value = adapter.view(block)[0]
    took = perf_counter() - start
    adapter.drop(block)
    _check(value)
    return took


def _join_and_attach(adapter: Adapter, invitation: bytes, handle: Any) -> float:
    start = perf_counter()
    adapter.join(pickle.loads(invitation))
    joined = perf_counter() - start
    return joined + _once(adapter, handle)


def _again(adapter: Any, handle: Any, scale: Scale) -> Samples:
    dropped = [_once(adapter, handle) for _ in scale.samples(least=10)]
    kept = adapter.attach(handle)
    again = [_once(adapter, handle) for _ in scale.samples(least=10)]
    adapter.drop(kept)
    return {"dropped": dropped, "again": again}


def _each(adapter: Any, handles: list[Any]) -> list[float]:
    return [_once(adapter, handle) for handle in handles]


def _check(value: Any) -> None:
    if value != _CONTENT:
        message = f"the attached array holds {value}, not {_CONTENT}"
        raise RuntimeError(message)
