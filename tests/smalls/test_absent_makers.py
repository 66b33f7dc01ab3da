"""A process that is sent the store with each task makes its small arrays in one slab, and in between keeps nobody's memory."""

from __future__ import annotations

import os
import pickle
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.leaks import SHM
from tests.smalls.test_absences import Worker
from tests.smalls.things import files, is_whole, loading, next_serial, place_of
from tests.warm.test_absences import leases, parts
from tests.warm.test_idling import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    import shmarray as sa

OF_ABSENCES = ("absences.py", "joining.py", "leasing.py", "membership.py", "memories.py")


class Maker(Worker):
    """A process that is sent the store with each task, and answers with an array."""

    def makes(self, store: sa.Store, serial: int) -> Any:
        """Have it make an array, and load that."""
        return pickle.loads(bytes.fromhex(self.do(task(store, serial))))


def task(store: sa.Store, serial: int) -> str:
    """Spell such a task."""
    return f"s = {loading(pickle.dumps(store))}; a = made(s, {serial}); said = pickle.dumps(a).hex(); del a, s"


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A process that has nothing of the store but what it is sent."""
    with Worker() as started:
        yield started
        started.finish().expect()


@pytest.fixture
def tasked() -> Iterator[Maker]:
    """Such a process."""
    with Maker() as started:
        yield started
        started.finish().expect()


@pytest.mark.core
def test_what_is_made_in_each_task_is_made_in_one_slab(store: sa.Store, tasked: Maker) -> None:
    """Many more arrays than it has cells; in between its maker is no part of the store, and maps it all the same."""
    first = tasked.makes(store, next_serial())  # it comes back only to where it has been before
    before = files(store, "s.")
    second = tasked.makes(store, next_serial())
    (entry,) = files(store, "s.") - before
    path = os.path.join(SHM, entry)
    with File(second) as file:
        numbers = set()
        for _ in range(300):
            array = tasked.makes(store, serial := next_serial())
            assert is_whole(array, serial)
            del array
            assert (parts(store), leases(path), tasked.maps(file)) == (1, 1, 1)
            numbers.add(tasked.numbers())
        assert files(store, "s.") == {*before, entry}
        assert len(numbers) == 1
    del first


def test_cells_that_somebody_sees_are_not_given_out_by_who_comes_back(
    store: sa.Store, tasked: Maker, worker: Worker
) -> None:
    """Here, in another process, or in a handle in flight; whatever its maker has forgotten meanwhile."""
    rng = random.Random(20261128)  # noqa: S311  not for secrets
    here: dict[int, Any] = {}
    sent: dict[int, bytes] = {}
    there: set[int] = set()
    worker.do("kept = {}")
    for _ in range(600):
        serial = next_serial()
        array = tasked.makes(store, serial)
        fate = rng.randrange(8)
        if fate == 0:
            here[serial] = array
        elif fate == 1:
            sent[serial] = pickle.dumps(array)
        elif fate == 2:
            worker.do(f"kept[{serial}] = {loading(pickle.dumps(array))}")
            there.add(serial)
        elif fate == 3:
            array.unlink()
        del array
        if len(here) > 30:
            serial, array = here.popitem()
            assert is_whole(array, serial)
            del array
        if len(sent) > 30:
            serial, handle = sent.popitem()
            array = pickle.loads(handle)
            assert is_whole(array, serial)
            del array
        if len(there) > 30:
            serial = there.pop()
            assert worker.do(f"said = is_whole(kept.pop({serial}), {serial})")
    assert all(is_whole(array, serial) for serial, array in here.items())
    assert worker.do("said = all(is_whole(array, serial) for serial, array in kept.items()); kept.clear()")
    here.clear()
    for serial, handle in sent.items():
        assert is_whole(pickle.loads(handle), serial)
    assert len(files(store, "s.")) < 6


def test_a_slab_whose_absent_maker_alone_maps_it_goes_with_its_memory(store: sa.Store, tasked: Maker) -> None:
    """The next array is made in another one, and the one before is not mapped any more."""
    for _ in range(2):
        array = tasked.makes(store, serial := next_serial())
    with File(array) as file:
        assert is_whole(array, serial)
        del array
        store.trim()
        assert (file.links(), file.memory() < 1 << 16, tasked.maps(file)) == (0, True, 1)
        assert is_whole(tasked.makes(store, serial := next_serial()), serial)
        assert tasked.maps(file) == 0
    store.trim()
    assert not files(store)


def test_a_slab_whose_maker_dies_while_it_is_absent_goes_with_the_last_who_looks_into_it(store: sa.Store) -> None:
    """As that of any dead maker does."""
    with Maker() as maker:
        for _ in range(2):
            array = maker.makes(store, serial := next_serial())
        maker.kill()
    assert is_whole(array, serial)
    assert pickle.loads(pickle.dumps(array)) is not None
    del array
    store.trim()
    assert not files(store)


def test_a_maker_that_is_sent_its_own_array_gives_out_of_its_slab_again(store: sa.Store, tasked: Maker) -> None:
    """It looks into it as any other process does, and then makes the next one there, once it makes any."""
    for _ in range(2):
        array = tasked.makes(store, serial := next_serial())
    there = files(store, "s.")
    for _ in range(3):
        assert tasked.do(f"b = {loading(pickle.dumps(array))}; said = is_whole(b, {serial})")
        other = tasked.makes(store, serial := next_serial())
        assert is_whole(other, serial)
        assert tasked.do("said = place_of(b)[0]") == place_of(other)[0] == place_of(array)[0]
        tasked.do("del b")
        array = other
    assert files(store, "s.") == there


@pytest.mark.parametrize("when", ["absent", "present"])
def test_a_child_gives_nothing_out_of_the_slab_of_its_absent_parent(store: sa.Store, tasked: Maker, when: str) -> None:
    """Nor does the parent, if the fork came while it had the lease: the child may have it for ever."""
    for _ in range(2):
        array = tasked.makes(store, serial := next_serial())
    kept = [(array, serial)]
    tasked.do("go, done, back = os.pipe(), os.pipe(), os.pipe()")
    child = f"{task(store, serial := next_serial())}; os.write(back[1], said.encode()); os.read(go[0], 1); os._exit(0)"
    fork = f"pid = os.fork(); pid or exec({child!r})"
    if when == "absent":
        tasked.do(fork)
    else:
        mine = next_serial()
        said = tasked.do(
            f"s = {loading(pickle.dumps(store))}; a = made(s, {mine}); {fork}; said = pickle.dumps(a).hex(); del a, s"
        )
        kept.append((pickle.loads(bytes.fromhex(said)), mine))
    kept.append((pickle.loads(bytes.fromhex(tasked.do("said = os.read(back[0], 1000).decode()"))), serial))
    for _ in range(200):
        array = tasked.makes(store, serial := next_serial())
        assert is_whole(array, serial)
        kept.append((array, serial))
        if len(kept) > 20:
            kept.pop(len(kept) // 2)
    assert all(is_whole(array, serial) for array, serial in kept)
    assert tasked.do("os.write(go[1], b'1'); said = os.waitpid(pid, 0)[1]") == 0
    del array
    kept.clear()
    store.trim()
    store.check(fix=True)
    assert not files(store)


def test_a_child_makes_its_arrays_in_slabs_of_its_own(store: sa.Store, tasked: Maker) -> None:
    """Though it maps its parent's: however often it asks who looks at what it has dropped, it asks of none of those."""
    kept = [tasked.makes(store, serial := next_serial()) for _ in range(2)]
    tasked.do(
        f"s = {loading(pickle.dumps(store))}; a = made(s, {next_serial()}); mine = place_of(a)[0]; back = os.pipe()"
    )
    child = """from tests.smalls.things import ask
there = set()
for serial in range(10**6, 10**6 + 400):
    b = made(s, serial)
    pickle.dumps(b)
    there.add(place_of(b)[0])
    s.release_unclaimed()
    del b
    ask(s)
os.write(back[1], str(mine in there).encode())
os._exit(0)"""
    tasked.do(f"pid = os.fork(); pid or exec({child!r})")
    assert tasked.do("said = os.read(back[0], 100).decode()") == "False"
    assert tasked.do("said = os.waitpid(pid, 0)[1]; del a, s") == 0
    assert is_whole(kept[-1], serial)


def test_a_child_that_is_forked_as_its_parent_comes_back_to_its_slab_gives_nothing_out_of_it(
    store: sa.Store, tasked: Maker
) -> None:
    """In the midst of that the slab is in no table, where the child would find that it is its parent's."""
    kept = [(tasked.makes(store, serial := next_serial()), serial) for _ in range(3)]
    tasked.do("""from shmarray import memories
take, pids, back = memories.Memory.take_lease_again, [], os.pipe()

def forking(self):
    taken = take(self)
    if self.size > 1 << 16 and not pids:
        pids.append(os.fork())
    return taken

memories.Memory.take_lease_again = forking""")
    serial = next_serial()
    child = "mine = [made(s, 10**6 + n) for n in range(200)]; os.write(back[1], bytes([is_whole(a, {serial})])); os._exit(0)"
    text = f"""s = {loading(pickle.dumps(store))}
a = made(s, {serial})
if pids == [0]:
    {child.replace("{serial}", str(serial))}
memories.Memory.take_lease_again = take
said = pickle.dumps(a).hex()
del a, s"""
    kept.append((pickle.loads(bytes.fromhex(tasked.do(text))), serial))
    assert tasked.do("said = [os.waitpid(pids[0], 0)[1], len(pids), os.read(back[0], 1)[0]]") == [0, 1, 1]
    kept.extend((tasked.makes(store, serial := next_serial()), serial) for _ in range(30))
    assert all(is_whole(array, number) for array, number in kept)


@pytest.mark.parametrize("keeps", [True, False], ids=["by its lease", "by a descriptor of its own"])
def test_memory_of_a_slab_that_its_maker_removes_does_not_stay_for_who_is_absent(
    store: sa.Store, tasked: Maker, worker: Worker, *, keeps: bool
) -> None:
    """Whether the maker can leave it to others, or is there for the first time."""
    times = 2 if keeps else 1
    for _ in range(times):
        tasked.do(f"s = {loading(pickle.dumps(store))}; a = made(s, {(serial := next_serial())})")
        if _ < times - 1:
            tasked.do("del a, s")
    for _ in range(2):
        assert worker.do(
            f"b = {loading(bytes.fromhex(tasked.do('said = pickle.dumps(a).hex()')))}; said = is_whole(b, {serial}); del b"
        )
    (entry,) = files(store, "s.")
    with open(os.path.join(SHM, entry), "rb") as file:
        inode = str(os.fstat(file.fileno()).st_ino)
        tasked.do("del a; s.trim()")
        assert not files(store, "s.")
        assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 16
        with open(f"/proc/{worker.pid}/maps") as maps:
            assert inode in [line.split()[4] for line in maps if "/dev/shm/" in line]
    tasked.do("del s")


_MAKING = """
import gc
from tests.helpers import sweeps
from tests.helpers.tracing import within_package
from tests.smalls.deaths import of_smalls
from tests.smalls.test_absent_makers import OF_ABSENCES
from tests.warm.test_absences import leases
from shmarray import cells, slabmaps
gc.disable()
sys.unraisablehook = lambda _: None  # in a finalizer no exception can come out
seen, made_here = {}, []

def make():
    s = pickle.loads(handle)
    a = made(s, serial)
    said = pickle.dumps(a)
    del a, s
    made_here.append(said)

def look(where):
    for _ in range(2):
        made_here.clear()
        make()
        b = pickle.loads(made_here.pop())
        assert is_whole(b, serial)
        del b
    with open("/proc/self/maps") as maps:
        mapped = [line.split()[4] for line in maps if ".s." in line]
    left = len(cells.ended), len(slabmaps.ended), len(slabmaps._leaving)
    seen.setdefault((len(set(mapped)) == len(mapped), len(mapped) < 10, len(os.listdir("/proc/self/fd")) < 40, *left), where)

make()
make()
made_here.clear()
said = sweeps.interrupt_everywhere(lambda: None, make, look, lambda file: of_smalls(file) or within_package(file).startswith(OF_ABSENCES))
said = said, list(seen.items())
"""


def test_a_maker_that_is_interrupted_at_any_point_comes_back_as_ever(store: sa.Store, tasked: Maker) -> None:
    """Whatever it has lost then, it maps each slab once, has no lease in between, and what it makes is whole."""
    kept = [tasked.makes(store, serial := next_serial()) for _ in range(3)]
    tasked.do(f"serial, handle = {next_serial()}, bytes.fromhex({pickle.dumps(store).hex()!r})")
    number, seen = tasked.do(_MAKING)
    assert number > 50
    assert [said for said, _ in seen] == [[True, True, True, 0, 0, 0]], seen
    assert parts(store) == 1
    for entry in files(store, "s."):
        assert leases(os.path.join(SHM, entry)) <= 1
    assert is_whole(kept[-1], serial)
    store.release_unclaimed()
    kept.clear()
    store.trim()
    store.check(fix=True)
    assert not files(store)
