"""Small arrays on their way: into workers and back, through queues, dicts and lists of the store, inside other objects."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import cells
from tests.helpers.leaks import shm_entries
from tests.helpers.processes import wait_until
from tests.smalls import workers
from tests.smalls.things import Partner, files, handles, is_whole, loading, made, next_serial, place_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnContext

N = 30


@pytest.mark.core
@pytest.mark.parametrize("kind", ["Pool", "ProcessPoolExecutor"])
def test_a_pool_sees_and_changes_arrays_and_makes_some(kind: str, start_method: SpawnContext) -> None:
    """What it gives back is the same memory, or an array of its own, which outlives it."""
    with sa.Store() as store:
        serials = [next_serial() for _ in range(N)]
        arrays = [made(store, serial) for serial in serials]
        pool: Any = start_method.Pool(2) if kind == "Pool" else ProcessPoolExecutor(2, start_method)
        with pool:
            back = list(pool.map(workers.mirror, list(zip(arrays, serials, strict=True))))
            theirs = list(pool.map(workers.make, [(store, serial) for serial in serials]))
            if kind == "Pool":
                pool.close()
                pool.join()
        for serial, array, (same, good) in zip(serials, arrays, back, strict=True):
            assert good
            assert is_whole(array, serial + 1)
            assert place_of(same) == place_of(array)
        assert all(is_whole(array, serial) for serial, array in zip(serials, theirs, strict=True))
        assert all(cells.view_of(array) is not None for array in theirs)
        del arrays, array, back, same, theirs
        wait_until(lambda: store.stats().anonymous == 0, message="they stay")
        store.trim()
        wait_until(lambda: store.check(fix=True) == [] and not files(store), message="slabs stay")


@pytest.mark.core
def test_an_array_outlives_the_worker_that_made_it(start_method: SpawnContext) -> None:
    """Which sends it and ends; its slab goes with the last that has it."""
    with sa.Store() as store:
        mine, theirs = start_method.Pipe()
        process = start_method.Process(target=workers.make_and_end, args=(store, theirs, 5))
        process.start()
        theirs.close()
        array = mine.recv()
        process.join()
        mine.close()
        assert is_whole(array, 5)
        handle = pickle.dumps(array)
        del array
        array = pickle.loads(handle)
        assert is_whole(array, 5)
        del array
        store.trim()
        wait_until(lambda: not files(store), message="the slab stays")


HOLDERS: dict[str, tuple[Callable[[sa.Store], Any], Callable[[Any, int, Any], None], Callable[[Any, int], Any]]] = {
    "queue": (lambda s: s.Queue(), lambda q, _, a: q.put(a), lambda q, _: q.get(timeout=30)),
    "dict": (lambda s: s.dict(), lambda d, n, a: d.__setitem__(n, a), lambda d, n: d[n]),
    "list": (lambda s: s.list(), lambda x, _, a: x.append(a), lambda x, n: x[n]),
}


@pytest.mark.core
@pytest.mark.parametrize("kind", HOLDERS)
def test_what_lies_in_a_queue_a_dict_or_a_list_is_kept(kind: str, store: sa.Store) -> None:
    """Nobody holds it but these, and its maker makes others; taken or looked at again and again it is what it was, and goes with them."""
    create, put, get = HOLDERS[kind]
    holder = create(store)
    serials = [next_serial() for _ in range(N)]
    with Partner() as other:
        other.do(f"store = {loading(pickle.dumps(store))}; holder = {loading(pickle.dumps(holder))}")
        for number, serial in enumerate(serials):
            if number % 2:
                put(holder, number, made(store, serial))
            else:
                text = {"queue": "holder.put({0})", "dict": "holder[{1}] = {0}", "list": "holder.append({0})"}[kind]
                other.do(text.format(f"made(store, {serial})", number))
        for _ in range(3):
            new = [(serial, made(store, serial)) for serial in range(200, 300)]
            assert all(is_whole(array, serial) for serial, array in new)
            del new
            other.do("new = [made(store, n) for n in range(100)]; store.trim(); del new")
            store.trim()
        for turn in range(1 if kind == "queue" else 3):
            for number, serial in enumerate(serials):
                array = get(holder, number)
                assert is_whole(array, serial), turn
        del array
        assert store.check() == []
        if kind != "queue":
            assert len(handles(store)) == N
            other.do("said = is_whole(holder[1], %d)" % serials[1])  # noqa: UP031
            array = holder[3]
            if kind == "dict":
                holder.clear()
            else:
                del holder[:]
            assert is_whole(array, serials[3])
            del array
        assert handles(store) == set()
        other.do("del holder")
        del holder
        wait_until(lambda: store.stats().anonymous == 0, message="arrays stay")
        store.trim()
        other.do("store.trim()")
        wait_until(lambda: not files(store, "s."), message="slabs stay")
        other.finish().expect()


@pytest.mark.parametrize("kind", HOLDERS)
def test_what_lies_in_an_object_that_is_dropped_goes_with_it(kind: str, store: sa.Store) -> None:
    """Nothing is taken out before."""
    create, put, _ = HOLDERS[kind]
    holder = create(store)
    for number in range(N):
        put(holder, number, made(store, next_serial()))
    assert store.stats().anonymous >= N
    del holder
    wait_until(lambda: store.check(fix=True) == [] and store.stats().anonymous == 0, message="arrays stay")
    store.trim()
    assert files(store) == set()


def test_queues_of_multiprocessing_carry_arrays(start_method: SpawnContext) -> None:
    """There and back, each once."""
    with sa.Store() as store:
        tasks: Any = start_method.Queue()
        answers: Any = start_method.Queue()
        process = start_method.Process(target=workers.echo, args=(tasks, answers))
        process.start()
        for serial in range(100):
            tasks.put((serial, made(store, serial)))
        for _ in range(100):
            serial, array = answers.get(timeout=30)
            assert is_whole(array, serial)
        tasks.put(None)
        process.join(30)
        assert process.exitcode == 0
        for line in (tasks, answers):
            line.close()
            line.join_thread()
        del array
        wait_until(lambda: store.stats().anonymous == 0, message="they stay")


def test_trees_and_named_arrays_lie_in_no_cell(store: sa.Store) -> None:
    """They have files of their own, however small."""
    tree = store.put({"a": np.ones(2), "b": (3.0,)})
    named = store.zeros(3, name="n")
    assert cells.view_of(tree["a"]) is None
    assert cells.view_of(named) is None
    assert not files(store, "s.")
    assert pickle.loads(pickle.dumps(tree))["a"].tolist() == [1.0, 1.0]


def test_an_array_survives_the_end_of_its_store_for_who_has_it() -> None:
    """It can be read and written, and not be sent; nothing of it has a name."""
    store = sa.Store()
    array = made(store, 5)
    handle = pickle.dumps(array)
    with Partner() as other:
        other.do(f"array = {loading(pickle.dumps(array))}")
        store.close()
        with pytest.raises(sa.StoreClosedError):
            pickle.dumps(array)
        with pytest.raises(sa.StoreClosedError):
            pickle.loads(handle)
        with pytest.raises(sa.StoreClosedError):
            store.zeros(3)
        assert other.fails("pickle.dumps(array)") == "StoreClosedError"
        assert other.do("said = is_whole(array, 5)")
        assert is_whole(array, 5)
        array[:] = 7
        assert other.do("said = bool((array == 7).all())")
        assert not [entry for entry in shm_entries() if store.id in entry and not entry.endswith(".ctl")]
        other.do("del array")
        other.finish().expect()
    del array
