"""A stack and a queue by priority, both shared by processes."""

from __future__ import annotations

import multiprocessing as mp

import shmarray as sa
from shmarray.queues import LifoQueue, PriorityQueue


def produce(stack: LifoQueue, urgent: PriorityQueue) -> None:
    """Put some values into both."""
    for number in range(3):
        stack.put(number)
    urgent.put((2, "write the report"))
    urgent.put((1, "put out the fire"))


if __name__ == "__main__":
    with sa.Store() as store:
        last_first = store.LifoQueue()
        least_first = store.PriorityQueue()
        producer = mp.Process(target=produce, args=(last_first, least_first))
        producer.start()
        producer.join()  # what it has put is in shared memory, and stays when it has ended
        print([last_first.get() for _ in range(3)])
        print([least_first.get()[1] for _ in range(2)])
