"""Run: `python -m shmarray demo`.

Owns: arguments, the order of things, exit codes.
Must not know: how any step is done.

Exit codes: 0 done; 1 it could not be done here, or the outcome is not as promised; 2 the arguments, the file or the
place for the picture are wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from shmarray._os import limits, segments
from shmarray.demo import measure, png, report, sources, terrain, ways
from shmarray.demo.interrupts import Interrupts
from shmarray.errors import ShmArrayError
from shmarray.progress import Progress
from shmarray.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_PROGRAM = "python -m shmarray demo"
_SIZE = 128  # MiB; with 2 cores all is done in a few seconds
_BEGIN = "starting the workers"
_MOST_PIXELS = 2048
_MOST_TILES = 10_000
_MOST_WORKERS = 64
_USUAL_WORKERS = 8
_DONE, _FAILED, _WRONG, _INTERRUPTED = 0, 1, 2, 130


class _WrongError(Exception):
    """What the user asked for cannot be."""


class _NoRoomError(Exception):
    """What the user asked for does not fit into this machine."""


def main(argv: Sequence[str]) -> int:
    """Run the demo with these arguments (without the program's name); returns the exit code.

    Raises `SystemExit` for `--help` and for arguments that are none, as `argparse` does, and `BrokenPipeError`.
    """
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return _say("interrupted", _INTERRUPTED)
    except (sources.GridError, _WrongError) as error:
        return _say(str(error), _WRONG)
    except (_NoRoomError, ShmArrayError) as error:
        return _say("; ".join(str(error).splitlines()), _FAILED)
    except BrokenProcessPool:
        return _say("a worker process was killed; the system may be out of memory", _FAILED)
    except MemoryError:
        return _say("there is not enough memory; choose a smaller --size", _FAILED)
    except BrokenPipeError:
        raise  # whoever read our output has had enough; that is for our caller to know
    except OSError as error:
        return _say(f"{error.filename}: {error.strerror}" if error.filename else str(error), _FAILED)


def _say(message: str, code: int) -> int:
    report.complain(f"{_PROGRAM}: {message}")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Shade a grid of heights by worker processes, once by pickling and once in shared memory; compare.",
        epilog="Exit codes: 0 done; 1 not possible here, or not as promised; 2 wrong arguments or file; 130 Ctrl-C.",
    )
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", help=".npy or .npz with a 2-d array (default: an elevation model)")
    add("--key", metavar="NAME", help="which array of a .npz file")
    large = parser.add_mutually_exclusive_group()
    large.add_argument("--size", metavar="MiB", type=_size, help=f"repeat it to about this size (default: {_SIZE})")
    large.add_argument("--tiles", metavar="N", type=_number(_MOST_TILES), help="repeat it N x N times")
    add("--workers", metavar="N", type=_number(_MOST_WORKERS), help="worker processes (default: one for each core)")
    add("--output", metavar="PATH", default="hillshade.png", help="picture to write (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _number(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        with suppress(ValueError):
            if 1 <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")

    return read


def _size(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of MiB")


def _run(options: argparse.Namespace) -> int:
    path = options.file or sources.DEFAULT
    grid = sources.load(path, options.key)
    _check_output(options.output, path)
    workers = options.workers or min(_USUAL_WORKERS, len(os.sched_getaffinity(0)))
    tiles, note = _choose_tiles(grid.heights, options)
    task = ways.Task(grid.heights, tiles, grid.cell, workers)

    by_value = ways.Pickled(task)
    with Interrupts() as ctrl_c:
        with Progress("pickled", begin=_BEGIN) as progress:
            pickled = ways.run(by_value, ctrl_c, progress)
        with Store() as store:
            in_place = ways.Shared(task, store)
            with Progress("shared ", begin=_BEGIN) as progress:
                shared = ways.run(in_place, ctrl_c, progress)
            identical = np.array_equal(by_value.shade, in_place.shade)
            picture, encoded = _draw(options.output, grid, in_place)
        ctrl_c.check()
    left = measure.entries(*os.path.split(in_place.files))
    _write(options.output, encoded)
    outcome = report.Outcome(
        source=options.file or "Jacksboro fault, Tennessee",
        path=path,
        key=grid.key,
        is_map=grid.is_map,
        task=task,
        pickled=pickled,
        shared=shared,
        identical=identical,
        picture=picture,
        files=in_place.files,
        left=left,
        note=note,
    )
    report.show(json.dumps(report.for_programs(outcome)) if options.json else report.for_people(outcome))
    return _DONE if identical and not left else _FAILED


def _choose_tiles(model: NDArray[np.generic], options: argparse.Namespace) -> tuple[int, str]:
    """Choose how often the model is repeated each way, and say why if it is less than usual. Raises `_NoRoomError`."""
    room = _room(model)
    if options.tiles is None and options.size is None:
        usual = _tiles_for(_SIZE << 20, model)
        tiles = min(usual, max(1, math.isqrt(room // model.nbytes)))
        note = f"The grid is smaller than usual, to fit into the memory there is ({report.size(room)} for it)."
        if model.nbytes <= room:
            return tiles, note if tiles < usual else ""
    else:
        tiles = options.tiles or _tiles_for(options.size * 2**20, model)
    if model.nbytes * tiles**2 > room:
        message = (
            f"a grid of {report.size(model.nbytes * tiles**2)} does not fit: there is room for one of "
            f"{report.size(room)}; choose a smaller --size"
        )
        raise _NoRoomError(message)
    return tiles, ""


def _tiles_for(nbytes: float, model: NDArray[np.generic]) -> int:
    return max(1, round(math.sqrt(nbytes / model.nbytes)))


def _room(model: NDArray[np.generic]) -> int:
    """Bytes of the largest grid that can be shaded here."""
    # The result takes a byte for each cell, and pickles on their way take as much again.
    with_result = 1 + 1 / model.dtype.itemsize
    shared = limits.space(segments.SHM_DIRECTORY).free / with_result * 0.9
    memory = min((free for free in (measure.available(), limits.memory_left()) if free is not None), default=math.inf)
    return int(min(shared, memory / (3 * with_result)))


def _draw(path: str, grid: sources.Grid, done: ways.Shared) -> tuple[report.Picture, bytes]:
    """Draw the top left corner of the result, as large as a picture may be; of a large model only every n-th cell."""
    stride = -(-max(grid.heights.shape) // _MOST_PIXELS)
    rows, columns = (min(length, _MOST_PIXELS * stride) for length in done.task.shape)
    seen = (slice(0, rows, stride), slice(0, columns, stride))
    tinted = terrain.colours(done.grid[seen], done.shade[seen], grid.low, grid.high)
    return report.Picture(path, rows, columns, stride), png.encode(tinted)


def _check_output(path: str, source: str) -> None:
    """Raise `_WrongError` when the picture could not be written, before anything takes long."""
    try:
        if os.path.isdir(path) or not os.path.basename(path):
            raise IsADirectoryError(None, "it is a directory")
        if os.path.exists(path):
            if os.path.samefile(path, source):
                message = f"--output {path} is the file to be read"
                raise _WrongError(message)
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "it may not be written")
        if _is_replaceable(path):
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
                pass
    except (OSError, ValueError) as error:
        message = f"the picture cannot be written to {path}: {getattr(error, 'strerror', error)}"
        raise _WrongError(message) from None


def _is_replaceable(path: str) -> bool:
    """Say whether a new file may take this name; a device or a pipe is written to instead."""
    return os.path.isfile(path) or not os.path.exists(path)


def _write(path: str, data: bytes) -> None:
    """Write a file whole: under its own name there is never half a picture."""
    if not _is_replaceable(path):
        with open(path, "wb") as file:
            file.write(data)
        return
    target = os.path.realpath(path)
    part = f"{target}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)
