"""A pipeline: a camera flies over an elevation model, workers shade what it sees, the last stage looks at it and keeps some pictures.

    python examples/pipeline.py [--frames N] [--workers N] [--pictures DIR] [--quick]

It runs twice: with channels, where each frame is filled, shaded and looked at where it lies, and with `multiprocessing.Queue`.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import shmarray as sa
from shmarray.channels import Channel
from shmarray.demo import png, sources, terrain

TILES = 6  # the model is repeated so often each way
FRAME = (720, 1280)
EVERY = 50  # one frame in so many is kept as a picture

Frames = Iterator[tuple[int, NDArray[np.uint8]]]


class Result(NamedTuple):
    """What came out of one run: from the first picture to the last, and what all processes worked for it.

    `light` is the sum of all pixels, so that both runs can be compared.
    """

    label: str
    frames: int
    seconds: float
    light: int
    work: float = 0.0


def views(model: NDArray[Any], frames: int) -> Iterator[NDArray[Any]]:
    """Fly over the tiled model: what the camera sees, one view after the other."""
    ground = terrain.mirror_tiles(model, TILES)
    room = np.array(ground.shape) - FRAME
    for number in range(frames):
        turn = 2 * np.pi * number / 300
        row, column = (room * (0.5 + 0.5 * np.sin([turn, 2 * turn]))).astype(int)
        yield ground[row : row + FRAME[0], column : column + FRAME[1]]


# -- with channels -----------------------------------------------------------------------------------------------------


def fly(heights: Channel, model: NDArray[Any], frames: int, _workers: int) -> None:
    """Fill a slot with each view. The stream ends when this process does."""
    for number, view in enumerate(views(model, frames)):
        with heights.loan(meta=number) as frame:
            frame[:] = view


def shade(heights: Channel, shaded: Channel, cell: terrain.Cell) -> None:
    """Shade from slot to slot. The loan comes first: who takes a frame is then a producer of the next stage already."""
    with contextlib.suppress(sa.ChannelClosedError):  # the camera is done, and all frames are taken
        while True:
            loan = shaded.loan()
            with loan as picture, (item := heights.receive()) as frame:
                terrain.hillshade(frame, cell, out=picture)
                loan.meta = item.meta


def shown(shaded: Channel, _workers: int) -> Frames:
    """Give the pictures where they lie, until the last worker has closed the channel."""
    with contextlib.suppress(sa.ChannelClosedError):
        while True:
            with (item := shaded.receive()) as picture:
                yield item.meta, picture


# -- the same with multiprocessing.Queue -------------------------------------------------------------------------------


def fly_by_queue(heights: Any, model: NDArray[Any], frames: int, workers: int) -> None:
    """Pickle each view, and tell each worker when there are no more."""
    for job in enumerate(views(model, frames)):
        heights.put(job)
    for _ in range(workers):
        heights.put(None)


def shade_by_queue(heights: Any, shaded: Any, cell: terrain.Cell) -> None:
    """Shade what was unpickled, and pickle the picture."""
    for number, frame in iter(heights.get, None):
        shaded.put((number, terrain.hillshade(frame, cell)))
    shaded.put(None)


def shown_by_queue(shaded: Any, workers: int) -> Frames:
    """Give the pictures, until each worker has said that it is done."""
    for _ in range(workers):
        yield from iter(shaded.get, None)


# -- both --------------------------------------------------------------------------------------------------------------


def look(label: str, frames: Frames, waiting: Callable[[], str], options: argparse.Namespace) -> Result:
    """Look at every picture: add up its light, keep some, and show in a terminal how fast they come."""
    done = light = 0
    began = now = time.perf_counter()
    for number, picture in frames:
        now = time.perf_counter()
        began = began if done else now  # starting processes is not counted
        done += 1
        light += int(picture.sum())
        if number % EVERY == 0:
            with open(os.path.join(options.pictures, f"frame{number:04}.png"), "wb") as file:
                file.write(png.encode(picture))
        if sys.stdout.isatty():
            rate = (done - 1) / max(now - began, 1e-9)
            print(f"\r{label}: {done}/{options.frames} frames, {rate:.0f}/s, {waiting()}\x1b[K", end="", flush=True)
    if sys.stdout.isatty():
        print("\r\x1b[K", end="")
    return Result(label, done, now - began, light)


def run(label: str, stages: tuple[Any, Any, Any], heights: Any, shaded: Any, options: argparse.Namespace) -> Result:
    """Start the camera and the workers, and be the last stage."""
    grid, (camera, worker, frames) = sources.load(sources.DEFAULT), stages
    crew = [mp.Process(target=camera, args=(heights, grid.heights, options.frames, options.workers))]
    crew += [mp.Process(target=worker, args=(heights, shaded, grid.cell)) for _ in range(options.workers)]
    before = os.times()
    for process in crew:
        process.start()
    waiting = lambda: f"{heights.qsize()} to shade, {shaded.qsize()} to look at"  # noqa: E731  it is one line of text
    result = look(label, frames(shaded, options.workers), waiting, options)
    for process in crew:
        process.join()
    work = sum(
        now - then for now, then in zip(os.times()[:4], before[:4], strict=True)
    )  # of this process and its children
    return result._replace(work=work)


def main() -> None:
    """Run both ways, and compare."""
    parser = argparse.ArgumentParser(
        description="Shade the views of a camera, by channels and by multiprocessing.Queue."
    )
    parser.add_argument("--frames", type=int, default=200, help="how many (200)")
    parser.add_argument("--workers", type=int, default=2, help="processes that shade (2)")
    parser.add_argument(
        "--pictures", default="pipeline", metavar="DIR", help=f"where every {EVERY}th frame goes (pipeline)"
    )
    parser.add_argument("--quick", action="store_true", help="20 frames")
    options = parser.parse_args()
    options.frames = 20 if options.quick else options.frames
    os.makedirs(options.pictures, exist_ok=True)

    slots = options.workers + 3
    with sa.Store() as store:
        heights = store.channel(FRAME, np.int16, slots=slots, name="heights")
        shaded = store.channel(FRAME, np.uint8, slots=slots, name="shaded")
        results = [run("channels", (fly, shade, shown), heights, shaded, options)]
    stages = (fly_by_queue, shade_by_queue, shown_by_queue)
    results.append(run("multiprocessing.Queue", stages, mp.Queue(slots), mp.Queue(slots), options))

    print(f"{'':24}{'frames':>8}{'seconds':>10}{'frames/s':>10}{'MB/s':>8}{'CPU s':>8}")
    for label, frames, seconds, _, work in results:
        rate = (frames - 1) / max(seconds, 1e-9)
        print(f"{label:24}{frames:8}{seconds:10.2f}{rate:10.0f}{rate * 3 * FRAME[0] * FRAME[1] / 1e6:8.0f}{work:8.2f}")
    print("both saw the same" if results[0].light == results[1].light else "they saw different pictures")
    left = [name for name in os.listdir("/dev/shm") if store.id in name]  # noqa: S108  where shared memory is
    print(f"pictures are in {options.pictures}; left in shared memory: {len(left)} entries")


if __name__ == "__main__":
    main()
