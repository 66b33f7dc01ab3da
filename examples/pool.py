"""A pool of workers that belongs to the store: arrays pass as handles, to the workers and back."""

from __future__ import annotations

import numpy as np

import shmarray as sa


def brighten(frame: sa.SharedArray) -> sa.SharedArray:
    """Change an array where it is, and give it back: a handle again."""
    frame += 10
    return frame


if __name__ == "__main__":
    with sa.Store() as store:
        frames = [store.zeros((480, 640), np.uint8) for _ in range(4)]
        with store.Pool(2) as pool:
            back = pool.map(brighten, frames)
        print("back:", [int(frame.mean()) for frame in back])
        print("here:", [int(frame.mean()) for frame in frames])  # no copy was made
