"""Memory of freed arrays is used again by the owner, and only when nobody can see it any more."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import contents, warm
from shmarray._format import header
from shmarray._os import flocks, segments
from tests.helpers.leaks import SHM
from tests.helpers.processes import Child, reap, run_script

if TYPE_CHECKING:
    from collections.abc import Callable

N = 1000

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("small_is_kept")]


def file_of(array: sa.SharedArray) -> int:
    """Inode of the file in which an array lies."""
    return contents.inode_of(array)


def kept(store: sa.Store) -> list[str]:
    """Names of the files kept warm, from outside: those that say so by their names, and blocks that rest."""
    prefix = f"shmarray.{os.geteuid()}.{store.id}."
    there = [entry for entry in os.listdir(SHM) if entry.startswith((f"{prefix}w.", f"{prefix}a."))]
    return [entry for entry in there if entry.startswith(f"{prefix}w.") or _rests(os.path.join(SHM, entry))]


def _rests(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(header.STATE_AT - header.SIZE, os.SEEK_END)
        return file.read(8) == header.RESTING.to_bytes(8, "little")


def freed_anonymous(store: sa.Store) -> int:
    """Make and drop an anonymous array of ones."""
    array = store.ones(N)
    file = file_of(array)
    del array
    return file


def freed_with_a_lock(store: sa.Store) -> int:
    """The same of one that others might have seen: it does not rest, its file is kept."""
    array = store.ones(N)
    assert array.lock is not None
    file = file_of(array)
    del array
    return file


def deleted_in_use(store: sa.Store) -> int:
    """Delete a named array, then drop it."""
    array = store.ones(N, name="x")
    file = file_of(array)
    del store["x"]
    assert "x" not in store
    assert array.sum() == N
    del array
    return file


def unlinked(store: sa.Store) -> int:
    """Make an array in a scope of its own, which deletes it."""
    with store.ones(N, name="x") as array:
        file = file_of(array)
    del array
    return file


def tree(store: sa.Store) -> int:
    """Put and drop a structure of arrays."""
    made = store.put({"a": np.ones(N), "b": np.ones(N)})
    file = file_of(made["a"])
    del made
    return file


def replaced(store: sa.Store, value: np.ndarray) -> sa.SharedArray:
    """Publish an array under a name that has another."""
    store["y"] = np.zeros(3)
    store["y"] = value
    array: sa.SharedArray = store["y"]
    return array


@pytest.mark.parametrize("free", [freed_anonymous, freed_with_a_lock, deleted_in_use, unlinked])
@pytest.mark.parametrize(
    "make", ["zeros", "empty", "full", "put", "put in F order", "put with gaps", "named", "replace"]
)
def test_a_freed_array_makes_room_for_the_next(store: sa.Store, free: Callable[[sa.Store], int], make: str) -> None:
    """The same file, with the new array's contents, whatever way it is made; nothing more is there than before."""
    file = free(store)
    assert len(kept(store)) == 1
    assert store.stats().warm > 0
    source = np.arange(N, dtype="f8").reshape(20, 50)
    gaps = np.arange(2 * N, dtype="f8").reshape(40, 50)[::2]
    ways: dict[str, tuple[Callable[[], Any], Any]] = {
        "zeros": (lambda: store.zeros(N), np.zeros(N)),
        "empty": (lambda: store.empty(N), np.ones(N)),
        "full": (lambda: store.full(N, 3.0), np.full(N, 3.0)),
        "put": (lambda: store.put(source), source),
        "put in F order": (lambda: store.put(source.T), source.T),
        "put with gaps": (lambda: store.put(gaps), gaps),
        "named": (lambda: store.put(source, name="y"), source),
        "replace": (lambda: replaced(store, source), source),
    }
    act, expected = ways[make]
    array = act()
    assert file_of(array) == file
    assert len(kept(store)) == (make == "replace")  # what was replaced
    assert np.array_equal(array, expected)
    assert store.check() == []
    assert pickle.loads(pickle.dumps(array)).tolist() == expected.tolist()


def test_a_tree_is_kept_like_an_array(store: sa.Store) -> None:
    """All of its block, for another tree, whose gaps do not matter."""
    file = tree(store)
    again = store.put([np.zeros(N), np.arange(N)])
    assert file_of(again[0]) == file
    assert (again[0].sum(), again[1].tolist()) == (0, list(range(N)))


def test_what_was_freed_last_is_used_first(store: sa.Store) -> None:
    """It is still in the processor's cache."""
    arrays = [store.zeros(N) for _ in range(3)]
    files = [file_of(array) for array in arrays]
    while arrays:
        del arrays[0]
    arrays = [store.zeros(N) for _ in range(3)]
    assert [file_of(array) for array in arrays] == files[::-1]


def test_a_file_is_used_for_what_nearly_fills_it(store: sa.Store) -> None:
    """Neither for what would leave much of it unused nor for what does not fit."""
    file = freed_anonymous(store)
    small, large = store.zeros(N // 2), store.zeros(2 * N)
    assert file not in (file_of(small), file_of(large))
    assert file_of(store.zeros(N - 10)) == file


def test_publishing_again_and_again_takes_two_files(store: sa.Store) -> None:
    """What is replaced is where the next but one goes; who has the old one keeps it, and its file is left alone until then."""
    files = []
    for turn in range(6):
        store["w"] = np.full(N, float(turn))
        files.append(file_of(store["w"]))
        assert (store["w"] == turn).all()
    assert len(set(files)) == 2
    held = store["w"]
    for turn in range(4):
        store["w"] = np.full(N, turn + 0.5)
    assert (held == 5).all()
    assert store.check() == []
    del held
    del store["w"]
    assert store.stats().named == store.stats().anonymous == 0
    again = [store.zeros(N) for _ in range(3)]
    assert set(files) <= {file_of(array) for array in again}


def test_deleting_by_name_what_nobody_has_keeps_its_memory(store: sa.Store) -> None:
    """Also when the owner has looked it up again meanwhile."""
    for look in (False, True):
        file = file_of(store.ones(N, name="x"))
        if look:
            seen = store["x"]
            store["x"].unlink()
            del seen
        else:
            del store["x"]
        assert file_of(store.zeros(N)) == file


WORKER = """
import pickle
from tests.helpers.processes import report
store = pickle.loads(bytes.fromhex(input()))
report("joined")
while (text := input()) != "end":
    exec(text)
    report("done")
"""


@pytest.mark.parametrize(
    "deed", ["del store['x']", "store['x'] = __import__('numpy').full(1, 7.0)", "store['x'].unlink()"]
)
def test_what_another_process_deletes_or_replaces_is_given_back(store: sa.Store, deed: str) -> None:
    """The owner made it and has no view of it: its memory is not used again, and goes at the owner's next step."""
    file = file_of(store.ones(N, name="x"))
    with Child(WORKER) as worker:
        worker.tell(pickle.dumps(store).hex())
        worker.wait_for("joined")
        worker.tell(deed)
        worker.wait_for("done")
        arrays = [store.zeros(N) for _ in range(2)]
        assert file not in [file_of(array) for array in arrays]
        if "=" in deed:
            assert store["x"].tolist() == [7.0]
            del store["x"]
        del arrays
        store.trim()
        assert store.stats().nbytes == 0
        worker.tell("end")
        worker.finish().expect()


def test_threads_that_publish_and_delete_one_name_share_no_memory(store: sa.Store) -> None:
    """While others look it up, what they find is of one number, and the store is in order at the end."""
    stop = threading.Event()
    wrong: list[Any] = []

    def publish(number: int) -> None:
        while not stop.is_set():
            store["w"] = np.full(N, float(number))
            with contextlib.suppress(sa.ArrayNotFoundError):
                del store["w"]

    def look() -> None:
        while not stop.is_set():
            with contextlib.suppress(sa.ArrayNotFoundError):
                array = store["w"]
                if array.min() != array.max() or array[0] not in (1, 2):
                    wrong.append((array.min(), array.max()))

    threads = [threading.Thread(target=publish, args=(number,)) for number in (1, 2)]
    threads += [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    stop.wait(1.5)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert wrong == []
    assert store.check() == []


def attached_elsewhere(store: sa.Store) -> tuple[int, Callable[[], None]]:
    """Another process maps it."""
    array = store.ones(N)
    file = file_of(array)
    child = Child(
        "import sys, pickle\nfrom tests.helpers.processes import report\n"
        "array = pickle.loads(bytes.fromhex(input()))\nreport('attached')\ninput()\n"
        "print(array.min(), array.max(), flush=True)\nreport('told', [float(array.min()), float(array.max())])\ninput()"
    )
    child.__enter__()
    child.tell(pickle.dumps(array).hex())
    child.wait_for("attached")
    del array

    def look() -> None:
        child.tell()
        assert child.wait_for("told") == [1, 1]
        child.__exit__()

    return file, look


def in_flight(store: sa.Store) -> tuple[int, Callable[[], None]]:
    """A handle to it was pickled and not loaded."""
    array = store.ones(N)
    file, handle = file_of(array), pickle.dumps(array)
    del array
    return file, lambda: np.testing.assert_array_equal(pickle.loads(handle), np.ones(N))


def crossed_a_fork(store: sa.Store) -> tuple[int, Callable[[], None]]:
    """A forked child has the mapping, on one lock with its parent."""
    array = store.ones(N)
    file = file_of(array)
    go, told = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(go[0], 1)
        os.write(told[1], bytes([int(array.min()), int(array.max())]))
        os._exit(0)
    del array

    def look() -> None:
        os.write(go[1], b"!")
        assert os.read(told[0], 2) == b"\1\1"
        assert reap(pid) == 0
        for end in (*go, *told):
            os.close(end)

    return file, look


def made_across_a_fork(store: sa.Store) -> tuple[int, Callable[[], None]]:
    """It was used again before, and the child has its mapping all the same."""
    freed_anonymous(store)
    return crossed_a_fork(store)


def named_still(store: sa.Store) -> tuple[int, Callable[[], None]]:
    """It has its name, and nobody a view."""
    file = file_of(store.ones(N, name="x"))
    return file, lambda: np.testing.assert_array_equal(store["x"], np.ones(N))


@pytest.mark.parametrize("see", [attached_elsewhere, in_flight, crossed_a_fork, made_across_a_fork, named_still])
def test_what_anyone_can_still_see_is_not_used_again(
    store: sa.Store, see: Callable[[sa.Store], tuple[int, Callable[[], None]]]
) -> None:
    """New arrays lie elsewhere, and who sees the old one sees what was in it."""
    file, look = see(store)
    arrays = [store.zeros(N) for _ in range(3)]
    assert file not in [file_of(array) for array in arrays]
    for array in arrays:
        array[:] = 7
    look()
    del arrays, array, look
    assert store.check() == []


READER = """
import pickle
from tests.helpers.processes import report
array = pickle.loads(bytes.fromhex(input()))
report("attached")
input()
report("seen", [float(array.min()), float(array.max())])
del array
report("dropped")
input()
"""


@pytest.mark.parametrize("end", ["dropped", "killed"])
def test_what_another_process_was_the_last_to_have_is_used_again(store: sa.Store, end: str) -> None:
    """The owner hands an array on and forgets it; when the other has dropped it, or died, the memory is there for the next."""
    array = store.ones(N)
    file = file_of(array)
    with Child(READER) as reader:
        reader.tell(pickle.dumps(array).hex())
        del array
        assert file_of(store.full(N, 5.0)) != file  # the handle is in flight, or mapped by now
        reader.wait_for("attached")
        assert file_of(store.full(N, 5.0)) != file
        if end == "killed":
            reader.kill()
        else:
            reader.tell()
            assert reader.wait_for("seen") == [1, 1]
            reader.wait_for("dropped")
        assert (store.stats().anonymous, store.stats().in_flight) == (0, 0)
        again = [store.zeros(N) for _ in range(2)]
        assert file in [file_of(array) for array in again]
        assert not any(array.any() for array in again)
        assert store.check() == []
        if end == "dropped":
            reader.tell()
            reader.finish().expect()


@pytest.mark.parametrize("kind", ["array", "tree"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_what_may_be_mapped_by_the_name_of_its_file_is_not_used_again(store: sa.Store, kind: str, where: str) -> None:
    """`SharedMemory(array.block_name)` has no lease: it goes on showing the array whose name was asked for, in whatever process."""
    made = store.ones(N) if kind == "array" else store.put([np.ones(N)])
    if where == "here":
        name = made.block_name
    else:
        with Child(NAMER) as namer:
            namer.tell(pickle.dumps(made).hex())
            name = namer.wait_for("name")
            namer.tell()
            namer.finish().expect()
    assert name is not None
    fd = os.open(os.path.join(SHM, name), os.O_RDWR)
    with mmap.mmap(fd, N * 8) as plain:
        os.close(fd)
        del made
        arrays = [store.full(N, 9.0), store.put([np.full(N, 9.0)])]
        assert np.frombuffer(plain[:], "f8").tolist() == [1.0] * N
        del arrays


NAMER = """
import pickle
from tests.helpers.processes import report
report("name", pickle.loads(bytes.fromhex(input())).block_name)
input()
"""


@pytest.mark.parametrize("give_up", ["trim", "bound", "close"])
def test_what_another_process_still_has_stays_its_own_when_the_owner_keeps_no_more(give_up: str) -> None:
    """The memory lives for as long as the other has it, and goes with it."""
    with sa.Store(warm=1 << 20) as store, Child(READER) as reader:
        array = store.ones(N)
        reader.tell(pickle.dumps(array).hex())
        reader.wait_for("attached")
        del array
        if give_up == "trim":
            assert store.trim() == 0
        elif give_up == "bound":
            arrays = [store.zeros(130_000) for _ in range(2)]
            del arrays
        else:
            store.close()
        reader.tell()
        assert reader.wait_for("seen") == [1, 1]
        reader.wait_for("dropped")
        if give_up == "trim":
            assert store.stats().anonymous == store.stats().nbytes == 0
        reader.tell()
        reader.finish().expect()


def test_a_handle_that_was_loaded_before_is_stale_afterwards(store: sa.Store) -> None:
    """Its array was freed and the memory is another array's: it is refused, and shows nothing of that."""
    array = store.ones(N)
    handle = pickle.dumps(array)
    file = file_of(array)
    assert pickle.loads(handle).sum() == N
    del array
    named = store.ones(N, name="x")
    assert file_of(named) == file
    stale = pickle.dumps(named)
    del store["x"], named
    new = store.full(N, 9.0, name="x")
    assert file_of(new) == file
    for old in (handle, stale):
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.loads(old)


def test_an_array_in_a_file_that_was_cut_off_is_an_error_and_no_signal() -> None:
    """Put into memory that is used again, as into fresh memory: `OSError`, and the store goes on."""
    assert run_script(CUT_OFF, env={"SHMARRAY_SMALLEST_WARM": "4096"}).expect() == "OSError OSError\n"


CUT_OFF = """
import os
import numpy as np
import shmarray as sa
np.ones(100_000).tofile("data")
source = np.memmap("data", float, "r+")
said = []
with sa.Store() as store:
    for turn in range(2):
        if turn:
            array = store.put(np.zeros(100_000))
            del array
            assert store.stats().warm
        os.truncate("data", 4096)
        try:
            store.put(source)
        except OSError as error:
            said.append(type(error).__name__)
        os.truncate("data", 800_000)
    assert store.put(source)[0] == 1
    assert store.check() == []
print(*said)
"""


OWNER = """
import pickle, sys
import shmarray as sa
from tests.helpers.processes import report
store = sa.Store(warm=1 << 20)
view = store.ones(1000, name="x") if sys.argv[1] == "name" else store.ones(1000)
report("ready", [pickle.dumps(store).hex(), pickle.dumps(view).hex(), pickle.dumps(view).hex()])
input()
if sys.argv[1] == "name":
    del store["x"]
del view
view = store.full(1000, 9.0)
report("changed")
input()
store.close()
"""


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("call", ["open_existing", "share", "status", "read"])
@pytest.mark.parametrize("way", ["name", "handle"])
def test_memory_used_again_in_the_middle_of_an_attach_is_not_taken_for_what_it_was(
    way: str,
    call: str,
    before: bool,  # noqa: FBT001  a parameter of a test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before or after a system call of an attach the owner frees the array and makes another: the old one, or none at all."""
    monkeypatch.setattr(warm, "SMALLEST", 1 << 30)  # it is opened each time: what stays mapped has tests of its own
    with Child(OWNER, way, env={"SHMARRAY_SMALLEST_WARM": "4096"}) as owner:
        invitation, first, second = (bytes.fromhex(text) for text in owner.wait_for("ready"))
        store = pickle.loads(invitation)
        array = pickle.loads(
            first
        )  # takes the link that was in flight: the next is refused or finds the block's own name
        del array
        module = flocks if call == "share" else segments
        real = getattr(module, call)
        turns: list[int] = []

        def step(*args: Any, **kwargs: Any) -> Any:
            turns.append(1)
            if len(turns) == 1 and before:
                change()
            result = real(*args, **kwargs)
            if len(turns) == 1 and not before:
                change()
            return result

        def change() -> None:
            owner.tell()
            owner.wait_for("changed")

        monkeypatch.setattr(module, call, step)
        found: Any = None
        try:
            found = store["x"] if way == "name" else pickle.loads(second)
        except sa.ArrayNotFoundError:
            pass
        finally:
            monkeypatch.setattr(module, call, real)
        assert turns
        assert found is None or (found == 1).all()
        del found, store
        owner.tell()
        owner.finish().expect()
