"""Where programs run: without a main guard, on stdin, at a prompt, in daemonic workers, with threads, after a fork."""

from __future__ import annotations

import sys
import textwrap

import pytest

from tests.helpers.processes import Finished, run_command, run_script

NO_GUARD = """
import multiprocessing, sys
import numpy as np, shmarray as sa

multiprocessing.set_start_method(sys.argv[1])
store = sa.Store()                      # at the top level of the script: nothing of ours imports it again
array = store.put(np.arange(5))
assert store.guardian_pid is not None
if sys.argv[1] == "fork":
    with multiprocessing.Pool(2) as pool:
        assert pool.map(np.sum, [array, array[1:]]) == [10, 10]
print("ran once")
"""

ON_STDIN = """
import multiprocessing, os
import numpy as np, shmarray as sa
with sa.Store() as store, multiprocessing.get_context("fork").Pool(2) as pool:
    array = store.zeros(4)
    print(pool.map(np.size, [array, array[1:]]))
    pid = os.fork()
    if pid == 0:
        array[1:] = 3
        os._exit(0)
    os.waitpid(pid, 0)
    print(array.tolist())
"""

BESIDE_THREADS = """
import multiprocessing, os
import numpy as np, shmarray as sa

def product(array):
    return float((array @ array).sum())

def threads():
    return len(os.listdir("/proc/self/task"))

if __name__ == "__main__":
    assert threads() > 1
    with sa.Store() as store:
        array = store.put(np.ones((200, 200)))
        assert product(array) == 200.0**3  # they have worked, and wait for more
        for method in ("fork", "spawn", "forkserver"):
            with multiprocessing.get_context(method).Pool(2) as pool:
                assert pool.map(product, [array, array.T, store.ones((200, 200))]) == [200.0**3] * 3
        assert product(array) == 200.0**3
    print("done")
"""


def run_stdin(source: str, *flags: str) -> Finished:
    """Feed a program to an interpreter through a pipe."""
    return run_command([sys.executable, *flags], stdin=textwrap.dedent(source), timeout=60)


@pytest.mark.core
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_script_without_a_main_guard_works(method: str) -> None:
    """A store at the top level starts no second run of the script, whatever the start method; the end of the script frees it."""
    assert run_script(NO_GUARD, method).expect() == "ran once\n"


def test_a_script_on_standard_input_works() -> None:
    """There is no file to import again, and none is needed."""
    assert run_stdin(ON_STDIN, "-W", "ignore::DeprecationWarning", "-").expect() == "[4, 3]\n[0.0, 3.0, 3.0, 3.0]\n"


def test_a_program_given_on_the_command_line_works() -> None:
    """`python -c` too, also with every warning turned into an error and the interpreter isolated from its surroundings."""
    source = "import shmarray as sa; s = sa.Store(); a = s.ones(3); print(a.sum(), s.guardian_pid is not None)"
    for flags in (["-W", "error", "-X", "dev"], ["-O", "-B", "-s"]):
        assert run_command([sys.executable, *flags, "-c", source]).expect() == "3.0 True\n"


def test_a_prompt_works() -> None:
    """At an interactive prompt, fed through a pipe as by a notebook: arrays go to workers and back, and its end is silent."""
    session = """
    import numpy as np, shmarray as sa, multiprocessing as mp
    store = sa.Store()
    a = store.put(np.arange(6.0), name="a")
    a
    with mp.get_context("spawn").Pool(1) as pool: pool.apply(np.sum, (a[::-1],))

    def double(view):
        view *= 2

    p = mp.get_context("fork").Process(target=double, args=(a,)); p.start(); p.join()
    store["a"].sum()
    1 / 0
    _ = a[1:]
    store["nothing"]
    len(store)
    """
    finished = run_stdin(session, "-i", "-q")
    assert finished.returncode == 0, finished.describe()
    said = finished.stdout
    assert "SharedArray([0., 1., 2., 3., 4., 5.])" in said
    assert "np.float64(15.0)" in said
    assert "np.float64(30.0)" in said
    noise = finished.stderr.replace(">>> ", "").replace("... ", "").replace("\n", "").strip()
    assert noise.count("Traceback") == 2, finished.stderr
    assert "ZeroDivisionError" in noise
    assert "ArrayNotFoundError" in noise
    assert "Exception ignored" not in noise
    assert "resource_tracker" not in noise


def test_a_daemonic_worker_can_open_a_store_of_its_own() -> None:
    """A worker of a Pool may have no child processes of multiprocessing; its store has a guardian all the same."""
    script = """
    import multiprocessing, sys
    from tests.contract import workers

    if __name__ == "__main__":
        for method in ("fork", "spawn", "forkserver"):
            with multiprocessing.get_context(method).Pool(2) as pool:
                assert pool.map(workers.own_store, range(4)) == [(45.0, True)] * 4
                pool.close()
                pool.join()
        print("done")
    """
    assert run_script(textwrap.dedent(script), timeout=60).expect() == "done\n"


@pytest.mark.core
def test_numpys_own_threads_are_no_hindrance() -> None:
    """They use arrays before and after a fork, and in workers that have such threads; what other tests start has none."""
    assert run_script(BESIDE_THREADS, env={"OPENBLAS_NUM_THREADS": "2"}, timeout=60).expect() == "done\n"


def test_eight_threads_create_attach_and_drop_at_once() -> None:
    """No error, no array of another's, nothing left: with a tiny switch interval and the collector at every allocation."""
    script = """
    import gc, os, pickle, random, sys, threading
    import numpy as np, shmarray as sa

    sys.setswitchinterval(1e-5)
    gc.set_threshold(20, 2, 2)
    store = sa.Store()
    shared = [store.full(100, number, name=f"shared {number}") for number in range(4)]
    handles = [pickle.dumps(array) for array in shared]
    del shared
    start = threading.Barrier(8)
    failures = []

    def work(seed):
        rng = random.Random(seed)
        start.wait()
        try:
            for step in range(120):
                mine = store.full(50, seed * 1000 + step)
                cycle = [mine[::2]]
                cycle.append(cycle)                                  # only the collector frees it, in any thread
                number = rng.randrange(4)
                other = pickle.loads(handles[number])
                assert other[0] == other[99] == number, "another array"
                back = pickle.loads(pickle.dumps(mine))
                assert np.shares_memory(back, mine)
                store[f"name {seed % 4}"] = np.full(64, step)
                seen = store[f"name {seed % 4}"]
                assert (seen == seen[0]).all(), "half an array"
                assert store[f"shared {number}"][50] == number
                del mine, other, seen
                if step % 10 == 0:
                    assert len(store) >= 4
        except BaseException as error:
            failures.append(repr(error))
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failures, failures
    gc.collect()
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.in_flight, stats.drafts, stats.attached) == (8, 0, 0, 0, 0), stats
    assert store.check() == []
    store.close()
    lines = [line for line in open("/proc/self/maps") if "/dev/shm" in line]
    assert not lines, lines
    print("done")
    """
    assert run_script(textwrap.dedent(script), timeout=90).expect() == "done\n"


def test_threads_may_fork_and_close_while_others_work() -> None:
    """Children forked in the middle of other threads' work can use the store at once; closing ends every thread's work clearly."""
    script = """
    import os, threading
    import numpy as np, shmarray as sa

    store = sa.Store()
    store["x"] = np.arange(1000)
    stop = threading.Event()
    ended = []

    def work():
        try:
            while not stop.is_set():
                array = store.ones(1000)
                assert store["x"][-1] == 999
                del array
        except sa.StoreClosedError:
            ended.append("closed")
        else:
            ended.append("told")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            try:
                made = store.full(10, 3)
                assert store["x"].sum() == 499500 and made.sum() == 30
                del made
                os._exit(0)
            except BaseException:
                import traceback; traceback.print_exc()
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    store.close()
    for thread in threads: thread.join()
    assert ended == ["closed"] * 4, ended
    print("done")
    """
    finished = run_script(textwrap.dedent(script), timeout=90, flags=("-W", "ignore::DeprecationWarning"))
    assert finished.expect() == "done\n"


def test_a_forked_child_does_what_it_likes_and_the_parent_notices_nothing() -> None:
    """It drops, creates, deletes, closes, exits by `sys.exit` with all its exit work: the parent's store stands."""
    script = """
    import atexit, gc, os, sys
    import numpy as np, shmarray as sa

    store = sa.Store("forked parent")
    kept, gone = store.put(np.arange(5)), store.put(np.arange(6), name="gone")
    anonymous = store.stats().anonymous

    def child(act):
        pid = os.fork()
        if pid == 0:
            act()
            sys.exit(0)                      # runs the exit work of the child's copy of everything
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, act
        assert not store.closed, act
        assert kept.sum() == 10, act
        assert store.stats().anonymous == 1, act
        assert store.guardian_pid is not None

    def drop():
        global kept
        del kept
        gc.collect()

    def write():
        kept[:] = kept[::-1]

    def create():
        made = store.full(3, 7, name="made")
        store.zeros(100)

    def close():
        assert not store.is_owner
        store.close()
        try:
            store.zeros(3)
        except sa.StoreClosedError:
            pass
        else:
            raise AssertionError("a store closed here can be used")

    def scope():
        with store:
            store["w"] = np.ones(2)

    def delete():
        del store["gone"]

    def grandchild():
        pid = os.fork()
        if pid == 0:
            write()
            store.close()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def own():
        with sa.Store("forked child") as mine:
            mine["x"] = kept
            assert mine.is_owner and mine["x"].sum() == 10

    for act in (lambda: None, drop, write, create, close, scope, delete, grandchild, own):
        child(act)
    assert kept.tolist() == [0, 1, 2, 3, 4]
    assert sorted(store) == ["made", "w"]
    assert gone.sum() == 15
    assert store["made"].sum() == 21
    print("done")
    """
    assert run_script(textwrap.dedent(script), timeout=60).expect() == "done\n"


@pytest.mark.core
@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "sys.exit(0)",
        "os._exit(0)",
        "store.close(); os._exit(0)",
        "os.execv('/bin/true', ['true'])",
        "store = array = None",
    ],
)
def test_however_a_program_ends_it_ends_silently_and_leaves_nothing(end: str) -> None:
    """The end of the script, an exit, an exit without exit work, another program in its place: no word, no name left."""
    script = """
    import os, sys
    import numpy as np, shmarray as sa
    store = sa.Store()
    array = store.put(np.arange(100.0))
    view = store.put(np.ones((3, 3)), name="named")[1:].T
    tree = store.put({"a": [np.ones(2)]})
    sys.keep = [view, tree]
    print("ran", flush=True)
    """
    assert run_script(textwrap.dedent(script) + end, flags=("-W", "error")).expect() == "ran\n"


def test_an_uncaught_exception_is_all_that_is_said() -> None:
    """The traceback of the user's own error, once; the arrays in its frames do no harm."""
    script = """
    import shmarray as sa
    def main():
        with sa.Store() as store:
            array = store.ones(5)
            with store.zeros(3, name="scoped") as other:
                raise RuntimeError("mine")
    main()
    """
    finished = run_script(textwrap.dedent(script))
    assert finished.returncode == 1
    assert finished.stderr.count("Traceback") == 1
    assert finished.stderr.endswith("RuntimeError: mine\n")
    assert "Exception ignored" not in finished.stderr


def test_nothing_is_started_or_opened_by_importing() -> None:
    """`import shmarray` makes no file, no thread, no process, and does not import multiprocessing's managers."""
    script = """
    import os, sys, threading
    before = set(os.listdir("/proc/self/fd"))
    import numpy
    import shmarray
    assert threading.active_count() == 1
    assert "multiprocessing.managers" not in sys.modules, "managers"
    assert "multiprocessing.resource_tracker" not in sys.modules, "tracker"
    assert set(os.listdir("/proc/self/fd")) == before
    print(open(f"/proc/self/task/{os.getpid()}/children").read().split())
    """
    assert run_script(textwrap.dedent(script), env={"OPENBLAS_NUM_THREADS": "1"}).expect() == "[]\n"
