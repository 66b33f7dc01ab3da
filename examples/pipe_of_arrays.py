"""A pipe between two processes; an end may travel, and its death is told to the other end."""

from __future__ import annotations

import multiprocessing as mp
import signal

import shmarray as sa
from shmarray.queues import Connection


def answer(end: Connection) -> None:
    """Double each array where it is and send it back; be killed when told so."""
    while (array := end.recv()) is not None:
        array *= 2
        end.send(array)
    signal.raise_signal(signal.SIGKILL)


if __name__ == "__main__":
    with sa.Store() as store:
        mine, theirs = store.Pipe()
        worker = mp.Process(target=answer, args=(theirs,))
        worker.start()
        numbers = store.ones(5)
        mine.send(numbers)
        back = mine.recv()
        print(numbers, "is what came back:", bool((back == numbers).all()))

        mine.send(None)
        worker.join()
        theirs.close()  # this process had that end as well
        try:
            mine.recv()
        except EOFError:
            print("the other end is gone")
