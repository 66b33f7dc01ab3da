"""Copying large arrays by several threads at once.

Owns: from which size on that is worth it, and how an array is cut into pieces. NumPy lets other threads run while it copies.
Must not know: whose memory it is, what a block is.

Fresh memory is filled from both ends: this thread writes by system call, which for each page is the cheapest there is, but one at a time
for each file; the others have the kernel put pages under their mapping, which it does beside it, and copy into them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray._os import parallel, segments

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[Any, Any]

LEAST = 16 << 20
"""Bytes from which on a copy is shared; less is done before another thread has begun."""
_LEAST_FRESH = 8 << 20
_PIECE = 512 << 10
_PIECE_FRESH = 1 << 20
_PAST_THE_CACHE = 512 << 20  # from here on each has one part: what the C library copies at once goes past the cache


def copy(target: Array, source: Array, threads: int | None) -> None:
    """Copy an array into one of the same shape and dtype; `threads` is how many may share it, None as many as there are cores."""
    number = _threads(threads, target.nbytes, LEAST)
    if number == 1:
        np.copyto(target, source, casting="no")
        return
    ours, theirs = _flat(target, source)
    length = len(ours)
    in_one_row = ours.ndim == 1 and ours.nbytes < _PAST_THE_CACHE
    step = max(1, _PIECE // ours.itemsize if in_one_row else -(-length // number))

    def each(start: int) -> bool:
        np.copyto(ours[start : start + step], theirs[start : start + step], casting="no")
        return True

    parallel.share(range(0, length, step), each, each, number)


def duplicate(array: Array, order: Any, threads: int | None) -> Array:
    """Copy into private memory, as `array.copy(order)` does."""
    if _threads(threads, array.nbytes, LEAST) == 1:
        return array.copy(order)
    # None means C to `copy`, and K to `empty_like`.
    made = np.empty_like(array, order="C" if order is None else order, subok=False)
    copy(made, array, threads)
    return made


def is_worth_sharing(nbytes: int, threads: int | None) -> bool:
    """Say whether `fill_fresh` would be quicker than one system call after the other."""
    return _threads(threads, nbytes, _LEAST_FRESH) > 1


def fill_fresh(
    segment: segments.Segment,
    offset: int,
    data: memoryview,
    write: Callable[[memoryview, int], None],
    threads: int | None,
) -> None:
    """Copy bytes to `offset` of a mapping of which nothing is there yet. `write` writes into its file; raises what that raises."""
    target, source = np.frombuffer(segment, np.uint8, len(data), offset), np.frombuffer(data, np.uint8)

    def mine(start: int) -> None:
        write(data[start : start + _PIECE_FRESH], offset + start)

    def theirs(start: int) -> bool:
        part = slice(start, start + _PIECE_FRESH)
        # Where there is not enough, whoever writes is told so, by an error; what is there can be filled without a signal that says it.
        there = segments.populate(segment, offset + start, len(source[part]))
        if there:
            np.copyto(target[part], source[part])
        return there

    parallel.share(range(0, len(data), _PIECE_FRESH), mine, theirs, _threads(threads, len(data), _LEAST_FRESH))


def _threads(asked: int | None, nbytes: int, least: int) -> int:
    if nbytes < least:
        return 1
    return parallel.cores() if asked is None else asked


def _flat(one: Array, other: Array) -> tuple[Array, Array]:
    """Bring two arrays of one shape to one in which cutting the first axis cuts them well."""
    if one.flags.c_contiguous and other.flags.c_contiguous:
        return one.reshape(-1), other.reshape(-1)
    if one.flags.f_contiguous and other.flags.f_contiguous:
        return one.T.reshape(-1), other.T.reshape(-1)
    longest = int(np.argmax(one.shape))
    return np.moveaxis(one, longest, 0), np.moveaxis(other, longest, 0)
