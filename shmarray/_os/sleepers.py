"""Who sleeps on which word of shared memory, as the kernel tells it.

Owns: reading `/proc/PID/task/TID/syscall`: whether a thread is in `futex(2)`, and in which mapped file the word lies. Nobody is stopped or
attached to for that.
Must not know: what the word means.
"""

from __future__ import annotations

import os

from shmarray._os import futexes, processes

_FIELDS = 6  # of a line of /proc/PID/maps that names a file
_TRIES = 3  # who waits in slices is awake between two of them, for a moment


def waited_for(pid: int) -> list[processes.MappedFile] | None:
    """List the files on whose words threads of a process sleep, one for each such thread; None if it may not be asked.

    A process that has ended meanwhile sleeps on nothing.
    """
    addresses = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            address = _slept_on(f"/proc/{pid}/task/{thread}/syscall")
            if address:
                addresses.append(address)
        return _files_at(pid, addresses) if addresses else []
    except (FileNotFoundError, ProcessLookupError):
        return [] if os.path.exists("/proc/self/syscall") else None
    except OSError:
        return None  # another user's, or the kernel lets only parents ask


def _slept_on(path: str) -> int:
    """Address of the word on which a thread sleeps; 0 if it does something else. Raises `OSError`."""
    for _ in range(_TRIES):
        try:
            with open(path, "rb") as file:
                fields = file.read().split()
        except (FileNotFoundError, ProcessLookupError):
            if not os.path.exists("/proc/self/syscall"):
                raise
            return 0  # this thread has ended
        # The first field is the number of the system call, or "running"; then its arguments.
        if fields[:1] == [b"%d" % futexes.NUMBER]:
            return int(fields[1], 16)
        if fields[:1] != [b"running"]:
            return 0
    return 0


def _files_at(pid: int, addresses: list[int]) -> list[processes.MappedFile]:
    """Which files a process maps at these addresses; memory without a file is left out. Raises `OSError`."""
    found = []
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) < _FIELDS or not fields[5].startswith("/"):
                continue
            first, _, end = fields[0].partition("-")
            here = sum(int(first, 16) <= address < int(end, 16) for address in addresses)
            if here:
                major, minor = fields[3].split(":")
                device = os.makedev(int(major, 16), int(minor, 16))
                path = fields[5].removesuffix(" (deleted)")
                found += [processes.MappedFile(device, int(fields[4]), path)] * here
    return found
