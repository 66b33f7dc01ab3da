"""Work shared by threads: each piece is done once, whoever gives up or fails, and no thread stays."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from shmarray._os import parallel
from tests.helpers.copies import none_is_left
from tests.helpers.processes import run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


def always(work: Callable[[int], object]) -> Callable[[int], bool]:
    """What another thread does, which never gives up."""

    def theirs(piece: int) -> bool:
        work(piece)
        return True

    return theirs


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 500])
def test_each_piece_is_done_once(threads: int, number: int) -> None:
    """However many threads and pieces there are, and no thread is left."""
    done: list[int] = []
    parallel.share(range(number), done.append, always(done.append), threads)
    assert sorted(done) == list(range(number))
    wait_until(none_is_left)


def test_threads_work_at_the_same_time_from_both_ends() -> None:
    """The first piece is this thread's and the last another's, and neither waits for the other's end."""
    met, me = threading.Barrier(2), threading.get_ident()
    who: dict[int, bool] = {}

    def do(piece: int) -> bool:
        who[piece] = threading.get_ident() == me
        met.wait(30)
        return True

    parallel.share([10, 20], do, do, 2)
    assert who == {10: True, 20: False}


def test_what_a_thread_gives_up_is_done_here() -> None:
    """Another thread says False to its first piece, and none is missing."""
    mine: list[int] = []
    asked: list[int] = []

    def theirs(piece: int) -> bool:
        asked.append(piece)
        return False

    parallel.share(range(20), mine.append, theirs, 3)
    assert sorted(mine) == list(range(20))
    assert len(asked) <= 2


def test_an_error_of_another_thread_is_raised_here_when_all_have_ended() -> None:
    """It is that very error, the rest is not begun, and it holds nothing that was worked on."""
    began = threading.Event()
    done: list[int] = []

    def mine(piece: int) -> None:
        assert began.wait(30)
        done.append(piece)

    def theirs(piece: int) -> bool:
        try:
            raise OSError(28, "full")
        finally:
            began.set()

    with pytest.raises(OSError, match="full") as caught:
        parallel.share(range(1000), mine, theirs, 2)
    wait_until(none_is_left)
    assert len(done) < 1000
    assert caught.value.errno == 28


def test_an_error_of_this_thread_ends_the_others_first() -> None:
    """What another thread is at is finished before the error comes out, and nothing more is begun."""
    inside, over = threading.Event(), threading.Event()
    theirs_done: list[int] = []

    def mine(_: int) -> None:
        assert inside.wait(30)
        over.set()
        raise KeyboardInterrupt

    def theirs(piece: int) -> bool:
        inside.set()
        assert over.wait(30)
        theirs_done.append(piece)
        return True

    with pytest.raises(KeyboardInterrupt):
        parallel.share(range(1000), mine, theirs, 2)
    assert 1 <= len(theirs_done) < 1000
    wait_until(none_is_left)


def test_an_index_error_of_the_work_is_an_error() -> None:
    """That nothing is left to take is told apart from what the work itself raises."""

    def fails(piece: int) -> bool:
        raise IndexError(piece)

    with pytest.raises(IndexError):
        parallel.share(range(3), fails, fails, 1)
    with pytest.raises(IndexError):
        parallel.share(range(3), fails, fails, 2)


def test_without_another_thread_this_one_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the interpreter's end, or at the limit of processes, no thread can be started."""

    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(parallel, "_start_thread", refuse)
    done: list[int] = []
    parallel.share(range(9), done.append, always(done.append), 4)
    assert done == list(range(9))


def test_a_child_forked_by_a_signal_handler_in_the_midst_does_what_the_others_would_have() -> None:
    """The other threads are not there in the child; every piece is done in it, and in the parent as well."""

    def fork_and_tell() -> tuple[set[int], bytes]:
        reading, writing = os.pipe()
        here: list[int] = []
        child: list[int] = []
        busy, forked = threading.Event(), threading.Event()

        def mine(piece: int) -> None:
            if not child:
                assert busy.wait(30)
                signal.raise_signal(signal.SIGUSR1)
                forked.set()
            here.append(piece)

        def theirs(piece: int) -> bool:
            busy.set()
            assert forked.wait(30)
            here.append(piece)
            return True

        usual = signal.signal(signal.SIGUSR1, lambda *_: child.append(os.fork()))
        try:
            parallel.share(range(10), mine, theirs, 2)
        finally:
            signal.signal(signal.SIGUSR1, usual)
            if child == [0]:
                os.write(writing, bytes(sorted(here)))
                os._exit(0)
        os.close(writing)
        os.waitpid(child[0], 0)
        with os.fdopen(reading, "rb") as file:
            return set(here), file.read()

    parents, childs = fork_and_tell()
    assert parents == set(range(10))
    assert set(childs) == set(range(10))


def test_a_fork_after_the_deed_finds_no_other_thread() -> None:
    """What a thread still has to do to end after its deed is waited for, and Python has nothing to warn of."""
    script = """
import os, threading, time
there = []

def look():
    there.append(len(os.listdir("/proc/self/task")))

os.register_at_fork(before=look)  # registered first, called last before the fork
from shmarray._os import parallel

class Slow:
    def __del__(self):
        time.sleep(0.05)  # the thread has nothing more to do, and is still there

mine = threading.local()
met = threading.Barrier(2)

def theirs(piece):
    mine.slow = Slow()
    met.wait(30)
    return True

look()
parallel.share([1, 2], lambda piece: met.wait(30), theirs, 2)
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
print(there[1] - there[0])
"""
    assert run_script(script).expect() == "0\n"


@pytest.mark.parametrize(("said", "cores", "expected"), [("", 1, 1), ("", 3, 3), ("", 64, 4), ("7", 2, 7), ("0", 2, 2)])
def test_there_are_as_many_threads_as_cores_up_to_four_or_as_the_environment_says(
    said: str, cores: int, expected: int
) -> None:
    """`SHMARRAY_COPY_THREADS` is read when the package is imported; what is no number of threads says nothing."""
    script = f"""
import os
os.environ["SHMARRAY_COPY_THREADS"] = {said!r}
os.sched_getaffinity = lambda pid: set(range({cores}))
from shmarray._os import parallel
assert parallel.cores() == {expected}, parallel.cores()
"""
    run_script(script).expect()
