"""Interrupts: Ctrl-C that ends the work in order, without a word from the workers.

Owns: what SIGINT does while workers and a store are there.
Must not know: what is being done.

A `KeyboardInterrupt` at any instruction could come between the making of a semaphore and the note that it has to be removed.
So it is raised where we ask for it, and nowhere else.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Interrupts:
    """Within its `with` block SIGINT is only noted, and `check` raises `KeyboardInterrupt`.

    Does nothing outside the main thread, where Python delivers no signals.
    """

    def __init__(self) -> None:
        """Note whether signals can be handled here."""
        self._active = threading.current_thread() is threading.main_thread()
        self._came = False

    def __enter__(self) -> Self:
        """Take SIGINT over."""
        if self._active:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        """Give SIGINT back to whoever had it."""
        if self._active:
            # None is a handler that was not set from Python: it cannot be put back, and the default is the next best.
            signal.signal(signal.SIGINT, signal.default_int_handler if self._before is None else self._before)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._came = True

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if SIGINT has come."""
        if self._came:
            raise KeyboardInterrupt

    @contextmanager
    def kept_from_children(self) -> Iterator[None]:
        """Start processes in this scope and they never see a SIGINT; in a terminal Ctrl-C goes to all processes.

        They inherit that it is blocked. Here it is delivered at the end of the scope.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
