"""Publishing under a name that exists is one step: a reader gets the old array or the new one, whole, and always one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import blockfiles
from shmarray._format import control
from shmarray._os import flocks, segments, words
from tests.lifetime.workers import SIZE, make, read, write

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext


def test_readers_see_exactly_one_whole_array(start_method: BaseContext) -> None:
    """Two processes publish without pause, two look up: no read is torn, none finds the name missing, and the news arrive."""
    with sa.Store() as store:
        store["w"] = np.zeros(SIZE, int)
        stop, results = start_method.Event(), start_method.Queue()
        start = start_method.Semaphore(0), start_method.Event()
        work: list[tuple[Any, tuple[Any, ...]]] = [(write, (store, number, stop, start)) for number in (1, 2)]
        work += [(read, (store, results, start))] * 2
        processes = [start_method.Process(target=target, args=arguments) for target, arguments in work]  # type: ignore[attr-defined]
        for process in processes:
            process.start()
        for _ in processes:
            assert start[0].acquire(timeout=60)
        start[1].set()
        found = [results.get(timeout=60) for _ in range(2)]
        stop.set()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0, found
            process.close()
        results.close()
        results.join_thread()
        for torn, seen in found:
            assert torn == 0
            assert seen > 2
        stats = store.stats()
        assert (stats.named, stats.drafts, stats.anonymous) == (1, 0, 0)
        assert store.check() == []


@pytest.mark.core
def test_a_name_replaced_in_the_middle_of_a_look_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between each two of its system calls the name is moved to another array: the reader gets that one, and no error."""
    with sa.Store() as store:
        calls = [(segments, call) for call in ("open_existing", "status", "read", "map_shared")]
        for module, call in [*calls, (flocks, "share")]:
            for before in (True, False):
                store["w"] = np.zeros(3)
                real = getattr(module, call)
                turns: list[int] = []

                def interrupted(
                    *args: Any, real: Any = real, before: bool = before, turns: list[int] = turns, **options: Any
                ) -> Any:
                    result = None if before else real(*args, **options)
                    if not turns:
                        turns.append(1)
                        store["w"] = np.ones(3)
                    return real(*args, **options) if before else result

                monkeypatch.setattr(module, call, interrupted)
                found = store["w"]
                monkeypatch.undo()
                assert turns == [1]
                assert found.tolist() in ([0, 0, 0], [1, 1, 1]), call
                assert store["w"].tolist() == [1, 1, 1]
                del found


@pytest.mark.core
@pytest.mark.parametrize("moment", ["before the name is moved", "before the old array is marked"])
def test_a_name_is_looked_at_again_while_its_change_is_under_way(
    moment: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who replaces an array stops there, goes on, and is killed before it can say so: look-ups go to what has the name."""
    store["w"] = np.zeros(3)
    kept = [store["w"], store["w"]]  # seen, and remembered
    here, there = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:

        def stop(*_: object) -> None:
            os.write(here[1], b"!")
            os.read(there[0], 1)

        def stop_and_move(*names: str) -> None:
            stop()
            real(*names)

        def die(*_: object) -> None:
            if moment.startswith("before the old"):
                stop()
            os.kill(os.getpid(), signal.SIGKILL)

        real = segments.replace
        if moment.startswith("before the name"):
            monkeypatch.setattr(segments, "replace", stop_and_move)
        monkeypatch.setattr(blockfiles, "mark_deleted", die)
        try:
            store["w"] = np.ones(3)
        finally:
            os._exit(1)
    os.read(here[0], 1)
    first = 0 if moment.startswith("before the name") else 1
    assert [store["w"][0] for _ in range(3)] == [first] * 3
    os.write(there[1], b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    for end in (*here, *there):
        os.close(end)
    assert [store["w"][0] for _ in range(3)] == [1] * 3
    store["w"] = np.full(3, 2)
    assert [store["w"][0] for _ in range(3)] == [2] * 3
    assert [array[0] for array in kept] == [0, 0]


def test_a_change_inside_a_change_does_not_end_it(store: sa.Store) -> None:
    """A finalizer that deletes in the midst of a replacement does not make look-ups believe that it is over."""
    store["w"], store["x"] = np.zeros(3), np.zeros(3)
    member = store["w"].base.base.obj.tag.member
    outer = member.changing()
    del store["x"]
    before = [store["w"], store["w"], store["w"]]  # seen, and remembered if that were right
    os.rename(f"{member.block_prefix}n.w", f"{member.block_prefix}n.y")
    with pytest.raises(sa.ArrayNotFoundError):
        store["w"]
    os.rename(f"{member.block_prefix}n.y", f"{member.block_prefix}n.w")
    member.changed(outer)
    assert [array[0] for array in (*before, store["w"])] == [0] * 4


def test_two_writers_of_one_name_leave_one_array(store: sa.Store) -> None:
    """Threads of several writers publish the same names: in the end each name has one whole array, and nothing else is left."""
    barrier = threading.Barrier(4)

    def publish(number: int) -> None:
        barrier.wait()
        for step in range(50):
            store[f"w{step % 3}"] = np.full(500, number * 100 + step)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store) == ["w0", "w1", "w2"]
    for array in store.values():
        assert (array == array[0]).all()
    stats = store.stats()
    assert (stats.drafts, stats.attached) == (0, 1)


def test_one_of_many_makers_of_a_name_wins(start_method: BaseContext, store: sa.Store) -> None:
    """`zeros(name=)` from several processes at once: exactly one makes it, the others get ArrayExistsError."""
    results = start_method.Queue()
    makers = [start_method.Process(target=make, args=(store, number, results)) for number in range(4)]  # type: ignore[attr-defined]
    for process in makers:
        process.start()
    won = dict(results.get(timeout=60) for _ in makers)
    for process in makers:
        process.join(60)
        assert process.exitcode == 0
        process.close()
    results.close()
    results.join_thread()
    for position, name in enumerate("abcdefgh"):
        (winner,) = [number for number, mine in won.items() if mine[position]]
        assert (store[name] == winner).all()


def test_deleting_and_publishing_cross_without_harm(store: sa.Store) -> None:
    """One process publishes, another deletes, a third looks up: each sees a whole array or a KeyError, and no half state."""
    context = multiprocessing.get_context("fork")
    stop = context.Event()

    def delete() -> None:
        while not stop.is_set():
            store.pop("w", None)

    processes = [context.Process(target=write, args=(store, 1, stop)), context.Process(target=delete)]
    for process in processes:
        process.start()
    found = missing = 0
    while found < 100 or missing < 5:
        try:
            array = store["w"]
        except KeyError:
            missing += 1
        else:
            assert array.min() == array.max()
            found += 1
    stop.set()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
        process.close()
    assert store.check() == []


@pytest.mark.parametrize("ending", ["interrupted", "closed"])
def test_what_others_saw_before_it_was_taken_back_keeps_its_bytes(
    ending: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its name's appearing and the look whether the store is open somebody attaches an array, and its name goes again."""
    real = segments.publish
    seen: list[Any] = []

    def publish(fd: Any, path: str, temporary: str | None = None) -> None:
        real(fd, path, temporary)
        seen.append(pickle.loads(pickle.dumps(store))["a"])
        if ending == "interrupted":
            os.unlink(path)  # as whoever deletes it does
            raise KeyboardInterrupt
        words.store(store._member.leases[0], control.STATE_AT, control.CLOSED)

    monkeypatch.setattr(segments, "publish", publish)
    with pytest.raises((KeyboardInterrupt, sa.StoreClosedError)):
        store.put(np.arange(SIZE), name="a")
    assert (seen[0] == np.arange(SIZE)).all()
    words.store(store._member.leases[0], control.STATE_AT, control.OPEN)
