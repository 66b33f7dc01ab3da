"""A process that may write no long files (RLIMIT_FSIZE): what it makes is refused and says why, what it ends is ended whole."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import shmarray as sa
from tests.helpers.processes import run_script
from tests.warm.test_idling import BYTES, File, N, Reader

LIMITED = """
import pickle, resource, sys
import numpy as np, shmarray as sa
store = pickle.loads(bytes.fromhex(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
"""


def test_what_it_deletes_is_deleted_for_all_and_gives_its_memory_back() -> None:
    """Marking a block as deleted writes over what is there, far behind the limit."""
    with sa.Store(warm=0) as store:
        store["x"], store["y"] = np.ones(N), np.ones(N)
        held, stale = store["x"], pickle.dumps(store["x"])
        with File(store["y"]) as file, Reader(store) as idle:
            idle.do("a = store['y']; del a")
            assert (idle.maps(file.inode), file.memory() >= BYTES) == (1, True)
            code = LIMITED + "del store['x'], store['y']"
            run_script(code, pickle.dumps(store).hex()).expect()
            assert (list(store), file.links(), file.memory() < BYTES // 2) == ([], 0, True)
            with pytest.raises(sa.ArrayNotFoundError):
                pickle.loads(stale)
            assert (held == 1.0).all()
            idle.finish().expect()


def test_what_it_cannot_make_is_said_to_be_too_long_and_not_that_memory_is_full() -> None:
    """With the limit, and how it is raised."""
    code = LIMITED + (
        """
for make in (lambda: store.put(np.ones(40000)), lambda: store.full(40000, 2.0), lambda: store.__setitem__("x", np.ones(40000))):
    try:
        make()
    except sa.StoreFullError as error:
        assert (error.limit, "4.0 KiB" in str(error), "ulimit -f" in error.remedy) == (4096, True, True), str(error)
    else:
        raise AssertionError("there was room")
assert list(store) == ["x"] and store["x"].sum() == 40000
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert store.full(40000, 2.0).sum() == 80000
"""
    )
    with sa.Store(warm=0) as store:
        store["x"] = np.ones(N)
        run_script(code, pickle.dumps(store).hex()).expect()
        assert store.check() == []
