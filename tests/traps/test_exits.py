"""Traps of processes, signals and exit order, by their numbers: who runs which clean-up when, and who is mistaken for whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import founding, reaper
from shmarray._format import control as layout
from shmarray._os import processes
from shmarray.guardian import launch
from tests.helpers import leaks
from tests.helpers.processes import Child, is_running, run_script, wait_until

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext


def _entries(identity: str) -> set[str]:
    prefix = f"shmarray.{os.geteuid()}.{identity}."
    return {entry.removeprefix(prefix) for entry in leaks.shm_entries(prefix)}


_kept: list[Any] = []


def _keep(store: sa.Store, name: str) -> float:
    """As a worker: hold arrays in a module of one's own until the very end."""
    _kept.extend([store, store[name], store.ones(10), store[name][1:]])
    return float(store[name].sum())


def _keep_until_killed(store: sa.Store, name: str, line: Connection) -> None:
    line.send(_keep(store, name))
    signal.pause()


def _hold_and_die(store: sa.Store) -> None:
    _kept.extend([store.ones(1000), store["x"]])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_group_is_cleaned_up_after_by_the_next(start_method: BaseContext) -> None:
    """Trap 5: SIGKILL to owner, workers and guardian at once; the next store of the user removes all of it."""
    source = f"""
import multiprocessing
import numpy, shmarray
from tests.helpers.processes import report
from tests.traps.test_exits import _keep_until_killed
if __name__ == "__main__":
    store = shmarray.Store()
    store["x"] = numpy.ones(3)
    context = multiprocessing.get_context({start_method.get_start_method()!r})
    mine, theirs = context.Pipe()
    # No pool: it has semaphores, which nobody removes when the tracker of multiprocessing is killed too.
    for _ in range(2):
        context.Process(target=_keep_until_killed, args=(store, "x", theirs)).start()
    for _ in range(2):
        mine.recv()
    report("ready", [store.id, store.guardian_pid])
    input()
"""
    with Child(source) as owner:
        identity, guardian = owner.wait_for("ready")
        os.kill(guardian, signal.SIGKILL)
        owner.kill_group()
        wait_until(lambda: not is_running(guardian))
        assert _entries(identity) >= {"ctl", "n.x"}

        def gone() -> bool:
            sa.Store().close()  # workers of a killed group are gone a moment later than it
            return not _entries(identity)

        wait_until(gone)


@pytest.mark.core
def test_exit_handlers_before_and_after_ours_may_touch_arrays() -> None:
    """Trap 52: registered before the import, after it, and after opening: typed errors once the store closed, views to the end."""
    source = """
import atexit
seen = []
def touch(when):
    view[0] += 1
    try:
        store["late"] = numpy.ones(3)
        seen.append((when, "open"))
    except shmarray.StoreClosedError:
        seen.append((when, "closed"))
    if when == "first":
        print([how for _, how in seen], view[0])
atexit.register(touch, "first")
import numpy, shmarray
atexit.register(touch, "second")
store = shmarray.Store()
view = store.zeros(3)
atexit.register(touch, "third")
"""
    # The store closes with the exit work of `multiprocessing`, which the first store registered: what is registered last runs first.
    assert run_script(source).expect() == "['open', 'closed', 'closed'] 3.0\n"


def test_workers_that_end_with_arrays_in_their_modules_say_nothing(start_method: BaseContext) -> None:
    """Trap 53: whatever exit work this kind of child does, in whatever order: silence, no crash, everything let go."""
    source = f"""
import multiprocessing
import numpy, shmarray
from tests.traps.test_exits import _keep
if __name__ == "__main__":
    context = multiprocessing.get_context({start_method.get_start_method()!r})
    with shmarray.Store() as store:
        store["x"] = numpy.ones(3)
        with context.Pool(2) as pool:
            print(pool.starmap(_keep, [(store, "x")] * 4))
            pool.close()
            pool.join()
        child = context.Process(target=_keep, args=(store, "x"))
        child.start()
        child.join()
        print(child.exitcode)
"""
    assert run_script(source, flags=("-W", "ignore")).expect() == "[3.0, 3.0, 3.0, 3.0]\n0\n"


@pytest.mark.parametrize("work", ["making", "reading"])
def test_a_daemon_thread_at_work_at_the_interpreters_end_does_no_harm(work: str) -> None:
    """Trap 54: a thread is in the middle of our code, or of an array, when everything is torn down: silence, nothing left."""
    source = f"""
import threading
import numpy, shmarray
store = shmarray.Store()
view = store.ones(100000)
started = threading.Event()
def work():
    while True:
        started.set()
        if {work!r} == "reading":
            view.sum()
        else:
            try:
                store["y"] = numpy.ones(10)
                store.ones(10)
            except shmarray.StoreClosedError:
                view.sum()
threading.Thread(target=work, daemon=True).start()
started.wait()
print(store.id, flush=True)
"""
    identity = run_script(source).expect().strip()
    wait_until(lambda: not _entries(identity))


def test_a_killed_worker_of_an_executor_costs_its_own_task(start_method: BaseContext) -> None:
    """Trap 55: the executor breaks, siblings are ended without clean-up; parent and store go on, what they held is freed."""
    with sa.Store() as store:
        store["x"] = np.ones(3)
        mine = store.ones(4)
        with ProcessPoolExecutor(2, mp_context=start_method) as pool:
            assert pool.submit(_keep, store, "x").result(30) == 3
            with pytest.raises(BrokenProcessPool):
                pool.submit(_hold_and_die, store).result(60)
        wait_until(lambda: len(_entries(store.id)) == 3, message="what dead workers held is still there")
        store["x"] = np.full(3, 2.0)
        assert (store["x"].sum(), mine.sum(), store.check()) == (6, 4, [])


def test_an_owner_is_not_mistaken_for_another_process_of_the_same_pid() -> None:
    """Trap 56: a guardian that finds its owner's pid with another start time knows that the owner is gone."""
    member = founding.found(None, leaks.SHM, None)
    *command, start = launch.command(member)
    subprocess.run([*command, str(int(start) + 1)], check=True, stdout=subprocess.DEVNULL, timeout=30)
    wait_until(
        lambda: member.state() == layout.DEAD, message="the guardian took this process for the owner it was told of"
    )
    assert processes.me().start == int(start)
    member.close()
    wait_until(lambda: not os.path.exists(reaper.control_path(member.key)))


def test_forking_waits_for_nobody_who_waits_for_the_fork() -> None:
    """A thread drops arrays under a lock that the program also takes around each fork: neither waits for the other for ever."""
    source = """
import faulthandler, os, threading, time
import numpy, shmarray
faulthandler.dump_traceback_later(20, exit=True)
lock = threading.RLock()
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
stop = threading.Event()
with shmarray.Store() as store:
    def work():
        while not stop.is_set():
            with lock:
                array = store.ones(10)
                del array
            time.sleep(1e-4)  # or the one that forks would hardly ever get the lock
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    stop.set()
    for thread in threads:
        thread.join()
    print(store.check(), store.stats().anonymous)
"""
    assert run_script(source, flags=("-W", "ignore"), timeout=40).expect() == "[] 0\n"


def test_a_forked_child_of_a_busy_program_can_use_its_store() -> None:
    """Traps 9, 26: a fork while other threads are inside the store does no harm to the child.

    They do not go on in it, and it makes, attaches and deletes as if they had never been.
    """
    source = """
import faulthandler, os, threading
import numpy, shmarray
faulthandler.dump_traceback_later(20, exit=True)
stop = threading.Event()
with shmarray.Store() as store:
    def work(number):
        while not stop.is_set():
            store[f"t{number}"] = numpy.ones(10)
            store.ones(10)
            store[f"t{number}"].sum()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    bad = 0
    for turn in range(30):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                store["c"] = numpy.full(10, turn)
                held = store.ones(10)
                status = 0 if store["c"][0] == turn and held.sum() == 10 else 2
                del store["c"]
            finally:
                os._exit(status)
        bad += os.waitpid(pid, 0)[1] != 0
    stop.set()
    for thread in threads:
        thread.join()
    print(bad)
"""
    assert run_script(source, flags=("-W", "ignore"), timeout=40).expect() == "0\n"


@pytest.mark.core
def test_ctrl_c_in_parent_and_workers_leaves_nothing(start_method: BaseContext) -> None:
    """SIGINT to the whole group in the middle of work: each says its own `KeyboardInterrupt` and no more; nothing is left."""
    source = f"""
import multiprocessing, time
import numpy, shmarray
from tests.helpers.processes import report
from tests.traps.test_exits import _work_until_interrupted
if __name__ == "__main__":
    context = multiprocessing.get_context({start_method.get_start_method()!r})
    try:
        with shmarray.Store() as store:
            store["x"] = numpy.ones(3)
            queue = context.Queue()
            children = [context.Process(target=_work_until_interrupted, args=(store, queue)) for _ in range(2)]
            for child in children:
                child.start()
            for _ in children:
                queue.get()
            report("ready", store.id)
            while True:
                store["y"] = store["x"] + 1
    except KeyboardInterrupt:
        for child in children:
            child.join()
        report("codes", [child.exitcode for child in children])
"""
    with Child(source) as owner:
        identity = owner.wait_for("ready")
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.wait_for("codes") == [7, 7]
        owner.finish().expect()
        wait_until(lambda: not _entries(identity))


def _work_until_interrupted(store: sa.Store, queue: Any) -> None:
    queue.put(None)
    own = f"own{os.getpid()}"
    try:
        while True:
            try:
                store[own] = np.ones(10)
                store[own].sum()
                del store[own]
            except sa.StoreClosedError:
                continue  # the owner was first; our own interruption is on its way
    except KeyboardInterrupt:
        sys.exit(7)
