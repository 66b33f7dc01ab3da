"""Terrain: a grid of heights, how it is tiled, shaded and coloured.

Owns: the mathematics, on plain arrays; every function works the same on private and on shared memory.
Must not know: files, processes, stores.

Row 0 is the north edge, column 0 the west edge. Heights may be any real dtype; a cell whose gradient is not a finite
number (NaN beside it, infinity) is shaded as if it were flat.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_METRES_PER_DEGREE = math.radians(1) * 6_371_008.8  # on a sphere with the mean radius of the earth
_BLOCK = 1 << 17  # cells shaded in one go: three float32 buffers of that size stay in cache
_SAMPLES = 512

# Height as a share of the range from lowest to highest, and the colour of it in full light.
_RAMP = (
    (0.00, (92, 138, 96)),
    (0.25, (160, 178, 116)),
    (0.50, (218, 200, 142)),
    (0.75, (182, 140, 104)),
    (1.00, (246, 240, 232)),
)
_UNKNOWN = (150, 150, 150)


class Cell(NamedTuple):
    """Size of one cell in the unit of height: from west to east, and from north to south."""

    dx: float
    dy: float


def cell_of_degrees(dx: float, dy: float, latitude: float) -> Cell:
    """Turn the size of a cell in degrees into metres; all three in degrees."""
    return Cell(dx * _METRES_PER_DEGREE * math.cos(math.radians(latitude)), dy * _METRES_PER_DEGREE)


def cell_for_relief(heights: NDArray[Any]) -> Cell:
    """Guess square cells for a grid of unknown scale, so that only one step in twenty is steeper than 45 degrees."""
    step_rows, step_columns = (max(1, length // _SAMPLES) for length in heights.shape)
    steps = []
    for lines in (heights[::step_rows], heights[:, ::step_columns].T):
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.abs(np.diff(lines.astype(np.float64), axis=1))
        change = change[np.isfinite(change)]
        steps.append(float(np.percentile(change, 95)) if change.size else 0.0)
    size = max(steps)
    return Cell(size, size) if math.isfinite(size) and size > np.finfo(np.float32).tiny else Cell(1.0, 1.0)


def mirror_tiles(model: NDArray[Any], tiles: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Lay `tiles` x `tiles` copies of a grid side by side, every second one mirrored: neighbours meet without a step.

    Writes into `out` (shape of the model times `tiles`) if given, else into a new array; returns it.

    >>> mirror_tiles(np.array([[1, 2]]), 2)
    array([[1, 2, 2, 1],
           [1, 2, 2, 1]])
    """
    rows, columns = model.shape
    if out is None:
        out = np.empty((rows * tiles, columns * tiles), model.dtype)
    strip = out[:rows]
    for tile in range(tiles):
        strip[:, tile * columns : (tile + 1) * columns] = model[:, :: -1 if tile % 2 else 1]
    for tile in range(1, tiles):
        out[tile * rows : (tile + 1) * rows] = strip[:: -1 if tile % 2 else 1]
    return out


def bands(rows: int, count: int) -> list[tuple[int, int]]:
    """Cut `rows` into at most `count` bands of nearly equal height: first row and the one after the last.

    >>> bands(10, 3)
    [(0, 3), (3, 6), (6, 10)]
    """
    count = min(count, rows)
    edges = [rows * band // count for band in range(count + 1)]
    return list(itertools.pairwise(edges))


def hillshade(
    heights: NDArray[Any],
    cell: Cell,
    start: int = 0,
    stop: int | None = None,
    *,
    out: NDArray[np.uint8] | None = None,
    azimuth: float = 315.0,
    altitude: float = 45.0,
) -> NDArray[np.uint8]:
    """Shade rows `start` to `stop` of a grid, lit from `azimuth` (clockwise from north) and `altitude`, in degrees.

    The gradient is by central differences, so the rows on either side are read too where there are any; at the edge of
    the grid it is by one-sided differences. 0 is in the shade, 255 faces the light. Writes into `out` (shape of the
    rows asked for) if given, else into a new array; returns it. However the rows are cut, the result is the same.
    """
    rows, columns = heights.shape
    stop = rows if stop is None else stop
    if out is None:
        out = np.empty((stop - start, columns), np.uint8)
    light = _light(azimuth, altitude)
    height = max(1, _BLOCK // (columns + 2))
    buffers = np.empty((3, height + 2, columns + 2), np.float32)
    for first in range(start, stop, height):
        last = min(first + height, stop)
        padded = _padded(heights, first, last, buffers[0])
        shade = _shade(padded, cell, light, buffers[1, : last - first, 1:-1], buffers[2, : last - first, 1:-1])
        out[first - start : last - start] = shade  # the fraction is cut off: half a step was added before
    return out


def _light(azimuth: float, altitude: float) -> tuple[float, float, float]:
    """Give the vector to the light, east, north and up, of length 255."""
    up, across = 255 * math.sin(math.radians(altitude)), 255 * math.cos(math.radians(altitude))
    return across * math.sin(math.radians(azimuth)), across * math.cos(math.radians(azimuth)), up


def _padded(heights: NDArray[Any], first: int, last: int, buffer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy rows `first` to `last` with one cell more on every side; beyond the grid's edge lines go straight on."""
    rows, columns = heights.shape
    padded = buffer[: last - first + 2]
    low, high = max(first - 1, 0), min(last + 1, rows)
    with np.errstate(over="ignore", invalid="ignore"):
        padded[low - first + 1 : high - first + 1, 1:-1] = heights[low:high]
        # A central difference across a line is the one-sided difference at its end.
        if first == 0:
            padded[0] = padded[1] if rows == 1 else 2 * padded[1] - padded[2]
        if last == rows:
            padded[-1] = padded[-2] if rows == 1 else 2 * padded[-2] - padded[-3]
        padded[:, 0] = padded[:, 1] if columns == 1 else 2 * padded[:, 1] - padded[:, 2]
        padded[:, -1] = padded[:, -2] if columns == 1 else 2 * padded[:, -2] - padded[:, -3]
    return padded


def _shade(
    padded: NDArray[np.float32],
    cell: Cell,
    light: tuple[float, float, float],
    east: NDArray[np.float32],
    north: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Compute 255 times the cosine between light and surface normal, plus a half, into `north`; `east` is room to work.

    With slopes p and q to the east and the north, the normal is (-p, -q, 1) / sqrt(1 + p^2 + q^2).
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        np.subtract(padded[1:-1, 2:], padded[1:-1, :-2], out=east)
        np.subtract(padded[:-2, 1:-1], padded[2:, 1:-1], out=north)
        east *= np.float32(0.5 / cell.dx)
        north *= np.float32(0.5 / cell.dy)
        # The buffer of heights is not needed any more; its first rows take the cosine's numerator.
        room = padded[: east.shape[0], 1:-1]
        np.multiply(east, np.float32(-light[0]), out=room)
        np.multiply(east, east, out=east)
        east += np.float32(1)
        room += np.float32(light[2])
        room -= np.multiply(north, np.float32(light[1]))
        np.multiply(north, north, out=north)
        east += north
        np.sqrt(east, out=east)
        np.divide(room, east, out=north)
        # Most grids have no gaps; one look for any costs less than a mask.
        if np.isnan(north.sum()):
            np.copyto(north, np.float32(light[2]), where=np.isnan(north))
    np.clip(north, 0, 255, out=north)
    north += np.float32(0.5)
    return north


def colours(heights: NDArray[Any], shade: NDArray[np.uint8], low: float, high: float) -> NDArray[np.uint8]:
    """Tint a shaded grid by height: rows x columns x red, green, blue. `low` and `high` get the ends of the ramp.

    Where the height is not a finite number the tint is grey.
    """
    values = heights.astype(np.float64)
    known = np.isfinite(values)
    share = np.where(known, values - low, 0) / ((high - low) or 1)
    light = (0.25 + 0.95 / 255 * shade.astype(np.float32)).clip(0, 1)
    stops = [stop for stop, _ in _RAMP]
    picture = np.empty((*heights.shape, 3), np.uint8)
    for channel in range(3):
        tint = np.interp(share, stops, [colour[channel] for _, colour in _RAMP])
        picture[..., channel] = np.where(known, tint, _UNKNOWN[channel]) * light + 0.5
    return picture
