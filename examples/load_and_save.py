"""Files loaded straight into shared memory, worked on by processes, and saved again: no second copy on the way."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile

import numpy as np

import shmarray as sa


def centre(frames: sa.SharedArray, column: int) -> None:
    """Work on one column where it is."""
    frames[:, column] -= frames[:, column].mean()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, sa.Store() as store:
        path = os.path.join(folder, "frames.npy")
        np.save(path, np.arange(12.0).reshape(4, 3))

        frames = store.load(path, name="frames")  # read into the block itself
        workers = [mp.Process(target=centre, args=(frames, column)) for column in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        store.save(path, frames)  # whoever opens it sees the old file or the new one
        print(np.load(path)[0])

        archive = os.path.join(folder, "all.npz")
        store.save(archive, {"frames": frames, "rate": 25}, compressed=True)
        tree = store.load(archive)  # all arrays in one block
        print(tree["frames"].shape, tree["rate"])

        frames.tofile(os.path.join(folder, "frames.raw"))
        raw = store.load(os.path.join(folder, "frames.raw"), dtype=float, shape=(-1, 3))
        print((raw == frames).all())
