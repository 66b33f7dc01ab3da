"""A counter and an array with a lock, of any type that NumPy knows."""

from __future__ import annotations

import multiprocessing as mp

import shmarray as sa
from shmarray.values import Array, Value


def count(counter: Value, squares: Array, first: int) -> None:
    """Count a hundred times, and fill every other place."""
    for _ in range(100):
        with counter.get_lock():
            counter.value += 1
    for place in range(first, len(squares), 2):
        squares[place] = place**2


if __name__ == "__main__":
    with sa.Store() as store:
        total = store.Value("i")
        table = store.Array("d", 6)
        workers = [mp.Process(target=count, args=(total, table, first)) for first in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(total.value, table[:])
        print("with NumPy:", table.get_obj().sum())  # get_obj() is the SharedArray itself
