"""Counting and checking a store: what it says is what the directory says, and it accuses nobody who is at work."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmarray as sa
from shmarray._format import names
from shmarray._os import flocks, segments
from tests.helpers import leaks
from tests.helpers.processes import kill_and_reap, wait_until

pytestmark = pytest.mark.usefixtures("each_in_a_file")

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = "ü" * 127


@pytest.fixture(params=["shared memory", "disk"])
def store(request: pytest.FixtureRequest, store_dir: str) -> Iterator[sa.Store]:
    """An open store, in shared memory and on disk."""
    with sa.Store(directory=None if request.param == "shared memory" else store_dir) as opened:
        yield opened


def _path(store: sa.Store, kind: str) -> str:
    return os.path.join(store.stats().directory, f"shmarray.{os.geteuid()}.{store.id}.{kind}")


def _strange(store: sa.Store, kind: str, content: bytes = b"") -> str:
    path = _path(store, kind)
    with open(path, "wb") as file:
        file.write(content)
    return path


def test_a_new_store_is_empty_and_knows_itself(store: sa.Store) -> None:
    """No blocks, no bytes, state open, owner and guardian as the kernel shows them."""
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.in_flight, stats.drafts, stats.nbytes, stats.attached) == (0,) * 6
    assert (stats.name, stats.id, stats.state, stats.owner_pid) == (None, store.id, "open", os.getpid())
    assert stats.guardian_pid in [guardian.pid for guardian in leaks.guardians()]
    assert stats.capacity is None
    space = os.statvfs(stats.directory)
    assert 0 <= stats.free <= space.f_blocks * space.f_frsize
    assert store.check() == []
    assert (list(store), len(store)) == ([], 0)


def test_blocks_are_counted_by_kind_and_a_tree_is_one(store: sa.Store) -> None:
    """Named, anonymous, in flight; bytes are those of the files; attached is what this process maps."""
    store["a"] = np.ones(1000)
    store["tree"] = {"x": np.ones(3), "y": [np.ones(4), 7]}
    held = store.zeros((5, 5))
    kept = store["a"]
    handles = [pickle.dumps(held), pickle.dumps(held[1:]), pickle.dumps(kept)]
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.in_flight, stats.drafts, stats.attached) == (2, 1, 2, 0, 2)
    prefix = f"shmarray.{os.geteuid()}.{store.id}."
    files = {
        os.lstat(os.path.join(stats.directory, entry)).st_ino: os.lstat(os.path.join(stats.directory, entry)).st_size
        for entry in leaks.shm_entries(prefix, stats.directory)
        if entry.removeprefix(prefix) not in (names.CONTROL, names.CLAIM)
    }
    assert stats.nbytes == sum(files.values())
    assert (len(store), list(store)) == (2, ["a", "tree"])
    del held
    assert store.stats().anonymous == 1
    assert [pickle.loads(handle).sum() for handle in handles] == [0, 0, 1000]
    del kept
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.in_flight, stats.attached) == (2, 0, 0, 0)
    assert store.check() == []


@given(
    st.sets(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=60), max_size=6)
)
def test_any_names_are_listed_as_they_were_given(chosen: set[str]) -> None:
    """Sorted, whole, whatever letters, also those that are spelled by their hash."""
    for name in chosen:
        _shared()[name] = np.zeros(1)
    assert list(_shared()) == sorted(chosen)
    assert len(_shared()) == len(chosen)
    for name in chosen:
        assert name in _shared()
        del _shared()[name]
    assert len(_shared()) == 0


_opened: list[sa.Store] = []


def _shared() -> sa.Store:
    return _opened[0]


@pytest.fixture(autouse=True)
def _one_store_for_all_examples(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hypothesis calls the test many times within one set of fixtures; opening a store each time would take most of it."""
    if "any_names" not in request.node.name:
        yield
        return
    with sa.Store() as store:
        _opened.append(store)
        yield
        _opened.clear()


def test_a_long_name_is_read_from_its_block_and_left_out_where_that_is_damaged(store: sa.Store) -> None:
    """The file name tells only a hash; a damaged block costs its own name and no more."""
    store[LONG] = np.ones(2)
    store["b"] = np.ones(2)
    assert list(store) == ["b", LONG]
    path = _path(store, names.NAMED + names.encode(LONG))
    os.truncate(path, 4096 * 3)
    assert list(store) == ["b"]
    assert len(store) == 2
    assert [problem.path for problem in store.check()] == [path]


def test_with_a_capacity_what_is_free_is_what_it_leaves() -> None:
    """`free` is the capacity less what is there, and never negative."""
    with sa.Store(capacity=1 << 20) as store:
        assert (store.stats().capacity, store.stats().free) == (1 << 20, 1 << 20)
        held = store.zeros(1000)
        assert store.stats().free == (1 << 20) - store.stats().nbytes
        del held
        assert store.stats().free == 1 << 20


def test_a_closed_store_answers_nothing(store: sa.Store) -> None:
    """Every question is `StoreClosedError`."""
    store.close()
    for ask in (
        store.stats,
        store.check,
        store.release_unclaimed,
        lambda: list(store),
        lambda: len(store),
        lambda: "a" in store,
    ):
        with pytest.raises(sa.StoreClosedError):
            ask()


# the self-check


def test_what_nobody_can_reach_is_found_and_removed_on_request(store: sa.Store) -> None:
    """An anonymous block that a killed process left, with the guardian gone: reported, and removed by `fix`."""
    assert store.guardian_pid is not None
    guardian = store.guardian_pid
    os.kill(guardian, signal.SIGKILL)
    wait_until(lambda: store.guardian_pid is None)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        left = store.zeros(10)
        os.write(writer, (left.block_name or "").encode())
        signal.pause()
    entry = os.read(reader, 200).decode()
    assert store.check() == []
    kill_and_reap(pid)
    path = os.path.join(store.stats().directory, entry)
    (problem,) = store.check()
    assert (problem.path, problem.fixed) == (path, False)
    assert "nobody holds it" in problem.reason
    assert os.path.exists(path)
    (problem,) = store.check(fix=True)
    assert problem.fixed
    assert not os.path.exists(path)
    assert store.check() == []
    os.close(reader)
    os.close(writer)


def test_a_block_that_was_never_finished_is_found_only_when_its_maker_is_gone(store: sa.Store) -> None:
    """A draft's name that somebody holds is no problem; deserted it is one, and is removed by `fix`."""
    directory = store.stats().directory
    fd, _ = segments.create_leased(directory, lambda: "unused")
    segments.resize(fd, 4096)
    segments.publish(fd, _path(store, "t.1234"))
    assert store.check() == []
    assert store.stats().drafts == 1
    fd.close()
    # The guardian may come first.
    assert [problem.path for problem in store.check(fix=True)] in ([_path(store, "t.1234")], [])
    assert not os.path.exists(_path(store, "t.1234"))


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("n.x", b"", "header"),
        ("n.x", bytes(8192), "header"),
        ("a.0123456789abcdef", bytes(4096), "header"),
        ("a.x", b"y", "header"),
        ("q", b"", "no file of shmarray has such a name"),
        ("", b"", "no file of shmarray has such a name"),
    ],
)
def test_what_is_damaged_or_foreign_is_reported_and_never_removed(
    store: sa.Store, kind: str, content: bytes, reason: str
) -> None:
    """It may be evidence: `fix` leaves it, and everything else in the store is as before."""
    store["good"] = np.ones(3)
    path = _strange(store, kind, content)
    for fix in (False, True):
        (problem,) = store.check(fix=fix)
        assert (problem.path, problem.fixed) == (path, False)
        assert reason in problem.reason
    assert os.path.getsize(path) == len(content)
    assert store["good"].sum() == 3


def test_a_block_under_a_wrong_name_is_reported(store: sa.Store) -> None:
    """A second name that no handle explains, or a name the header does not know, is a problem."""
    store["x"] = np.ones(3)
    os.link(_path(store, "n.x"), _path(store, "n.y"))
    (problem,) = store.check(fix=True)
    assert problem.path == _path(store, "n.y")
    assert "its header says that it is n.x" in problem.reason
    os.unlink(_path(store, "n.y"))
    assert store.check() == []


def test_checking_and_counting_never_accuse_those_at_work(store: sa.Store) -> None:
    """While threads create, replace, hand over, drop and delete, `check` finds nothing wrong, ever."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            turn = 0
            while not stop.is_set():
                turn += 1
                store[f"n{number}"] = np.full(10, turn)
                array = store.full(10, turn)
                handle = pickle.dumps(array)
                del array
                assert pickle.loads(handle)[3] == turn
                if turn % 3 == 0:
                    del store[f"n{number}"]
        except BaseException as error:  # noqa: BLE001  shown by the main thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    problems = []
    for _ in range(60):
        problems += store.check()
        store.stats()
        list(store)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert problems == []


def test_what_a_look_kept_from_going_is_removed_and_not_accused(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array dropped just while someone looks whether it is held goes when `check` comes by: no problem, no leak."""
    array = store.ones(3)
    path = os.path.join(store.stats().directory, str(array.block_name))
    with monkeypatch.context() as patched:
        patched.setattr(flocks, "try_exclusive", lambda _: False)  # what the drop finds while another has the lock
        del array
    assert os.path.exists(path)
    assert store.check() == []
    assert not os.path.exists(path)


def test_checking_leaves_no_lock_and_no_descriptor(store: sa.Store) -> None:
    """Afterwards every block is as free, or as held, as before."""
    held = store.zeros(3)
    store["x"] = np.ones(3)
    before = leaks.descriptors()
    for _ in range(3):
        assert store.check(fix=True) == []
        store.stats()
    assert leaks.descriptors() == before
    held[:] = 1
    del held
    assert store.stats().anonymous == 0
