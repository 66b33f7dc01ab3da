"""An event, a condition and a barrier; the barrier breaks when one of its processes is killed."""

from __future__ import annotations

import multiprocessing as mp
import signal

import shmarray as sa
from shmarray.sync import Barrier, Condition, Event


def work(start: Event, changed: Condition, steps: sa.SharedArray, together: Barrier) -> None:
    """Wait for the start, do a step, meet the others, and be killed."""
    start.wait()
    with changed:
        steps += 1
        changed.notify_all()
    together.wait()
    signal.raise_signal(signal.SIGKILL)


if __name__ == "__main__":
    with sa.Store() as store:
        event, condition, barrier = store.Event(), store.Condition(), store.Barrier(3)
        count = store.zeros((), int)
        workers = [mp.Process(target=work, args=(event, condition, count, barrier)) for _ in range(2)]
        for worker in workers:
            worker.start()
        event.set()
        with condition:
            condition.wait_for(lambda: count == len(workers))
        print("both have done their step")
        print("all three met:", barrier.wait() in range(3))
        try:
            barrier.wait(timeout=10)  # the others will not come any more
        except sa.BrokenBarrierError:
            print("the barrier is broken, and nobody waits for the dead")
        for worker in workers:
            worker.join()
