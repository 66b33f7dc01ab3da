"""Measure: what a set of processes costs, as the kernel counts it.

Owns: reading `/proc` and the directory of shared memory.
Must not know: what the processes do.

Where the kernel does not tell (it may be built or locked down so), the answer is None and never a guess.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

_BLOCK = 512  # what st_blocks counts, whatever the file system's own blocks are
_PAUSE = 0.02
_SHARE = 12  # a look of t seconds is followed by at least 12 t of rest: counting pages takes time from those who work


class Traffic(NamedTuple):
    """Bytes that processes have read and written by system calls: pipes, sockets and files, but not shared memory."""

    read: int
    written: int

    def since(self, before: Traffic) -> Traffic:
        """How much it has become more."""
        return Traffic(self.read - before.read, self.written - before.written)


def memory(pids: Iterable[int], prefix: str | None = None) -> int | None:
    """Bytes of memory that processes use together, each shared page counted once (PSS); ended processes use none.

    With `prefix`, the shared memory in files whose path begins so is counted whole: what no process has mapped at this
    moment is in no process's PSS, and takes memory all the same.
    """
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                next(file)  # the range of addresses
                sizes = {words[0]: int(words[1]) * 1024 for words in map(str.split, file)}
            total += sizes["Pss:"] if prefix is None else sizes["Pss:"] - sizes["Pss_Shmem:"]
        except ProcessLookupError:  # it has ended
            continue
        except FileNotFoundError:
            if not os.path.exists("/proc/self/smaps_rollup"):
                return None
        except StopIteration:  # it is just ending, and has no memory any more
            continue
        except (OSError, KeyError):
            return None
    return total if prefix is None else total + _allocated(prefix)


def _allocated(prefix: str) -> int:
    """Bytes that files take whose path begins with `prefix`."""
    directory, start = os.path.split(prefix)
    total = 0
    for name in entries(directory, start):
        with suppress(FileNotFoundError):
            total += os.stat(os.path.join(directory, name)).st_blocks * _BLOCK
    return total


def traffic(pids: Iterable[int]) -> Traffic | None:
    """Bytes that these processes have read and written so far."""
    read = written = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/io", encoding="ascii") as file:
                counts = dict(line.split(": ") for line in file)
        except OSError:
            return None
        read += int(counts["rchar"])
        written += int(counts["wchar"])
    return Traffic(read, written)


def available() -> int | None:
    """Bytes of memory that can be used without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def entries(directory: str, prefix: str) -> list[str]:
    """List what is in `directory` under names that begin with `prefix`."""
    return sorted(name for name in os.listdir(directory) if name.startswith(prefix))


class PeakMemory:
    """In the scope of `with PeakMemory(pids, prefix) as peak`, looks again and again by `memory`.

    At the end `peak.bytes` is the most that was seen, or None where the kernel does not tell.
    """

    def __init__(self, pids: Iterable[int], prefix: str | None = None) -> None:
        """Choose the processes, and the shared memory to count whole."""
        self.bytes: int | None = 0
        self._pids = list(pids)
        self._prefix = prefix
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak memory", daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Look a last time."""
        self._end.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        pause = _PAUSE
        while not self._end.wait(pause):
            began = time.monotonic()
            self._look()
            pause = max(_PAUSE, _SHARE * (time.monotonic() - began))

    def _look(self) -> None:
        now = memory(self._pids, self._prefix)
        self.bytes = None if now is None or self.bytes is None else max(self.bytes, now)
