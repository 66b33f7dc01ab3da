"""An anonymous array lives exactly as long as anyone holds it, in any process, handles in flight included."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray._os import segments
from tests.helpers.leaks import SHM, shm_entries
from tests.helpers.processes import reap, run_script, wait_until
from tests.lifetime.holder import Holder

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

    Blocks = Callable[[], list[str]]
    Soon = Callable[[list[str]], None]


@pytest.mark.core
def test_it_goes_with_its_last_view_here(store: sa.Store, blocks: Blocks) -> None:
    """Any view keeps it, whatever became of the array it was made from; the last one to go takes it along, at once."""
    views = [store.put(np.arange(12.0).reshape(3, 4))]
    views += [views[0][1:], views[0].T, views[0].reshape(-1)[5:6], np.asarray(views[0]), views[0].flat, iter(views[0])]
    for _ in range(len(views) - 1):
        del views[0]
        assert blocks() == ["a"]
    del views
    assert blocks() == []


def test_it_goes_with_a_cycle_that_is_collected(store: sa.Store, blocks: Blocks) -> None:
    """A view in a reference cycle keeps it until the collector comes."""
    cycle: list[Any] = [store.zeros(3)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert blocks() == []


def test_it_goes_when_another_thread_drops_it(store: sa.Store, blocks: Blocks) -> None:
    """The last view may be dropped in any thread."""
    box = [store.zeros(3)]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert blocks() == []


def test_it_stays_for_whoever_holds_it(start_method: BaseContext, store: sa.Store, blocks: Blocks, soon: Soon) -> None:
    """Sent and dropped here, it lives on there, writable; dropped there it is gone, as judged by the file system."""
    with Holder(start_method) as first, Holder(start_method) as second:
        array = store.put(np.ones(5))
        first.tell("keep", array)
        del array
        assert blocks() == ["a"]
        assert first.tell("sum") == [5]
        second.tell("load", first.tell("pickle")[0])
        first.tell("drop")
        assert blocks() == ["a"]
        second.tell("add", 1)
        back = second.tell("give")
        assert back.tolist() == [2] * 5
        second.tell("drop")
        assert blocks() == ["a"]
        del back
        soon([])


@pytest.mark.core
def test_a_handle_in_flight_keeps_it(start_method: BaseContext, store: sa.Store, blocks: Blocks) -> None:
    """The sender drops it before the receiver has loaded it: nothing is lost, and each handle counts."""
    handles = []
    for number in range(3):
        array = store.full(4, number)
        handles.append(pickle.dumps(array))
        handles.append(pickle.dumps(array[2:]))
        del array
    assert blocks() == ["a"] * 3 + ["h"] * 6
    with Holder(start_method) as holder:
        for handle in handles:
            holder.tell("load", handle)
        assert blocks() == ["a"] * 3
        assert holder.tell("sum") == [0, 0, 4, 2, 8, 4]
        holder.tell("drop")
    assert blocks() == []


@pytest.mark.core
def test_a_handle_outlives_its_sender(start_method: BaseContext, store: sa.Store, soon: Soon) -> None:
    """A worker makes an array, answers with a handle and is gone, by exit or SIGKILL, before anyone loads it."""
    for end in (Holder.die, Holder.kill):
        with Holder(start_method) as holder:
            holder.tell("make", store, np.arange(4))
            (handle,) = holder.tell("pickle")
            end(holder)
        soon(["a", "h"])
        array = pickle.loads(handle)
        assert array.tolist() == [0, 1, 2, 3]
        soon(["a"])
        del array
        soon([])


@pytest.mark.core
def test_a_process_that_dies_holds_nothing(
    start_method: BaseContext, store: sa.Store, blocks: Blocks, soon: Soon
) -> None:
    """What only it held is freed while the store is open, after an exit without exit work and after SIGKILL."""
    for end in (Holder.die, Holder.kill):
        with Holder(start_method) as holder:
            holder.tell("make", store, np.arange(4))
            shared = store.zeros(3)
            holder.tell("keep", shared)
            assert blocks() == ["a", "a"]
            end(holder)
        soon(["a"])
        assert shared.sum() == 0
        del shared
        soon([])


def test_loading_twice_is_harmless(start_method: BaseContext, store: sa.Store, blocks: Blocks) -> None:
    """The second load finds the same array while anyone holds it, and says that it is gone afterwards."""
    handle = pickle.dumps(store.put(np.arange(3)))
    with Holder(start_method) as holder:
        holder.tell("load", handle)
        again, third = pickle.loads(handle), pickle.loads(handle)
        again[0] = 7
        assert third[0] == 7
        assert holder.tell("sum") == [10]
        holder.tell("drop")
        assert blocks() == ["a"]
        del again, third
        assert blocks() == []
        error = holder.tell("load", handle)
        assert isinstance(error, sa.ArrayNotFoundError)
        assert error.name is None
    with pytest.raises(sa.ArrayNotFoundError):
        pickle.loads(handle)


def test_pickling_twice_makes_two_handles(store: sa.Store, blocks: Blocks) -> None:
    """Loading one leaves the other in flight; an array that comes back through one is still kept by the other."""
    array = store.put(np.arange(3))
    one, two = pickle.dumps(array), pickle.dumps(array)
    del array
    assert blocks() == ["a", "h", "h"]
    pickle.loads(one)
    assert blocks() == ["a", "h"]
    assert pickle.loads(two).sum() == 3
    assert blocks() == []


def test_a_handle_that_is_never_loaded_keeps_it_until_it_is_given_up(store: sa.Store, blocks: Blocks) -> None:
    """`release_unclaimed()` frees what only handles kept, and nothing that anyone holds; closing frees it in any case."""
    held = store.zeros(3)
    handles = [pickle.dumps(held), pickle.dumps(store.zeros(4)), pickle.dumps(store.put([np.ones(2)]))]
    assert blocks() == ["a"] * 3 + ["h"] * 3
    stats = store.stats()
    assert (stats.anonymous, stats.in_flight) == (3, 3)
    assert store.release_unclaimed() == 3
    assert blocks() == ["a"]
    assert pickle.loads(handles[0]) is not None
    for handle in handles[1:]:
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.loads(handle)
    assert store.release_unclaimed() == 0
    kept = pickle.dumps(held)
    store.close()
    assert blocks() == []
    with pytest.raises(sa.StoreClosedError):
        pickle.loads(kept)
    assert held.sum() == 0


def test_unlink_frees_the_name_for_all_and_no_view(start_method: BaseContext, store: sa.Store, blocks: Blocks) -> None:
    """After `unlink()` by anyone there is no file and no new attach; every view in every process goes on."""
    with Holder(start_method) as holder:
        array = store.put(np.ones(3))
        holder.tell("keep", array)
        in_flight = pickle.dumps(array)
        holder.tell("unlink")
        assert blocks() == []
        array += 1
        assert holder.tell("sum") == [6]
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.loads(in_flight)
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.dumps(array)
        (answer,) = [holder.tell("pickle")]
        assert isinstance(answer, sa.ArrayNotFoundError)
        array.unlink()


@pytest.mark.parametrize("size", [10, 100_000, 1 << 18], ids=["small", "large", "kept warm"])
@pytest.mark.parametrize("maker", ["owner", "worker"])
def test_unlink_looks_for_handles_only_where_there_are_any(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch, size: int, maker: str
) -> None:
    """The kernel counts the names of a file: with ten thousand arrays, looking at every name would cost more than all the rest."""
    listed: list[str] = []
    entries = segments.entries

    def listing(directory: str, prefix: str) -> list[str]:
        listed.append(prefix)
        return entries(directory, prefix)

    monkeypatch.setattr(segments, "entries", listing)
    with Holder(multiprocessing.get_context("fork")) as holder:
        for number in range(4):
            if maker == "owner":
                array = store.zeros(size)
            else:
                holder.tell("make", store, np.zeros(size))
                array = holder.tell("give")
            listed.clear()
            array.unlink()
            assert listed == [], number
            with pytest.raises(sa.ArrayNotFoundError):
                pickle.dumps(array)
            del array
        array = store.zeros(size)
        handles = [pickle.dumps(array) for _ in range(3)]
        array.unlink()
        assert len(listed) == 1
    assert not shm_entries(f"shmarray.{os.geteuid()}.{store.id}.h.")
    assert len(handles) == 3


@pytest.mark.parametrize("size", [10, 1 << 18], ids=["small", "kept warm"])
def test_a_handle_that_is_made_while_the_array_is_deleted_does_not_stay(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Up to the moment in which its name goes, or is moved aside, another process may link to it."""
    array = store.zeros(size)
    (entry,) = shm_entries(f"shmarray.{os.geteuid()}.{store.id}.a.")
    path = os.path.join(SHM, entry)
    handle = path.replace(".a.", ".h.") + ".0123456789ab"

    def meanwhile(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(first: str, *others: str) -> Any:
            if first == path and not os.path.exists(handle):
                os.link(path, handle)
            return act(first, *others)

        return acting

    for name in ("unlink", "replace"):
        monkeypatch.setattr(segments, name, meanwhile(getattr(segments, name)))
    array.unlink()
    assert not shm_entries(f"shmarray.{os.geteuid()}.{store.id}.h.")
    assert not os.path.exists(path)


def test_a_queue_full_of_arrays_loses_none(store: sa.Store, soon: Soon) -> None:
    """A producer that drops each array once it is sent, a consumer that drops each once it is read: every sum is right."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def produce() -> None:
        for number in range(200):
            queue.put(store.full(10, number))
        queue.close()
        queue.join_thread()
        os._exit(0)

    process = context.Process(target=produce)
    process.start()
    assert [int(queue.get(timeout=30).sum()) for _ in range(200)] == [10 * number for number in range(200)]
    process.join(30)
    process.close()
    queue.close()
    queue.join_thread()
    soon([])


@pytest.mark.core
def test_a_forked_child_keeps_what_it_inherited(store: sa.Store, blocks: Blocks, soon: Soon) -> None:
    """The parent drops its view: the child's copy of it goes on, and the array is freed when the child has gone."""
    array = store.put(np.arange(4))
    told, tell = os.pipe()
    answer, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(told, 1)
        os.write(say, bytes([int(array.sum())]))
        os.read(told, 1)
        os._exit(0)
    del array
    gc.collect()
    assert blocks() == ["a"]
    os.write(tell, b"1")
    assert os.read(answer, 1) == b"\x06"
    assert blocks() == ["a"]
    os.write(tell, b"1")
    assert reap(pid) == 0
    soon([])
    for fd in (told, tell, answer, say):
        os.close(fd)


def test_a_child_that_drops_what_it_inherited_takes_nothing_from_its_parent(store: sa.Store, blocks: Blocks) -> None:
    """Dropping, collecting and leaving in the child: the parent's array stays, also when the parent has only a view."""
    array = store.put(np.arange(4))[1:]
    pid = os.fork()
    if pid == 0:
        del array
        gc.collect()
        os._exit(0)
    assert reap(pid) == 0
    assert blocks() == ["a"]
    assert array.sum() == 6
    del array
    assert blocks() == []


def test_the_last_holder_may_be_a_stranger(store: sa.Store, blocks: Blocks) -> None:
    """A process that only ever saw the handle is as good a holder as any, and frees it at its end."""
    array = store.put(np.arange(4))
    script = "import pickle, sys; held = pickle.load(sys.stdin.buffer); held[0] = 9; print(held.sum())"
    handle = pickle.dumps(array)
    del array
    assert blocks() == ["a", "h"]
    assert run_script(script, stdin=handle).expect() == "15\n"
    wait_until(lambda: blocks() == [])
