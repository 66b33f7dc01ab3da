"""The user's main module in a host: imported when something of it is asked for, and not before.

Owns: what stands in its place until then; that it is imported in the main thread, as `spawn` does it.
Must not know: who asks.

So a program without `if __name__ == "__main__"` can use a host as long as it puts nothing of its main module there.
"""

from __future__ import annotations

import importlib.machinery
import queue
import sys
import threading
import types
from concurrent.futures import Future
from multiprocessing import process, spawn
from typing import Any

from shmarray.errors import HostError

_NAMES = ("__main__", "__mp_main__")


class MainModule(types.ModuleType):
    """Stands for the main module of the process that asked for the host."""

    def __init__(self, preparation: dict[str, Any]) -> None:
        """Take from the preparation how `multiprocessing.spawn` would import it."""
        super().__init__("__mp_main__")
        self._how: dict[str, Any] = {
            key: preparation[key] for key in ("init_main_from_name", "init_main_from_path") if key in preparation
        }
        self._jobs: queue.SimpleQueue[Future[types.ModuleType]] = queue.SimpleQueue()
        self._real: types.ModuleType | None = None
        self._error: HostError | None = None
        self._before = sys.modules["__main__"]
        # For the processes that are started here before it is imported: they are told to import the same.
        if "init_main_from_name" in self._how:
            self.__spec__ = importlib.machinery.ModuleSpec(self._how["init_main_from_name"], None)
        elif "init_main_from_path" in self._how:
            self.__file__ = self._how["init_main_from_path"]
        self._stand_in()

    def _stand_in(self) -> None:
        for name in _NAMES:
            sys.modules[name] = self

    def __getattr__(self, name: str) -> Any:
        """Import the main module, for this is asked for by a pickle that names something of it."""
        if name.startswith("__"):
            raise AttributeError(name)
        real = self.load()
        if real is self._before:
            # No AttributeError: pickle would replace its text by one without a remedy.
            raise HostError(
                f"the host finds no {name!r} in the main module of the program that asked for it, which cannot be imported from a file",
                remedy="Put what is used in a host into a module of its own.",
            )
        return getattr(real, name)

    def load(self) -> types.ModuleType:
        """Import it once; in the main thread, whoever asks. Raises `HostError` if it cannot be imported."""
        if self._real is None and self._error is None:
            if threading.current_thread() is threading.main_thread():
                self._import()
            else:
                job: Future[types.ModuleType] = Future()
                self._jobs.put(job)
                job.result()
        if self._error is not None:
            raise self._error
        return self._before if self._real is None else self._real

    def run(self) -> None:
        """Import it when it is asked for; the main thread's work for as long as the host lives."""
        while True:
            job = self._jobs.get()
            if self._real is None and self._error is None:
                self._import()
            job.set_result(self)

    def _import(self) -> None:
        for name in _NAMES:
            sys.modules[name] = self._before
        current = process.current_process()
        # What makes a program without a guard fail here, with the remedy, instead of opening stores without end.
        current._inheriting = True  # type: ignore[attr-defined]
        try:
            spawn.prepare(self._how)
            self._real = sys.modules["__main__"]
            if self._real is self._before:
                self._stand_in()
        except (Exception, SystemExit) as error:  # whatever the user's module raises
            if isinstance(error, SystemExit) and error.args == (STOP,):
                raise
            self._error = HostError(
                f"the host could not import the main module {next(iter(self._how.values()), '')}: {type(error).__name__}: {error}",
                remedy='Guard what the program does by `if __name__ == "__main__":`, as for the start method spawn, or put '
                "what is used in a host into a module of its own.",
            )
            self._stand_in()
        finally:
            del current._inheriting  # type: ignore[attr-defined]


STOP = "the store has ended"
"""The argument of the `SystemExit` by which a host is ended: no module's own, which ends nothing."""


def require() -> None:
    """Import the main module now: before processes are started that would import it each. Raises `HostError`."""
    standing = sys.modules["__main__"]
    if isinstance(standing, MainModule):
        standing.load()
