"""What lies in queues, containers and under names: shown as live, in what, and not taken for a leftover."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import inspection
from shmarray._format.names import StoreKey
from shmarray.inspection import links
from tests.cli.places import facts, forked, kill, shmarray
from tests.helpers.leaks import SHM, shm_entries
from tests.helpers.processes import kill_and_reap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STORE = "kept"


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """An open store of this process."""
    with sa.Store(STORE) as opened:
        yield opened


def blocks() -> list[inspection.Block]:
    """The blocks of the store of these tests."""
    (found,) = [store for store in inspection.survey().stores if store.name == STORE]
    return list(found.blocks)


def block(kind: str = "array") -> inspection.Block:
    """The only block of that kind."""
    (found,) = [entry for entry in blocks() if entry.kind == kind]
    return found


def in_queue(store: sa.Store) -> Any:
    """A queue with an array in it."""
    queue = store.Queue()
    queue.put(store.ones(5))
    return queue


def in_dict(store: sa.Store) -> Any:
    """A dict with an array in it."""
    return store.dict(x=store.ones(5))


def in_list(store: sa.Store) -> Any:
    """A list with an array in it."""
    return store.list([store.ones(5)])


def in_namespace(store: sa.Store) -> Any:
    """A namespace with an array in it."""
    return store.Namespace(x=store.ones(5))


PLACES = [in_queue, in_dict, in_list, in_namespace]


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_what_lies_in_an_object_is_live_and_in_it(store: sa.Store, make: Callable[[sa.Store], Any]) -> None:
    """An array that only a queue or a container keeps is live, held by no process, and said to be in there; nothing to clean up."""
    keeper = make(store)
    found = block()
    (place,) = [entry for entry in blocks() if entry.file in found.kept_in]
    assert (found.state, found.holders, found.unclaimed) == ("live", (), 0)
    assert place.kind not in ("array", "Arena", "Parcel")
    text = shmarray("ls", STORE).expect()
    number = re.search(rf"  in {place.kind} ([0-9a-f]{{4}}) ", text)
    assert number is not None
    assert f"(anonymous {number[1]})  {place.kind} " in text
    assert facts("gc")["removed"] == []
    assert block().file == found.file
    del keeper
    assert blocks() == []


@pytest.mark.core
def test_what_has_a_name_by_reference_is_in_that_name(store: sa.Store) -> None:
    """A queue that got its name later is kept by the name, whoever else has it; its row says so."""
    store["jobs"] = store.Queue()
    found = block("Queue")
    assert (found.state, found.holders, found.unclaimed) == ("live", (), 0)
    assert found.kept_in == (block("reference").file,)
    assert "  in jobs  " in shmarray("ls", STORE).expect()
    assert facts("gc")["removed"] == []
    del store["jobs"]
    facts("gc")  # where the guardian was not faster
    assert blocks() == []


def test_handles_on_their_way_are_counted_apart(store: sa.Store) -> None:
    """`unclaimed` counts the handles that lie in no object, also where others do."""
    array = store.ones(5)
    queue = store.Queue()
    queue.put(array)
    key = array.__reduce_ex__(4)
    found = block()
    assert (found.unclaimed, len(found.kept_in), found.state) == (1, 1, "live")
    del array
    assert (block().unclaimed, block().state) == (1, "live")
    queue.get()
    assert (block().unclaimed, block().kept_in, block().state) == (1, (), "unclaimed")
    del key
    store.release_unclaimed()


def test_insides_are_summed_up_with_their_object(store: sa.Store) -> None:
    """Arenas and parcels have no row without `--all`; the object has the size of all, and `--json` has every one."""
    queue = store.Queue(name="q")
    queue.put(bytes(100_000))
    found = blocks()
    assert {entry.kind for entry in found} == {"Queue", "Arena", "Parcel"}
    total = sum(entry.bytes for entry in found)
    text = shmarray("ls", STORE).expect()
    assert "Arena" not in text
    assert "Parcel" not in text
    assert re.search(rf"^  q +Queue .* {total / 1024:.1f} KiB ", text, re.MULTILINE)
    assert "1 block and 2 inside them" in text
    assert (
        len(
            re.findall(
                r"^  \(anonymous\) +(?:Arena|Parcel) .* in q  ", shmarray("ls", STORE, "--all").expect(), re.MULTILINE
            )
        )
        == 2
    )
    del queue


def test_what_nobody_can_reach_any_more_is_dead_with_all_in_it(store: sa.Store) -> None:
    """A queue lost with its process is dead, and so is what only it kept, arrays in arrays' containers too; `gc` removes all of it."""
    kill(store.guardian_pid or 0)

    def work(here: Callable[[], None]) -> None:
        queue = store.Queue()
        queue.put(store.dict(x=store.ones(5)))
        queue.put(bytes(100_000))
        here()

    with forked(work) as pid:
        assert {entry.state for entry in blocks()} == {"live"}
        kill_and_reap(pid)
    found = blocks()
    assert {entry.state for entry in found} == {"dead"}
    assert {entry.kind for entry in found} == {"Queue", "dict", "array", "Arena", "Parcel"}
    assert all("which nobody can reach" in (entry.reason or "") for entry in found if entry.kind == "array")
    dry, done = facts("gc", "--dry-run"), facts("gc")
    assert (dry["removed_blocks"], done["removed_blocks"]) == (len(found), len(found))
    assert blocks() == []
    assert shm_entries(f"shmarray.{os.geteuid()}.{store.id}.h.") == set()


def test_a_handle_whose_keeper_is_gone_keeps_nothing(store: sa.Store) -> None:
    """When the file of a queue is gone its handles are leftovers: what only they keep is dead, and `gc` removes both."""
    kill(store.guardian_pid or 0)
    queue = in_queue(store)
    os.unlink(block("Queue").file)
    found = block()
    assert (found.state, found.unclaimed, found.kept_in) == ("dead", 0, ())
    assert found.reason == "the object in which it was kept is gone"
    assert facts("gc")["removed_blocks"] >= 1
    assert [entry.kind for entry in blocks()] == ["Arena"]
    del queue
    facts("gc")
    assert shm_entries(f"shmarray.{os.geteuid()}.{store.id}.h.") == set()


def test_what_keeps_itself_is_not_said_to_be_removable(store: sa.Store) -> None:
    """A dict in itself is kept for ever: it is live, in itself, and goes with the store; `gc` promises nothing else."""
    shared = store.dict()
    shared["me"] = shared
    del shared
    found = block("dict")
    assert (found.state, found.kept_in) == ("live", (found.file,))
    assert facts("gc", "--dry-run")["removed"] == facts("gc")["removed"] == []
    assert block("dict").file == found.file


def test_a_leftover_store_with_things_in_things_goes_whole() -> None:
    """What a dead store kept in objects is dead like the rest, and `gc` counts each block once, handles not at all."""

    def work(here: Callable[[], None]) -> None:
        opened = sa.Store(STORE)
        opened["jobs"] = opened.Queue()
        opened["jobs"].put(opened.ones(5))
        kill(opened.guardian_pid or 0)
        here()

    with forked(work) as pid:
        count = len(blocks())
        kill_and_reap(pid)
    assert {entry.state for entry in blocks()} == {"dead"}
    assert facts("gc")["removed_blocks"] == count
    assert [store for store in inspection.survey().stores if store.name == STORE] == []


def test_a_keeper_that_came_after_the_listing_keeps(store: sa.Store) -> None:
    """A handle whose keeper was not there when the files were listed, and is now, is no leftover; nobody knows its name yet."""
    queue = in_queue(store)
    names = sorted(shm_entries(f"shmarray.{os.geteuid()}.{store.id}."))
    key = inspection.survey().uid, int(store.id, 16)
    files = [(f"{SHM}/{name}", name.split(".", 3)[3]) for name in names]
    without = [entry for entry in files if entry[0] != block("Queue").file]
    sorted_out = links.sort(StoreKey(*key), without)
    assert {(handles.kept, handles.keepers, handles.stale) for handles in sorted_out.values()} == {(1, (), ())}
    del queue


def test_many_things_in_a_queue_are_listed_in_reasonable_order(store: sa.Store) -> None:
    """Rows are sorted by what the object takes with all that is inside it."""
    store.put(np.zeros(5000), name="big")
    queue = store.Queue(name="q")
    queue.put(bytes(100_000))
    store.put(np.zeros(1), name="small")
    rows = re.findall(r"^  (big|q|small) ", shmarray("ls", STORE).expect(), re.MULTILINE)
    assert rows == ["q", "big", "small"]
    del queue
