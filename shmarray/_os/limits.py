"""How much the machine will give.

Owns: free space of a file system, the memory limit of the control group, limits of descriptors and mappings.
Must not know: who asks for how much.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUP = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 60  # version 1 says "unlimited" with a number near the largest


class Space(NamedTuple):
    """Bytes of a file system: all of it, and what this user may still take; `files` are names still free."""

    total: int
    free: int
    files: int


def space(directory: str) -> Space:
    """Size and free space of the file system that holds `directory`."""
    info = os.statvfs(directory)
    # A file system without a limit on names reports none at all.
    files = info.f_favail if info.f_files else 1 << 62
    return Space(info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize, files)


def file_system(directory: str) -> str:
    """Type of the file system that holds `directory` ("tmpfs", "ext4", ...); empty if unknown."""
    real = os.path.realpath(directory)
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                point = left.split()[4].encode().decode("unicode_escape")
                inside = point in ("/", real) or real.startswith(point + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, right.split()[0]
    except OSError:
        return ""
    return kind


class _Group(NamedTuple):
    """One control group that this process is in: what it may use, and what of it cannot be given back."""

    limit: int
    used: int


def _groups() -> Iterator[_Group]:
    """Go through the control groups that bound this process, from the innermost outwards, of either version."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    for _, controllers, path in lines:
        if not controllers:
            yield from _chain(_CGROUP, path, "memory.max", ("anon", "shmem"))
        elif "memory" in controllers.split(","):
            yield from _chain(f"{_CGROUP}/memory", path, "memory.limit_in_bytes", ("total_rss", "total_shmem"))


def _chain(mount: str, path: str, limit_file: str, kept: tuple[str, str]) -> Iterator[_Group]:
    # In a container the mount shows the container's own group at its root, whatever path the kernel tells.
    steps = [step for step in path.split("/") if step]
    for depth in range(len(steps), -1, -1):
        folder = os.path.join(mount, *steps[:depth])
        try:
            with open(os.path.join(folder, limit_file), encoding="ascii") as file:
                limit = file.read().strip()
            with open(os.path.join(folder, "memory.stat"), encoding="ascii") as file:
                stat = {key: int(value) for key, _, value in (line.partition(" ") for line in file)}
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < _NO_LIMIT:
            # The page cache of ordinary files can be given back; anonymous and shared memory cannot.
            yield _Group(int(limit), sum(stat.get(key, 0) for key in kept))


def memory_limit() -> int | None:
    """Bytes of memory that the control groups of this process may use in all; None if unlimited or unknown."""
    return min((group.limit for group in _groups()), default=None)


def memory_left() -> int | None:
    """Bytes that the control groups may still take before the kernel kills in them; None if unlimited or unknown."""
    return min((max(0, group.limit - group.used) for group in _groups()), default=None)


def descriptors() -> tuple[int, int]:
    """How many descriptors this process may have open: soft and hard limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def file_size() -> int | None:
    """How long a file may be that this process writes; None if as long as it likes."""
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def mappings() -> int:
    """How many mappings one process may have (`vm.max_map_count`); 0 if unknown."""
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
