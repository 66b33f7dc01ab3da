"""Names for shared objects that were made without one."""

from __future__ import annotations

import functools
import gc
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from tests.helpers.processes import reap, run_script, wait_until
from tests.vocabulary import actors, deaths

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnContext


def _all(store: sa.Store) -> dict[str, Any]:
    end, other = store.Pipe()
    return {
        "queue": store.Queue(),
        "stack": store.LifoQueue(),
        "dict": store.dict(parent=1),
        "list": store.list([1]),
        "namespace": store.Namespace(parent=1),
        "memory": store.SharedMemory(8),
        "row": store.ShareableList(["parent"]),
        "end": end,
        "other": other,
    }


def _check(objects: dict[str, Any]) -> None:
    assert objects["queue"].get(timeout=20) == "from the child"
    assert objects["stack"].get(timeout=20) == 2
    assert objects["dict"] == {"parent": 1, "child": 2}
    assert objects["list"] == [2, "child"]
    assert objects["namespace"].child == 2
    assert objects["memory"].buf[0] == 7
    assert objects["row"][0] == "child"
    assert objects["other"].recv() == "child"


@pytest.mark.core
def test_every_object_reaches_every_process(start_method: SpawnContext) -> None:
    """As arguments, by fork, spawn and forkserver; what the child does is seen."""
    with sa.Store() as store:
        objects = _all(store)
        process = start_method.Process(target=actors.meet, args=(objects,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        _check(objects)


def test_every_object_is_found_by_name_in_an_unrelated_process() -> None:
    """`store["name"] = it`, then `connect`; the same object, and the names are listed."""
    with sa.Store("vocabulary-names") as store:
        objects = _all(store)
        for name, shared in objects.items():
            store[name] = shared
        assert sorted(store) == sorted(objects)
        script = (
            "import shmarray as sa\nfrom tests.vocabulary import actors\nstore = sa.connect('vocabulary-names')\n"
            "actors.meet({name: store[name] for name in store})\n"
        )
        run_script(script).expect()
        _check(objects)


def test_a_name_keeps_the_object_and_lets_go_when_it_goes() -> None:
    """Deleted or replaced, the name lets go of the object, and of all that lies in it."""
    with sa.Store() as store:
        ways: list[Callable[[], object]] = [
            lambda: store.__delitem__("x"),
            lambda: store.__setitem__("x", store.Event()),
        ]
        for let_go in ways:
            store["x"] = store.list([store.ones(3), b"x" * 50_000, store.dict(a=1)])
            gc.collect()
            found = store["x"]
            assert found[0].sum() == 3
            assert found[2]["a"] == 1
            del found
            gc.collect()
            assert store["x"][2] == {"a": 1}
            let_go()
            gc.collect()
            left = int("x" in store) * 3  # the name, the event, its link
            wait_until(
                lambda: len(deaths.files_of(store)) == left,  # noqa: B023  called in this round only
                10,
                lambda: str(deaths.files_of(store)),
            )


def test_a_name_can_be_looked_up_many_times() -> None:
    """Looking up takes nothing away, also after the one who named it has dropped it, in several processes."""
    with sa.Store() as store:
        store["events"] = store.Event()
        for _ in range(3):
            assert not store["events"].is_set()
        pid = deaths.in_child(store["events"].set)
        assert reap(pid) == 0
        assert store["events"].is_set()


def test_an_object_too_large_for_a_name_is_refused_with_a_remedy() -> None:
    """A barrier with an action of some kilobytes: a ValueError, nothing is left."""
    with sa.Store() as store:
        barrier = store.Barrier(1, functools.partial(print, "x" * 5000))
        before = deaths.files_of(store)
        with pytest.raises(ValueError, match="handle"):
            store["barrier"] = barrier
        gc.collect()
        assert deaths.files_of(store) == before
        assert "barrier" not in store
