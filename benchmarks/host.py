"""What was measured on: machine, kernel, versions.

Owns: the record that stands in a result beside its numbers. It holds nothing that tells whose machine it is.
Must not know: what is measured.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/"
_GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


def _first_line(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return None


def _table(path: str) -> dict[str, str]:
    """Read the first of each "key: value" that a file of `/proc` has."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
    return found


def host() -> dict[str, Any]:
    """Describe the machine; memory in bytes, load as `os.getloadavg` has it."""
    memory = _table("/proc/meminfo").get("MemTotal", "0 kB").split()[0]
    shm = os.statvfs("/dev/shm")  # noqa: S108  what is measured lies there
    return {
        "cpu": _table("/proc/cpuinfo").get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "memory": int(memory) << 10,
        "shared_memory": shm.f_blocks * shm.f_frsize,
        "huge_pages": {name: _first_line(_HUGE_PAGES + name) for name in ("enabled", "shmem_enabled")},
        "governor": _first_line(_GOVERNOR),
        "load": round(os.getloadavg()[0], 2),
    }


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Tell the versions of Python and of these distributions; None for what is not installed."""
    found: dict[str, str | None] = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def revision() -> str | None:
    """Tell which commit is measured, with `-dirty` if there are changes; None outside a repository."""
    try:
        command = ["git", "-C", _ROOT, "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
