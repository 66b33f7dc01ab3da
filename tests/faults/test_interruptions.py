"""An exception out of a signal handler, at any point where the interpreter lets one in: nothing is lost and nothing is left.

A handler runs when a Python function is entered and when a C function has returned; there the interrupted operation may lose
what it was just given. First every such point is tried in turn, then a timer strikes at random.

No guardian runs here, so that nobody tidies up behind what is tested.
"""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pytest

import shmarray as sa
from shmarray.guardian import launch
from tests.helpers import leaks
from tests.helpers.processes import run_function
from tests.helpers.tracing import in_package

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

SIZE = 300
SWEPT = (
    "a block that was never finished; its maker is gone",
    "nobody holds it, and no handle to it is in flight",
    "a handle in flight to a block that was deleted",
)


class Interrupted(BaseException):
    """What the signal handler raises."""


class World:
    """A store, what is always in it, and a look at it from outside."""

    def __init__(self) -> None:
        launch.launch = lambda member: None
        self.store = sa.Store()
        self.kept: dict[str, Any] = {}
        self.store["x"] = np.full(SIZE, 1.0)
        self.standing = self.store.full(SIZE, 7.0)
        self.entries = self.look()
        self.open = leaks.descriptors()
        self.mapped = Counter(mapping.inode for mapping in leaks.mappings())
        self.swept = 0

    def look(self) -> set[str]:
        """Files of the store, without the prefix."""
        prefix = f"shmarray.{os.geteuid()}.{self.store.id}."
        return {entry.removeprefix(prefix) for entry in leaks.shm_entries(prefix)}

    def verify(self, where: object) -> None:
        """Nothing open, nothing mapped, nothing half-made but what a sweep may take, and the store works."""
        other = self.kept.pop("store", None)
        if other is not None:
            other.close()
            assert sum(view.sum() for view in self.kept["views"]) == 6, where
        self.kept.clear()
        if other is not None:
            assert not leaks.shm_entries(f"shmarray.{os.geteuid()}.{other.id}."), where
            del other
        now_open = leaks.descriptors()
        for fd in now_open.keys() - self.open.keys():
            os.close(fd)  # it may hold a lock, for which the next operation would wait for ever
        assert now_open == self.open, f"{where}: left open {set(now_open.items()) - set(self.open.items())}"
        store = self.store
        if "made" in store:
            assert (store["made"] == 5).all(), where
            del store["made"]
        assert (store["x"] == store["x"][0]).all(), where
        store["x"] = np.full(SIZE, 1.0)
        assert (self.standing == 7).all(), where
        store.release_unclaimed()
        problems = store.check(fix=True)
        assert all(problem.reason in SWEPT and problem.fixed for problem in problems), (where, problems)
        self.swept += len(problems)
        assert self.look() == self.entries, where
        now = Counter(mapping.inode for mapping in leaks.mappings())
        assert now.total() == self.mapped.total(), where


class Operation(NamedTuple):
    """What is made ready undisturbed, and the deed that is interrupted."""

    ready: Callable[[World], object]
    deed: Callable[[World], object]


def _nothing(world: World) -> None:
    """Make nothing ready."""


def _keep(world: World, value: Any) -> None:
    world.kept["made"] = value


def _anonymous(world: World) -> None:
    _keep(world, world.store.full(SIZE, 5.0))


def _named(world: World) -> None:
    world.store["made"] = np.full(SIZE, 5.0)


def _held(world: World) -> None:
    _named(world)
    _keep(world, world.store["made"])


def _sent(world: World) -> None:
    _anonymous(world)
    world.kept["handle"] = pickle.dumps(world.kept.pop("made"))


def _replace(world: World) -> None:
    world.store["x"] = np.full(SIZE, 2.0)


def _delete(world: World) -> None:
    del world.store["made"]


def _other_store(world: World) -> None:
    """Open a second store, with an array of each kind."""
    store = sa.Store()
    store["y"] = np.ones(3)
    world.kept["store"], world.kept["views"] = store, [store["y"], store.ones(3)]
    pickle.dumps(world.kept["views"][1])


OPERATIONS = {
    "create anonymous": Operation(_nothing, lambda w: _keep(w, w.store.full(SIZE, 5.0))),
    "create named": Operation(_nothing, lambda w: _keep(w, w.store.full(SIZE, 5.0, name="made"))),
    "put": Operation(_nothing, lambda w: _keep(w, w.store.put(np.full(SIZE, 5.0), name="made"))),
    "replace": Operation(_nothing, _replace),
    "attach": Operation(_named, lambda w: _keep(w, w.store["made"])),
    "offer": Operation(_anonymous, lambda w: pickle.dumps(w.kept["made"])),
    "claim": Operation(_sent, lambda w: _keep(w, pickle.loads(w.kept["handle"]))),
    "drop": Operation(_anonymous, lambda w: w.kept.clear()),
    "unlink": Operation(_held, lambda w: w.kept["made"].unlink()),
    "delete": Operation(_named, _delete),
    "close": Operation(_other_store, lambda w: w.kept["store"].close()),
    "count and check": Operation(_sent, lambda w: (w.store.stats(), w.store.check(), list(w.store))),
}


class _Interrupter:
    """Raises at the n-th point, counted from 1, at which a handler could run within the package."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.count = 0
        self.where = ""

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_return") and in_package(frame.f_code.co_filename):
            self.count += 1
            if self.count == self.n:
                sys.setprofile(None)
                what = getattr(arg, "__qualname__", "") if event == "c_return" else ""
                self.where = f"{event} {what} in {frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise Interrupted

    def __enter__(self) -> Self:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)


def _ignore_interruptions(unraisable: Any) -> None:
    """Say nothing of an interruption in a destructor's or weak reference's callback, where no exception can come out."""
    if not issubclass(unraisable.exc_type, Interrupted):
        sys.__unraisablehook__(unraisable)


def _found(world: World, where: object, leaked: list[str]) -> None:
    """Verify; note what was left and go on from there, so that each leak is told once."""
    gc.collect()
    try:
        world.verify(where)
    except AssertionError as error:
        leaked.append(" ".join(str(error).split())[:300])
        world.entries = world.look()
        world.mapped = Counter(mapping.inode for mapping in leaks.mappings())


def _end(world: World, leaked: list[str]) -> None:
    """Close, and say what was found."""
    world.kept.clear()
    world.store.close()
    del world.standing
    if world.look():
        leaked.append(f"after the close: {world.look()}")
    for line in leaked:
        print(line)


def every_point(name: str) -> None:
    """In a process of its own: interrupt an operation at each point in turn, and verify after each."""
    sys.unraisablehook = _ignore_interruptions
    gc.disable()
    world, operation = World(), OPERATIONS[name]
    leaked: list[str] = []
    n, reached = 0, True
    while reached:
        n += 1
        operation.ready(world)
        with _Interrupter(n) as interrupter:
            try:
                operation.deed(world)
            except Interrupted:
                pass
        reached = interrupter.count >= n
        _found(world, interrupter.where, leaked)
    print(n - 1)
    _end(world, leaked)


def at_random(name: str, rounds: int) -> None:
    """In a process of its own: interrupt an operation by a timer at random moments, and verify after each."""
    sys.unraisablehook = _ignore_interruptions
    gc.disable()
    world, operation = World(), OPERATIONS[name]
    armed: list[bool] = []
    leaked: list[str] = []
    rng = random.Random(name)  # noqa: S311  the same each time

    def strike(number: int, frame: object) -> None:
        if armed:
            armed.clear()
            raise Interrupted

    signal.signal(signal.SIGALRM, strike)
    operation.ready(world)
    began = time.perf_counter()
    operation.deed(world)
    usual = time.perf_counter() - began
    world.verify("no interruption")
    hits = 0
    for _ in range(rounds):
        operation.ready(world)
        try:
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1.2 * usual))
            operation.deed(world)
            armed.clear()
        except Interrupted:
            hits += 1
        armed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _found(world, "a timer", leaked)
    print(hits)
    _end(world, leaked)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interruption_at_any_point_leaves_nothing(name: str) -> None:
    """A handler that raises at any point: no descriptor, no mapping, no file but a whole named array; the store goes on."""
    said = run_function(every_point, name, timeout=60).expect().splitlines()
    assert int(said[0]) > 3
    assert said[1:] == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_interruptions_by_a_timer_leave_nothing(name: str) -> None:
    """The same with real signals, at random moments, hundreds of times for each operation."""
    said = run_function(at_random, name, 300, timeout=60).expect().splitlines()
    assert int(said[0]) > 30
    assert said[1:] == []
