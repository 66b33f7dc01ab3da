"""faster-fifo: a queue in shared memory, written in C++; it pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faster_fifo

from benchmarks.rivals.queues import Queue

if TYPE_CHECKING:
    from benchmarks.rivals.streaming import Form

_ROOM = 512  # bytes, more than a pickle has besides the array


class FasterFifo(Queue):
    """`faster_fifo.Queue`: it pickles before `put` returns, so what is put need not be an array of its own."""

    @staticmethod
    def make(form: Form) -> Any:
        """Make one with room for so many pickled arrays, and the buffer that a reader of large ones needs."""
        return faster_fifo.Queue(max_size_bytes=form.slots * (form.nbytes + _ROOM), maxsize=form.slots)

    @staticmethod
    def own(item: Any) -> Any:
        """It is pickled at once."""
        return item
