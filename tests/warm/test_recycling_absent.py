"""Memory of the results of a worker that is sent the store with each task stays for the next one, and in between is nobody's."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pickle
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

import shmarray as sa
from tests.helpers.leaks import shm_entries
from tests.helpers.processes import Child, reap, wait_until
from tests.helpers.tracing import Interrupted, Interrupter, kill_at
from tests.warm.test_absences import parts
from tests.warm.test_idling import BYTES, File, N, Reader
from tests.warm.test_idling_anonymous import OWNER
from tests.warm.test_recycling import FILES as OF_RECYCLING
from tests.warm.test_recycling import has_only_that_of_the_owner, is_well, names

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("small_is_kept")]


class Tasked(Reader):
    """A worker that has nothing of a store but what it is sent."""

    def __enter__(self) -> Self:
        """Wait until it is there, and has been in the store twice: it comes back only to where it has been before."""
        super().__enter__()
        self.do("del store")
        self.do("s = pickle.loads(bytes.fromhex(sys.argv[1])); del s")
        return self

    def result(self, store: sa.Store, value: float) -> Any:
        """Send it the store, have it make an array of one value, and look at that."""
        handle = pickle.dumps(store).hex()
        made = f"s = pickle.loads(bytes.fromhex({handle!r})); a = s.full({N}, {value}); answer = pickle.dumps(a).hex(); del a, s"
        array = pickle.loads(bytes.fromhex(self.do(made)))
        assert (np.asarray(array) == value).all()
        return array


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store that keeps some memory warm."""
    with sa.Store(warm=1 << 24) as opened:
        yield opened


@pytest.fixture
def tasked(store: sa.Store) -> Iterator[Tasked]:
    """A worker."""
    with Tasked(store) as started:
        yield started
        started.finish().expect()


def test_each_result_lies_in_the_memory_of_the_last_one(store: sa.Store, tasked: Tasked) -> None:
    """In one file, all of whose pages are there; in between it is warm memory, and its keeper no part of the store."""
    seen = set()
    for turn in range(10):
        array = tasked.result(store, turn)
        with File(array) as file:
            seen.add((file.inode, file.memory(), tasked.numbers()))
        assert parts(store) == 1
        del array
        assert (names(store), parts(store)) == (["w"], 1)
    assert len(seen) == 1
    assert (store.stats().warm >= BYTES, store.stats().anonymous, store.check(fix=True)) == (True, 0, [])


@pytest.mark.parametrize(
    "what",
    ["s['x'] = np.full({N}, 1.0)", "s.pop('x', None); a = s.full({N}, 1.0, name='x'); del a", "s['x'] = np.ones(3)"],
)
def test_who_has_named_an_array_is_no_part_of_the_store_any_more(store: sa.Store, tasked: Tasked, what: str) -> None:
    """When it has let go of all it had: the name keeps the array, and it keeps nobody."""
    handle = pickle.dumps(store).hex()
    for _ in range(3):
        tasked.do(f"s = pickle.loads(bytes.fromhex({handle!r})); {what.format(N=N)}; del s")
        assert parts(store) == 1
    assert store["x"][0] == 1
    store.close()
    wait_until(lambda: not shm_entries(f"shmarray.{os.geteuid()}.{store.id}."), 10, "the control file stays")


def test_what_anybody_has_is_not_used_again(store: sa.Store, tasked: Tasked) -> None:
    """However long its maker has been away."""
    first = tasked.result(store, 1)
    handle = pickle.dumps(tasked.result(store, 2))
    for turn in range(3, 8):
        array = tasked.result(store, turn)
        del array
        assert (np.asarray(first) == 1).all()
    second = pickle.loads(handle)
    assert (np.asarray(second) == 2).all()


@pytest.mark.parametrize("waiting", [True, False], ids=["others have it", "it is free"])
def test_nothing_stays_of_a_store_that_is_closed(store: sa.Store, tasked: Tasked, *, waiting: bool) -> None:
    """Names and memory go at once, though the worker is there and has the files mapped for filling."""
    for turn in range(3):
        array = tasked.result(store, turn)
        del array
    array = tasked.result(store, 9)
    with File(array) as file:
        if not waiting:
            del array
        store.close()
        if waiting:
            assert (np.asarray(array) == 9).all()
            del array
        assert (names(store), file.links(), file.memory() < BYTES // 2) == ([], 0, True)
    with sa.Store() as other:  # it lets go of what is over, when it leaves the next one
        array = tasked.result(other, 1)
        del array
        assert tasked.maps(file.inode) == 0


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_what_a_worker_kept_goes_with_it(store: sa.Store, how: str) -> None:
    """What others have stays theirs."""
    with Tasked(store) as tasked:
        one, two = tasked.result(store, 1), tasked.result(store, 2)
        del one
        assert names(store) == ["a", "w"]
        if how == "killed":
            tasked.kill()
        else:
            tasked.finish().expect()
            assert names(store) == ["a"]
    wait_until(lambda: names(store) == ["a"], 10, "the memory stays")
    assert (np.asarray(two) == 2).all()
    del two
    wait_until(lambda: names(store) == [], 10, "the block stays")


def test_it_goes_where_there_is_no_room() -> None:
    """Before anyone is told that the store is full; and by `trim()` of the owner."""
    with sa.Store(warm=1 << 24, capacity=3 * BYTES) as store, Tasked(store) as tasked:
        one, two = tasked.result(store, 1), tasked.result(store, 2)
        del one, two
        assert names(store) == ["w", "w"]
        array = store.full(2 * N + N // 2, 7.0)
        assert names(store) == ["a"]
        del array
        store.trim()
        again = tasked.result(store, 3)
        del again
        assert names(store) == ["w"]
        assert store.trim() >= BYTES
        assert names(store) == []
        again = tasked.result(store, 4)
        del again
        tasked.finish().expect()


def test_of_a_store_that_it_is_not_to_come_back_to_it_keeps_nothing(tasked: Tasked) -> None:
    """A worker keeps what it needs to come back to a few stores alone."""
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(sa.Store(warm=1 << 24)) for _ in range(5)]
        for store in stores:
            for turn in range(2):
                array = tasked.result(store, turn)
                del array
            assert names(store) == ["w"]
        assert [names(store) for store in stores] == [[], ["w"], ["w"], ["w"], ["w"]]
        del store


@pytest.mark.parametrize("when", ["absent", "present"])
def test_a_fork_leaves_to_the_parent_what_is_the_parents(store: sa.Store, tasked: Tasked, when: str) -> None:
    """The child keeps its own; what was mapped when it was forked is used again by neither."""
    array = tasked.result(store, 1)
    del array
    handle = pickle.dumps(store).hex()
    child = (
        f"s = pickle.loads(bytes.fromhex({handle!r})); b = s.full({N}, 5.0); del b, s; os.read(go[0], 1); os._exit(0)"
    )
    fork = f"pid = os.fork(); pid or exec({child!r})"
    tasked.do("go = os.pipe()")
    if when == "absent":
        tasked.do(fork)
    else:
        tasked.do(f"s = pickle.loads(bytes.fromhex({handle!r})); a = s.full({N}, 4.0)")
        tasked.do(fork)
        tasked.do("del a, s")
    held = [tasked.result(store, 10 + turn) for turn in range(3)]
    for turn in range(5):
        array = tasked.result(store, turn)
        del array
    assert [float(one[-1]) for one in held] == [10, 11, 12]
    assert tasked.do("os.write(go[1], b'1'); answer = os.waitpid(pid, 0)[1]") == 0
    held.clear()
    store.trim()
    store.check(fix=True)
    assert names(store) == []


FILES = (*OF_RECYCLING, "absences.py", "joining.py", "leasing.py", "membership.py")


def ours(filename: str) -> bool:
    """Say whether that is a file of which each step counts here."""
    return filename.endswith(FILES)


@pytest.fixture
def elsewhere() -> Iterator[bytes]:
    """The handle of a store of another process, which this one joins for a task and leaves."""
    with Child(OWNER, str(1 << 24)) as owner:
        handle = bytes.fromhex(owner.wait_for("ready"))
        for _ in range(3):
            make_and_drop(handle)
        yield handle
        store: sa.Store = pickle.loads(handle)
        store.trim()
        wait_until(functools.partial(has_only_that_of_the_owner, store), 10, "something stays")
        del store
        owner.finish().expect()


def make_and_drop(handle: bytes) -> None:
    """Come to the store, make an array in the memory of the last one, and let go of both."""
    store = pickle.loads(handle)
    array = store.full(N, 2.0)
    del array, store


def look(handle: bytes) -> bool:
    """Say whether arrays are what they are made to be; then keep nothing."""
    store = pickle.loads(handle)
    good = is_well(store)
    store.trim()
    return good


def test_an_interruption_at_any_step_loses_none_for_long(elsewhere: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a descriptor; and the next arrays are what they are made to be."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    assert look(elsewhere)
    before = len(os.listdir("/proc/self/fd"))
    n, reached = 0, True
    gc.disable()
    try:
        while reached:
            n += 1
            make_and_drop(elsewhere)
            interrupter = Interrupter(n, ours)
            with interrupter, contextlib.suppress(Interrupted):
                make_and_drop(elsewhere)
            reached = interrupter.count >= n
            assert look(elsewhere), interrupter.where
            if len(os.listdir("/proc/self/fd")) > before:
                gc.collect()  # what was lost in the midst of coming back
            assert len(os.listdir("/proc/self/fd")) <= before, interrupter.where
    finally:
        gc.enable()
    assert n > 100


def test_a_kill_at_any_line_leaves_nothing(elsewhere: bytes, request: pytest.FixtureRequest) -> None:
    """The kernel lets go of the mark, and a sweep finds the file."""
    step = 1 if request.config.getoption("--deep") else 17
    for n in range(1, 5000, step):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(3):
                    make_and_drop(elsewhere)
                with kill_at(n, ours):
                    make_and_drop(elsewhere)
                os._exit(0)
            finally:
                os._exit(9)
        status = reap(pid)
        assert look(elsewhere), n
        if status == 0:  # it is done in fewer lines
            break
        assert status == -signal.SIGKILL, n
    assert n > 100
