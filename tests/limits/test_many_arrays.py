"""Many small arrays at once, under the descriptor limit of a plain shell."""

from __future__ import annotations

import time

from tests.helpers.processes import run_script

COUNT = 10_000

SCRIPT = """
import gc, multiprocessing, os, resource, sys, time
import numpy as np, shmarray as sa
from tests.helpers import leaks
from tests.limits import workers

COUNT = %d

def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    with sa.Store() as store:
        before = len(leaks.descriptors())
        arrays = [store.full(512, number, name=f"arrays/{number}") for number in range(COUNT)]
        assert len(leaks.descriptors()) == before, "descriptors are held"
        assert len(store) == COUNT and store.stats().named == COUNT
        assert [int(array[0]) for array in arrays] == list(range(COUNT))
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                total, idle, busy = pool.apply(workers.attach_all, (store, COUNT))
                assert total == COUNT * (COUNT - 1) // 2
                assert busy == idle, "the worker holds descriptors"
                total, busy = pool.apply(workers.load_all, (arrays[:1000],))
                assert total == 1000 * 999 // 2
                assert busy <= idle + 1, "the worker holds more than that by which it can come back"
                pool.close()
                pool.join()
            assert len({int(array[1]) for array in arrays}) == 1 and arrays[5][1] != 5
        anonymous = [store.full(512, number) for number in range(1000)]
        assert sorted(store) == sorted(f"arrays/{number}" for number in range(COUNT))
        ours = [path for path in leaks.descriptors().values() if "/dev/shm/" in path and "sem." not in path]
        assert not ours, ours                       # what multiprocessing keeps open is its own affair
        del arrays[: COUNT // 2]
        for number in range(0, COUNT, 2):
            del store[f"arrays/{number}"]
        assert len(store) == COUNT // 2
        del anonymous
        assert store.stats().anonymous == 0
    print("done")

if __name__ == "__main__":
    main()
"""


def test_ten_thousand_named_arrays_at_once_under_256_descriptors() -> None:
    """All of them mapped here and in workers, no descriptor held for any, in a reasonable time, and nothing is left."""
    began = time.monotonic()
    assert run_script(SCRIPT % COUNT, timeout=110).expect() == "done\n"
    assert time.monotonic() - began < 90
