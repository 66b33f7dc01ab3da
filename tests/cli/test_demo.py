"""The demo: its mathematics, its picture, what it accepts and refuses, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import pickle
import pty
import select
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest

from shmarray._os import limits
from shmarray.demo import measure, png, report, run, sources, terrain, ways
from tests.helpers import leaks
from tests.helpers.processes import environment, is_running, run_command, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXAMPLE = os.path.join(ROOT, "examples", "hillshade.py")
CELL = terrain.Cell(30.0, 20.0)
PROGRAM = """
import fcntl, multiprocessing, sys, termios
from shmarray.demo.run import main
if __name__ == "__main__":
    mark, in_control, *arguments = sys.argv[1:]
    multiprocessing.current_process()._config["semprefix"] = mark  # so that its semaphores are known among all
    if in_control == "yes":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.exit(main(arguments))
"""


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """Decode an 8-bit grey or RGB PNG as the specification says, checking every checksum; independent of `shmarray`."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size) == (zlib.crc32(kind + body),)
        chunks.append((kind, body))
        at += size + 12
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3}[colour]
    raw = zlib.decompress(chunks[1][1])
    line = width * channels
    assert len(raw) == height * (line + 1)
    above, lines = bytearray(line), []
    for row in range(height):
        start = row * (line + 1)
        assert raw[start] in (0, 2), "this decoder knows the filters None and Up"
        base = above if raw[start] == 2 else bytes(line)
        coded = raw[start + 1 : start + 1 + line]
        above = bytearray((one + other) % 256 for one, other in zip(coded, base, strict=True))
        lines.append(above)
    pixels = np.array(lines, np.uint8)
    return pixels.reshape(height, width, 3) if channels == 3 else pixels


def reference(
    heights: NDArray[Any], cell: terrain.Cell, azimuth: float = 315.0, altitude: float = 45.0
) -> NDArray[Any]:
    """Shade cell by cell, in double precision, from angles: the textbook formula with slope and aspect."""
    z = heights.astype(float)
    rows, columns = z.shape
    shade = np.empty(z.shape)
    zenith = math.radians(90 - altitude)
    for row, column in itertools.product(range(rows), range(columns)):
        west, east = max(column - 1, 0), min(column + 1, columns - 1)
        north, south = max(row - 1, 0), min(row + 1, rows - 1)
        p = (z[row, east] - z[row, west]) / ((east - west) * cell.dx) if east > west else 0.0
        q = (z[north, column] - z[south, column]) / ((south - north) * cell.dy) if south > north else 0.0
        slope = math.atan(math.hypot(p, q))
        downhill = math.atan2(-p, -q)  # clockwise from north
        facing = math.cos(math.radians(azimuth) - downhill)
        cosine = math.cos(zenith) * math.cos(slope) + math.sin(zenith) * math.sin(slope) * facing
        shade[row, column] = 255 * max(0.0, cosine)
    return shade


def plane(p: float, q: float, shape: tuple[int, int] = (9, 11)) -> NDArray[np.float64]:
    """Heights that rise by `p` to the east and by `q` to the north."""
    rows, columns = np.indices(shape)
    return np.asarray(p * columns * CELL.dx - q * rows * CELL.dy, np.float64)


def rough(rows: int, columns: int, dtype: Any = np.int16) -> NDArray[Any]:
    """Heights without any order, the same every time."""
    return np.random.default_rng(5).integers(0, 120, (rows, columns)).astype(dtype)


def forbid(*_: object) -> NoReturn:
    """Stand in for what must not be reached."""
    pytest.fail("the long work had begun")


# -- the picture -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 1), (3, 5, 3), (1, 7, 3)])
def test_a_picture_decodes_to_the_same_pixels(shape: tuple[int, ...]) -> None:
    """What is encoded as PNG comes back from an independent decoder byte for byte, grey and in colour."""
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(decode_png(png.encode(pixels)), pixels)


def test_a_picture_may_be_any_view() -> None:
    """Strides do not matter: a reversed, strided view is encoded as what it shows."""
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12)[::-2, ::3]
    np.testing.assert_array_equal(decode_png(png.encode(pixels)), pixels)


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2)), np.zeros(4, np.uint8), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(pixels: NDArray[Any]) -> None:
    """Other dtypes, other shapes and nothing at all raise `ValueError`."""
    with pytest.raises(ValueError, match="a picture is rows x columns"):
        png.encode(pixels)


# -- the mathematics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i2", "u1", "i1", "f4"])
@pytest.mark.parametrize("shape", [(13, 17), (1, 9), (9, 1), (1, 1), (2, 2)])
def test_hillshade_agrees_with_the_textbook(dtype: str, shape: tuple[int, int]) -> None:
    """The fast formula gives what slope and aspect give, within rounding, in every corner and for every dtype."""
    heights = rough(*shape, dtype)
    shade = terrain.hillshade(heights, CELL)
    assert shade.dtype == np.uint8
    assert np.abs(shade - reference(heights, CELL)).max() < 0.51


@pytest.mark.parametrize(("azimuth", "altitude"), [(0, 30), (90, 60), (200, 10), (315, 90)])
def test_the_light_may_stand_anywhere(azimuth: float, altitude: float) -> None:
    """Azimuth runs clockwise from north, altitude from the horizon up."""
    heights = rough(8, 9)
    shade = terrain.hillshade(heights, CELL, azimuth=azimuth, altitude=altitude)
    assert np.abs(shade - reference(heights, CELL, azimuth, altitude)).max() < 0.51


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (0, 0, math.sqrt(0.5)),  # flat
        (math.sqrt(0.5), -math.sqrt(0.5), 1),  # falls to the north-west: faces the light
        (-math.sqrt(0.5), math.sqrt(0.5), 0),  # faces away
        (-3, 3, 0),  # in its own shade
        (1, 1, math.sqrt(1 / 6)),  # falls to the south-west: the light comes along it
    ],
)
def test_a_plane_is_shaded_evenly_and_as_the_angle_says(p: float, q: float, expected: float) -> None:
    """On a plane every cell, those at the edges too, has the cosine of the angle between light and normal."""
    shade = terrain.hillshade(plane(p, q), CELL)
    np.testing.assert_array_equal(shade, math.floor(255 * expected + 0.5))


def test_a_hill_is_light_in_the_north_west_and_dark_in_the_south_east() -> None:
    """Row 0 is the north: of a round hill the upper left side is the bright one."""
    rows, columns = np.indices((41, 41)) - 20
    shade = terrain.hillshade(-(rows**2.0 + columns**2) / 2, terrain.Cell(10.0, 10.0)).astype(int)
    assert shade[10, 10] > shade[20, 20] > shade[30, 30]
    assert abs(shade[10, 30] - shade[30, 10]) <= 1


@pytest.mark.parametrize("count", [2, 3, 7, 29, 100])
def test_bands_make_no_difference(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Cut into any bands and shaded in place, band by band, a grid gets exactly what it gets as a whole."""
    heights = rough(29, 40)
    whole = terrain.hillshade(heights, CELL)
    monkeypatch.setattr(terrain, "_BLOCK", 200)  # blocks of a few rows inside each band
    pieces = terrain.bands(29, count)
    assert [row for start, stop in pieces for row in range(start, stop)] == list(range(29))
    shade = np.zeros(heights.shape, np.uint8)
    for start, stop in pieces:
        terrain.hillshade(heights, CELL, start, stop, out=shade[start:stop])
    np.testing.assert_array_equal(shade, whole)


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_gaps_are_flat_and_touch_their_neighbours_alone(gap: float) -> None:
    """A missing height is shaded as level ground, so are the cells whose gradient needs it, and no other cell changes."""
    heights = rough(9, 9, np.float32)
    whole = terrain.hillshade(heights, CELL)
    heights[4, 4] = gap
    shade = terrain.hillshade(heights, CELL)
    rows, columns = np.indices((9, 9)) - 4
    beside = np.abs(rows) + np.abs(columns) == 1
    flat = terrain.hillshade(np.zeros((1, 1)), CELL)[0, 0]
    far = ~beside & ((rows != 0) | (columns != 0))
    np.testing.assert_array_equal(shade[far], whole[far])
    assert set(shade[beside]) <= ({flat} if math.isnan(gap) else {flat, 0})


@pytest.mark.filterwarnings("error")
def test_extreme_heights_are_shaded_in_silence() -> None:
    """The largest numbers there are overflow without a warning and without leaving the range of a byte."""
    heights = np.array([[3e38, -3e38, 1], [-3e38, np.nan, 3e38], [np.inf, 0, -np.inf]], np.float32)
    shade = terrain.hillshade(heights, terrain.Cell(1e-30, 1e30))
    assert terrain.colours(heights, shade, -3e38, 3e38).shape == (3, 3, 3)


@pytest.mark.parametrize("tiles", [1, 2, 3, 4])
def test_tiles_meet_without_a_step(tiles: int) -> None:
    """Mirrored tiles continue each other: across every seam neighbours are equal, and each tile is the model, turned."""
    model = rough(5, 7)
    grid = terrain.mirror_tiles(model, tiles)
    assert grid.shape == (5 * tiles, 7 * tiles)
    for seam in range(1, tiles):
        np.testing.assert_array_equal(grid[5 * seam - 1], grid[5 * seam])
        np.testing.assert_array_equal(grid[:, 7 * seam - 1], grid[:, 7 * seam])
    np.testing.assert_array_equal(grid, np.pad(model, ((0, 5 * tiles - 5), (0, 7 * tiles - 7)), "symmetric"))


def test_tiles_can_be_laid_into_an_array_that_is_there() -> None:
    """With `out` nothing is allocated for the grid: it is the array given that is filled and returned."""
    out = np.zeros((4, 6), np.int16)
    assert terrain.mirror_tiles(rough(2, 3), 2, out=out) is out
    np.testing.assert_array_equal(out, terrain.mirror_tiles(rough(2, 3), 2))


def test_colours_follow_height_and_light() -> None:
    """Low and high ground differ in hue, shade darkens, and what has no height is grey."""
    heights = np.array([[0, 100, np.nan]], np.float32)
    lit = terrain.colours(heights, np.full((1, 3), 200, np.uint8), 0, 100).astype(int)
    dark = terrain.colours(heights, np.full((1, 3), 20, np.uint8), 0, 100).astype(int)
    assert (dark < lit).all()
    assert lit[0, 0, 1] > lit[0, 0, 0]  # green below
    assert lit[0, 1].min() > 200  # white above
    assert len(set(lit[0, 2])) == 1


def test_degrees_become_metres() -> None:
    """A degree of latitude is 111.2 km everywhere, one of longitude shrinks with the cosine of the latitude."""
    cell = terrain.cell_of_degrees(1, 1, 60)
    assert cell.dy == pytest.approx(111_195, rel=1e-4)
    assert cell.dx == pytest.approx(cell.dy / 2)


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_model_that_comes_along_is_a_map_of_tennessee() -> None:
    """The default file loads: 344 x 403 cells of about 93 by 74 metres, from 236 to 1076 metres high."""
    grid = sources.load(sources.DEFAULT)
    assert (grid.heights.shape, grid.heights.dtype.str, grid.key) == ((344, 403), "<i2", "elevation")
    assert grid.is_map
    assert grid.cell == pytest.approx((74.4, 92.7), abs=0.1)
    assert (grid.low, grid.high) == (236, 1076)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", ">i2", "u2", "<i4", "u8", "f2", ">f4", "f8", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_array_of_real_numbers_loads(tmp_path: Path, dtype: str, order: Any) -> None:
    """Every real dtype, byte order and layout becomes a small native one with the same differences."""
    path = str(tmp_path / "a.npy")
    values = (rough(6, 5) % 100).astype(dtype, order=order)
    np.save(path, values)
    grid = sources.load(path)
    assert grid.heights.dtype.isnative
    assert grid.heights.dtype.itemsize <= 4
    assert grid.heights.flags.c_contiguous
    wanted = values.astype(float)
    np.testing.assert_array_equal(grid.heights - grid.low, wanted - wanted.min())
    assert not grid.is_map


def test_small_differences_of_large_numbers_are_kept(tmp_path: Path) -> None:
    """Heights are counted from the lowest before they are shortened: centimetres on ten million metres survive."""
    path = str(tmp_path / "a.npy")
    np.save(path, 1e7 + np.array([[0.01, 0.02], [0.03, np.nan]]))
    np.testing.assert_allclose(sources.load(path).heights, [[0, 0.01], [0.02, np.nan]], atol=1e-6)


def test_the_one_grid_of_an_archive_is_found(tmp_path: Path) -> None:
    """Numbers, vectors, texts and Python objects beside it do not hide the only 2-d array; compressed or not."""
    path = str(tmp_path / "a.npz")
    np.savez_compressed(path, z=rough(4, 4), n=3, v=np.ones(4), s=np.array(["x"]), o=np.array([None]))
    assert sources.load(path).key == "z"


def test_a_key_chooses_among_several_grids(tmp_path: Path) -> None:
    """With `key` an archive of several grids loads the one that is meant."""
    path = str(tmp_path / "a.npz")
    np.savez(path, a=np.zeros((2, 2)), b=np.ones((3, 3)))
    assert sources.load(path, "b").heights.shape == (3, 3)


def test_an_implausible_map_is_no_map(tmp_path: Path) -> None:
    """Where the numbers cannot be degrees on the earth, the relief is scaled to the heights instead."""
    path = str(tmp_path / "a.npz")
    np.savez(path, z=plane(1, 0), dx=1.0, dy=-1.0, ymin=0.0, ymax=1.0)
    grid = sources.load(path)
    assert not grid.is_map
    assert grid.cell == pytest.approx((CELL.dx, CELL.dx))  # one in twenty steps is as steep as 45 degrees


class _Trap:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("pickle-was-loaded",)


def _npy(path: Path, array: Any) -> None:
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=True)


def _cut(path: Path, data: bytes, size: int) -> None:
    path.write_bytes(data[:size])


def _npz(**arrays: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    return make


def _archive_bytes() -> bytes:
    with open(sources.DEFAULT, "rb") as file:
        return file.read()


def _array_bytes() -> bytes:
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (4, 5), }"
    header += b" " * (64 - (11 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(range(40))


def _hollow(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("z.npy", b"not an array at all")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _: None, "No such file"),
    "directory": (lambda path: path.mkdir(), "directory"),
    "empty file": (lambda path: path.write_bytes(b""), "neither a .npy nor a .npz"),
    "text": (lambda path: path.write_text("1 2 3\n4 5 6\n"), "neither a .npy nor a .npz"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(_Trap())), "neither a .npy nor a .npz"),
    "object array": (lambda path: _npy(path, np.array([[_Trap()]])), "Python objects"),
    "object in npz": (_npz(z=np.array([[1, None]], object)), "z (dtype object)"),
    "truncated npy": (lambda path: _cut(path, _array_bytes(), 150), "damaged or incomplete"),
    "half a header": (lambda path: _cut(path, _array_bytes(), 30), "damaged or incomplete"),
    "truncated npz": (lambda path: _cut(path, _archive_bytes(), 90_000), "damaged or incomplete"),
    "npz of no arrays": (_hollow, "no 2-d array"),
    "empty npz": (lambda path: zipfile.ZipFile(path, "w").close(), "nothing"),
    "one dimension": (lambda path: _npy(path, np.arange(5)), "1-dimensional"),
    "three dimensions": (lambda path: _npy(path, np.zeros((2, 2, 2))), "3-dimensional"),
    "a number": (lambda path: _npy(path, 3.0), "0-dimensional"),
    "no rows": (lambda path: _npy(path, np.zeros((0, 4))), "empty"),
    "complex": (lambda path: _npy(path, np.zeros((2, 2), complex)), "complex128"),
    "text array": (lambda path: _npy(path, np.array([["a"]])), "<U1"),
    "structured": (lambda path: _npy(path, np.zeros((2, 2), "i4,f4")), "real numbers"),
    "dates": (lambda path: _npy(path, np.zeros((2, 2), "M8[s]")), "datetime64"),
    "all NaN": (lambda path: _npy(path, np.full((3, 3), np.nan)), "no finite number"),
    "several grids": (_npz(one=np.zeros((2, 2)), two=np.zeros((3, 3))), "--key (one, two)"),
    "only vectors": (_npz(v=np.zeros(3)), "v (1-d float64)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_clear_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong with a file: exit code 2, one line that names file and fault, nothing else, nothing executed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ways, "run", forbid)
    make, reason = BAD[case]
    make(tmp_path / "input.dat")
    assert run.main(["input.dat"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("python -m shmarray demo: input.dat: ")
    assert reason in err
    assert not os.path.exists("pickle-was-loaded")
    assert not os.path.exists("hillshade.png")


@pytest.mark.parametrize(
    ("name", "key", "reason"), [("a.npz", "x", "no array 'x' in it; there is z"), ("a.npy", "x", "leave --key out")]
)
def test_a_wrong_key_gets_one_clear_line(
    name: str, key: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that is not there, or makes no sense, is said to be so: exit code 2."""
    path = str(tmp_path / name)
    np.save(path, rough(2, 2)) if name.endswith("npy") else np.savez(path, z=rough(2, 2))
    assert run.main([path, "--key", key]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert reason in err


def test_a_name_of_a_file_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters in a path are spelled out: the message is one line all the same."""
    assert run.main(["a\nb\x1b[2J\udc80"]) == 2
    assert "a\\nb\\x1b[2J\\udc80: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_no_damage_to_a_file_is_a_surprise(kind: str, tmp_path: Path) -> None:
    """Every truncation and every flipped byte of a small file loads as some grid or raises `GridError`, nothing else."""
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        whole = _array_bytes()
    else:
        np.savez_compressed(path, z=rough(4, 5))
        whole = path.read_bytes()
    damaged = [whole[:size] for size in range(len(whole))]
    for at, mask in itertools.product(range(len(whole)), (0x01, 0xFF)):
        damaged.append(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            sources.load(str(path))
        except sources.GridError:
            refused += 1
    assert refused > len(whole)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tiles", "0"],
        ["--tiles", "x"],
        ["--size", "nan"],
        ["--size", "-1"],
        ["--size", "1", "--tiles", "1"],
        ["--workers", "0"],
        ["a", "b"],
    ],
)
def test_wrong_arguments_end_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is no number of tiles, MiB or workers is refused by the parser."""
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["missing/picture.png", "folder", "folder/", "", "model.npy"])
def test_a_place_that_cannot_be_written_is_found_out_first(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work: exit code 2 and one line when the picture has no place, or would replace the input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ways, "run", forbid)
    os.mkdir("folder")
    np.save("model.npy", rough(3, 3))
    before = sorted(os.listdir())
    assert run.main(["model.npy", "--output", place]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert place in err
    assert sorted(os.listdir()) == before


def test_a_grid_that_does_not_fit_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for more than there is memory for, the demo says how much there is: exit code 1."""
    monkeypatch.setattr(ways, "run", forbid)
    assert run.main(["--size", "1e9", "--output", str(tmp_path / "p.png")]) == 1
    assert "does not fit: there is room for one of" in capsys.readouterr().err


@pytest.mark.parametrize(("free", "at_most"), [(64 << 20, 40 << 20), (8 << 20, 5 << 20)])
def test_by_default_the_grid_fits_into_small_shared_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, at_most: int
) -> None:
    """In a container with 64 MiB of shared memory the demo makes a smaller grid, and says so."""
    monkeypatch.setattr(limits, "space", lambda _: limits.Space(free, free, 1000))
    model = sources.load(sources.DEFAULT).heights
    tiles, note = run._choose_tiles(model, run._parser().parse_args([]))
    assert at_most / 2 < tiles**2 * model.nbytes < at_most
    assert "smaller than usual" in note


def run_here(way: ways.Way, *_: object) -> ways.Cost:
    """Stand in for `ways.run` where the processes do not matter: the same jobs, done in this one."""
    for band, job in zip(way.task.bands, way.prepare(), strict=True):
        way.take(band, way.work(job))
    return ways.Cost(0.5, 1.0, None, None, 3 << 20, 1 << 20)


# -- the whole ---------------------------------------------------------------------------------------------------------

SCHEMA = {
    "source": {"path", "key", "shape", "dtype", "is_map"},
    "grid": {"tiles", "shape", "nbytes", "cell"},
    "pickled": {
        "seconds",
        "seconds_made",
        "seconds_shaded",
        "bytes_sent",
        "bytes_returned",
        "memory_added",
        "memory_peak",
    },
    "shared": {
        "seconds",
        "seconds_made",
        "seconds_shaded",
        "bytes_sent",
        "bytes_returned",
        "memory_added",
        "memory_peak",
    },
    "picture": {"path", "width", "height", "rows", "columns", "stride"},
}


def test_both_ways_give_the_picture_that_one_process_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json there is one object with every figure; results are identical, the picture is right, nothing is left."""
    model, picture = str(tmp_path / "model.npy"), str(tmp_path / "picture.png")
    heights = rough(150, 200, np.float32).cumsum(axis=0).cumsum(axis=1)
    heights[20:30, 40:60] = np.nan
    np.save(model, heights)
    assert run.main([model, "--tiles", "3", "--workers", "2", "--output", picture, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    said = json.loads(out)
    assert {key: set(value) for key, value in said.items() if isinstance(value, dict)} == SCHEMA
    assert set(said) == {*SCHEMA, "workers", "bands", "identical", "left"}
    assert (said["identical"], said["left"], said["workers"], said["bands"]) == (True, [], 2, 8)
    assert said["grid"]["shape"] == [450, 600]
    assert said["picture"]["width"] == 600

    grid = sources.load(model)
    whole = terrain.mirror_tiles(grid.heights, 3)
    wanted = terrain.colours(whole, terrain.hillshade(whole, grid.cell), grid.low, grid.high)
    with open(picture, "rb") as file:
        np.testing.assert_array_equal(decode_png(file.read()), wanted)
    assert sorted(os.listdir(tmp_path)) == ["model.npy", "picture.png"]

    nbytes = said["grid"]["nbytes"]
    assert said["pickled"]["bytes_sent"] > nbytes
    assert said["pickled"]["bytes_returned"] > nbytes / 4
    assert 0 < said["shared"]["bytes_sent"] < 100_000
    assert 0 < said["shared"]["bytes_returned"] < 10_000
    assert said["shared"]["memory_peak"] > said["shared"]["memory_added"] > nbytes * 5 / 4


def test_people_get_a_table_and_a_closing_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --json the outcome is text, and what the kernel does not tell is said to be untold."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ways, "run", run_here)
    assert run.main(["--tiles", "1", "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in (
        "344 x 403 int16",
        "1 worker in 4 bands",
        "1.50 s",
        "not told",
        "2.0 MiB",
        "are identical",
    ):
        assert part in out
    assert "hillshade.png, 403 x 344 pixels: the whole grid" in out
    assert out.splitlines()[-1].startswith("Left after the store was closed: nothing (0 entries /dev/shm/shmarray.")
    assert decode_png((tmp_path / "hillshade.png").read_bytes()).shape == (344, 403, 3)


def test_a_difference_and_a_leftover_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Were the results not the same, or were anything left, the demo would say so and end with code 1."""

    def spoil(way: ways.Shared, band: tuple[int, int], _: object) -> None:
        way.shade[band[0], 0] ^= 1

    monkeypatch.setattr(ways, "run", run_here)
    monkeypatch.setattr(ways.Shared, "take", spoil)
    monkeypatch.setattr(measure, "entries", lambda *_: ["something"])
    assert run.main(["--tiles", "1", "--workers", "1", "--output", str(tmp_path / "p.png")]) == 1
    out = capsys.readouterr().out
    assert "THE RESULTS DIFFER" in out
    assert out.splitlines()[-1] == "LEFT after the store was closed: something"


def test_a_large_model_is_shown_whole_by_every_nth_cell() -> None:
    """A picture never has more than 2048 pixels a side: of tiles it shows a corner, of a large model every n-th cell."""
    heights = rough(10, 5000, np.uint8)
    grid = sources.Grid(heights, CELL, is_map=False, low=0, high=120, key=None)
    done = ways.Shared.__new__(ways.Shared)
    done.task = ways.Task(heights, 2, CELL, 1)
    done.grid = done.shade = terrain.mirror_tiles(heights, 2)  # type: ignore[assignment]
    picture, encoded = run._draw("p.png", grid, done)
    assert picture == report.Picture("p.png", 20, 6144, 3)
    assert decode_png(encoded).shape == (7, 2048, 3)


def test_the_memory_of_processes_is_counted_once_and_shared_files_whole(tmp_path: Path) -> None:
    """PSS of this process is what the kernel says; a file of shared memory counts in full though nobody maps it."""
    mine = measure.memory([os.getpid()])
    assert mine is not None
    assert mine > 10 << 20
    assert measure.memory([2**22 + 1]) == 0  # no such process
    (tmp_path / "block.1").write_bytes(bytes(1 << 20))
    (tmp_path / "other").write_bytes(bytes(1 << 20))
    assert measure.memory([2**22 + 1], str(tmp_path / "block.")) == 1 << 20


def test_the_example_runs_and_leaves_nothing(tmp_path: Path) -> None:
    """`examples/hillshade.py` writes the picture and finds shared memory empty; a bad file is one line."""
    out = run_command([sys.executable, EXAMPLE], cwd=tmp_path).expect()
    assert "left in shared memory: 0 entries" in out
    assert decode_png((tmp_path / "hillshade.png").read_bytes()).shape == (2048, 2048, 3)
    run_command([sys.executable, EXAMPLE, "none.npy"], cwd=tmp_path).expect(
        1, "hillshade: none.npy: No such file or directory\n"
    )


class Terminal:
    """The demo, running in a terminal; `heard` is what it has said.

    If the terminal is `in_control`, Ctrl-C there reaches all of the demo's processes, and so does its end.
    """

    def __init__(self, directory: Path, size: str, *, in_control: bool) -> None:
        """Start the demo in `directory`, on a grid of `size` MiB."""
        self._mark = f"/mp-{os.urandom(4).hex()}"
        script = directory / "program.py"
        script.write_text(PROGRAM)
        self.screen, theirs = pty.openpty()
        self.heard = b""
        self.process = subprocess.Popen(
            [sys.executable, str(script), self._mark, "yes" if in_control else "no", "--workers", "2", "--size", size],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=directory,
            env=environment(),
            start_new_session=True,
        )
        os.close(theirs)

    def hear(self, text: bytes, timeout: float = 30) -> None:
        """Read until the program has said `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.heard:
            assert self._read(deadline - time.monotonic()), f"the demo never said {text!r}: {self.heard!r}"

    def end(self, timeout: float = 30) -> int:
        """Read what it says until it ends; returns its exit code."""
        deadline = time.monotonic() + timeout
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(1, deadline - time.monotonic()))

    def _read(self, timeout: float) -> bool:
        readable, _, _ = select.select([self.screen], [], [], max(0, timeout))
        try:
            piece = os.read(self.screen, 65536) if readable else b""
        except OSError:  # nobody holds the other side any more
            piece = b""
        self.heard += piece
        return bool(piece)

    def left(self) -> list[str]:
        """List what is left of the demo: processes of its group that run, semaphores. Orphans are reaped when that suits the machine."""
        found = sorted(leaks.shm_entries(f"sem.{self._mark[1:]}"))
        for pid in leaks.pids():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(pid) == self.process.pid and is_running(pid):
                    found.append(f"process {pid}")
        return found

    def close(self) -> None:
        """End whatever still runs, gently first: then the tracker among it removes the semaphores."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None or self.left():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(AssertionError):
                    wait_until(lambda: self.process.poll() is not None and not self.left(), 2)
        os.close(self.screen)


@pytest.fixture
def terminal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """Run a demo in a terminal; a test that means to disturb it at work asks for a larger grid."""
    size, in_control = getattr(request, "param", ("2", True))
    running = Terminal(tmp_path, size, in_control=in_control)
    yield running
    running.close()


@pytest.mark.parametrize(
    ("terminal", "moment"),
    [
        (("2", True), "pickled: starting"),
        (("64", True), "shared  ["),
    ],
    indirect=["terminal"],
)
def test_ctrl_c_ends_the_demo_in_order(terminal: Terminal, tmp_path: Path, moment: str) -> None:
    """Ctrl-C at any moment: exit code 130, a word and no traceback from any process, no file, nothing left behind."""
    terminal.hear(moment.encode())
    os.write(terminal.screen, b"\x03")
    assert terminal.end() == 130
    assert b"Traceback" not in terminal.heard
    assert terminal.heard.endswith(b"python -m shmarray demo: interrupted\r\n")
    wait_until(lambda: not terminal.left(), 5, lambda: f"left behind: {terminal.left()}")
    assert os.listdir(tmp_path) == ["program.py"]


def test_in_a_terminal_progress_is_shown_and_taken_away(terminal: Terminal) -> None:
    """A bar runs full for both ways and is gone at the end."""
    assert terminal.end() == 0
    for label in (b"pickled", b"shared "):
        assert label + b" [" + b"#" * 30 + b"] 8/8\r\x1b[K" in terminal.heard
    assert b"Both results are identical." in terminal.heard.rpartition(b"\x1b[K")[2]


@pytest.mark.parametrize("terminal", [("64", False)], indirect=True)
def test_a_killed_demo_leaves_no_worker_and_no_memory(terminal: Terminal) -> None:
    """SIGKILL of the demo alone: its workers end, its store is swept, its semaphores are removed."""
    before = leaks.shm_entries()
    terminal.hear(b"shared  [")
    terminal.process.kill()
    assert terminal.process.wait() == -signal.SIGKILL
    wait_until(lambda: not terminal.left(), 10, lambda: f"left behind: {terminal.left()}")
    wait_until(
        lambda: not leaks.shm_entries() - before - leaks.foreign_stores(leaks.shm_entries()), 10, "the store was left"
    )
