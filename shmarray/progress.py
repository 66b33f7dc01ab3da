"""Progress: a bar on standard error, in a terminal and nowhere else.

Owns: how it looks, when it is drawn, and that it is gone afterwards.
Must not know: what is being done.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

from shmarray import exhaustion

if TYPE_CHECKING:
    from collections.abc import Callable

_BAR = 30
_NAME = 40  # letters of a file's name
_DELAY = 0.5  # seconds
_PAUSE = 0.1  # seconds between two pictures
_one_at_a_time = threading.Lock()


class Progress:
    """A bar while something runs, if standard error is a terminal; call it with what is done and what is to do.

    Nothing is shown in the first `delay` seconds, so what is soon done shows none. `begin` is shown, after the label, until the first
    call; `spell` writes the numbers. Of several in one process, one is shown at a time.
    """

    def __init__(
        self,
        label: str,
        *,
        begin: str = "",
        delay: float = 0.0,
        spell: Callable[[int], str] = str,
        shown: bool | None = None,
    ) -> None:
        """Choose what the bar says; `shown` overrules the look at the terminal."""
        self._label = label
        self._begin = begin
        self._delay = delay
        self._spell = spell
        self._asked = shown
        self._shown = self._drawn = False
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Draw the bar, unless it was drawn a moment ago."""
        if not self._shown:
            return
        now = time.monotonic()
        if now >= self._next or (self._drawn and done == total):
            self._next = now + _PAUSE
            filled = _BAR * done // max(total, 1)
            numbers = f"{self._spell(done)}/{self._spell(total)}"
            self._write(f"{self._label} [{'#' * filled}{'.' * (_BAR - filled)}] {numbers}")

    def _write(self, text: str) -> None:
        self._drawn = True
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the terminal has gone: the work goes on
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        """Say what begins."""
        self._shown = (_may_show() if self._asked is None else self._asked) and _one_at_a_time.acquire(blocking=False)
        self._drawn = False
        self._next = time.monotonic() + self._delay
        if self._shown and self._begin:
            self._write(f"{self._label}: {self._begin}")
        return self

    def __exit__(self, *exc: object) -> None:
        """Take the bar away."""
        if self._shown:
            self._shown = False
            _one_at_a_time.release()
            if self._drawn:
                self._write("")


def for_file(verb: str, path: object, *, shown: bool | None) -> Progress:
    """Make the bar for the reading or writing of a file, which counts bytes and shows only if that takes long."""
    name = ascii(os.path.basename(path))[1:-1] if isinstance(path, str) else "a stream"
    short = name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
    return Progress(f"{verb} {short}", delay=_DELAY, spell=exhaustion.size_text, shown=shown)


def _may_show() -> bool:
    """Say whether a person would see it; worker processes have the same terminal, and would draw over each other."""
    try:
        if not sys.stderr.isatty():
            return False
    except (AttributeError, ValueError):  # there is none, it is closed, or something else stands in for it
        return False
    process = sys.modules.get("multiprocessing.process")
    return process is None or process.parent_process() is None
