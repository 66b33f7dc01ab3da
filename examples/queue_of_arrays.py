"""Arrays through a queue, as handles; a worker that is killed is noticed."""

from __future__ import annotations

import multiprocessing as mp
import signal

import shmarray as sa
from shmarray.queues import JoinableQueue


def normalise(jobs: JoinableQueue, *, die: bool = False) -> None:
    """Take arrays until None comes and change each in place; or be killed with the first one at work."""
    while (frame := jobs.get()) is not None:
        if die:
            signal.raise_signal(signal.SIGKILL)
        frame /= frame.max()
        jobs.task_done()
    jobs.task_done()


if __name__ == "__main__":
    with sa.Store() as store:
        queue = store.JoinableQueue()
        frames = [store.full((480, 640), n + 1.0) for n in range(4)]
        queue.put(frames[0])  # a handle of some hundred bytes, whatever the array's size
        victim = mp.Process(target=normalise, args=(queue,), kwargs={"die": True})
        victim.start()
        try:
            queue.join()
        except sa.LostTaskError as lost:
            print(f"{lost.count} task was lost with its worker")
        victim.join()
        for item in (*frames, None):
            queue.put(item)
        worker = mp.Process(target=normalise, args=(queue,))
        worker.start()
        queue.join()
        worker.join()
        print("the largest values are now", {float(frame.max()) for frame in frames})
