"""Locks, semaphores, events, conditions and barriers of a store: as in multiprocessing, and after a death."""

from __future__ import annotations

import os
import pickle
import re
import signal
import threading
import time
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from tests.guards import actors
from tests.helpers.processes import reap, run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnContext

FORK = get_context("fork")


@pytest.mark.core
def test_every_object_travels_to_every_process(start_method: SpawnContext) -> None:
    """Each kind of object reaches a process by its arguments and means the same there."""
    with sa.Store() as store:
        barrier, condition, counter = store.Barrier(3), store.Condition(), store.Value("i")
        waiting, numbers = store.Value("i"), start_method.SimpleQueue()
        processes = [start_method.Process(target=actors.pass_barrier, args=(barrier, numbers, 20)) for _ in range(3)]
        processes += [start_method.Process(target=actors.count_in, args=(counter, 500)) for _ in range(2)]
        processes += [start_method.Process(target=actors.wait_notified, args=(condition, waiting, counter))]
        for process in processes:
            process.start()
        rounds = list(zip(*(numbers.get() for _ in range(3)), strict=True))
        wait_until(lambda: waiting.value == 1, timeout=30)
        wait_until(lambda: _notify(condition) or not processes[-1].is_alive(), timeout=30)
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        assert all(sorted(numbers) == [0, 1, 2] for numbers in rounds)
        assert counter.value == 1001
        numbers.close()


def _notify(condition: Any) -> bool:
    with condition:
        condition.notify()
    return False


def test_objects_with_a_name_are_found_in_the_store_and_die_with_it() -> None:
    """store["name"] gives the same object to any process; closing the store ends it."""
    with sa.Store() as store:
        made: dict[str, Any] = {
            "lock": store.Lock(name="lock"),
            "rlock": store.RLock(name="rlock"),
            "semaphore": store.Semaphore(3, name="semaphore"),
            "event": store.Event(name="event"),
            "value": store.Value("d", 1.5, name="value"),
            "array": store.Array("h", [1, 2], name="array"),
        }
        for name, made_object in made.items():
            found = store[name]
            assert type(found) is type(made_object)
        made["event"].set()
        assert store["event"].is_set()
        assert sorted(store) == sorted(made)
        handle = pickle.dumps(made["event"])
        del store["event"]
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.loads(handle)
    with pytest.raises(sa.StoreClosedError):
        pickle.dumps(made["lock"])


def test_a_lock_behaves_as_that_of_multiprocessing() -> None:
    """acquire, non-blocking acquire, release, and the error of one release too many."""
    with sa.Store() as store:
        lock = store.Lock()
        assert lock.acquire()
        assert not lock.acquire(False)
        assert lock.locked()
        lock.release()
        with pytest.raises((ValueError, threading.ThreadError)):
            lock.release()
        with lock:
            pass


def test_a_re_entrant_lock_counts(start_method: SpawnContext) -> None:
    """An RLock may be taken again by its thread, is free after as many releases, and complains as multiprocessing's does."""
    with sa.Store() as store:
        lock = store.RLock()
        for _ in range(3):
            assert lock.acquire()
        process = start_method.Process(target=_must_fail, args=(lock,))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        for _ in range(3):
            lock.release()
        with pytest.raises((AssertionError, RuntimeError)):
            lock.release()
        process = start_method.Process(target=_must_work, args=(lock,))
        process.start()
        process.join(30)
        assert process.exitcode == 0


def _must_fail(lock: Any) -> None:
    assert not lock.acquire(timeout=0.05)


def _must_work(lock: Any) -> None:
    with lock:
        assert lock.acquire(False)
        lock.release()


@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_a_semaphore_behaves_as_that_of_multiprocessing(kind: str) -> None:
    """Permits go down and up; only a bounded one refuses to have more than it began with."""
    with sa.Store() as store:
        permits = getattr(store, kind)(2)
        assert permits.get_value() == 2
        assert permits.acquire()
        assert permits.acquire()
        assert not permits.acquire(False)
        began = time.monotonic()
        assert not permits.acquire(timeout=0.1)
        assert time.monotonic() - began >= 0.1
        permits.release()
        permits.release()
        if kind == "BoundedSemaphore":
            with pytest.raises(ValueError, match="too many"):
                permits.release()
        else:
            permits.release()
            assert permits.get_value() == 3
        with pytest.raises(ValueError, match="-1"):
            getattr(store, kind)(-1)


@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_permits_of_a_killed_process_come_back(kind: str) -> None:
    """A process is killed with the only permit: who waits for it gets it."""
    with sa.Store() as store:
        permits = getattr(store, kind)(1)
        process = FORK.Process(target=actors.take_and_die, args=(permits,))
        process.start()
        process.join(30)
        assert permits.acquire(timeout=10)
        assert not permits.acquire(timeout=0.2)


def test_signals_sent_by_a_semaphore_are_not_given_back() -> None:
    """A semaphore that began with 0 counts signals: the death of who took one does not make another."""
    with sa.Store() as store:
        signals = store.Semaphore(0)
        signals.release()
        process = FORK.Process(target=actors.take_and_die, args=(signals,))
        process.start()
        process.join(30)
        assert not signals.acquire(timeout=0.3)


def test_an_event_wakes_all_who_wait(start_method: SpawnContext) -> None:
    """`wait` returns false after its timeout, true once the event is set, at once while it stays set."""
    with sa.Store() as store:
        event = store.Event()
        assert not event.wait(0)
        assert not event.wait(0.05)
        processes = [start_method.Process(target=event.wait, args=(30,)) for _ in range(2)]
        for process in processes:
            process.start()
        event.set()
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        assert event.wait()
        assert re.fullmatch(r"<Event at 0x[0-9a-f]+ set>", repr(event))
        event.clear()
        assert not event.is_set()
        assert re.fullmatch(r"<Event at 0x[0-9a-f]+ unset>", repr(event))


def test_each_notification_wakes_one_and_none_is_lost() -> None:
    """Six wait; notify(2) wakes two and no more, notify_all the rest."""
    with sa.Store() as store:
        condition, waiting, woken = store.Condition(store.Lock()), store.Value("i"), store.Value("i")
        threads = [threading.Thread(target=actors.wait_notified, args=(condition, waiting, woken)) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: _waiters(condition) == 6, timeout=30)
        with condition:
            condition.notify(2)
        wait_until(lambda: woken.value == 2, timeout=30)
        assert _waiters(condition) == 4
        assert woken.value == 2
        with condition:
            condition.notify_all()
        for thread in threads:
            thread.join(30)
        assert woken.value == 6


def _waiters(condition: Any) -> int:
    """How many wait, when nobody is just coming or going."""
    with condition:
        return int(condition._words[condition._waiters])


def test_a_condition_needs_its_lock_and_keeps_time() -> None:
    """`wait` and `notify` without the lock raise GuardError; wait and wait_for keep their timeouts and take the lock again."""
    with sa.Store() as store:
        condition = store.Condition()
        for call in (condition.wait, condition.notify, condition.notify_all):
            with pytest.raises(RuntimeError):
                call()
        with condition:
            began = time.monotonic()
            assert not condition.wait(0.1)
            assert not condition.wait_for(lambda: False, 0.1)
            assert time.monotonic() - began >= 0.2
            assert condition.wait_for(lambda: 7) == 7
            condition.notify()


def test_the_death_of_a_waiter_loses_no_notification() -> None:
    """One of two waiters is killed: a notification still reaches the other."""
    with sa.Store() as store:
        condition, waiting, woken = store.Condition(), store.Value("i"), store.Value("i")
        first = FORK.Process(target=actors.wait_notified, args=(condition, waiting, woken))
        first.start()
        wait_until(lambda: waiting.value == 1 and _waiters(condition) == 1, timeout=30)
        first.kill()
        first.join(30)
        second = FORK.Process(target=actors.wait_notified, args=(condition, waiting, woken))
        second.start()
        wait_until(lambda: _waiters(condition) == 2, timeout=30)
        wait_until(lambda: _notify(condition) or woken.value == 1, timeout=30)
        second.join(30)
        assert second.exitcode == 0


def test_a_barrier_behaves_as_that_of_multiprocessing() -> None:
    """Numbers, action, timeout, abort and reset."""
    with sa.Store() as store:
        called: list[int] = []
        barrier: Any = store.Barrier(2, action=lambda: called.append(1))  # what `broken` says changes
        numbers: list[int] = []
        thread = threading.Thread(target=lambda: numbers.append(barrier.wait(30)))
        thread.start()
        numbers.append(barrier.wait(30))
        thread.join(30)
        assert sorted(numbers) == [0, 1]
        assert called == [1]
        assert (barrier.parties, barrier.n_waiting, barrier.broken) == (2, 0, False)
        with pytest.raises(sa.BrokenBarrierError):
            barrier.wait(0.05)
        assert barrier.broken
        with pytest.raises(sa.BrokenBarrierError):
            barrier.wait()
        barrier.reset()
        assert not barrier.broken
        broken: list[bool] = []
        thread = threading.Thread(target=lambda: broken.append(_breaks(barrier)))
        thread.start()
        wait_until(lambda: barrier.n_waiting == 1, timeout=30)
        barrier.reset()
        thread.join(30)
        assert broken == [True]
        assert not barrier.broken
        barrier.abort()
        assert barrier.broken
        with pytest.raises(ValueError, match="at least one"):
            store.Barrier(0)


def _breaks(barrier: Any) -> bool:
    try:
        barrier.wait(30)
    except sa.BrokenBarrierError:
        return True
    return False


def test_whose_wait_at_a_barrier_was_interrupted_has_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the standard one: the barrier stays whole, and does not open for the one who was interrupted and comes twice."""
    with sa.Store() as store:
        barrier, entered = store.Barrier(3), []

        def interrupt(*_: Any) -> bool:
            entered.append(barrier.n_waiting)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(barrier), "_wait_change", interrupt)
            for _ in range(4):
                with pytest.raises(KeyboardInterrupt):
                    barrier.wait()
        assert (entered, barrier.n_waiting, barrier.broken) == ([1] * 4, 0, False)
        numbers: list[int] = []
        threads = [threading.Thread(target=lambda: numbers.append(barrier.wait(30))) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: barrier.n_waiting == 2, timeout=30)
        numbers.append(barrier.wait(30))
        for thread in threads:
            thread.join(30)
        assert sorted(numbers) == [0, 1, 2]
        with pytest.raises(sa.BrokenBarrierError):
            barrier.wait(0.01)
        assert (barrier.broken, barrier.n_waiting) == (True, 0)


def test_a_barrier_breaks_when_a_process_that_waits_is_killed() -> None:
    """The others get BrokenBarrierError instead of waiting for ever."""
    with sa.Store() as store:
        barrier, broken = store.Barrier(3), store.Event()
        doomed = FORK.Process(target=actors.wait_in, args=(barrier, store.Event()))
        other = FORK.Process(target=actors.wait_in, args=(barrier, broken))
        doomed.start()
        other.start()
        wait_until(lambda: barrier.n_waiting == 2, timeout=30)
        doomed.kill()
        doomed.join(30)
        other.join(30)
        assert other.exitcode == 0
        assert broken.is_set()


def test_a_barrier_does_not_break_when_a_process_just_ends() -> None:
    """Processes pass a barrier and end; others can use it afterwards."""
    with sa.Store() as store:
        barrier = store.Barrier(2)
        for _ in range(3):
            numbers = FORK.SimpleQueue()
            processes = [FORK.Process(target=actors.pass_barrier, args=(barrier, numbers, 5)) for _ in range(2)]
            for process in processes:
                process.start()
            for process in processes:
                process.join(30)
                assert process.exitcode == 0
            numbers.close()
        assert not barrier.broken


def test_ctrl_c_comes_through_every_wait() -> None:
    """A waiter in each kind of object is interrupted by SIGINT within a slice of time."""
    with sa.Store() as store:
        waits: dict[str, Callable[[], object]] = {
            "event": store.Event().wait,
            "semaphore": store.Semaphore(0).acquire,
            "barrier": store.Barrier(2).wait,
        }
        for name, wait in waits.items():
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
                    wait()
                except KeyboardInterrupt:
                    code = 0
                finally:
                    os._exit(code)
            assert reap(pid) == 0, name


@pytest.mark.parametrize("name", [None, "l"])
def test_a_lock_that_is_dropped_while_it_is_held_stays_mapped(name: str | None) -> None:
    """The collector does not unmap a held mutex, through which the kernel's list of held ones leads."""
    source = f"""
import gc
import shmarray as sa
with sa.Store() as store:
    other, lock = store.Lock(), store.Lock(name={name!r})
    lock.acquire()
    del lock
    gc.collect()
    with other:
        print("fine")
"""
    assert run_script(source).expect() == "fine\n"
