"""Whether a store that holds many arrays is slower than one that holds few."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.cases.case import Case, Samples
from benchmarks.measure import Aim, Measure
from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.measure import Scale

_SIZE = 4 << 10
_FRESH = 20
_CONTENT = 7
_FEW, *_MANY = ("10 arrays held", "1,000 arrays held", "10,000 arrays held")
_FLAT = 1.15


class Scaling(Case):
    """Create an array, attach one and look one up, in stores that hold more and more others; each is new to who attaches it."""

    name: ClassVar[str] = "scale"
    question: ClassVar[str] = "create, attach and look up an array of 4 KiB while the store holds others"
    rivals: ClassVar[tuple[str, ...]] = (_FEW, *_MANY)
    aims: ClassVar[tuple[Aim, ...]] = tuple(
        Aim(measure, many, "time", _FLAT, _FEW) for measure in ("create", "attach", "look up") for many in _MANY
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the three steps."""
        del scale
        return [
            Measure("create", "create"),
            Measure("attach", "attach in another process, by what was sent, and read"),
            Measure("look up", "attach in another process, by name, and read"),
        ]

    def set_up(self) -> None:
        """Make the others, and start the process that attaches."""
        self.open()
        self.cleanup.callback(self.adapter.empty)
        self.adapter.fill(_SIZE)
        self._peer = self.cleanup.enter_context(Peer(type(self.adapter), f"{self.adapter.tag}-peer"))
        self._peer.call(type(self.adapter).join, self.adapter.invitation())

    def round(self) -> Samples:
        """Make some new arrays; let half of them be attached, and half of them be looked up."""
        found: Samples = {"create": [], "attach": [], "look up": []}
        for _ in self.scale.samples(least=2, most=20):
            blocks = []
            try:
                for _ in range(2 * _FRESH):
                    start = perf_counter()
                    blocks.append(self.adapter.create(_SIZE))
                    found["create"].append(perf_counter() - start)
                    self.adapter.view(blocks[-1])[:] = _CONTENT
                handles = [self.adapter.handle(block) for block in blocks[:_FRESH]]
                found["attach"] += self._peer.call(_each, "attach", handles)
                found["look up"] += self._peer.call(_each, "find", [block.name for block in blocks[_FRESH:]])
            finally:
                while blocks:
                    self.adapter.free(blocks.pop())
        return found


def _each(adapter: Any, how: str, handles: list[Any]) -> list[float]:
    """Reach each, read it, let go of it."""
    reach, times = getattr(adapter, how), []
    for handle in handles:
        start = perf_counter()
        block = reach(handle)
        value = adapter.view(block)[0]
        times.append(perf_counter() - start)
        if value != _CONTENT:
            raise RuntimeError(f"an array holds {value}, not {_CONTENT}")
        adapter.drop(block)
        del block
    return times
