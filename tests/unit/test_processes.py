"""Who a process is: identity beyond the pid, what it maps, and the hook after a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shmarray._os import processes, segments
from tests.helpers.processes import Child, has_ended, is_running, kill_and_reap, reap, run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnContext

WAITER = "from tests.helpers.processes import report\nreport('up')\ninput()\n"


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A child of this process that does nothing; killed and reaped at the end."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    kill_and_reap(pid)


def _send_me(pipe: Connection) -> None:
    pipe.send(processes.me())


def test_this_process_knows_itself_and_is_not_gone() -> None:
    """Pid, start time and namespace are those the kernel shows, and the same each time."""
    me = processes.me()
    assert me.pid == os.getpid()
    assert me.start == processes.start_time(me.pid) > 0
    assert me.namespace == os.stat("/proc/self/ns/pid").st_ino
    assert me == processes.me()
    assert not processes.is_provably_gone(me)


def test_every_process_is_another_one(start_method: SpawnContext) -> None:
    """A child of any kind has an identity of its own, which is provably gone once it has been reaped."""
    reader, writer = start_method.Pipe(duplex=False)
    child = start_method.Process(target=_send_me, args=(writer,))
    child.start()
    identity = reader.recv()
    assert identity.pid == child.pid
    assert identity != processes.me()
    child.join()
    child.close()
    reader.close()
    writer.close()
    assert processes.is_provably_gone(identity)


def test_a_running_process_is_not_gone_and_a_killed_one_is() -> None:
    """Alive while it runs; once killed it has ended, whether somebody has waited for it yet or not."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    identity = processes.Identity(pid, processes.start_time(pid), processes.pid_namespace())
    assert not processes.is_provably_gone(identity)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert not processes.is_provably_gone(identity)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert processes.is_provably_gone(identity)
    reap(pid)
    assert processes.is_provably_gone(identity)
    assert processes.start_time(pid) == 0


def test_a_process_whose_first_thread_has_ended_before_the_others_is_not_gone() -> None:
    """For the kernel that one is a zombie by then; the process has its files, its memory and its locks."""
    with Child(THREADS) as child:
        child.wait_for("up")
        identity = processes.Identity(child.pid, processes.start_time(child.pid), processes.pid_namespace())
        wait_until(lambda: processes._state(child.pid)[0] == "Z", 10, "its first thread does not end")
        assert not processes.is_provably_gone(identity)
        assert is_running(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        assert has_ended(child.pid, 10)
        assert processes.is_provably_gone(identity)
        assert not is_running(child.pid)


THREADS = """
import ctypes, signal, threading
from tests.helpers.processes import report
threading.Thread(target=signal.sigwait, args=({signal.SIGUSR1},)).start()
report("up")
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_pid_that_was_given_to_another_process_is_no_identity(sleeper: int) -> None:
    """The same pid with another start time: the process meant is gone, whoever has its number now."""
    real = processes.Identity(sleeper, processes.start_time(sleeper), processes.pid_namespace())
    assert not processes.is_provably_gone(real)
    assert processes.is_provably_gone(real._replace(start=real.start - 1))
    assert processes.is_provably_gone(real._replace(start=real.start + 1))


def test_a_process_of_another_pid_namespace_is_never_provably_gone() -> None:
    """Its numbers mean nothing here, so nothing follows from them."""
    me = processes.me()
    elsewhere = processes.Identity(2**22 + 1, 1, me.namespace + 1)
    assert not processes.is_provably_gone(elsewhere)
    assert processes.is_provably_gone(elsewhere._replace(namespace=me.namespace))


def test_a_process_that_may_not_be_signalled_is_alive() -> None:
    """Being refused is no proof of death."""
    source = """
import os, sys
from shmarray._os import processes
one = processes.Identity(1, processes.start_time(1), processes.pid_namespace())
if os.geteuid() == 0:
    os.setuid(65534)
try:
    os.kill(1, 0)
except PermissionError:
    print(processes.is_provably_gone(one))
"""
    assert run_script(source).expect() == "False\n"


def test_a_start_time_is_read_past_a_strange_program_name() -> None:
    """The name in `/proc/PID/stat` may hold spaces and brackets."""
    source = """
from shmarray._os import processes
before = processes.start_time(__import__("os").getpid())
open("/proc/self/comm", "w").write("a) b (c) 1 2")
print(before == processes.start_time(__import__("os").getpid()) > 0)
"""
    assert run_script(source).expect() == "True\n"


def test_the_boot_is_known() -> None:
    """The identity of the boot is a UUID and stays the same."""
    assert len(processes.boot_id().replace("-", "")) == 32
    assert processes.boot_id() == processes.boot_id()


def test_the_command_line_of_a_process_can_be_read() -> None:
    """Words joined by spaces; nothing for a process that is not there."""
    child = subprocess.Popen([sys.executable, "-c", "input()", "a b", "ü"], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: processes.command(child.pid))  # the program has begun, its words may come a moment later
        assert processes.command(child.pid).endswith("-c input() a b ü")
    finally:
        child.communicate(b"\n")
    assert processes.command(child.pid) == ""
    assert child.pid not in processes.pids()
    assert os.getpid() in processes.pids()


def test_the_files_that_a_process_maps_are_seen_also_when_deleted() -> None:
    """Device and inode tell the file, with its name or without."""
    path = f"/dev/shm/test-processes.{os.getpid()}"
    with open(path, "xb") as file:
        file.truncate(8192)
    fd = segments.open_existing(path)
    info = segments.status(fd)
    memory = segments.map_shared(fd, 8192)
    fd.close()
    expected = [processes.MappedFile(info.st_dev, info.st_ino, path)]
    assert processes.mapped_files(os.getpid(), "/dev/shm/test-processes") == expected
    os.unlink(path)
    assert processes.mapped_files(os.getpid(), "/dev/shm/test-processes") == expected
    assert processes.mapped_files(os.getpid(), "/dev/shm/test-other") == []
    del memory
    assert processes.mapped_files(os.getpid(), "/dev/shm/test-processes") == []


def test_what_a_process_maps_can_be_asked_of_another_one_and_of_none() -> None:
    """Another process's libraries are seen; a process that has ended maps nothing."""
    with Child(WAITER) as child:
        child.wait_for("up")
        assert any("libc" in file.path for file in processes.mapped_files(child.pid, "/"))
        child.kill()
        assert processes.mapped_files(child.pid, "/") == []


def test_the_hook_runs_in_every_forked_child_and_never_in_the_parent() -> None:
    """By `os.fork` and by `multiprocessing`, in the order of registration."""
    source = """
import multiprocessing, os
from shmarray._os import processes
seen = []
processes.after_fork_in_child(lambda: seen.append(1))
processes.after_fork_in_child(lambda: seen.append(2))
def check():
    assert seen == [1, 2]
child = multiprocessing.get_context("fork").Process(target=check)
child.start()
child.join()
pid = os.fork()
if pid == 0:
    os._exit(seen != [1, 2])
print(child.exitcode, os.waitpid(pid, 0)[1], seen)
"""
    assert run_script(source, flags=("-W", "ignore")).expect() == "0 0 []\n"
