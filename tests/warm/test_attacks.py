"""Attempts to see or to write through warm memory what is another's, and to leave some of it behind; each one succeeded once."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import attachments, contents, memories, reserves, warm
from shmarray._os import segments
from tests.helpers import copies
from tests.helpers.leaks import descriptors, shm_entries
from tests.helpers.processes import reap, run_script
from tests.helpers.tracing import Interrupted, Interrupter
from tests.limits.small import run_in_small_memory

if TYPE_CHECKING:
    from collections.abc import Callable

N = 1000


pytestmark = pytest.mark.usefixtures("small_is_kept")


def free(store: sa.Store, *, rests: bool = False) -> int:
    """Make an array and drop it; its inode. It rests as it is, or, since it has a lock, its file is kept."""
    array = store.ones(N)
    assert rests or array.lock is not None
    return contents.inode_of(array)


ENDINGS = (
    "attachments.py",
    "idling.py",
    "memories.py",
    "reclaim.py",
    "reserves.py",
    "resting.py",
    "roots.py",
    "warm.py",
)


def nothing_is_left(store: sa.Store, before: dict[int, str], where: str) -> None:
    """After all was dropped: no array, and when what is kept is given back no descriptor and no byte."""
    store.release_unclaimed()
    store.check(fix=True)
    assert store.stats().anonymous == 0, where
    store.trim()
    assert descriptors() == before, where
    assert store.stats().nbytes == 0, where


class Greedy(np.ndarray[Any, Any]):
    """A value that keeps what it is copied into."""

    kept: Any = None

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Stand in for `numpy.copyto`."""
        Greedy.kept = args[0]
        args[0][...] = 4.0


class Stream(io.BytesIO):
    """A file that keeps a view of what was read into."""

    def __init__(self, data: bytes) -> None:
        """Have these bytes."""
        super().__init__(data)
        self.kept: list[memoryview] = []

    def readinto(self, buffer: Any) -> int:
        """Read, and keep the buffer: a view of a released memoryview goes on."""
        self.kept.append(memoryview(buffer))
        return super().readinto(buffer)


def by_value(store: sa.Store) -> Any:
    """Fill an array from a greedy value; what that kept."""
    array = store.full(N, np.zeros(()).view(Greedy))
    assert (array == 4.0).all()
    return Greedy.__dict__["kept"]


def by_stream(store: sa.Store) -> Any:
    """Load an array from a file that keeps buffers; the one of the data."""
    saved = io.BytesIO()
    np.save(saved, np.full(N, 4.0))
    stream = Stream(saved.getvalue())
    array = store.load(stream)
    assert (array == 4.0).all()
    return np.frombuffer(max(stream.kept, key=len), "f8")


@pytest.mark.core
@pytest.mark.parametrize("fill", [by_value, by_stream])
def test_who_keeps_a_view_of_what_it_filled_never_sees_the_next_array_in_it(
    fill: Callable[[sa.Store], Any], store: sa.Store
) -> None:
    """Warm memory is filled through a mapping that stays: as long as anyone has a view of that, the memory is no other array's."""
    free(store)
    kept = fill(store)
    arrays = [store.full(N, 9.0) for _ in range(4)]
    assert (kept == 4.0).all()
    kept[:] = 7.0
    assert all((array == 9.0).all() for array in arrays)
    del kept
    Greedy.kept = None
    del arrays
    store.check(fix=True)
    assert store.check() == []


@pytest.mark.core
@pytest.mark.parametrize("within", ["_before_fork", "_known", "let_go"])
def test_an_interruption_in_the_hook_of_a_fork_gives_the_child_nothing_that_is_used_again(
    within: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter goes on with the fork, whatever a signal handler raised in a hook."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    array = store.ones(N)
    go = os.pipe()

    def strike(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == within and frame.f_code.co_filename == memories.__file__:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(strike)
    pid = os.fork()
    if pid == 0:
        sys.setprofile(None)
        os.read(go[0], 1)
        os._exit(0 if (array == 1.0).all() else 1)
    assert sys.getprofile() is None, "nothing was interrupted"
    del array
    arrays = [store.full(N, 9.0) for _ in range(2)]
    os.write(go[1], b"!")
    assert reap(pid) == 0
    for end in go:
        os.close(end)
    files = {contents.inode_of(made) for made in arrays}
    del arrays
    assert free(store) in files, "forks for ever after, nothing is kept"


def test_no_fork_that_ended_is_forgotten_by_who_began_before_it(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that looks at the era while another forks does not bring it back."""
    array = store.ones(N)
    file = contents.inode_of(array)
    old = list(memories._era)

    class Slow(list[object]):
        """What is read first of it was there before the fork that has just ended."""

        def __getitem__(self, index: Any) -> Any:
            return old.pop() if old else list.__getitem__(self, index)

    monkeypatch.setattr(memories, "_era", Slow())
    other = store.ones(N)
    assert not old
    del array
    assert file not in [contents.inode_of(store.full(N, 2.0)) for _ in range(2)]
    del other


@pytest.mark.core
def test_a_fork_while_another_thread_gives_back_closes_nothing_under_its_hands(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the number, just asked for, would be that of a file of the user's when it is written to."""
    array = store.ones(N)
    assert array.lock is not None  # else it would rest
    memory: Any = contents.block_of(array).cache[attachments.WARM]  # type: ignore[union-attr]  # it is in a block
    real = segments.write
    seen: list[object] = []

    def write(fd: Any, data: Any, offset: int) -> None:
        other = threading.Thread(target=lambda: reap(_fork()))
        other.start()
        other.join()
        seen.append(memory.fd.closed)
        real(fd, data, offset)

    monkeypatch.setattr(segments, "write", write)
    del array
    monkeypatch.setattr(segments, "write", real)
    assert seen == [False]
    assert store.stats().warm > 0
    assert store.check() == []


def _fork() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def test_a_child_forked_while_memory_is_taken_in_hand_has_no_descriptor_of_it(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread forks just when a new file is entered as one that stays open: its lock would live as long as the child."""
    said = os.pipe()
    real = segments.keep_open

    def keep_open(fd: Any) -> None:
        real(fd)
        info = segments.status(fd)

        def fork() -> None:
            pid = os.fork()
            if pid == 0:
                same = [number for number in map(int, os.listdir("/proc/self/fd")) if _is(number, info)]
                os.write(said[1], bytes([len(same)]))
                os._exit(0)
            reap(pid)

        other = threading.Thread(target=fork)
        other.start()
        other.join()

    monkeypatch.setattr(segments, "keep_open", keep_open)
    array = store.ones(N)
    monkeypatch.setattr(segments, "keep_open", real)
    assert os.read(said[0], 1) == b"\0"
    del array
    for end in said:
        os.close(end)


def _is(number: int, info: os.stat_result) -> bool:
    try:
        found = os.fstat(number)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (info.st_dev, info.st_ino)


def test_a_forked_child_gives_back_nothing_of_its_parents(store: sa.Store) -> None:
    """Neither trims nor asks it again: the names are those under which the parent makes its next arrays."""
    file = free(store)
    array = store.ones(N // 2, name="x")
    del store["x"]
    handle = pickle.dumps(store.ones(N // 4))
    pid = os.fork()
    if pid == 0:
        before = shm_entries()
        given = store.trim()
        store.stats()
        os._exit(0 if given == 0 and shm_entries() == before else 1)
    assert reap(pid) == 0
    again = store.ones(N)
    assert contents.inode_of(again) == file
    assert pickle.loads(handle).sum() == N // 4
    del array


@pytest.mark.core
def test_as_many_files_as_can_be_kept_are_used_again(store: sa.Store) -> None:
    """And when none of them fits, what was freed first makes room."""
    arrays = [store.ones(N) for _ in range(warm.MOST)]
    files = {contents.inode_of(array) for array in arrays}
    del arrays
    assert contents.inode_of(store.ones(N)) in files
    large = store.ones(3 * N)
    file = contents.inode_of(large)
    del large
    assert contents.inode_of(store.ones(3 * N)) == file
    assert len(memories._known()) <= warm.MOST


OTHERS_NUMBER = """
import fcntl, os
import shmarray as sa
from shmarray import memories, warm
def taken_over(number):
    os.close(number)
    file = open("file%d" % number, "w+")
    assert file.fileno() == number
    fcntl.flock(file, fcntl.LOCK_EX)
    return file
def is_locked(file):
    with open(file.name) as other:
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
store = sa.Store(warm=1 << 24)
{ready}
numbers = [memory.fd.fileno() for memory in memories._known()]
files = [taken_over(number) for number in numbers]
{deed}
assert files and all(map(is_locked, files))
for file in files:
    file.write("mine")
    file.flush()
    assert os.fstat(file.fileno()).st_size == 4
"""
READY = {"live": "a = store.ones(1000)", "free": "a = store.ones(1000); del a", "making": "memory = None"}
DEED = {
    "dropped": "del a; b = store.ones(1000)",
    "died without notice": (
        "import sys; sys.unraisablehook = lambda _: None\n"
        "def strike(*_): raise KeyboardInterrupt\n"
        "warm.Pool.give_back = strike\ndel a"
    ),
    "another made": "b = store.ones(1000)",
    "closed": "store.close()",
}


@pytest.mark.core
@pytest.mark.parametrize(
    ("ready", "deed"),
    [
        ("live", "dropped"),
        ("live", "died without notice"),
        ("live", "closed"),
        ("free", "another made"),
        ("free", "closed"),
    ],
)
def test_a_descriptor_number_that_is_another_files_by_now_is_left_alone(ready: str, deed: str) -> None:
    """Neither closed, written to nor locked, whatever comes of the array: also a lock of the user's on it stays what it was."""
    source = OTHERS_NUMBER.replace("{ready}", READY[ready]).replace("{deed}", DEED[deed])
    assert run_script(source, env={"SHMARRAY_SMALLEST_WARM": "4096"}).expect() == ""


def test_numbers_that_are_others_are_not_closed_at_exit() -> None:
    """What still is in use then goes without its number."""
    assert run_script(AT_EXIT, env={"SHMARRAY_SMALLEST_WARM": "4096"}).expect() == "all there\n"


AT_EXIT = """
import gc, os, sys
import shmarray as sa
from shmarray import memories, warm
store = sa.Store(warm=1 << 24)
array = store.ones(1000)
other = store.ones(1000)
del other
class Last:
    def __init__(self, numbers):
        self.numbers, self.fstat, self.write = numbers, os.fstat, os.write
    def __del__(self):
        for number in self.numbers:
            self.fstat(number)
        self.write(1, b"all there\\n")
numbers = [memory.fd.fileno() for memory in memories._known()]
for number in numbers:
    os.close(number)
    assert os.open("mine%d" % number, os.O_CREAT | os.O_RDWR) == number
sys.last = Last(numbers)  # goes with the last module there is
"""


@pytest.mark.core
@pytest.mark.parametrize("what", ["unmapped", "deleted", "rests"])
def test_an_interruption_when_an_array_ends_leaves_neither_descriptor_nor_lease(
    what: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the exception came before anything was done, it is done with the next array, or when handles are released."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    store.trim()
    before = descriptors()
    n, reached = 0, True
    gc.disable()
    try:
        while reached:
            n += 1
            held = [store.ones(N, name="x" if what == "deleted" else None)]
            if what == "deleted":
                del store["x"]
            assert what == "rests" or held[0].lock is not None
            interrupter = Interrupter(n, lambda name: name.endswith(ENDINGS))
            with interrupter, contextlib.suppress(Interrupted):
                held.clear()
            reached = interrupter.count >= n
            nothing_is_left(store, before, interrupter.where)
    finally:
        gc.enable()
    assert n > 10


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("memory", ["fresh", "used before", "rested"])
def test_an_interruption_when_an_array_is_put_comes_out_and_leaves_neither_descriptor_nor_lease(
    memory: str, threads: int, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes out as it is, wherever it came in; what other threads were at with it has ended."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    store.trim()
    before, source = descriptors(), np.arange(float(N))
    n, reached = 0, True
    gc.disable()
    try:
        with copies.all_shared(threads):
            while reached:
                n += 1
                if memory != "fresh":
                    free(store, rests=memory == "rested")
                with Interrupter(n) as interrupter, contextlib.suppress(Interrupted):
                    assert (store.put(source) == source).all()
                reached = interrupter.count >= n
                nothing_is_left(store, before, interrupter.where)
    finally:
        gc.enable()
    assert n > 50


@pytest.mark.parametrize("memory", ["fresh", "used before"])
def test_an_interruption_that_loses_a_mapping_just_made_comes_out(
    memory: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapping ends while the exception is on its way to whoever gives the memory back, and takes the descriptor with it."""
    store.trim()
    before, source = descriptors(), np.arange(float(N))
    if memory == "used before":
        free(store)
    register = attachments.register

    def lose(segment: segments.Segment, block: attachments.Block) -> segments.Segment:
        register(segment, block)
        del segment, block
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(attachments, "register", lose)
        with pytest.raises(Interrupted):
            store.put(source)
    assert (store.put(source) == source).all()
    store.trim()
    assert store.check() == []
    assert descriptors() == before


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("what", ["delete", "drop"])
def test_a_store_closed_by_another_thread_while_a_name_is_moved_aside_leaves_nothing(
    what: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep has looked before the new name was there, or takes the old one away: no error, and no file."""
    store = sa.Store(warm=1 << 24)
    array = store.ones(N, name="x" if what == "delete" else None)
    assert array.lock is not None  # else it would rest
    real = segments.replace

    def replace(source: str, path: str) -> None:
        if moment == "after":
            real(source, path)
        names, listing = segments.entries, os.listdir("/dev/shm")
        if moment == "after":  # what a sweep sees that looked before
            old = [os.path.basename(source) if name == os.path.basename(path) else name for name in listing]
            monkeypatch.setattr(
                segments, "entries", lambda directory, prefix: [name for name in old if name.startswith(prefix)]
            )
        closing = threading.Thread(target=store.close)
        closing.start()
        closing.join()
        monkeypatch.setattr(segments, "entries", names)
        if moment == "before":
            real(source, path)

    monkeypatch.setattr(segments, "replace", replace)
    if what == "delete":
        array.unlink()
    else:
        del array
    monkeypatch.setattr(segments, "replace", real)
    assert not [entry for entry in shm_entries() if store.id in entry]
    array = None  # type: ignore[assignment]  # dropped


@pytest.mark.parametrize("where", ["_waiting", "_free", "_named", "resting"])
def test_what_is_kept_just_when_another_thread_closes_the_store_goes_all_the_same(where: str) -> None:
    """The lease of what waits for others, too."""
    before = descriptors()
    store = sa.Store(warm=1 << 24)

    def close() -> None:
        closing = threading.Thread(target=store.close)
        closing.start()
        closing.join()

    class Closing(reserves.Stack[Any]):
        """A list to which something is appended when the store was closed just before."""

        def append(self, item: Any) -> None:
            close()
            super().append(item)

    class ClosingTable(dict[str, Any]):
        """The same."""

        def __setitem__(self, key: str, item: Any) -> None:
            close()
            super().__setitem__(key, item)

    pool = store._member.pool
    setattr(pool, where, ClosingTable() if where == "_named" else Closing())
    array = store.ones(N, name="x" if where == "_named" else None)
    handle = pickle.dumps(array) if where == "_waiting" else b""
    assert where == "resting" or array.lock is not None
    del array
    assert not getattr(pool, where)
    assert descriptors() == before
    del handle


def test_warm_memory_that_cannot_be_mapped_is_no_obstacle(store: sa.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for the window, the array is made of fresh memory."""
    free(store)
    real = segments.map_shared

    def map_shared(fd: Any, size: int, *, populate: bool = False, **others: Any) -> Any:
        if populate:
            raise OSError(12, "no more addresses")
        return real(fd, size, **others)

    monkeypatch.setattr(segments, "map_shared", map_shared)
    array = store.full(N, 3.0)
    assert (array == 3.0).all()
    assert store.stats().warm == 0
    monkeypatch.undo()
    del array


FULL_AT_THE_LAST = """
import os
import numpy as np
import shmarray as sa
from shmarray._os import segments
with sa.Store(warm=48 << 20) as store:
    arrays = [store.zeros(1 << 20, "u1") for _ in range(40)]
    del arrays
    real, files = segments.reserve, []
    def reserve(fd, offset, size):
        if not files:
            files.append(os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR))
            info = os.statvfs("/dev/shm")
            os.posix_fallocate(files[0], 0, info.f_bavail * info.f_frsize)
        real(fd, offset, size)
    segments.reserve = reserve
    big = store.put(np.ones(2 << 20, "u1"))
    print(store.stats().warm, int(big.sum()))
"""


def test_memory_that_is_full_at_the_last_page_takes_the_warm_memory_too() -> None:
    """The header stands behind the data, and is reserved after they were written."""
    assert run_in_small_memory(FULL_AT_THE_LAST).expect() == f"0 {2 << 20}\n"


class Keeping:
    """What keeps memory, in another store."""

    def trim(self) -> int:
        """It has none just now."""
        return 0


@pytest.mark.parametrize("look", [warm.trim_all, warm._wake_all], ids=["when memory is short", "before a fork"])
def test_another_thread_may_begin_to_keep_memory_while_all_that_do_are_looked_through(
    look: Callable[[], object],
) -> None:
    """Else a fork went on with what rests still mapped, and who was short of memory got an error that is none of ours."""
    kept: list[Keeping] = []

    def step(_frame: object, _event: str, _arg: object) -> None:
        kept.append(Keeping())
        warm.register(kept[-1])

    warm.register(first := Keeping())
    sys.setprofile(step)
    try:
        look()
    finally:
        sys.setprofile(None)
    assert kept
    assert first.trim() == 0
