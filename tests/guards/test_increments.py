"""A million additions by eight processes that are killed at random: none is lost, and no two are inside together."""

from __future__ import annotations

import os
import random
import signal
from multiprocessing import get_context
from typing import Any

import pytest

import shmarray as sa

TIMES = 1_000_000
PROCESSES = 8
KILLS = 200


def add(array: sa.SharedArray) -> None:
    """Add one, under the guard, until the sum is reached.

    Elements: the sum; a second counter of the same; who is inside; how often the two detectors disagreed with the guard; the sum to
    be reached, 0 as long as it is not known.
    """
    me = os.getpid()
    while True:
        try:
            with array.write() as x:
                if x[2] or x[0] != x[1]:
                    x[3] += 1  # someone is inside, or was and the guard did not say that it died
                if 0 < x[4] <= x[0]:
                    return
                x[2] = me
                x[0] += 1
                x[1] += 1
                x[2] = 0
        except sa.PoisonedError:
            with array.write(heal=True) as x:
                x[0] = x[1] = max(x[0], x[1])  # it may have died between the two: then its addition counts
                x[2] = 0


@pytest.mark.usefixtures("survival")
def test_a_million_additions_by_eight_processes_lose_none_to_two_hundred_deaths() -> None:
    """Occupancy mark and the two counters agree at the end, whoever was killed."""
    context: Any = get_context("fork")
    dice = random.Random(5)  # noqa: S311  the same victims each time
    with sa.Store() as store:
        array = store.zeros(5, dtype="i8")
        running = [context.Process(target=add, args=(array,), daemon=True) for _ in range(PROCESSES)]
        for process in running:
            process.start()
        for kill in range(1, KILLS + 1):
            while array[0] < kill * TIMES // (KILLS + 1):
                running[0].join(0.001)
            victim = running.pop(dice.randrange(PROCESSES))
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            running.append(context.Process(target=add, args=(array,), daemon=True))
            running[-1].start()
        with array.write(heal=True) as x:
            x[0] = x[1] = max(x[0], x[1])
            x[2] = 0
            x[4] = max(TIMES, x[0])  # on a machine with much to do they are ahead of the deaths
        goal = int(array[4])
        for process in running:
            process.join(300)
            assert process.exitcode == 0
        with array.read() as x:
            assert x[:2].tolist() == [goal, goal]
            assert x[3] == 0, "two were inside together, or a death was not told"
