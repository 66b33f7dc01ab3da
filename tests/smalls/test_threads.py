"""Threads that make, pickle, load and drop small arrays at once, forks in their midst, and finalizers of the cycle collector."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import cells
from tests.helpers.processes import reap, run_script
from tests.smalls.things import files, is_whole, made, next_serial


@pytest.mark.core
def test_threads_that_work_at_once_never_see_each_others_bytes(store: sa.Store, request: pytest.FixtureRequest) -> None:
    """Each makes, sends to another, looks, drops and deletes; in the end nothing is left."""
    rounds = 20_000 if request.config.getoption("--deep") else 400
    mail: queue.Queue[tuple[int, bytes]] = queue.Queue()
    wrong: list[Any] = []

    def work(number: int) -> None:
        held: list[tuple[int, Any]] = []
        try:
            for turn in range(rounds):
                serial = number * 1_000_000 + turn
                array = made(store, serial, (60, 512)[turn % 2])
                mail.put((serial, pickle.dumps(array)))
                if turn % 5 == 0:
                    held.append((serial, array))
                    del held[:-10]
                elif turn % 50 == 3:
                    other = made(store, 5)
                    pickle.dumps(other)
                    other.unlink()
                    del other
                del array
                serial, handle = mail.get(timeout=30)
                loaded = pickle.loads(handle)
                if not (is_whole(loaded, serial) and all(is_whole(array, n) for n, array in held)):
                    wrong.append(serial)
                del loaded
        except BaseException as error:  # noqa: BLE001  told below
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.check() == []
    assert (store.stats().anonymous, store.stats().attached, store.stats().in_flight) == (0, 0, 0)
    store.trim()
    assert files(store) == set()


class Node:
    """Part of a cycle, with an array; its end, in the collector, makes and drops others."""

    def __init__(self, store: sa.Store, sent: list[bytes]) -> None:
        """Be in a cycle."""
        self.me = self
        self.array = store.ones(512)
        self.store = store
        self.sent = sent

    def __del__(self) -> None:
        """Make an array, send another, and load what was sent before."""
        new = self.store.zeros(512)
        if new.any():
            self.sent.append(b"wrong")
        new[:] = 9
        if self.sent and self.sent[-1] != b"wrong":
            pickle.loads(self.sent.pop())
        if len(self.sent) < 20:
            self.sent.append(pickle.dumps(self.array))


def test_arrays_that_end_in_the_cycle_collector_at_any_moment_are_freed(store: sa.Store) -> None:
    """Also where their ends make, send and load others, in the midst of what the thread was about."""
    sent: list[bytes] = []
    before = gc.get_threshold()
    gc.set_threshold(7, 2, 2)
    try:
        for n in range(600):
            Node(store, sent)
            array = made(store, n)
            handle = pickle.dumps(array)
            del array
            assert is_whole(pickle.loads(handle), n)
            zeros = store.zeros(512)
            assert not zeros.any()
            zeros[:] = 5
            if n % 100 == 50:
                store.trim()
    finally:
        gc.set_threshold(*before)
    del zeros
    gc.collect()
    assert b"wrong" not in sent
    sent.clear()
    store.release_unclaimed()
    store.trim()
    assert store.check() == []
    assert store.stats().anonymous == 0
    assert files(store) == set()
    assert not cells.ended


def test_a_view_of_a_view_keeps_the_array(store: sa.Store) -> None:
    """Whatever NumPy makes of it without a copy; only the end of the last one frees the cell."""
    serial = next_serial()
    array = made(store, serial)
    root = weakref.ref(cells.view_of(array)())  # type: ignore[misc]  # it is in a cell
    views = [array[3:9:2], array.reshape(8, -1).T, array.view("u1")[1:], memoryview(array), iter(array)]
    del array
    for _ in range(len(views)):
        assert root() is not None
        views.pop()
    assert root() is None
    assert store.stats().anonymous == 0


def test_private_memory_in_the_place_of_an_array_that_has_ended_is_not_taken_for_it(store: sa.Store) -> None:
    """The end of an array is seen to later where another thread is at work on cells; until then its place may be another one's."""
    array = made(store, next_serial())
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with cells.Here.lock:
            inside.set()
            assert leave.wait(30)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert inside.wait(30)
        place = id(cells.view_of(array)())  # type: ignore[misc]  # it is in a cell
        del array
        others: list[Any] = []
        while not others or id(others[-1]) != place:
            assert len(others) < 100_000
            others.append(np.frombuffer(bytearray(64), np.uint8))
        assert cells.ended
        assert cells.view_of(others[-1]) is None
    finally:
        leave.set()
        worker.join()
    cells.settle()
    assert not cells.ended


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_an_array_stands_on_keeps_it(store: sa.Store, depth: int) -> None:
    """Whoever has a part of its base, or of the base of that, sees its bytes and never the next array's."""
    for way in (lambda: store.full(100, 7, "u1"), lambda: pickle.loads(pickle.dumps(store.full(100, 7, "u1")))):
        base: Any = way()
        for _ in range(depth):
            base = getattr(base, "base", base)
        part = memoryview(base)[1:]
        del base
        others = [store.full(100, 9, "u1") for _ in range(3)]
        assert part[0] == 7
        del others, part
        assert store.stats().anonymous == 0


STORM = """
import os, pickle, threading
import shmarray as sa
from tests.smalls.things import is_whole, made
stop = threading.Event()
bad = []
def churn(store, number):
    turn, last = number, None
    while not stop.is_set():
        turn += 10
        array = made(store, turn)
        handle = pickle.dumps(array)
        if last is not None and not is_whole(pickle.loads(last[1]), last[0]):
            bad.append(turn)
        last = turn, handle
        if not is_whole(array, turn):
            bad.append(turn)
if __name__ == "__main__":
    with sa.Store() as store:
        threads = [threading.Thread(target=churn, args=(store, n)) for n in range(3)]
        for thread in threads:
            thread.start()
        mine = [(n, made(store, n)) for n in range(-20, 0)]
        for n in range(40):
            pid = os.fork()
            if pid == 0:
                good = all(is_whole(array, number) for number, array in mine)
                new = made(store, -99)
                good = good and is_whole(pickle.loads(pickle.dumps(new)), -99)
                good = good and all(is_whole(array, number) for number, array in mine)
                os._exit(0 if good else 1)
            assert os.waitpid(pid, 0)[1] == 0
            mine.append((n + 1000, made(store, n + 1000)))
            assert all(is_whole(array, number) for number, array in mine)
            del mine[: n % 2 * 2]
        stop.set()
        for thread in threads:
            thread.join()
        assert not bad, bad
        del mine
        store.release_unclaimed()
        assert store.check() == []
        assert store.stats().anonymous == 0
    print("calm")
"""


@pytest.mark.core
def test_forks_in_a_storm_of_threads_give_no_cell_away() -> None:
    """Threads make and free while another forks: no child holds what is used again, none hangs, nothing is left."""
    assert run_script(STORM, timeout=100).expect() == "calm\n"


def test_a_child_forked_by_a_thread_at_work_goes_on(store: sa.Store) -> None:
    """Another thread has the lock just then, and does not go on in the child."""
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        with cells.Here.lock:
            inside.set()
            go.wait(30)

    thread = threading.Thread(target=hold)
    kept = made(store, 1)
    thread.start()
    inside.wait(30)
    pid = os.fork()
    if pid == 0:
        array = made(store, 2)
        os._exit(0 if is_whole(pickle.loads(pickle.dumps(array)), 2) and is_whole(kept, 1) else 1)
    assert reap(pid) == 0
    go.set()
    thread.join()


UNDER_WAY = """
import os, pickle, sys, threading
hooks = []
os.register_at_fork(before=lambda: [hook() for hook in hooks])  # registered first, called last: all of ours have run
import shmarray as sa
from tests.smalls.things import ask, is_whole, made
had = []
with sa.Store() as store:
    if sys.argv[1] != "make first":
        made(store, 1)
    handle = pickle.dumps(made(store, 2)) if sys.argv[1] == "load" else b""
    def act():
        had.append(pickle.loads(handle) if handle else made(store, 2))
    def in_a_thread():
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()
    hooks.append(in_a_thread)
    go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(go[0], 1)
        os._exit(0 if is_whole(had[0], 2) else 1)
    hooks.clear()
    had.clear()
    for n in range(5):
        ask(store)
        arrays = [made(store, 100 + n) for n in range(50)]
        del arrays
    os.write(go[1], b"!")
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.core
@pytest.mark.parametrize("what", ["make", "make first", "load"])
def test_what_another_thread_has_of_late_while_a_fork_is_under_way_the_child_has_too(what: str) -> None:
    """It was made or loaded when the hooks that come before a fork had run; its cell is not used again while the child lives."""
    assert run_script(UNDER_WAY, what).expect() == "0\n"
