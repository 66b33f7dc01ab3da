"""The helpers are code too: a leak guard that sees nothing, or an injector that never strikes, passes every test."""

from __future__ import annotations

import errno
import importlib
import mmap
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from shmarray._os import processes, words
from tests.helpers import forks, leaks, tracing
from tests.helpers.processes import (
    Child,
    is_running,
    kill_and_reap,
    reap,
    report,
    run_command,
    run_function,
    run_script,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnContext
    from pathlib import Path


def _strange_name() -> str:
    return f"shmarray.test.{os.getpid()}.{os.urandom(4).hex()}"


def _unnamed_file() -> int:
    fd = os.open(leaks.SHM, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(fd, 4096)
    return fd


# processes


def test_a_script_is_run_with_its_arguments_input_and_environment() -> None:
    """`run_script` hands over arguments, standard input and environment, and gives back both outputs and the status."""
    source = "import os, sys; print(sys.argv[1], input(), os.environ['X']); print('e', file=sys.stderr); sys.exit(3)"
    done = run_script(source, "a b", stdin="in\n", env={"X": "x"})
    assert done == (3, "a b in x\n", "e\n")


def test_a_script_runs_in_an_empty_directory_and_finds_the_package_and_the_helpers() -> None:
    """A script sees an empty working directory, and the same shmarray as the test itself."""
    source = "import os, shmarray, tests.helpers.tracing as t; print(os.listdir()); print(t.package_directory())"
    assert run_script(source).expect() == f"[]\n{tracing.package_directory()}\n"


def test_a_script_that_forks_beside_a_thread_is_silent_and_other_warnings_are_not() -> None:
    """Python's warning of that depends on when exactly a thread has ended, so it is shown by no script."""
    said = "This process (pid=1) is multi-threaded, use of fork() may lead to deadlocks in the child."
    source = "import sys, warnings; warnings.warn(sys.argv[1], DeprecationWarning); print('ran')"
    assert run_script(source, said).expect() == "ran\n"
    assert "DeprecationWarning: other" in run_script(source, "other").stderr


def test_a_script_may_start_processes_by_spawn() -> None:
    """A script is a real file that a spawned child can import as its main module."""
    source = """
import multiprocessing
def double(x):
    return 2 * x
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [21]))
"""
    assert run_script(source).expect() == "[42]\n"


def test_a_script_past_its_deadline_fails_with_its_output_and_stacks_and_leaves_nothing() -> None:
    """A script that hangs, and what it started, is killed; the failure shows what it said and where it hung."""
    source = """
import subprocess, sys, time
def stuck():
    time.sleep(1000)
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid, flush=True)
stuck()
"""
    with pytest.raises(AssertionError, match="did not end within") as caught:
        run_script(source, timeout=1.5)
    text = str(caught.value)
    assert "in stuck" in text
    pid = int(text.partition("--- stdout\n")[2].splitlines()[0])
    wait_until(lambda: not is_running(pid), 10, "the grandchild survived")


def test_a_process_that_outlives_a_script_and_holds_its_output_is_told_apart() -> None:
    """A script that ended while something it started holds its standard output fails in its own words."""
    source = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
"""
    with pytest.raises(AssertionError, match="ended with 0, but another process holds its output"):
        run_script(source, timeout=1.5)


def test_output_other_than_expected_fails_with_all_that_was_said() -> None:
    """`expect` fails on an exit status or on standard error that was not announced, and shows both."""
    done = run_command([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"])
    with pytest.raises(AssertionError, match=r"(?s)exit status 1.*out.*err"):
        done.expect()
    assert done.expect(returncode=1, stderr="err\n") == "out\n"


def test_a_function_is_run_in_a_fresh_interpreter() -> None:
    """`run_function` calls a function of a test module in a process that is no fork of this one."""
    here = str(os.getpid())
    said = run_function(print_pids, "x").expect().split()
    assert said[0] == "x"
    assert said[1] != here
    assert said[2] == here


def print_pids(word: str) -> None:
    """Say a word, this process and its parent."""
    print(word, os.getpid(), os.getppid())


REPORTING = """
from tests.helpers.processes import report
report("up", {"n": 1})
report(input())
input()
"""


def test_a_child_reports_how_far_it_is_and_can_be_told_to_go_on() -> None:
    """A child's named reports arrive in order with their values; what it is told arrives there."""
    with Child(REPORTING) as child:
        assert child.wait_for("up") == {"n": 1}
        child.tell("further")
        assert child.wait_for("further") is None
        assert child.kill() == (-signal.SIGKILL, "", "")


def test_a_child_that_ends_before_it_reports_fails_the_wait_at_once() -> None:
    """Waiting for a report of a child that died says so with the child's own words, long before the deadline."""
    failure = pytest.raises(AssertionError, match=r"(?s)it has ended; exit status 1.*no such luck")
    with Child("raise SystemExit('no such luck')") as child, failure:
        child.wait_for("up", timeout=100)


def test_a_child_whose_block_was_never_entered_can_be_ended() -> None:
    """`end_all`, which the leak guard calls after a failure, ends a child that its test could not."""
    child = Child(REPORTING)
    child.wait_for("up")
    Child.end_all()
    assert not is_running(child.pid)
    assert leaks.mappings(child.pid) == []


def test_a_child_at_another_point_than_awaited_fails_the_wait() -> None:
    """A report under another name than the awaited one is a failure that names both."""
    with Child(REPORTING) as child, pytest.raises(AssertionError, match="reported 'up' and not 'down'"):
        child.wait_for("down")


def test_leaving_the_block_of_a_child_kills_all_that_it_started() -> None:
    """A child's processes end with its `with` block."""
    source = """
import subprocess, sys
from tests.helpers.processes import report
report("up", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid)
input()
"""
    with Child(source) as child:
        grandchild = child.wait_for("up")
        assert is_running(grandchild)
    assert not is_running(child.pid)
    wait_until(lambda: not is_running(grandchild), 10, "the grandchild survived")


def test_a_forked_child_is_killed_and_reaped() -> None:
    """`kill_and_reap` gives minus the signal's number and leaves no zombie; `reap` gives the exit status."""
    pid = os.fork()
    if not pid:
        signal.pause()
    assert kill_and_reap(pid) == -signal.SIGKILL
    assert pid not in leaks.pids()
    pid = os.fork()
    if not pid:
        os._exit(7)
    assert reap(pid) == 7


def test_waiting_returns_what_became_true_and_fails_with_the_message() -> None:
    """`wait_until` gives the predicate's value, and fails with the caller's words past its deadline."""
    answers = iter([0, None, "", "yes"])
    assert wait_until(lambda: next(answers)) == "yes"
    with pytest.raises(AssertionError, match="nothing came"):
        wait_until(lambda: False, 0.01, lambda: "nothing came")


def test_a_report_outside_a_child_is_refused() -> None:
    """`report` in a process that no test started as a `Child` is an error and no silent loss."""
    with pytest.raises(KeyError):
        report("up")


# leaks


def test_names_in_shared_memory_are_seen() -> None:
    """A file in `/dev/shm` with the prefix is listed; one without it is not."""
    name = _strange_name()
    path = os.path.join(leaks.SHM, name)
    with open(path, "wb"):
        pass
    try:
        assert name in leaks.shm_entries()
        assert name not in leaks.shm_entries("shmarray.other")
    finally:
        os.unlink(path)
    assert name not in leaks.shm_entries()


@pytest.mark.parametrize("how", ["named", "unlinked", "unnamed"])
def test_a_mapping_is_seen_as_long_as_it_lasts(how: str) -> None:
    """A mapped file is listed whether its name is there, was removed, or was given to it after it was made."""
    path = os.path.join(leaks.SHM, _strange_name())
    before = leaks.mappings()
    if how == "unnamed":
        fd = _unnamed_file()
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    else:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.ftruncate(fd, 4096)
    info = os.fstat(fd)
    segment = mmap.mmap(fd, 4096)
    os.close(fd)
    if how == "unlinked":
        os.unlink(path)
    new = [mapping for mapping in leaks.mappings() if mapping not in before]
    assert [(mapping.device, mapping.inode) for mapping in new] == [(info.st_dev, info.st_ino)]
    if how != "unlinked":
        os.unlink(path)
    segment.close()
    assert leaks.mappings() == before


def test_mappings_and_descriptors_of_another_process_are_seen() -> None:
    """Both lists can be had of a process that is not this one."""
    path = os.path.join(leaks.SHM, _strange_name())
    source = f"""
import mmap, os, sys
from tests.helpers.processes import report
fd = os.open({path!r}, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
os.ftruncate(fd, 4096)
kept = mmap.mmap(fd, 4096)
report("up", fd)
input()
"""
    with Child(source) as child:
        fd = child.wait_for("up")
        os.unlink(path)
        assert [mapping.path for mapping in leaks.mappings(child.pid)] == [path]
        assert leaks.mappings(child.pid)[0].deleted
        assert leaks.descriptors(child.pid)[fd] == f"{path} (deleted)"
    assert leaks.mappings(child.pid) == []
    assert leaks.descriptors(child.pid) == {}


def test_a_guardian_is_told_by_its_command_line(tmp_path: Path) -> None:
    """A process that runs a guardian's script is found, with the control file and the owner it was started for."""
    script = tmp_path / "shmarray" / "guardian" / "__main__.py"
    script.parent.mkdir(parents=True)
    script.write_text("print(flush=True); input()")
    command = [sys.executable, "-I", "-S", str(script), "/dev/shm/shmarray.0.x.ctl", "0", "123", "456"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = {guardian.pid: guardian for guardian in leaks.guardians()}
        assert found[process.pid] == (process.pid, command[4], 123)
        assert leaks.is_ours(process.pid)
        process.kill()
    assert process.pid not in {guardian.pid for guardian in leaks.guardians()}


def test_who_reads_the_guardians_file_among_others_is_no_guardian(tmp_path: Path) -> None:
    """A command line with that file, and words behind it that no guardian has: somebody works on this project beside the tests."""
    names = [f"shmarray/guardian/{name}.py" for name in ("__main__", "keeper", "server", "watch")]
    command = [sys.executable, "-c", "input()", *names]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        try:
            wait_until(lambda: leaks.command_line(process.pid) == command)
            assert process.pid not in {guardian.pid for guardian in leaks.guardians()}
        finally:
            process.kill()


def _leave_name(undo: list[Callable[[], object]]) -> str:
    path = os.path.join(leaks.SHM, _strange_name())
    with open(path, "wb"):
        undo.append(lambda: os.unlink(path))
    return f"name {path}"


def _leave_mapping(undo: list[Callable[[], object]]) -> str:
    fd = _unnamed_file()
    undo.append(mmap.mmap(fd, 4096).close)
    os.close(fd)
    return f"mapping of {leaks.SHM}/#"


def _leave_descriptor(undo: list[Callable[[], object]]) -> str:
    fd = _unnamed_file()
    undo.append(lambda: os.close(fd))
    return f"descriptor {fd} -> "


def _leave_child(undo: list[Callable[[], object]]) -> str:
    pid = os.fork()
    if not pid:
        signal.pause()
    undo.append(lambda: kill_and_reap(pid))
    return f"process {pid}: "


def _leave_zombie(undo: list[Callable[[], object]]) -> str:
    pid = os.fork()
    if not pid:
        os._exit(0)
    undo.append(lambda: reap(pid))
    wait_until(lambda: not is_running(pid), 10)
    return f"process {pid}: (ended, not reaped)"


def _leave_worker_of_the_fork_server(undo: list[Callable[[], object]]) -> str:
    process = multiprocessing.get_context("forkserver").Process(target=signal.pause)
    process.start()
    undo += [process.close, process.join, process.kill]
    return f"process {process.pid}: "


_LEAVE = [
    _leave_name,
    _leave_mapping,
    _leave_descriptor,
    _leave_child,
    _leave_zombie,
    _leave_worker_of_the_fork_server,
]


@pytest.mark.parametrize("leave", _LEAVE, ids=lambda function: function.__name__[1:])
def test_the_leak_guard_names_what_was_left(leave: Callable[[list[Callable[[], object]]], str]) -> None:
    """A name, mapping, descriptor or process left behind is listed, and is not once it has been put away."""
    before = leaks.Look.now()
    undo: list[Callable[[], object]] = []
    try:
        expected = leave(undo)
        left = leaks.Look.now().leaked_since(before)
        assert any(line.startswith(expected) for line in left), left
    finally:
        for step in reversed(undo):
            step()
    assert leaks.Look.now().leaked_since(before) == []


LEAKY = """
import mmap, os, pathlib, subprocess, sys
kept = []

def made():
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, 4096)
    segment = mmap.mmap(fd, 4096)
    os.close(fd)
    return segment

def test_clean():
    made()

def test_leaks():
    kept.append(made())

def test_fails():
    kept.append(made())
    assert not kept

def test_that_was_guarded(tmp_path):
    script = tmp_path / "shmarray" / "guardian" / "__main__.py"
    script.parent.mkdir(parents=True)
    script.write_text("import os, select; select.select([os.pidfd_open(os.getppid())], [], [], 60)")
    kept.append(subprocess.Popen([sys.executable, str(script), "/dev/shm/shmarray.0.gone.ctl", "0", "1", "2"]))
"""

IMPATIENT = """
import tests.conftest
from tests.conftest import *
from tests.conftest import _leak_guard, _standing_helpers
tests.conftest._DEADLINE = 0.2
"""


def test_a_test_that_leaks_fails(tmp_path: Path) -> None:
    """The guard is in force: a test that leaves a mapping fails, one that puts it away passes, one that failed fails once.

    A guardian whose store is gone may end later, but not too late.
    """
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    (tmp_path / "conftest.py").write_text(IMPATIENT)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += [f"--basetemp={tmp_path / 'inner'}", str(tmp_path)]
    done = run_command(command, cwd=tmp_path, timeout=60)
    assert "1 failed, 3 passed, 2 errors" in done.stdout, done.describe()
    assert "ERROR test_leaky.py::test_leaks - AssertionError: the test left behind:" in done.stdout, done.describe()
    late = "AssertionError: the guardian of a store that test_leaky.py::test_that_was_guarded had runs on"
    assert late in done.stdout, done.describe()


def test_a_store_of_another_run_is_no_leak_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a store that a process outside this run maps are left out; those of a process of this run are not."""
    entry = f"shmarray.0.{os.urandom(8).hex()}.ctl"
    source = f"""
import mmap, os
from tests.helpers.processes import report
fd = os.open("/dev/shm/{entry}", os.O_CREAT | os.O_RDWR, 0o600)
os.ftruncate(fd, 4096)
kept = mmap.mmap(fd, 4096)
report("up")
input()
"""
    try:
        with Child(source) as ours:
            ours.wait_for("up")
            assert leaks.foreign_stores({entry}) == set()
            monkeypatch.setattr(leaks, "is_ours", lambda pid: pid != ours.pid)
            assert leaks.foreign_stores({entry}) == {entry}
    finally:
        os.unlink(os.path.join(leaks.SHM, entry))


# forks


def test_memory_in_large_pages_holds_what_it_held() -> None:
    """What this process has in its memory is the same after that was put into large pages, which a fork copies faster."""
    content = os.urandom(1 << 20) * 8
    with mmap.mmap(-1, len(content), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = content
        forks.make_cheap()  # where the kernel has large pages, and one is free
        assert memory[:] == content


# tracing


STEPS = """
def steps():
    done = []
    done.append(1)
    for _ in range(3):
        done.append(2)
    return len(done)
"""


@pytest.fixture
def steps(tmp_path: Path) -> Callable[[], int]:
    """A function in a file of its own that runs ten lines."""
    path = tmp_path / "steps.py"
    path.write_text(STEPS)
    names: dict[str, Any] = {}
    exec(compile(STEPS, str(path), "exec"), names)  # noqa: S102  its file name is the point
    function: Callable[[], int] = names["steps"]
    return function


def _in_steps(filename: str) -> bool:
    return filename.endswith("steps.py")


@pytest.mark.parametrize("opcodes", [False, True])
def test_events_are_counted_only_in_the_chosen_files(steps: Callable[[], int], *, opcodes: bool) -> None:
    """The number of lines (or opcodes) of a function is exact, repeatable, and zero for files that were not chosen."""
    counts = {tracing.count_events(steps, _in_steps, opcodes=opcodes) for _ in range(3)}
    assert len(counts) == 1
    count = counts.pop()
    assert count > 30 if opcodes else count == 10
    assert tracing.count_events(steps, lambda _: False, opcodes=opcodes) == 0
    assert sys.gettrace() is None


@pytest.mark.parametrize("opcodes", [False, True])
def test_a_process_is_killed_at_every_step_and_survives_the_step_after_the_last(
    steps: Callable[[], int], *, opcodes: bool
) -> None:
    """For each n up to the count the process dies of SIGKILL; for the next one it runs to its end."""
    count = tracing.count_events(steps, _in_steps, opcodes=opcodes)
    ends = []
    for n in range(1, count + 2):
        pid = os.fork()
        if not pid:
            with tracing.kill_at(n, _in_steps, opcodes=opcodes):
                steps()
            os._exit(0)
        ends.append(reap(pid))
    assert ends == [-signal.SIGKILL] * count + [0]


def test_a_thread_started_under_the_trace_is_traced(steps: Callable[[], int]) -> None:
    """Steps of threads started from now on count; those after the end of the trace do not."""

    def in_thread() -> None:
        thread = threading.Thread(target=steps)
        thread.start()
        thread.join()

    assert tracing.count_events(in_thread, _in_steps) == 10
    with tracing.kill_at(1, _in_steps) as tracer:
        tracer.stop()
        in_thread()


def test_the_package_is_what_is_traced_by_default() -> None:
    """Without a choice of files, the package's own lines count and the test's do not."""
    memory = mmap.mmap(-1, 4096)
    assert tracing.count_events(lambda: memory[0]) == 0
    assert tracing.count_events(lambda: words.load(memory, 0)) > 0
    assert tracing.in_package(str(words.__file__))
    assert not tracing.in_package(__file__)


FLOOR = """
import ctypes, errno, fcntl, mmap, os

libc = ctypes.CDLL(None, use_errno=True)

class Segment(mmap.mmap):
    pass

def make(path):
    fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(fd, 0, 4096)
        fcntl.flock(fd, fcntl.LOCK_SH)
        segment = Segment(fd, 4096)
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)
    return segment

def remove(path):
    os.unlink(path)

def pid():
    with open("/proc/self/stat") as file:
        return int(file.read().split()[0])

def sync():
    if libc.syncfs(1) < 0 and ctypes.get_errno() not in (errno.EINVAL, errno.EBADF):
        raise OSError(ctypes.get_errno(), "syncfs")
"""


@pytest.fixture
def floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A floor of another package that talks to the kernel in each of the ways there are."""
    package = tmp_path / "floor_under_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "files.py").write_text(FLOOR)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("floor_under_test.files")
    for name in ("floor_under_test", "floor_under_test.files"):
        sys.modules.pop(name)


def _cycle(floor: Any) -> None:
    path = os.path.join(leaks.SHM, _strange_name())
    assert os.listdir(leaks.SHM) is not None  # a call to the kernel, but not of the floor
    try:
        segment = floor.make(path)
        assert type(segment) is floor.Segment
        segment.close()
        assert floor.pid() == os.getpid()
        floor.sync()
    finally:
        if os.path.exists(path):
            floor.remove(path)


CALLS = [
    "os.open in files.make",
    "os.posix_fallocate in files.make",
    "fcntl.flock in files.make",
    "mmap.mmap in files.make",
    "os.link in files.make",
    "os.close in files.make",
    "open in files.pid",
    "libc.syncfs in files.sync",
    "os.unlink in files.remove",
]


def test_calls_to_the_kernel_are_listed_in_order(floor: Any) -> None:
    """Every call of the floor that talks to the kernel is seen, with the function that makes it, and nobody else's."""
    calls = tracing.count_calls(lambda: _cycle(floor), "floor_under_test")
    assert [str(call) for call in calls] == CALLS


@pytest.mark.parametrize("n", range(1, len(CALLS) + 1), ids=lambda n: CALLS[n - 1].replace(" ", "-"))
def test_each_call_to_the_kernel_can_be_made_to_fail(floor: Any, n: int) -> None:
    """The n-th call raises the chosen error and nothing leaks by that; afterwards nothing is replaced any more."""
    before = dict(vars(floor))
    with pytest.raises(OSError, match=r".") as caught, tracing.fail_at(n, errno.EIO, "floor_under_test") as calls:
        _cycle(floor)
    assert caught.value.errno == errno.EIO
    assert str(calls[n - 1]) == CALLS[n - 1]
    if CALLS[n - 1].startswith("os.unlink"):
        for name in leaks.shm_entries(f"shmarray.test.{os.getpid()}."):
            os.unlink(os.path.join(leaks.SHM, name))
    assert dict(vars(floor)) == before
    assert "__new__" not in vars(floor.Segment)
    _cycle(floor)


def test_a_failure_may_be_any_exception_or_death(floor: Any) -> None:
    """`fail_at` raises what a factory makes of the call, or ends the process before it."""

    def interrupted(call: tracing.Call) -> BaseException:
        return KeyboardInterrupt(str(call))

    with (
        pytest.raises(KeyboardInterrupt, match=r"open in files\.pid"),
        tracing.fail_at(1, interrupted, floor.__package__),
    ):
        floor.pid()
    pid = os.fork()
    if not pid:
        with tracing.fail_at(1, tracing.die, floor.__package__):
            floor.pid()
        os._exit(0)
    assert reap(pid) == -signal.SIGKILL


def test_the_floor_of_the_package_is_what_fails_by_default() -> None:
    """Without a choice of package, calls written in `shmarray._os` count."""
    assert tracing.count_calls(lambda: processes.start_time(os.getpid())) == [("open", "processes._state")]
    with pytest.raises(OSError, match=r"."), tracing.fail_at(1, errno.EIO):
        processes.start_time(os.getpid())
    assert processes.start_time(os.getpid()) > 0


def test_a_start_method_gives_the_context_of_that_name(start_method: SpawnContext) -> None:
    """A child can be started by each of the three start methods, and ends before the test does."""
    reader, writer = start_method.Pipe(duplex=False)
    process = start_method.Process(target=_send_pid, args=(writer,))
    process.start()
    assert select.select([reader], [], [], 30)[0]
    assert reader.recv() == process.pid
    process.join()
    process.close()
    reader.close()
    writer.close()


def _send_pid(writer: Any) -> None:
    writer.send(os.getpid())
