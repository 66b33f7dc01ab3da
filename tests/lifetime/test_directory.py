"""Lifetimes where the blocks are files of an ordinary directory: the same, to the last file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

import shmarray as sa
from tests.helpers import leaks
from tests.helpers.processes import Child, wait_until
from tests.lifetime.holder import Holder

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext


def kinds(store: sa.Store, directory: str) -> list[str]:
    """What the store has in its directory, but for its claim: "a" anonymous, "h" in flight, "n" named, "t" draft."""
    ends = (name.partition(f".{store.id}.")[2].partition(".")[0] for name in os.listdir(directory) if store.id in name)
    return sorted(end for end in ends if end != "dir")


def test_arrays_on_disk_live_and_die_as_in_memory(start_method: BaseContext, store_dir: str) -> None:
    """Held, handed on, in flight, deleted, replaced, held by a process that is killed: judged by the files that are there."""
    with sa.Store(directory=store_dir) as store, Holder(start_method) as holder:
        array = store.put(np.ones(5))
        holder.tell("keep", array)
        del array
        assert kinds(store, store_dir) == ["a"]
        assert holder.tell("sum") == [5]
        (handle,) = holder.tell("pickle")
        holder.tell("drop")
        assert kinds(store, store_dir) == ["a", "h"]
        array = pickle.loads(handle)
        assert kinds(store, store_dir) == ["a"]
        array += 1
        assert array.sum() == 10
        del array
        assert kinds(store, store_dir) == []

        store["w"] = np.zeros(3)
        holder.tell("look up", store, "w")
        store["w"] = np.ones(3)
        assert kinds(store, store_dir) == ["n"]
        holder.tell("add", 7)
        assert holder.tell("sum") == [21]
        assert store["w"].sum() == 3
        del store["w"]
        assert kinds(store, store_dir) == []

        holder.tell("make", store, np.arange(4))
        shared = store.put(np.ones(2))
        holder.tell("keep", shared)
        holder.kill()
        wait_until(lambda: kinds(store, store_dir) == ["a"], 10, lambda: str(kinds(store, store_dir)))
        store["left"] = shared
        store.close()
        assert kinds(store, store_dir) == []
        assert shared.sum() == 2


@pytest.mark.core
def test_a_killed_owner_leaves_nothing_in_the_directory(store_dir: str) -> None:
    """The guardian removes files and claim there, and the control file in shared memory, while views go on."""
    owner = """
    import pickle, sys
    import numpy as np, shmarray as sa
    from tests.helpers.processes import report
    store = sa.Store(directory=sys.argv[1])
    named, anonymous = store.ones(3, name="n"), store.ones(4)
    report("ready", [store.id, pickle.dumps([named, anonymous]).hex()])
    input()
    """
    with Child("\n".join(line.strip() for line in owner.splitlines()), store_dir) as child:
        identity, handles = child.wait_for("ready")
        arrays = pickle.loads(bytes.fromhex(handles))
        child.kill()
        wait_until(lambda: not [name for name in os.listdir(store_dir) if not name.endswith(".dir")], 10)
        arrays[0] += 1
        arrays[1] += 1
        assert [array.sum() for array in arrays] == [6, 8]
        del arrays
        wait_until(lambda: not os.listdir(store_dir), 10)
        wait_until(lambda: not [name for name in leaks.shm_entries() if identity in name], 10)


def test_two_stores_share_a_directory(store_dir: str) -> None:
    """Stores in one directory, and what else is there, do not touch each other."""
    other_file = os.path.join(store_dir, "data.npy")
    np.save(other_file, np.arange(3))
    with sa.Store(directory=store_dir) as one:
        one["x"] = np.zeros(3)
        with sa.Store(directory=store_dir) as two, Holder(multiprocessing.get_context("fork")) as holder:
            two["x"] = np.ones(3)
            holder.tell("look up", two, "x")
            assert (one["x"].sum(), two["x"].sum(), holder.tell("sum")) == (0, 3, [3])
        assert one["x"].sum() == 0
        assert kinds(one, store_dir) == ["n"]
    assert os.listdir(store_dir) == ["data.npy"]
    assert np.load(other_file).tolist() == [0, 1, 2]
