"""A row of numbers and texts of fixed size, changed in place by another process."""

from __future__ import annotations

import multiprocessing as mp

import shmarray as sa
from shmarray.memory import ShareableList


def finish(row: ShareableList) -> None:
    """Change some places; each new value is there whole or not at all."""
    row[0] = "done"
    row[1] += 0.5
    row[3] = None


if __name__ == "__main__":
    with sa.Store() as store:
        shared = store.ShareableList(["waiting", 1.5, "grün", True, b"end\0"])
        worker = mp.Process(target=finish, args=(shared,))
        worker.start()
        worker.join()
        print(list(shared))
        print("at", shared.index("grün"), "of", len(shared))
