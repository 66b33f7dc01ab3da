"""What worker processes do in the tests of the contract. Imported by name under spawn, so it does not know pytest."""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np

import shmarray as sa
from tests.contract import views
from tests.helpers import leaks


def look(array: Any) -> tuple[Any, ...]:
    """Tell what arrived."""
    return type(array).__name__, array.name, array.is_shared, views.facts(array), repr(array.tolist())


def overwrite(array: Any, value: Any) -> int:
    """Set every element, in place; returns the pid."""
    array[...] = value
    return os.getpid()


def overwrite_bytes(array: Any) -> None:
    """Set every byte of every element to one, in place, whatever the dtype is."""
    array[...] = np.frombuffer(b"\x01" * array.dtype.itemsize, array.dtype)[0]


def make_anonymous(store: sa.Store, value: Any) -> Any:
    """Make an anonymous array, return it, keep nothing."""
    return store.put(value)


def make_and_share(store: sa.Store) -> None:
    """Create, publish over what is there, and delete."""
    store.full((2, 2), 5, "i4", name="made by a worker")
    store["published"] = np.arange(3)
    del store["deleted"]


def look_up(store: sa.Store, name: str) -> Any:
    """Fetch an array, or tree, by name and return it."""
    return store[name]


def close(store: sa.Store) -> tuple[bool, bool, str | None]:
    """Close a connected store; returns what it said of itself before."""
    said = store.is_owner, store.closed, store.name
    store.close()
    return said


def read_tree(tree: Any) -> tuple[Any, ...]:
    """Read a tree made by `test_shared_trees.model`, and write one leaf."""
    tree["layers"][0].weight[...] += 1
    original = tree.unflatten()
    return (
        type(tree).__name__,
        list(tree),
        tree["epoch"],
        tree["point"].x,
        original["layers"][1].label,
        float(original["layers"][0].weight.sum()),
    )


def read_layer(layer: Any) -> tuple[float, Any]:
    """Read a part of a tree."""
    return float(layer.weight.sum()), layer.rate


def make_tree(store: sa.Store) -> Any:
    """Make an anonymous tree and return it."""
    return store.put({"a": np.arange(4), "b": [1, "two", None]})


def transports(array: Any, queue: Any, simple: Any, pipe: Any) -> None:
    """Write through an array from the arguments, then send it back by each transport and echo what comes by each."""
    array[...] = 1
    for receive, send in ((queue[0].get, queue[1].put), (simple[0].get, simple[1].put), (pipe.recv, pipe.send)):
        view = receive()
        view[...] = 2
        send(view[::-1])
        del view
    queue[1].close()
    queue[1].join_thread()


def read_one(array: Any) -> tuple[str, float]:
    """Read an array and write its first element."""
    total = float(array.sum())
    array.reshape(-1)[0] = 100
    return type(array).__name__, total


def assert_sum(array: Any, total: float) -> None:
    """Check the contents from a process that is told nothing else; then leave a mark."""
    assert type(array) is sa.SharedArray
    assert array.sum() == total
    array[...] = -1


def joins_by_name(store_name: str, expected: float) -> None:
    """Reach everything of a running store by its name alone."""
    with sa.connect(store_name) as store:
        assert not store.is_owner
        assert store["x"].sum() == expected
        store["x"][:] += 1
        store["from outside"] = np.arange(3)
    assert store.closed


def own_store(_: object) -> tuple[float, bool]:
    """Open a store of one's own, use it, close it; returns a sum, and whether a guardian looked after it."""
    with sa.Store() as store:
        array = store.put(np.arange(10.0), name="a")
        guarded = store.guardian_pid is not None
        total = float(array.sum())
    return total, guarded


def mapped() -> int:
    """How many files of ours this process maps, the store's own included."""
    gc.collect()
    return len(leaks.mappings())
