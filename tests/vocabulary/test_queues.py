"""Queues of a store: as those of multiprocessing and queue, for every process, and with an end to every wait."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray._format import names
from shmarray.errors import LostTaskError
from tests.helpers.processes import Child, is_running, reap, run_script, wait_until
from tests.vocabulary import actors, deaths

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnContext

FORK = get_context("fork")
KINDS = ("Queue", "JoinableQueue", "LifoQueue", "PriorityQueue")
LARGE = b"x" * 100_000


@pytest.mark.core
def test_each_kind_has_its_order() -> None:
    """First in first out, last in first out, least first; small values and large ones."""
    with sa.Store() as store:
        for kind, expected in {
            "SimpleQueue": [3, 1, 2],
            "Queue": [3, 1, 2],
            "JoinableQueue": [3, 1, 2],
            "LifoQueue": [2, 1, 3],
            "PriorityQueue": [1, 2, 3],
        }.items():
            shared = getattr(store, kind)()
            for number in (3, 1, 2):
                shared.put((number, LARGE if number == 1 else number))
            assert [shared.get()[0] for _ in range(3)] == expected, kind
            assert shared.empty()


@pytest.mark.parametrize("kind", KINDS)
def test_full_and_empty_are_told_at_once_or_after_the_timeout(kind: str) -> None:
    """`put` and `get` raise queue.Full and queue.Empty, by block, timeout and the _nowait forms; a failed put leaves nothing."""
    with sa.Store() as store:
        shared = getattr(store, kind)(maxsize=2)
        for refused in (shared.get_nowait, lambda: shared.get(False), lambda: shared.get(True, 0.02)):
            with pytest.raises(queue.Empty):
                refused()
        shared.put(1)
        shared.put(store.ones(3).sum())
        assert (shared.qsize(), shared.full(), shared.empty()) == (2, True, False)
        before = deaths.files_of(store)
        for refused in (
            lambda: shared.put_nowait(LARGE),
            lambda: shared.put(store.ones(3), False),
            lambda: shared.put(LARGE, True, 0.02),
            lambda: shared.put(3, timeout=-1),
        ):
            with pytest.raises(queue.Full):
                refused()
        assert deaths.files_of(store) == before
        shared.get()
        assert not shared.full()


def test_a_queue_without_bound_is_never_full() -> None:
    """Zero and negative sizes are no bound."""
    with sa.Store() as store:
        for maxsize in (0, -3):
            shared = store.Queue(maxsize)
            for number in range(5000):
                shared.put(number)
            assert not shared.full()
            assert [shared.get() for _ in range(5000)] == list(range(5000))


def test_a_closed_queue_refuses_here_and_works_elsewhere() -> None:
    """`put` and `get` raise ValueError after `close`; another handle goes on; the two thread methods do nothing."""
    with sa.Store() as store:
        shared = store.Queue()
        other = pickle.loads(pickle.dumps(shared))
        shared.put(1)
        shared.join_thread()
        shared.cancel_join_thread()
        shared.close()
        shared.close()
        for refused in (lambda: shared.put(1), shared.get, shared.get_nowait, lambda: shared.put_nowait(1)):
            with pytest.raises(ValueError, match="closed"):
                refused()
        with pytest.raises(OSError, match="closed"):
            shared.empty()
        assert other.get() == 1
        assert shared.empty()


def test_a_closed_simple_queue_is_an_operating_systems_error() -> None:
    """As of the standard one, whatever is asked of it."""
    with sa.Store() as store:
        shared = store.SimpleQueue()
        shared.close()
        for refused in (lambda: shared.put(1), shared.get, shared.empty):
            with pytest.raises(OSError, match="closed"):
                refused()


def links_of(store: sa.Store) -> list[str]:
    """Handles to blocks of a store, on their way or in others."""
    return [name for name in deaths.files_of(store) if f".{store.id}.{names.IN_FLIGHT}" in name]


def test_only_what_is_on_its_way_is_in_flight() -> None:
    """What lies in a queue, a dict, a list, or is a part of them, is kept there. `release_unclaimed` gives up what is counted."""
    with sa.Store() as store:
        shared, table, row = store.Queue(), store.dict(a=store.ones(3)), store.list([store.ones(3), b"x" * 50_000])
        shared.put(store.ones(3))
        shared.put(b"x" * 50_000)
        assert (store.stats().in_flight, store.release_unclaimed()) == (0, 0)
        pickle.dumps([store.ones(3), store.ones(100_000), shared])
        assert (store.stats().in_flight, store.release_unclaimed(), store.stats().in_flight) == (3, 3, 0)
        assert (shared.get().sum(), table["a"].sum(), row[0].sum()) == (3, 3, 3)


def test_what_cannot_be_pickled_is_refused_by_put_itself() -> None:
    """The error comes out of `put`, nothing was put, and the arrays packed before it are let go."""
    with sa.Store() as store:
        shared = store.Queue()
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            shared.put([store.ones(3), lambda: None, threading.Lock()])
        assert (shared.qsize(), links_of(store)) == (0, [])
        gc.collect()
        assert store.stats().anonymous == 1


@pytest.mark.core
@pytest.mark.parametrize("kind", ["JoinableQueue", "LifoQueue", "PriorityQueue"])
def test_join_waits_until_every_value_has_been_dealt_with(kind: str) -> None:
    """Counts of several processes add up; one task_done too many is a ValueError."""
    with sa.Store() as store:
        shared = getattr(store, kind)()
        assert shared.join()
        for number in range(30):
            shared.put(number)
        assert not shared.join(timeout=0.02)
        workers = [FORK.Process(target=actors.deal, args=(shared,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        assert shared.join(timeout=30)
        for worker in workers:
            worker.join(30)
        with pytest.raises(ValueError, match="too many"):
            shared.task_done()


def test_a_task_lost_by_a_process_that_just_ended_is_not_called_killed() -> None:
    """The error says what is known: who had taken the value has ended, in whatever way."""
    with sa.Store() as store:
        tasks = store.JoinableQueue()
        tasks.put(1)
        assert reap(deaths.in_child(tasks.get)) == 0
        with pytest.raises(sa.LostTaskError, match=r"has ended without saying task_done") as caught:
            tasks.join()
        assert caught.value.count == 1
        assert "killed" not in str(caught.value)


def test_another_process_may_say_that_a_task_is_done() -> None:
    """As in multiprocessing: who takes and who says so need not be the same, and the end of who took is then no loss."""
    with sa.Store() as store:
        shared = store.JoinableQueue()
        shared.put(1)
        assert reap(deaths.in_child(shared.get)) == 0
        shared.task_done()
        assert shared.join(timeout=10)


def test_a_lost_task_is_told_of_although_another_process_came_in_its_place() -> None:
    """Who gets the dead's place in the tables and its own tasks does not hide the loss."""
    with sa.Store() as store:
        shared = store.JoinableQueue()

        def deal_with_one() -> None:
            shared.get()
            shared.task_done()

        for number in range(8):
            shared.put(number)
        for _ in range(4):
            # Each child gets the place that the one before it left.
            assert reap(deaths.in_child(shared.get)) == 0
        for _ in range(4):
            assert reap(deaths.in_child(deal_with_one)) == 0
        lost = 0
        while True:
            try:
                assert shared.join(timeout=10)
                break
            except LostTaskError as error:
                lost += error.count
        assert lost == 4


def test_join_counts_right_where_all_slots_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more processes than slots a task at work is not taken for lost when another process dies inside the queue."""
    with sa.Store() as store:
        shared = store.JoinableQueue()
        for number in range(3):
            shared.put(number)
        with monkeypatch.context() as patch:
            patch.setattr(type(shared._tasks), "me", lambda _: None)
            shared.get()

            def die() -> None:
                shared._line.within(lambda: os.kill(os.getpid(), signal.SIGKILL))

            assert reap(deaths.in_child(die)) == -signal.SIGKILL
            shared.get()
            for _ in range(2):
                shared.task_done()
        assert not shared.join(0.06)
        shared.get()
        shared.task_done()
        assert shared.join(5)


def test_a_full_store_refuses_a_value_and_keeps_the_others() -> None:
    """StoreFullError out of `put`, of a value, of an arena, of a journal; what was there stays, and space given back can be used."""
    with sa.Store(capacity=600_000) as store:
        shared, table = store.Queue(), store.dict()
        table["a"] = 1
        count = 0
        with pytest.raises(sa.StoreFullError):  # noqa: PT012  it is not known which one
            while True:
                shared.put((count, b"m" * 9000 if count % 3 else LARGE))
                count += 1
        with pytest.raises(sa.StoreFullError):
            table["b"] = bytes(600_000)
        assert (table.copy(), shared.qsize()) == ({"a": 1}, count)
        assert [shared.get()[0] for _ in range(count)] == list(range(count))
        shared.put("again")
        assert shared.get() == "again"


# -- arrays, and who has them ------------------------------------------------------------------------------------------


@pytest.mark.core
def test_arrays_put_by_a_process_that_ended_are_there(start_method: SpawnContext) -> None:
    """An array lives while its only reference lies in a queue, and goes when it has been taken and dropped."""
    with sa.Store() as store:
        shared = store.Queue()
        worker = start_method.Process(target=actors.put_arrays, args=(shared, store, range(3)))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        del worker
        assert shared.qsize() == 3
        for number in range(3):
            taken, array = shared.get()
            assert taken == number
            assert array.tolist() == [float(number)] * 20
            assert array.is_shared
        del array
        gc.collect()
        wait_until(lambda: store.stats().anonymous == 2, 10)  # the queue and its arena
        assert len(links_of(store)) == 1  # by which the arena hangs


def test_what_lies_in_a_queue_goes_with_the_queue() -> None:
    """Arena, large values, arrays, and queues in queues: nothing is left when the last handle is dropped."""
    with sa.Store() as store:
        outer, inner = store.Queue(), store.Queue()
        inner.put(LARGE)
        inner.put(store.ones(10))
        outer.put(inner)
        outer.put(store.dict(a=store.ones(3), b=LARGE))
        del inner
        assert len(deaths.files_of(store)) > 10
        del outer
        gc.collect()
        wait_until(lambda: not deaths.files_of(store), 10, lambda: str(deaths.files_of(store)))


def test_what_lies_in_a_queue_is_removed_when_all_who_had_it_are_killed() -> None:
    """The owner lives on without the queue: the guardian removes queue, arena, values and arrays."""
    with sa.Store() as store, Child(_OWNER_OF_A_QUEUE, store.name or store.id) as child:
        store["door"] = np.zeros(1)
        child.tell(pickle.dumps(store).hex())
        child.wait_for("filled")
        files = deaths.files_of(store)
        assert len(files) > 6
        child.kill()
        wait_until(lambda: len(deaths.files_of(store)) == 1, 20, lambda: str(deaths.files_of(store)))


_OWNER_OF_A_QUEUE = """
import pickle
from tests.helpers.processes import report
store = pickle.loads(bytes.fromhex(input()))
shared = store.Queue()
shared.put(store.ones(10))
shared.put(b"x" * 100_000)
shared.put(store.dict(a=store.ones(3)))
report("filled")
input()
"""


def test_everything_goes_when_the_whole_group_is_killed() -> None:
    """Owner and workers at once: the guardian leaves nothing."""
    with Child(_GROUP) as child:
        prefix = child.wait_for("filled")
        assert sum(f".{prefix}." in entry for entry in os.listdir("/dev/shm")) > 6
        child.kill_group()
        wait_until(lambda: not any(f".{prefix}." in entry for entry in os.listdir("/dev/shm")), 20)


_GROUP = """
import os
import shmarray as sa
from tests.helpers.processes import report
store = sa.Store()
shared, table = store.Queue(), store.dict()
if not os.fork():
    while True:
        shared.put(store.ones(10))
        table["x"] = shared.get()
shared.put(b"x" * 100_000)
report("filled", store.id)
input()
"""


def test_a_queue_travels_through_a_queue_and_an_executor(start_method: SpawnContext) -> None:
    """Pool arguments, a standard queue, a store's own queue: the same queue at the other end."""
    with sa.Store() as store:
        inbox, outbox = store.Queue(), store.SimpleQueue()
        with ProcessPoolExecutor(1, mp_context=start_method) as pool:
            future = pool.submit(actors.double, inbox, outbox)
            for value in (1, "ab", store.full(2, 4.0)):
                inbox.put(value)
            inbox.put(None)
            future.result(60)
        assert (outbox.get(), outbox.get(), outbox.get().tolist()) == (2, "abab", [8.0, 8.0])
        standard = FORK.SimpleQueue()
        standard.put(inbox)
        standard.get().put("through")
        assert inbox.get() == "through"
        standard.close()


# -- ends --------------------------------------------------------------------------------------------------------------

WAITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "get": lambda o: o["empty"].get(),
    "get with a timeout": lambda o: o["empty"].get(timeout=60),
    "put": lambda o: o["full"].put(2),
    "join": lambda o: o["tasks"].join(),
    "recv": lambda o: o["end"].recv(),
    "poll": lambda o: o["end"].poll(None),
    "event": lambda o: o["event"].wait(),
    "condition": lambda o: _wait_in(o["condition"]),
    "barrier": lambda o: o["barrier"].wait(),
    "semaphore": lambda o: o["semaphore"].acquire(),
}


def _wait_in(condition: Any) -> None:
    with condition:
        condition.wait()


def _objects(store: sa.Store) -> dict[str, Any]:
    end, other = store.Pipe()
    objects: dict[str, Any] = {
        "empty": store.Queue(),
        "full": store.Queue(1),
        "tasks": store.JoinableQueue(),
        "end": end,
        "other": other,
        "event": store.Event(),
        "condition": store.Condition(),
        "barrier": store.Barrier(2),
        "semaphore": store.Semaphore(0),
        "waiting": store.Value("i"),
    }
    objects["full"].put(1)
    objects["tasks"].put(1)
    return objects


def _waits_until_the_end(wait: Callable[[dict[str, Any]], object], objects: dict[str, Any]) -> None:
    """Wait; the end of the store must be told as such."""
    objects["waiting"].add(1)
    with pytest.raises(sa.StoreClosedError):
        wait(objects)


def test_every_wait_ends_when_the_owner_closes_the_store() -> None:
    """Processes blocked in each kind of wait get StoreClosedError soon."""
    store = sa.Store()
    objects = _objects(store)
    waiters = {name: deaths.in_child(partial(_waits_until_the_end, wait, objects)) for name, wait in WAITS.items()}
    wait_until(lambda: objects["waiting"].value == len(WAITS), 30)
    store.close()
    assert {name: reap(pid, 20) for name, pid in waiters.items()} == dict.fromkeys(WAITS, 0)


def test_every_wait_ends_when_the_owner_is_killed() -> None:
    """The same by the guardian's word, in processes that outlive the owner."""
    with Child(_DOOMED_OWNER) as child:
        pids = child.wait_for("waiting")
        child.kill()
        for name, pid in pids.items():
            wait_until(lambda pid=pid: not is_running(pid), 20, f"{name} still waits")  # type: ignore[misc]


_DOOMED_OWNER = """
import os
import shmarray as sa
from tests.helpers.processes import report, wait_until
from tests.vocabulary import deaths, test_queues as here
store = sa.Store()
objects = here._objects(store)
pids = {name: deaths.in_child(lambda wait=wait: here._waits_until_the_end(wait, objects)) for name, wait in here.WAITS.items()}
wait_until(lambda: objects["waiting"].value == len(pids), 30)
report("waiting", pids)
input()
"""


def test_a_queue_of_a_closed_store_refuses() -> None:
    """After the store's end `put` and `get` raise StoreClosedError, whether there was a value or not."""
    store = sa.Store()
    shared, filled = store.Queue(), store.Queue()
    filled.put(1)
    store.close()
    for refused in (lambda: shared.put(1), shared.get, lambda: filled.put(2)):
        with pytest.raises(sa.StoreClosedError):
            refused()


# -- threads, forks, finalizers, signals -------------------------------------------------------------------------------


def test_threads_of_one_process_share_a_queue() -> None:
    """Each value reaches one thread; none is lost."""
    with sa.Store() as store:
        shared = store.Queue(maxsize=10)
        taken: list[int] = []
        threads = [threading.Thread(target=actors.produce, args=(shared, range(n, 400, 4))) for n in range(4)]
        threads += [threading.Thread(target=lambda: taken.extend(shared.get() for _ in range(100))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(taken) == list(range(400))


def test_a_child_forked_while_a_thread_is_inside_a_queue_can_use_it() -> None:
    """The child holds nothing of what the parent's thread held; also inside `get_lock()`."""
    with sa.Store() as store:
        shared, table, row = store.Queue(), store.dict(n=0), store.list()
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                shared.put(shared.qsize())
                shared.get()
                with table.get_lock():
                    table["n"] = table["n"] + 1
                row.append(1)
                row.pop()

        thread = threading.Thread(target=work)
        thread.start()

        def use() -> None:
            shared.put(-1)
            shared.get(timeout=20)
            table["child"] = len(row)
            assert table["child"] in (0, 1)
            assert shared._guard.owner == 0

        try:
            assert [reap(deaths.in_child(use)) for _ in range(30)] == [0] * 30
        finally:
            over.set()
            thread.join(30)


class Meddler:
    """Uses a queue when it is collected, and when it is unpickled or compared."""

    def __init__(self, deed: Callable[[], object], heard: list[object]) -> None:
        """Do `deed` then, and note what came of it."""
        self.deed, self.heard = deed, heard

    def meddle(self) -> None:
        """Do the deed."""
        try:
            self.heard.append(self.deed())
        except sa.GuardError as error:
            self.heard.append(error)

    def __del__(self) -> None:
        """Meddle."""
        self.meddle()

    def __reduce__(self) -> tuple[Any, ...]:
        """Meddle, and go as a number."""
        self.meddle()
        return int, (5,)


def test_code_that_runs_inside_put_and_uses_the_same_queue_works_or_is_refused() -> None:
    """A finalizer that the collector runs at any step: GuardError or success, never a deadlock, never a damaged queue."""
    with sa.Store() as store:
        shared = store.Queue()
        heard: list[object] = []

        def make_garbage() -> None:
            cycle: list[Any] = [Meddler(lambda: shared.put("extra"), heard)]
            cycle.append(cycle)

        shelf: Any = type(shared._shelf)
        usual = shelf.add

        def add(self: Any, *args: Any) -> None:
            make_garbage()
            gc.collect()
            usual(self, *args)

        shelf.add = add
        try:
            for number in range(5):
                shared.put(number)
        finally:
            shelf.add = usual
        assert any(isinstance(what, sa.GuardError) for what in heard)
        found = [shared.get() for _ in range(shared.qsize())]
        assert [value for value in found if value != "extra"] == list(range(5))
        shared.put(Meddler(lambda: shared.put("while pickling"), heard))
        assert [shared.get(), shared.get()] == ["while pickling", 5]


def test_a_finalizer_that_takes_the_lock_of_a_dict_inside_a_change_is_refused() -> None:
    """`get_lock()` is re-entrant for who took it, and not for what runs inside a change that is half made."""
    with sa.Store() as store:
        table = store.dict()
        refused: list[bool] = []

        def meddle() -> None:
            try:
                with table.get_lock():
                    table["extra"] = 1
            except sa.GuardError:
                refused.append(True)

        table._keeper.within(meddle, ())
        assert refused == [True]


def test_a_signal_handler_may_use_the_queue_in_which_its_process_waits() -> None:
    """A handler that puts into the queue wakes the `get` it interrupted."""
    with sa.Store() as store:
        shared = store.Queue()

        def wait() -> None:
            signal.signal(signal.SIGALRM, lambda *_: shared.put("from the handler"))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert shared.get(timeout=20) == "from the handler"

        assert reap(deaths.in_child(wait)) == 0


class Uncomparable:
    """Has no order."""


def test_a_priority_queue_tells_of_values_without_order_and_goes_on() -> None:
    """The TypeError comes out of `put`, nothing was put, and the others are there in order."""
    with sa.Store() as store:
        shared = store.PriorityQueue()
        shared.put(2)
        shared.put(1)
        with pytest.raises(TypeError):
            shared.put(Uncomparable())
        assert (shared.qsize(), shared.get(), shared.get()) == (2, 1, 2)


def test_a_value_that_cannot_be_loaded_any_more_stops_no_other() -> None:
    """An array named in a priority queue's values is deleted: one `get` each tells so, the others come in order."""
    with sa.Store() as store:
        shared = store.PriorityQueue()
        store["doomed"] = np.ones(3)
        for number in (5, 1, 4, 2, 3):
            shared.put((number, store["doomed"] if number in (1, 4) else number))
        del store["doomed"]
        shared.put((6, 6))
        found: list[Any] = []
        while shared.qsize():
            try:
                found.append(shared.get(timeout=5)[0])
            except sa.ArrayNotFoundError:
                found.append(None)
        assert found.count(None) == 2
        assert [number for number in found if number] == [2, 3, 5, 6]


# -- load --------------------------------------------------------------------------------------------------------------


def test_many_producers_and_consumers_pass_each_value_once() -> None:
    """Eight processes put 20,000 numbers, eight take them: each number arrives, and once."""
    with sa.Store() as store:
        shared, sums = store.Queue(maxsize=1000), store.dict()
        consumers = [FORK.Process(target=actors.consume, args=(shared, sums, name)) for name in range(8)]
        producers = [FORK.Process(target=actors.produce, args=(shared, range(n, 20_000, 8))) for n in range(8)]
        for process in consumers + producers:
            process.start()
        for process in producers:
            process.join(100)
            assert process.exitcode == 0
        for _ in consumers:
            shared.put(None)
        for process in consumers:
            process.join(100)
            assert process.exitcode == 0
        taken = [number for numbers in sums.values() for number in numbers]
        assert sorted(taken) == list(range(20_000))
        for numbers in sums.values():
            for producer in range(8):
                mine = [number for number in numbers if number % 8 == producer]
                assert mine == sorted(mine)


def test_random_kills_lose_at_most_what_the_killed_had_taken() -> None:
    """Producers and consumers are killed at random; every value arrives at most once, and those of the living all do."""
    with sa.Store() as store:
        shared, arrived = store.Queue(), store.list()
        done = store.Value("q")

        def produce(base: int) -> None:
            for number in range(base, base + 100_000):
                shared.put(number)
                done.add(1)

        def consume() -> None:
            while True:
                arrived.append(shared.get())

        for round_number in range(6):
            pids = [deaths.in_child(partial(produce, n * 1_000_000 + round_number * 100_000)) for n in range(2)]
            pids.append(deaths.in_child(consume))
            start = done.value
            wait_until(lambda: done.value > start + 60, 30)  # noqa: B023  called in this round only
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            assert [reap(pid) for pid in pids] == [-signal.SIGKILL] * 3
        left = []
        while not shared.empty():
            left.append(shared.get(timeout=5))
        counts = Counter([*arrived, *left])
        assert max(counts.values()) == 1
        # What had been put, but for what a consumer may have taken and not noted.
        assert done.value - 6 <= len(counts) <= done.value + 12
        for producer in range(2):
            mine = [number for number in left if number // 1_000_000 == producer]
            assert mine == sorted(mine)


def test_an_unrelated_process_finds_a_queue_by_name() -> None:
    """`store["name"] = queue`, and `connect` elsewhere."""
    with sa.Store("vocabulary-door") as store:
        store["jobs"] = store.Queue()
        store["jobs"].put(store.ones(3))
        script = "import shmarray as sa\nq = sa.connect('vocabulary-door')['jobs']\nq.put(q.get().sum())\n"
        run_script(script).expect()
        assert store["jobs"].get() == 3.0


def test_a_pause_in_one_process_does_not_stop_a_timeout_in_another() -> None:
    """A process stopped at work with the guard of a queue held: others come to their timeouts."""
    with sa.Store() as store:
        shared = store.Queue()
        held = store.Event()

        def hold() -> None:
            def stop() -> None:
                held.set()
                os.kill(os.getpid(), signal.SIGSTOP)

            shared._keeper.within(stop, ())

        pid = deaths.in_child(hold)
        assert held.wait(20)
        began = time.monotonic()
        with pytest.raises(queue.Empty):
            shared.get(timeout=0.05)
        assert time.monotonic() - began < 20
        os.kill(pid, signal.SIGKILL)
        reap(pid)
        shared.put(1)
        assert shared.get(timeout=20) == 1
