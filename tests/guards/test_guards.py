"""Guards of arrays: who is inside together, who waits, and what is left by those who are killed inside."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import sys
import threading
import time
from multiprocessing import Condition, get_context
from typing import TYPE_CHECKING, Any, cast

import pytest

import shmarray as sa
from tests.guards import actors
from tests.helpers import tracing
from tests.helpers.processes import reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import SpawnContext

FORK = get_context("fork")
HOLDERS = {"write": actors.hold_write, "lock": actors.hold_lock, "read": actors.hold_read}


@contextlib.contextmanager
def holding(array: sa.SharedArray, how: str, context: Any = FORK) -> Iterator[Any]:
    """A process that is inside a guard for as long as the block runs."""
    # A pipe, for an Event of multiprocessing hangs when a process that waits for it is killed.
    mine, its = context.Pipe()
    process = context.Process(target=HOLDERS[how], args=(array, its))
    process.start()
    its.close()
    try:
        assert mine.poll(30)
        assert mine.recv() == "inside"
        yield process
    finally:
        with contextlib.suppress(OSError):  # it may have been killed
            mine.send("leave")
        mine.close()
        process.join(30)
        process.close()


@pytest.mark.core
@pytest.mark.parametrize("how", ["write", "lock"])
def test_exclusive_access_keeps_every_other_out(array: sa.SharedArray, how: str) -> None:
    """While a process is inside exclusively, nobody gets in by write, read or lock; afterwards everybody does."""
    with holding(array, how):
        for access in (array.write(timeout=0.01), array.read(timeout=0.01)):
            with pytest.raises(sa.GuardTimeoutError) as caught, access:
                pass
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.name == "a"
        assert not array.lock.acquire(block=False)
        assert not array.lock.acquire(timeout=0.01)
    for access in (array.write(timeout=5), array.read(timeout=5)):
        with access:
            pass
    assert array.lock.acquire(timeout=5)
    array.lock.release()


def test_every_start_method_finds_the_same_guard(start_method: SpawnContext) -> None:
    """A guard is one for all processes, however they were started, and however the array reached them."""
    with sa.Store() as store:
        a = store.zeros(4, dtype="i8")
        view: Any = a[1:3]
        with holding(view, "write", start_method):
            assert not a.lock.acquire(block=False)
        assert a.lock.acquire(timeout=5)
        a.lock.release()


def test_readers_are_inside_together(array: sa.SharedArray) -> None:
    """Two processes and a thread read at the same time, and a writer has to wait for all of them."""
    with holding(array, "read"), holding(array, "read"), array.read(timeout=5) as x:
        assert not x.flags.writeable
        done = threading.Event()

        def write() -> None:
            with pytest.raises(sa.GuardTimeoutError), array.write(timeout=0.05):
                pass
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        thread.join(30)
        assert done.is_set()
    with array.write(timeout=5):
        pass


def test_a_waiting_writer_is_not_starved_by_readers_that_come_later(array: sa.SharedArray) -> None:
    """Once a writer waits, later readers stand behind it, so a stream of readers cannot keep it out."""
    with holding(array, "read"):
        got_in = threading.Event()

        def write() -> None:
            with array.write(timeout=30):
                got_in.set()

        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: _cannot_read(array), timeout=30)
        assert not got_in.is_set()
    writer.join(30)
    assert got_in.is_set()
    with array.read(timeout=5):
        pass


def _cannot_read(array: sa.SharedArray) -> bool:
    try:
        with array.read(timeout=0):
            return False
    except sa.GuardTimeoutError:
        return True


def test_entering_twice_is_an_error_at_once(array: sa.SharedArray) -> None:
    """Re-entry by one thread and upgrading from reading to writing raise GuardError and never wait."""
    began = time.monotonic()
    with array.write():
        for access in (array.write(), array.read()):
            with pytest.raises(sa.GuardError), access:
                pass
        with pytest.raises(sa.GuardError):
            array.lock.acquire()
        assert not array.lock.acquire(block=False)
    with array.read():
        for access in (array.write(), array.read()):
            with pytest.raises(sa.GuardError), access:
                pass
        with pytest.raises(sa.GuardError):
            array.lock.acquire()
    assert time.monotonic() - began < 20
    with array.write(timeout=5):
        pass


def test_only_the_holder_may_release(array: sa.SharedArray) -> None:
    """A release by a thread that does not hold the lock raises GuardError, which is the builtin that multiprocessing raises."""
    lock = array.lock
    with pytest.raises(ValueError, match="does not hold"):
        lock.release()
    with holding(array, "lock"), pytest.raises(sa.GuardError):
        lock.release()
    lock.acquire()
    errors = []

    def release() -> None:
        try:
            lock.release()
        except sa.GuardError as error:
            errors.append(error)

    thread = threading.Thread(target=release)
    thread.start()
    thread.join()
    assert len(errors) == 1
    lock.release()


def test_views_of_one_array_and_leaves_of_one_tree_share_a_guard(array: sa.SharedArray) -> None:
    """What lies in one block has one guard."""
    backwards, end, beginning = (cast("sa.SharedArray", view) for view in (array[::-1], array[1:], array[:1]))
    assert array.lock == backwards.lock
    with end.write(), pytest.raises(sa.GuardError), beginning.read():
        pass
    with sa.Store() as store:
        tree = store.put({"x": array.copy(), "y": [array.copy()]})
        assert tree.lock == tree["x"].lock == tree["y"].lock
        with tree.read() as read:
            assert not read["x"].flags.writeable
            assert not read.unflatten()["y"][0].flags.writeable
        with tree.write() as write:
            write["x"][0] = 3
        assert tree["x"][0] == 3


def test_private_memory_has_no_guard(array: sa.SharedArray) -> None:
    """A copy is nobody's but its owner's: asking for its guard is a ValueError that says so."""
    private: Any = array[[0, 1]]
    for ask in (private.write, private.read, lambda: private.lock):
        with pytest.raises(ValueError, match="private"):
            ask()


@pytest.mark.core
@pytest.mark.parametrize("how", ["write", "lock"])
def test_a_writer_that_is_killed_leaves_the_array_poisoned_and_not_locked(robust: sa.SharedArray, how: str) -> None:
    """Others proceed at once; read and write say who died and when; healing is knowing, and counts on a clean exit only."""
    with holding(robust, how) as process:
        before = time.time()
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        began = time.monotonic()
        assert robust.lock.acquire(timeout=10)
        waited = time.monotonic() - began
        robust.lock.release()
        pid = process.pid
    assert waited < 5
    for access in (robust.read(), robust.write()):
        with pytest.raises(sa.PoisonedError) as caught, access:
            pass
        assert caught.value.pid == pid
        assert caught.value.name == "a"
        assert before - 60 < caught.value.since < time.time()
    with pytest.raises(KeyError), robust.write(heal=True):
        raise KeyError
    with pytest.raises(sa.PoisonedError), robust.read():
        pass
    with robust.write(heal=True):
        pass
    with robust.read():
        pass


def test_someone_who_waits_gets_in_when_the_holder_is_killed(robust: sa.SharedArray) -> None:
    """A waiter is woken by the kernel at its holder's death, within a slice of time."""
    for how in HOLDERS:
        with holding(robust, how) as process:
            waiting = threading.Event()
            entered: list[float] = []

            def wait(waiting: threading.Event = waiting, entered: list[float] = entered) -> None:
                waiting.set()
                with robust.write(timeout=30, heal=True):
                    entered.append(time.monotonic())

            thread = threading.Thread(target=wait)
            thread.start()
            assert waiting.wait(30)
            killed = time.monotonic()
            os.kill(process.pid, signal.SIGKILL)
            thread.join(30)
        assert entered, how
        assert entered[0] - killed < 10, how


def test_a_reader_that_is_killed_poisons_nothing(robust: sa.SharedArray) -> None:
    """The writer that waits for a dead reader strikes it out and finds the data sound."""
    with holding(robust, "read") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        with robust.write(timeout=10):
            pass
        with robust.read(timeout=10):
            pass


@pytest.mark.parametrize("how", ["write", "lock", "read"])
def test_death_at_any_line_of_entering_and_leaving_leaves_the_guard_usable(robust: sa.SharedArray, how: str) -> None:
    """A process is killed at every line that entering, working and leaving run: others get in, and poison is told of."""
    actors.enter_and_leave(robust, how)
    lines = tracing.count_events(lambda: actors.enter_and_leave(robust, how))
    assert lines > 5
    poisoned = 0
    for n in range(1, lines + 1):
        pid = os.fork()
        if not pid:
            actors.die_at(robust, how, n)
            os._exit(0)
        assert reap(pid) == -signal.SIGKILL
        poison: sa.PoisonedError | None = None
        try:
            with robust.write(timeout=10):
                pass
        except sa.PoisonedError as error:
            poison = error
        if poison is not None:
            assert poison.pid == pid
            poisoned += 1
            with robust.write(timeout=10, heal=True):
                pass
        with robust.read(timeout=10):
            pass
    assert poisoned == 0 if how == "read" else poisoned > 0


def test_a_child_forked_inside_a_guard_does_not_hold_it(array: sa.SharedArray) -> None:
    """Leaving the `with` block in a forked child releases nothing of the parent's, and the child can use the guard later."""
    for access in (array.write(), array.read()):
        with access:
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    access.__exit__(None, None, None)
                    code = 0 if not array.lock.acquire(block=False) else 2
                finally:
                    os._exit(code)
            assert reap(pid) == 0
            with holding_nothing(array):
                pass


@contextlib.contextmanager
def holding_nothing(array: sa.SharedArray) -> Iterator[None]:
    """Check from another process that the guard is taken."""
    pid = os.fork()
    if not pid:
        os._exit(0 if not array.lock.acquire(block=False) else 1)
    assert reap(pid) == 0
    yield


def test_a_fork_while_another_thread_is_inside_leaves_the_child_able_to_use_the_guard(array: sa.SharedArray) -> None:
    """The thread is not in the child: when the parent's thread has left, the child gets in."""
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with array.read():
            inside.set()
            go_on.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with array.write(timeout=30):
                code = 0
        finally:
            os._exit(code)
    go_on.set()
    thread.join(30)
    assert reap(pid) == 0


def test_ctrl_c_while_waiting_leaves_everything_consistent(array: sa.SharedArray) -> None:
    """KeyboardInterrupt comes out of a wait, nothing is held afterwards, and the guard works."""
    for access in (array.write(), array.read()):
        with holding(array, "write"):
            # The holder adds before it says that it is inside; so the wait below is the only thing to interrupt.
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt), access:
                pass
            timer.join()
        with array.write(timeout=10):
            pass


class _Alarm(Exception):  # noqa: N818  it is no error
    """What the signal handler below raises."""


def test_an_exception_from_a_signal_at_any_moment_never_leaves_the_guard_taken(
    array: sa.SharedArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler raises at random points of entering and leaving, thousands of times: another process always gets in.

    Of `read()` and `write()`; a lock that is left by `with` can be kept by an exception at the first step of leaving, as any
    lock written in Python, and its holder can see that and release it.
    """

    def ring(*_: object) -> None:
        raise _Alarm

    reported = set()  # what was raised where nothing can be: in a finalizer
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.add(unraisable.exc_type))
    old = signal.signal(signal.SIGALRM, ring)
    dice = random.Random(5)  # noqa: S311  the same moments each time
    interrupted = 0
    try:
        for _ in range(1500):
            how = dice.choice(["write", "read", "lock"])
            try:
                _under_alarm(array, how, dice.uniform(5e-6, 120e-6))
            except _Alarm:
                interrupted += 1
            if how == "lock" and array.lock.holder():
                array.lock.release()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert interrupted > 100
    assert reported <= {_Alarm}
    with holding(array, "write"):
        pass
    with array.write(timeout=10):
        pass


def _under_alarm(array: sa.SharedArray, how: str, seconds: float) -> None:
    """Enter and leave a guard some times; the alarm rings once, in there or on the way out of here."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        for _ in range(3):
            actors.enter_and_leave(array, how)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.core
def test_a_lock_travels_and_names_its_holder(start_method: SpawnContext) -> None:
    """A lock pickles as a handle; holder() gives pid and time, and None when it is free."""
    with sa.Store() as store:
        lock = store.zeros(3).lock
        assert pickle.loads(pickle.dumps(lock)) == lock
        assert lock.holder() is None
        with lock:
            holder = lock.holder()
            assert holder is not None
            assert holder[0] == os.getpid()
            assert abs(holder[1] - time.time()) < 60
        queue = start_method.SimpleQueue()
        process = start_method.Process(target=_hold_and_tell, args=(lock, queue))
        process.start()
        assert queue.get() == process.pid
        process.join(30)
        queue.close()


def _hold_and_tell(lock: Any, queue: Any) -> None:
    with lock:
        queue.put(lock.holder()[0])


def test_a_condition_of_multiprocessing_takes_the_lock(array: sa.SharedArray) -> None:
    """multiprocessing.Condition works on an array's lock: wait lets it go and takes it again."""
    condition = Condition(array.lock)  # type: ignore[arg-type]  # the interface is what matters
    woken = threading.Event()
    waiting = threading.Event()

    def wait() -> None:
        with condition:
            waiting.set()
            assert condition.wait(30)
            woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(30)
    with condition:
        condition.notify()
    thread.join(30)
    assert woken.is_set()


def test_no_update_is_lost_and_nobody_is_inside_together(array: sa.SharedArray) -> None:
    """Four processes add under the guard; an occupancy mark and the sum agree that no two were inside."""
    times = 5000
    processes = [FORK.Process(target=actors.add, args=(array, times)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert array.tolist() == [4 * times, 0, 0, 0]


def test_no_update_is_lost_while_processes_are_killed(robust: sa.SharedArray) -> None:
    """Processes that add are killed at random and replaced: two counters under one guard never part."""
    dice = random.Random(11)  # noqa: S311  the same victims each time
    running = [FORK.Process(target=actors.add_until_killed, args=(robust,)) for _ in range(4)]
    for process in running:
        process.start()
    for _ in range(40):
        _added_to(robust)
        victim = running.pop(dice.randrange(4))
        os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join(30)
        running.append(FORK.Process(target=actors.add_until_killed, args=(robust,)))
        running[-1].start()
    for process in running:
        process.kill()
        process.join(30)
    with robust.write(timeout=10, heal=True) as x:
        assert abs(int(x[0]) - int(x[2])) <= 1 if x[1] else x[0] == x[2]


def _added_to(array: sa.SharedArray) -> None:
    """Wait until someone has added to the first element."""
    before = int(array[0])
    wait_until(lambda: int(array[0]) > before, timeout=30)


def test_guards_of_a_closed_store_say_so_or_work_and_never_hang() -> None:
    """After the store closed, the mutex still excludes; asking for a reader's place may raise StoreClosedError.

    The guard of a small array is made when it is first used, which is too late then.
    """
    with sa.Store() as store:
        named = store.zeros(3, name="a")
        never, used = store.zeros(3), store.zeros(3)
        with used.write():
            pass
    for a in (named, used):
        with a.write(timeout=5) as x:
            x[:] += 1
        with contextlib.suppress(sa.StoreClosedError), a.read(timeout=5):
            pass
    with pytest.raises(sa.StoreClosedError):
        never.write(timeout=5)


def test_a_wrong_kind_of_guard_is_refused() -> None:
    """A typo in guard= is a ValueError that names what there is."""
    with pytest.raises(ValueError, match="robust"):
        sa.Store(guard="robsut")  # type: ignore[arg-type]  # a typo is the subject
