"""PNG: an array of bytes as a picture file.

Owns: the file format, as much of it as writing needs (8 bits a channel, grey or red-green-blue, not interlaced).
Must not know: what the picture shows.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2
_UP = 2  # row filter: each byte less the one above it
_LEVEL = 3  # terrain is noise to zlib: higher levels take several times as long for a few per cent


def encode(picture: NDArray[np.uint8]) -> bytes:
    r"""Encode rows x columns (grey) or rows x columns x 3 (red, green, blue) of uint8 as a PNG file.

    Raises `ValueError` for any other array, and for one without a pixel.

    >>> encode(np.zeros((2, 3), np.uint8))[:4]
    b'\x89PNG'
    """
    grey = picture.ndim == 2  # noqa: PLR2004  rows and columns
    if picture.dtype != np.uint8 or not picture.size or not (grey or picture.shape[2:] == (3,)):
        message = f"a picture is rows x columns (x 3) of uint8, not {picture.shape} of {picture.dtype}"
        raise ValueError(message)
    rows, columns = picture.shape[:2]
    header = struct.pack(">IIBBBBB", columns, rows, 8, _GREY if grey else _RGB, 0, 0, 0)
    pixels = zlib.compress(_filtered(picture.reshape(rows, -1)).data, _LEVEL)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _filtered(lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
    filtered = np.empty((lines.shape[0], lines.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])  # modulo 256, as the format has it
    return filtered


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
