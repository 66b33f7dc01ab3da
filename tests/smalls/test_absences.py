"""A process that is sent small arrays, task after task, finds its slabs and its seat again, and in between keeps nobody's memory."""

from __future__ import annotations

import os
import pickle
import signal
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import memories, seats
from shmarray._format import control
from shmarray._os import flocks, segments
from tests.helpers.leaks import SHM
from tests.helpers.processes import wait_until
from tests.smalls.things import Partner, ask, files, loading, made, next_serial
from tests.warm.test_absences import leases, parts
from tests.warm.test_idling import File

if TYPE_CHECKING:
    from collections.abc import Iterator


class Worker(Partner):
    """A process that has nothing of the store but what it is sent."""

    def maps(self, file: File) -> int:
        """How often it maps a file, from outside."""
        with open(f"/proc/{self.pid}/maps") as maps:
            return sum(line.split()[4] == str(file.inode) for line in maps if "/dev/shm/" in line)

    def numbers(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def take(self, array: Any, serial: int) -> None:
        """Have it load an array, find it whole, and let go of it: twice, for it comes back only to where it has been before."""
        for _ in range(2):
            assert self.do(f"a = {loading(pickle.dumps(array))}; said = is_whole(a, {serial}); del a")


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Such a process."""
    with Worker() as started:
        yield started
        started.finish().expect()


@pytest.fixture
def maker(store: sa.Store) -> Iterator[Worker]:
    """Another process, which has the store and makes arrays in it; it is killed in the end."""
    with Worker() as started:
        started.do(f"store = {loading(pickle.dumps(store))}")
        yield started


def path_of(store: sa.Store) -> str:
    """Find the one slab that there is."""
    (entry,) = files(store, "s.")
    return os.path.join(SHM, entry)


@pytest.mark.core
def test_a_worker_finds_its_slab_and_its_seat_again_and_is_no_part_of_the_store_in_between(
    store: sa.Store, worker: Worker
) -> None:
    """The slab is mapped at one place all the time, and leased only while there is something to look at."""
    array = made(store, serial := next_serial())
    where = "a.ctypes.data, cells.view_of(a).member.seat.index"
    worker.do("from shmarray import cells")
    worker.take(array, serial)
    with File(array) as file:
        seen = set()
        for _ in range(10):
            said = worker.do(f"a = {loading(pickle.dumps(array))}; said = [is_whole(a, {serial}), {where}]")
            assert (parts(store), leases(path_of(store))) == (2, 2)
            worker.do("del a")
            assert (parts(store), leases(path_of(store)), worker.maps(file)) == (1, 1, 1)
            seen.add((*said, worker.numbers()))
    assert len(seen) == 1
    assert seen.pop()[0] is True


def test_cells_are_used_again_for_the_next_arrays_that_are_sent(store: sa.Store, worker: Worker) -> None:
    """A seat that is kept by who is not there keeps no array."""
    for _ in range(300):
        array = made(store, serial := next_serial())
        assert worker.do(f"a = {loading(pickle.dumps(array))}; said = is_whole(a, {serial}); del a")
        del array
    assert len(files(store)) == 1
    assert os.stat(path_of(store)).st_size < 1 << 20


@pytest.mark.parametrize("how", ["trim", "close"])
def test_memory_of_a_slab_that_is_removed_does_not_stay_for_who_is_absent(
    store: sa.Store, worker: Worker, how: str
) -> None:
    """And the next handle, to an array in another slab, is loaded as ever; after the end of the store it is refused."""
    array = made(store, serial := next_serial())
    worker.take(array, serial)
    handle = pickle.dumps(array)
    with File(array) as file:
        assert file.memory() >= 1 << 16
        if how == "close":
            del array
            store.close()
            assert (file.links(), file.memory() < 1 << 16) == (0, True)
            assert worker.fails(f"a = {loading(handle)}") == "StoreClosedError"
        else:
            array.unlink()
            del array
            store.trim()
            assert (file.links(), file.memory() < 1 << 16) == (0, True)
            assert worker.fails(f"a = {loading(handle)}") == "ArrayNotFoundError"
            other = made(store, serial := next_serial())
            worker.take(other, serial)
            del other
        assert worker.maps(file) == 0


def test_memory_of_a_slab_goes_with_the_last_who_looks_into_it_after_the_end_of_the_store(
    store: sa.Store, worker: Worker
) -> None:
    """Who has an array still has it; and when that goes, it is not for ever what another one, who is absent, maps."""
    array = made(store, serial := next_serial())
    worker.take(array, serial)
    with File(array) as file, Worker() as last:
        last.take(array, serial)
        last.do(f"a = {loading(pickle.dumps(array))}")
        del array
        store.close()
        assert (file.links(), file.memory() < 1 << 16) == (0, False)
        assert last.do(f"said = is_whole(a, {serial}); del a")
        assert file.memory() < 1 << 16
        assert (worker.maps(file), last.maps(file)) == (1, 0)
        last.finish().expect()


def sent_by(maker: Worker, serial: int, number: int) -> list[bytes]:
    """Have an array made, and some handles of it."""
    said = maker.do(f"a = made(store, {serial}); said = [pickle.dumps(a).hex() for _ in range({number})]")
    return [bytes.fromhex(handle) for handle in said]


@pytest.mark.parametrize("keeps", [True, False], ids=["it has it", "it is absent"])
def test_a_slab_whose_maker_has_died_goes_with_the_last_who_looks_into_it(
    store: sa.Store, maker: Worker, worker: Worker, *, keeps: bool
) -> None:
    """Who maps it and is absent does not look; who comes to be absent is told that it was the last."""
    handles = sent_by(maker, serial := next_serial(), 3)
    for handle in handles[:2]:
        assert worker.do(f"a = {loading(handle)}; said = is_whole(a, {serial}); del a")
    assert worker.do(f"a = {loading(handles[2])}; said = is_whole(a, {serial})")
    with open(path_of(store), "rb") as file:
        guardian = store.guardian_pid
        assert guardian is not None
        if not keeps:
            worker.do("del a")
        os.kill(guardian, signal.SIGSTOP)  # so that it is nobody else who removes it
        try:
            maker.kill()
            if keeps:
                assert files(store, "s.")
                assert worker.do(f"said = is_whole(a, {serial}); del a")
            else:
                store.check(fix=True)
            assert not files(store)
            assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 16
        finally:
            os.kill(guardian, signal.SIGCONT)


def test_a_handle_in_flight_keeps_the_slab_of_a_dead_maker_for_who_is_absent(
    store: sa.Store, maker: Worker, worker: Worker
) -> None:
    """It comes back and finds the array."""
    handles = sent_by(maker, serial := next_serial(), 3)
    for handle in handles[:2]:
        assert worker.do(f"a = {loading(handle)}; said = is_whole(a, {serial}); del a")
    maker.kill()
    store.check(fix=True)
    assert worker.do(f"a = {loading(handles[2])}; said = is_whole(a, {serial})")
    worker.do("del a")
    wait_until(lambda: not files(store), 10, "the slab stays")


def test_a_slab_that_is_gone_is_let_go_of_when_the_next_one_is(store: sa.Store, maker: Worker, worker: Worker) -> None:
    """The memory of a slab whose remover was killed in the midst of it, say, does not stay for ever."""
    one, two = sent_by(maker, next_serial(), 2)
    for handle in (one, two):
        worker.do(f"a = {loading(handle)}; del a")
    with open(path_of(store), "rb") as file:
        inode = str(os.fstat(file.fileno()).st_ino)
        os.unlink(file.name)
        array = made(store, serial := next_serial())
        worker.take(array, serial)
        with open(f"/proc/{worker.pid}/maps") as maps:
            assert inode not in [line.split()[4] for line in maps if "/dev/shm/" in line]


def test_parent_and_child_come_back_each_by_itself(store: sa.Store, worker: Worker) -> None:
    """What the parent had kept is not the child's, and stays the parent's."""
    array = made(store, serial := next_serial())
    worker.take(array, serial)
    mine, childs = (loading(pickle.dumps(array)) for _ in range(2))
    with File(array) as file:
        line = f"a = {childs}; os.write(done[1], b'1'); os.read(go[0], 1); os._exit(not is_whole(a, {serial}))"
        worker.do(f"go, done = os.pipe(), os.pipe(); pid = os.fork(); pid or exec({line!r})")
        worker.do("os.read(done[0], 1)")
        assert worker.do(f"b = {mine}; said = is_whole(b, {serial})")
        assert leases(path_of(store)) == 3
        worker.do("del b")
        assert leases(path_of(store)) == 2
        assert worker.do("os.write(go[1], b'1'); said = os.waitpid(pid, 0)[1]") == 0
        assert (leases(path_of(store)), worker.maps(file)) == (1, 1)


def test_seats_of_who_is_absent_leave_enough_for_others(store: sa.Store, worker: Worker) -> None:
    """Where more than half are taken, one is given up with each array, as it is by who comes for the first time."""
    array = made(store, serial := next_serial())
    member = store._open()
    taken = [seats.take(member) for _ in range(control.SEATS // 2)]
    worker.take(array, serial)
    free = [seats.take(member) for _ in range(control.SEATS)]
    assert len([seat for seat in free if seat is not None]) == control.SEATS // 2 - 1  # the store's own is taken too
    free.clear()
    taken.clear()
    worker.take(array, serial)
    free = [seats.take(member) for _ in range(control.SEATS)]
    assert len([seat for seat in free if seat is not None]) == control.SEATS - 2


def test_a_slab_that_crossed_a_fork_goes_with_the_last_who_looks_into_it(
    store: sa.Store, maker: Worker, worker: Worker
) -> None:
    """By the descriptor of its lease nothing can be asked any more, for a child may have that: so it is asked anew."""
    handles = sent_by(maker, next_serial(), 3)
    for handle in handles[:2]:
        worker.do(f"a = {loading(handle)}; del a")
    worker.do(f"a = {loading(handles[2])}; pid = os.fork(); pid or os._exit(0)")
    guardian = store.guardian_pid
    assert guardian is not None
    os.kill(guardian, signal.SIGSTOP)  # so that it is nobody else who removes it
    try:
        assert worker.do("said = os.waitpid(pid, 0)[1]") == 0
        maker.kill()
        assert files(store, "s.")
        worker.do("del a")
        assert not files(store)
    finally:
        os.kill(guardian, signal.SIGCONT)


def test_a_process_keeps_a_few_slabs_while_it_is_absent(store: sa.Store, worker: Worker) -> None:
    """However many there are: each costs a descriptor."""
    arrays = [store.full(64 * step, step) for step in range(1, 17)]
    few, many = [], []
    for array in arrays[:8] * 2:
        worker.do(f"a = {loading(pickle.dumps(array))}; del a")
        few.append(worker.numbers())
    for array in arrays * 2:
        worker.do(f"a = {loading(pickle.dumps(array))}; del a")
        many.append(worker.numbers())
    assert len(files(store, "s.")) >= 12
    assert max(many) == max(few)


def test_slabs_of_who_has_come_back_for_another_one_are_let_go_of_where_there_is_no_descriptor(
    store: sa.Store, worker: Worker
) -> None:
    """What was kept to save time costs nobody an array."""
    arrays = [store.full(64 * step, step) for step in range(1, 6)]
    for array in [*arrays, *arrays]:
        worker.do(f"a = {loading(pickle.dumps(array))}; del a")
    worker.do(f"a = {loading(pickle.dumps(arrays[0]))}")
    new = store.full(512, 7.0)
    worker.do("import resource; limits = resource.getrlimit(resource.RLIMIT_NOFILE)")
    worker.do("resource.setrlimit(resource.RLIMIT_NOFILE, (1 + max(map(int, os.listdir('/proc/self/fd'))), limits[1]))")
    worker.do("""taken = []
while True:
    try:
        taken.append(os.dup(0))
    except OSError:
        break""")
    assert worker.do(f"b = {loading(pickle.dumps(new))}; said = float(b.sum())") == 512 * 7.0
    worker.do("resource.setrlimit(resource.RLIMIT_NOFILE, limits)")


def test_memory_of_a_removed_slab_does_not_stay_for_who_was_about_to_come_back_to_it(
    store: sa.Store, worker: Worker
) -> None:
    """Whoever removes it finds a lease, and leaves it to who has that; others are absent, and map it."""
    array = made(store, serial := next_serial())
    worker.take(array, serial)
    with File(array) as file, Worker() as other:
        other.take(array, serial)
        handle = pickle.dumps(array)
        other.do("""from shmarray import memories
links = memories.Memory.links
def slow(self):
    if self.size >= 1 << 16:
        report("there", None)
        sys.stdin.readline()
    return links(self)
memories.Memory.links = slow""")
        other.begin(f"a = {loading(handle)}")
        other.wait_for("there")
        array.unlink()
        del array
        store.trim()
        assert (file.links(), file.memory() < 1 << 16) == (0, False)
        other.tell("")
        other.wait_for("error")
        assert (file.memory() < 1 << 16, worker.maps(file), other.maps(file)) == (True, 1, 0)
        other.do("memories.Memory.links = links")
        other.finish().expect()


def test_a_lease_that_a_handler_forked_in_the_midst_of_letting_go_of_is_not_taken_again(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child goes on where its parent was, with the same open file description: it would unlock the next one as well."""
    array = made(store, next_serial())
    fd = segments.open_existing(path_of(store))
    flocks.share(fd)
    memory = memories.keep_lease(fd, segments.status(fd))
    let_go = flocks.let_go

    def forking(fd: flocks.HasFileno) -> bool:
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        return let_go(fd)

    monkeypatch.setattr(flocks, "let_go", forking)
    assert memory is not None
    assert not memory.leave_to_others()
    memory.close()
    fd.close()
    del array


def test_a_seat_that_has_crossed_a_fork_is_not_kept_where_most_are_taken(store: sa.Store, worker: Worker) -> None:
    """It is of no use any more."""
    array = made(store, serial := next_serial())
    worker.take(array, serial)
    worker.do("pid = os.fork(); pid or os._exit(0)")
    assert worker.do("said = os.waitpid(pid, 0)[1]") == 0
    member = store._open()
    taken = [seats.take(member) for _ in range(control.SEATS // 2)]
    worker.take(array, serial)
    taken += [seats.take(member) for _ in range(control.SEATS)]
    assert len([seat for seat in taken if seat is not None]) == control.SEATS - 1  # the store's own is taken too


def test_a_store_that_is_closed_while_a_handle_is_loaded_says_so(store: sa.Store, worker: Worker) -> None:
    """Also to who looks at something in the same slab, and finds that nobody else looks at the array."""
    one, two = made(store, serial := next_serial()), made(store, next_serial())
    worker.do(f"a = {loading(pickle.dumps(one))}")
    worker.do("""from shmarray import cells
look = cells.look
def slow(*args, **how):
    report("there", None)
    sys.stdin.readline()
    return look(*args, **how)
cells.look = slow""")
    worker.begin(f"b = {loading(pickle.dumps(two))}")
    worker.wait_for("there")
    del one, two
    store.close()
    worker.tell("")
    assert worker.wait_for("error") == "StoreClosedError"
    assert worker.do(f"said = is_whole(a, {serial}); cells.look = look")


def test_who_joins_anew_while_the_part_before_ends_has_each_slab_once(store: sa.Store, worker: Worker) -> None:
    """Else the end of one view of an array would be taken for that of another one of it, and the cell be used again."""
    array = made(store, serial := next_serial())
    worker.take(array, serial)
    one, two = (loading(pickle.dumps(array)) for _ in range(2))
    worker.do(f"from shmarray import cells, slabmaps; a = {one}; store = cells.view_of(a).member.key.store")
    worker.do("slabmaps._left(slabmaps._parts[store])  # as at the end of the part before, in another thread")
    worker.do(f"b = {two}; del a")
    del array
    ask(store)
    others = [made(store, next_serial()) for _ in range(40)]
    assert worker.do(f"said = is_whole(b, {serial})")
    worker.do("del b")
    assert others
    assert parts(store) == 1


_INTERRUPTED = """
import gc
from tests.helpers import sweeps
from tests.helpers.tracing import within_package
from tests.smalls.deaths import of_smalls
from tests.warm.test_absences import leases
from shmarray import cells, slabmaps
gc.disable()
sys.unraisablehook = lambda _: None  # in a finalizer no exception can come out
OTHERS = ("absences.py", "joining.py", "leasing.py", "membership.py", "memories.py")
handles, seen = iter(handles), {}

def take():
    a = pickle.loads(bytes.fromhex(next(handles)))
    assert is_whole(a, serial)
    del a

def look(where):
    take()
    take()
    with open("/proc/self/maps") as maps:
        mapped = sum(line.split()[4] == inode for line in maps if "/dev/shm/" in line)
    left = len(cells.ended), len(slabmaps.ended), len(slabmaps._leaving)
    seen.setdefault((mapped, leases(path), len(os.listdir("/proc/self/fd")), *left), where)

take()
look("")
said = sweeps.interrupt_everywhere(lambda: None, take, look, lambda file: of_smalls(file) or within_package(file).startswith(OTHERS))
said = said, list(seen.items())
"""


def test_a_worker_that_is_interrupted_at_any_point_comes_back_as_ever(store: sa.Store, worker: Worker) -> None:
    """It maps the slab once, lets go of the lease, and has as many descriptors as before."""
    array = made(store, serial := next_serial())
    path = path_of(store)
    worker.do(f"serial, path, inode, handles = {serial}, {path!r}, '{os.stat(path).st_ino}', []")
    for _ in range(10):
        worker.do(f"handles += {[pickle.dumps(array).hex() for _ in range(60)]}")
    number, seen = worker.do(_INTERRUPTED)
    assert number > 30
    assert [said[:2] for said, _ in seen] == [[1, 1]], seen
