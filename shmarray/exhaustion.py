"""What to say when there is no more: memory, capacity, descriptors, mappings.

Owns: turning the kernel's ENOSPC, EMFILE, ENOMEM and their kin into a `StoreFullError` that names what was asked, what is
free, the limit, the biggest arrays and the remedy; and refusing beforehand what cannot succeed.
Must not know: how blocks are made.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from shmarray._format import names
from shmarray._os import limits, segments
from shmarray.errors import StoreFullError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")
_SHOWN = 5
_MOST_DIGITS = 3  # behind the point; where these do not do, all bytes are given
_STEP = 1024
_KINDS = (names.NAMED, names.ANONYMOUS, names.TEMPORARY, names.WARM, names.SLAB, names.GUARD)
_LABELS = {names.WARM: "(kept warm)", names.SLAB: "(small arrays)", names.GUARD: "(lock of a small array)"}
_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FILES = (errno.EMFILE, errno.ENFILE)


class Holding(NamedTuple):
    """One block, as a message names it; size in bytes."""

    name: str
    nbytes: int


def size_text(nbytes: int, digits: int = 1) -> str:
    """Write a number of bytes for people.

    >>> size_text(3 << 20)
    '3.0 MiB'
    """
    amount = float(nbytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if round(amount, digits) < _STEP:  # never "1024.0 KiB", which looks like another amount than "1.0 MiB"
            return f"{nbytes} bytes" if unit == "bytes" else f"{amount:.{digits}f} {unit}"
        amount /= _STEP
    return f"{amount:.{digits}f} TiB"


def distinct_texts(*sizes: int) -> list[str]:
    """Write numbers of bytes for people who compare them: with so many digits that two that differ do not look the same.

    >>> distinct_texts(64 << 20, (64 << 20) - 4096, 1 << 30)
    ['64.000 MiB', '63.996 MiB', '1.000 GiB']
    >>> distinct_texts(64 << 20, (64 << 20) - 1)
    ['67,108,864 bytes', '67,108,863 bytes']
    """
    for digits in range(1, _MOST_DIGITS + 1):
        texts = [size_text(size, digits) for size in sizes]
        if len(set(texts)) == len(set(sizes)):
            return texts
    return [f"{size:,} bytes" for size in sizes]


def holdings(directory: str, prefix: str) -> list[Holding]:
    """List all blocks whose file names begin with `prefix`, biggest first."""
    return sorted(_look(directory, prefix)[0], key=lambda holding: -holding.nbytes)


def used(directory: str, prefix: str) -> int:
    """Count the bytes of all blocks whose file names begin with `prefix`: what there is, or more, and never less.

    A block that moves from its draft's name to its own between listing and asking would be found under neither; so where
    anything has vanished meanwhile, all is counted again.
    """
    while True:
        found, vanished = _look(directory, prefix)
        if not vanished:
            return sum(holding.nbytes for holding in found)


def _look(directory: str, prefix: str) -> tuple[list[Holding], bool]:
    found, vanished = [], False
    for entry in segments.entries(directory, prefix):
        key = names.store_of(entry)
        kind = entry[len(key.prefix) :] if key else ""
        if kind.startswith(_KINDS):
            try:
                size = segments.status_of(os.path.join(directory, entry)).st_size
            except FileNotFoundError:
                vanished = True
            else:
                found.append(Holding(_label(kind), size))
    return found, vanished


def _label(kind: str) -> str:
    if kind[:2] in _LABELS:
        return _LABELS[kind[:2]]
    if not kind.startswith(names.NAMED):
        return "(anonymous)"
    try:
        return names.decode(kind[len(names.NAMED) :]) or "(long name)"
    except ValueError:
        return kind


def require(directory: str, asked: int) -> None:
    """Refuse what cannot fit, before any byte is reserved. Passing is no promise."""
    space = limits.space(directory)
    if asked > space.free or space.files <= 0:
        raise full("shared memory is full" if _is_memory(directory) else "the disk is full", directory, asked)
    if _is_memory(directory) and asked > 1 << 24:
        left = limits.memory_left()
        if left is not None and asked > left:
            raise full("the memory limit of this container or service would be exceeded", directory, asked, limit=left)


def _is_memory(directory: str) -> bool:
    return directory == segments.SHM_DIRECTORY


class explained:  # noqa: N801  used as a function
    """Turn the kernel's "no more" inside a `with` block into a `StoreFullError`; other errors pass."""

    __slots__ = ("asked", "directory")

    def __init__(self, directory: str, asked: int) -> None:
        """Know what was asked for, and where."""
        self.directory = directory
        self.asked = asked

    def __enter__(self) -> None:
        """Begin; nothing is looked at unless something fails."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Explain, if what happened was a lack of something."""
        if isinstance(error, OSError):
            explain(error, self.directory, self.asked)


def explain(error: OSError, directory: str, asked: int) -> None:
    """Raise `StoreFullError` if an error is the kernel's "no more"; for those to whom a `with` block costs too much."""
    longest = limits.file_size() if error.errno == errno.EFBIG else None
    if longest is not None:
        raise _too_long(asked, longest) from None
    if error.errno in _SPACE:
        what = "shared memory is full" if _is_memory(directory) else "the disk is full"
        raise full(what, directory, asked) from None
    if error.errno in _FILES:
        raise _no_descriptor() from None
    if error.errno == errno.ENOMEM:
        raise _no_mapping(asked) from None


def explaining(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that needs a descriptor for a moment: a lack of one is a `StoreFullError`."""

    @functools.wraps(function)
    def explained_function(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            explain(error, segments.SHM_DIRECTORY, 0)
            raise

    return explained_function


def full(
    what: str,
    directory: str,
    asked: int,
    *,
    limit: int | None = None,
    used: int | None = None,
    prefix: str | None = None,
) -> StoreFullError:
    """Describe a lack of space; with `used`, `limit` is the capacity of the store of that `prefix`, so much of it in use."""
    space = limits.space(directory)
    biggest = holdings(directory, prefix or names.user_prefix(os.geteuid()))[:_SHOWN]
    if used is not None and limit is not None:
        free, total = max(0, limit - used), limit
    else:
        free, total = (space.free if limit is None else limit), space.total
    if space.files <= 0 and used is None:
        return _no_name(directory, asked, biggest)
    listing = ", ".join(f"{holding.name} {size_text(holding.nbytes)}" for holding in biggest) or "none"
    if used is not None:
        remedy = "Delete arrays, or open the store with a larger capacity= or with none."
    elif limit is not None:
        remedy = "Delete arrays, raise the memory limit, or put the store on disk with Store(directory=...)."
    elif _is_memory(directory):
        remedy = (
            "Delete arrays, enlarge shared memory (docker run --shm-size=2g; mount -o remount,size=2g), bound the store with "
            "capacity=, or put it on disk with Store(directory=...)."
        )
    else:
        remedy = "Delete arrays or files there, or choose another directory=."
    wanted, left, whole = distinct_texts(asked, free, total)
    return StoreFullError(
        f"{what}: asked {wanted}, free {left} of {whole} in "
        f"{'the capacity of the store' if used is not None else directory}; biggest arrays: {listing}",
        remedy=remedy,
        asked=asked,
        free=free,
        limit=total,
        directory=directory,
        biggest=[tuple(holding) for holding in biggest],
    )


def _no_name(directory: str, asked: int, biggest: list[Holding]) -> StoreFullError:
    return StoreFullError(
        f"{directory} has no room for another file: all its inodes are in use",
        remedy="Delete arrays, put small ones together with store.put({...}), or enlarge it (mount -o remount,nr_inodes=...).",
        asked=asked,
        free=0,
        limit=0,
        directory=directory,
        biggest=[tuple(holding) for holding in biggest],
    )


def _no_descriptor() -> StoreFullError:
    soft, hard = limits.descriptors()
    return StoreFullError(
        f"this process has no free file descriptor (limit {soft}, hard limit {hard}); shmarray needs one for a moment",
        remedy="Close files, or raise the limit: `ulimit -n 4096`, or resource.setrlimit(resource.RLIMIT_NOFILE, ...).",
        asked=1,
        free=0,
        limit=soft,
        biggest=[],
    )


def _too_long(asked: int, longest: int) -> StoreFullError:
    return StoreFullError(
        f"this process may write no file that is longer than {size_text(longest)}; asked {size_text(asked)}",
        remedy="Make smaller arrays, or raise the limit: `ulimit -f unlimited`, or resource.setrlimit(resource.RLIMIT_FSIZE, ...).",
        asked=asked,
        free=longest,
        limit=longest,
        biggest=[],
    )


def _no_mapping(asked: int) -> StoreFullError:
    most = limits.mappings()
    return StoreFullError(
        f"the kernel refused to map {size_text(asked)}: the address space or the {most} mappings a process may have are used up",
        remedy="Drop arrays, put small ones together with store.put({...}), or raise vm.max_map_count.",
        asked=asked,
        free=0,
        limit=most,
        biggest=[],
    )
