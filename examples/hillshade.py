"""Shade a large elevation model by worker processes that share it: nothing is copied to them, and nothing back.

    python examples/hillshade.py [MODEL] [PICTURE]

MODEL is a `.npy` or `.npz` file with a 2-d array of heights; PICTURE is where the PNG goes (hillshade.png).
`python -m shmarray demo` does the same next to pickling, and measures both.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import shmarray as sa
from shmarray.demo import png, sources, terrain

TILES = 20  # the model is repeated so often each way
BANDS = 8

Job = tuple[sa.SharedArray, sa.SharedArray, terrain.Cell, int, int]


def shade_band(job: Job) -> int:
    """Shade some rows; runs in a worker. Both arrays came as handles of some hundred bytes to memory that is shared."""
    heights, shade, cell, start, stop = job
    terrain.hillshade(heights, cell, start, stop, out=shade[start:stop])
    return stop - start


def main(model: str = sources.DEFAULT, picture: str = "hillshade.png") -> None:
    """Shade the model and write the picture."""
    grid = sources.load(model)
    with sa.Store() as store, ProcessPoolExecutor() as pool:
        # One copy, in. The result has its place in shared memory too.
        heights = store.put(terrain.mirror_tiles(grid.heights, TILES), name="heights")
        shade = store.zeros(heights.shape, np.uint8, name="shade")

        began = time.perf_counter()
        jobs = [(heights, shade, grid.cell, start, stop) for start, stop in terrain.bands(len(heights), BANDS)]
        rows = sum(pool.map(shade_band, jobs))
        seconds = time.perf_counter() - began
        print(f"{rows} x {heights.shape[1]} cells, {heights.nbytes / 2**20:.0f} MiB, shaded in {seconds:.2f} s")

        # What the workers wrote is here: `heights` and `shade` are ndarrays.
        corner = np.s_[:2048, :2048]
        pixels = terrain.colours(heights[corner], shade[corner], grid.low, grid.high)

    # Leaving the store has freed all of it, once.
    left = [name for name in os.listdir("/dev/shm") if store.id in name]  # noqa: S108  where shared memory is
    print(f"left in shared memory: {len(left)} entries")

    with open(picture, "wb") as file:
        file.write(png.encode(pixels))
    print(f"the top left corner, {pixels.shape[1]} x {pixels.shape[0]} pixels, is in {picture}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except sources.GridError as error:
        sys.exit(f"hillshade: {error}")
