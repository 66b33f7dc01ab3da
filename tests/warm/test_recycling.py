"""Memory of what a worker makes and others read and drop is used for the next: without a lease, so that it is nobody's when it must go."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import pickle
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

import shmarray as sa
from shmarray import inspection, reaper, reclaim
from shmarray._format import header
from shmarray._os import flocks, segments
from tests.helpers.leaks import SHM, shm_entries
from tests.helpers.processes import Child, reap, run_command, wait_until
from tests.helpers.tracing import Interrupted, Interrupter, kill_at
from tests.warm.test_idling import BYTES, File, N, Reader
from tests.warm.test_idling_anonymous import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("small_is_kept")]


class Maker(Reader):
    """A worker that has the store, makes arrays and hands them on."""

    def __enter__(self) -> Self:
        """Wait until it has the store."""
        super().__enter__()
        self.do("store = pickle.loads(bytes.fromhex(sys.argv[1]))")
        return self

    def handle(self, value: float, number: int = N) -> bytes:
        """Have it make an array of one value, and let go of it; gives a handle."""
        made = f"a = store.full({number}, {value}); answer = pickle.dumps(a).hex(); del a"
        return bytes.fromhex(self.do(made))

    def result(self, value: float) -> Any:
        """The same, loaded, and looked at."""
        array = pickle.loads(self.handle(value))
        assert (np.asarray(array) == value).all()
        return array


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store that keeps some memory warm."""
    with sa.Store(warm=1 << 24) as opened:
        yield opened


@pytest.fixture
def maker(store: sa.Store) -> Iterator[Maker]:
    """A worker."""
    with Maker(store) as started:
        yield started
        started.finish().expect()


def names(store: sa.Store) -> list[str]:
    """What the files of the store are called, from outside, but for its control file: the first letter of each."""
    prefix = f"shmarray.{os.geteuid()}.{store.id}."
    return sorted(entry.removeprefix(prefix)[0] for entry in shm_entries(prefix) if not entry.endswith(".ctl"))


def test_each_result_lies_in_the_memory_of_the_last_one(store: sa.Store, maker: Maker) -> None:
    """In one file, all of whose pages are there; and in between it is warm memory and no array."""
    seen = set()
    for turn in range(10):
        array = maker.result(turn)
        with File(array) as file:
            seen.add((file.inode, file.memory()))
        del array
        assert names(store) == ["w"]
    assert len(seen) == 1
    assert (store.stats().warm >= BYTES, store.stats().anonymous, store.check()) == (True, 0, [])
    (kept,) = inspection.survey().stores[0].blocks
    assert (kept.state, kept.kind) == ("warm", "memory")


def test_what_anybody_has_is_not_used_again(store: sa.Store, maker: Maker) -> None:
    """Not while it is looked at, nor while a handle is on its way; what was used again is not found by a handle to what it was."""
    first, handle = maker.result(1), maker.handle(2)
    for turn in range(3, 8):
        array = maker.result(turn)
        del array
        assert (np.asarray(first) == 1).all()
    second = pickle.loads(handle)
    assert (np.asarray(second) == 2).all()
    del second
    array = maker.result(8)
    with pytest.raises(sa.ArrayNotFoundError):
        pickle.loads(handle)
    assert (np.asarray(array) == 8).all()
    assert (np.asarray(first) == 1).all()
    del first, array
    assert set(names(store)) == {"w"}


def test_what_all_keep_is_counted_when_one_keeps_more_and_else_seldom(store: sa.Store, maker: Maker) -> None:
    """Counting looks at every name in the directory: with ten thousand of them it would cost more than the next array saves."""
    maker.do("from shmarray import recycling; used, looks = recycling.exhaustion.used, []; recycling._SELDOM = 1e9")
    maker.do("recycling.exhaustion.used = lambda *args: looks.append(1) or used(*args)")
    for turn in range(10):
        array = maker.result(turn)
        del array
    assert maker.do("answer = len(looks)") == 1
    first, second = maker.result(1), maker.result(2)
    del first, second
    maker.handle(3)
    assert maker.do("answer = len(looks)") == 2
    maker.do("recycling._SELDOM = 0; store._member.recycler._count_at = 0; store.trim()")
    store.release_unclaimed()
    for turn in range(10):
        array = maker.result(turn)
        del array
    assert maker.do("answer = len(looks)") >= 10


def test_the_maker_may_be_the_last_to_let_go(store: sa.Store, maker: Maker) -> None:
    """Then it keeps the memory at once."""
    seen = set()
    for turn in range(4):
        maker.do(f"a = store.full({N}, {turn}.0); answer = pickle.dumps(a).hex()")
        array = pickle.loads(bytes.fromhex(maker.do("answer = pickle.dumps(a).hex()")))
        with File(array) as file:
            seen.add(file.inode)
        del array
        store.release_unclaimed()
        maker.do("del a")
        assert names(store) == ["w"]
    assert len(seen) == 1


@pytest.mark.parametrize("waiting", [True, False], ids=["others have it", "it is free"])
def test_nothing_stays_of_a_store_that_is_closed(store: sa.Store, maker: Maker, *, waiting: bool) -> None:
    """Names and memory go at once, though the worker is there and has the files mapped for filling."""
    for turn in range(3):
        array = maker.result(turn)
        del array
    array = maker.result(9)
    with File(array) as file:
        if not waiting:
            del array
        store.close()
        if waiting:
            assert (np.asarray(array) == 9).all()
            del array
        assert (names(store), file.links(), file.memory() < BYTES // 2) == ([], 0, True)
    assert maker.do("store.zeros(9)") == "StoreClosedError"


def test_what_a_worker_kept_goes_with_it(store: sa.Store) -> None:
    """Killed, or when it takes no part in the store any more: nobody waits for the store's end."""
    for ends in ("killed", "left"):
        with Maker(store) as maker:
            one, two = maker.result(1), maker.result(2)
            del one
            assert names(store) == ["a", "w"]
            if ends == "killed":
                maker.kill()
            else:
                maker.do("del store")
            wait_until(lambda: names(store) == ["a"], 10, "the memory stays")
            assert (np.asarray(two) == 2).all()
            del two
            wait_until(lambda: names(store) == [], 10, "the block stays")
            if ends == "left":
                maker.finish().expect()


def test_it_goes_where_there_is_no_room(maker: Maker) -> None:
    """Before anyone is told that the store is full."""
    del maker
    with sa.Store(warm=1 << 24, capacity=3 * BYTES) as store, Maker(store) as other:
        one, two = other.result(1), other.result(2)
        del one, two
        assert names(store) == ["w", "w"]
        array = store.full(2 * N + N // 2, 7.0)
        assert names(store) == ["a"]
        del array
        store.trim()  # what the owner keeps only the owner gives back
        again = other.result(3)
        del again
        other.finish().expect()


def test_trim_gives_back_what_others_keep(store: sa.Store, maker: Maker) -> None:
    """And says how much; `gc` and `check` leave it to who keeps it."""
    one, two = maker.result(1), maker.result(2)
    del one, two
    assert store.check(fix=True) == []
    said = json.loads(run_command([sys.executable, "-m", "shmarray", "gc", "--json"]).expect())
    assert said["removed"] == []
    assert names(store) == ["w", "w"]
    assert store.trim() >= 2 * BYTES
    assert names(store) == []
    array = maker.result(3)
    del array
    assert int(maker.do("answer = store.trim()")) >= BYTES
    assert names(store) == []


def test_trim_leaves_what_a_stopped_process_has_exclusively_locked(
    store: sa.Store, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises nothing, and gives that back the next time."""
    array = maker.result(1)
    del array
    monkeypatch.setattr(flocks, "PATIENCE", 0.0)
    (name,) = shm_entries(f"shmarray.{os.geteuid()}.{store.id}.w.")
    with open(os.path.join(SHM, name), "rb") as file:
        assert flocks.try_exclusive(file)
        assert store.trim() == 0
        assert names(store) == ["w"]
    assert store.trim() >= BYTES
    assert names(store) == []


def test_all_together_keep_no_more_than_the_owner_may() -> None:
    """And none at all in a store that keeps none."""
    with sa.Store(warm=5 * BYTES // 2) as store, Maker(store) as one, Maker(store) as two:
        arrays = [maker.result(turn) for turn in range(3) for maker in (one, two)]
        arrays.clear()
        for maker in (one, two):
            array = maker.result(1)
            del array
        for maker in (one, two):
            maker.do(f"a = store.full({N}, 1.0); del a")
        assert 0 < sum(os.stat(os.path.join(SHM, entry)).st_size for entry in kept(store)) <= 5 * BYTES // 2
        one.finish().expect()
        two.finish().expect()
    with sa.Store(warm=0) as store, Maker(store) as one:
        array = one.result(1)
        del array
        assert names(store) == []
        one.finish().expect()


def kept(store: sa.Store) -> list[str]:
    """Files that are kept, from outside."""
    prefix = f"shmarray.{os.geteuid()}.{store.id}."
    return [entry for entry in shm_entries(prefix) if entry.removeprefix(prefix).startswith("w.")]


def test_what_was_given_out_by_name_or_has_crossed_a_fork_is_not_used_again(store: sa.Store, maker: Maker) -> None:
    """Whoever maps it by its name has no lease; a child has the mapping of its parent."""
    maker.do(f"a = store.full({N}, 1.0); answer = [pickle.dumps(a).hex(), a.block_name]; del a")
    store.release_unclaimed()
    array = maker.result(2)
    del array
    assert names(store) == ["w"]
    store.trim()
    maker.do(
        f"a = store.full({N}, 3.0); there = os.pipe(); pid = os.fork(); pid or (os.read(there[0], 1), os._exit(int(a[0] != 3.0)))"
    )
    maker.do("del a")
    for turn in range(3):
        array = maker.result(turn)
        del array
    assert maker.do("os.write(there[1], b'1'); answer = os.waitpid(pid, 0)[1]") == 0
    wait_until(lambda: names(store) == ["w"], 10, "what the child had stays")


def test_what_is_too_much_goes_though_its_name_was_moved_aside(store: sa.Store, maker: Maker) -> None:
    """The worker had not looked since others dropped it."""
    many = 33  # one more than are waited for
    made = f"arrays = [store.full({N}, 1.0) for _ in range({many})]; answer = [pickle.dumps(a).hex() for a in arrays]"
    arrays = [pickle.loads(bytes.fromhex(handle)) for handle in maker.do(made)]
    maker.do("arrays[0] = None")
    arrays[0] = None
    assert names(store) == ["a"] * (many - 1) + ["w"]
    maker.do("del arrays")
    assert names(store) == ["a"] * (many - 1)
    arrays.clear()
    assert names(store) == ["w"] * (many - 1)


def test_who_moves_a_name_aside_for_one_that_lets_go_of_the_mark_just_then_removes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the two sees the other; else the file would be there until a sweep."""
    path = os.path.join(SHM, f"shmarray.{os.geteuid()}.{0:016x}.a.{1:016x}")
    with open(path, "wb") as file:
        file.write(bytes(BYTES))
    marked = segments.open_existing(path)
    assert flocks.mark(marked, header.KEEPER_MARK)
    put_aside = reclaim.put_aside

    def and_let_go(path: str, fd: segments.Descriptor) -> bool:
        ended = put_aside(path, fd)
        marked.close()
        return ended

    monkeypatch.setattr(reclaim, "put_aside", and_let_go)
    try:
        assert reaper.remove_if_unheld(path, os.geteuid())
        assert not shm_entries(f"shmarray.{os.geteuid()}.{0:016x}.")
    finally:
        for left in shm_entries(f"shmarray.{os.geteuid()}.{0:016x}."):
            os.unlink(os.path.join(SHM, left))


def test_a_worker_is_killed_while_others_read_its_results(store: sa.Store) -> None:
    """At some moment of making the next one: what is read stays what it is, and nothing is left."""
    for moment in range(12):
        with Maker(store) as maker:
            held = maker.result(1)
            for turn in range(2, 4):
                array = maker.result(turn)
                del array
            maker.tell(f"for turn in range(10000): a = store.full({N}, 4.0); del a")
            with contextlib.suppress(AssertionError):
                wait_until(lambda: False, 0.004 * moment)
            os.kill(maker.pid, signal.SIGKILL)
            assert (np.asarray(held) == 1).all()
            maker.kill()
            del held
        wait_until(lambda: names(store) == [], 10, "something stays")
    assert store.check() == []


FILES = (
    "recycling.py",
    "memories.py",
    "drafts.py",
    "reaper.py",
    "reclaim.py",
    "reserves.py",
    "warm.py",
    "attachments.py",
)


def ours(filename: str) -> bool:
    """Say whether that is a file of which each step counts here."""
    return filename.endswith(FILES)


def has_only_that_of_the_owner(store: sa.Store) -> bool:
    """Say whether that is all that there is of it."""
    return names(store) == ["a"]


@pytest.fixture
def joined() -> Iterator[sa.Store]:
    """A store of another process."""
    with Child(OWNER, str(1 << 24)) as owner:
        store: sa.Store = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        yield store
        store.trim()
        wait_until(functools.partial(has_only_that_of_the_owner, store), 10, "something stays")
        del store
        owner.finish().expect()


def make_and_drop(store: sa.Store) -> None:
    """Make an array in the memory of the last one, and let go of it."""
    array = store.full(N, 2.0)
    del array


def is_well(store: sa.Store) -> bool:
    """Say whether arrays that are made now are what they are made to be, beside each other, and for others."""
    arrays = [store.full(N, float(value)) for value in range(3)]
    others = [pickle.loads(pickle.dumps(array)) for array in arrays]
    return all((array == value).all() for each in (arrays, others) for value, array in enumerate(each))


def test_an_interruption_at_any_step_of_keeping_memory_and_using_it_again_loses_none_for_long(
    joined: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a descriptor; and the next arrays are what they are made to be."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    assert is_well(joined)
    joined.trim()
    before = len(os.listdir("/proc/self/fd"))
    n, reached = 0, True
    gc.disable()
    try:
        while reached:
            n += 1
            make_and_drop(joined)
            interrupter = Interrupter(n, ours)
            with interrupter, contextlib.suppress(Interrupted):
                make_and_drop(joined)
            reached = interrupter.count >= n
            assert is_well(joined), interrupter.where
            joined.trim()
            assert len(os.listdir("/proc/self/fd")) <= before, interrupter.where
    finally:
        gc.enable()
    assert n > 50


def test_a_kill_at_any_line_of_keeping_memory_and_using_it_again_leaves_nothing(
    joined: sa.Store, request: pytest.FixtureRequest
) -> None:
    """The kernel lets go of the mark, and a sweep finds the file."""
    step = 1 if request.config.getoption("--deep") else 13
    for n in range(1, 5000, step):
        pid = os.fork()
        if pid == 0:
            try:
                make_and_drop(joined)
                with kill_at(n, ours):
                    make_and_drop(joined)
                os._exit(0)
            finally:
                os._exit(9)
        status = reap(pid)
        assert is_well(joined), n
        if status == 0:  # it is done in fewer lines
            break
        assert status == -signal.SIGKILL, n
    assert n > 100
