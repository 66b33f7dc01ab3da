"""Traps of the resource tracker and of managers, by their numbers: somebody else's clean-up, or one's own at the wrong time."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import shmarray as sa
from shmarray._os import segments
from shmarray.guardian import launch
from tests.helpers import leaks
from tests.helpers.processes import Child, environment, is_running, reap, run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import BaseContext

NAME = f"test-traps-{os.getpid()}"


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store with a name, and an array in it."""
    with sa.Store(NAME) as opened:
        opened["x"] = np.arange(5.0)
        yield opened


def _entries(store: sa.Store) -> set[str]:
    prefix = f"shmarray.{os.geteuid()}.{store.id}."
    return {entry.removeprefix(prefix) for entry in leaks.shm_entries(prefix)}


def _make_and_end(store: sa.Store) -> None:
    store["made"] = np.full(3, 4.0)


def test_who_attached_takes_nothing_away_by_ending(store: sa.Store) -> None:
    """Trap 1: an unrelated process attaches by name and ends; its end destroys nothing."""
    source = "import sys, shmarray; print(shmarray.connect(sys.argv[1])['x'].sum())"
    assert run_script(source, NAME).expect() == "10.0\n"
    assert store["x"].sum() == 10
    assert _entries(store) == {"ctl", "n.x"}


@pytest.mark.core
def test_no_tracker_is_started_and_no_child() -> None:
    """Traps 2, 10, 12: no resource tracker, no child to wait for, nothing registered anywhere, in owner and worker."""
    source = """
import os
from multiprocessing import resource_tracker
import numpy, shmarray
with shmarray.Store() as store:
    store["x"] = numpy.ones(3)
    held = store.zeros(3)
    assert store.guardian_pid
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child")
    pid = os.fork()
    if pid == 0:
        store["y"] = store["x"] + 1
        os._exit(resource_tracker._resource_tracker._fd is not None)
    assert os.waitpid(pid, 0)[1] == 0
print(resource_tracker._resource_tracker._fd)
"""
    assert run_script(source, flags=("-W", "ignore")).expect() == "no child\nNone\n"


def test_what_a_child_made_stays_when_it_ends(store: sa.Store, start_method: BaseContext) -> None:
    """Trap 3: a child of any kind publishes and returns; the array is there for the others."""
    child = start_method.Process(target=_make_and_end, args=(store,))  # type: ignore[attr-defined]
    child.start()
    child.join(30)
    assert child.exitcode == 0
    child.close()
    assert store["made"].sum() == 12


def test_a_killed_worker_of_a_long_service_leaks_nothing_while_the_service_lives(store: sa.Store) -> None:
    """Trap 4: what it alone held is freed while its parent goes on, and not only when the last of the family ends."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = [store.zeros(1000) for _ in range(5)]
        os.write(writer, b"x" * len(held))
        signal.pause()
    os.read(reader, 5)
    assert len(_entries(store)) == 7
    os.kill(pid, signal.SIGKILL)
    reap(pid)
    wait_until(lambda: _entries(store) == {"ctl", "n.x"}, message="what the killed worker held is still there")
    os.close(reader)
    os.close(writer)


def test_death_while_a_block_is_made_leaves_nothing(store: sa.Store) -> None:
    """Trap 6: between reserving and publishing a block has no name: SIGKILL there gives the memory back."""
    free = os.statvfs(leaks.SHM).f_bavail
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        fd, temporary = segments.create_leased(leaks.SHM, lambda: "unused")
        segments.reserve(fd, 0, 64 << 20)
        os.write(writer, b"y" if temporary is None else b"n")
        signal.pause()
    assert os.read(reader, 1) == b"y"
    assert _entries(store) == {"ctl", "n.x"}
    assert free - os.statvfs(leaks.SHM).f_bavail > (32 << 20) // segments.PAGE
    os.kill(pid, signal.SIGKILL)
    reap(pid)
    wait_until(lambda: free - os.statvfs(leaks.SHM).f_bavail < (32 << 20) // segments.PAGE)
    os.close(reader)
    os.close(writer)


def test_a_failed_attach_takes_nothing_away(store: sa.Store) -> None:
    """Trap 7: no descriptor is left for attaching; the victim is still there, whole, and can be attached after."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(sa.StoreFullError, match="descriptor"):
            store["x"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert _entries(store) == {"ctl", "n.x"}
    assert store["x"].sum() == 10


@pytest.mark.parametrize("name", ["a:b", "ä/ö", "名前", "/abc", "//abc", "a b", "%", "x" * 255, "..", "-"])
def test_names_that_the_tracker_cannot_bear_are_names_like_any_other(name: str) -> None:
    """Trap 8: colons, slashes, other scripts, length: made, found by another process, and gone at the end."""
    with sa.Store(f"{NAME}:{name[:100]}") as store:
        store[name] = np.ones(3)
        source = "import sys, shmarray; print(shmarray.connect(sys.argv[1])[sys.argv[2]].sum())"
        assert run_script(source, store.name or "", name).expect() == "3.0\n"
        assert list(store) == [name]
    assert _entries(store) == set()


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "", "\ud800"])
def test_names_that_cannot_be_are_refused_before_anything_is_made(store: sa.Store, name: str) -> None:
    """Trap 8: a typed error first, and nothing half-made after."""
    for make in (lambda: store.zeros(3, name=name), lambda: store.put(np.ones(3), name=name), lambda: sa.Store(name)):
        with pytest.raises(sa.ArrayNameError):
            make()
    with pytest.raises(sa.ArrayNameError):
        store[name] = np.ones(3)
    assert _entries(store) == {"ctl", "n.x"}


def test_a_handler_or_a_finalizer_in_the_middle_of_our_code_does_not_lock_up() -> None:
    """Trap 9: a signal handler, and a destructor run by the collector, use the store while the main program is inside it."""
    source = """
import faulthandler, gc, signal
import numpy, pickle, shmarray
faulthandler.dump_traceback_later(20, exit=True)
gc.set_threshold(5)
class Cycle:
    def __init__(self):
        self.me, self.array = self, store.ones(10)
    def __del__(self):
        store["gone"] = self.array
seen = 0
def handler(number, frame):
    global seen
    seen += 1
    store["x"] = numpy.ones(3)
    pickle.loads(pickle.dumps(store.ones(3)))
    del store["x"]
with shmarray.Store() as store:
    signal.signal(signal.SIGALRM, handler)
    for turn in range(400):
        signal.setitimer(signal.ITIMER_REAL, 1e-5 + turn % 20 * 1e-4)
        Cycle()
        store["y"] = numpy.ones(3)
        held = store.zeros(3)
        store.check()
        if turn % 50 == 0:
            store.stats()
    signal.setitimer(signal.ITIMER_REAL, 0)
    del held
    gc.collect()
    print(seen > 100, sorted(store), store.check(), store.stats().anonymous)
"""
    assert run_script(source, timeout=40).expect() == "True ['gone', 'y'] [] 0\n"


def test_a_pickled_copy_owns_no_more_than_its_original(store: sa.Store) -> None:
    """Trap 11: loading and dropping handles, also in a process that then ends, removes no named array."""
    handle = pickle.dumps(store["x"])
    source = "import pickle, sys; print(pickle.load(sys.stdin.buffer).sum())"
    assert run_script(source, stdin=handle).expect() == "10.0\n"
    del handle
    gc.collect()
    assert _entries(store) == {"ctl", "n.x"}


def test_shared_memory_of_the_standard_library_can_look_in(store: sa.Store) -> None:
    """The block is where `SharedMemory` finds it, data first; its tracker, which then unlinks it, costs others no view."""
    source = """
import sys
from multiprocessing import shared_memory
import numpy
block = shared_memory.SharedMemory(sys.argv[1])
print(numpy.frombuffer(block.buf, float, 5).sum())
"""
    view = store["x"]
    said = run_script(source, view.block_name or "", flags=("-W", "ignore"))
    assert said.stdout == "10.0\n"
    assert view.sum() == 10


# managers


def test_the_guardian_outlives_nobody() -> None:
    """Traps 33, 34: its owner is killed while a forked child of the owner lives: within a second all names are gone.

    With the child goes the guardian.
    """
    source = """
import os, signal
import numpy, shmarray
from tests.helpers.processes import report
store = shmarray.Store()
store["x"] = numpy.ones(3)
held = store.ones(3)
pid = os.fork()
if pid == 0:
    signal.pause()
report("ready", [store.id, store.guardian_pid, pid])
input()
"""
    with Child(source) as owner:
        identity, guardian, child = owner.wait_for("ready")
        assert is_running(guardian)
        owner.kill()
        prefix = f"shmarray.{os.geteuid()}.{identity}."
        wait_until(
            lambda: leaks.shm_entries(prefix) <= {prefix + "ctl"},
            1.5,
            "names are left a second after the owner's death",
        )
        assert is_running(child)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not is_running(guardian) and not leaks.shm_entries(prefix))


def test_a_block_that_is_already_gone_stops_no_clean_up() -> None:
    """Trap 35: somebody removed files by hand; closing removes the rest, says nothing and waits for nothing."""
    with sa.Store() as store:
        for number in range(6):
            store[f"{number}"] = np.ones(3)
        prefix = f"{leaks.SHM}/shmarray.{os.geteuid()}.{store.id}."
        os.unlink(f"{prefix}n.2")
        os.unlink(f"{prefix}n.4")
        assert len(store) == 4
    assert _entries(store) == set()


def test_a_stopped_guardian_holds_up_nobody() -> None:
    """Trap 37: SIGSTOP of the guardian delays neither making, attaching, dropping nor closing; woken up it ends."""
    store = sa.Store()
    guardian = store.guardian_pid
    assert guardian
    os.kill(guardian, signal.SIGSTOP)
    try:
        store["x"] = np.ones(3)
        pickle.loads(pickle.dumps(store.ones(3)))
        del store["x"]
        assert store.check() == []
        store.close()
        assert _entries(store) == set()
    finally:
        os.kill(guardian, signal.SIGCONT)
    wait_until(lambda: not is_running(guardian))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_stop_does_not_stop_the_guardian_before_its_owner(number: signal.Signals) -> None:
    """Trap 37: a stop of the whole service reaches the guardian too; while the owner lives it stays and does its work."""
    source = """
import numpy, shmarray
from tests.helpers.processes import report
store = shmarray.Store()
store["x"] = numpy.ones(3)
report("ready", [store.id, store.guardian_pid])
input()
"""
    with Child(source) as owner:
        identity, guardian = owner.wait_for("ready")
        os.kill(guardian, number)
        owner.kill()
        prefix = f"shmarray.{os.geteuid()}.{identity}."
        wait_until(lambda: not is_running(guardian) and not leaks.shm_entries(prefix))


@pytest.mark.parametrize("how", ["absent", "fails", "says nothing"])
def test_a_guardian_that_cannot_start_is_a_warning_and_no_more(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 38: a warning that says what it means; the store works, and closing leaves nothing."""
    command = {"absent": ["/nonexistent/python"], "fails": ["/bin/false"], "says nothing": ["/bin/true"]}[how]
    monkeypatch.setattr(launch, "command", lambda member: command)
    with pytest.warns(sa.GuardianWarning, match="could not be started"):
        store = sa.Store()
    store["x"] = np.ones(3)
    assert store.guardian_pid is None
    assert store["x"].sum() == 3
    store.close()
    assert _entries(store) == set()


def test_the_guardian_inherits_nothing() -> None:
    """Trap 39: none of the user's descriptors, even inheritable ones, none of his mappings, no NumPy; little memory."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with sa.Store() as other, sa.Store() as store:
        held = other.ones(3)
        guardian = store.guardian_pid
        assert guardian
        # It holds its control file open and watches; then it is at rest.
        wait_until(lambda: any(path.endswith(f"{store.id}.ctl") for path in leaks.descriptors(guardian).values()))
        open_files = leaks.descriptors(guardian)
        assert not any(
            path.startswith("pipe:") and path in leaks.descriptors().values() for path in open_files.values()
        )
        assert [path for path in open_files.values() if "shmarray." in path and store.id not in path] == []
        assert {mapping.inode for mapping in leaks.mappings(guardian)} <= {
            os.stat(f"{leaks.SHM}/shmarray.{os.geteuid()}.{store.id}.ctl").st_ino
        }
        with open(f"/proc/{guardian}/maps", encoding="utf-8") as file:
            assert "numpy" not in file.read()
        assert os.getsid(guardian) not in (os.getsid(0), 0)
        del held
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("way", ["script", "stdin", "-c", "interactive"])
def test_no_main_guard_is_needed(way: str) -> None:
    """Trap 40: a program without `if __name__ == "__main__"`, from a file, standard input, the command line or a prompt."""
    source = "import numpy, shmarray\nstore = shmarray.Store()\nstore['x'] = numpy.ones(3)\nprint(store['x'].sum())\n"
    source += "assert store.guardian_pid\n"
    if way == "script":
        said = run_script(source).expect()
    elif way == "-c":
        said = _run([sys.executable, "-c", source])
    else:
        said = _run([sys.executable, *(["-i", "-q"] if way == "interactive" else []), "-"], source)
    assert said == "3.0\n"


def _run(command: list[str], given: str = "") -> str:
    """Run a program with its output; prompts on standard error are what an interactive one is expected to write."""
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=30, check=True, env=environment()
    )
    assert done.stderr.strip(">. \n") == ""
    return done.stdout


def test_the_host_serves_whatever_is_registered_with_the_standard_managers() -> None:
    """Trap 41: a program that registers types with the base classes neither changes our registry nor loses its own."""
    source = """
from multiprocessing.managers import SharedMemoryManager, SyncManager
import shmarray
SharedMemoryManager.register("mine", dict)
SyncManager.register("other", dict)
with shmarray.Store() as store:
    manager = store.manager()
    shared = manager.dict()
    shared["a"] = 1
    print(shared.copy(), hasattr(SyncManager, "other"), manager.list([1])[:])
"""
    assert run_script(source).expect() == "{'a': 1} True [1]\n"


def test_a_long_directory_for_temporary_files_does_no_harm(tmp_path: object) -> None:
    """Trap 46: addresses of guardian and host are no paths, so no TMPDIR is too long for it, and no file of it is left."""
    long = os.path.join(str(tmp_path), *["x" * 60] * 3)
    os.makedirs(long)
    source = "import shmarray\nwith shmarray.Store() as store:\n    print(store.manager().list([7])[:])\n"
    assert run_script(source, env={"TMPDIR": long}).expect() == "[7]\n"
    assert os.listdir(long) == []


def test_a_store_can_be_opened_in_a_daemonic_worker(start_method: BaseContext) -> None:
    """Trap 48: in a worker of a `Pool`, which may have no children, with its guardian and its host."""
    with start_method.Pool(1) as pool:
        assert pool.apply(_open_in_worker) == (3.0, True, [7])
        pool.close()
        pool.join()


def _open_in_worker() -> tuple[float, bool, list[int]]:
    with sa.Store() as store:
        store["x"] = np.ones(3)
        return float(store["x"].sum()), bool(store.guardian_pid), store.manager().list([7])[:]


@pytest.mark.parametrize("ready", [errno.ENOSYS], ids=errno.errorcode.get)
def test_without_a_way_to_watch_a_process_the_owners_mark_has_to_do(ready: int) -> None:
    """Trap 34: on a kernel without pidfd the guardian still finds the owner's death, by the mark that its mapping kept."""
    source = f"""
import os, sys
sys.argv[1:] = [sys.argv[1], *sys.argv[2:]]
from shmarray._os import watches
def refuse(pid, start):
    raise OSError({ready}, "no pidfd")
watches.death_of = refuse
from shmarray.guardian import watch
watch.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""
    owner_source = """
import os
from shmarray import founding, reaper
from shmarray.guardian import launch
from tests.helpers.processes import report
member = founding.found(None, "/dev/shm", None)
report("ready", launch.command(member)[-4:])
input()
"""
    with Child(owner_source) as owner:
        arguments: list[str] = owner.wait_for("ready")
        guardian = subprocess.Popen([sys.executable, "-c", source, *arguments], env=environment())
        try:
            wait_until(lambda: any("ctl" in path for path in leaks.descriptors(guardian.pid).values()))
            owner.kill()
            assert guardian.wait(20) == 0
        finally:
            guardian.kill()
            guardian.wait()
        assert not os.path.exists(arguments[0])
