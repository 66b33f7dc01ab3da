"""A named array lives until it is deleted or replaced, or its store ends; what anyone holds stays valid, whatever goes first."""

from __future__ import annotations

import gc
import itertools
import pickle
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.helpers import leaks
from tests.lifetime.holder import Holder

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

    Blocks = Callable[[], list[str]]


def test_it_lives_on_when_nobody_holds_it(start_method: BaseContext, store: sa.Store, blocks: Blocks) -> None:
    """Made and dropped here or by a worker that has gone, it is there with its contents until it is deleted."""
    store.full(3, 7, name="here")
    with Holder(start_method) as holder:
        holder.tell("look up", store, "here")
        holder.tell("add", 1)
    assert blocks() == ["n"]
    assert store["here"].tolist() == [8, 8, 8]
    del store["here"]
    assert blocks() == []


def test_handles_of_named_arrays_leave_no_files(store: sa.Store, blocks: Blocks) -> None:
    """Its name keeps it, so a handle needs nothing that could be left behind."""
    handles = [pickle.dumps(store.zeros(3, name="x")) for _ in range(1)] + [pickle.dumps(store["x"]) for _ in range(5)]
    assert blocks() == ["n"]
    assert store.stats().in_flight == 0
    assert [pickle.loads(handle).sum() for handle in handles] == [0] * 6


def test_deleting_takes_the_name_and_no_view(start_method: BaseContext, store: sa.Store, blocks: Blocks) -> None:
    """Holders in every process go on reading and writing one memory; nobody attaches it again."""
    array = store.put(np.ones(3), name="x")
    with Holder(start_method) as holder:
        holder.tell("keep", array)
        del store["x"]
        assert blocks() == []
        array += 1
        assert holder.tell("sum") == [6]
        holder.tell("add", 1)
        assert array.sum() == 9
        assert isinstance(holder.tell("pickle"), sa.ArrayNotFoundError)
        assert isinstance(holder.tell("look up", store, "x"), sa.ArrayNotFoundError)


def test_a_replaced_version_stays_for_those_who_hold_it(
    start_method: BaseContext, store: sa.Store, blocks: Blocks
) -> None:
    """Ten versions under one name, each held by someone: each keeps its own contents; the file system has the last only."""
    with Holder(start_method) as holder:
        mine = []
        for version in range(10):
            store["w"] = np.full(4, version)
            if version % 2:
                holder.tell("look up", store, "w")
            else:
                mine.append(store["w"])
            assert blocks() == ["n"]
        assert [array[0] for array in mine] == [0, 2, 4, 6, 8]
        assert holder.tell("sum") == [4, 12, 20, 28, 36]
        holder.tell("add", 100)
        assert store["w"][0] == 109
        assert [array[3] for array in mine] == [0, 2, 4, 6, 8]
        mine[0][:] = -1
        assert store["w"][0] == 109


@pytest.mark.core
def test_a_view_outlives_its_store(start_method: BaseContext, blocks: Blocks, store: sa.Store) -> None:
    """Closing unlinks everything at once; views in every process stay readable and writable, and shared."""
    named, anonymous, tree = store.ones(3, name="x"), store.ones(4), store.put({"a": np.ones(5)})
    with Holder(start_method) as holder:
        for array in (named, anonymous, tree["a"]):
            holder.tell("keep", array)
        store.close()
        assert blocks() == []
        assert not [entry for entry in leaks.shm_entries() if store.id in entry and not entry.endswith("ctl")]
        named += 1
        anonymous[:] = 0
        assert holder.tell("sum") == [6, 0, 5]
        holder.tell("add", 1)
        assert (named.sum(), anonymous.sum(), tree["a"].sum()) == (9, 4, 10)
        assert isinstance(holder.tell("pickle"), sa.StoreClosedError)


def test_views_keep_the_memory_whatever_is_collected_first(store: sa.Store) -> None:
    """Store closed, arrays, views, views of views dropped in any order: what is left can be read and written."""
    for order in itertools.permutations(range(4)):
        store_of_its_own: Any = sa.Store()
        array = store_of_its_own.put(np.arange(10.0), name="x" if order[0] % 2 else None)
        things: list[Any] = [store_of_its_own, array, array[2:], np.asarray(array)[3:]]
        del store_of_its_own, array
        for position in order:
            if position == 0:
                things[0].close()
            things[position] = None
            gc.collect(0)
            for thing in things[1:]:
                if thing is not None:
                    thing[-1] += 1
                    assert thing[-1] >= 10
    assert store.check() == []


def test_nothing_is_mapped_when_everything_is_dropped(store: sa.Store) -> None:
    """Arrays, trees, errors and closed stores leave no mapping and no descriptor, as the kernel sees it."""
    before = leaks.mappings(), leaks.descriptors()
    for _ in range(3):
        with sa.Store() as other:
            arrays = [other.zeros(10), other.zeros(10, name="x"), other.put([np.ones(3)], name="t")]
            arrays.append(pickle.loads(pickle.dumps(other.ones(2))))
            other["x"] = np.ones(5)
            with pytest.raises(sa.ArrayExistsError):
                other.zeros(3, name="t")
            assert len(leaks.mappings()) > len(before[0])
        del arrays, other
    gc.collect()
    assert (leaks.mappings(), leaks.descriptors()) == before
    assert store.check() == []


def test_an_array_does_not_keep_the_store_object(store: sa.Store) -> None:
    """A dropped Store object whose arrays live on is not leaked through them when they have gone."""
    other = sa.Store()
    array = other.ones(3)
    other.close()
    watch = weakref.ref(other)
    del other
    assert array.sum() == 3
    del array
    gc.collect()
    assert watch() is None
