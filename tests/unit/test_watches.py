"""Being told: of the end of a very process, of the moment when somebody lets go of a file."""

from __future__ import annotations

import os
import resource
import select
import signal
import tempfile
from typing import TYPE_CHECKING

import pytest

from shmarray._os import flocks, processes, segments, watches
from tests.helpers.processes import Child, kill_and_reap, reap

if TYPE_CHECKING:
    from collections.abc import Iterator

MAPPER = """
import sys
from shmarray._os import segments
from tests.helpers.processes import report
fd = segments.open_existing(sys.argv[1])
memory = segments.map_shared(fd, 4096)
fd.close()
report("mapped")
input()
del memory
report("dropped")
input()
"""


@pytest.fixture
def path() -> Iterator[str]:
    """A file of one page in shared memory."""
    fd, name = tempfile.mkstemp(prefix="test-watches-", dir=segments.SHM_DIRECTORY)
    os.ftruncate(fd, 4096)
    os.close(fd)
    yield name
    segments.unlink(name)


def _told(fd: int, seconds: float) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


def _sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def test_the_end_of_a_process_is_told_at_once() -> None:
    """Readable when it is killed, before anyone reaps it; not before."""
    pid = _sleeper()
    fd = watches.death_of(pid, processes.start_time(pid))
    assert fd is not None
    assert not _told(fd, 0)
    os.kill(pid, signal.SIGKILL)
    assert _told(fd, 20)
    reap(pid)
    os.close(fd)


def test_the_end_is_told_whoever_else_lives() -> None:
    """A sibling, or a child of the one that died, delays nothing: no pipe end that they could have inherited is involved."""
    pid, sibling = _sleeper(), _sleeper()
    fd = watches.death_of(pid, processes.start_time(pid))
    assert fd is not None
    os.kill(pid, signal.SIGKILL)
    assert _told(fd, 20)
    reap(pid)
    kill_and_reap(sibling)
    os.close(fd)


def test_a_process_that_has_ended_is_known_to_have() -> None:
    """No descriptor, no error: None; and nothing stays open."""
    pid = _sleeper()
    start = processes.start_time(pid)
    kill_and_reap(pid)
    assert watches.death_of(pid, start) is None


def test_another_process_under_the_same_pid_is_not_watched() -> None:
    """The pid was given away: the process meant has ended, and no descriptor stays open."""
    pid = _sleeper()
    assert watches.death_of(pid, processes.start_time(pid) + 1) is None
    kill_and_reap(pid)


def test_an_ended_process_that_nobody_reaped_is_told() -> None:
    """A zombie has ended; it may be reported by None or by a readable descriptor, and is not waited for."""
    pid = _sleeper()
    start = processes.start_time(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    fd = watches.death_of(pid, start)
    if fd is not None:
        assert _told(fd, 20)
        os.close(fd)
    reap(pid)


@pytest.mark.core
def test_letting_go_of_a_mapping_is_told_also_by_a_kill(path: str) -> None:
    """Unmapping and SIGKILL both report; a mapping that stays does not."""
    fd = watches.letting_go(path)
    assert fd is not None
    with Child(MAPPER, path) as one, Child(MAPPER, path) as other:
        one.wait_for("mapped")
        other.wait_for("mapped")
        watches.drain(fd)
        assert not _told(fd, 0.05)
        one.tell()
        one.wait_for("dropped")
        assert _told(fd, 20)
        watches.drain(fd)
        assert not _told(fd, 0)
        other.kill()
        assert _told(fd, 20)
    os.close(fd)


def test_looking_through_a_read_only_descriptor_is_not_told(path: str) -> None:
    """Who only asks, as the guardian does itself, reports nothing: else it would wake itself for ever."""
    fd = watches.letting_go(path)
    assert fd is not None
    look = segments.open_existing(path, write=False)
    assert flocks.try_exclusive(look)
    look.close()
    assert not _told(fd, 0.05)
    os.close(fd)


def test_a_removed_link_is_told(path: str) -> None:
    """Unlinking one of two names, and then the last, reports."""
    fd = watches.letting_go(path)
    assert fd is not None
    os.link(path, path + ".2")
    watches.drain(fd)
    os.unlink(path + ".2")
    assert _told(fd, 20)
    watches.drain(fd)
    os.unlink(path)
    assert _told(fd, 20)
    watches.drain(fd)
    os.close(fd)


def test_only_removed_links_are_told_for_as_long_as_is_wished(path: str) -> None:
    """Letting go is not, then, and is again after; also of a file that has lost its last name, which is known by a descriptor."""
    fd = watches.letting_go(path)
    assert fd is not None
    file = segments.open_existing(path)
    watches.narrow(fd, file.fileno(), to_links=True)
    segments.open_existing(path).close()
    assert not _told(fd, 0)
    os.unlink(path)
    assert _told(fd, 20)
    watches.drain(fd)
    watches.narrow(fd, file.fileno(), to_links=False)
    os.close(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR))
    assert _told(fd, 20)
    file.close()
    os.close(fd)


def test_a_file_that_is_not_there_cannot_be_watched(path: str) -> None:
    """None, and no descriptor stays open."""
    assert watches.letting_go(path + ".absent") is None


def test_without_descriptors_there_is_no_watch_and_no_error(path: str) -> None:
    """Where the process has none left the caller is told None and looks from time to time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert watches.letting_go(path) is None
        with pytest.raises(OSError, match="Too many open files"):
            watches.death_of(os.getpid(), processes.start_time(os.getpid()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_burst_of_events_is_drained_whole(path: str) -> None:
    """However many have come, after `drain` none is left."""
    fd = watches.letting_go(path)
    assert fd is not None
    for number in range(3000):
        os.chmod(path, 0o600 + number % 2)
    assert _told(fd, 20)
    watches.drain(fd)
    assert not _told(fd, 0)
    os.close(fd)


def test_descriptors_of_watches_are_closed_on_exec(path: str) -> None:
    """Neither kind is inherited by a program."""
    for fd in (watches.letting_go(path), watches.death_of(os.getpid(), processes.start_time(os.getpid()))):
        assert fd is not None
        assert not os.get_inheritable(fd)
        os.close(fd)
