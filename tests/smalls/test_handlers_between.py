"""A signal handler, or a fork in one, between any two steps of ours: what it loads stays whole, and nobody gives out what is another's."""

from __future__ import annotations

import pickle
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from shmarray import cells, slabmaps, stocks
from tests.helpers.tracing import Interrupter
from tests.smalls.test_absences import Worker
from tests.smalls.things import ask, files, loading, made, next_serial

if TYPE_CHECKING:
    from collections.abc import Iterator

    import shmarray as sa

_LOADING = """
import gc
from tests.smalls.deaths import of_smalls
from tests.smalls.test_handlers_between import Between
gc.disable()
kept = []

def load(number):
    def deed():
        kept.append(pickle.loads(bytes.fromhex(second)))
    between = Between(number, of_smalls, deed)
    with between:
        a = pickle.loads(bytes.fromhex(first))
        assert is_whole(a, serial)
        del a
    return between.count >= number
"""


class Between(Interrupter):
    """Does a deed at the n-th step at which Python may run a signal handler, and then goes on."""

    def __init__(self, n: int, where: Any, deed: Any) -> None:
        """Wait for that step."""
        super().__init__(n, where)
        self._deed = deed

    def interrupt(self) -> None:
        """Do it."""
        self._deed()


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A process that has nothing of the store but what it is sent."""
    with Worker() as started:
        yield started
        started.finish().expect()


@pytest.mark.parametrize("stays", [True, False], ids=["it has another array", "it leaves the store"])
def test_what_a_handler_loads_while_its_thread_loads_and_drops_it_stays(
    store: sa.Store, worker: Worker, *, stays: bool
) -> None:
    """At whichever step: however often its maker asks then who looks at it, the cell is not given out again."""
    worker.do(_LOADING)
    if stays:
        worker.do(f"other = {loading(pickle.dumps(made(store, next_serial())))}")
    number = 0
    reached = True
    while reached:
        number += 1
        array = made(store, serial := next_serial())
        first, second, third = (pickle.dumps(array).hex() for _ in range(3))
        del array
        reached = worker.do(f"serial, first, second = {serial}, {first!r}, {second!r}; said = load({number})")
        if not reached:
            break
        worker.do(f"c = {loading(bytes.fromhex(third))}; del c")
        ask(store)
        others = [made(store, next_serial()) for _ in range(3)]
        assert worker.do(f"said = len(kept) == 1 and is_whole(kept[0], {serial})"), number
        assert worker.do("a = kept.pop(); b = pickle.loads(pickle.dumps(a)); said = is_whole(b, serial); del a, b"), (
            number
        )
        del others
    worker.do("kept.clear()")
    assert number > 20


def test_a_child_that_a_handler_forks_in_the_midst_of_making_leaves_the_parents_arrays_alone(
    store: sa.Store, worker: Worker
) -> None:
    """At whichever step; it makes some, and is short of memory; both have what they made."""
    worker.do(f"store = {loading(pickle.dumps(store))}")
    worker.do("""
import gc
import numpy as np
from shmarray import warm
from tests.smalls.deaths import of_smalls
from tests.smalls.test_handlers_between import Between
gc.disable()

def make(number):
    pids = []
    between = Between(number, of_smalls, lambda: pids.append(os.fork()))
    good = True
    with between:
        array = made(store, 10**6 + number)
    if pids == [0]:
        try:
            mine = [made(store, 2 * 10**6 + count) for count in range(40)]
            warm.trim_all()
            good = is_whole(array, 10**6 + number)
            good = good and all(is_whole(one, 2 * 10**6 + count) for count, one in enumerate(mine))
        finally:
            os._exit(0 if good else 1)
    if pids:
        good = os.waitpid(pids[0], 0)[1] == 0
    more = [made(store, 3 * 10**6 + count) for count in range(20)]
    sent = [pickle.loads(pickle.dumps(one)) for one in (array, *more)]
    numbers = [10**6 + number, *(3 * 10**6 + count for count in range(20))]
    return [bool(pids), good and all(map(is_whole, sent, numbers))]
""")
    number = 0
    while True:
        number += 1
        reached, good = worker.do(f"said = make({number})")
        assert good, number
        if not reached:
            break
    assert number > 10
    worker.do("del store")


def test_what_ends_while_another_thread_has_the_lock_is_seen_to_by_that_one(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever drops a view then does not wait; and it is not left until this process uses small arrays again."""
    there, go = threading.Event(), threading.Event()
    asking = stocks.Stock.ask

    def slow(self: Any, member: Any) -> None:
        there.set()
        assert go.wait(30)
        asking(self, member)

    array = made(store, next_serial())
    monkeypatch.setattr(stocks.Stock, "ask", slow)
    thread = threading.Thread(target=store.trim)
    thread.start()
    assert there.wait(30)
    del array
    assert len(cells.ended) == 1
    go.set()
    thread.join()
    assert (len(cells.ended), len(slabmaps.ended)) == (0, 0)
    monkeypatch.undo()
    store.trim()
    assert files(store) == set()


def test_what_ends_while_another_thread_sees_to_slabs_is_seen_to_by_that_one(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it leaves a store, and this one drops the last array that it has of another."""
    there, go = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        there.set()
        assert go.wait(30)

    array = made(store, next_serial())
    monkeypatch.setattr(slabmaps, "_see_to", slow)
    slabmaps.ended.append(weakref.ref(slow))
    thread = threading.Thread(target=slabmaps.settle)
    thread.start()
    assert there.wait(30)
    del array
    assert len(cells.ended) == 1
    go.set()
    thread.join()
    assert (len(cells.ended), len(slabmaps.ended)) == (0, 0)
