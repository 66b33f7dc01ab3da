"""Which process maps which file, and whether a process or a lease is there.

Owns: one reading of `/proc/PID/maps` of all processes that may map a user's files, one look at what their threads sleep on, and the
questions put to both.
Must not know: what is in any file.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from typing import TYPE_CHECKING

from shmarray._format.header import KEEPER_MARK
from shmarray._os import flocks, processes, segments, sleepers

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNNAMED = re.compile(r"#\d+")  # what the kernel calls a file made without a name, even after it was given one


class Holders:
    """Which processes map which file, as it was when first asked."""

    def __init__(self, uid: int, *, aloof: bool = False) -> None:
        """Look at processes of that user, and at those of root. `aloof`: ask for no kernel lock, not for a moment."""
        self._uid = uid
        self.aloof = aloof
        self._read = False
        self._awaited: dict[int, set[tuple[int, int] | tuple[str, int]] | None] = {}
        self._files: dict[tuple[int, int], set[int]] = defaultdict(set)
        self._places: dict[tuple[str, int], set[int]] = defaultdict(set)

    def _look(self) -> None:
        self._read = True
        for pid in processes.pids():
            try:
                # Blocks can be opened by their user and by root alone.
                if segments.status_of(f"/proc/{pid}").st_uid not in (self._uid, 0):
                    continue
            except OSError:
                continue
            for mapped in processes.mapped_files(pid, "/"):
                directory, name = os.path.split(mapped.path)
                if _UNNAMED.fullmatch(name) or name.startswith("shmarray."):
                    self._files[mapped.device, mapped.inode].add(pid)
                    self._places[directory, mapped.inode].add(pid)

    def of(self, info: os.stat_result, directory: str) -> tuple[int, ...]:
        """Pids that map a file of that directory.

        Some file systems (btrfs, overlays) give a mapping another device number than the file: there its place must do.
        Not so for shared memory, of which every container may have its own under the same path.
        """
        if not self._read:
            self._look()
        found = self._files.get((info.st_dev, info.st_ino), set())
        if directory != segments.SHM_DIRECTORY:
            found = found | self._places.get((directory, info.st_ino), set())
        return tuple(sorted(found))

    def waiting(self, pids: Iterable[int], info: os.stat_result, directory: str) -> tuple[int, ...] | None:
        """Which of these processes have threads that sleep on a word of a file of that directory.

        None if none is seen, and one of them may not be asked.
        """
        found, unknown = [], False
        for pid in pids:
            awaited = self._awaits(pid)
            if awaited is None:
                unknown = True
            # As in `of`: where the device may be told wrongly, the place must do.
            elif (info.st_dev, info.st_ino) in awaited or (
                directory != segments.SHM_DIRECTORY and (directory, info.st_ino) in awaited
            ):
                found.append(pid)
        return None if unknown and not found else tuple(found)

    def _awaits(self, pid: int) -> set[tuple[int, int] | tuple[str, int]] | None:
        """What a process sleeps on, by device and inode and by directory and inode; None if it may not be asked."""
        if pid not in self._awaited:
            files = sleepers.waited_for(pid)
            self._awaited[pid] = (
                None
                if files is None
                else {(file.device, file.inode) for file in files}
                | {(os.path.dirname(file.path), file.inode) for file in files}
            )
        return self._awaited[pid]

    def of_unnamed(self, device: int, named: Iterable[tuple[int, int]]) -> tuple[int, ...]:
        """Pids that map a file of that device which is not among the `named`, each given as (device, inode)."""
        if not self._read:
            self._look()
        known = set(named)
        unknown = (pids for file, pids in self._files.items() if file[0] == device and file not in known)
        return tuple(sorted(set().union(*unknown)))

    def is_free(self, path: str) -> bool:
        """Whether nobody maps or keeps the file, by the kernel's word; false if it cannot be asked, or must not: doubt means alive."""
        if self.aloof:
            return False
        try:
            fd = segments.open_existing(path, write=False)
        except OSError:
            return False
        try:
            return flocks.try_exclusive(fd) and not flocks.is_marked(fd, KEEPER_MARK)
        finally:
            fd.close()


def is_alive(pid: int, start: int) -> bool:
    """Whether the process `pid` of our pid namespace that started then is there."""
    return not processes.is_provably_gone(processes.Identity(pid, start, processes.pid_namespace()))
