"""faster-fifo: a queue in shared memory, written in C++; it pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faster_fifo

from benchmarks.rivals.queues import Queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rivals.streaming import Form

_ROOM = 512  # bytes, more than a pickle has besides the array


class FasterFifo(Queue):
    """`faster_fifo.Queue`: it pickles before `put` returns, so what is put need not be an array of its own."""

    @staticmethod
    def make(form: Form) -> Any:
        """Make one with room for so many pickled arrays."""
        return faster_fifo.Queue(max_size_bytes=form.slots * (form.nbytes + _ROOM), maxsize=form.slots)

    @staticmethod
    def own(item: Any) -> Any:
        """It is pickled at once."""
        return item

    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Get an array.

        The buffer of a reader must be large enough before it reads: where two read, one that finds its own too small enlarges
        it, finds that the other was faster, and raises `Empty` however long it was to wait.
        """
        line[0].reallocate_msg_buffer(form.nbytes + _ROOM)
        return super().receiver(line, form, number)
