"""How much memory it takes that several processes read one array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.cases.case import Case, Samples, UnableError, size_title
from benchmarks.measure import Aim, Measure
from benchmarks.peer import Peer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from benchmarks.measure import Scale

_WORKERS = 8
_PAGE = 512  # elements
_PATIENCE = 300.0
_LIMIT = "one array, nobody else reads it"
_LARGE, _SMALL = 1 << 30, 32 << 20


class Memory(Case):
    """Hand one array to workers that read all of it and keep it; then count what all processes together have more than before.

    Memory that several have is counted once, divided among them (PSS), so the interpreters cancel.
    """

    name: ClassVar[str] = "memory"
    question: ClassVar[str] = f"let {_WORKERS} workers read one array and keep it; memory of all processes together"
    rivals: ClassVar[tuple[str, ...]] = ("shmarray", "SharedMemory", "pickle over a Pipe", _LIMIT)
    aims: ClassVar[tuple[Aim, ...]] = (Aim("held", "shmarray", "size", 1.02, _LIMIT),)

    @staticmethod
    def size(scale: Scale) -> int:
        """Give the size of the array."""
        return _SMALL if scale.quick else _LARGE

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the one measure."""
        title = f"an array of {size_title(Memory.size(scale))}, and {_WORKERS} workers that have it"
        return [Measure("held", title, unit="bytes")]

    @staticmethod
    def rounds(scale: Scale) -> tuple[int, int]:
        """Do one: nothing disturbs an amount of memory, and pickling takes long."""
        del scale
        return 1, 1

    def set_up(self) -> None:
        """See whether there is enough memory for those who copy."""
        if _available() < (_WORKERS + 2) * self.size(self.scale):
            raise UnableError("there is too little memory for a copy in each worker")
        self._warm = False

    def round(self) -> Samples:
        """Do it once; not in the round that is not counted."""
        if not self._warm:
            self._warm = True
            return {}
        self.adapter.open()
        try:
            return {"held": [float(self._together())]}
        finally:
            self.adapter.close()

    def _together(self) -> int:
        adapter = self.adapter
        peers: list[Peer] = []
        try:
            for number in range(_WORKERS):
                peers.append(Peer(type(adapter), f"{adapter.tag}-{number}"))
                peers[-1].call(type(adapter).join, adapter.invitation())
                peers[-1].begin(_keep)
            before = _all(peers)
            block = adapter.resident(self.size(self.scale))
            for peer in peers:
                adapter.send(peer.pipe, block)
                if not _told(peer):
                    raise RuntimeError("a worker has read something else than what is in the array")
            after = _all(peers)
        finally:
            for peer in peers:
                peer.end()
        adapter.remove(block)
        return after - before


def _keep(adapter: Any, pipe: Connection) -> None:
    """Be a worker: tell what memory there is, take the array, read a word of each page, and tell again when all have it."""
    pipe.recv()
    pipe.send(_pss())
    block = adapter.receive(pipe)
    words = adapter.element(block)[::_PAGE]
    pipe.send(int(words.sum()) == len(words))
    pipe.recv()
    pipe.send(_pss())
    pipe.poll(
        _PATIENCE
    )  # until it is closed: whoever lets go early leaves what it shares to the others, who have not told yet
    del words
    adapter.done(block)


def _all(peers: list[Peer]) -> int:
    """Tell what memory all processes have; all are asked when all are there, for what they share is divided among them."""
    for peer in peers:
        peer.pipe.send(None)
    return _pss() + sum(_told(peer) for peer in peers)


def _told(peer: Peer) -> int:
    if not peer.pipe.poll(_PATIENCE):
        raise RuntimeError(f"a worker has said nothing for {_PATIENCE:.0f} s")
    return int(peer.pipe.recv())


def _pss() -> int:
    """Bytes of memory of this process, what it shares divided by those it shares it with."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))


def _available() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
