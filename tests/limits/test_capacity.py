"""A capacity bounds the bytes of all blocks of a store together, for all its processes, at every moment."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import contents, exhaustion, reaper
from shmarray._os import flocks, segments
from tests.helpers.processes import reap
from tests.helpers.sweeps import in_child
from tests.limits import workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

KIB = 1 << 10
CAPACITY = 200 * KIB


@pytest.fixture(params=["shared memory", "directory"])
def place(request: pytest.FixtureRequest, store_dir: str) -> str | None:
    """Where blocks are: what to give as `directory=`."""
    return store_dir if request.param == "directory" else None


def on_disk(store: sa.Store) -> int:
    """Bytes of the blocks that were there at one moment, as the file system says; a block with two names counts once.

    The moment is that of the listing, which tells name and inode of each. Should a name be another file's, or nobody's, when
    its size is asked for, it is left out: the sum may be too low and never too high.
    """
    with os.scandir(store.stats().directory) as entries:
        listing = [(entry.inode(), entry.path) for entry in entries if f".{store.id}." in entry.name]
    sizes: dict[int, int] = {}
    for inode, path in listing:
        if not path.endswith((".ctl", ".dir")):
            with contextlib.suppress(FileNotFoundError):
                info = os.lstat(path)
                if info.st_ino == inode:
                    sizes[inode] = info.st_size
    return sum(sizes.values())


def refused(act: Callable[[], object]) -> Any:
    """Run what must be refused for lack of capacity."""
    with pytest.raises(sa.StoreFullError) as caught:
        act()
    error = caught.value
    assert isinstance(error, MemoryError)
    assert "capacity" in str(error)
    assert "capacity=" in error.remedy
    assert pickle.loads(pickle.dumps(error)).facts == error.facts
    return error.with_traceback(None)


@pytest.mark.core
def test_what_would_pass_the_capacity_is_refused_with_the_facts(place: str | None) -> None:
    """Every way of making an array: the error names asked, free, capacity and this store's biggest arrays; nothing is left."""
    with sa.Store() as other, sa.Store(capacity=CAPACITY, directory=place) as store:
        other.zeros(CAPACITY, name="another store's")
        big, small = store.zeros(100 * KIB, "u1", name="big"), store.zeros(20 * KIB, "u1", name="small")
        anonymous = store.ones(10 * KIB, "u1")
        used, files = on_disk(store), sorted(os.listdir(store.stats().directory))
        makers: list[Callable[[], object]] = [
            lambda: store.zeros(70 * KIB, "u1"), lambda: store.ones(70 * KIB, "u1", name="x"), lambda: store.put(np.ones(70 * KIB, "u1")),
            lambda: store.put([np.ones(40 * KIB, "u1"), {"b": np.ones(30 * KIB, "u1")}]), lambda: store.ones((70, KIB), "u1", "F"),
            lambda: store.put(np.ones((2, 70 * KIB), "u1")[:, ::2]), lambda: store.__setitem__("small", np.ones(70 * KIB, "u1")),
            lambda: store.__setitem__("new", np.ones(70 * KIB, "u1")),
        ]  # fmt: skip
        for act in makers:
            error = refused(act)
            assert error.asked >= 70 * KIB
            assert error.limit == CAPACITY
            assert error.free == CAPACITY - used < error.asked
            assert [name for name, _ in error.biggest] == ["big", "small", "(anonymous)"]
            assert error.biggest[0][1] >= 100 * KIB
            assert on_disk(store) == used
        assert sorted(os.listdir(store.stats().directory)) == files
        assert (store["small"].sum(), anonymous.sum()) == (0, 10 * KIB)
        stats = store.stats()
        assert (stats.capacity, stats.free, stats.drafts) == (CAPACITY, CAPACITY - used, 0)
        del store["big"], big, small
        assert store.zeros(150 * KIB, "u1").nbytes == 150 * KIB


def test_sizes_that_differ_look_different(place: str | None) -> None:
    """What does not fit by a few bytes: no message says that of 64.0 MiB 64.0 MiB are free and 64.0 MiB were asked for."""
    with sa.Store(capacity=64 << 20, directory=place) as store:
        error = refused(lambda: store.zeros(64 << 20, "u1"))
        found = re.search(r"asked (.*), free (.*) of (.*) in the capacity", str(error))
        assert found is not None, str(error)
        assert error.asked > error.free == error.limit == 64 << 20
        asked, free, limit = found.groups()
        assert (asked != free, free) == (True, limit), str(error)
        store.zeros(20, name="small")
        found = re.search(
            r"asked (.*), free (.*) of (.*) in the capacity", str(refused(lambda: store.zeros(64 << 20, "u1")))
        )
        assert found is not None
        assert len(set(found.groups())) == 3, found.groups()
    near = 1 << 40
    assert exhaustion.distinct_texts(near, near - 1, near) == [
        "1,099,511,627,776 bytes",
        "1,099,511,627,775 bytes",
        "1,099,511,627,776 bytes",
    ]


def test_what_was_freed_can_be_used_again_however_often(place: str | None) -> None:
    """Hundreds of arrays one after the other in room for three: dropped, deleted, replaced and scoped bytes come back."""
    with sa.Store(capacity=100 * KIB, directory=place) as store:
        for number in range(60):
            store.zeros(30 * KIB, "u1")
            store.zeros(30 * KIB, "u1", name="x")
            del store["x"]
            store["y"] = np.ones(30 * KIB, "u1")
            with store.ones(30 * KIB, "u1") as scoped:
                assert scoped[number] == 1
            del scoped
            assert on_disk(store) <= 100 * KIB
        assert store["y"].sum() == 30 * KIB


def test_an_array_dropped_while_somebody_looks_at_it_does_not_count(
    monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    """A guardian, say, has its exclusive lock just then, and removes it a moment later: the next array waits for that moment."""
    with sa.Store(capacity=100 * KIB, directory=place) as store:
        array = store.zeros(60 * KIB, "u1")
        path = os.path.join(store.stats().directory, str(contents.segment_of(array).tag.path))  # type: ignore[union-attr]
        last_one_out = reaper.last_one_out
        looks = []

        def let_go_beside_a_look(path: str, uid: int) -> bool:
            looks.append(segments.open_existing(path))
            assert flocks.try_exclusive(looks[0])
            return last_one_out(path, uid)

        def look_no_more(_: float) -> None:
            segments.unlink(path)
            looks.pop().close()

        with monkeypatch.context() as patch:
            patch.setattr(reaper, "last_one_out", let_go_beside_a_look)
            del array
        assert os.path.exists(path)
        monkeypatch.setattr("shmarray._os.flocks.time.sleep", look_no_more)
        assert store.zeros(60 * KIB, "u1").size == 60 * KIB
        assert looks == []


def test_what_only_the_dead_had_does_not_count(place: str | None) -> None:
    """A worker that was killed had an array alone, and no guardian is there to see it: its bytes are there for the next at once."""
    with sa.Store(capacity=100 * KIB, directory=place) as store:
        os.kill(store.guardian_pid or 0, signal.SIGKILL)
        array = store.zeros(60 * KIB, "u1")
        pid = in_child(signal.pause)
        del array
        os.kill(pid, signal.SIGKILL)
        reap(pid)
        assert on_disk(store) > 60 * KIB
        assert store.zeros(60 * KIB, "u1").size == 60 * KIB


def test_queues_and_containers_grow_as_far_as_there_is_room() -> None:
    """Where there is no room for an arena with as much again, there may be for one with less; nothing that was put is lost."""
    capacity, value = 1 << 20, b"x" * 100
    kinds: dict[str, tuple[Callable[[sa.Store], Any], Callable[[Any, int], object], Callable[[Any], int]]] = {
        "Queue": (lambda store: store.Queue(), lambda q, n: q.put((n, value)), lambda q: q.qsize()),
        "LifoQueue": (lambda store: store.LifoQueue(), lambda q, n: q.put((n, value)), lambda q: q.qsize()),
        "PriorityQueue": (lambda store: store.PriorityQueue(), lambda q, n: q.put((n, value)), lambda q: q.qsize()),
        "dict": (lambda store: store.dict(), lambda d, n: d.__setitem__(n, value), len),
        "list": (lambda store: store.list(), lambda a, _: a.append(value), len),
    }
    for kind, (make, put, count) in kinds.items():
        with sa.Store(capacity=capacity) as store:
            shared = make(store)
            done = itertools.count()

            def fill(shared: Any = shared, put: Any = put, done: Any = done) -> None:
                while True:
                    put(shared, next(done))

            refused(fill)
            there = next(done) - 1
            assert count(shared) == there, kind
            assert there * len(value) > capacity // 4, kind
            if kind.endswith("Queue"):
                assert {shared.get()[1] for _ in range(there)} == {value}
                put(shared, 0)


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_a_container_in_a_full_store_can_be_emptied(kind: str) -> None:
    """What takes away needs no room: one by one, or all at once; then there is room for more."""

    def put(shared: Any, number: int) -> None:
        if kind == "dict":
            shared[number] = bytes(100)
        else:
            shared.append(bytes(100))

    def fill(shared: Any) -> None:
        for number in itertools.count():
            put(shared, number)

    removals: dict[str, Callable[[Any], object]] = {
        "del": lambda shared: shared.__delitem__(next(iter(shared.keys() if kind == "dict" else [0]))),
        "pop": lambda shared: shared.popitem() if kind == "dict" else shared.pop(),
        "clear": lambda shared: shared.clear(),
    }
    for name, remove in removals.items():
        with sa.Store(capacity=300 * KIB) as store:
            shared = getattr(store, kind)()
            with contextlib.suppress(sa.StoreFullError):  # as in a program: what the traceback holds is let go of
                fill(shared)
            before = len(shared)
            for _ in range(1 if name == "clear" else before):
                remove(shared)
            assert (len(shared), before > 500) == (0, True), name
            put(shared, 0)
            assert len(shared) == 1, name


def test_replacing_needs_room_for_both_and_says_so(place: str | None) -> None:
    """The old array stays until the new one is whole: where both do not fit, the old one stays."""
    with sa.Store(capacity=100 * KIB, directory=place) as store:
        store["x"] = np.ones(60 * KIB, "u1")
        refused(lambda: store.__setitem__("x", np.zeros(60 * KIB, "u1")))
        assert store["x"].sum() == 60 * KIB
        store["x"] = np.zeros(20 * KIB, "u1")
        store["x"] = np.full(60 * KIB, 2, "u1")
        assert len(store) == 1


def test_a_handle_in_flight_and_a_held_view_of_a_deleted_array(place: str | None) -> None:
    """Bytes that only a handle keeps count until it is given up; bytes that only views keep are no longer the store's."""
    with sa.Store(capacity=100 * KIB, directory=place) as store:
        pickle.dumps(store.zeros(60 * KIB, "u1"))
        refused(lambda: store.zeros(60 * KIB, "u1"))
        store.release_unclaimed()
        held = store.ones(60 * KIB, "u1", name="x")
        del store["x"]
        assert store.zeros(60 * KIB, "u1").size == 60 * KIB
        assert held.sum() == 60 * KIB


@pytest.mark.parametrize("name", [None, "n"])
def test_a_block_that_is_published_while_the_directory_is_counted_counts(
    monkeypatch: pytest.MonkeyPatch, place: str | None, name: str | None
) -> None:
    """It changes its name from that of a draft to its own while another maker adds up: it is found under one of them."""
    published, go, drafted = threading.Event(), threading.Event(), threading.Event()
    real = {call: getattr(segments, call) for call in ("publish", "replace", "status_of")}

    def parked(call: str) -> Callable[..., Any]:
        def wait(source: Any, path: str, *arguments: Any) -> Any:
            if threading.current_thread() is maker and (".a." in path or ".n." in path):
                drafted.set()
                assert go.wait(30)
            return real[call](source, path, *arguments)

        return wait

    def status_of(path: str) -> os.stat_result:
        if threading.current_thread() is not maker and not go.is_set():
            go.set()
            assert published.wait(30)
        result: os.stat_result = real["status_of"](path)
        return result

    with sa.Store(capacity=100 * KIB, directory=place) as store:
        made: list[Any] = []

        def make() -> None:
            if name is None:
                made.append(store.zeros(50 * KIB, "u1"))
            else:
                store[name] = np.zeros(50 * KIB, "u1")
            published.set()

        store.zeros(60 * KIB, "u1")  # freed, but entered in the account, so that what follows must be counted
        maker = threading.Thread(target=make)
        for call in ("publish", "replace"):
            monkeypatch.setattr(segments, call, parked(call))
        maker.start()
        assert drafted.wait(30)
        monkeypatch.setattr(segments, "status_of", status_of)
        try:
            refused(lambda: store.zeros(60 * KIB, "u1"))
        finally:
            go.set()
            maker.join()
            monkeypatch.undo()
        assert on_disk(store) < 60 * KIB


def test_processes_that_race_never_pass_the_capacity(start_method: BaseContext) -> None:
    """Workers make, drop, publish and replace at once; looked at from outside all the while, the sum never exceeds the bound."""
    race(start_method, None)


def test_processes_that_race_never_pass_the_capacity_of_a_directory(store_dir: str) -> None:
    """The same where the blocks are files of an ordinary directory."""
    race(multiprocessing.get_context("fork"), store_dir)


def race(start_method: BaseContext, place: str | None) -> None:
    """Let three workers fill a store of small capacity, and look at its files all the while."""
    highest, looks, done = 0, 0, threading.Event()
    with sa.Store(capacity=CAPACITY, directory=place) as store, ProcessPoolExecutor(3, start_method) as executor:

        def watch() -> None:
            nonlocal highest, looks
            while not done.is_set():
                highest, looks = max(highest, on_disk(store)), looks + 1

        watcher = threading.Thread(target=watch)
        jobs = [executor.submit(workers.fill_up, store, number, 100) for number in range(1, 4)]
        watcher.start()
        try:
            results = [job.result(60) for job in jobs]
        finally:
            done.set()
            watcher.join()
        assert CAPACITY // 2 < highest <= CAPACITY
        assert looks > 20
        assert sum(made for made, _ in results) > 50
        assert sum(refused for _, refused in results) > 0, "the capacity was never reached"
        stats = store.stats()
        assert stats.drafts == 0
        store.clear()
        assert store.zeros(CAPACITY - 8 * KIB, "u1").any() == 0
