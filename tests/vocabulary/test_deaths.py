"""Queues, dicts and lists whose user is killed, or interrupted by a signal's handler, at any step."""

from __future__ import annotations

import gc
import queue
import signal
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray.errors import LostTaskError
from tests.helpers.processes import reap, wait_until
from tests.vocabulary import deaths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = b"x" * 40_000
KINDS = ("Queue", "LifoQueue", "PriorityQueue")
VALUES: dict[str, Callable[[sa.Store], Any]] = {
    "small": lambda _: b"v",
    "a new arena": lambda _: b"m" * 20_000,
    "large": lambda _: LARGE,
    "an array": lambda store: store.full(100, 7.0),
}
STANDING = [(i, b"%d" % i) for i in (3, 9, 4, 1, 7)]


def drain(source: Any, deal_with: bool = False) -> list[Any]:  # noqa: FBT001, FBT002  a switch of a test
    """Take all values, arrays as lists."""
    taken: list[Any] = []
    while True:
        try:
            number, value = source.get_nowait()
        except queue.Empty:
            return taken
        if deal_with:
            source.task_done()
        taken.append((number, value.tolist() if isinstance(value, np.ndarray) else value))


def plain(value: Any) -> Any:
    """Give a value in the form in which `drain` gives it."""
    return (value[0], value[1].tolist() if isinstance(value[1], np.ndarray) else value[1])


def order(kind: str, values: list[Any]) -> list[Any]:
    """In which order a queue gives what was put."""
    return {"LifoQueue": values[::-1], "PriorityQueue": sorted(values, key=lambda value: value[0])}.get(kind, values)


def is_usable(shared: Any) -> None:
    """A queue whose guard nobody holds passes a value on."""
    assert shared._guard.holder() is None
    shared.put((1, b"a"))
    assert shared.get(timeout=5) == (1, b"a")
    assert (shared.qsize(), shared.empty()) == (0, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_producer_killed_at_any_line_puts_its_value_or_does_not(kind: str) -> None:
    """The values before are all there, in order; the new one is whole, or not there."""
    with sa.Store() as store:
        for value, make in VALUES.items():
            outcomes = _kill_producers(store, kind, make, 5)
            assert len(outcomes) == 2 or value == "a new arena", value


def _kill_producers(store: sa.Store, kind: str, make: Callable[[sa.Store], Any], step: int) -> Counter[bool]:
    """Kill those who put a value; gives how often it was there."""
    shared = getattr(store, kind)()
    without = order(kind, STANDING)
    with_it = order(kind, [*STANDING, plain((5, make(store)))])
    seen: Counter[bool] = Counter()

    def ready() -> None:
        for item in STANDING:
            shared.put(item)

    def verify(where: str) -> None:
        found = drain(shared)
        assert found in (without, with_it), where
        seen[found == with_it] += 1
        is_usable(shared)

    assert deaths.sweep(ready, lambda: shared.put((5, make(store))), verify, step) > 7
    return seen


@pytest.mark.parametrize("kind", ["JoinableQueue", "LifoQueue", "PriorityQueue"])
def test_a_consumer_killed_at_any_line_takes_one_value_or_none(kind: str) -> None:
    """No other value is lost or moved, and `join` tells of the one that is, instead of waiting for ever."""
    with sa.Store() as store:
        shared = getattr(store, kind)()
        everything = order(kind, STANDING)
        seen: Counter[bool] = Counter()

        def ready() -> None:
            for item in STANDING:
                shared.put(item)

        def verify(where: str) -> None:
            found = drain(shared, deal_with=True)
            assert found in (everything, everything[1:]), where
            seen[found == everything] += 1
            lost = len(everything) - len(found)
            if lost:
                with pytest.raises(LostTaskError) as caught:
                    shared.join(timeout=10)
                assert caught.value.count == lost, where
            assert shared.join(timeout=10), where
            with pytest.raises(ValueError, match="too many"):
                shared.task_done()
            is_usable(shared)
            shared.task_done()

        assert deaths.sweep(ready, shared.get, verify, step=4) > 10
        assert seen[True] > 1 < seen[False]


@pytest.mark.parametrize("value", ["large", "an array"])
def test_a_consumer_killed_at_any_line_of_receiving_harms_no_other(value: str) -> None:
    """What it took may be lost with it; what comes behind is there, whole."""
    with sa.Store() as store:
        shared = store.Queue()

        def ready() -> None:
            for number in range(3):
                shared.put((number, VALUES[value](store)))

        expected = [plain((number, VALUES[value](store))) for number in range(3)]

        def verify(where: str) -> None:
            assert drain(shared) in (expected, expected[1:]), where
            is_usable(shared)

        assert deaths.sweep(ready, shared.get, verify, step=3) > 10


def test_who_is_killed_while_saying_that_a_task_is_done_leaves_a_count_that_adds_up() -> None:
    """The task is done or lost, and `join` comes to an end either way."""
    with sa.Store() as store:
        shared = store.JoinableQueue()
        outcomes: Counter[int] = Counter()

        def deal() -> None:
            shared.get()
            shared.task_done()

        def verify(where: str) -> None:
            drain(shared, deal_with=True)
            lost = 0
            try:
                assert shared.join(timeout=10), where
            except LostTaskError as error:
                lost = error.count
            outcomes[lost] += 1
            assert shared.join(timeout=10), where
            with pytest.raises(ValueError, match="too many"):
                shared.task_done()

        assert deaths.sweep(lambda: shared.put((1, b"")), deal, verify, step=3) > 15
        assert set(outcomes) == {0, 1}


@pytest.fixture
def _quiet() -> Iterator[None]:
    """Say nothing of an interruption in a destructor, from which no exception comes out."""
    usual = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    yield
    sys.unraisablehook = usual


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("deed", ["put", "get"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_interrupted_at_any_step_is_usable_and_whole(kind: str, deed: str) -> None:
    """A handler's exception leaves the guard free; no value is twice there, damaged, or lost but to its receiver."""
    with sa.Store() as store:
        for value, make in VALUES.items():
            assert _interrupt_users(store, kind, make, deed, step=1 if value == "an array" else 3) > 5, value


def _interrupt_users(store: sa.Store, kind: str, make: Callable[[sa.Store], Any], deed: str, step: int) -> int:
    shared = getattr(store, kind)()
    standing = [(2, b"2"), (8, make(store)), (9, b"9")]
    new = (5, b"5") if deed == "get" else (5, make(store))
    before = order(kind, [plain(item) for item in standing])
    after = order(kind, [plain(item) for item in [*standing, new]]) if deed == "put" else before[1:]

    def ready() -> None:
        for item in standing:
            shared.put(item)

    def verify(where: str) -> None:
        assert shared._guard.holder() is None, where
        assert drain(shared) in (before, after), where
        assert shared.qsize() == 0, where

    act = shared.get if deed == "get" else lambda: shared.put(new)
    return deaths.interrupt_everywhere(ready, act, verify, step)


# -- dicts and lists ---------------------------------------------------------------------------------------------------


def contents_of(shared: Any) -> Any:
    """Give a container's contents as plain objects."""
    if isinstance(shared, sa.SharedArray):
        return shared.tolist()
    if isinstance(shared, list):
        return [contents_of(value) for value in shared]
    return {key: contents_of(value) for key, value in shared.items()} if isinstance(shared, dict) else shared


MANY = {str(number): bytes(500) for number in range(7)}
DICT_DEEDS: dict[str, Callable[[Any, sa.Store], object]] = {
    "a new key": lambda d, _: d.__setitem__("new", 1),
    "a large value": lambda d, _: d.__setitem__("b", LARGE),
    "an array": lambda d, store: d.__setitem__("b", store.ones(3)),
    "delete": lambda d, _: d.__delitem__("array"),
    "clear": lambda d, _: d.clear(),
    "several": lambda d, store: d.update(a=2, b=store.zeros(2), c=3),
    "a new journal": lambda d, _: d.update(MANY),
    "pop": lambda d, _: d.pop("array"),
    "setdefault": lambda d, _: d.setdefault("new", 1),
}
LIST_DEEDS: dict[str, Callable[[Any, sa.Store], object]] = {
    "append": lambda x, _: x.append(1),
    "an array": lambda x, store: x.__setitem__(3, store.ones(3)),
    "insert": lambda x, _: x.insert(1, LARGE),
    "delete": lambda x, _: x.__delitem__(slice(0, 2)),
    "a slice": lambda x, store: x.__setitem__(slice(1, 2), [1, store.ones(2), 3]),
    "a new journal": lambda x, _: x.extend(MANY.values()),
    "sort": lambda x, _: x.sort(key=str),
    "pop": lambda x, _: x.pop(0),
    "remove": lambda x, _: x.remove("z"),
    "repeat": lambda x, _: x.__imul__(2),
}


def _dict(store: sa.Store) -> tuple[Any, dict[str, Any]]:
    begin = {"array": store.full(10, 7.0), "b": "old", "large": LARGE}
    return store.dict(begin), begin


def _list(store: sa.Store) -> tuple[Any, list[Any]]:
    begin = ["z", store.full(10, 7.0), LARGE, "y"]
    return store.list(begin), begin


def _back(shared: Any, begin: Any) -> None:
    """Put a container back as it was."""
    if isinstance(begin, dict):
        shared.clear()
        shared.update(begin)
    else:
        shared[:] = begin


CONTAINERS = pytest.mark.parametrize(
    ("make", "deeds"), [(_dict, DICT_DEEDS), (_list, LIST_DEEDS)], ids=["dict", "list"]
)


def _outcomes(store: sa.Store, make: Any, deed: Any) -> tuple[Any, Any, Any, Any]:
    """Make a container; gives it, what it begins with, and its contents before the deed and after it."""
    shared, begin = make(store)
    before = contents_of(shared.copy())
    deed(shared, store)
    after = contents_of(shared.copy())
    assert before != after
    return shared, begin, before, after


@CONTAINERS
def test_a_container_whose_user_is_killed_at_any_line_is_as_before_or_as_after(make: Any, deeds: Any) -> None:
    """Every change is whole or not there, and others can go on."""
    outcomes: set[bool] = set()
    with sa.Store() as store:
        for name, deed in deeds.items():
            shared, begin, before, after = _outcomes(store, make, deed)
            seen: set[bool] = set()

            def verify(where: str) -> None:
                found = contents_of(shared.copy())  # noqa: B023  called in this round only
                assert found in (before, after), (name, where)  # noqa: B023
                seen.add(found == after)  # noqa: B023
                assert shared._guard.holder() is None  # noqa: B023

            ready, act = partial(_back, shared, begin), partial(deed, shared, store)
            assert deaths.sweep(ready, act, verify, step=23) > 1
            outcomes |= seen
        assert len(outcomes) == 2


@pytest.mark.usefixtures("_quiet")
@CONTAINERS
def test_a_container_interrupted_at_any_step_is_as_before_or_as_after(make: Any, deeds: Any) -> None:
    """A handler's exception leaves the guard free, and every change whole or not there."""
    with sa.Store() as store:
        for name, deed in deeds.items():
            shared, begin, before, after = _outcomes(store, make, deed)

            def verify(where: str) -> None:
                assert shared._guard.holder() is None, (name, where)  # noqa: B023  called in this round only
                assert contents_of(shared.copy()) in (before, after), (name, where)  # noqa: B023

            ready, act = partial(_back, shared, begin), partial(deed, shared, store)
            assert deaths.interrupt_everywhere(ready, act, verify, step=13) > 2


def test_a_list_of_values_whose_writer_is_killed_at_any_line_holds_old_or_new() -> None:
    """A ShareableList never shows half a value."""
    with sa.Store() as store:
        row = store.ShareableList(["old value", 3])
        seen: Counter[str] = Counter()

        def verify(where: str) -> None:
            assert row[0] in ("old value", "new"), where
            assert row[1] == 3
            seen[row[0]] += 1

        assert deaths.sweep(lambda: row.__setitem__(0, "old value"), lambda: row.__setitem__(0, "new"), verify) > 10
        assert len(seen) == 2


def test_what_a_killed_process_left_in_a_queue_goes_with_the_queue() -> None:
    """Whatever the line at which producers and consumers were killed, nothing but the control file stays behind the queue."""
    with sa.Store() as store:
        kept = [store.Queue()]

        def pass_on() -> None:
            (shared,) = kept
            shared.put((1, store.full(50, 1.0)))
            shared.put((2, LARGE))
            shared.get()

        assert deaths.sweep(lambda: None, pass_on, lambda _: None, step=23) > 5
        kept.clear()
        gc.collect()
        wait_until(lambda: not deaths.files_of(store), 10, lambda: str(deaths.files_of(store)))


def test_ctrl_c_comes_through_every_wait_and_leaves_the_rest_usable() -> None:
    """A real SIGINT ends `get`, `put`, `recv`, `poll` and `join`; another process then uses the same object."""
    with sa.Store() as store:
        full, empty, tasks = store.Queue(1), store.Queue(), store.JoinableQueue()
        full.put(1)
        tasks.put(1)
        ours, theirs = store.Pipe()
        waits: list[Callable[[], object]] = [
            empty.get,
            lambda: full.put(2),
            ours.recv,
            lambda: ours.poll(None),
            tasks.join,
        ]
        for wait in waits:
            assert reap(deaths.in_child(partial(_interrupted, wait))) == 0
        assert (full.get(timeout=5), full.empty(), tasks.get(timeout=5)) == (1, True, 1)
        tasks.task_done()
        assert tasks.join(5)
        theirs.send("x")
        empty.put("y")
        assert (ours.recv(), empty.get(timeout=5)) == ("x", "y")


def _interrupted(wait: Callable[[], object]) -> None:
    """Wait, and end well if an alarm a moment later, which stands for Ctrl-C, comes through."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.12)
    with pytest.raises(KeyboardInterrupt):
        wait()
