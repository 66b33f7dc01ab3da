"""The headers of NumPy's own files.

Owns: how a `.npy` or `.npz` file is told, what the header of a `.npy` file says, and writing one; what is raised for bytes
that are not what they claim to be. The format itself is NumPy's: `numpy.lib.format`.
Must not know: where the bytes come from, what becomes of the data behind the header.

Loaded when first needed: few programs load or save, and `zipfile` is slow to import.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np  # noqa: TC002  examples need it
from numpy.lib import format as numpys

from shmarray._format import layouts
from shmarray.errors import DTypeError, ShapeError

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it

    class LZMAError(Exception):  # type: ignore[no-redef]
        """Never raised."""


if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"\x93NUMPY"
"""What a `.npy` file begins with."""
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
"""What a `.npz` file begins with: one with members, and one without."""
# What NumPy's readers and the modules below them raise for bytes that are not what they claim to be.
DAMAGE = (
    *(ValueError, TypeError, EOFError, KeyError, IndexError, OverflowError, RuntimeError, SyntaxError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, LZMAError),
)
"""Also `RecursionError` and `NotImplementedError`, which are `RuntimeError`s."""

_MOST = 1 << 18  # bytes of a header; its text is evaluated as Python, which takes a hundred times as much memory
_LENGTHS = {(1, 0): struct.Struct("<H"), (2, 0): struct.Struct("<I"), (3, 0): struct.Struct("<I")}
_ALIGN = 64


class Header(NamedTuple):
    """What the header of a `.npy` file says; the data follow, `nbytes` of them."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_zip(start: bytes) -> bool:
    """Say whether a file that begins so is a `.npz` file."""
    return start.startswith(ZIP_MAGICS)


def read_header(take: Callable[[int], bytes]) -> Header:
    """Read what stands between magic and data of a `.npy` file, of any version; `take(n)` gives the next n bytes.

    Raises one of `DAMAGE` for what is no header. The dtype may be one that cannot be shared.

    >>> file = io.BytesIO()
    >>> np.save(file, np.zeros((2, 3), ">i2"))
    >>> _ = file.seek(len(MAGIC))
    >>> read_header(file.read)
    Header(dtype=dtype('>i2'), shape=(2, 3), fortran=False)
    """
    major, minor = take(2)
    size = _LENGTHS.get((major, minor))
    if size is None:
        message = f"its format has the version {major}.{minor}, which is not known"
        raise ValueError(message)
    (length,) = size.unpack(take(size.size))
    if length > _MOST:
        message = f"its header of {length} bytes is too long to be evaluated"
        raise ValueError(message)
    text = take(length)
    if major == 3:  # noqa: PLR2004  the version that is like 2 in UTF-8, for which NumPy has no public function
        text = text.decode().encode("ascii", "backslashreplace")
    whole = io.BytesIO(_LENGTHS[2, 0].pack(len(text)) + text)
    try:
        shape, fortran, dtype = numpys.read_array_header_2_0(whole, max_header_size=len(text) + 1)
    except MemoryError:  # what the parser raises for an expression that nests too deeply
        raise ValueError("its header cannot be parsed") from None
    if dtype.subdtype is not None:
        raise ValueError("the dtype in its header is none that an array can have")
    try:
        lengths = layouts.check_shape(shape)
        layouts.nbytes(lengths, dtype.itemsize)
    except ShapeError as error:
        raise ValueError(error.summary) from None
    return Header(dtype, lengths, bool(fortran))


def write_header(array: np.ndarray[Any, Any]) -> bytes:
    """Write the header, magic included, for an array whose data follow in C order, or in Fortran order if it is contiguous so.

    Raises `DTypeError` for a dtype that does not come back from a `.npy` file as it is, or not at all.
    """
    try:
        fields: Any = numpys.header_data_from_array_1_0(array)
        same = numpys.descr_to_dtype(fields["descr"]) == array.dtype
    except (ValueError, TypeError):
        same = False
    if not same:
        raise DTypeError(
            f"a .npy file cannot hold the dtype {array.dtype}: its fields overlap, stand out of order, or have names that get lost",
            remedy="Save a copy with numpy.lib.recfunctions.repack_fields, or field by field.",
            dtype=str(array.dtype),
            field="",
        )
    for write in (numpys.write_array_header_1_0, numpys.write_array_header_2_0):
        written = io.BytesIO()
        try:
            write(written, fields)
        except ValueError:  # too long for version 1, not in Latin-1 for version 2
            continue
        return written.getvalue()
    return _write_header_3_0(fields)


def _write_header_3_0(fields: dict[str, Any]) -> bytes:
    text = repr(fields).encode()
    start = numpys.magic(3, 0)
    padding = -(len(start) + 4 + len(text) + 1) % _ALIGN
    return start + _LENGTHS[3, 0].pack(len(text) + padding + 1) + text + b" " * padding + b"\n"
