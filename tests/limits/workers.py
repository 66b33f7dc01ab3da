"""What worker processes do in the tests of limits. Imported by name under spawn, so it does not know pytest."""

from __future__ import annotations

import gc
import os
import resource
from typing import Any

import numpy as np

import shmarray as sa
from tests.helpers import leaks


def fill_up(store: sa.Store, number: int, steps: int) -> tuple[int, int]:
    """Make, drop, publish and replace arrays of random size; returns how often there was room, and how often none."""
    rng = np.random.default_rng(number)
    kept: list[Any] = []
    made = refused = 0
    for step in range(steps):
        size = int(rng.integers(1, 60_000))
        try:
            if step % 5 == 0:
                store[f"n{step % 3}"] = np.full(size, number, "u1")
            elif step % 5 == 1:
                kept.append(store.put({"a": np.full(size, number, "u1")})["a"])
            else:
                kept.append(store.full(size, number, "u1"))
            made += 1
        except sa.StoreFullError:
            refused += 1
            while kept:
                assert (kept.pop() == number).all()
        if len(kept) > 6:
            assert (kept.pop(0) == number).all()
    return made, refused


def attach_all(store: sa.Store, count: int) -> tuple[int, int, int]:
    """Attach `count` named arrays at once with few descriptors; returns a checksum, and descriptors before and after."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    before = len(leaks.descriptors())
    arrays = [store[f"arrays/{number}"] for number in range(count)]
    after = len(leaks.descriptors())
    total = 0
    for number, array in enumerate(arrays):
        assert isinstance(array, sa.SharedArray)
        assert array[0] == number
        total += int(array[-1])
        array[1] = os.getpid()
    return total, before, after


def load_all(arrays: list[Any]) -> tuple[int, int]:
    """Sum arrays that came as handles; returns the sum and the open descriptors."""
    gc.collect()
    return sum(int(array[-1]) for array in arrays), len(leaks.descriptors())
