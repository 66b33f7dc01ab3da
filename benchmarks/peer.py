"""A second process beside a contender, with an adapter of its own.

Owns: starting it fresh (by spawn), calling functions in it over one pipe, giving that pipe to a function for as long as it
wants it, ending it.
Must not know: which functions, which adapter.
"""

from __future__ import annotations

import multiprocessing
import traceback
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

_PATIENCE = 60.0


class PeerError(RuntimeError):
    """What was called in the peer raised, or the peer has ended; the message has its traceback."""


class Peer:
    """A running process that does what it is told. A context manager: leaving it ends the process."""

    def __init__(self, make: Callable[[str], Any], tag: str) -> None:
        """Start a fresh interpreter that makes an adapter of its own by `make(tag)`."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, tag, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.answer()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function(adapter, *args)` there and return its result. Raises `PeerError`."""
        self.ask(function, *args)
        return self.answer()

    def ask(self, function: Callable[..., Any], *args: Any) -> None:
        """Call `function(adapter, *args)` there, and wait for nothing: `answer` does."""
        self.pipe.send((function, args))

    def begin(self, function: Callable[[Any, Connection], None]) -> None:
        """Let `function(adapter, pipe)` run there; until it returns, which `end` brings about, `pipe` is between it and the caller."""
        self.pipe.send((function, None))

    def answer(self) -> Any:
        """Wait for what was asked for last, and return its result. Raises `PeerError`."""
        if not self.pipe.poll(_PATIENCE):
            message = f"the peer has not answered for {_PATIENCE:.0f} s"
            raise PeerError(message)
        try:
            succeeded, result = self.pipe.recv()
        except EOFError:
            message = "the peer has ended"
            raise PeerError(message) from None
        if not succeeded:
            raise PeerError(result)
        return result

    def end(self) -> None:
        """Close the pipe, which ends the process, and wait for that."""
        self.pipe.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def __enter__(self) -> Self:
        """Nothing more to do: it runs already."""
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        """End the process; when something failed it may wait for what never comes, so it is killed."""
        if kind is not None:
            self._process.kill()
        self.end()


def _serve(make: Callable[[str], Any], tag: str, pipe: Connection) -> None:
    """Do what comes over the pipe until it is closed."""
    adapter = make(tag)
    pipe.send((True, None))
    while True:
        try:
            function, args = pipe.recv()
        except (EOFError, ConnectionResetError):  # or it was closed before all that was said had been read
            break
        if args is None:
            function(adapter, pipe)
            break
        try:
            answer = (True, function(adapter, *args))
        except Exception:  # noqa: BLE001  whatever it is, the caller raises it
            answer = (False, traceback.format_exc())
        pipe.send(answer)
    adapter.leave()
