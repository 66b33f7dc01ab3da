"""Shapes and strides: how an array lies in its block.

Owns: which shapes can be, and how many bytes an array takes and in which order; placing several arrays in one block.
Must not know: NumPy, files.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, NamedTuple

from shmarray.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALIGN = 64
MAX_DIMENSIONS = 64
_MOST = (1 << 63) - 1
_SHOWN = 200


class Layout(NamedTuple):
    """One array in a block: `strides` is None for C order, `nbytes` is without the padding behind it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    nbytes: int
    offset: int = 0


def check_shape(shape: object) -> tuple[int, ...]:
    """Return `shape` as a tuple of Python integers; an integer stands for one dimension. Raises `ShapeError`."""
    try:
        lengths: Iterable[object] = (operator.index(shape),)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        # A set or a dict has no first length.
        if not hasattr(shape, "__iter__") or isinstance(shape, (str, bytes, Mapping, AbstractSet)):
            raise _bad(shape, f"it is of type {type(shape).__name__}") from None
        lengths = tuple(shape)
    try:
        checked = tuple(operator.index(length) for length in lengths)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise _bad(shape, "a length is not an integer") from None
    if any(length < 0 for length in checked):
        raise _bad(shape, "a length is negative")
    if len(checked) > MAX_DIMENSIONS:
        raise _bad(shape, f"it has {len(checked)} dimensions, NumPy has at most {MAX_DIMENSIONS}")
    return checked


def _bad(shape: object, reason: str) -> ShapeError:
    text = repr(shape)
    return ShapeError(
        f"no array can have the shape {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}: {reason}",
        remedy="Give a non-negative integer or a tuple of them.",
        shape=shape,
    )


def nbytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of an array; raises `ShapeError` if no address could reach all of it."""
    # As NumPy counts: an array without elements must still have lengths whose product can be expressed.
    extent = itemsize
    for length in shape:
        extent *= max(length, 1)
    if extent > _MOST:
        raise _bad(shape, f"its {extent} bytes are more than any address can reach")
    return 0 if 0 in shape else extent


def strides(shape: tuple[int, ...], itemsize: int, axes: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of a dense array whose axes lie in memory in the order `axes`, slowest first; None if that is C order."""
    if list(axes) == list(range(len(shape))):
        return None
    steps = [0] * len(shape)
    step = itemsize
    for axis in reversed(axes):
        steps[axis] = step
        step *= max(shape[axis], 1)
    return tuple(steps)


def axes_of(shape: tuple[int, ...], steps: tuple[int, ...]) -> list[int]:
    """Order of the axes of an array in memory, slowest first: what NumPy calls order "K"."""
    return sorted(range(len(shape)), key=lambda axis: (-abs(steps[axis]), axis))


def place(layouts: Iterable[Layout]) -> tuple[list[Layout], int]:
    """Put arrays one behind the other, each at a multiple of 64 bytes; returns them placed, and the bytes of all."""
    placed, offset = [], 0
    for layout in layouts:
        placed.append(layout._replace(offset=offset))
        offset = -(-(offset + layout.nbytes) // ALIGN) * ALIGN
    return placed, offset
