"""Every block is opened and closed, created and unlinked exactly once: counted by the kernel, not by us."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.contract import workers
from tests.helpers import leaks
from tests.helpers.processes import wait_until
from tests.lifetime.events import Events
from tests.lifetime.holder import Holder

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext


def mapped_files() -> list[tuple[int, int]]:
    """Which files of ours this process maps, one entry for each mapping."""
    return [(mapping.device, mapping.inode) for mapping in leaks.mappings()]


@pytest.mark.core
def test_an_attached_block_is_one_mapping_and_no_descriptor(store: sa.Store) -> None:
    """Made, looked up, loaded and viewed many times over: one mapping each, ended with its last view; descriptors never."""
    idle, open_files = mapped_files(), leaks.descriptors()
    arrays: list[Any] = [
        store.zeros(1000 * (number + 1), name=f"n{number}" if number % 2 else None) for number in range(10)
    ]
    arrays += [store.put([np.ones(3)] * 3), store.zeros(0), store.zeros((), name="point"), store.zeros(0, name="empty")]
    assert len(mapped_files()) == len(idle) + len(arrays)
    assert len(set(mapped_files())) == len(set(idle)) + len(arrays)
    more: list[Any] = [pickle.loads(pickle.dumps(array)) for array in arrays for _ in range(5)]
    more += [store[array.name] for array in arrays if array.name is not None]
    more += [array[1:] for array in arrays[:10]]
    assert len(mapped_files()) == len(idle) + len(arrays)
    assert leaks.descriptors() == open_files
    while arrays:
        dropped = arrays.pop()
        more = [array for array in more if array.block_name != dropped.block_name]
        del dropped
        assert len(mapped_files()) == len(idle) + len(arrays)
    assert mapped_files() == idle
    assert leaks.descriptors() == open_files


def test_every_name_is_made_once_and_removed_once(start_method: BaseContext) -> None:
    """A busy life of a store with workers: as the kernel reports it, each name came once and went once, none was left."""
    with sa.Store() as store, Events(leaks.SHM, f".{store.id}.") as events:
        with ProcessPoolExecutor(2, start_method) as executor:
            arrays = [store.full(50, number) for number in range(20)]
            named = [store.full(50, number, name=str(number)) for number in range(20)]
            list(executor.map(workers.overwrite, arrays + named, range(40)))
            made = list(
                executor.map(workers.make_anonymous, [store] * 10, [np.arange(number + 1) for number in range(10)])
            )
            assert [len(array) for array in made] == list(range(1, 11))
            store["published"], store["deleted"] = np.zeros(1), np.zeros(1)
            executor.submit(workers.make_and_share, store).result()
            with Holder(start_method) as holder:
                holder.tell("make", store, np.arange(3))
                holder.kill()
            for number in range(10):
                del store[str(number)]
            arrays[0].unlink()
            handle = pickle.dumps(arrays[1])
            del arrays, made, named
            pickle.loads(handle)
            pickle.dumps(store.zeros(3))
            with store.zeros(2, name="scoped"), store.zeros(2):
                pass
        wait_until(lambda: store.stats().anonymous == 1, 10)
        store.close()
        made_names, gone = events.counts()
    replaced = {name for name in made_names if name.endswith(".n.published")}
    assert len(made_names) > 70
    for name in made_names:
        if name in replaced:
            assert made_names[name] > gone[name] == 1, name  # moving onto a name ends the old file without a word
        else:
            assert (made_names[name], gone[name]) == (1, 1), name
    assert set(made_names) | {f"shmarray.{os.geteuid()}.{store.id}.ctl"} == set(gone)


def test_many_processes_dropping_one_array_unlink_it_once(store: sa.Store) -> None:
    """However many drop it at the same moment, exactly one removes it, and all others see nothing amiss."""
    context = multiprocessing.get_context("fork")
    holders = [Holder(context) for _ in range(4)]
    try:
        with Events(leaks.SHM, f".{store.id}.a.") as events:
            for _ in range(8):
                array = store.zeros(10)
                for holder in holders:
                    holder.tell("keep", array)
                for holder in holders:
                    holder.send("drop")
                del array
                for holder in holders:
                    holder.receive()
            wait_until(lambda: store.stats().anonymous == 0)
            made, gone = events.counts()
    finally:
        for holder in holders:
            holder.__exit__(None, None, None)
    assert len(made) == 8
    assert made == gone
