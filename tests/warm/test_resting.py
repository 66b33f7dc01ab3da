"""Arrays that nobody was shown: their blocks rest as they are, and are the next arrays of the same kind."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import blockfiles, contents, inspection, warm
from shmarray._os import segments
from tests.helpers.leaks import SHM
from tests.helpers.processes import reap, run_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N = 1000

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("small_is_kept")]


def file_of(array: sa.SharedArray) -> tuple[int, str]:
    """Inode and name of the file in which an array lies."""
    segment = contents.segment_of(array)
    assert segment is not None
    return contents.inode_of(array), os.path.basename(segment.tag.path)


def mapped(inode: int) -> int:
    """How often this process maps a file, from outside."""
    with open("/proc/self/maps") as maps:
        return sum(line.split()[4] == str(inode) for line in maps if "/dev/shm/" in line)


def states(store: sa.Store) -> list[tuple[str, str]]:
    """Kind and state of all blocks of a store, as `ls` has them."""
    (found,) = [one for one in inspection.survey().stores if one.id == store.id]
    return [(block.kind, block.state) for block in found.blocks]


WAYS: dict[str, tuple[Callable[[sa.Store], Any], Any]] = {
    "zeros": (lambda store: store.zeros((20, 50)), np.zeros((20, 50))),
    "full": (lambda store: store.full((20, 50), 3.0), np.full((20, 50), 3.0)),
    "empty": (lambda store: store.empty((20, 50)), np.ones((20, 50))),
    "put": (lambda store: store.put(np.arange(1000.0).reshape(20, 50)), np.arange(1000.0).reshape(20, 50)),
    "put with gaps": (lambda store: store.put(np.arange(2000.0).reshape(20, 100)[:, ::2]), None),
    "like": (lambda store: store.zeros_like(np.ones((20, 50))), np.zeros((20, 50))),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_next_array_of_the_same_kind_lies_in_the_same_block_under_the_same_mapping(
    store: sa.Store, way: str
) -> None:
    """It has its own contents, whatever way it is made, and can be handed on."""
    make, expected = WAYS[way]
    first = store.ones((20, 50))
    before = file_of(first)
    first[:] = 1
    del first
    assert mapped(before[0]) == 1
    assert states(store) == [("memory", "warm")]
    second = make(store)
    assert file_of(second) == before
    assert mapped(before[0]) == 1
    assert states(store) == [("array", "live")]
    np.testing.assert_array_equal(second, np.arange(2000.0).reshape(20, 100)[:, ::2] if expected is None else expected)
    second[3, 4] = 5
    assert pickle.loads(pickle.dumps(second))[3, 4] == 5


@pytest.mark.parametrize("dtype", ["f8", "<M8[s]", "S8", "c8", "V8"])
def test_zeros_are_zeros_of_every_kind(store: sa.Store, dtype: str) -> None:
    """Byte for byte, after an array of other bytes."""
    first = store.empty(N, dtype)
    before = file_of(first)
    first.view(np.ndarray).view("u1")[:] = 255
    del first
    second = store.zeros(N, dtype)
    assert file_of(second) == before
    assert not second.view(np.ndarray).view("u1").any()


def test_statistics_count_it_as_memory_here_and_elsewhere(store: sa.Store) -> None:
    """No array, none attached, nothing wrong; what a process that joins the store counts is the same."""
    array = store.ones(N)
    size = store.stats().nbytes
    assert (store.stats().anonymous, store.stats().attached, store.stats().warm) == (1, 1, 0)
    del array
    stats = store.stats()
    assert (stats.anonymous, stats.attached, stats.warm, stats.nbytes) == (0, 0, size, size)
    assert store.check() == []
    told = run_script(
        "import pickle\nfrom shmarray import warm\nwarm.SMALLEST = 4096\n"
        f"store = pickle.loads({pickle.dumps(store)!r})\n"
        "stats = store.stats()\nprint(stats.anonymous, stats.warm, store.check(fix=True))\n"
    ).expect()
    assert told == f"0 {size} []\n"
    assert store.trim() == size
    assert store.stats().nbytes == 0


def test_its_age_is_that_of_the_array(store: sa.Store) -> None:
    """What is made again is as old as the array that was made last, not as the file."""
    store.ones(N)
    moment = time.time_ns()
    array = store.ones(N)
    segment: Any = contents.segment_of(array)
    fd = segments.open_existing(segment.tag.path, write=False)
    try:
        assert moment <= blockfiles.read_header(fd, segment.tag.file_size).born <= time.time_ns()
    finally:
        fd.close()


@contextlib.contextmanager
def handed_on(array: sa.SharedArray) -> Iterator[None]:
    """A handle to it was made, and loaded."""
    assert pickle.loads(pickle.dumps(array)).sum() == N
    del array
    yield


@contextlib.contextmanager
def locked_once(array: sa.SharedArray) -> Iterator[None]:
    """It was locked, and is not any more."""
    with array.lock:
        pass
    del array
    yield


@contextlib.contextmanager
def written_once(array: sa.SharedArray) -> Iterator[None]:
    """The same by a guard."""
    with array.write() as inside:
        inside[:] = 1
    del array, inside
    yield


@contextlib.contextmanager
def named_to_others(array: sa.SharedArray) -> Iterator[None]:
    """The name of its file was given out."""
    assert array.block_name
    del array
    yield


@contextlib.contextmanager
def deleted(array: sa.SharedArray) -> Iterator[None]:
    """It was deleted for everyone."""
    array.unlink()
    del array
    yield


@contextlib.contextmanager
def seen_through_its_mapping(array: sa.SharedArray) -> Iterator[None]:
    """Somebody has the memory that NumPy took from the mapping, and no array."""
    memory: Any = contents.segment_of(array)
    view = memoryview(memory)
    del array
    yield
    del view, memory


@contextlib.contextmanager
def inherited(array: sa.SharedArray) -> Iterator[None]:
    """A child was forked when it was there, and has it."""
    go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(go[0], 1)
        os._exit(int(array.sum()) % 256)
    del array
    yield
    os.write(go[1], b"!")
    assert reap(pid) == N % 256
    for end in go:
        os.close(end)


@pytest.mark.parametrize(
    "seen",
    [handed_on, locked_once, written_once, named_to_others, deleted, seen_through_its_mapping, inherited],
)
def test_what_was_shown_to_others_does_not_rest(store: sa.Store, seen: Any) -> None:
    """Its mapping ends with it, and the next array has another block."""
    array = store.ones(N)
    inode, name = file_of(array)
    with seen(array):
        del array
        after = store.zeros(N)
        assert file_of(after)[1] != name
    del after
    store.check(fix=True)
    assert name not in os.listdir(SHM)
    assert mapped(inode) <= 1, "a window through which it was filled"
    assert store.check() == []


def test_a_view_keeps_it_from_resting(store: sa.Store) -> None:
    """Any part of it, of any type; when the last has gone, it rests."""
    array = store.ones((20, 50))
    before = file_of(array)
    parts: list[Any] = [array[3], array.T.view(np.ndarray)[::2], array.data, array.reshape(-1).view("u1")]
    del array
    while parts:
        other = store.full((20, 50), 9.0)
        assert file_of(other) != before
        del other
        store.trim()
        parts.pop()
    again = store.zeros((20, 50))
    assert file_of(again) == before


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_an_array_stands_on_keeps_it_from_resting(store: sa.Store, depth: int) -> None:
    """Whoever has its base, or the base of that, sees its bytes and never the next array's; nor has a view of that the next one's."""
    array = store.full(N, 7, "u1")
    base: Any = array
    for _ in range(depth):
        base = getattr(base, "base", base)
    part = memoryview(base)[1:]
    del base, array
    store.full(N, 9, "u1")
    assert part[0] == 7


def test_another_kind_of_array_gets_the_memory_and_another_block(store: sa.Store) -> None:
    """Of nearly the same size: the file is used again, with a header and a name of its own; so for names and trees."""
    makes: list[Callable[[], Any]] = [
        lambda: store.zeros(N, "i8"),
        lambda: store.zeros((N, 1)),
        lambda: store.zeros((25, 40), order="F"),
        lambda: store.put({"a": np.zeros(N)})["a"],
        lambda: store.zeros(N, name="x"),
    ]
    for make in makes:
        array = store.ones(N)
        inode, name = file_of(array)
        del array
        made = make()
        assert contents.inode_of(made) == inode
        assert file_of(made)[1] != name
        assert not np.asarray(made).any()
        del made
        store.trim()


def test_no_more_rests_than_the_bounds() -> None:
    """In bytes, together with what is free; and in number, beyond which the files are kept all the same."""
    with sa.Store(warm=3 << 20) as store:
        pool = store._member.pool
        arrays = [store.ones(1 << 20, "u1") for _ in range(5)]
        del arrays
        assert pool.resting.nbytes() + pool._free.nbytes() <= 3 << 20
        assert len(pool.resting) == 2
        store.ones(2 << 20, "u1")
        assert store.stats().warm <= 3 << 20
    with sa.Store(warm=1 << 24) as store:
        arrays = [store.ones(N) for _ in range(warm.MOST)]
        del arrays
        assert len(store._member.pool.resting) == warm.MOST // 4
        assert store.stats().warm == warm.MOST * 12288


def test_a_fork_takes_none_of_it(store: sa.Store) -> None:
    """The child maps nothing of what rests, the parent has the memory still, and makes its next array of it."""
    array = store.ones(N)
    inode, name = file_of(array)
    del array
    pid = os.fork()
    if pid == 0:
        os._exit(1 if mapped(inode) or store._member.pool.resting else 0)
    assert reap(pid) == 0
    again = store.zeros(N)
    assert contents.inode_of(again) == inode
    assert file_of(again)[1] != name
    assert not again.any()


def test_threads_that_make_and_drop_arrays_of_one_kind_share_none(store: sa.Store) -> None:
    """Each sees what it wrote, as long as it has the array."""
    wrong: list[Any] = []

    def work(number: int) -> None:
        held: list[Any] = []
        for turn in range(400):
            value = float(number * 1000 + turn)
            array = store.full(N, value) if turn % 3 else store.put(np.full(N, value))
            held.append((value, array))
            del array
            if len(held) > turn % 5:
                held.pop(0)
            wrong.extend((value, array[0]) for value, array in held if not (array == value).all())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    assert store.check() == []
    assert store.stats().anonymous == 0


def test_a_worker_lets_nothing_rest(store: sa.Store) -> None:
    """It would hold the memory longer than the owner keeps the store open: nobody has a lease on what it keeps."""
    told = run_script(
        f"import fcntl, os, pickle\nstore = pickle.loads({pickle.dumps(store)!r})\n"
        "array = store.ones(1 << 20)\ndel array\n"
        "(kept,) = [entry for entry in os.scandir('/dev/shm') if f'.{store.id}.w.' in entry.name]\n"
        "fcntl.flock(os.open(kept.path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)\nprint('free')\n"
    ).expect()
    assert told == "free\n"


def test_a_closed_store_makes_none_of_what_rested() -> None:
    """Closing ends it, also from another object of the same store."""
    store = sa.Store(warm=1 << 24)
    array = store.ones(N)
    inode, _ = file_of(array)
    del array
    store.close()
    assert mapped(inode) == 0
    with pytest.raises(sa.StoreClosedError):
        store.ones(N)
