"""Raw data: what a user says of a file that does not say it itself.

Owns: reading `dtype`, `shape`, `offset` and `order` as NumPy reads them, and the length that follows from a file's.
Must not know: how anything is read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shmarray import contents
from shmarray._format import layouts
from shmarray._format.dtypes import check_dtype
from shmarray._format.npy import Header
from shmarray.errors import FileFormatError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from shmarray.streams import Source


class Raw(NamedTuple):
    """What a user says of a file that does not say it itself; a length in `shape` that is -1 follows from the file's."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    def first(self, count: int) -> int:
        """How many of the first `count` bytes may be looked at: no more of a stream than the array takes."""
        return count if -1 in self.shape else min(count, layouts.nbytes(self.shape, self.dtype.itemsize))

    def header(self, source: Source) -> Header:
        """Say what the header of a `.npy` file would say. Raises `FileFormatError`, `ShapeError`."""
        return Header(self.dtype, self._measured(source), self.fortran)

    def _measured(self, source: Source) -> tuple[int, ...]:
        """Lengths of the array, of which the file decides one at most."""
        left = source.left()
        if -1 not in self.shape:
            needed = layouts.nbytes(self.shape, self.dtype.itemsize)
            if left is not None and left < needed:
                raise source.too_short(needed, left)
            return self.shape
        unit = self.dtype.itemsize * math.prod(length for length in self.shape if length != -1)
        if not unit:
            raise ShapeError(
                f"{source.label}: no length follows from the file's where an element, or all but it, takes no bytes",
                remedy="Give the whole shape.",
                shape=self.shape,
            )
        if left is None:
            left = source.measure()
        if left % unit:
            raise FileFormatError(
                f"{source.label}: its {left} bytes of data are no multiple of {unit}, which is what dtype and shape make of one step",
                remedy="Check dtype, shape and offset; with the whole shape given, what follows the array is left alone.",
                path=source.label,
                found=left,
            )
        return tuple(left // unit if length == -1 else length for length in self.shape)


def told(dtype: DTypeLike | None, shape: Any, offset: int, order: str | None) -> Raw | None:
    """Check what a user says of a raw file; None if nothing is said. A sub-array dtype lengthens the shape, as everywhere."""
    letter = "C" if order is None else str(order).upper()
    if letter not in ("C", "F"):
        message = f"order must be C or F, not {order!r}"
        raise ValueError(message)
    if isinstance(offset, bool) or not isinstance(offset, (int, np.integer)):
        message = f"offset must be a number of bytes, not {offset!r}"
        raise TypeError(message)
    if offset < 0:
        message = f"offset must not be negative, and is {offset}"
        raise ValueError(message)
    if dtype is None:
        if shape is not None or offset or letter == "F":
            message = "shape, offset and order describe a raw file: give its dtype as well"
            raise TypeError(message)
        return None
    kind, inner = contents.element(np.dtype(dtype))
    check_dtype(kind)
    several = np.iterable(shape) and not isinstance(shape, (str, bytes, dict, set))
    given = [-1] if shape is None else list(shape) if several else [shape]
    open_ends = [isinstance(length, (int, np.integer)) and length == -1 for length in given]
    if sum(open_ends) > 1:
        raise ShapeError(f"{shape!r} leaves more than one length to the file", remedy="Give all but one.", shape=shape)
    checked = layouts.check_shape([0 if free else length for free, length in zip(open_ends, given, strict=True)])
    lengths = tuple(-1 if free else length for free, length in zip(open_ends, checked, strict=True))
    return Raw(kind, (*lengths, *inner), letter == "F", int(offset))
