"""What child processes do in the tests of guards; importable, so that every start method finds it."""

from __future__ import annotations

import os
import signal
from typing import Any

import shmarray as sa
from tests.helpers import tracing


def hold_write(array: sa.SharedArray, line: Any) -> None:
    """Enter exclusively, say so, and leave when told."""
    with array.write() as x:
        x[:] += 1
        line.send("inside")
        line.poll(None)


def hold_read(array: sa.SharedArray, line: Any) -> None:
    """Enter shared, say so, and leave when told."""
    with array.read():
        line.send("inside")
        line.poll(None)


def hold_lock(array: sa.SharedArray, line: Any) -> None:
    """Take the lock of an array, say so, and let go when told."""
    with array.lock:
        line.send("inside")
        line.poll(None)


def add(array: sa.SharedArray, times: int) -> None:
    """Add one to the first element, many times, each under the guard; the second is a mark of who is inside."""
    me = os.getpid()
    for _ in range(times):
        with array.write(heal=True) as x:
            if x[1]:
                x[2] += 1  # someone else is inside: the test looks at this
            x[1] = me
            x[0] += 1
            x[1] = 0


def add_until_killed(array: sa.SharedArray) -> None:
    """Add one to the first element until SIGKILL; a mark says that the addition has been made and not yet counted."""
    while True:
        with array.write(heal=True) as x:
            # What is killed here is found by the next: mark, then both counters, then no mark.
            if x[1]:
                x[0] = x[2] = max(int(x[0]), int(x[2]))
                x[3] += 1
            x[1] = 1
            x[0] += 1
            x[2] += 1
            x[1] = 0


def die_at(array: sa.SharedArray, how: str, n: int) -> None:
    """Enter and leave a guard, killed at the n-th line that the package runs."""
    with tracing.kill_at(n):
        enter_and_leave(array, how)


def enter_and_leave(array: sa.SharedArray, how: str) -> None:
    """Enter a guard, do a little, leave it."""
    if how == "lock":
        with array.lock:
            array[0] += 1
    elif how == "write":
        with array.write() as x:
            x[0] += 1
    else:
        with array.read() as x:
            x.sum()


def count_in(counter: Any, times: int) -> None:
    """Add to a shared value, many times."""
    for _ in range(times):
        counter.add(1)


def take_and_die(permits: Any) -> None:
    """Take a permit and be killed with it."""
    permits.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def pass_barrier(barrier: Any, numbers: Any, rounds: int) -> None:
    """Pass a barrier many times; put this one's numbers into a queue."""
    numbers.put([barrier.wait(30) for _ in range(rounds)])


def wait_in(barrier: Any, broken: Any) -> None:
    """Wait at a barrier; tell if it breaks."""
    try:
        barrier.wait(30)
    except sa.BrokenBarrierError:
        broken.set()


def wait_notified(condition: Any, waiting: Any, woken: Any) -> None:
    """Wait once for a notification; count the waiting and the woken."""
    with condition:
        waiting.add(1)
        if condition.wait(30):
            woken.add(1)
