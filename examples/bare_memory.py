"""Bare shared memory that goes by itself, also attached by the standard library's class."""

from __future__ import annotations

import multiprocessing as mp

import shmarray as sa
from shmarray.memory import SharedMemory


def write(memory: SharedMemory) -> None:
    """Write some bytes; the object came as a handle, and nothing has to be closed or unlinked."""
    view = memory.buf
    assert view is not None
    view[:5] = b"hello"


if __name__ == "__main__":
    with sa.Store() as store:
        shared = store.SharedMemory(64, name="scratch")
        worker = mp.Process(target=write, args=(shared,))
        worker.start()
        worker.join()
        again = store["scratch"].buf  # by its name in the store
        print(bytes(again[:5]), shared.size, sorted(store))
