"""Very many small arrays at once: no descriptor, few mappings, and all of it comes back."""

from __future__ import annotations

from multiprocessing import get_context

import pytest

import shmarray as sa
from tests.helpers import leaks
from tests.limits.small import run_in_small_memory
from tests.smalls import workers
from tests.smalls.things import files, is_whole, made

MOST_OVERHEAD = 300
"""Bytes of shared memory for each array of 4 KiB, beyond its data."""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ten_thousand_at_once_cost_no_descriptor_and_few_mappings(method: str) -> None:
    """Here and in a worker that has them all; each is what it was made as."""
    count = 10_000
    with sa.Store() as store:
        before, mapped = leaks.descriptors(), len(leaks.mappings())
        arrays = [made(store, number) for number in range(count)]
        assert set(leaks.descriptors().values()) <= set(before.values())
        assert len(leaks.mappings()) - mapped < 60
        assert store.stats().anonymous == count
        assert store.stats().nbytes <= count * (4096 + MOST_OVERHEAD) + (4 << 20)
        assert all(is_whole(array, number) for number, array in enumerate(arrays))
        with get_context(method).Pool(1) as pool:
            assert pool.apply(workers.check_all, (arrays, 0)) == (count, 0)
            pool.close()
            pool.join()
        del arrays[::2]
        assert store.stats().anonymous == count // 2
        assert all(is_whole(array, 2 * number + 1) for number, array in enumerate(arrays))
        for _ in range(5):
            more = [made(store, number) for number in range(count // 2)]
            assert all(is_whole(array, number) for number, array in enumerate(more))
            del more
        # What others had seen is asked about when half as much again was made.
        assert store.stats().nbytes <= 1.6 * count * (4096 + MOST_OVERHEAD) + (4 << 20)
        del arrays
        assert store.stats().anonymous == 0
        store.trim()
        assert files(store) == set()


MANY = """
import numpy as np, shmarray as sa
from tests.helpers import leaks
from tests.smalls.things import is_whole, made
COUNT = 100_000
with sa.Store() as store:
    before = len(leaks.descriptors())
    arrays = [made(store, number) for number in range(COUNT)]
    assert len(leaks.descriptors()) == before
    assert store.stats().anonymous == COUNT
    assert store.stats().nbytes <= COUNT * 4396, store.stats()
    assert all(is_whole(array, number) for number, array in enumerate(arrays))
    del arrays
    store.trim()
    assert store.stats().nbytes == 0
print("done")
"""


def test_a_hundred_thousand_at_once_fit_into_a_gibibyte(request: pytest.FixtureRequest) -> None:
    """Of which their data take 400 MB."""
    if not request.config.getoption("--deep"):
        pytest.skip("only with --deep")
    assert run_in_small_memory(MANY, "size=1g", timeout=300).expect() == "done\n"


FULL = """
import shmarray as sa
from tests.smalls.things import is_whole, made
arrays = []
with sa.Store() as store:
    try:
        while True:
            arrays.append(made(store, len(arrays)))
    except sa.StoreFullError as error:
        print("full" if len(arrays) > 2000 else len(arrays))
    assert all(is_whole(array, number) for number, array in enumerate(arrays))
    assert store.check() == []
    del arrays[:100]
    again = [made(store, number) for number in range(50)]
    assert all(is_whole(array, number) for number, array in enumerate(again))
    assert all(is_whole(array, number) for number, array in enumerate(arrays, 100))
    del arrays, again
    store.trim()
    large = store.ones(10 << 20, "u1")
print("done")
"""


def test_a_full_memory_is_an_error_and_what_is_freed_can_be_used() -> None:
    """Slabs become smaller at the end, down to a block for one array."""
    assert run_in_small_memory(FULL, "size=16m").expect() == "full\ndone\n"
