"""Interrupts: Ctrl-C that ends the work once, in order, and without a word from the workers.

Owns: what SIGINT does while the demo runs.
Must not know: what is being done.
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
    """Within its `with` block the first SIGINT raises `KeyboardInterrupt` and later ones do nothing.

    So the clean-up that the first one starts comes to its end. Does nothing outside the main thread, where Python
    delivers no signals.
    """

    def __init__(self) -> None:
        """Note whether signals can be handled here."""
        self._active = threading.current_thread() is threading.main_thread()
        self._held = False
        self._came = False

    def __enter__(self) -> Self:
        """Take SIGINT over."""
        if self._active:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        """Give SIGINT back to whoever had it."""
        if self._active:
            # None is a handler that was not set from Python: it cannot be put back, and the default is the next best.
            signal.signal(signal.SIGINT, signal.default_int_handler if self._before is None else self._before)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self._held:
            self._came = True
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put a SIGINT off until the end of this scope, and start processes here: they never see one.

        A process inherits the signals that are blocked where it is started; in a terminal Ctrl-C goes to all processes.
        """
        if not self._active:
            yield
            return
        self._held = True
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            self._held = False
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self._came:
            self._handle(signal.SIGINT, None)
