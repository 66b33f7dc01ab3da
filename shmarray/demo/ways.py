"""Two ways to shade one grid with the same worker processes: by pickling bands of it, and in shared memory.

Owns: what is sent to the workers in each way, and the measuring of both alike.
Must not know: where the grid comes from, how results are shown.

Fair means: the same number of fresh worker processes, warmed up before the clock starts by a small job of the same
kind; the same bands and the same mathematics; the grid made anew by each way, on the clock.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shmarray._format import names
from shmarray._os import segments
from shmarray.demo import measure, terrain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import SpawnContext
    from multiprocessing.synchronize import Event, Semaphore

    from numpy.typing import NDArray

    from shmarray.arrays import SharedArray
    from shmarray.demo.interrupts import Interrupts
    from shmarray.store import Store

_BANDS_PER_WORKER = 4  # so that a worker which is slowed down does not keep the others waiting
_SLICE = 0.1  # seconds between looks whether all is to end


class Task(NamedTuple):
    """The work: a model (rows x columns) laid `tiles` x `tiles` times side by side, its cell, and how many shade it."""

    model: NDArray[Any]
    tiles: int
    cell: terrain.Cell
    workers: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole grid."""
        rows, columns = self.model.shape
        return rows * self.tiles, columns * self.tiles

    @property
    def nbytes(self) -> int:
        """Bytes of the whole grid."""
        return self.model.nbytes * self.tiles**2

    @property
    def bands(self) -> list[tuple[int, int]]:
        """First row and the one after the last of each piece of work."""
        return terrain.bands(self.shape[0], self.workers * _BANDS_PER_WORKER)


class Cost(NamedTuple):
    """What one way took: seconds, bytes; None where the kernel does not tell.

    `made` is the time to make the grid, `shaded` to shade it. `sent` and `returned` is what the workers read and wrote
    by system calls, as the kernel counted it. `peak` is the memory of all processes together, `before` that of this one
    before the way began.
    """

    made: float
    shaded: float
    sent: int | None
    returned: int | None
    peak: int | None
    before: int | None

    @property
    def seconds(self) -> float:
        """Time in all."""
        return self.made + self.shaded

    @property
    def added(self) -> int | None:
        """Memory that this way took on top of what was in use before."""
        return None if self.peak is None or self.before is None else self.peak - self.before


class Way(ABC):
    """One way to have the work done; `shade` is its result, rows x columns of uint8."""

    shade: NDArray[np.uint8]

    def __init__(self, task: Task) -> None:
        """Note the work."""
        self.task = task

    @abstractmethod
    def prepare(self) -> list[Any]:
        """Make the grid, and room for the result; returns one job for each band."""

    @abstractmethod
    def warm_up(self) -> Any:
        """Make a small job of the same kind."""

    @staticmethod
    @abstractmethod
    def work(job: Any) -> Any:
        """Do a job; runs in a worker."""

    @abstractmethod
    def take(self, band: tuple[int, int], answer: Any) -> None:
        """Take what `work` answered for a band."""

    def helpers(self) -> list[int]:
        """Pids of other processes that this way needs."""
        return []

    def shared_files(self) -> str | None:
        """Tell what the paths of its files of shared memory begin with, if there are any."""
        return None


class Pickled(Way):
    """Bands of rows go to the workers by value, with the neighbouring rows; shaded bands come back by value."""

    def prepare(self) -> list[Any]:
        """Make the grid in this process's own memory."""
        grid = terrain.mirror_tiles(self.task.model, self.task.tiles)
        self.shade = np.empty(grid.shape, np.uint8)
        return [self._job(grid, start, stop) for start, stop in self.task.bands]

    def warm_up(self) -> Any:
        """Pickle three rows."""
        return self._job(self.task.model[:3].copy(), 0, 1)

    def _job(self, grid: NDArray[Any], start: int, stop: int) -> Any:
        above = min(1, start)
        return grid[start - above : stop + 1], self.task.cell, above, above + stop - start

    @staticmethod
    def work(job: Any) -> Any:
        """Shade the band that came."""
        return terrain.hillshade(*job)

    def take(self, band: tuple[int, int], answer: Any) -> None:
        """Put a shaded band where it belongs."""
        start, stop = band
        self.shade[start:stop] = answer


class Shared(Way):
    """Grid and result are in a store; the workers get handles and shade their bands in place."""

    grid: SharedArray
    shade: SharedArray
    files: str
    """What the paths of all files of the store begin with."""

    def __init__(self, task: Task, store: Store) -> None:
        """Note the work, and where the arrays are to be."""
        super().__init__(task)
        self._store = store
        key = names.StoreKey(os.geteuid(), int(store.id, 16))
        self.files = os.path.join(segments.SHM_DIRECTORY, key.prefix)

    def prepare(self) -> list[Any]:
        """Make the grid where everyone will see it."""
        self.grid = self._store.empty(self.task.shape, self.task.model.dtype, name="heights")
        terrain.mirror_tiles(self.task.model, self.task.tiles, out=self.grid)
        self.shade = self._store.empty(self.task.shape, np.uint8, name="shade")
        return [(self.grid, self.shade, self.task.cell, start, stop) for start, stop in self.task.bands]

    def warm_up(self) -> Any:
        """Share three rows."""
        rows = self._store.put(self.task.model[:3], name="warm-up/heights")
        return rows, self._store.empty(rows.shape, np.uint8, name="warm-up/shade"), self.task.cell, 0, 1

    @staticmethod
    def work(job: Any) -> Any:
        """Shade a band in place."""
        grid, shade, cell, start, stop = job
        terrain.hillshade(grid, cell, start, stop, out=shade[start:stop])

    def take(self, band: tuple[int, int], answer: Any) -> None:
        """Nothing comes back: the band is where it belongs."""

    def shared_files(self) -> str:
        """Give the prefix of the store's files."""
        return self.files

    def helpers(self) -> list[int]:
        """Give the pid of the store's guardian."""
        pid = self._store.guardian_pid
        return [] if pid is None else [pid]


def run(way: Way, ctrl_c: Interrupts, progress: Callable[[int, int], None]) -> Cost:
    """Do the work in one way; `progress` is told how many bands are done, and of how many.

    Raises `BrokenProcessPool` when a worker is killed, `StoreFullError` or `MemoryError` when there is no room,
    `KeyboardInterrupt` when it is to end.
    """
    gc.collect()  # what another way has left is not to be freed, and counted, during this one
    before = measure.memory([os.getpid()], way.shared_files())
    bands = way.task.bands
    with _workers(way, ctrl_c) as (pool, pids):
        progress(0, len(bands))
        at_first = measure.traffic(pids)
        with measure.PeakMemory([os.getpid(), *pids, *way.helpers()], way.shared_files()) as peak:
            began = time.perf_counter()
            jobs = way.prepare()
            made = time.perf_counter()
            calls = deque(pool.submit(way.work, job) for job in jobs)
            for done, band in enumerate(bands, 1):
                way.take(band, _result(calls.popleft(), ctrl_c))
                progress(done, len(bands))
            ended = time.perf_counter()
        at_last = measure.traffic(pids)
    moved = None if at_first is None or at_last is None else at_last.since(at_first)
    return Cost(
        made=made - began,
        shaded=ended - made,
        sent=None if moved is None else moved.read,
        returned=None if moved is None else moved.written,
        peak=peak.bytes,
        before=before,
    )


@contextmanager
def _workers(way: Way, ctrl_c: Interrupts) -> Iterator[tuple[ProcessPoolExecutor, list[int]]]:
    """Start the worker processes of a way, all of them, and warm them up; gives the pool and their pids."""
    context: SpawnContext = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    others = {child.pid for child in multiprocessing.active_children()}
    pool = ProcessPoolExecutor(
        way.task.workers,
        mp_context=context,
        initializer=_start,
        initargs=(ready, go, way.work, way.warm_up()),
    )
    try:
        with ctrl_c.kept_from_children():
            # The pool starts a process for a call when none is idle, and none is before `go`: so all are started here.
            calls = [pool.submit(os.getpid) for _ in range(way.task.workers)]
        _await(ready, calls, ctrl_c)
        pids = [child.pid for child in multiprocessing.active_children() if child.pid not in others]
        go.set()
        for call in calls:
            _result(call, ctrl_c)
        yield pool, [pid for pid in pids if pid is not None]
    finally:
        go.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _result(call: Future[Any], ctrl_c: Interrupts) -> Any:
    """Wait for the result of a call; raises `KeyboardInterrupt` meanwhile."""
    while not call.done():
        ctrl_c.check()
        wait([call], _SLICE)
    return call.result()


def _await(ready: Semaphore, calls: list[Future[int]], ctrl_c: Interrupts) -> None:
    """Wait until as many workers as there are calls are ready; raises what a call raises when one of them has died."""
    for _ in calls:
        while not ready.acquire(timeout=_SLICE):
            ctrl_c.check()
            for call in calls:
                if call.done():
                    call.result()


def _start(ready: Semaphore, go: Event, work: Callable[[Any], Any], job: Any) -> None:
    """Prepare a worker: it ends when its parent is killed, and has done one small job before the clock starts."""
    threading.Thread(target=_follow_parent, name="follow parent", daemon=True).start()
    work(job)
    ready.release()
    go.wait()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
