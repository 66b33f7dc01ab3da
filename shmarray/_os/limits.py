"""How much the machine will give.

Owns: free space of a file system, the memory limit of the control group, limits of descriptors and mappings.
Must not know: who asks for how much.
"""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

_CGROUP = "/sys/fs/cgroup"


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


def _cgroup_file(name: str) -> str | None:
    try:
        with open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
            paths = [line.rstrip("\n").split(":", 2)[2] for line in file if line.startswith("0::")]
    except OSError:
        return None
    for path in [*paths, "/"]:
        try:
            with open(os.path.join(_CGROUP, path.lstrip("/"), name), encoding="ascii") as file:
                return file.read()
        except OSError:
            continue
    return None


def memory_limit() -> int | None:
    """Bytes of memory that the control group of this process may use in all; None if unlimited or unknown."""
    text = _cgroup_file("memory.max")
    return int(text) if text is not None and text.strip().isdigit() else None


def memory_left() -> int | None:
    """Bytes that the control group may still take before the kernel kills in it; None if unlimited or unknown."""
    limit = memory_limit()
    text = _cgroup_file("memory.stat")
    if limit is None or text is None:
        return None
    used = {key: int(value) for key, _, value in (line.partition(" ") for line in text.splitlines())}
    # The page cache of ordinary files can be given back; anonymous and shared memory cannot.
    return max(0, limit - used.get("anon", 0) - used.get("shmem", 0))


def descriptors() -> tuple[int, int]:
    """How many descriptors this process may have open: soft and hard limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def mappings() -> int:
    """How many mappings one process may have (`vm.max_map_count`); 0 if unknown."""
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
