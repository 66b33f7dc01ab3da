"""Large arrays, here named ones, that a process attaches again and again stay mapped there in between, and are nobody's burden."""

from __future__ import annotations

import fcntl
import os
import pickle
import threading
from multiprocessing import shared_memory
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

import shmarray as sa
from shmarray import idling
from tests.helpers import leaks
from tests.helpers.leaks import SHM
from tests.helpers.processes import Child, run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N = 40_000  # elements, 320 kB: its memory is worth giving back
BYTES = 8 * N

READER = """
import gc, os, pickle, sys, threading
import numpy as np
import shmarray as sa
from tests.helpers.processes import report
store = pickle.loads(bytes.fromhex(sys.argv[1]))
space = {**globals()}
del store
report("ready")
for line in sys.stdin:
    try:
        exec("answer = None; " + line, space)
        report("done", space["answer"])
    except Exception as error:
        report("done", type(error).__name__)
"""

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("small_is_kept")]


class Reader(Child):
    """Another process that has joined the store and does what it is told."""

    def __init__(self, store: sa.Store) -> None:
        """Start it."""
        super().__init__(READER, pickle.dumps(store).hex(), env={"SHMARRAY_SMALLEST_WARM": "4096"})

    def __enter__(self) -> Self:
        """Wait until it has joined."""
        self.wait_for("ready")
        return self

    def do(self, code: str) -> Any:
        """Run a line of code; gives what it assigned to `answer`, or the name of the error."""
        self.tell(code)
        return self.wait_for("done")

    def maps(self, inode: int) -> int:
        """How often it maps a file, from outside."""
        with open(f"/proc/{self.pid}/maps") as maps:
            return sum(line.split()[4] == str(inode) for line in maps if "/dev/shm/" in line)

    def numbers(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class File:
    """The file of an array as anyone can see it, also when the name has gone."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        """Open it, without any lock."""
        self.inode = _inode_at(array.ctypes.data)
        with os.scandir(SHM) as entries:
            path = next(entry.path for entry in entries if entry.inode() == self.inode)
        self.fd = os.open(path, os.O_RDWR)

    def __enter__(self) -> Self:
        """Nothing more to do: it is open already."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        os.close(self.fd)

    def memory(self) -> int:
        """How many bytes of it there are."""
        return os.fstat(self.fd).st_blocks * 512

    def links(self) -> int:
        """How many names it has."""
        return os.fstat(self.fd).st_nlink

    def is_leased(self) -> bool:
        """Whether anybody has the lease; a guardian that looks at the file has the exclusive lock for a moment, which is none."""
        found = 0
        while found < 3:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found += self._is_shared()
            else:
                fcntl.flock(self.fd, fcntl.LOCK_UN)
                return False
        return True

    def _is_shared(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True


def _inode_at(address: int) -> int:
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, _, end = line.split(maxsplit=1)[0].partition("-")
            if int(first, 16) <= address < int(end, 16):
                return int(line.split()[4])
    raise LookupError(hex(address))


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store whose owner keeps nothing, so that what is there is others' doing."""
    with sa.Store(warm=0) as opened:
        yield opened


WAYS = {"handle": "a = pickle.loads(bytes.fromhex({handle!r}))", "name": "a = store['x']"}


@pytest.mark.parametrize("way", WAYS)
def test_a_mapping_stays_without_a_lease_and_is_the_next_arrays_with_one(store: sa.Store, way: str) -> None:
    """The bytes are the same ones all the time, and what others wrote meanwhile is there."""
    array = store.ones(N, name="x")
    handle = pickle.dumps(array).hex()
    with File(array) as file, Reader(store) as reader:
        del array
        assert not file.is_leased()
        places = []
        for turn in range(5):
            attach = WAYS[way].format(handle=handle)
            places.append(reader.do(f"{attach}; answer = [a.ctypes.data, float(a.sum()), type(a).__name__, a.name]"))
            assert places[-1][1:] == [float(N + turn), "SharedArray", "x"]
            assert file.is_leased()
            assert reader.maps(file.inode) == 1
            reader.do("a[turn] += 1" if turn else "turn = 0; a[turn] += 1")
            reader.do("turn += 1; del a")
            assert not file.is_leased()
            assert reader.maps(file.inode) == 1
        assert len({place for place, *_ in places}) == 1
        assert float(store["x"].sum()) == N + 5
        reader.finish().expect()


def test_every_view_keeps_the_lease_until_the_last(store: sa.Store) -> None:
    """Slices, views of other types, buffers, locks, and arrays attached meanwhile are all of one mapping."""
    array = store.ones(N, name="x")
    with File(array) as file, Reader(store) as reader:
        del array
        reader.do("a = store['x']; b = store['x'][3:]; c = memoryview(a); d = a.lock; e = a.view(np.ndarray)[::2].T")
        assert reader.maps(file.inode) == 1
        for name in "abcde":
            assert file.is_leased()
            reader.do(f"del {name}")
        assert not file.is_leased()
        assert reader.maps(file.inode) == 1
        assert reader.do("a = store['x']; answer = float(a.sum())") == N
        assert reader.maps(file.inode) == 1
        reader.finish().expect()


@pytest.mark.parametrize(
    "kept", ["a.base.base", "a.base.base.obj", "np.frombuffer(a.base.base.obj)", "a.base.base[5:9]"]
)
def test_who_keeps_what_an_array_stands_on_keeps_the_lease(store: sa.Store, kept: str) -> None:
    """They may look at the bytes, whatever type they look through; the mapping ends when they let go of it."""
    array = store.ones(N, name="x")
    with File(array) as file, Reader(store) as reader:
        del array
        reader.do(f"a = store['x']; b = a.base; m = {kept.replace('a.base', 'b')}; del b, a")
        assert file.is_leased()
        del store["x"]
        store["x"] = np.full(N, 9.0)
        assert reader.do("answer = bytes(m)[:8] == np.ones(1).tobytes()[: len(bytes(m)[:8])]") in (True, False)
        assert file.memory() >= BYTES
        assert reader.do("b = store['x']; answer = float(b.sum())") == 9.0 * N
        reader.do("del m")
        assert not file.is_leased()
        reader.finish().expect()


ENDS: dict[str, Callable[[sa.Store], object]] = {
    "deleted by name": lambda store: store.__delitem__("x"),
    "deleted by a view": lambda store: store["x"].unlink(),
    "replaced": lambda store: store.__setitem__("x", np.zeros(3)),
    "replaced by as much": lambda store: store.__setitem__("x", np.zeros(N)),
    "closed": lambda store: store.close(),
}


@pytest.mark.parametrize("warm", [0, 1 << 30])
@pytest.mark.parametrize("end", ENDS)
def test_memory_of_what_is_deleted_goes_though_another_process_maps_it_idly(end: str, warm: int) -> None:
    """At once, whoever deletes it and however; what the owner keeps warm is the owner's to give back."""
    with sa.Store(warm=warm) as store:
        array = store.ones(N, name="x")
        with File(array) as file, Reader(store) as reader:
            del array
            assert reader.do("a = store['x']; answer = float(a[-1]); del a") == 1.0
            assert reader.maps(file.inode) == 1
            assert file.memory() >= BYTES
            ENDS[end](store)
            if end != "closed":
                store.trim()
            assert file.memory() < BYTES // 2
            expected = {"replaced": 3, "replaced by as much": N}.get(end, "ArrayNotFoundError")
            found = reader.do("answer = len(store['x'])")
            assert found == ("StoreClosedError" if end == "closed" else expected)
            reader.finish().expect()


@pytest.mark.parametrize("deleted_by", ["owner", "viewer", "maker"])
def test_memory_goes_with_the_last_who_views_what_was_deleted(store: sa.Store, deleted_by: str) -> None:
    """Until then it stays what it was."""
    array = store.ones(N, name="x")
    with File(array) as file, Reader(store) as idle, Reader(store) as viewer:
        idle.do("a = store['x']; del a")
        viewer.do("a = store['x']")
        if deleted_by == "maker":
            array.unlink()
        else:
            del array
        if deleted_by == "viewer":
            viewer.do("a.unlink()")
        elif deleted_by == "owner":
            del store["x"]
        assert viewer.do("answer = float(a.sum())") == N
        assert file.memory() >= BYTES
        if deleted_by == "maker":
            viewer.do("del a")
            assert file.memory() >= BYTES
            assert float(array.sum()) == N
            del array
        else:
            viewer.do("del a")
        assert file.memory() < BYTES // 2
        for reader in (idle, viewer):
            reader.finish().expect()


def test_a_killed_owner_leaves_no_memory_in_those_who_map_it_idly() -> None:
    """The guardian gives it back when it removes the block."""
    with Child(OWNER) as owner:
        invitation, identity = owner.wait_for("ready")
        store = pickle.loads(bytes.fromhex(invitation))
        path = os.path.join(SHM, f"shmarray.{os.geteuid()}.{identity}.n.x")
        with Reader(store) as reader:
            fd = os.open(path, os.O_RDWR)
            assert reader.do("a = store['x']; answer = float(a[-1]); del a") == 1.0
            assert reader.maps(os.fstat(fd).st_ino) == 1
            owner.kill()
            wait_until(lambda: os.fstat(fd).st_blocks * 512 < BYTES // 2, message="the memory stays")
            assert not os.path.exists(path)
            assert reader.do("store['x']") == "StoreClosedError"
            os.close(fd)
            reader.finish().expect()


OWNER = f"""
import pickle, sys
import shmarray as sa
from tests.helpers.processes import report
store = sa.Store()
store.ones({N}, name="x")
report("ready", [pickle.dumps(store).hex(), store.id])
input()
"""


def test_memory_whose_name_was_given_out_is_never_taken_from_who_maps_it(store: sa.Store) -> None:
    """They have no lease, and may look at it for as long as they map it."""
    array = store.ones(N, name="x")
    with Reader(store) as reader:
        reader.do("a = store['x']; del a")
        other = shared_memory.SharedMemory(name=array.block_name)
        buffer: Any = other.buf
        seen = np.frombuffer(buffer, count=N)
        del array, store["x"]
        assert (seen == 1.0).all()
        del seen, buffer
        other.close()
        reader.finish().expect()


def test_no_process_stays_in_a_store_for_the_sake_of_what_is_idle(store: sa.Store) -> None:
    """With the last thing that uses the store, here one array, it takes no part any more: the store can end, and all of it goes."""
    array = store.ones(N, name="x")
    handle = pickle.dumps(array).hex()
    with File(array) as file, Reader(store) as reader:
        reader.do("del store")
        del array
        assert reader.do(f"{WAYS['handle'].format(handle=handle)}; answer = float(a.sum())") == N
        reader.do("del a")
        assert not file.is_leased()
        assert reader.maps(file.inode) == 1
        store.close()
        assert not leaks.shm_entries(f"shmarray.{os.geteuid()}.{store.id}.")
        assert file.memory() < BYTES // 2
        reader.finish().expect()


def test_what_is_idle_is_bounded_and_goes_by_trim(store: sa.Store) -> None:
    """The mapping that was used longest ago goes first; each costs one descriptor."""
    files = [File(store.ones(N, name=f"x{n}")) for n in range(2 * idling.MOST)]
    with Reader(store) as reader:
        before = reader.numbers()
        for n in range(2 * idling.MOST):
            reader.do(f"a = store['x{n}']; del a")
        assert [reader.maps(file.inode) for file in files] == [0] * idling.MOST + [1] * idling.MOST
        assert reader.numbers() == before + idling.MOST
        reader.do("store.trim()")
        assert [reader.maps(file.inode) for file in files] == [0] * 2 * idling.MOST
        assert reader.numbers() == before
        reader.finish().expect()
    for file in files:
        os.close(file.fd)


def test_what_was_deleted_is_unmapped_when_the_next_array_is_let_go_of(store: sa.Store) -> None:
    """Also where its memory could not be given back before."""
    first, second = File(store.ones(N, name="x")), File(store.ones(N, name="y"))
    with first, second, Reader(store) as reader:
        reader.do("a = store['x']; del a")
        del store["x"]
        assert reader.maps(first.inode) == 1
        reader.do("a = store['y']; del a")
        assert (reader.maps(first.inode), reader.maps(second.inode)) == (0, 1)
        reader.finish().expect()


def test_memory_used_again_for_another_array_is_not_the_one_that_was_idle() -> None:
    """A handle of the old one is refused, and the new one, of another kind, is what it is."""
    with sa.Store(warm=1 << 30) as store:
        array = store.ones(N, name="x")
        handle = pickle.dumps(array).hex()
        with File(array) as file, Reader(store) as reader:
            del array
            reader.do("a = store['x']; del a")
            del store["x"]
            new = store.full((2, N // 2), 9, "i8", name="y")
            assert os.stat(os.path.join(SHM, new.block_name or "")).st_ino == file.inode
            assert reader.do(WAYS["handle"].format(handle=handle)) == "ArrayNotFoundError"
            assert reader.do("answer = [int(store['y'].min()), int(store['y'].max()), store['y'].shape]") == [
                *(9, 9),
                [2, N // 2],
            ]
            assert reader.do("store['x']") == "ArrayNotFoundError"
            reader.finish().expect()


def test_a_forked_child_keeps_the_lease_of_what_it_has_and_nothing_of_what_is_idle(store: sa.Store) -> None:
    """Parent and child share one lock: what crossed the fork is never unlocked, what is idle is the parent's alone."""
    first, second = File(store.ones(N, name="x")), File(store.ones(N, name="y"))
    with first, second, Reader(store) as reader:
        reader.do("a = store['x']; b = store['y']; del b")
        child = reader.do(FORK)
        assert (reader.maps(first.inode), reader.maps(second.inode)) == (1, 1)
        maps = [_maps(child, file.inode) for file in (first, second)]
        assert maps == [1, 0]
        reader.do("del a")
        assert first.is_leased(), "the child has it"
        del store["x"]
        assert first.memory() >= BYTES
        assert reader.do("b = store['y']; answer = float(b.sum())") == N
        assert second.is_leased()
        reader.do("del b")
        assert not second.is_leased()
        assert reader.do("os.write(go[1], b'!'); answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])") == 0
        assert not first.is_leased()
        assert first.memory() < BYTES // 2 or reader.maps(first.inode) == 0
        reader.finish().expect()


FORK = (
    "go = os.pipe(); up = os.pipe(); answer = pid = os.fork(); "
    "pid or (os.write(up[1], b'!'), os.read(go[0], 1), os._exit(0 if (a == 1).all() and float(a.sum()) == len(a) else 1)); "
    "os.read(up[0], 1)"
)


def _maps(pid: int, inode: int) -> int:
    with open(f"/proc/{pid}/maps") as maps:
        return sum(line.split()[4] == str(inode) for line in maps if "/dev/shm/" in line)


def test_threads_that_attach_and_let_go_at_once_see_one_array(store: sa.Store) -> None:
    """Each sees all of it, the lease is there as long as any of them has it, and in the end there is none."""
    array = store.ones(N, name="x")
    handle = pickle.dumps(array)
    with File(array) as file:
        del array
        wrong: list[object] = []

        def look() -> None:
            for turn in range(300):
                found = pickle.loads(handle) if turn % 2 else joined["x"]
                if not (found[0] == found[-1] == 1.0 and found.name == "x" and file_is_leased()):
                    wrong.append(found.name)
                del found

        def file_is_leased() -> bool:
            with open(f"/proc/self/fd/{file.fd}", "rb") as mine:
                try:
                    fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
                return False

        joined: Any = pickle.loads(pickle.dumps(store))
        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert not file.is_leased()


SCARCE = """
import os, pickle, resource, sys
import numpy as np, shmarray as sa
store = pickle.loads(bytes.fromhex(sys.argv[1]))
a = store["x"]
del a
if sys.argv[2] == "descriptors":
    numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]  # those between are in use too
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(numbers) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
else:
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    size = int(lines["VmSize"].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))
b = store["y"]
print(float(b[-1]), len(store._member.idle.kepts))
"""


@pytest.mark.parametrize("what", ["descriptors", "room"])
def test_what_is_idle_goes_where_there_is_no_more(store: sa.Store, what: str) -> None:
    """Attaching something else needs what it takes, a descriptor or addresses, and gets it."""
    store.ones(20 * N, name="x")
    store.ones(20 * N, name="y")
    env = {"SHMARRAY_SMALLEST_WARM": "4096", "OPENBLAS_NUM_THREADS": "1"}
    assert run_script(SCARCE, pickle.dumps(store).hex(), what, env=env).expect() == "1.0 0\n"


EARLY = """
import fcntl, os, pickle, sys
import shmarray as sa
from shmarray import blockfiles, blocks
store = pickle.loads(bytes.fromhex(sys.argv[1]))
there, back = os.pipe(), os.pipe()
pids = []
real = getattr(blockfiles, sys.argv[2])
def step(*args):
    result = real(*args)
    if not pids:
        pids.append(os.fork())
    return result
setattr(blockfiles, sys.argv[2], step)
a = store["x"]
path = a.base.base.obj.tag.path
def is_leased():
    other = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(other)
    return False
if pids == [0]:
    os.write(there[1], b"!")
    os.read(back[0], 1)
    os._exit(0 if is_leased() and (a == 1).all() else 1)
os.read(there[0], 1)
del a
store.trim()
os.write(back[1], b"!")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]))
"""


@pytest.mark.parametrize("step", ["open_block", "read_checked"])
def test_a_child_forked_while_an_array_is_attached_at_first_keeps_its_lease(store: sa.Store, step: str) -> None:
    """It has the file on one lock with its parent, which does not know that from its mapping."""
    store.ones(N, name="x")
    said = run_script(EARLY, pickle.dumps(store).hex(), step, env={"SHMARRAY_SMALLEST_WARM": "4096"})
    assert said.expect() == ""


DAEMON = """
import fcntl, os, pickle, sys
import numpy as np, shmarray as sa
store = pickle.loads(bytes.fromhex(sys.argv[1]))
a = store["x"]
del a
(kept,) = store._member.idle.kepts.values()
number = kept.memory.fd.fileno()
os.closerange(3, 256)
mine = os.open("lock", os.O_CREAT | os.O_RDWR)
if mine != number:
    os.dup2(mine, number)
fcntl.flock(number, fcntl.LOCK_EX)
a = store["x"]
print(a.sum())
del a
other = os.open("lock", os.O_RDWR)
try:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("lost")
except BlockingIOError:
    print("mine")
os.fstat(number)
"""


def test_descriptors_that_a_program_has_closed_are_not_taken_for_those_they_were(store: sa.Store) -> None:
    """A file of its own that got the number keeps its lock and is not closed, and the array is attached all the same."""
    store.ones(N, name="x")
    said = run_script(DAEMON, pickle.dumps(store).hex(), env={"SHMARRAY_SMALLEST_WARM": "4096"})
    assert said.expect() == f"{float(N)}\nmine\n"


def test_a_child_forked_while_an_array_is_attached_again_lives_on(store: sa.Store) -> None:
    """By a signal's handler, say: parent and child go on with what they have."""
    store.ones(N, name="x")
    said = run_script(MIDST, pickle.dumps(store).hex(), env={"SHMARRAY_SMALLEST_WARM": "4096"})
    assert said.expect() == ""


MIDST = """
import os, pickle, sys
import shmarray as sa
from shmarray import idling
store = pickle.loads(bytes.fromhex(sys.argv[1]))
for name in ("_pread", "_flock", "_look"):
    for before in (True, False):
        a = store["x"]
        del a
        pids = []
        real = getattr(idling, name)
        def step(*args):
            if before and not pids:
                pids.append(os.fork())
            result = real(*args)
            if not pids:
                pids.append(os.fork())
            return result
        setattr(idling, name, step)
        a = store["x"]
        setattr(idling, name, real)
        assert pids and (a == 1).all(), (name, before)
        if pids == [0]:
            del a
            b = store["x"]
            os._exit(0 if (b == 1).all() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0, (name, before)
        assert (a == 1).all()
        del a
"""
