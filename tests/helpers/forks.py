"""Forks of the test process, which are thousands: most of what one costs is a table with an entry for each page of its memory.

Owns: putting that memory into large pages, which have five hundred times fewer entries.
Must not know: what is in it.
"""

from __future__ import annotations

import ctypes

_LARGE = 1 << 21
_MADV_COLLAPSE = 25  # Linux 6.1; needs no setting of the machine


def make_cheap() -> int:
    """Put the private memory of this process, as it is now, into large pages; returns how many. None where the kernel has none."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        ranges = [fields[0] for line in file if _is_ours(fields := line.split())]
    done = 0
    for part in ranges:
        first, end = (int(address, 16) for address in part.split("-"))
        for start in range(-(-first // _LARGE) * _LARGE, end - _LARGE + 1, _LARGE):
            done += not madvise(start, _LARGE, _MADV_COLLAPSE)
    return done


def _is_ours(fields: list[str]) -> bool:
    """Whether a line of the map is of memory that Python or the C library took: of no file, and no stack."""
    return fields[1] == "rw-p" and fields[4] == "0" and (len(fields) == 5 or fields[5] == "[heap]")
