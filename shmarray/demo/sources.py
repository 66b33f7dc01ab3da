"""Sources: a grid of heights from a file.

Owns: which `.npy` and `.npz` files are grids, and one clear line for each that is none.
Must not know: what becomes of the grid.

Pickles are never loaded: a file may come from anyone.
"""

from __future__ import annotations

import math
import os
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from shmarray._format import npy
from shmarray.demo import terrain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.lib.npyio import NpzFile
    from numpy.typing import NDArray

DEFAULT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "jacksboro_fault_dem.npz")
"""The elevation model that comes with shmarray."""

_SMALL = frozenset({"int8", "uint8", "int16", "uint16", "float32"})  # kept: float32 holds each of their values


class GridError(ValueError):
    """A file that holds no grid of heights; the text is one line that says why."""


class Grid(NamedTuple):
    """Heights (rows x columns, a native dtype of at most 4 bytes) and what is known of them.

    `is_map` says whether the file gives the size of a cell, so that `cell` is in metres; else `cell` is a guess.
    """

    heights: NDArray[Any]
    cell: terrain.Cell
    is_map: bool
    low: float
    high: float
    key: str | None


def load(path: str, key: str | None = None) -> Grid:
    """Load the 2-d array of real numbers in a `.npy` file, or that called `key` in a `.npz` file.

    `key` may be left out when there is only one. Values that are not finite are kept, and shaded as flat. An archive
    that also holds the numbers `dx`, `dy`, `ymin`, `ymax`, in degrees, is a map. Raises `GridError`.
    """
    try:
        return _grid(*_read(path, key))
    except GridError as error:
        message = f"{path}: {error}"
        raise GridError(message) from None


def _read(path: str, key: str | None) -> tuple[Any, terrain.Cell | None, str | None]:
    """Read an array, the size of its cells and its name in the archive, the last two if there are any."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files of Python 2 and the like, which load all the same
            magic = file.read(len(npy.MAGIC))
            file.seek(0)
            if magic == npy.MAGIC:
                return _from_file(file, key)
            if npy.is_zip(magic):
                with np.load(file, allow_pickle=False) as archive:
                    return _from_archive(archive, key)
    except GridError:
        raise
    except OSError as error:
        raise GridError(error.strerror or str(error)) from None
    except MemoryError:
        message = "it says that it holds more than there is memory for; it may be damaged"
        raise GridError(message) from None
    except npy.DAMAGE as error:
        raise GridError(_explained(error)) from None
    message = "it is neither a .npy nor a .npz file; numpy.save makes one of an array"
    raise GridError(message)


def _explained(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "allow_pickle" in text:
        return "it holds Python objects (dtype object), which are never loaded; save numbers instead"
    return f"it is damaged or incomplete ({text or type(error).__name__})"


def _from_file(file: BinaryIO, key: str | None) -> tuple[Any, None, None]:
    if key is not None:
        message = "it is a .npy file, one array without a name: leave --key out"
        raise GridError(message)
    return np.load(file, allow_pickle=False), None, None


def _from_archive(archive: NpzFile, key: str | None) -> tuple[Any, terrain.Cell | None, str]:
    if key is None:
        key, array = _only_grid(archive)
    elif key in archive.files:
        array = archive[key]
    else:
        message = f"there is no array {key!r} in it; there is {_listed(archive.files)}"
        raise GridError(message)
    return array, _cell(archive), key


def _only_grid(archive: NpzFile) -> tuple[str, NDArray[Any]]:
    """Find the one 2-d array of numbers; what cannot be loaded is no candidate, but is named if there is no other."""
    found: list[str] = []
    others: list[str] = []
    chosen: NDArray[Any] | None = None
    for name in archive.files:
        try:
            array = np.asanyarray(archive[name])  # a member that is no .npy file comes as bytes
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            others.append(f"{name} (dtype object)")
            continue
        if array.ndim == 2 and array.dtype.kind in "biuf":  # noqa: PLR2004  rows and columns
            found.append(name)
            chosen = array if chosen is None else chosen
        else:
            others.append(f"{name} ({array.ndim}-d {array.dtype})")
    if chosen is None:
        message = f"there is no 2-d array of real numbers in it; there is {_listed(others)}"
        raise GridError(message)
    if len(found) > 1:
        message = f"there are several 2-d arrays in it: choose one with --key ({_listed(found)})"
        raise GridError(message)
    return found[0], chosen


def _listed(words: Iterable[str], most: int = 8) -> str:
    words = list(words)
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if words[most:] else "") if words else "nothing"


def _cell(archive: NpzFile) -> terrain.Cell | None:
    """Size of a cell in metres, if the archive says it as ours does."""
    numbers = []
    for name in ("dx", "dy", "ymin", "ymax"):
        value = archive[name] if name in archive.files else None
        if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "iuf":
            return None
        numbers.append(float(value.reshape(-1)[0]))
    dx, dy, latitude = numbers[0], numbers[1], (numbers[2] + numbers[3]) / 2
    plausible = all(map(math.isfinite, numbers)) and dx > 0 and dy > 0 and abs(latitude) < 90  # noqa: PLR2004  a pole
    return terrain.cell_of_degrees(dx, dy, latitude) if plausible else None


def _grid(array: Any, cell: terrain.Cell | None, key: str | None) -> Grid:
    """Check an array and bring it to a small native dtype. Raises `GridError`."""
    what = f"the array {key!r}" if key else "the array"
    if not isinstance(array, np.ndarray):
        message = f"{what} is no array"
        raise GridError(message)
    if array.ndim != 2:  # noqa: PLR2004  rows and columns
        message = f"{what} is {array.ndim}-dimensional, shape {array.shape}; a grid of heights has two dimensions"
        raise GridError(message)
    if array.dtype.kind not in "biuf":
        message = f"{what} has the dtype {array.dtype}; heights are real numbers"
        raise GridError(message)
    if not array.size:
        message = f"{what} is empty, shape {array.shape}"
        raise GridError(message)
    known = np.isfinite(array)
    if not known.any():
        message = f"{what} holds no finite number"
        raise GridError(message)
    heights = _small(array, known)
    values = heights[known]
    cell, is_map = (terrain.cell_for_relief(heights), False) if cell is None else (cell, True)
    return Grid(heights, cell, is_map, float(values.min()), float(values.max()), key)


def _small(array: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[Any]:
    """Bring heights to at most 4 bytes; in larger types they are first counted from the lowest, to keep differences."""
    kind = array.dtype.newbyteorder("=")
    if kind.name in _SMALL:
        return np.ascontiguousarray(array, kind)
    if kind.kind == "b":
        return np.ascontiguousarray(array, np.uint8)
    wide = array.astype(np.longdouble if kind.kind != "f" or kind.itemsize > np.dtype(float).itemsize else float)
    with np.errstate(over="ignore", invalid="ignore"):
        wide -= wide[known].min()
        return wide.astype(np.float32, order="C")
