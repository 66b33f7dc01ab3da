"""Arrays, trees and stores go to other processes and come back, by every way that multiprocessing and its kin have."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.contract import workers
from tests.contract.structures import Layer
from tests.contract.test_shared_trees import model as tree_model
from tests.contract.views import VIEWS, models, views_of
from tests.helpers.processes import run_function, run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import BaseContext

    Call = Callable[..., Any]

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module", params=METHODS)
def pool(request: pytest.FixtureRequest) -> Iterator[Call]:
    """Call a function in a worker of a `multiprocessing.Pool`; the pool lives as long as the tests that use it."""
    with multiprocessing.get_context(request.param).Pool(1) as running:
        running.apply(workers.mapped)  # the worker has imported everything when the first test looks for leaks
        yield lambda function, *args: running.apply_async(function, args).get(60)
        running.close()
        running.join()


@pytest.fixture(scope="module", params=METHODS)
def executor(request: pytest.FixtureRequest) -> Iterator[Call]:
    """Call a function in a worker of a `ProcessPoolExecutor`, which sends and receives by other means than a Pool."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(request.param)) as running:
        running.submit(workers.mapped).result(60)
        yield lambda function, *args: running.submit(function, *args).result(60)


def exchange_views(call: Call, store: sa.Store) -> None:
    """Send every view of every model; the worker must see it as it is here, and its writes must arrive, and no others."""
    for label, model in models().items():
        array = store.put(model, name=label)
        for name, view in views_of(array).items():
            assert call(workers.look, view) == workers.look(view), (label, name)
            if view.flags.writeable:
                plain = model.copy(order="K")
                workers.overwrite_bytes(VIEWS[name](plain))
                call(workers.overwrite_bytes, view)
                assert repr(array.tolist()) == repr(plain.tolist()), (label, name)
                array[...] = model


def exchange_everything(call: Call, store: sa.Store) -> None:
    """Create, publish, delete, look up, and hand over stores and trees, in a worker and here."""
    made = call(workers.make_anonymous, store, np.arange(6.0).reshape(2, 3))
    assert (type(made), made.name, made.tolist()) == (sa.SharedArray, None, [[0, 1, 2], [3, 4, 5]])
    call(workers.overwrite, made[0], 7)
    assert made.tolist() == [[7, 7, 7], [3, 4, 5]]
    assert (store.stats().anonymous, store.stats().in_flight) == (1, 0)
    del made
    wait_until(lambda: store.stats().anonymous == 0)  # the worker may drop it after it has answered

    store["published"], store["deleted"] = np.zeros(1), np.zeros(1)
    old = store["published"]
    call(workers.make_and_share, store)
    assert list(store) == ["made by a worker", "published"]
    assert (store["made by a worker"].sum(), store["published"].tolist(), old.tolist()) == (20, [0, 1, 2], [0])
    found = call(workers.look_up, store, "published")
    found[0] = 5
    assert store["published"][0] == 5

    with pytest.raises(sa.ArrayNotFoundError) as caught:
        call(workers.look_up, store, "deleted")
    assert isinstance(caught.value, KeyError)
    assert caught.value.name == "deleted"
    assert str(caught.value).endswith(caught.value.remedy)

    assert call(workers.close, store) == (False, False, store.name)
    assert not store.closed
    assert store["published"][0] == 5

    tree = store.put(tree_model())
    assert call(workers.read_tree, tree) == ("SharedMapping", list(tree_model()), 7, 1.5, "last", 12.0)
    assert tree["layers"][0].weight.sum() == 12
    assert call(workers.read_layer, tree["layers"][0]) == (12.0, 0.5)
    assert call(workers.read_layer, Layer(weight=tree["layers"][0].weight)) == (12.0, 0.5)
    theirs = call(workers.make_tree, store)
    assert theirs.unflatten()["a"].tolist() == [0, 1, 2, 3]
    assert list(theirs["b"]) == [1, "two", None]
    del tree, theirs
    store.clear()
    wait_until(lambda: store.stats().nbytes == store.stats().warm, message=lambda: f"a block was left: {store.stats()}")
    assert store.check() == []


def test_a_pool_exchanges_every_view(pool: Call, store: sa.Store) -> None:
    """What a worker of a Pool sees is the view that was sent, and what it writes is there."""
    exchange_views(pool, store)


@pytest.mark.core
def test_a_pool_exchanges_everything(pool: Call, store: sa.Store) -> None:
    """A worker of a Pool can create, publish, delete and return whatever a store holds."""
    exchange_everything(pool, store)


def test_an_executor_exchanges_every_view(executor: Call, store: sa.Store) -> None:
    """What a worker of a ProcessPoolExecutor sees is the view that was sent, and what it writes is there."""
    exchange_views(executor, store)


def test_an_executor_exchanges_everything(executor: Call, store: sa.Store) -> None:
    """A worker of a ProcessPoolExecutor can create, publish, delete and return whatever a store holds."""
    exchange_everything(executor, store)


def test_a_worker_keeps_nothing_of_a_task_that_is_over(pool: Call, memory_store: sa.Store) -> None:
    """When the task's views have gone, so have the worker's mappings, but for those by which it comes back to the store.

    Those are the page of its part, that of its seat, and the file in which small arrays lie.
    """
    array = memory_store.put(np.arange(3))
    assert pool(workers.read_one, array[1:]) == ("SharedArray", 3.0)
    before = pool(workers.mapped)
    seen = set()
    for _ in range(3):
        assert pool(workers.read_one, array[1:])[0] == "SharedArray"
        seen.add(pool(workers.mapped))
    assert seen <= {before, before + 3}
    assert array.tolist() == [0, 100, 2]


@pytest.mark.core
def test_arguments_queues_and_pipes_carry_arrays(start_method: BaseContext, store: sa.Store) -> None:
    """`Process(args=)`, Queue, SimpleQueue and Pipe, there and back, are the same memory all the way."""
    array = store.zeros((3, 2))
    queues = start_method.Queue(), start_method.Queue()
    simple = start_method.SimpleQueue(), start_method.SimpleQueue()
    ours, theirs = start_method.Pipe()
    process = start_method.Process(target=workers.transports, args=(array, queues, simple, theirs))  # type: ignore[attr-defined]
    process.start()
    for send, receive in ((queues[0].put, queues[1].get), (simple[0].put, simple[1].get), (ours.send, ours.recv)):
        send(array)
        back = receive()
        assert array.tolist() == np.full((3, 2), 2).tolist()
        back[0] = 5
        assert array[2].tolist() == [5, 5]
        array[...] = 0
    process.join(60)
    assert process.exitcode == 0
    process.close()
    for queue in queues:
        queue.close()
        queue.join_thread()
    for each in simple:
        each.close()
    ours.close()
    theirs.close()
    assert store.stats().in_flight == 0


def test_a_handle_is_loaded_by_a_process_that_never_saw_the_store(store: sa.Store) -> None:
    """A pickle on the standard input of a fresh interpreter is all that it takes, for views and trees of any lifetime."""
    array = store.put(np.arange(12.0).reshape(3, 4))
    run_function(workers.assert_sum, array[::-1, 1:3], 33.0).expect()
    assert array.sum() == 0 + 3 + 4 + 7 + 8 + 11 - 6
    store["x"] = np.arange(3)
    run_function(workers.assert_sum, store["x"], 3).expect()
    tree = store.put(tree_model())
    run_function(workers.read_layer, tree["layers"][0]).expect()
    store["published"] = store["deleted"] = np.zeros(1)
    run_function(workers.make_and_share, store).expect()
    assert list(store) == ["made by a worker", "published", "x"]
    assert store.stats().in_flight == 0


@pytest.mark.core
def test_an_unrelated_process_joins_by_name(place: str | None) -> None:
    """`connect(name)` needs nothing but the name: no pickle, no parent; closing there ends nothing here."""
    with sa.Store("contract join", directory=place) as store:
        store["x"] = np.arange(3)
        run_function(workers.joins_by_name, "contract join", 3).expect()
        assert store["x"].sum() == 6
        assert store["from outside"].tolist() == [0, 1, 2]
    finished = run_function(workers.joins_by_name, "contract join", 3)
    assert finished.returncode == 1
    assert "StoreNotFoundError" in finished.stderr


def test_an_array_goes_through_a_chain_of_processes(memory_store: sa.Store) -> None:
    """A worker hands on what it was given to a process of its own; a view of a view is a view of the block."""
    array = memory_store.put(np.arange(10))
    script = """
import pickle, subprocess, sys
array = pickle.load(sys.stdin.buffer)
if len(sys.argv) > 1:
    view = array[1:]
    subprocess.run([sys.executable, __file__, *sys.argv[2:]], input=pickle.dumps(view), check=True)
else:
    array[0] = -1
"""
    run_script(script, "3", "2", "1", stdin=pickle.dumps(array)).expect()
    assert array.tolist() == [0, 1, 2, -1, 4, 5, 6, 7, 8, 9]


JOBLIB = """
import sys
import joblib, numpy as np, shmarray as sa
from tests.contract import workers

def main():
    with sa.Store() as store:
        array = store.zeros((4, 300_000))           # 2.4 MB a row: joblib would write a plain array of that size to a file
        with joblib.parallel_config(backend=sys.argv[1], n_jobs=2):
            pids = joblib.Parallel()(joblib.delayed(workers.overwrite)(array[row], row + 1) for row in range(4))
            assert array.sum(axis=1).tolist() == [300_000.0 * (row + 1) for row in range(4)]
            made = joblib.Parallel()(joblib.delayed(workers.make_anonymous)(store, np.full(3, row)) for row in range(4))
            assert [int(each[0]) for each in made] == [0, 1, 2, 3], made
            assert {type(each) for each in made} == {sa.SharedArray}
            tree = store.put([np.ones(3), {"a": np.zeros(2)}])
            joblib.Parallel()([joblib.delayed(workers.overwrite)(tree[1]["a"], 9)])
            assert tree[1]["a"].tolist() == [9, 9]
        del made, tree
        assert store.stats().in_flight == 0
        print(len(set(pids)) >= 1)

if __name__ == "__main__":
    main()
"""


@pytest.mark.core
@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_joblib_carries_handles(backend: str) -> None:
    """Joblib's own treatment of large arrays does not catch shared ones: workers write into the parent's memory."""
    pytest.importorskip("joblib")
    assert run_script(JOBLIB, backend, timeout=90).expect() == "True\n"
