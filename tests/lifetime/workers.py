"""What processes do in the tests of replacing. Imported by name under spawn, so it does not know pytest."""

from __future__ import annotations

from typing import Any

import numpy as np

import shmarray as sa

SIZE = 20_000
READS = 300


def line_up(start: tuple[Any, Any]) -> None:
    """Say that this process is there, and wait until all are. A Barrier would leave a descriptor of multiprocessing's open."""
    ready, go = start
    ready.release()
    assert go.wait(60)


def write(store: sa.Store, number: int, stop: Any, start: tuple[Any, Any] | None = None) -> None:
    """Publish arrays filled with one value, each another, until told to stop."""
    if start is not None:
        line_up(start)
    value = number
    while not stop.is_set():
        store["w"] = np.full(SIZE, value)
        value += 10


def read(store: sa.Store, results: Any, start: tuple[Any, Any]) -> None:
    """Look the array up a number of times, and until there was news; report how often it was torn, and how many were seen."""
    line_up(start)
    reads = torn = 0
    seen: set[int] = set()
    try:
        while reads < READS or (len(seen) < 3 and reads < 100 * READS):
            array = store["w"]
            assert isinstance(array, sa.SharedArray)
            values = {int(array.min()), int(array.max())}
            torn += len(values) != 1
            seen |= values
            reads += 1
    except BaseException as error:
        results.put(repr(error))
        raise
    results.put((torn, len(seen)))


def make(store: sa.Store, number: int, results: Any) -> None:
    """Try to make eight names; report which were won."""
    won = []
    for name in "abcdefgh":
        try:
            store.full(100, number, name=name)
        except sa.ArrayExistsError:
            won.append(False)
        else:
            won.append(True)
    results.put((number, won))
