"""Many small arrays at once: 10,000 of 4 KiB, all held, all attached by another process."""

from __future__ import annotations

import errno
import os
import resource
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.cases.case import Case, Samples, UnableError
from benchmarks.measure import Aim, Measure
from benchmarks.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Scale

_SIZE = 4 << 10


class Many(Case):
    """Create all, attach and read all in another process, free all; the times are for each."""

    name: ClassVar[str] = "many"
    question: ClassVar[str] = "hold many arrays of 4 KiB at once (10,000; 500 in a quick run); time for each"
    rivals: ClassVar[tuple[str, ...]] = (
        *("shmarray", "shmarray, anonymous"),
        *("SharedMemory", "SharedMemoryManager", "SharedArray", "open + mmap by hand"),
    )
    aims: ClassVar[tuple[Aim, ...]] = tuple(
        Aim(step, "shmarray, anonymous", "median", bound)
        for step, bound in (("create", 8e-6), ("attach", 4e-6), ("free", 3e-6))
    )

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the three steps."""
        del scale
        return [
            Measure("create", "create"),
            Measure("attach", "attach in another process, and read"),
            Measure("free", "free"),
        ]

    @staticmethod
    def rounds(scale: Scale) -> tuple[int, int]:
        """Do few: a round is long, and has thousands of samples."""
        return (1, 2) if scale.quick else (2, 3)

    def set_up(self) -> None:
        """Start the other process. Both may open as many files as the machine allows, for some rivals need two for each array."""
        self._count = 500 if self.scale.quick else 10_000
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.open()
        self._peer = self.cleanup.enter_context(Peer(type(self.adapter), f"{self.adapter.tag}-peer"))
        self._peer.call(type(self.adapter).join, self.adapter.invitation())

    def round(self) -> Samples:
        """Create, attach, free."""
        before = _descriptors()
        blocks: list[Any] = []
        try:
            created = self._create(blocks)
            self.facts["descriptors"] = _descriptors() - before
            handles = [self.adapter.handle(block) for block in blocks]
            attached = self._peer.call(_attach_all, handles)
        finally:
            freed = [self._free(blocks) for _ in range(len(blocks))]
            self.adapter.settle()
        return {"create": created, "attach": attached, "free": freed}

    def _create(self, blocks: list[Any]) -> list[float]:
        create = self.adapter.create
        try:
            return [_timed(lambda: blocks.append(create(_SIZE))) for _ in range(self._count)]
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            message = f"{os.strerror(error.errno)} after {len(blocks):,} arrays"
            raise UnableError(message) from error

    def _free(self, blocks: list[Any]) -> float:
        start = perf_counter()
        self.adapter.free(blocks[-1])
        blocks.pop()
        return perf_counter() - start


def _timed(action: Callable[[], None]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _attach_all(adapter: Any, handles: list[Any]) -> list[float]:
    """Attach all, read one element of each, then drop all."""
    blocks = []
    times = []
    for handle in handles:
        start = perf_counter()
        block = adapter.attach(handle)
        adapter.view(block)[0]
        times.append(perf_counter() - start)
        blocks.append(block)
    while blocks:
        adapter.drop(blocks.pop())
    return times


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
