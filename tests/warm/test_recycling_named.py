"""Memory of what a worker has named is used for its next array, whoever deletes or replaces that; who still sees it sees it whole."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import signal
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import reclaim
from tests.helpers.leaks import SHM
from tests.helpers.processes import Child, reap, wait_until
from tests.helpers.tracing import Interrupted, Interrupter, kill_at
from tests.warm.test_idling import BYTES, File, N
from tests.warm.test_idling_anonymous import OWNER
from tests.warm.test_recycling import FILES as OF_RECYCLING
from tests.warm.test_recycling import Maker, is_well, names
from tests.warm.test_recycling_absent import Tasked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("small_is_kept")]


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


def name(maker: Maker, value: float, called: str = "x") -> None:
    """Have it publish an array of one value."""
    maker.do(f"store[{called!r}] = np.full({N}, {value})")


def inode(array: Any) -> int:
    """Tell in which file an array lies."""
    with File(array) as file:
        return file.inode


def unlinking(store: sa.Store) -> None:
    """Delete an array that is looked at."""
    store["x"].unlink()


def replacing(store: sa.Store) -> None:
    """Give its name to another one, which is then deleted."""
    store["x"] = np.zeros(3)
    del store["x"]


ENDS: dict[str, Callable[[sa.Store], None]] = {
    "del store[name]": lambda store: store.__delitem__("x"),
    "a.unlink()": unlinking,
    "store[name] = other": replacing,
}


def test_what_a_worker_replaces_itself_is_published_in_the_memory_of_the_one_before(
    store: sa.Store, maker: Maker
) -> None:
    """Two files take turns; each is whole for who looks at it."""
    seen = set()
    for turn in range(12):
        name(maker, turn)
        array = store["x"]
        assert (np.asarray(array) == turn).all()
        seen.add(inode(array))
        del array
    assert len(seen) <= 3
    assert set(names(store)) <= {"n", "w"}
    maker.do("del store['x']")
    assert set(names(store)) <= {"w"}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("keeps", [False, True], ids=["it has let go", "it looks at it"])
def test_what_others_delete_is_kept_for_who_made_it(
    store: sa.Store, maker: Maker, end: Callable[[sa.Store], None], *, keeps: bool
) -> None:
    """A worker names its results, another process reads and deletes them: from the second one on, in memory that is there."""
    seen = set()
    for turn in range(8):
        maker.do(f"a = store.full({N}, {turn}.0, name='x')" + ("" if keeps else "; del a"))
        array = store["x"]
        assert (np.asarray(array) == turn).all()
        seen.add(inode(array))
        del array
        end(store)
        if keeps:
            assert maker.do("answer = float(a[0] + a[-1])") == 2 * turn
            maker.do("del a")
        assert set(names(store)) == {"w"}  # one of them the owner's, if it has replaced it
    assert len(seen) == 1
    assert store.check() == []
    assert store.trim() >= BYTES
    assert names(store) == []


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_third_process_may_delete_it(store: sa.Store, maker: Maker, end: Callable[[sa.Store], None]) -> None:
    """It is neither owner nor maker."""
    code = {
        "del store[name]": "del store['x']",
        "a.unlink()": "store['x'].unlink()",
        "store[name] = other": "store['x'] = np.zeros(3); del store['x']",
    }[next(key for key, value in ENDS.items() if value is end)]
    with Maker(store) as third:
        seen = set()
        for turn in range(4):
            name(maker, turn)
            seen.add(inode(store["x"]))
            third.do(code)
            assert set(names(store)) == {"w"}
        assert len(seen) == 1
        third.finish().expect()


def test_what_anybody_sees_is_not_used_again(store: sa.Store, maker: Maker) -> None:
    """Replaced and deleted at random, by whomever: every array that is still looked at is what it was."""
    rng = random.Random(1128)  # noqa: S311  not for secrets
    held: list[tuple[float, Any]] = []
    with Maker(store) as other:
        for turn in range(150):
            name(rng.choice([maker, other]), turn)
            if rng.random() < 0.5:
                held.append((turn, store["x"]))
            if rng.random() < 0.3:
                rng.choice([ENDS["del store[name]"], ENDS["a.unlink()"], ENDS["store[name] = other"]])(store)
            if len(held) > 6:
                held.pop(rng.randrange(len(held)))
            assert all((np.asarray(array) == value).all() for value, array in held)
        held.clear()
        store.trim()
        assert set(names(store)) <= {"n"}
        other.finish().expect()


def test_an_array_that_has_gone_is_not_found_by_its_handle(store: sa.Store, maker: Maker) -> None:
    """Its file is another array by then."""
    name(maker, 1)
    handle = pickle.dumps(store["x"])
    del store["x"]
    with pytest.raises(sa.ArrayNotFoundError):
        pickle.loads(handle)
    name(maker, 2, "y")
    with pytest.raises(sa.ArrayNotFoundError):
        pickle.loads(handle)
    assert (np.asarray(store["y"]) == 2).all()


@pytest.mark.parametrize("how", ["killed", "ended", "left"])
def test_what_it_kept_goes_with_it_and_what_has_a_name_stays(store: sa.Store, how: str) -> None:
    """Nobody waits for the end of the store."""
    with Maker(store) as maker:
        name(maker, 1)
        name(maker, 2, "y")
        name(maker, 3)
        assert names(store) == ["n", "n", "w"]
        if how == "killed":
            maker.kill()
        elif how == "left":
            maker.do("del store")
        if how != "killed":
            maker.finish().expect()
    wait_until(lambda: names(store) == ["n", "n"], 10, "the memory stays")
    assert (np.asarray(store["x"]) == 3).all()
    del store["x"], store["y"]
    assert names(store) == []


def test_who_deletes_it_as_its_keeper_lets_go_of_the_mark_removes_it(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two sees the other: whichever comes first."""
    leave = reclaim.leave_to_keeper
    with Maker(store) as maker:

        def leaving(*args: Any, **how: Any) -> bool:
            left = leave(*args, **how)
            assert left
            maker.kill()
            return left

        monkeypatch.setattr(reclaim, "leave_to_keeper", leaving)
        name(maker, 1)
        del store["x"]
    assert names(store) == []


def test_two_names_of_one_file_are_both_gone_when_it_is_deleted(store: sa.Store, maker: Maker) -> None:
    """Who was about to replace it has died in the midst of it."""
    name(maker, 1)
    array = store["x"]
    with File(array) as file:
        del array
        path = os.path.join(SHM, f"shmarray.{os.geteuid()}.{store.id}.")
        os.link(f"{path}n.x", f"{path}w.{file.inode:016x}")
        del store["x"]
        assert names(store) == ["w"]
        name(maker, 2, "y")
        assert inode(store["y"]) == file.inode
    name(maker, 3, "x")
    assert ((np.asarray(store["x"]) == 3).all(), (np.asarray(store["y"]) == 2).all()) == (True, True)


def test_nothing_stays_of_a_store_that_is_closed(store: sa.Store, maker: Maker) -> None:
    """Neither names nor memory."""
    for turn in range(3):
        name(maker, turn)
    array = store["x"]
    with File(array) as file:
        store.close()
        assert (np.asarray(array) == 2).all()
        del array
        assert (names(store), file.links(), file.memory() < BYTES // 2) == ([], 0, True)


def test_a_worker_that_is_sent_the_store_with_each_task_keeps_it_too(store: sa.Store) -> None:
    """Whoever deletes it while it is absent."""
    with Tasked(store) as tasked:
        handle = pickle.dumps(store).hex()
        seen = set()
        for turn in range(8):
            tasked.do(f"s = pickle.loads(bytes.fromhex({handle!r})); s['x'] = np.full({N}, {turn}.0); del s")
            array = store["x"]
            assert (np.asarray(array) == turn).all()
            seen.add(inode(array))
            del array
            if turn % 2:
                del store["x"]
        assert len(seen) <= 3
        tasked.finish().expect()
    assert names(store) == []


def test_a_child_uses_nothing_again_that_its_parent_has_named(store: sa.Store, maker: Maker) -> None:
    """The fork comes while the parent has let go of it, or looks at it."""
    for keeps in (False, True):
        maker.do(f"a = store.full({N}, 1.0, name='x')" + ("" if keeps else "; del a"))
        child = f"store['x'] = np.full({N}, 2.0); store['z'] = np.full({N}, 3.0); os._exit(0)"
        maker.do(f"pid = os.fork(); pid or exec({child!r}); answer = os.waitpid(pid, 0)[1]")
        name(maker, 4, "y")
        assert [float(store[key][-1]) for key in "xyz"] == [2, 4, 3]
        if keeps:
            assert maker.do("answer = float(a[0])") == 1
            maker.do("del a")
        for key in "xyz":
            del store[key]
    store.trim()
    store.check(fix=True)
    assert names(store) == []


FILES = (*OF_RECYCLING, "deletion.py", "blockfiles.py")


def ours(filename: str) -> bool:
    """Say whether that is a file of which each step counts here."""
    return filename.endswith(FILES)


@pytest.fixture
def joined() -> Iterator[sa.Store]:
    """A store of another process, with a worker of it."""
    with Child(OWNER, str(1 << 24)) as owner:
        store: sa.Store = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        yield store
        for key in set(store) & {"x", "y"}:
            del store[key]
        store.trim()
        store.check(fix=True)
        wait_until(lambda: names(store) == ["a"], 10, "something stays")
        owner.finish().expect()


def name_and_delete(store: sa.Store) -> None:
    """Publish, replace and delete, as the one who made it."""
    store["x"] = np.full(N, 1.0)
    store["x"] = np.full(N, 2.0)
    del store["x"]


def test_an_interruption_at_any_step_of_its_maker_loses_none_for_long(
    joined: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a descriptor; and the next arrays are what they are made to be."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    name_and_delete(joined)
    assert is_well(joined)
    joined.trim()
    before = len(os.listdir("/proc/self/fd"))
    n, reached = 0, True
    gc.disable()
    try:
        while reached:
            n += 1
            name_and_delete(joined)
            interrupter = Interrupter(n, ours)
            with interrupter, contextlib.suppress(Interrupted):
                name_and_delete(joined)
            reached = interrupter.count >= n
            assert is_well(joined), interrupter.where
            if "x" in joined:
                assert joined["x"][0] in (1.0, 2.0)
                del joined["x"]
            joined.trim()
            assert len(os.listdir("/proc/self/fd")) <= before, interrupter.where
    finally:
        gc.enable()
    assert n > 200


@pytest.mark.parametrize("role", ["maker", "other"])
def test_a_kill_at_any_line_leaves_every_name_whole_and_no_file(
    joined: sa.Store, request: pytest.FixtureRequest, role: str
) -> None:
    """Of who made it, or of another one that replaces and deletes it: the name leads to the one array, to the other, or nowhere."""
    step = 1 if request.config.getoption("--deep") else 23
    with Maker(joined) as maker:
        for n in range(1, 5000, step):
            if role == "other":
                name(maker, 5)
                name(maker, 6, "y")
            pid = os.fork()
            if pid == 0:
                try:
                    if role == "maker":
                        name_and_delete(joined)
                    with kill_at(n, ours):
                        if role == "other":
                            del joined["y"]
                            joined["x"].unlink()
                            joined["x"] = np.full(N, 7.0)
                        name_and_delete(joined)
                    os._exit(0)
                finally:
                    os._exit(9)
            status = reap(pid)
            for key in "xy":
                if (array := joined.get(key)) is not None:
                    assert float(array[0]) in (1, 2, 5, 6, 7), n
                    assert (np.asarray(array) == array[0]).all(), n
                    del array, joined[key]
            name(maker, 8)
            assert (np.asarray(joined["x"]) == 8).all(), n
            assert is_well(joined), n
            if status == 0:  # it is done in fewer lines
                break
            assert status == -signal.SIGKILL, n
        maker.finish().expect()
    assert n > 200
