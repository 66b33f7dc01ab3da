"""A type of one's own, served to plain managers of the standard library on the network; here by the loopback."""

from __future__ import annotations

import multiprocessing as mp
import secrets
from multiprocessing.managers import BaseManager

import shmarray as sa


class Stock:
    """Lives in the store's host, a process of its own."""

    def __init__(self, name: str) -> None:
        """Begin empty."""
        self.name, self.count = name, 0

    def add(self, pieces: int) -> str:
        """Add some, and say how many there are."""
        self.count += pieces
        return f"{self.count} {self.name}"


def client(address: tuple[str, int], key: bytes) -> None:
    """What another machine would do, which needs neither this library nor the class."""
    manager = BaseManager(address, key)
    manager.register("Stock")
    manager.connect()
    print(manager.Stock("screws").add(100))  # type: ignore[attr-defined]  # made by `register`


if __name__ == "__main__":
    sa.Store.register("Stock", Stock)
    secret = secrets.token_bytes(32)  # whoever knows it can run any code as this user
    with sa.Store(address=("127.0.0.1", 0), authkey=secret) as store:
        process = mp.Process(target=client, args=(store.address, secret))
        process.start()
        process.join()
