"""A type of one's own as one object for all: it lives in the store's host, workers use it by proxies, arrays pass as handles."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

import shmarray as sa


class Leaderboard:
    """The best picture so far. The host calls each client's methods in a thread of its own: one `store.Lock` keeps them apart."""

    def __init__(self, lock: Any) -> None:
        """Begin with nothing."""
        self.lock, self.score = lock, -1.0
        self.picture: sa.SharedArray | None = None

    def offer(self, score: float, picture: sa.SharedArray) -> bool:
        """Keep a picture if it is better than what is there; its bytes stay where they are."""
        with self.lock:
            if score <= self.score:
                return False
            self.score, self.picture = score, picture
            return True

    def best(self) -> tuple[float, sa.SharedArray | None]:
        """Give the best."""
        return self.score, self.picture


class Studio(sa.Store):
    """Stores of this class make leaderboards."""

    Leaderboard: Any  # a method, made by `register`


Studio.register("Leaderboard", Leaderboard)


def paint(job: tuple[Studio, Any, int]) -> bool:
    """Make a picture and offer it; runs in a worker. The proxy has come by pickle, as the store has."""
    store, board, seed = job
    picture = store.put(np.random.default_rng(seed).random((64, 64)))
    return bool(board.offer(float(picture.std()), picture))


if __name__ == "__main__":
    with Studio() as store, ProcessPoolExecutor(2) as pool:
        board = store.Leaderboard(store.Lock())
        kept = sum(pool.map(paint, [(store, board, seed) for seed in range(20)]))
        score, picture = board.best()
        print(f"kept {kept} of 20; the best has {score:.4f}, and is shared: {picture.is_shared}")
