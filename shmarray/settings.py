"""What a user may say of a new store.

Owns: which values the arguments of `Store` may have, and what is meant where nothing is said.
Must not know: what is done with them.
"""

from __future__ import annotations

import os

import numpy as np

from shmarray._os import limits, segments

_SMALL = 32 << 10  # bytes; the environment may say otherwise
_ON_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs"})


def check_capacity(capacity: object) -> int | None:
    """Give the bound of a store's bytes; None for none. Raises `TypeError`, `ValueError`."""
    return None if capacity is None else check_bytes(capacity, "capacity", least=1)


def check_bytes(number: object, what: str, *, least: int) -> int:
    """Give a number of bytes, at least so many; `what` is the argument's name. Raises `TypeError`, `ValueError`."""
    return _whole(number, what, "bytes", least)


def check_threads(threads: object) -> int | None:
    """Give the number of threads that share a large copy; None for the number of cores. Raises `TypeError`, `ValueError`."""
    return None if threads is None else _whole(threads, "copy_threads", "threads", 1)


def _whole(number: object, what: str, unit: str, least: int) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        message = f"{what} must be a number of {unit}, not {number!r}"
        raise TypeError(message)
    if number < least:
        message = f"{what} must be a {'positive ' if least else ''}number of {unit}{'' if least else ', or 0'}, not {number!r}"
        raise ValueError(message)
    return int(number)


def check_small(small: object, place: str) -> int:
    """Give the size up to which anonymous arrays share files, in a store whose blocks are in `place`. Raises `TypeError`, `ValueError`."""
    if place != segments.SHM_DIRECTORY:
        if small is not None and check_bytes(small, "small", least=0):
            message = "small must be 0 or left out with directory=...: only arrays in shared memory share files"
            raise ValueError(message)
        return 0
    setting = os.environ.get("SHMARRAY_SMALL", "")
    default = int(setting) if setting.isdecimal() else _SMALL
    return default if small is None else check_bytes(small, "small", least=0)


def check_guard(guard: str | None) -> str | None:
    """Give the kind of locks; None for the best there is. Raises `ValueError`."""
    if guard not in (None, "robust", "multiprocessing"):
        message = f"guard must be 'robust' or 'multiprocessing', not {guard!r}"
        raise ValueError(message)
    return guard


def check_directory(directory: object) -> str:
    """Give the place of a store's blocks. Raises `TypeError`, `OSError` for what is no directory, `ValueError` for one on the network."""
    if directory is None:
        return segments.SHM_DIRECTORY
    if not isinstance(directory, (str, os.PathLike)) or not isinstance(os.fspath(directory), str):
        message = f"directory must be a path, as a str or a pathlib.Path, not {directory!r}"
        raise TypeError(message)
    place = os.path.realpath(os.fspath(directory)) if os.fspath(directory) else ""
    if not os.path.isdir(place):
        kind = NotADirectoryError if os.path.exists(place) else FileNotFoundError
        message = f"directory={os.fspath(directory)!r} is not a directory; make it first, or leave the argument out"
        raise kind(message)
    system = limits.file_system(place)
    if system in _ON_NETWORK:
        message = f"directory={os.fspath(directory)!r} is on a network file system ({system}), whose locks cannot prove a death"
        raise ValueError(message)
    return place
