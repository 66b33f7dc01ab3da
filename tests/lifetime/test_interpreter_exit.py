"""The end of an interpreter is silent and clean, wherever references to arrays were left."""

from __future__ import annotations

import pickle
import textwrap

import pytest

from tests.helpers import leaks
from tests.helpers.processes import Child, run_script, wait_until

PLACES = {
    "globals": "a, b, c = anonymous, named, tree",
    "builtins": "import builtins; builtins.kept = [anonymous, named, tree, store]",
    "sys.modules": "import types; m = types.ModuleType('m'); m.kept = [anonymous, named, tree, store]; sys.modules['m'] = m",
    "a class": "class C: kept = [anonymous, named, tree, store]",
    "a default": "def f(x=[anonymous, named, tree, store]): pass",
    "a thread": "import threading; e = threading.Event()\n"
    "threading.Thread(target=lambda x: e.wait(), args=([anonymous, store],), daemon=True).start()",
    "thread locals": "import threading; local = threading.local(); local.kept = [anonymous, named, tree, store]",
    "a generator": "def g():\n    x = anonymous[1:]\n    yield x\n    yield store\nit = g(); next(it)",
    "a frame": "sys.frames = [sys._getframe()]",
    "a traceback": "try:\n    store['nothing']\nexcept KeyError as e:\n    error = e",
    "a cycle": "x = [anonymous, named, tree, store]; x.append(x)",
    "an atexit function": "import atexit; atexit.register(lambda x: x.sum(), anonymous[1:])",
    "a finalizer": "import weakref; weakref.finalize(sys, lambda x: x.sum(), anonymous[1:])",
    "a cache": "import functools; f = functools.lru_cache(lambda k: store[k]); f('n')",
    "the collector": "import gc; gc.disable(); x = [anonymous]; x.append(x); gc.callbacks.append(lambda *_: anonymous)",
    "a closed store": "store.close(); x = [anonymous, named]",
    "__del__": """
class D:
    def __init__(self, a): self.a = a
    def __del__(self): self.a[...] = 7; assert self.a[-1] == 7
kept = D(anonymous[1:])
cycle = D(named)
cycle.me = cycle
""",
}

START = """
import sys
import numpy as np, shmarray as sa
store = sa.Store()
anonymous, named, tree = store.zeros(5), store.ones(4, name="n"), store.put({"leaf": [np.ones(3)]})
"""


@pytest.mark.parametrize("place", PLACES)
def test_references_left_anywhere_do_no_harm(place: str) -> None:
    """No word on standard error, no name left, exit status 0."""
    run_script(START + PLACES[place] + "\n", flags=("-W", "error")).expect()


@pytest.mark.core
def test_objects_with_finalizers_in_cycles_touch_arrays_safely() -> None:
    """`__del__` in cycles reads and writes arrays while the collector takes everything apart: no crash, right contents."""
    script = """
    import gc, pickle
    import numpy as np, shmarray as sa

    class Toucher:
        def __init__(self, store, array):
            self.array, self.store, self.me = array, store, self
        def __del__(self):
            self.array += 1
            total = float(self.array.sum())
            assert total == self.array.size, total
            again = pickle.loads(pickle.dumps(self.array))
            assert np.shares_memory(again, self.array)
            sums.append(total)

    sums = []
    with sa.Store() as store:
        for kind in ("anonymous", "view", "named", "tree", "loaded", "read"):
            for _ in range(20):
                array = store.zeros(6, name="x" if kind == "named" else None)
                if kind == "view": array = array[::-2]
                if kind == "tree": array = store.put([np.zeros(3)])[0]
                if kind == "loaded": array = pickle.loads(pickle.dumps(array))
                toucher = Toucher(store, array)
                other = Toucher(store, store.zeros(2))
                toucher.other, other.other = other, toucher
                del toucher, other, array
                if kind == "named": gc.collect(); del store["x"]
            gc.collect()
        assert len(sums) == 2 * 6 * 20, len(sums)
        stats = store.stats()
        assert (stats.anonymous, stats.in_flight, stats.attached) == (0, 0, 0), stats
    print("done")
    """
    assert run_script(textwrap.dedent(script)).expect() == "done\n"


@pytest.mark.core
def test_finalizers_at_exit_may_touch_arrays() -> None:
    """Cycles that only the end of the interpreter breaks: their `__del__` still sees valid memory."""
    script = """
    import gc, sys
    import numpy as np, shmarray as sa
    gc.disable()

    class Toucher:
        def __init__(self, array):
            self.array, self.me = array, self
        def __del__(self):
            self.array[...] = 3
            sys.stdout.write(f"{self.array[0]:.0f}")

    store = sa.Store()
    for number in range(10):
        Toucher(store.zeros(1000)[number:])
        Toucher(store.zeros(1000, name=f"n{number}"))
    kept = Toucher(store.put([np.ones(3)])[0])
    sys.kept = Toucher(store.ones(2))
    """
    assert set(run_script(textwrap.dedent(script)).expect()) <= {"3"}


@pytest.mark.core
def test_the_end_of_the_owner_ends_the_store_for_all() -> None:
    """The owner's script just ends, without `close()`, while another holds arrays: these stay valid, the names are gone."""
    owner = """
import numpy as np, shmarray as sa, pickle
from tests.helpers.processes import report
store = sa.Store()
named, anonymous = store.ones(3, name="n"), store.ones(4)
report("ready", [store.id, pickle.dumps([named, anonymous]).hex()])
input()
"""
    with Child(owner) as child:
        identity, handles = child.wait_for("ready")
        named, anonymous = pickle.loads(bytes.fromhex(handles))
        child.tell()
        child.finish().expect()
        wait_until(lambda: not [name for name in leaks.shm_entries() if identity in name and not name.endswith(".ctl")])
        named += 1
        assert (named.sum(), anonymous.sum()) == (6, 4)
        assert [name for name in leaks.shm_entries() if identity in name]
    del named, anonymous
    wait_until(lambda: not [name for name in leaks.shm_entries() if identity in name])


def test_a_worker_that_ends_leaves_the_rest_alone() -> None:
    """Workers of every kind end by return, `sys.exit` and `os._exit`: the parent's arrays stay, and nothing is said."""
    script = """
    import multiprocessing, os, sys
    import numpy as np, shmarray as sa

    def work(store, array, end):
        array += 1
        mine = store.ones(3)
        named = store.ones(3, name=f"by {os.getpid()}")
        sys.kept = [store, array, mine, named]
        if end == "exit": sys.exit(0)
        if end == "_exit": os._exit(0)

    if __name__ == "__main__":
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            with sa.Store() as store:
                array = store.zeros(3)
                processes = [context.Process(target=work, args=(store, array, end)) for end in ("return", "exit", "_exit")]
                for process in processes:
                    process.start()
                    process.join()
                    assert process.exitcode == 0
                assert array.tolist() == [3, 3, 3]
                assert len(store) == 3
        print("done")
    """
    assert run_script(textwrap.dedent(script), timeout=60).expect() == "done\n"
