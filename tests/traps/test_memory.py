"""Traps of SharedMemory, mmap and NumPy, by their numbers: views that dangle, closes that fail, names that mislead, forks."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._os import segments, words
from tests.helpers import leaks
from tests.helpers.processes import Child, environment, kill_and_reap, reap, run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_A_SMALL_MEMORY = 'mount -t tmpfs -o size=2m,mode=1777 tmpfs /dev/shm && exec "$@"'


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store with an array in it."""
    with sa.Store() as opened:
        opened["x"] = np.arange(5.0)
        yield opened


def _entries(store: sa.Store) -> set[str]:
    prefix = f"shmarray.{os.geteuid()}.{store.id}."
    return {entry.removeprefix(prefix) for entry in leaks.shm_entries(prefix)}


# views


def test_a_view_is_good_after_everything_else_is_gone() -> None:
    """Trap 13: after close, after the array, the store and every name are gone, at the end of the interpreter: no crash."""
    source = """
import gc
import numpy, shmarray
store = shmarray.Store()
named = store.put(numpy.arange(1000.0), name="x")
views = [named[::2], numpy.asarray(named), memoryview(named), store.ones(10)[3:], named.T.view(numpy.ndarray)]
store.close()
del store, named
gc.collect()
views[0][:] = 7
print(views[0].sum(), views[1][1], views[2][2], views[3].sum())
class Late:
    def __init__(self, view): self.view = view
    def __del__(self): self.view[:] = 1
late = Late(views[0])
late.me = late
"""
    assert run_script(source).expect() == "3500.0 1.0 7.0 7.0\n"


def test_closing_never_fails_because_of_views(store: sa.Store) -> None:
    """Traps 14, 15: with exports of every kind alive `close` succeeds, twice, and the views live on."""
    array = store["x"]
    view, exported = array[1:], store.ones(3).data
    store.close()
    store.close()
    assert (view.sum(), exported[0]) == (10, 1)
    del array
    gc.collect()
    view[0] = 5
    assert view[0] == 5


@pytest.mark.core
def test_dropping_is_silent_and_leaves_no_descriptor() -> None:
    """Trap 15: no destructor speaks up, whatever the order in which things are dropped or left to the interpreter's end."""
    source = """
import gc, os
import numpy, shmarray
before = len(os.listdir("/proc/self/fd"))
store = shmarray.Store()
a = store.zeros(1000)
b, m = a[1:], memoryview(a)
c = numpy.frombuffer(m, "u1")
del a
store.close()
del b
gc.collect()
print(len(os.listdir("/proc/self/fd")) - before, c.sum())
"""
    assert run_script(source, flags=("-X", "dev")).expect() == "0 0\n"


def test_blocks_cost_no_descriptor_each(store: sa.Store) -> None:
    """Trap 16: hundreds of arrays made, attached and loaded under a limit of a few dozen descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(leaks.descriptors()) + 4, hard))
    try:
        made = [store.full(10, number) for number in range(300)]
        loaded = [pickle.loads(pickle.dumps(array)) for array in made]
        for number in range(100):
            store[f"{number}"] = made[number]
        attached = [store[f"{number}"] for number in range(100)]
        assert sum(int(array[0]) for array in loaded) == 300 * 299 // 2
        assert sum(int(array[0]) for array in attached) == 100 * 99 // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give itself a small /dev/shm")
def test_a_full_memory_is_an_exception_and_no_signal() -> None:
    """Trap 17: in a shared memory of 2 MiB asking for more is refused, and what was given can be written, whoever fills the rest."""
    source = """
import os
import numpy, shmarray
with shmarray.Store() as store:
    kept = store.ones(1 << 17)
    for ask in (lambda: store.zeros(1 << 20), lambda: store.put(numpy.ones(1 << 20)), lambda: store.zeros((1 << 17) + 1)):
        try:
            ask()
        except shmarray.StoreFullError as error:
            print(error.asked > error.free, isinstance(error, MemoryError))
    with open("/dev/shm/filler", "wb") as file:
        try:
            file.write(bytes(4 << 20))
        except OSError:
            pass
    kept[:] = 2
    print(kept.sum() == 2 << 17, sorted(n.split(".")[3] for n in os.listdir("/dev/shm") if n != "filler"))
print(os.listdir("/dev/shm"))
"""
    command = ["unshare", "-m", "sh", "-c", IN_A_SMALL_MEMORY, "sh", sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    if done.returncode and "unshare" in done.stderr + done.stdout:
        pytest.skip("this place does not allow a mount namespace")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "True True\n" * 3 + "True ['a', 'ctl']\n['filler']\n"


def test_a_program_with_a_fast_timer_gets_its_memory(store: sa.Store) -> None:
    """Trap 18: signals all the time do not make the reservation start again for ever."""
    ticks = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: ticks.append(number))
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    try:
        assert store.ones(16 << 20, "u1")[-1] == 1
        assert store.put(np.ones(16 << 20, "u1"))[-1] == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert ticks


def test_whoever_finds_a_name_finds_it_whole(store: sa.Store) -> None:
    """Trap 19: an attacher that races the maker finds nothing or the finished array, never a size of 0, never zeros."""
    source = """
import sys, pickle
import numpy, shmarray
from tests.helpers.processes import report
store = pickle.loads(bytes.fromhex(sys.argv[1]))
report("ready")
seen = set()
while True:
    try:
        array = store["made"]
    except shmarray.ArrayNotFoundError:
        if "end" in store:
            break
        continue
    seen |= {(array.shape, float(array.min()), float(array.max()))}
report("seen", sorted(seen))
"""
    with Child(source, pickle.dumps(store).hex()) as child:
        child.wait_for("ready")
        for turn in range(300):
            if turn % 2:
                store.full(2000, 3.0, name="made")
            else:
                store.put(np.full((2000, 2), 3.0)[:, 0], name="made")
            del store["made"]
        store["end"] = np.zeros(1)
        assert child.wait_for("seen") in ([[[2000], 3.0, 3.0]], [])
        child.finish().expect()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 3000, 3520, 3584, 3585, 4095, 4096, 4097, 8191])
def test_an_array_is_as_large_as_it_was_asked_to_be(store: sa.Store, size: int) -> None:
    """Trap 20: to the byte, here and where it is attached, whatever pages the file has."""
    array = store.put(np.arange(size, dtype="u1"), name="made")
    other = pickle.loads(pickle.dumps(array))
    assert array.nbytes == other.nbytes == store["made"].nbytes == size
    assert (other == np.arange(size).astype("u1")).all()


@pytest.mark.parametrize("shape", [0, (0,), (3, 0), (0, 1 << 40), (2, 0, 5)])
def test_an_array_without_elements_is_an_array(store: sa.Store, shape: Any) -> None:
    """Trap 21: made, put, named, handed over, attached and deleted like any other."""
    for made in (store.zeros(shape), store.put(np.zeros(shape, "i2")), store.empty(shape, "S5", name="made")):
        again = pickle.loads(pickle.dumps(made))
        assert again.shape == made.shape == np.zeros(shape).shape
        assert (again.size, again.dtype) == (0, made.dtype)
        assert again.is_shared
    assert store["made"].dtype == "S5"
    del store["made"]


def test_files_are_their_users_alone(store: sa.Store) -> None:
    """Trap 22: what others could truncate under a reader they cannot open: every file has mode 0600, whatever the umask."""
    old = os.umask(0)
    try:
        with sa.Store(f"test-traps-{os.getpid()}") as other:
            other["x"] = np.ones(3)
            pickle.dumps(held := other.ones(3))
            prefix = f"shmarray.{os.geteuid()}.{other.id}."
            paths = [os.path.join(leaks.SHM, entry) for entry in leaks.shm_entries(prefix)]
            assert len(paths) == 4
            assert {stat.S_IMODE(os.lstat(path).st_mode) for path in paths} == {0o600}
            del held
    finally:
        os.umask(old)


# names that are used again


def test_a_stale_handle_never_reads_another_array(store: sa.Store) -> None:
    """Trap 23: a handle to an array that was deleted, replaced or made anew is refused.

    It is never answered with the bytes of the new one.
    """
    stale = []
    for turn in range(4):
        store["x"] = np.full(5, float(turn))
        stale.append(pickle.dumps(store["x"]))
        if turn % 2:
            del store["x"]
    store["x"] = np.full(5, 9.0)
    for handle in stale:
        with pytest.raises(sa.ArrayNotFoundError, match="replaced"):
            pickle.loads(handle)
    assert pickle.loads(pickle.dumps(store["x"])).sum() == 45


def test_a_handle_of_an_earlier_store_of_the_same_name_is_refused() -> None:
    """Trap 23: the store's identity is 64 random bits, not its name."""
    name = f"test-traps-{os.getpid()}"
    with sa.Store(name) as first:
        first["x"] = np.ones(3)
        handle, opened = pickle.dumps(first["x"]), pickle.dumps(first)
    with sa.Store(name) as second:
        second["x"] = np.zeros(3)
        for old in (handle, opened):
            with pytest.raises(sa.StoreClosedError):
                pickle.loads(old)


# forks


def test_a_forked_childs_finalizers_take_nothing_from_its_parent(store: sa.Store) -> None:
    """Traps 24, 25: the child collects inherited arrays and stores, and runs every exit handler: the parent loses nothing."""
    held = store.ones(3)
    handle = pickle.dumps(held)
    before = _entries(store)
    for way in ("collect", "sys.exit", "os._exit"):
        pid = os.fork()
        if pid == 0:
            try:
                if way == "collect":
                    store.close()
                    del store, held
                    gc.collect()
                if way == "sys.exit":
                    import multiprocessing.util

                    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
            finally:
                os._exit(0)
        assert reap(pid) == 0
        assert _entries(store) == before, way
    assert store["x"].sum() == 10
    assert pickle.loads(handle).sum() == 3


@pytest.mark.core
def test_an_interpreter_that_forked_and_exits_properly_in_the_child_goes_on_in_the_parent() -> None:
    """Traps 24, 51: `os.fork` and `sys.exit` in the child, with all its exit handlers: store and guardian go on."""
    source = """
import os, sys
import numpy, shmarray
store = shmarray.Store()
store["x"] = numpy.ones(3)
held = store.ones(4)
if os.fork() == 0:
    sys.exit(0)
print(os.wait()[1], store["x"].sum(), held.sum(), store.stats().anonymous, bool(store.guardian_pid), flush=True)
"""
    assert run_script(source, flags=("-W", "ignore")).expect() == "0 3.0 4.0 1 True\n"


def test_an_inherited_array_is_a_live_one_and_no_lock_of_the_parent_is_dropped(store: sa.Store) -> None:
    """Trap 26: parent drops, child still reads; child drops, parent still holds; the last of both frees."""
    held = store.ones(1000)
    entry = held.block_name or ""
    first, second = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(first[0], 1)
        good = held.sum() == 1000 and entry in os.listdir(leaks.SHM)
        os.write(second[1], b"y" if good else b"n")
        signal.pause()
    other = os.fork()
    if other == 0:
        del held
        gc.collect()
        os._exit(0)
    assert reap(other) == 0
    assert entry in os.listdir(leaks.SHM)
    del held
    assert entry in os.listdir(leaks.SHM)
    os.write(first[1], b"x")
    assert os.read(second[0], 1) == b"y"
    kill_and_reap(pid)
    wait_until(lambda: entry not in os.listdir(leaks.SHM))
    for fd in (*first, *second):
        os.close(fd)


def test_other_users_of_the_file_in_the_process_take_no_lock_away(store: sa.Store) -> None:
    """Trap 27: opening, POSIX-locking and closing a store's files elsewhere in the process kills nothing.

    A backup or `cat` would do so; owner and array stay alive to others.
    """
    held = store.ones(3)
    for path in (f"shmarray.{os.geteuid()}.{store.id}.ctl", held.block_name or ""):
        for mode in ("rb", "r+b"):
            with open(os.path.join(leaks.SHM, path), mode) as file:
                if mode == "r+b":
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4096)
                    fcntl.lockf(file, fcntl.LOCK_UN, 4096)
    source = "import os\nfrom shmarray import reaper\nprint([o.removed for o in reaper.collect(os.geteuid()) if '%016x' % o.key.store == "
    assert run_script(f"{source}{store.id!r}])").expect() == "[False]\n"
    assert not reaper.remove_if_unheld(os.path.join(leaks.SHM, held.block_name or ""), os.geteuid())
    assert store.check() == []


def test_an_array_pickles_as_a_handle_and_what_is_computed_from_it_does_not(store: sa.Store) -> None:
    """Trap 29: any view of a megabyte is some hundred bytes in a pickle, into the same memory."""
    array = store.zeros((1 << 10, 1 << 7))
    for view in (array, array[3], array[::-2, 5:], array.T, array.view("u8"), array.reshape(-1)[7:]):
        handle = pickle.dumps(view)
        assert len(handle) < 500
        again = pickle.loads(handle)
        assert np.shares_memory(again, array)
        assert (again.shape, again.strides, again.dtype) == (view.shape, view.strides, view.dtype)
    assert len(pickle.dumps(array + 1)) > array.nbytes


def test_life_is_judged_by_locks_and_not_by_pids() -> None:
    """Trap 32: a control file that names an owner whose pid means nothing here is alive as long as anyone holds it."""
    key = names.StoreKey(os.geteuid(), int.from_bytes(os.urandom(8), "little"))
    record = layout.Control(key.store, None, leaks.SHM, None, ((1 << 22) + 5, 1, 0), "another boot", 0, "00" * 16)
    fd, _ = segments.create_leased(leaks.SHM, lambda: "unused")
    segments.write(fd, layout.pack(record), 0)
    segments.publish(fd, reaper.control_path(key))
    hold = segments.map_shared(fd, layout.SIZE)
    fd.close()
    with sa.Store():
        assert os.path.exists(reaper.control_path(key))
        del hold
    sa.Store().close()
    assert not os.path.exists(reaper.control_path(key))


def test_words_are_written_whole(store: sa.Store) -> None:
    """Trap 28: a word that another process writes is seen old or new, never half of it."""
    held = store.zeros(1, "u8")
    memory = held.base.base.obj  # type: ignore[union-attr]
    assert isinstance(memory, segments.Segment)
    patterns = (0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA)  # neither is what memory is cleared with
    words.store(memory, 0, patterns[0])
    pid = os.fork()
    if pid == 0:
        while True:
            for pattern in patterns:
                words.store(memory, 0, pattern)
    missing = set(patterns)
    deadline = time.monotonic() + 30
    while missing and time.monotonic() < deadline:  # until it runs
        missing.discard(words.load(memory, 0))
    seen: set[int] = set()
    reads = 0
    while (reads < 200_000 or seen != set(patterns)) and time.monotonic() < deadline:  # and again
        seen.add(words.load(memory, 0))
        reads += 1
    kill_and_reap(pid)
    assert seen == set(patterns)
    del memory
