"""How channels get to other processes, what they are called, what they cost, and when their memory goes."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import queue
import weakref
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.channels import actors
from tests.channels.test_streams import ITEM, is_clean
from tests.helpers import leaks
from tests.helpers.processes import Child, reap, run_script, wait_until
from tests.limits.small import run_in_small_memory
from tests.vocabulary.deaths import in_child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import SpawnContext


@pytest.fixture(params=["shared memory", "directory"])
def placed(request: pytest.FixtureRequest, store_dir: str) -> Iterator[sa.Store]:
    """A store in shared memory, then one in an ordinary directory."""
    with sa.Store(directory=store_dir if request.param == "directory" else None) as opened:
        yield opened


# -- ways to another process -------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_channel_travels_as_an_argument(placed: sa.Store, start_method: SpawnContext, any_guard: None) -> None:
    """A producer and a consumer in processes of their own: every item, in order, and the end of the stream when they have gone."""
    there, back = placed.channel(4, "i8", slots=3), placed.channel(4, "i8", slots=2, name="back")
    worker = start_method.Process(target=actors.echo, args=(there, back))
    worker.start()
    producer = start_method.Process(target=actors.put_all, args=(there, range(40)))
    producer.start()
    assert [int(item[0]) for item in back] == list(range(40))
    for process in (worker, producer):
        process.join(60)
        assert process.exitcode == 0
        process.close()
    assert is_clean(there)
    assert (there.stats().sent, there.stats().received) == (40, 40)


def test_a_channel_travels_through_queues_pipes_and_pools(
    store: sa.Store, any_guard: None, start_method: SpawnContext
) -> None:
    """Standard and of the store; the one that arrives is the same channel; workers' objects are dropped with each task."""
    channel = store.channel(4, "i8", slots=8)
    with ProcessPoolExecutor(2, mp_context=start_method) as pool:
        assert all(pool.map(partial(actors.put_one, channel), range(6), timeout=60))
        assert sorted(int(channel.get(timeout=30)[0]) for _ in range(6)) == list(range(6))
        assert set(channel.stats().producers) <= set(pool._processes)
        assert channel.stats().producers
    with start_method.Pool(1) as old:
        assert old.apply(actors.put_one, (channel, 7))
        assert channel.get(timeout=30)[0] == 7
        old.close()
        old.join()
    standard, ours = start_method.SimpleQueue(), store.Queue()
    end, other = multiprocessing.Pipe()
    for put, get in ((standard.put, standard.get), (ours.put, ours.get), (end.send, other.recv)):
        put(channel)
        arrived = get()
        assert type(arrived) is type(channel)
        arrived.put(ITEM)
        assert channel.get().tolist() == ITEM.tolist()
    for each in (standard, end, other):
        each.close()
    assert is_clean(channel)


def test_a_handle_is_small_and_may_be_loaded_often(store: sa.Store) -> None:
    """By every protocol, by `copy` too: another object of the same channel."""
    channel = store.channel((1000, 1000), name="frames", slots=2)
    handles = [pickle.dumps(channel, protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    assert max(map(len, handles)) < 300
    arrived = [pickle.loads(handle) for handle in handles for _ in range(2)] + [
        copy.copy(channel),
        copy.deepcopy(channel),
    ]
    arrived[0].put(np.ones((1000, 1000)))
    assert {each.qsize() for each in arrived} == {1}
    assert {each.name for each in arrived} == {"frames"}
    assert {(each.slots, each.mode) for each in arrived} == {(2, "queue")}


JOBLIB = """
import sys
import joblib, numpy as np, shmarray as sa
from tests.channels import actors

def main():
    with sa.Store() as store:
        channel = store.channel(4, "i8", slots=8)
        with joblib.parallel_config(backend=sys.argv[1], n_jobs=2):
            assert all(joblib.Parallel()(joblib.delayed(actors.put_one)(channel, number) for number in range(6)))
        print(sorted(int(channel.get(timeout=30)[0]) for _ in range(6)))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_joblib_carries_channels(backend: str, any_guard: None) -> None:
    """Through its own pickler, to its own workers."""
    pytest.importorskip("joblib")
    assert run_script(JOBLIB, backend, timeout=90).expect() == "[0, 1, 2, 3, 4, 5]\n"


def test_a_child_forked_has_its_parents_channel(store: sa.Store) -> None:
    """Without any handle, in both directions, while both use it."""
    channel, back = store.channel(20_000, "i8", slots=2), store.channel(4, "i8")

    def work() -> None:
        assert actors.consume(channel) == list(range(10))
        actors.put_all(back, range(3))

    pid = in_child(work)
    actors.produce(channel, range(10))
    channel.close()
    assert [int(item[0]) for item in back] == [0, 1, 2]
    assert reap(pid) == 0


def test_an_unrelated_process_finds_a_channel_by_name(any_guard: None) -> None:
    """`connect` and `open_channel`, or `[...]`; both directions."""
    with sa.Store("channels-door") as store:
        channel = store.channel({"a": (3, "f4"), "b": ((None,), "i2")}, max_shape={"b": 5}, name="camera/left")
        script = """
import numpy as np, shmarray as sa
store = sa.connect("channels-door")
for camera in (store.open_channel("camera/left"), store["camera/left"]):
    camera.put({"a": np.ones(3, "f4"), "b": [1, 2]}, meta="from elsewhere")
"""
        run_script(script).expect()
        for _ in range(2):
            with (item := channel.receive(30)) as frame:
                assert (frame["a"].sum(), frame["b"].tolist(), item.meta) == (3, [1, 2], "from elsewhere")
        with pytest.raises(sa.ChannelClosedError):
            channel.get(timeout=30)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_named_channel_is_found_until_it_is_deleted(placed: sa.Store) -> None:
    """By `store[name]` and `open_channel`; a name that is taken, unknown, or another thing's says so; who has it goes on."""
    channel = placed.channel(4, "i8", name="camera")
    assert "camera" in placed
    for found in (placed["camera"], placed.open_channel("camera")):
        found.put(ITEM)
        assert channel.get().tolist() == ITEM.tolist()
    with pytest.raises(sa.ArrayExistsError):
        placed.channel(4, "i8", name="camera")
    placed["numbers"] = np.arange(3)
    placed["jobs"] = placed.Queue()
    for name, kind in (("numbers", "SharedArray"), ("jobs", "Queue")):
        with pytest.raises(TypeError, match=f"{kind}, not a channel"):
            placed.open_channel(name)
    with pytest.raises(sa.ArrayNotFoundError):
        placed.open_channel("nothing")
    channel.unlink()
    channel.unlink()
    with pytest.raises(sa.ArrayNotFoundError):
        placed.open_channel("camera")
    channel.put(ITEM)
    assert found.get().tolist() == ITEM.tolist()
    again = placed.channel(2, name="camera")
    assert placed.open_channel("camera").empty()
    del placed["camera"]
    assert "camera" not in placed
    assert again.empty()


def test_a_name_may_be_replaced_by_a_channel_and_a_channel_by_another(store: sa.Store) -> None:
    """`store[name] = channel` gives a name by reference; who has the one before goes on with it."""
    store["camera"] = np.ones(3)
    first, second = store.channel(4, "i8"), store.channel(4, "i8")
    store["camera"] = first
    first.put(ITEM)
    assert store["camera"].qsize() == 1
    assert store.open_channel("camera").get().tolist() == ITEM.tolist()
    store["camera"] = second
    assert store.open_channel("camera").empty()
    second.put(ITEM + 1)
    first.put(ITEM)
    assert (store["camera"].get()[0], first.get()[0]) == (1, 0)


def test_a_handle_of_a_deleted_channel_is_refused(store: sa.Store) -> None:
    """ArrayNotFoundError, as of an array; also after another took the name."""
    handle = pickle.dumps(store.channel(4, name="camera"))
    del store["camera"]
    store.channel(4, name="camera")
    with pytest.raises(sa.ArrayNotFoundError):
        pickle.loads(handle)


def test_a_closed_store_makes_and_gives_no_channel(guard_kind: str) -> None:
    """StoreClosedError; a channel that one has can be looked at, and does not crash."""
    store = sa.Store()
    channel, handle = store.channel(4, "i8", slots=1), pickle.dumps(store.channel(4, name="x"))
    channel.put(ITEM)
    with channel.receive() as frame:
        store.close()
        assert frame.tolist() == ITEM.tolist()
    for use in (lambda: store.channel(4), lambda: store.open_channel("x"), lambda: pickle.loads(handle)):
        with pytest.raises(sa.ShmArrayError) as caught:
            use()
        assert isinstance(caught.value, (sa.StoreClosedError, sa.ArrayNotFoundError, sa.StoreNotFoundError))
    assert channel.stats().sent == 1
    channel.close()


# -- room --------------------------------------------------------------------------------------------------------------


def test_a_capacity_bounds_channels(placed: sa.Store, store_dir: str) -> None:
    """What would pass it is refused with the facts, before anything is made; room given back can be used."""
    with sa.Store(capacity=1 << 20) as store:
        keep = store.channel((1000,), "u1", slots=4)
        with pytest.raises(sa.StoreFullError, match="capacity") as caught:
            store.channel((1 << 20,), "u1", slots=2, name="camera")
        assert caught.value.asked >= 2 << 20
        assert "camera" not in store
        assert store.stats().anonymous == 1
        large = store.channel((100, 1000), "u1", slots=8)
        assert large.put(np.ones((100, 1000), "u1"))
        del large
        gc.collect()
        assert store.channel((100, 1000), "u1", slots=8).put(np.ones((100, 1000), "u1"))
        assert keep.empty()


def test_full_memory_refuses_a_channel_and_leaves_nothing(any_guard: None) -> None:
    """With 16 MiB of shared memory: StoreFullError and no SIGBUS, nothing half made, and a smaller one works to its last slot."""
    script = """
import os
import numpy as np, shmarray as sa
with sa.Store() as store:
    before = sorted(os.listdir("/dev/shm"))
    for name in (None, "camera"):
        try:
            store.channel((1 << 20,), "u1", slots=32, name=name)
        except sa.StoreFullError as error:
            assert isinstance(error, MemoryError)
            print("refused")
        assert sorted(os.listdir("/dev/shm")) == before
    channel = store.channel((1 << 20,), "u1", slots=8)
    for number in range(8):
        with channel.loan(0) as frame:
            frame[:] = number
    print([int(channel.get(timeout=0).sum()) >> 20 for _ in range(8)])
"""
    finished = run_in_small_memory(script, "size=16m")
    assert finished.expect() == "refused\nrefused\n[0, 1, 2, 3, 4, 5, 6, 7]\n"


def test_a_channel_takes_its_slots_and_a_few_pages(store: sa.Store) -> None:
    """As its docstring says: so many times the largest item, rounded up to pages."""
    store.channel((100, 4096), "u1", slots=10, name="camera")
    path = next(name for name in os.listdir("/dev/shm") if f".{store.id}." in name and not name.endswith(".ctl"))
    size = os.stat(f"/dev/shm/{path}").st_size
    assert 10 * 100 * 4096 < size < 10 * 100 * 4096 + 20 * 4096


# -- when it goes ------------------------------------------------------------------------------------------------------


def files(store: sa.Store) -> list[str]:
    """Names of blocks of a store."""
    return [name for name in leaks.shm_entries() if f".{store.id}." in name and not name.endswith(".ctl")]


def mapped(store: sa.Store) -> int:
    """How many mappings of blocks this process has, by whatever name the kernel knows them."""
    there = {os.stat(f"{leaks.SHM}/{name}").st_ino for name in leaks.shm_entries() if name.endswith(".ctl")}
    return sum(each.inode not in there for each in leaks.mappings())


def use(channel: Any) -> None:
    """Put and take in every way, be told of errors, wait a little."""
    item = np.zeros(channel._form.fields[0].bounds)
    source = channel.subscribe() if channel.mode == "broadcast" else channel
    with pytest.raises(queue.Empty):
        source.get(timeout=0.001)
    for _ in range(2):
        channel.put(item, timeout=5)
    source.get()
    with source.receive(5):
        pass
    with channel.loan(5, meta=1) as frame:
        frame[:] = 1
    for _ in source:
        break
    with pytest.raises(sa.ShapeError):
        channel.put(np.zeros(77))
    with pytest.raises(ValueError, match="meta_bytes"):
        channel.put(item, meta=b"x" * 9999)
    with pytest.raises(ZeroDivisionError), channel.loan(5):
        raise ZeroDivisionError
    channel.stats()
    repr(channel)


@pytest.mark.parametrize("length", [4, 20_000])
@pytest.mark.parametrize("mode", ["queue", "broadcast"])
def test_the_last_object_that_is_dropped_takes_the_memory_along(store: sa.Store, mode: Any, length: int) -> None:
    """At once, seen from outside, with the collector off: used, subscribed, closed or not; a named one stays until deleted."""
    gc.collect()
    gc.disable()
    try:
        assert (files(store), mapped(store)) == ([], 0)
        for ending in ("drop", "close", "with"):
            channel = store.channel(length, mode=mode)
            again = pickle.loads(pickle.dumps(channel))
            use(channel)
            if mode == "broadcast":
                with pytest.raises(queue.Empty):
                    again.get(timeout=0)
            assert len(files(store)) == 1
            assert mapped(store) >= 1
            if ending == "close":
                channel.close()
            if ending == "with":
                with channel:
                    pass
            gone = weakref.ref(channel)
            del channel
            assert gone() is None
            assert len(files(store)) == 1
            del again
            assert (files(store), mapped(store)) == ([], 0)
        channel = store.channel(length, mode=mode, name="camera")
        use(channel)
        del channel
        assert len(files(store)) == 1
        assert mapped(store) == 0
        del store["camera"]
        assert files(store) == []
    finally:
        gc.enable()


def test_a_channel_in_flight_lives_and_goes_with_its_last_holder(store: sa.Store, any_guard: None) -> None:
    """A handle in a queue keeps it; a killed process does not."""
    channel = store.channel(4, "i8")
    channel.put(ITEM)
    passing = store.Queue()
    passing.put(channel)
    del channel
    assert passing.get().get().tolist() == ITEM.tolist()
    del passing
    wait_until(lambda: files(store) == [], 20)
    with Child(_HOLDER) as child:
        child.tell(pickle.dumps(store).hex())
        child.wait_for("made")
        assert len(files(store)) == 1
        child.kill()
        wait_until(lambda: files(store) == [], 20)


_HOLDER = """
import pickle
import numpy as np
from tests.helpers.processes import report
store = pickle.loads(bytes.fromhex(input()))
channel = store.channel(4, "i8", mode="broadcast")
subscription = channel.subscribe()
channel.put(np.arange(4))
report("made")
input()
"""


def test_the_end_of_a_program_is_silent(any_guard: None) -> None:
    """With objects, subscriptions, loops, loans and items open, in threads and coroutines: nothing on standard error, nothing left."""
    script = """
import asyncio, threading
import numpy as np, shmarray as sa
store = sa.Store()
channel, broadcast = store.channel(4, "i8"), store.channel(4, "i8", mode="broadcast")
subscription = broadcast.subscribe()
for each in (channel, channel, broadcast):
    each.put(np.arange(4))
loan, item, steps = channel.loan(), channel.receive(), iter(channel)
frames = loan.__enter__(), item.__enter__(), next(steps), subscription.receive().__enter__()
threading.Thread(target=channel.get, daemon=True).start()
async def main():
    tasks.append(asyncio.create_task(broadcast.aget()))
    await asyncio.sleep(0.01)
tasks = []
asyncio.run(main())
print("end")
"""
    assert run_script(script).expect() == "end\n"


@pytest.mark.parametrize(
    "waits", ["store.Queue().get", "store.channel(4).get", "store.Event().wait", "store.Semaphore(0).acquire"]
)
def test_who_waits_in_a_daemon_thread_is_silent_when_the_end_of_the_program_takes_long(waits: str) -> None:
    """The store is closed by then, and the thread goes on until the interpreter has ended; so it waits."""
    script = f"""
import sys, threading, time, traceback
from multiprocessing import util
import shmarray as sa
store = sa.Store()
thread = threading.Thread(target={waits}, daemon=True)
thread.start()
while not {{"wait", "wait_change"}} & {{frame.name for frame in traceback.extract_stack(sys._current_frames()[thread.ident])}}:
    time.sleep(0.001)
util.Finalize(None, time.sleep, args=(0.2,), exitpriority=-200)
print("end")
"""
    assert run_script(script).expect() == "end\n"
