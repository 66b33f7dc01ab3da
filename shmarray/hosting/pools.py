"""Pools of worker processes in a host.

Owns: making a `multiprocessing.Pool` there, tying its workers to the host, and what becomes of a pool one of whose workers died.
Must not know: who asks for one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
import weakref
from multiprocessing import pool
from typing import TYPE_CHECKING, Any

from shmarray._os import ties
from shmarray.errors import LostTaskError
from shmarray.hosting import mains

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.connection import Connection

_MOST_SAID, _MOST_SHOWN = (
    2800,
    300,
)  # bytes, characters: what is written at once into a pipe is one piece, though several write


def make(
    processes: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    maxtasksperchild: int | None = None,
) -> HostPool:
    """Start a pool. By `spawn`, for a host has threads; so the main module must be one that can be imported."""
    mains.require()
    # Checked before any worker is started: each would fail, and be replaced, for ever.
    if initializer is not None and not hasattr(initializer, "__call__"):  # noqa: B004  for mypy knows `callable` too well
        message = f"initializer must be callable, not {initializer!r}"
        raise TypeError(message)
    return HostPool(processes, initializer, tuple(initargs), maxtasksperchild)


def _enter(failures: Connection, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """Begin as a worker: if the host is killed, the kernel kills this process, whatever it does.

    Where the initializer fails, that is told: the end of this process would say no more than that it has ended.
    """
    host = multiprocessing.parent_process()
    if host is not None:
        ties.die_with_writer(host.sentinel)
    if initializer is not None:
        try:
            initializer(*initargs)
        except Exception as error:
            lines = "".join(traceback.format_exception_only(error)).splitlines()
            what = next((line for line in lines if line.strip() and not line.startswith(" ")), type(error).__name__)
            text = "".join(traceback.format_exception(error)).encode(errors="replace")
            os.set_blocking(failures.fileno(), False)  # the first one is what is read
            with contextlib.suppress(BlockingIOError):
                failures.send_bytes(what[:_MOST_SHOWN].encode(errors="replace") + b"\n" + text[-_MOST_SAID:])
            raise


class HostPool(pool.Pool):
    """A pool that breaks when one of its workers dies: whoever waits is told.

    The standard one replaces the worker and loses its task, and hangs for ever if the worker was idle: it then died with the
    lock by which idle workers wait in turn.
    """

    _cache: dict[int, Any]
    _inqueue: Any
    _outqueue: Any
    _taskqueue: Any
    _broken: LostTaskError | None = None

    def __init__(
        self,
        processes: int | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        maxtasksperchild: int | None,
    ) -> None:
        """Start the workers."""
        context = multiprocessing.get_context("spawn")
        self._failures, failures = context.Pipe(duplex=False)
        super().__init__(processes, _enter, (failures, initializer, initargs), maxtasksperchild, context)

    def _check_running(self) -> None:
        if self._broken is not None:
            raise ValueError(str(self._broken))
        super()._check_running()  # type: ignore[misc]

    def _setup_queues(self) -> None:
        # The first thing that the constructor calls; it has made an empty list for the workers.
        super()._setup_queues()  # type: ignore[misc]
        self._pool = _Workers(self)

    def break_off(self, status: int) -> None:
        """End the pool, a worker having ended with that status: all results that are waited for are errors."""
        self._state = pool.TERMINATE
        for worker in self._pool:
            worker.kill()
        for worker in self._pool:
            worker.join()
        # With no worker left, a lock that is taken was taken by one of the dead.
        for lock in (self._inqueue._rlock, self._outqueue._wlock):
            lock.acquire(block=False)
            lock.release()
        error = self._broken = _loss(status, self._failures)
        for result in list(self._cache.values()):
            _fail(result, error)
        self._taskqueue.put(None)  # the thread that hands out tasks need not wait for more
        threading.Thread(target=self.terminate, daemon=True).start()


def _loss(status: int, failures: Connection) -> LostTaskError:
    """Say why a pool has ended."""
    what, _, said = (failures.recv_bytes() if failures.poll() else b"").decode(errors="replace").partition("\n")
    if what:
        summary = f"the initializer of a pool's workers has failed: {what}"
        return LostTaskError(summary, remedy="Mend it, and make a new pool.", status=status, traceback=said.rstrip())
    return LostTaskError(
        f"a worker of a pool has ended (exit status {status}), and with it what it was doing",
        remedy="Make a new pool, and give it again what has no result.",
        status=status,
    )


def _fail(result: Any, error: Exception) -> None:
    """Make a result, or the next of several, an error; and the last."""
    if isinstance(result, pool.IMapIterator):
        result._set(result._index, (False, error))  # type: ignore[attr-defined]
        result._set_length(result._index)  # type: ignore[attr-defined]
    else:
        if isinstance(result, pool.MapResult):
            result._number_left = 1  # type: ignore[attr-defined]
        result._set(0, (False, error))


class _Workers(list[Any]):
    """The list of a pool's workers, from which one that has ended is taken out by the pool's own thread."""

    def __init__(self, owner: HostPool) -> None:
        """Belong to a pool, which may go: nothing of this keeps it."""
        super().__init__()
        self._owner = weakref.ref(owner)

    def __delitem__(self, at: Any) -> None:
        """Take a worker out; if it died, the pool ends, and so does this thread, which would start another."""
        status = self[at].exitcode
        super().__delitem__(at)
        owner = self._owner()
        if status and owner is not None and owner._state != pool.TERMINATE:
            owner.break_off(status)
            sys.exit(0)
