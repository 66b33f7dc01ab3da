"""A process that is sent arrays, task after task, comes back to their store each time, and in between is no part of it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

import pytest

import shmarray as sa
from shmarray import absences, inspection, warm
from shmarray._os import flocks
from tests.helpers import leaks
from tests.helpers.processes import Child, reap, run_command, run_script, wait_until
from tests.helpers.sweeps import interrupters
from tests.helpers.tracing import Interrupted, kill_at
from tests.warm.test_idling import BYTES, FORK, File, N, Reader
from tests.warm.test_idling_anonymous import OWNER, sent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

pytestmark = pytest.mark.usefixtures("small_is_kept")


class Worker(Reader):
    """A process that has nothing of the store but what it is sent."""

    def __enter__(self) -> Self:
        """Wait until it has left."""
        super().__enter__()
        self.do("del store")
        return self


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store whose owner keeps nothing, so that what is there is others' doing."""
    with sa.Store(warm=0) as opened:
        yield opened


def parts(store: sa.Store) -> int:
    """How many processes take part in a store, as the kernel's list of locks has it."""
    return leases(os.path.join(leaks.SHM, f"shmarray.{os.geteuid()}.{store.id}.ctl"))


def leases(path: str) -> int:
    """How many processes have taken locks of that kind on a file, which are still there."""
    info = os.stat(path)
    file = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    found: set[str] = set()
    # The list is read in pieces: while locks of others come and go, one may be in two of them, or in none; again and again in none, hardly.
    for _ in range(5):
        with open("/proc/locks") as locks:
            found |= {fields[4] for line in locks if (fields := line.split())[1] == "FLOCK" and file in fields}
    return len(found)


def files(store: sa.Store) -> list[str]:
    """Which files of the store there are."""
    return sorted(leaks.shm_entries(f"shmarray.{os.geteuid()}.{store.id}."))


@pytest.mark.core
@pytest.mark.parametrize("name", [None, "x"])
def test_a_worker_comes_back_with_each_array_and_finds_what_it_had_mapped(store: sa.Store, name: str | None) -> None:
    """No descriptor more after the first time, no page missed, and no part in the store between two tasks."""
    array = store.ones(N, name=name)
    with File(array) as file, Worker(store) as worker:
        assert parts(store) == 1
        seen = set()
        for turn in range(20):
            place, total = worker.do(sent(array) + "; answer = [a.ctypes.data, float(a.sum())]")
            assert (total, parts(store)) == (N + turn, 2)
            array[turn] += 1
            worker.do("del a")
            assert (parts(store), worker.maps(file.inode)) == (1, 1)
            seen.add((place, worker.numbers()))
        assert len(seen) == 1
        worker.finish().expect()


def test_who_has_come_back_can_do_all_that_one_can_in_a_store(store: sa.Store) -> None:
    """Locks, names, small arrays, making and deleting: it takes part as if it had just joined."""
    array = store.ones(N)
    invitation = pickle.dumps(store).hex()
    with Worker(store) as worker:
        for turn in range(3):
            worker.do(sent(array) + "; del a")
            assert parts(store) == 1
            worker.do(f"s = pickle.loads(bytes.fromhex({invitation!r})); s['y'] = np.full(5, {turn}.0)")
            worker.do("b = s.zeros(7); q = s.Queue(); q.put(b + 1); c = q.get(); answer = float(c.sum())")
            assert (
                worker.do("y = s['y']; exec('with y.write(timeout=5): y += 1'); answer = float(y.sum())")
                == 5.0 * turn + 5
            )
            worker.do("d = s.full(40000, 3.0); answer = float(d.sum()); del s, b, q, c, d, y")
        assert float(store["y"].sum()) == 15.0
        worker.finish().expect()


@pytest.mark.core
def test_a_store_ends_whole_while_a_worker_is_absent(store: sa.Store) -> None:
    """Control file, blocks and guardian go at once, and the next handle says that the store is closed."""
    array = store.ones(N)
    guardian = store.guardian_pid
    handle = sent(array)
    with File(array) as file, Worker(store) as worker:
        before = worker.numbers()
        worker.do(handle + "; del a")
        handle = sent(array)
        del array
        store.close()
        assert files(store) == []
        assert file.memory() < BYTES // 2
        wait_until(lambda: guardian not in {one.pid for one in leaks.guardians()}, 10, "the guardian stays")
        assert worker.do(handle) == "StoreClosedError"
        assert (worker.maps(file.inode), worker.numbers()) == (0, before)
        worker.finish().expect()


def test_nothing_of_a_store_that_has_ended_is_kept_when_another_one_is_joined(store: sa.Store) -> None:
    """The worker has no other occasion to find out."""
    with File(first := store.ones(N)) as file, Worker(store) as worker, sa.Store() as other:
        worker.do(sent(first) + "; del a")
        del first
        store.close()
        assert worker.maps(file.inode) == 1
        assert worker.do(sent(other.ones(N)) + "; answer = float(a.sum())") == N
        assert worker.maps(file.inode) == 0
        worker.finish().expect()


def two_handles(owner: Child) -> list[str]:
    """Have the owner pickle its array twice."""
    owner.tell("report('handle', [pickle.dumps(array).hex() for _ in range(2)])")
    handles: list[str] = owner.wait_for("handle")
    owner.wait_for("done")
    return handles


def test_a_dead_owner_is_found_out_before_anyone_has_written_it_down() -> None:
    """The guardian is stopped, so that nobody marks the store."""
    with Child(OWNER, "0", env={"SHMARRAY_SMALLEST_WARM": "4096"}) as owner:
        store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        with Worker(store) as worker:
            first, second = two_handles(owner)
            worker.do(f"a = pickle.loads(bytes.fromhex({first!r})); del a")
            guardian = store.guardian_pid
            os.kill(guardian, signal.SIGSTOP)
            try:
                owner.kill()
                assert worker.do(f"a = pickle.loads(bytes.fromhex({second!r}))") == "StoreClosedError"
            finally:
                os.kill(guardian, signal.SIGCONT)
            del store
            worker.finish().expect()


def test_what_nobody_takes_part_in_is_removed_though_absent_processes_map_it() -> None:
    """Owner and guardian are killed: `ls` says that the store is left over, and `gc` removes it, whoever maps what."""
    with Child(OWNER, "0", env={"SHMARRAY_SMALLEST_WARM": "4096"}) as owner:
        store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        with Worker(store) as worker:
            for handle in two_handles(owner):
                worker.do(f"a = pickle.loads(bytes.fromhex({handle!r})); del a")
            identity, guardian = store.id, store.guardian_pid
            del store
            os.kill(guardian, signal.SIGKILL)
            owner.kill()

            def left_over() -> inspection.Store | None:
                (one,) = [one for one in inspection.survey().stores if one.id == identity]
                return one if one.state == "leftover" else None

            # Who reads /proc/PID/maps while that process dies keeps what it maps, and the locks on it, until after it has been reaped.
            found = wait_until(left_over, 10, "somebody takes part")
            assert found is not None
            assert (found.removable, found.participants) == (True, ())
            assert [(block.state, block.holders) for block in found.blocks] == [("dead", (worker.pid,))]
            said = json.loads(run_command([sys.executable, "-m", "shmarray", "gc", "--json"]).expect())
            assert [(one["store"], one["blocks"]) for one in said["removed"]] == [(identity, 1)]
            assert not leaks.shm_entries(f"shmarray.{os.geteuid()}.{identity}.")
            worker.finish().expect()


def test_an_array_that_is_only_mapped_idly_is_nobodys(store: sa.Store) -> None:
    """Its last holder was killed, and the guardian is stopped: `ls` says that it can be removed, and `check` removes it."""
    array = store.ones(N)
    assert store.guardian_pid is not None
    os.kill(store.guardian_pid, signal.SIGSTOP)
    try:
        with File(array) as file, Worker(store) as idle, Worker(store) as last:
            for _ in range(2):
                idle.do(sent(array) + "; del a")
            last.do(sent(array))
            del array
            last.kill()
            (found,) = [one for one in inspection.survey().stores if one.id == store.id]
            assert [(block.state, block.holders) for block in found.blocks] == [("dead", (idle.pid,))]
            store.check(fix=True)
            assert (file.links(), file.memory() < BYTES // 2) == (0, True)
            idle.finish().expect()
    finally:
        os.kill(store.guardian_pid, signal.SIGCONT)


def test_a_process_is_absent_from_a_few_stores_at_most() -> None:
    """What it was absent from longest goes first, and all that it had mapped with it."""
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(sa.Store(warm=0)) for _ in range(absences.MOST + 2)]
        arrays = [store.ones(N) for store in stores]
        looks = [stack.enter_context(File(array)) for array in arrays]
        worker = stack.enter_context(Worker(stores[0]))
        for array in arrays:
            for _ in range(2):
                worker.do(sent(array) + "; del a")
        assert [worker.maps(file.inode) for file in looks] == [0, 0] + [1] * absences.MOST
        assert [parts(store) for store in stores] == [1] * len(stores)
        for array in arrays:
            assert worker.do(sent(array) + "; answer = float(a.sum()); del a") == N
        worker.finish().expect()
        del arrays, array


@pytest.mark.core
def test_who_uses_the_control_file_keeps_the_part_that_the_process_has(store: sa.Store) -> None:
    """Then the lease ends with the mapping, as ever."""
    array = store.ones(N)
    with Worker(store) as worker:
        worker.do(sent(array) + "; b = a[:5]; hold = a.base.base.obj.tag.member.leases[0]; del a, b")
        assert parts(store) == 2
        worker.do("del hold")
        assert parts(store) == 1
        assert worker.do(sent(array) + "; answer = float(a.sum()); del a") == N
        worker.finish().expect()


FORKS = {
    "before": "pid = os.fork()\na = load(0)",
    "while it has an array": "a = load(0)\npid = os.fork()",
    "while it is absent": "a = load(0)\ndel a\npid = os.fork()\na = load(1)",
    "while it is back": "a = load(0)\ndel a\na = load(1)\npid = os.fork()",
}
FORKED = """
import os, pickle, sys
import shmarray as sa
handles = pickle.loads(bytes.fromhex(sys.argv[1]))
parent = os.getpid()
def load(n):
    return pickle.loads(handles[os.getpid() != parent][n])
load(5)
exec(sys.argv[2])
for n in (2, 3, 4):
    a.sum() == 40000 or sys.exit(3)
    del a
    a = load(n)
a.sum() == 40000 or sys.exit(4)
del a
if pid == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.core
@pytest.mark.parametrize("when", FORKS)
def test_parent_and_child_come_back_each_by_itself(store: sa.Store, when: str) -> None:
    """What was the parent's is not unlocked by the child, nor the reverse, and both go on."""
    array = store.ones(N)
    handles = [[pickle.dumps(array) for _ in range(6)] for _ in range(2)]
    env = {"SHMARRAY_SMALLEST_WARM": "4096"}
    assert run_script(FORKED, pickle.dumps(handles).hex(), FORKS[when], env=env).expect() == ""
    assert parts(store) == 1


def test_a_child_keeps_nothing_of_the_part_that_its_parent_has(store: sa.Store) -> None:
    """The parent leaves, whatever the child does, and the child too."""
    array = store.ones(N)
    with Worker(store) as worker:
        for _ in range(2):
            worker.do(sent(array) + "; del a")
        worker.do(sent(array))
        worker.do(FORK)
        assert parts(store) == 3
        worker.do("del a")
        assert parts(store) == 2, "the child"
        assert worker.do("os.write(go[1], b'!'); answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])") == 0
        assert parts(store) == 1
        worker.finish().expect()


EXITS = {
    "absent": "del a",
    "with an array": "",
    "with the last array in a module": "sys.a = a; del a",
    "with the last array in another module": "import builtins; builtins.a = a; del a",
    "with the last array in our own": "sa.absences.a = a; del a",
    "with a thread": "import threading; threading.Thread(target=lambda b: b.sum(), args=(a,)).start(); del a",
}
EXIT = """
import pickle, sys
import shmarray as sa
first, second, third = pickle.loads(bytes.fromhex(sys.argv[1]))
pickle.loads(first)
pickle.loads(second)
a = pickle.loads(third)
"""


@pytest.mark.core
@pytest.mark.parametrize("how", EXITS)
def test_a_process_ends_silently_whatever_it_has(store: sa.Store, how: str) -> None:
    """Nothing on standard error, and no part in the store."""
    array = store.ones(N)
    handles = pickle.dumps([pickle.dumps(array) for _ in range(3)]).hex()
    assert run_script(EXIT + EXITS[how], handles, env={"SHMARRAY_SMALLEST_WARM": "4096"}).expect() == ""
    assert parts(store) == 1


TEARDOWN = """
import pickle, sys
import shmarray as sa
from shmarray import attachments, membership
handles = pickle.loads(bytes.fromhex(sys.argv[1]))
arrays = [pickle.loads(handle) for handle in handles]
member = attachments._attached[next(iter(attachments._attached))]().tag.member
arrays.clear()
kepts = list(member.idle.kepts)
assert len(kepts) == len(handles)
for name in [name for name in vars(attachments) if name[0] == "_" and name[1] != "_"]:
    vars(attachments)[name] = None  # in the order in which the interpreter does
    if kepts:
        member.idle.end(kepts.pop())
assert not kepts
"""


def test_a_mapping_that_ends_while_the_interpreter_takes_our_modules_away_ends_silently(store: sa.Store) -> None:
    """There is nothing left by which it could be seen to, and nothing to do."""
    arrays = [store.ones(N) for _ in range(8)]
    handles = pickle.dumps([pickle.dumps(array) for array in arrays]).hex()
    assert run_script(TEARDOWN, handles, env={"SHMARRAY_SMALLEST_WARM": "4096"}).expect() == ""


CLOSER = """
import fcntl, os, pickle, sys
import shmarray as sa
handles = pickle.loads(bytes.fromhex(sys.argv[1]))
pickle.loads(handles[3])
a = pickle.loads(handles[0])
del a
os.closerange(3, 256)
mine = [os.open(f"lock{n}", os.O_CREAT | os.O_RDWR) for n in range(8)]
for number in mine:
    fcntl.flock(number, fcntl.LOCK_EX)
a = pickle.loads(handles[1])
print(float(a.sum()))
del a
if sys.argv[2] == "again":
    for number in set(range(3, 256)) - set(mine):
        os.closerange(number, number + 1)
a = pickle.loads(handles[2])
print(float(a.sum()))
for n, number in enumerate(mine):
    other = os.open(f"lock{n}", os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        print("lost", os.fstat(number))
    except BlockingIOError:
        pass
"""


@pytest.mark.parametrize("how", ["once", "again"])
def test_descriptors_that_a_program_has_closed_are_not_taken_for_those_they_were(store: sa.Store, how: str) -> None:
    """It joins anew then."""
    array = store.ones(N)
    handles = pickle.dumps([pickle.dumps(array) for _ in range(4)]).hex()
    said = run_script(CLOSER, handles, how, env={"SHMARRAY_SMALLEST_WARM": "4096"})
    assert said.expect() == f"{float(N)}\n" * 2


SCARCE = """
import os, pickle, resource, sys
import shmarray as sa
first, other, again = pickle.loads(bytes.fromhex(sys.argv[1]))
pickle.loads(first)
pickle.loads(again)
from shmarray import absences
numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(numbers) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(len(absences._absent))
b = pickle.loads(other)
print(float(b.sum()), len(absences._absent))
"""


def test_what_it_would_come_back_with_goes_where_there_is_no_descriptor(store: sa.Store) -> None:
    """Joining another store needs one, and gets it."""
    with sa.Store() as second:
        first, other = store.ones(N), second.ones(N)
        handles = pickle.dumps([pickle.dumps(array) for array in (first, other, first)]).hex()
        said = run_script(SCARCE, handles)  # no mapping stays of these, which would go before
        assert said.expect() == f"1\n{float(N)} 0\n"


THREADS = """
import pickle, sys, threading
import shmarray as sa
wrong = []
def look(mine):
    for handle in mine:
        a = pickle.loads(handle)
        if not (a[0] == a[-1] == 1.0 and a.sum() == 40000):
            wrong.append(1)
        del a
threads = [threading.Thread(target=look, args=(mine,)) for mine in pickle.loads(sys.stdin.buffer.read())]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(wrong)
"""


def test_threads_that_come_and_go_share_one_part(store: sa.Store) -> None:
    """Each finds the store open, whoever has just left or come back; in the end nobody is there, and no handle is lost."""
    array = store.ones(N)
    handles = [[pickle.dumps(array) for _ in range(150)] for _ in range(4)]
    said = run_script(THREADS, stdin=pickle.dumps(handles), env={"SHMARRAY_SMALLEST_WARM": "4096"})
    assert said.expect() == "[]\n"
    assert parts(store) == 1
    assert [entry for entry in files(store) if ".h." in entry] == []


def test_a_store_that_comes_back_to_life_has_its_part(store: sa.Store) -> None:
    """The cycle collector calls those back who watch an object, before a `__del__` of the same cycle brings it back."""
    array = store.ones(N)
    with Worker(store) as worker:
        for _ in range(2):
            worker.do(sent(array) + "; del a")
        worker.do(f"import gc; kept = []; s = pickle.loads(bytes.fromhex({pickle.dumps(store).hex()!r}))")
        worker.do("Node = type('Node', (), {'__del__': lambda self: kept.append(self.store)})")
        worker.do(sent(array) + "; node = Node(); node.me, node.store = node, s; del a, s, node")
        worker.do("gc.collect()")
        assert worker.do("answer = len(kept)") == 1
        assert parts(store) == 2
        worker.do("kept.clear()")
        assert parts(store) == 1
        assert worker.do(sent(array) + "; answer = float(a.sum()); del a") == N
        worker.finish().expect()


def test_who_comes_back_while_the_store_ends_is_not_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a guardian, the last of the two to look removes the control file."""
    with Child(OWNER, "0", env={"SHMARRAY_SMALLEST_WARM": "4096"}) as owner:
        handles = Handles(owner)
        for _ in range(2):
            pickle.loads(handles.one())
        handle = handles.one()
        owner.tell("report('guardian', store.guardian_pid)")
        guardian = owner.wait_for("guardian")
        owner.wait_for("done")
        os.kill(guardian, signal.SIGKILL)
        wait_until(lambda: guardian not in {one.pid for one in leaks.guardians()}, 10, "the guardian stays")
        real = flocks.try_share

        def shared(fd: Any) -> bool:
            monkeypatch.setattr(flocks, "try_share", real)
            taken = real(fd)
            owner.tell("store.close()")
            owner.wait_for("done")
            return taken

        monkeypatch.setattr(flocks, "try_share", shared)
        with pytest.raises(sa.StoreClosedError):
            pickle.loads(handle)
        assert not os.path.exists(handles.path)
        owner.finish().expect()


class Forker:
    """Counts calls within `FILES`, and returns from C; forks at the n-th, as a signal handler may."""

    def __init__(self, n: int) -> None:
        """Nothing is counted until `step` is set as the profile function."""
        self.n, self.count, self.where = n, 0, ""
        self.pid: int | None = None

    def step(self, frame: FrameType, event: str, _: object) -> None:
        """A function for `sys.setprofile`."""
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(FILES):
            self.count += 1
            if self.count == self.n:
                sys.setprofile(None)
                self.where = f"{event} in {frame.f_code.co_qualname}, line {frame.f_lineno}"
                self.pid = os.fork()


FORKING = """
import os, pickle, sys
import shmarray as sa
from shmarray import absences, cells
from tests.warm.test_absences import Forker, leases
path, store, again = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[3] == "True"
def get():
    print("handle", flush=True)
    return pickle.loads(bytes.fromhex(sys.stdin.readline()))
def handle():
    print("handle", flush=True)
    return bytes.fromhex(sys.stdin.readline())
n = 0
while True:
    n += 1
    view = get()
    small = cells.view_of(view)
    block = small.slab.path if small else view.base.base.obj.tag.path
    del small
    kept = pickle.loads(store) if store else None
    mine, childs = [handle() for _ in range(2)], [handle() for _ in range(2)]
    there, back = os.pipe(), os.pipe()
    forker = Forker(n)
    sys.setprofile(forker.step)
    del view
    sys.setprofile(None)
    if forker.count < n:
        break
    if forker.pid == 0:
        found = pickle.loads(childs[0])
        os.write(there[1], b"1")
        os.read(back[0], 1)  # the parent has looked at it, and left
        ok = leases(path) >= 2 and leases(block) >= 2 and found.sum() == len(found)
        del found
        os.write(there[1], b"1")
        os.read(back[0], 1)  # the parent has it
        os._exit(0 if ok else 5)
    os.read(there[0], 1)
    found = pickle.loads(mine[0])
    del found
    os.write(back[1], b"1")
    os.read(there[0], 1)
    found = pickle.loads(mine[1])
    os.write(back[1], b"1")
    if os.waitstatus_to_exitcode(os.waitpid(forker.pid, 0)[1]) or leases(path) < 2 or leases(block) < 2:
        sys.exit(f"{n}: {forker.where}")
    del found
    kept = None
    for fd in (*there, *back):
        os.close(fd)
    if not again:
        absences.drop_all()
n > 10 or sys.exit("too few steps")
"""


@pytest.mark.parametrize("again", [True, False], ids=["again", "first"])
@pytest.mark.parametrize("stays", [True, False], ids=["it stays", "it leaves"])
@pytest.mark.parametrize("what", ["anonymous", "named", "small"])
def test_a_handler_that_forks_in_the_midst_of_leaving_takes_no_lease_from_parent_or_child(
    what: str,
    stays: bool,  # noqa: FBT001  a parameter of a test
    again: bool,  # noqa: FBT001  the same
) -> None:
    """Both go on in the midst of it, on one description: neither may unlock it later for itself."""
    with sa.Store(warm=0, small=4096) as store:
        array = store.ones(64) if what == "small" else store.ones(N, name="x" if what == "named" else None)
        path = os.path.join(leaks.SHM, f"shmarray.{os.geteuid()}.{store.id}.ctl")
        said = run_with_handles(array, FORKING, path, pickle.dumps(store).hex() if stays else "", str(again))
        assert said == (0, "")


def run_with_handles(array: Any, script: str, *args: str) -> tuple[int, str]:
    """Run a script that gets a handle of the array for each line it prints; its exit status, and what it says on standard error."""
    env = os.environ | {"SHMARRAY_SMALLEST_WARM": "4096"}
    command = [sys.executable, "-c", script, *args]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        assert worker.stderr
        for _ in worker.stdout:
            worker.stdin.write(pickle.dumps(array).hex() + "\n")
            worker.stdin.flush()
        said = worker.stderr.read()
    return worker.returncode, said


FORKING_BACK = """
import os, pickle, sys
import shmarray as sa
from tests.warm.test_absences import Forker, leases
path = sys.argv[1]
def handle():
    print("handle", flush=True)
    return bytes.fromhex(sys.stdin.readline())
def stays(block):
    return leases(path) >= 2 and leases(block) >= 2
n = 0
while True:
    n += 1
    for _ in range(2):  # the first time it joins anew, for a fork came
        pickle.loads(handle())
    mine, there, back = handle(), os.pipe(), os.pipe()
    forker = Forker(n)
    sys.setprofile(forker.step)
    try:
        view = pickle.loads(mine)
    finally:
        sys.setprofile(None)
        if forker.pid == 0 and sys.exc_info()[0]:
            os._exit(4)
    if forker.count < n:
        break
    block = view.base.base.obj.tag.path
    if forker.pid == 0:
        os.close(back[1])
        ok = view.sum() == 40000
        os.write(there[1], b"1")
        os.read(back[0], 1)  # the parent has left
        ok = ok and stays(block)
        del view
        os._exit(0 if ok else 5)
    os.close(there[1])
    os.read(there[0], 1)
    whole = view.sum() == 40000 and stays(block)
    del view
    os.write(back[1], b"1")
    status = os.waitstatus_to_exitcode(os.waitpid(forker.pid, 0)[1])
    if status or not whole or leases(path) != 1:
        sys.exit(f"{n}: {forker.where}: {status}, {whole}, {leases(path)} parts")
    for fd in (there[0], *back):
        os.close(fd)
n > 10 or sys.exit("too few steps")
"""


@pytest.mark.parametrize("name", [None, "x"])
def test_a_handler_that_forks_in_the_midst_of_coming_back_takes_no_lease_from_parent_or_child(
    store: sa.Store, name: str | None
) -> None:
    """Each has the array in the end, and a part of its own, which ends with it."""
    array = store.ones(N, name=name)
    path = os.path.join(leaks.SHM, f"shmarray.{os.geteuid()}.{store.id}.ctl")
    status, said = run_with_handles(array, FORKING_BACK, path)
    assert status == 0, said
    assert said == ""


BETWEEN = """
import os, pickle, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of forks in a program with threads: they are what this is about
import shmarray as sa
from tests.warm.test_absences import leases
path, deed = sys.argv[1:]
FUNCTIONS = {"leave": ("_left", "leave"), "come back": ("resume", "come_back", "is_over")}[deed]
def load():
    print("handle", flush=True)
    return pickle.loads(bytes.fromhex(sys.stdin.readline()))
class Pause:
    def __init__(self, n):
        self.n, self.count, self.where = n, 0, ""
        self.there, self.over = threading.Event(), threading.Event()
    def step(self, frame, event, arg):
        if event in ("call", "c_return") and frame.f_code.co_name in FUNCTIONS:
            self.count += 1
            if self.count == self.n:
                self.where = f"{event} in {frame.f_code.co_qualname}, line {frame.f_lineno}"
                self.there.set()
                self.over.wait()
    def run(self, act):
        sys.setprofile(self.step)
        try:
            act()
        finally:
            sys.setprofile(None)
            self.there.set()
n = 0
while True:
    n += 1
    load(), load()  # the first time it joins anew, for a fork came
    pause, held = Pause(n), [load()] if deed == "leave" else []
    thread = threading.Thread(target=pause.run, args=(held.clear if deed == "leave" else lambda: held.append(load()),))
    thread.start()
    pause.there.wait()
    if pause.count < n:
        thread.join()
        break
    there, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(there[1], b"!")
        os.read(go[0], 1)
        os._exit(0)
    os.read(there[0], 1)
    pause.over.set()
    thread.join()
    whole = all((found == 1).all() for found in held)
    held.clear()
    parts = leases(path)
    os.write(go[1], b"!")
    os.waitpid(pid, 0)
    if parts != 1 or not whole:
        sys.exit(f"{n}: {pause.where}: {parts} parts, {whole}")
    for fd in (*there, *go):
        os.close(fd)
n > 3 or sys.exit("too few steps")
"""


@pytest.mark.parametrize("name", [None, "x"])
@pytest.mark.parametrize("deed", ["leave", "come back"])
def test_a_child_has_no_part_that_another_thread_was_about_to_leave_or_to_come_back_to(
    store: sa.Store, deed: str, name: str | None
) -> None:
    """That thread does not go on in the child, so nothing there would ever let go of it."""
    array = store.ones(N, name=name)
    path = os.path.join(leaks.SHM, f"shmarray.{os.geteuid()}.{store.id}.ctl")
    status, said = run_with_handles(array, BETWEEN, path, deed)
    assert status == 0, said
    assert said == ""


FILES = (
    *("absences.py", "attachments.py", "idling.py", "joining.py", "leasing.py", "membership.py", "memories.py"),
    *("cells.py", "seats.py", "slabmaps.py", "slabwords.py", "slabs.py"),
)


def ours(filename: str) -> bool:
    """Say whether that is a file of which each step counts here."""
    return filename.endswith(FILES)


DEEDS: dict[str, Callable[[list[Any], bytes], object]] = {
    "leave": lambda held, _handle: held.clear(),
    "come back": lambda held, handle: held.append(pickle.loads(handle)),
}


@pytest.fixture(params=["large", "small"])
def owner(request: pytest.FixtureRequest) -> Iterator[Child]:
    """An owner in another process, which keeps nothing and has an array: a large one, or one that lies in a cell."""
    small = request.param == "small"
    arguments, env = (("0", "64"), {"SHMARRAY_SMALL": "32768"}) if small else (("0",), None)
    with Child(OWNER, *arguments, env=env) as started:
        yield started
        started.finish().expect()


class Handles:
    """Handles of the owner's array, each for one load; this process has no part in the store."""

    def __init__(self, owner: Child) -> None:
        """Take part for as long as it takes to know which store it is."""
        self.owner = owner
        store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        self.path = os.path.join(leaks.SHM, f"shmarray.{os.geteuid()}.{store.id}.ctl")

    def one(self) -> bytes:
        """Give a new one."""
        self.owner.tell("report('handle', pickle.dumps(array).hex())")
        handle = bytes.fromhex(self.owner.wait_for("handle"))
        self.owner.wait_for("done")
        return handle

    def parts(self) -> int:
        """How many processes take part."""
        return leases(self.path)


def _ready(deed: str, handles: Handles, held: list[Any]) -> bytes:
    held.append(pickle.loads(handles.one()))
    if deed == "leave":
        return b""
    held.clear()
    return handles.one()


@pytest.mark.core
@pytest.mark.parametrize("deed", DEEDS)
def test_an_interruption_at_any_step_of_leaving_and_coming_back_leaves_no_part(
    deed: str, owner: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a descriptor; and the next handle is loaded as ever."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    handles = Handles(owner)
    held: list[Any] = []
    for _ in range(2):
        _ready("leave", handles, held)
        held.clear()
    warm.trim_all()
    before = os.listdir("/proc/self/fd")
    for interrupter in interrupters(ours):
        handle = _ready(deed, handles, held)
        with interrupter, contextlib.suppress(Interrupted):
            DEEDS[deed](held, handle)
        assert all((view == 1.0).all() for view in held), interrupter.where
        held.clear()
        absences.settle()
        assert (pickle.loads(handles.one()) == 1.0).all(), interrupter.where
        assert handles.parts() == 1, interrupter.where
        warm.trim_all()
        assert len(os.listdir("/proc/self/fd")) <= len(before), interrupter.where


@pytest.mark.parametrize("deed", DEEDS)
def test_a_kill_at_any_line_of_leaving_and_coming_back_leaves_no_part(
    deed: str, owner: Child, request: pytest.FixtureRequest
) -> None:
    """The kernel lets go of all that the process had."""
    handles = Handles(owner)
    held: list[Any] = []
    step = 1 if request.config.getoption("--deep") else 7
    for n in range(1, 1000, step):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(2):
                    _ready("leave", handles, held)
                    held.clear()
                handle = _ready(deed, handles, held)
                with kill_at(n, ours):
                    DEEDS[deed](held, handle)
                os._exit(0)
            finally:
                os._exit(9)
        status = reap(pid)
        assert handles.parts() == 1, n
        assert (pickle.loads(handles.one()) == 1.0).all()
        if status == 0:  # it is done in fewer lines
            break
        assert status == -signal.SIGKILL, n
    assert n > 30
