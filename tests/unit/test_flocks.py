"""Kernel locks that a mapping keeps: leases and marks, through exec, fork, exit and SIGKILL."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

from shmarray._os import flocks, segments
from tests.helpers.processes import Child, kill_and_reap, reap

if TYPE_CHECKING:
    from collections.abc import Iterator

MAPPER = """
import sys
from shmarray._os import flocks, segments
from tests.helpers.processes import report
fd = segments.open_existing(sys.argv[1])
flocks.share(fd)
flocks.mark(fd, 7)
memory = segments.map_shared(fd, 4096)
fd.close()
report("mapped")
input()
"""


@pytest.fixture
def path() -> Iterator[str]:
    """A file of one page in shared memory."""
    fd, name = tempfile.mkstemp(prefix="test-flocks-", dir=segments.SHM_DIRECTORY)
    os.ftruncate(fd, 4096)
    os.close(fd)
    yield name
    os.unlink(name)


def _free(path: str) -> bool:
    """Whether the exclusive lock is free, asked by a description of its own."""
    fd = segments.open_existing(path)
    try:
        return flocks.try_exclusive(fd)
    finally:
        fd.close()


def _marked(path: str, number: int) -> bool:
    fd = segments.open_existing(path)
    try:
        return flocks.is_marked(fd, number)
    finally:
        fd.close()


def _lease(path: str, *marks: int) -> segments.Segment:
    fd = segments.open_existing(path)
    try:
        flocks.share(fd)
        for number in marks:
            assert flocks.mark(fd, number)
        return segments.map_shared(fd, 4096)
    finally:
        fd.close()


@pytest.mark.core
def test_a_lease_lives_exactly_as_long_as_the_mapping(path: str) -> None:
    """With its descriptor closed the lock stays until the mapping goes, and then goes at once."""
    assert _free(path)
    memory = _lease(path)
    assert not _free(path)
    del memory
    assert _free(path)


def test_a_view_of_the_mapping_keeps_the_lease(path: str) -> None:
    """Whoever exports the memory keeps it alive, and so the lock."""
    memory = _lease(path)
    view = memoryview(memory)[:10]
    del memory
    assert not _free(path)
    view.release()
    assert _free(path)


def test_many_leases_are_held_side_by_side_and_the_last_frees(path: str) -> None:
    """Shared means shared: any number, in one process or several."""
    leases = [_lease(path) for _ in range(3)]
    while leases:
        assert not _free(path)
        leases.pop()
    assert _free(path)


def test_a_killed_process_lets_go_of_its_lease_and_marks(path: str) -> None:
    """After SIGKILL and reaping, lease and mark are free, with no one having done anything."""
    with Child(MAPPER, path) as child:
        child.wait_for("mapped")
        assert not _free(path)
        assert _marked(path, 7)
        assert not _marked(path, 8)
        assert child.kill().returncode == -signal.SIGKILL
        assert _free(path)
        assert not _marked(path, 7)


def test_an_exiting_process_lets_go_of_its_lease_silently(path: str) -> None:
    """The same for a normal end; nothing is printed."""
    with Child(MAPPER, path) as child:
        child.wait_for("mapped")
        child.tell()
        child.finish().expect()
        assert _free(path)


def test_a_forked_child_keeps_the_lease_that_it_inherited_with_the_mapping(path: str) -> None:
    """A mapping inherited by fork is a live use: the lock goes with the last of parent and child."""
    memory = _lease(path)
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    del memory
    assert not _free(path)
    kill_and_reap(pid)
    assert _free(path)


def test_a_forked_child_that_ends_takes_nothing_from_its_parent(path: str) -> None:
    """The child's unmapping and exit leave the parent's lease and marks in place."""
    memory = _lease(path, 3)
    pid = os.fork()
    if pid == 0:
        del memory
        os._exit(0)
    assert reap(pid) == 0
    assert not _free(path)
    assert _marked(path, 3)
    del memory
    assert _free(path)
    assert not _marked(path, 3)


def test_closing_other_descriptors_of_the_file_takes_no_lock_away(path: str) -> None:
    """Unlike POSIX record locks, which vanish when any descriptor of the file is closed in the process."""
    memory = _lease(path, 0)
    for _ in range(3):
        segments.open_existing(path).close()
        segments.open_existing(path, write=False).close()
    assert not _free(path)
    assert _marked(path, 0)
    del memory


def test_leases_and_marks_do_not_see_each_other(path: str) -> None:
    """A mark does not stop the exclusive lock, a lease does not stop a mark."""
    fd = segments.open_existing(path)
    assert flocks.mark(fd, 0)
    assert _free(path)
    memory = _lease(path, 1)
    assert flocks.mark(fd, 0)
    assert not flocks.mark(fd, 1)
    fd.close()
    del memory


def test_a_mark_is_one_description_s_and_may_be_taken_again_by_it(path: str) -> None:
    """Another description of the same process is refused; the one that has it is not; numbers are independent."""
    one, other = segments.open_existing(path), segments.open_existing(path)
    assert flocks.mark(one, 5)
    assert flocks.mark(one, 5)
    assert not flocks.mark(other, 5)
    assert flocks.mark(other, 6)
    assert flocks.is_marked(other, 5)
    assert not flocks.is_marked(one, 5)
    one.close()
    assert flocks.mark(other, 5)
    other.close()


def test_asking_for_a_mark_does_not_take_it(path: str) -> None:
    """`is_marked` leaves no lock behind, and works on a read-only descriptor."""
    one, other = segments.open_existing(path), segments.open_existing(path, write=False)
    assert not flocks.is_marked(other, 2)
    assert not flocks.is_marked(one, 2)
    assert flocks.mark(one, 2)
    assert flocks.is_marked(other, 2)
    one.close()
    other.close()


def test_waiting_for_a_mark_ends_when_its_holder_is_killed(path: str) -> None:
    """The kernel hands the mark on at the holder's death."""
    with Child(MAPPER, path) as child:
        child.wait_for("mapped")
        fd = segments.open_existing(path)
        done = threading.Event()

        def wait() -> None:
            flocks.wait_mark(fd, 7)
            done.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not done.wait(0.05)
        child.kill()
        assert done.wait(20)
        waiter.join()
        assert _marked(path, 7)
        fd.close()


def test_a_lease_waits_for_a_janitor_that_is_looking(path: str) -> None:
    """`share` takes the lease as soon as the exclusive lock is let go."""
    janitor = segments.open_existing(path)
    assert flocks.try_exclusive(janitor)
    taken = threading.Event()
    held: list[segments.Segment] = []

    def attach() -> None:
        held.append(_lease(path))
        taken.set()

    thread = threading.Thread(target=attach)
    thread.start()
    assert not taken.wait(0.05)
    janitor.close()
    assert taken.wait(20)
    thread.join()
    assert not _free(path)
    held.clear()


def test_a_janitor_that_was_stopped_becomes_an_exception(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever: after `PATIENCE` seconds `TimeoutError` says what is the matter."""
    monkeypatch.setattr(flocks, "PATIENCE", 0.05)
    janitor, fd = segments.open_existing(path), segments.open_existing(path)
    try:
        assert flocks.try_exclusive(janitor)
        with pytest.raises(TimeoutError, match="is it stopped"):
            flocks.share(fd)
    finally:
        janitor.close()
        fd.close()


def test_a_mark_lies_beyond_every_file(path: str) -> None:
    """Marks change neither size nor contents."""
    fd = segments.open_existing(path)
    for number in range(130):
        assert flocks.mark(fd, number)
    assert segments.status(fd).st_size == 4096
    fd.close()
