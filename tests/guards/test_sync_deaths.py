"""Semaphores and barriers after deaths that nobody sees when they happen, and after deaths between two stores."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import types
from concurrent import futures
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import membership
from shmarray.sync import rolls
from tests.helpers import sweeps, tracing
from tests.helpers.processes import reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

FORK = get_context("fork")


def _in_child(work: Callable[[], object]) -> int:
    """Do something in a child process, and end it without ceremony; returns its exit code."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return reap(pid)


def test_a_permit_that_another_process_gives_back_is_nobodys_any_more() -> None:
    """Taken there and released here: when the taker ends, no second permit comes of it."""
    with sa.Store() as store:
        semaphore = store.Semaphore(1)
        _in_child(semaphore.acquire)
        semaphore.release()
        assert semaphore.acquire(timeout=5)
        assert not semaphore.acquire(timeout=0.2)


def test_a_bounded_buffer_keeps_its_bound_when_a_producer_ends() -> None:
    """Producers take the free places, consumers give them back; a producer that ends holds none of them."""
    with sa.Store() as store:
        free, filled = store.Semaphore(2), store.Semaphore(0)

        def produce() -> None:
            for _ in range(2):
                free.acquire()
                filled.release()

        _in_child(produce)
        for _ in range(2):
            assert filled.acquire(timeout=5)
            free.release()
        produce()
        assert not free.acquire(timeout=0.2)


def test_a_permit_comes_back_though_another_process_has_the_slot_of_the_dead_one() -> None:
    """A holder is killed; a process that takes over its slot takes and gives a permit: both are there again."""
    with sa.Store() as store:
        semaphore = store.Semaphore(2)

        def hold() -> None:
            # The search for a slot begins at the pid; here at the same place for both.
            vars(membership)["os"] = types.SimpleNamespace(**{**vars(os), "getpid": lambda: 0})
            semaphore.acquire()

        def use() -> None:
            hold()
            semaphore.release()

        _in_child(hold)
        _in_child(use)
        assert [semaphore.acquire(timeout=5) for _ in range(2)] == [True, True]
        assert not semaphore.acquire(timeout=0.2)


def _is_of_semaphores(filename: str) -> bool:
    return filename.endswith(("semaphores.py", "rolls.py"))


@pytest.mark.usefixtures("survival")
def test_no_permit_is_lost_or_made_by_a_death_at_any_line() -> None:
    """A process is killed before each line of acquire and release: both permits are there for others, and no third."""
    with sa.Store() as store:

        def use(semaphore: Any) -> None:
            semaphore.acquire()
            semaphore.release()

        count = tracing.count_events(functools.partial(use, store.Semaphore(2)), _is_of_semaphores)
        semaphores = {line: store.Semaphore(2) for line in range(1, count + 1)}
        for line, semaphore in semaphores.items():
            die = functools.partial(_use_and_die, functools.partial(use, semaphore), line)
            assert _in_child(die) == -signal.SIGKILL, line

        def look(line: int) -> None:
            semaphore = semaphores[line]
            assert [semaphore.acquire(timeout=5) for _ in range(2)] == [True, True], line
            assert not semaphore.acquire(timeout=0.06), line

        # All wait at once: for the dead each has to, and for a permit that must not be there.
        with futures.ThreadPoolExecutor(count) as threads:
            list(threads.map(look, semaphores))


def _use_and_die(use: Callable[[], None], line: int) -> None:
    with tracing.kill_at(line, _is_of_semaphores):
        use()


def test_a_barrier_breaks_for_those_who_come_after_a_death() -> None:
    """One that takes part is killed while nobody waits: the next wait is told, and a reset makes the barrier usable again."""
    with sa.Store() as store:
        barrier: Any = store.Barrier(2)

        def pass_and_die() -> None:
            barrier.wait()
            os.kill(os.getpid(), signal.SIGKILL)

        process = FORK.Process(target=pass_and_die)
        process.start()
        barrier.wait(30)
        process.join(30)
        with pytest.raises(sa.BrokenBarrierError):
            barrier.wait()  # without a time, for that would break it as well
        barrier.reset()
        process = FORK.Process(target=barrier.wait)
        process.start()
        assert barrier.wait(30) in (0, 1)
        process.join(30)


def _stopped_with_the_guard(shared: Any) -> int:
    """Have a child that is stopped with the guard of a shared object; returns its pid."""

    def play() -> None:
        shared._guard.acquire(None)
        os.kill(os.getpid(), signal.SIGSTOP)
        shared._guard.release()

    pid = sweeps.in_child(play)
    wait_until(lambda: os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED | os.WNOHANG)[1]), 20)
    return pid


def test_what_has_a_timeout_ends_by_it_beside_a_process_that_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the guard does not go on: no permit in time, and a broken barrier; then all goes on as it did."""
    monkeypatch.setattr(rolls, "_GRACE", 0.05)  # as long as one that is stopped is kept so, any time shows the same
    with sa.Store() as store:
        semaphore, barrier = store.Semaphore(1), store.Barrier(2)
        pids = [_stopped_with_the_guard(shared) for shared in (semaphore, barrier)]
        assert not semaphore.acquire(timeout=0.05)
        assert not semaphore.acquire(block=False)
        with pytest.raises(threading.BrokenBarrierError):
            barrier.wait(0.05)
        barrier.abort()
        assert barrier.broken
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
            assert reap(pid) == 0
        assert semaphore.acquire(block=False)
        barrier.reset()
        assert not barrier.broken


@pytest.mark.parametrize("what", ["acquire", "release", "wait", "reset"])
def test_who_is_interrupted_at_any_point_keeps_neither_guard_nor_permit(what: str) -> None:
    """A handler raises at each point, the first step of leaving the guard among them: others get in at once, and nothing is lost."""
    with sa.Store() as store:
        store.Semaphore(1).acquire()  # this process has its place
        shared: list[Any] = []

        def ready() -> None:
            shared[:] = [store.Semaphore(1) if what in ("acquire", "release") else store.Barrier(1)]
            if what == "release":
                shared[0].acquire()

        def verify(where: str) -> None:
            assert shared[0]._guard.owner == 0
            assert shared[0]._guard.acquire(None, 0)
            shared[0]._guard.release()
            if what == "acquire":
                assert shared[0].get_value() == (where != "not interrupted")

        def deed() -> None:
            getattr(shared[0], what)()

        assert sweeps.interrupt_everywhere(ready, deed, verify, tracing.in_package) > 5


@pytest.mark.parametrize("parties", [1, 2])
def test_who_is_interrupted_at_a_barrier_has_not_come(parties: int) -> None:
    """A handler raises at each point of a wait: the barrier has opened, or is broken, or nobody is counted as waiting."""
    with sa.Store() as store:
        store.Semaphore(1).acquire()  # this process has its place
        barriers: list[Any] = []

        def ready() -> None:
            barriers[:] = [store.Barrier(parties)]

        def verify(where: str) -> None:
            assert barriers[0].broken or barriers[0]._words[barriers[0]._count] == 0, where
            assert barriers[0].n_waiting == 0
            assert barriers[0].broken == (parties == 2) or where != "not interrupted"

        def deed() -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                barriers[0].wait(0)

        assert sweeps.interrupt_everywhere(ready, deed, verify, tracing.in_package) > 5
