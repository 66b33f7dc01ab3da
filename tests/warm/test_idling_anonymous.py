"""Large arrays without a name that a process is sent again and again stay mapped there in between, and end with the last who has them."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import reaper, reclaim, warm
from shmarray._format import names
from shmarray._os import flocks, segments
from tests.helpers.leaks import SHM, shm_entries
from tests.helpers.processes import Child, reap, wait_until
from tests.helpers.sweeps import interrupters
from tests.helpers.tracing import Interrupted, Interrupter, kill_at
from tests.warm.test_idling import BYTES, FORK, File, N, Reader
from tests.warm.test_idling_attacks import load_while, ours, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("small_is_kept")


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store whose owner keeps nothing, so that what is there is others' doing."""
    with sa.Store(warm=0) as opened:
        yield opened


def sent(array: Any) -> str:
    """Write a handle of its own into the line that loads it."""
    return f"a = pickle.loads(bytes.fromhex({pickle.dumps(array).hex()!r}))"


def blocks(store: sa.Store) -> list[str]:
    """Which files of the store there are, but for its control file and slabs."""
    prefix = f"shmarray.{os.geteuid()}.{store.id}."
    kinds = [entry.removeprefix(prefix) for entry in shm_entries(prefix)]
    return [kind for kind in kinds if kind[:2] in ("a.", "h.", "n.", "w.")]


@pytest.mark.core
def test_a_mapping_stays_without_a_lease_and_is_what_the_next_handle_leads_to(store: sa.Store) -> None:
    """The bytes are the same ones all the time, what others wrote meanwhile is there, and no handle stays in flight."""
    array = store.ones(N)
    with File(array) as file, Reader(store) as reader:
        reader.do(sent(array) + "; del a")
        fresh = file.links()
        places = set()
        for turn in range(5):
            array[turn] += 1
            place, total = reader.do(sent(array) + "; answer = [a.ctypes.data, float(a.sum())]")
            places.add(place)
            assert total == N + turn + 1
            assert (reader.maps(file.inode), file.links()) == (1, fresh)
            reader.do("del a")
            assert reader.maps(file.inode) == 1
        assert len(places) == 1
        del array
        assert (file.links(), store.stats().nbytes) == (0, 0)
        reader.finish().expect()


def _owner_drops(store: sa.Store, array: list[Any], reader: Reader) -> None:
    del store, reader
    array.clear()


def _owner_deletes(store: sa.Store, array: list[Any], reader: Reader) -> None:
    del store, reader
    array[0].unlink()
    array.clear()


def _reader_is_last(store: sa.Store, array: list[Any], reader: Reader) -> None:
    del store
    reader.do(sent(array[0]))
    array.clear()
    assert reader.do("answer = float(a.sum())") == N
    reader.do("del a")


def _reader_deletes(store: sa.Store, array: list[Any], reader: Reader) -> None:
    del store
    reader.do(sent(array[0]) + "; a.unlink()")
    array.clear()
    assert reader.do("answer = float(a.sum())") == N
    reader.do("del a")


def _store_closes(store: sa.Store, array: list[Any], reader: Reader) -> None:
    del reader
    array.clear()
    store.close()


def _handles_are_released(store: sa.Store, array: list[Any], reader: Reader) -> None:
    del reader
    handle = pickle.dumps(array[0])
    array.clear()
    assert store.release_unclaimed() == 1
    del handle


def _store_closes_beside_a_viewer(store: sa.Store, array: list[Any], reader: Reader) -> None:
    reader.do(sent(array[0]))
    array.clear()
    store.close()
    assert reader.do("answer = float(a.sum())") == N
    reader.do("del a")


ENDS = (
    _owner_drops,
    _owner_deletes,
    _reader_is_last,
    _reader_deletes,
    _store_closes,
    _store_closes_beside_a_viewer,
    _handles_are_released,
)


@pytest.mark.core
@pytest.mark.parametrize("end", ENDS)
def test_its_memory_goes_with_the_last_who_has_it_though_others_map_it_idly(
    end: Callable[[sa.Store, list[Any], Reader], None], store: sa.Store
) -> None:
    """At once, whoever that is: file, name and memory."""
    array: list[Any] = [store.ones(N)]
    with File(array[0]) as file, Reader(store) as reader, Reader(store) as idle:
        stale = sent(array[0])
        for one in (reader, idle):
            one.do((stale if one is idle else sent(array[0])) + "; del a")
            assert one.maps(file.inode) == 1
        assert file.memory() >= BYTES
        end(store, array, reader)
        assert file.links() == 0
        assert file.memory() < BYTES // 2
        assert blocks(store) == []
        found = idle.do(stale)
        assert found == ("StoreClosedError" if store.closed else "ArrayNotFoundError")
        for one in (reader, idle):
            one.finish().expect()


@pytest.mark.parametrize("backwards", [False, True])
def test_its_memory_goes_with_the_store_in_whatever_order_its_names_are_removed(
    store: sa.Store,
    backwards: bool,  # noqa: FBT001  a parameter of a test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handle in flight is a name of it too, and each file system lists the names of a directory in an order of its own."""
    array, listed = store.ones(N), segments.entries
    monkeypatch.setattr(segments, "entries", lambda *place: sorted(listed(*place), reverse=backwards))
    with File(array) as file, Reader(store) as idle:
        idle.do(sent(array) + "; del a")
        assert sent(array)
        del array
        assert (file.links(), idle.maps(file.inode)) == (2, 1)
        store.close()
        assert (file.links(), file.memory() < BYTES // 2) == (0, True)
        idle.finish().expect()


def test_who_removes_a_name_that_is_not_the_last_does_not_keep_another_from_giving_the_memory_back(
    tmp_path: Path,
) -> None:
    """Of two who remove one name each, the first may still be at it when the second has removed the last one."""
    path = tmp_path / "block"
    path.write_bytes(bytes(BYTES))
    first, second = (segments.open_existing(str(path)) for _ in range(2))
    reclaim.give_back(first)
    assert flocks.try_exclusive(second)
    first.close()
    second.close()


SWEEPS: dict[str, Callable[[sa.Store], object]] = {
    "check": lambda store: store.check(fix=True),
    "release": lambda store: store.release_unclaimed(),
    "sweep": lambda store: reaper.remove_unheld(SHM, names.StoreKey(os.geteuid(), int(store.id, 16))),
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_its_memory_goes_with_a_handle_that_outlived_who_deleted_it(store: sa.Store, sweep: str) -> None:
    """Killed between removing the block's own name and the handles: the last of these is the last name."""
    array = store.ones(N)
    assert store.guardian_pid is not None
    os.kill(store.guardian_pid, signal.SIGSTOP)
    try:
        with File(array) as file, Reader(store) as idle:
            idle.do(sent(array) + "; del a")
            stale = sent(array)
            (name,) = [kind for kind in blocks(store) if kind.startswith("a.")]
            os.unlink(os.path.join(SHM, f"shmarray.{os.geteuid()}.{store.id}.{name}"))
            del array
            assert (file.links(), file.memory() >= BYTES, idle.maps(file.inode)) == (1, True, 1)
            SWEEPS[sweep](store)
            assert (file.links(), file.memory() < BYTES // 2) == (0, True)
            assert idle.do(stale) == "ArrayNotFoundError"
            idle.finish().expect()
    finally:
        os.kill(store.guardian_pid, signal.SIGCONT)


def test_a_handle_in_flight_keeps_it_when_the_last_view_goes(store: sa.Store) -> None:
    """Whoever loads it has all of it; then it ends with that one."""
    array = store.ones(N)
    with File(array) as file, Reader(store) as reader, Reader(store) as other:
        reader.do(sent(array) + "; a[0] = 5; handle = pickle.dumps(a).hex()")
        del array
        reader.do("del a")
        assert (file.links(), reader.maps(file.inode)) == (2, 1)
        assert not file.is_leased()
        handle = reader.do("answer = handle")
        assert other.do(f"a = pickle.loads(bytes.fromhex({handle!r})); answer = [float(a[0]), float(a.sum())]") == [
            *(5.0, N + 4.0)
        ]
        assert file.is_leased()
        other.do("del a")
        assert (file.links(), blocks(store)) == (0, [])
        assert file.memory() < BYTES // 2
        for one in (reader, other):
            one.finish().expect()


def test_who_loads_a_handle_of_its_own_after_letting_go_gets_the_same_mapping(store: sa.Store) -> None:
    """It was kept by the handle alone."""
    array = store.ones(N)
    with File(array) as file, Reader(store) as reader:
        reader.do(sent(array) + "; place = a.ctypes.data; a = pickle.dumps(a)")
        del array
        assert (file.is_leased(), reader.maps(file.inode)) == (False, 1)
        assert reader.do("a = pickle.loads(a); answer = [a.ctypes.data == place, float(a.sum())]") == [True, N]
        reader.do("del a")
        assert (file.links(), blocks(store)) == (0, [])
        reader.finish().expect()


def test_what_was_removed_and_not_marked_is_not_attached_again(store: sa.Store) -> None:
    """Whoever was told the name of its file may look at it without a lease, so its memory is left alone; a handle of it is stale."""
    array = store.ones(N)
    with File(array) as file, Reader(store) as reader:
        stale = sent(array)
        reader.do(stale + "; del a")
        assert reader.maps(file.inode) == 1
        assert array.block_name is not None
        del array
        assert (file.links(), file.memory() >= BYTES) == (0, True)
        assert reader.do(stale) == "ArrayNotFoundError"
        reader.finish().expect()


def test_no_mapping_stays_of_what_others_may_look_at_without_a_lease(store: sa.Store) -> None:
    """Else its memory would stay with it, when all others have gone."""
    array = store.ones(N)
    with File(array) as file, Reader(store) as reader:
        assert array.block_name is not None
        reader.do(sent(array) + "; del a")
        assert reader.maps(file.inode) == 0
        reader.finish().expect()


@pytest.mark.core
def test_of_many_who_let_go_at_once_one_is_the_last(store: sa.Store) -> None:
    """Each may find another's lease, or none at all; in the end there is no file, and no memory."""
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Reader(store)) for _ in range(4)]
        for _ in range(40):
            array = store.ones(N)
            with File(array) as file:
                for reader in readers:
                    reader.do(sent(array))
                del array
                for reader in readers:
                    reader.tell("del a")
                for reader in readers:
                    reader.wait_for("done")
                assert (file.links(), blocks(store)) == (0, [])
                assert file.memory() < BYTES // 2
        for reader in readers:
            reader.finish().expect()


def test_memory_used_again_for_another_array_is_not_the_one_that_was_idle() -> None:
    """A handle of the old one is refused; one of the new one, of another kind, leads to what it is."""
    with sa.Store(warm=1 << 30) as store:
        array = store.ones(N)
        with File(array) as file, Reader(store) as reader:
            stale = sent(array)
            reader.do(stale + "; del a")
            del array
            new = store.full((2, N // 2), 9, "i8")
            with File(new) as again:
                assert again.inode == file.inode
            assert reader.do(stale) == "ArrayNotFoundError"
            assert reader.do(sent(new) + "; answer = [int(a.min()), int(a.max()), a.shape]") == [9, 9, [2, N // 2]]
            assert reader.do(stale) == "ArrayNotFoundError"
            assert reader.do("answer = int(a.sum())") == 9 * N
            reader.finish().expect()


def test_a_forked_child_keeps_the_lease_of_what_it_has_and_nothing_of_what_is_idle(store: sa.Store) -> None:
    """Parent and child share one lock: what crossed the fork ends with the last of the two."""
    first, second = store.ones(N), store.ones(N)
    with File(first) as one, File(second) as two, Reader(store) as reader:
        reader.do(sent(second) + "; b = a")
        reader.do(sent(first) + "; del b")
        child = reader.do(FORK)
        del first, second
        assert two.links() == 0
        assert two.memory() < BYTES // 2
        reader.do("del a")
        assert one.is_leased(), "the child has it"
        assert (one.links(), one.memory() >= BYTES) == (1, True)
        assert child
        assert reader.do("os.write(go[1], b'!'); answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])") == 0
        assert not one.is_leased()
        reader.finish().expect()
        store.trim()
        store.release_unclaimed()
        assert (one.links(), blocks(store)) == (0, [])


@pytest.mark.parametrize("warm", [0, 1 << 30])
@pytest.mark.parametrize("deleted", [True, False])
def test_a_killed_owner_leaves_no_memory_in_those_who_map_it_idly(deleted: bool, warm: int) -> None:  # noqa: FBT001  parameters of a test
    """The guardian gives it back when it removes the block, or what the owner kept of it for another one."""
    with Child(OWNER, str(warm), env={"SHMARRAY_SMALLEST_WARM": "4096"}) as owner:
        store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        with Reader(store) as reader:
            owner.tell("report('handle', pickle.dumps(array).hex())")
            found = pickle.loads(handle := bytes.fromhex(owner.wait_for("handle")))
            owner.wait_for("done")
            reader.do(f"a = pickle.loads(bytes.fromhex({handle.hex()!r})); del a")
            with File(found) as file:
                assert reader.maps(file.inode) == 1
                del found
                if deleted:
                    owner.tell("del array")
                    owner.wait_for("done")
                owner.kill()
                wait_until(lambda: file.memory() < BYTES // 2, message="the memory stays")
                wait_until(lambda: file.links() == 0, message="the file stays")
            reader.finish().expect()


OWNER = f"""
import pickle, sys
import numpy as np, shmarray as sa
from tests.helpers.processes import report
with sa.Store(warm=int(sys.argv[1])) as store:
    array = store.ones(int(sys.argv[2]) if len(sys.argv) > 2 else {N})
    report("ready", pickle.dumps(store).hex())
    for line in sys.stdin:
        exec(line)
        report("done")
"""


@pytest.fixture
def owner() -> Iterator[Child]:
    """An owner in another process, which keeps nothing and has an array."""
    with Child(OWNER, "0") as started:
        yield started
        started.finish().expect()


def _asked(owner: Child) -> bytes:
    owner.tell("report('handle', pickle.dumps(array).hex())")
    handle = bytes.fromhex(owner.wait_for("handle"))
    owner.wait_for("done")
    return handle


DEEDS: dict[str, Callable[[list[Any], bytes], object]] = {
    "let go": lambda held, _handle: held.clear(),
    "load again": lambda held, handle: held.append(pickle.loads(handle)),
}


@pytest.mark.core
@pytest.mark.parametrize("last", [False, True], ids=["others have it", "last"])
@pytest.mark.parametrize("deed", DEEDS)
def test_an_interruption_at_any_step_leaves_neither_descriptor_nor_lease_nor_file(
    deed: str,
    last: bool,  # noqa: FBT001  a parameter of a test
    owner: Child,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever was under way is undone, or done; an array that nobody has any more is gone when the store is asked to see to it."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
    for _ in range(2):  # the first time a few things are made for all others
        pickle.loads(_asked(owner))
    store.trim()
    before = set(os.listdir("/proc/self/fd"))
    held: list[Any] = []
    for interrupter in interrupters(ours):
        held.extend(pickle.loads(_asked(owner)) for _ in range(2))
        with File(held[0]) as file:
            handle = b"" if deed == "let go" else _asked(owner)
            if last:
                tell(owner, "array = store.ones({n})")
            if handle:
                held.clear()
            with interrupter, contextlib.suppress(Interrupted):
                DEEDS[deed](held, handle)
            assert all((view == 1.0).all() for view in held), interrupter.where
            held.clear()
            store.release_unclaimed()
            assert file.is_leased() is not last, interrupter.where
            assert file.links() == (not last), interrupter.where
            store.trim()
        assert set(os.listdir("/proc/self/fd")) == before, interrupter.where
        assert len(blocks(store)) == 1, interrupter.where
    del store


class Loading(Interrupter):
    """Instead of raising an exception the handler loads a handle."""

    def __init__(self, n: int, handle: bytes) -> None:
        """Have that happen at point `n`."""
        super().__init__(
            n,
            lambda filename: ours(filename) or filename.endswith(("flocks.py", "reaper.py", "reserves.py", "warm.py")),
        )
        self.handle = handle
        self.found: list[Any] = []

    def _event(self, frame: Any, event: str, arg: Any) -> None:
        try:
            super()._event(frame, event, arg)
        except Interrupted:
            self.found.append(pickle.loads(self.handle))


@pytest.mark.core
@pytest.mark.parametrize("stays", [True, False], ids=["it stays mapped", "it does not"])
def test_a_handler_that_loads_it_in_the_midst_of_letting_go_does_not_wait_for_its_own_thread(
    stays: bool,  # noqa: FBT001  a parameter of a test
    owner: Child,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody else has the array, so who lets go of it asks for the exclusive lock; the handler's handle keeps it."""
    monkeypatch.setattr(flocks, "PATIENCE", 0.0)
    monkeypatch.setattr(warm, "SMALLEST", 4096 if stays else 1 << 30)
    store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
    assert store.guardian_pid is not None
    os.kill(store.guardian_pid, signal.SIGSTOP)  # so that no lock of its own is in the way
    try:
        n, reached = 0, True
        while reached:
            n += 1
            held, handle = [pickle.loads(_asked(owner))], _asked(owner)
            tell(owner, "array = store.ones({n})")
            with Loading(n, handle) as loading:
                held.clear()
            reached = loading.count >= n
            assert [float(view.sum()) for view in loading.found] == [N] * reached, loading.where
            loading.found.clear()
    finally:
        os.kill(store.guardian_pid, signal.SIGCONT)
    assert n > 10
    store.release_unclaimed()
    assert len(blocks(store)) == 1
    del store


@pytest.mark.parametrize("keeps", [0, 1 << 30])
def test_a_handler_of_the_owner_that_loads_it_in_the_midst_of_letting_go_does_not_wait_either(
    keeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its memory is to be kept for the next array or not."""
    monkeypatch.setattr(flocks, "PATIENCE", 0.0)
    with sa.Store(warm=keeps) as store:
        assert store.guardian_pid is not None
        os.kill(store.guardian_pid, signal.SIGSTOP)
        try:
            n, reached = 0, True
            while reached:
                n += 1
                held = [store.ones(N)]
                with Loading(n, pickle.dumps(held[0])) as loading:
                    held.clear()
                reached = loading.count >= n
                assert [float(view.sum()) for view in loading.found] == [N] * reached, loading.where
                loading.found.clear()
        finally:
            os.kill(store.guardian_pid, signal.SIGCONT)
        assert n > 5


@pytest.mark.parametrize("deed", DEEDS)
def test_a_kill_at_any_line_leaves_no_lease_and_the_last_ones_block_to_the_next_sweep(
    deed: str, owner: Child, request: pytest.FixtureRequest
) -> None:
    """The kernel lets go of all that the process had."""
    store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))

    def ready() -> tuple[list[Any], bytes]:
        held = [pickle.loads(_asked(owner)) for _ in range(2)]
        handle = b"" if deed == "let go" else _asked(owner)
        if handle:
            held.clear()
        tell(owner, "array = store.ones({n})")
        return held, handle

    step = 1 if request.config.getoption("--deep") else 5
    for n in range(1, 1000, step):
        held = [pickle.loads(_asked(owner))]
        with File(held[0]) as file:
            held.clear()
            pid = os.fork()
            if pid == 0:
                try:
                    held, handle = ready()
                    with kill_at(n, ours):
                        DEEDS[deed](held, handle)
                    os._exit(0)
                finally:
                    os._exit(9)
            status = reap(pid)
            assert not file.is_leased(), n
            store.release_unclaimed()
            # The guardian may be looking at it at this very moment: then it is the one who removes it.
            wait_until(lambda file=file: file.links() == 0, 10, f"line {n}: the file stays")  # type: ignore[misc]
        assert len(blocks(store)) == 1, n
        if status == 0:  # it is done in fewer lines
            break
        assert status == -signal.SIGKILL, n
    assert n > 20
    del store


STEPS = ("_pread", "_flock", "_look")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "change", ["array = None", "array.unlink()", "store.close()", "array = None; array = store.ones({n})"]
)
def test_what_ends_or_is_used_again_in_the_midst_of_attaching_it_again_is_never_taken_for_it(
    change: str,
    step: str,
    before: bool,  # noqa: FBT001  a parameter of a test
) -> None:
    """By a handle that was loaded before, so that nothing keeps the array: all of it, or none."""
    with Child(OWNER, str(1 << 30), env={"SHMARRAY_SMALLEST_WARM": "4096"}) as owner:
        store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        handle = _asked(owner)
        for _ in range(2):
            assert (pickle.loads(handle) == 1.0).all()
        found = load_while(lambda: tell(owner, change), handle, step, before=before)
        if change != "store.close()":
            tell(owner, "other = store.full({n}, 5.0); another = store.full({n}, 6.0)")
        assert found is None or (found == 1.0).all()
        found = None
        if change != "store.close()":
            tell(owner, "array = other = another = None; store.trim()")
            assert blocks(store) == []
        del store
        owner.finish().expect()


def test_threads_that_load_and_let_go_at_once_see_one_array(store: sa.Store) -> None:
    """Each sees all of it; when the last has let go of it, and the owner, there is no file."""
    array = store.ones(N)
    wrong: list[object] = []
    handles = [[pickle.dumps(array) for _ in range(100)] for _ in range(4)]
    with Child(THREADS, env={"SHMARRAY_SMALLEST_WARM": "4096"}) as other, File(array) as file:
        other.tell(pickle.dumps(handles).hex())
        other.wait_for("ready")
        del array
        for _ in range(2):
            other.tell("go on")
            wrong += other.wait_for("wrong")
        assert wrong == []
        other.finish().expect()
        assert (file.links(), blocks(store)) == (0, [])


THREADS = """
import pickle, threading
import numpy as np, shmarray as sa
from tests.helpers.processes import report
handles = pickle.loads(bytes.fromhex(input()))
wrong = []
report("ready")
def look(mine):
    for handle in mine:
        found = pickle.loads(handle)
        if not (found[0] == found[-1] == 1.0):
            wrong.append(1)
        del found
for half in (slice(0, 50), slice(50, 100)):
    input()
    threads = [threading.Thread(target=look, args=(mine[half],)) for mine in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report("wrong", wrong)
"""
