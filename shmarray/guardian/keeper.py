"""The guardian's part in a host: it starts one when asked, and ends it with the store.

Owns: the one host process of a store, from its start to its being reaped.
Must not know: what runs in a host. It is user code, which may crash, hang, or print: none of that reaches the guardian's watch.

All waiting is done in threads beside the watch. A host is tied to its guardian by its standard input (`_os.ties`), which only
the guardian can write to: if the guardian dies, the kernel kills the host.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import threading
from typing import Any

_SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "hosting", "__main__.py")
GRACE = 2.0
"""Seconds a host has for ending in order: exit handlers, workers of its pools."""


class Keeper:
    """Starts and ends the host of one store."""

    def __init__(self, key: str) -> None:
        """Keep no host yet; `key` opens the host's door, as it does the guardian's."""
        self._key = key
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: dict[str, Any] = {}
        self._network: dict[str, Any] = {}
        self._ended = threading.Event()
        self._finish: threading.Thread | None = None

    def host(self, preparation: dict[str, Any]) -> tuple[bool, Any]:
        """Start the host unless it runs: (True, where it is), or (False, why there is none). Waits until it serves."""
        with self._starting:
            if self._ended.is_set():
                return False, "the store has ended"
            if self._runs(preparation.get("lost")):
                return True, self._answer
            # A door to the network is opened by the first host; those after it, whoever asks for them, open it again.
            if preparation.get("network"):
                self._network = {"network": preparation["network"], "served": preparation["served"]}
            return self._start({**preparation, **self._network, "key": self._key})

    def _runs(self, lost: str | None) -> bool:
        """Say whether there is a host. One that a client has just lost is given time to finish dying."""
        process = self._process
        if process is not None and lost is not None and self._answer.get("address") == lost:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        return process is not None and process.poll() is None

    def _start(self, preparation: dict[str, Any]) -> tuple[bool, Any]:
        try:
            process = subprocess.Popen(  # noqa: S603  the interpreter of a process that knows the store's key
                [preparation["executable"], *preparation["flags"], "-P", _SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            return False, str(error)
        # First it is known, then the end is looked for: `end` does it the other way round, so one of the two sees the other.
        self._process = process
        if self._ended.is_set():
            process.kill()
        threading.Thread(target=process.wait, daemon=True).start()  # no zombie, whenever it dies
        if process.stdin is None or process.stdout is None:
            return False, "it has no pipes"
        try:
            process.stdin.write(pickle.dumps(preparation))
            process.stdin.flush()  # and it stays open: its end is the host's end
            good, found = pickle.load(process.stdout)  # noqa: S301  from a process of our own
        except (OSError, EOFError, pickle.UnpicklingError):
            good, found = False, "the store has ended" if self._ended.is_set() else "it ended while it started"
        finally:
            process.stdout.close()
        if not good:
            process.kill()
            process.wait()
            return False, found
        self._answer = found
        if self._network:  # where port 0 was asked for, the next host takes the port that this one was given
            self._network["network"] = (self._answer["network"], *self._network["network"][1:])
        return True, self._answer

    def end(self) -> None:
        """Have the host end, and start no other; returns at once."""
        if not self._ended.is_set():
            self._ended.set()
            self._finish = threading.Thread(target=self._end, daemon=True)
            self._finish.start()

    def _end(self) -> None:
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def join(self) -> None:
        """Wait until the host, which was told to end, has ended."""
        if self._finish is not None:
            self._finish.join()
