"""Locks and semaphores that come free when their holder is killed."""

from __future__ import annotations

import multiprocessing as mp
import signal

import shmarray as sa
from shmarray.locks import Lock
from shmarray.sync import Semaphore


def hold_and_die(lock: Lock, permits: Semaphore) -> None:
    """Take the lock and a permit, and be killed with both."""
    lock.acquire()
    permits.acquire()
    signal.raise_signal(signal.SIGKILL)


if __name__ == "__main__":
    with sa.Store() as store:
        lock, permits = store.Lock(), store.BoundedSemaphore(1)
        worker = mp.Process(target=hold_and_die, args=(lock, permits))
        worker.start()
        worker.join()
        with lock, permits:  # with multiprocessing's own this would wait for ever
            print("a killed holder is in nobody's way")

        again = store.RLock()
        with again, again:
            print("an RLock may be taken again by who has it")
        print("held now:", lock.locked() or again.locked(), "| permits:", permits.get_value())
