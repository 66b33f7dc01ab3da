"""A store is a mutable mapping of names to arrays: what a dict does, for every process that looks."""

from __future__ import annotations

import collections.abc
import multiprocessing
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = [
    "a", "A", "train/images/0", "..", ".", "/", "a/../b", "with space", " ", "-", "%2F", "a%2Fb", "%~0", "n.a", "ctl", "*?[a]", "~",
    "$HOME", "naïve", "nai\u0308ve", "数据", "🗻", "\u200b", "x" * 255, "y" * 254 + "1", "y" * 254 + "2", "é" * 127, "/" * 255, "\\",
    "a\\b", "'", '"', "name.with.dots", "0", "None", "\u00a0", "a=b;c|d&e", "\ufffd",
]  # fmt: skip


@pytest.mark.core
def test_a_store_is_a_mutable_mapping(store: sa.Store) -> None:
    """All that MutableMapping promises is there and agrees with a dict."""
    assert isinstance(store, collections.abc.MutableMapping)
    model: dict[str, int] = {}
    for name in ("b", "a", "c/d"):
        store[name] = np.full(2, len(model))
        model[name] = len(model)
    assert len(store) == len(model)
    assert list(store) == sorted(model)
    assert {name: int(array[0]) for name, array in store.items()} == model
    assert sorted(int(array[0]) for array in store.values()) == [0, 1, 2]
    assert store.keys() == model.keys()
    assert "a" in store
    assert "z" not in store
    assert store.get("z") is None
    assert store.get("z", 5) == 5
    first: Any = store.get("a")
    assert first.tolist() == [1, 1]
    popped = store.pop("a")
    assert popped.tolist() == [1, 1]
    assert store.pop("a", None) is None
    store.update({"e": np.ones(1)}, f=np.zeros(2))
    assert list(store) == ["b", "c/d", "e", "f"]
    name, array = store.popitem()
    assert name not in store
    assert array.size
    store.clear()
    assert (list(store), len(store), bool(store)) == ([], 0, False)


def test_setdefault_gives_the_shared_array(store: sa.Store) -> None:
    """What it returns is what is in the store, so that writing to it is seen by all."""
    mine = np.zeros(3)
    shared = store.setdefault("x", mine)
    shared[0] = 5
    assert type(shared) is sa.SharedArray
    assert store["x"][0] == 5
    assert mine[0] == 0
    assert store.setdefault("x", np.ones(9)).tolist() == [5, 0, 0]


def test_a_missing_name_is_a_key_error(store: sa.Store) -> None:
    """Looking up, deleting and popping what is not there say so like a dict does."""
    for act in (lambda: store["x"], lambda: store.__delitem__("x"), lambda: store.pop("x"), store.popitem):
        with pytest.raises(KeyError):
            act()


def test_what_cannot_be_a_name_is_not_in_the_store(store: sa.Store) -> None:
    """Asking is no error: such a thing is just not there."""
    keys: list[Any] = ["", "\0", "x" * 256, 5, None, b"a", ("a",)]
    for key in keys:
        assert key not in store
        assert store.get(key, "nothing") == "nothing"


def test_the_newest_array_has_the_name(store: sa.Store) -> None:
    """Publishing replaces; the old array stays what it was for those who hold it; a new dtype and shape are no matter."""
    store["w"] = np.arange(3)
    old = store["w"]
    store["w"] = np.ones((2, 2), "f4")
    assert (old.tolist(), store["w"].shape, store["w"].dtype) == ([0, 1, 2], (2, 2), np.dtype("f4"))
    assert len(store) == 1
    old[0] = 7
    assert store["w"].sum() == 4


@pytest.mark.core
def test_what_has_the_name_already_keeps_it(store: sa.Store) -> None:
    """`store["w"] += 1` adds in place, as with a dict of arrays: all of an array, or of a tree, is not replaced by a copy of itself."""
    mine = store.put(np.arange(4).reshape(2, 2), name="w")
    store["w"] += 1
    assert mine.tolist() == store["w"].tolist() == [[1, 2], [3, 4]]
    store["w"] = mine[:]
    store["w"].reshape(4)[0] = 7
    assert mine[0, 0] == 7
    number = store.put(2.5, name="number")
    store["number"] *= 2
    assert number == 5
    tree = store.put({"a": np.zeros(2), "b": {"c": np.ones(1)}}, name="tree")
    store["tree"] = tree
    store["tree"]["a"][:] = 3
    assert tree["a"].tolist() == [3, 3]
    assert store.check() == []


@pytest.mark.parametrize(
    "part",
    [
        lambda a: a[::-1],
        lambda a: a.T,
        lambda a: a[:1],
        lambda a: a.reshape(-1),
        lambda a: a.view("u8"),
        np.array,
        lambda a: a.view(np.ndarray),
    ],
    ids=["reversed", "transposed", "a slice", "reshaped", "another dtype", "a private copy", "a plain view"],
)
def test_anything_but_all_of_it_replaces_it(store: sa.Store, part: Callable[[Any], Any]) -> None:
    """A view that is not the array as it was made is published as a copy, and so is an array of another name, and a part of a tree."""
    old = store.put(np.arange(4).reshape(2, 2), name="w")
    store["w"] = part(old)
    np.testing.assert_array_equal(store["w"], part(old))
    assert store["w"].dtype == part(old).dtype
    old[...] = 9
    assert 9 not in store["w"]
    store["v"] = store["w"]
    store["w"][...] = 5
    assert 5 not in store["v"]
    tree = store.put({"a": {"a": np.zeros(1)}}, name="a")
    store["a"] = tree["a"]
    assert list(store["a"]) == ["a"]
    assert store["a"]["a"].tolist() == [0]


def test_an_array_that_was_deleted_or_replaced_gets_its_name_again_as_a_copy(store: sa.Store) -> None:
    """It has the name no more, so it is published like any other."""
    old = store.put(np.arange(3), name="w")
    del store["w"]
    store["w"] = old
    assert store["w"].tolist() == [0, 1, 2]
    store["w"] = np.zeros(3)
    store["w"] = old
    old[0] = 9
    assert store["w"].tolist() == [0, 1, 2]
    with sa.Store() as other:
        other["w"] = old
        assert (other["w"].tolist(), other["w"] is old) == ([9, 1, 2], False)
    store.close()
    with pytest.raises(sa.StoreClosedError):
        store["w"] = old


def test_an_array_that_was_inherited_by_fork_is_added_to_in_place(store: sa.Store) -> None:
    """The child has mapped it before the fork, and may find it mapped anew by name."""
    mine = store.put(np.arange(3), name="w")

    def add() -> None:
        store["w"] += 1
        store["w"] = mine
        mine[0] += 5

    child = multiprocessing.get_context("fork").Process(target=add)
    child.start()
    child.join()
    assert (child.exitcode, mine.tolist(), store["w"].tolist()) == (0, [6, 2, 3], [6, 2, 3])


def test_a_store_is_no_array(store: sa.Store) -> None:
    """NumPy would take the names for the data: it says so, with the remedy."""
    store["w"] = np.arange(3)
    for take in (np.asarray, np.array, np.sum, store.put):
        with pytest.raises(TypeError) as caught:
            take(store)
        assert "store" in str(caught.value)


def test_a_deleted_name_can_be_used_again(store: sa.Store) -> None:
    """The old view stays valid and is not the new array."""
    old = store.zeros(3, name="x")
    del store["x"]
    assert "x" not in store
    new = store.ones(4, name="x")
    old[:] = 9
    assert (new.sum(), store["x"].shape) == (4, (4,))


def test_any_reasonable_text_is_a_name(store: sa.Store) -> None:
    """Paths, dots, spaces, accents composed or not, other scripts, 255 bytes: each names its own array and comes back exact."""
    for number, name in enumerate(NAMES):
        made = store.full(1, number, name=name)
        assert made.name == name
    assert list(store) == sorted(NAMES)
    for number, name in enumerate(NAMES):
        assert name in store
        found = store[name]
        assert (found.name, found[0]) == (name, number)
    for name in NAMES:
        del store[name]
    assert len(store) == 0


def test_stores_do_not_see_each_other(store: sa.Store) -> None:
    """The same name in two stores is two arrays."""
    with sa.Store() as other:
        store["x"], other["x"] = np.zeros(1), np.ones(1)
        assert (store["x"][0], other["x"][0]) == (0, 1)
        assert store != other
        assert len({store, other}) == 2
        del other["x"]
        assert "x" in store


def test_a_store_says_what_it_is(place: str | None) -> None:
    """Name, identity, owner, state and guardian are there to be read, also when it is closed."""
    with sa.Store("contract-identity", directory=place) as store:
        joined = sa.connect("contract-identity")
        assert (store.name, store.is_owner, store.closed) == ("contract-identity", True, False)
        assert joined == store
        assert hash(joined) == hash(store)
        assert store.guardian_pid is not None
        assert repr(store) == "<Store 'contract-identity' open>"
        assert len(store.id) == 16
    closed: list[Any] = [store.name, store.closed, joined.closed, store.guardian_pid]
    assert closed == ["contract-identity", True, True, None]
    assert repr(store) == "<Store 'contract-identity' closed>"
    with sa.Store(directory=place) as anonymous:
        assert anonymous.name is None
        assert anonymous.id in repr(anonymous)


def test_statistics_count_what_is_there(store: sa.Store, place: str | None) -> None:
    """Blocks, handles in flight, bytes and attachments, as they are now."""
    empty = store.stats()
    assert (empty.named, empty.anonymous, empty.in_flight, empty.nbytes, empty.attached) == (0, 0, 0, 0, 0)
    assert empty.directory == (place or "/dev/shm")
    named, anonymous = store.zeros(1 << 16, name="a"), store.zeros(1 << 16)
    store.put({"x": np.ones(3), "y": [np.ones(4)]}, name="tree")
    handle = pickle.dumps(anonymous)
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.in_flight, stats.attached) == (2, 1, 1, 2)
    assert 2 * named.nbytes <= stats.nbytes <= 2 * named.nbytes + 8 * 4096
    assert (stats.state, stats.capacity) == ("open", None)
    assert stats.free > 0
    pickle.loads(handle)
    assert store.stats().in_flight == 0
    assert store.check() == []


def test_a_store_can_be_opened_again_under_its_name(place: str | None) -> None:
    """Closing frees the name at once, and nothing of the old store is in the new one."""
    for _ in range(3):
        with sa.Store("contract-again", directory=place) as store:
            assert len(store) == 0
            store["x"] = np.ones(3)
    with pytest.raises(sa.StoreNotFoundError):
        sa.connect("contract-again")


def test_closing_twice_is_closing(place: str | None) -> None:
    """`close()` may be repeated, inside the scope too, and from several threads; what is held stays readable."""
    with sa.Store(directory=place) as store:
        array = store.put(np.arange(3))
        threads = [threading.Thread(target=store.close) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.close()
        assert store.closed
        assert array.sum() == 3
        array[0] = 5
    assert array.tolist() == [5, 1, 2]
