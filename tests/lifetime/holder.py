"""A worker process that holds, shows, changes and drops what it is told to, one command at a time."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import shmarray as sa

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext
    from types import TracebackType


def _serve(pipe: Connection[Any, Any]) -> None:
    """Answer commands until the one to end. What a command brings is kept only where it says so."""
    kept: list[Any] = []
    while True:
        command, *arguments = pipe.recv()
        if command == "end":
            return
        try:
            answer = _act(command, arguments, kept)
        except sa.ShmArrayError as error:
            answer = error
        del arguments
        pipe.send(answer)
        del answer


def _act(command: str, arguments: list[Any], kept: list[Any]) -> Any:
    match command, arguments:
        case "keep", [array]:
            kept.append(array)
            return None
        case "load", [data]:
            kept.append(pickle.loads(data))
            return None
        case "look up", [store, name]:
            kept.append(store[name])
            return None
        case "make", [store, value]:
            kept.append(store.put(value))
            return None
        case "sum", []:
            return [float(np.sum(array)) for array in kept]
        case "add", [amount]:
            for array in kept:
                np.add(array, amount, out=array)
            return None
        case "pickle", []:
            return [pickle.dumps(array) for array in kept]
        case "give", []:
            return kept.pop()
        case "unlink", []:
            return kept[-1].unlink()
        case "drop", []:
            kept.clear()
            gc.collect()
            return None
        case "die", []:
            os._exit(0)
        case _:
            raise AssertionError(command)


class Holder:
    """One such worker, as its parent sees it. A context manager: at its end the worker ends."""

    def __init__(self, context: BaseContext) -> None:
        """Start the worker."""
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

    def tell(self, command: str, *arguments: Any) -> Any:
        """Give a command and wait for its answer."""
        self.send(command, *arguments)
        return self.receive()

    def send(self, command: str, *arguments: Any) -> None:
        """Give a command and do not wait."""
        self._pipe.send((command, *arguments))

    def receive(self, timeout: float = 30) -> Any:
        """Wait for the answer to a command; an error comes back as a value."""
        assert self._pipe.poll(timeout), "the worker does not answer"
        return self._pipe.recv()

    def kill(self) -> None:
        """SIGKILL the worker and wait for its end."""
        self._process.kill()
        self._process.join()

    def die(self) -> None:
        """Let the worker end without any exit work."""
        self.send("die")
        self._process.join(30)
        assert self._process.exitcode == 0

    def __enter__(self) -> Self:
        """Use the worker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the worker to end, and reap it. Forked siblings have copies of the pipe, so closing it would tell nobody."""
        with contextlib.suppress(BrokenPipeError):
            self.send("end")
        self._pipe.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
