"""`Store.manager()`: everything of a `SyncManager` and a `SharedMemoryManager`, in the store's host."""

from __future__ import annotations

import pickle
from multiprocessing.managers import SharedMemoryManager, SyncManager
from typing import Any

import numpy as np
import pytest

import shmarray as sa
from tests.helpers import leaks
from tests.helpers.processes import wait_until
from tests.hosting.things import Thing, Things


@pytest.mark.core
def test_a_manager_makes_all_that_the_standard_ones_make(common: Things) -> None:
    """Every type of a `SyncManager` can be made and used, and travels."""
    manager: Any = common.manager()
    assert issubclass(type(manager), SyncManager)
    assert issubclass(type(manager), SharedMemoryManager)
    mapping, sequence, names = manager.dict(a=1), manager.list([3, 1]), manager.Namespace(x=1)
    mapping["b"] = 2
    sequence.sort()
    names.y = names.x + 1
    assert ({**mapping.copy()}, sequence[:], names.y, list(mapping)) == ({"a": 1, "b": 2}, [1, 3], 2, ["a", "b"])
    queue, event, value, array = manager.Queue(), manager.Event(), manager.Value("i", 3), manager.Array("i", [1, 2])
    queue.put(4)
    event.set()
    value.value += 1
    array[0] = 9
    assert (queue.get(), event.wait(1), value.value, array[:]) == (4, True, 4, manager.Array("i", [9, 2])[:])
    with (
        manager.Lock(),
        manager.RLock(),
        manager.Semaphore(2),
        manager.BoundedSemaphore(1),
        manager.Condition() as condition,
    ):
        assert condition
    assert manager.Barrier(1).wait() == 0
    assert manager.JoinableQueue(1).empty()
    for proxy in (mapping, sequence, names, queue, event, value, array):
        again = pickle.loads(pickle.dumps(proxy))
        assert type(again) is type(proxy)
        assert str(again) == str(proxy) or proxy in (queue, event)
    with manager:
        manager.shutdown()
    assert manager.list([5])[:] == [5]


def test_arrays_and_objects_of_users_classes_may_be_put_in(common: Things) -> None:
    """An array of the store in a managed dict is shared memory, an ordinary one a copy, an object of any class is kept."""
    shared = common.manager().dict()
    array = common.zeros(3)
    shared["array"], shared["plain"], shared["thing"] = array, np.arange(3), Thing(4)
    shared["array"][0] = 7
    shared["plain"][0] = 7
    assert (array[0], shared["plain"][0], shared["thing"].get()) == (7, 0, 4)


def test_managed_objects_nest(common: Things) -> None:
    """Proxies in managed objects lead to the one object."""
    manager = common.manager()
    inner = manager.list([1])
    outer = manager.dict(inner=inner, thing=common.Thing(inner))
    outer["inner"].append(2)
    outer["thing"].get().append(3)
    assert inner[:] == [1, 2, 3]


def test_segments_of_a_manager_end_with_the_store() -> None:
    """`SharedMemory` and `ShareableList` of the standard library are made, and unlinked once, in silence."""
    before = leaks.shm_entries("psm_")
    with Things() as store:
        manager: Any = store.manager()
        segment, listed = manager.SharedMemory(100), manager.ShareableList([1, "a"])
        segment.buf[0] = 1
        assert len(leaks.shm_entries("psm_") - before) == 2
        assert list(listed) == [1, "a"]
        segment.close()
        listed.shm.close()
    wait_until(lambda: leaks.shm_entries("psm_") == before)


def test_segments_of_a_manager_go_when_the_host_is_killed() -> None:
    """Segments are not left behind by a host that ended without its exit handlers."""
    before = leaks.shm_entries("psm_")
    with Things() as store:
        segment = store.manager().SharedMemory(100)
        with pytest.raises(sa.HostError):
            store.Thing().die()
        wait_until(lambda: leaks.shm_entries("psm_") == before)
        segment.close()


def test_a_manager_refuses_what_is_the_stores(common: Things) -> None:
    """Types are registered with the store and not with its manager; a manager does not pickle, and says what does."""
    manager: Any = common.manager()
    with pytest.raises(TypeError, match=r"Store\.register"):
        manager.register("Thing", Thing)
    with pytest.raises(TypeError, match="pass the store"):
        pickle.dumps(manager)
