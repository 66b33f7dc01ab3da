"""What messages about a guard, or about an object that is gone, call it."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MADE: dict[str, tuple[str, Callable[[sa.Store, str | None], Any]]] = {
    "lock": ("Lock", lambda store, name: store.Lock(name=name)),
    "re-entrant lock": ("RLock", lambda store, name: store.RLock(name=name)),
    "array": ("array", lambda store, name: store.zeros(3, name=name).lock),
    "tree": ("tree", lambda store, name: store.put({"a": np.ones(3)}, name=name).lock),
    "lock of a value": ("Value", lambda store, name: store.Value("d", 1.5, name=name).get_lock()),
    "lock of values": ("Array", lambda store, name: store.Array("i", 3, name=name).get_lock()),
}


@pytest.mark.parametrize("what", MADE)
@pytest.mark.parametrize("name", [None, "x"])
def test_messages_about_a_guard_say_what_it_guards(what: str, name: str | None) -> None:
    """A lock, an array, a tree, a value: with its name, or as an anonymous one of its kind."""
    noun, make = MADE[what]
    with sa.Store() as store:
        lock = make(store, name)
        with pytest.raises(sa.GuardError) as caught:
            lock.release()
        assert (f"this anonymous {noun}" if name is None else f"the {noun} 'x'") in caught.value.summary


def test_a_lock_shows_its_name_and_of_what_it_is_the_lock() -> None:
    """A lock by itself shows itself; the lock of an array shows the array."""
    with sa.Store() as store:
        assert repr(store.Lock()) == "<Lock, free>"
        assert repr(store.RLock(name="r")) == "<RLock 'r', free>"
        assert repr(store.zeros(3, name="a").lock) == "<Lock of the array 'a', free>"


def test_who_enters_a_lock_twice_is_told_of_the_re_entrant_one() -> None:
    """The remedy fits: `with` blocks for an array, an RLock for a lock."""
    with sa.Store() as store:
        for lock, remedy in ((store.Lock(), "RLock"), (store.zeros(3).lock, "`with` block")):
            with lock, pytest.raises(sa.GuardError) as caught:
                lock.acquire()
            assert remedy in caught.value.remedy


def test_messages_about_a_name_that_is_taken_say_by_what(tmp_path: Path) -> None:
    """Whatever is to get the name, also from a file; of an object named afterwards that has others with it, only that there is one."""
    made: dict[str, Callable[[sa.Store, str | None], Any]] = dict(MADE.values())
    made |= {
        "Channel": lambda store, name: store.channel(3, name=name),
        "Queue": lambda store, name: store.Queue(name=name),
        "Event": lambda store, name: store.Event(name=name),
        "dict": lambda store, name: store.__setitem__(str(name), store.dict(a=store.ones(3))),
        "list": lambda store, name: store.__setitem__(str(name), store.list([1])),
        "object": lambda store, name: store.__setitem__(str(name), store.Condition(store.Lock())),
    }
    path = tmp_path / "a.npy"
    np.save(path, np.ones(3))
    with sa.Store() as store:
        for noun, make in made.items():
            keep = make(store, noun)
            takers: list[Callable[[Any], Any]] = [
                lambda name: store.zeros(3, name=name), lambda name: store.Lock(name=name),
                lambda name: store.load(path, name=name), lambda name: store.channel(3, name=name),
            ]  # fmt: skip
            for take in takers:
                with pytest.raises(sa.ArrayExistsError, match=f"^the {noun} {noun!r} is already in ") as caught:
                    take(noun)
                assert caught.value.name == noun
                del caught
            del keep
        os.truncate(f"/dev/shm/{store.zeros(3, name='damaged').block_name}", 1000)
        with pytest.raises(sa.ArrayExistsError, match=r"^the object 'damaged' is already in "):
            store.ones(3, name="damaged")


def test_messages_about_what_was_deleted_say_what_it_was() -> None:
    """A handle to a deleted queue is not called an array; where nobody can know, it is an object."""
    with sa.Store() as store:
        queue, array = store.Queue(), store.zeros(3, name="a")
        handle = pickle.dumps(queue)
        queue.unlink()
        array.unlink()
        with pytest.raises(sa.ArrayNotFoundError, match="the anonymous Queue of this handle has been deleted"):
            pickle.loads(handle)
        with pytest.raises(sa.ArrayNotFoundError, match="the array 'a' has been deleted"):
            pickle.dumps(array)
        handle = pickle.dumps(store.Lock())
        assert store.release_unclaimed() == 1
        with pytest.raises(sa.ArrayNotFoundError, match="the anonymous object of this handle is not there") as caught:
            pickle.loads(handle)
        assert "array" not in str(caught.value)
