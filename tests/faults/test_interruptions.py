"""An exception out of a signal handler, at any point where the interpreter lets one in: nothing is lost and nothing is left.

A handler runs when a Python function is entered and when a C function has returned; there the interrupted operation may lose
what it was just given. First every such point is tried in turn, then a timer strikes at random.

No guardian runs here, so that nobody tidies up behind what is tested.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import pickle
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import shmarray as sa
from shmarray.guardian import launch
from tests.helpers import copies, leaks
from tests.helpers.processes import run_function
from tests.helpers.tracing import Interrupted, Interrupter

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 300
STRIKES = 100
SWEPT = (
    "a block that was never finished; its maker is gone",
    "nobody holds it, and no handle to it is in flight",
    "a handle in flight to a block that was deleted, or that lay in one",
)


class World:
    """A store, what is always in it, and a look at it from outside."""

    def __init__(self) -> None:
        """Open a store, without a guardian, with two arrays that stay, and note how it then looks."""
        launch.launch = lambda member: None
        self.store = sa.Store()
        self.kept: dict[str, Any] = {}
        self.store["x"] = np.full(SIZE, 1.0)
        self.standing = self.store.full(SIZE, 7.0)
        self.entries = self.look()
        self.open = leaks.descriptors()
        self.mapped = _mapped()
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
        assert _mapped() == self.mapped, where


def _mapped() -> int:
    """How many mappings of files in shared memory this process has, with a name or without."""
    with open("/proc/self/maps", "rb") as file:
        return file.read().count(b" /dev/shm/")


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


def _by_threads(world: World) -> None:
    """Copy in with the help of other threads."""
    with copies.all_shared():
        _keep(world, world.store.put(np.full(SIZE, 5.0), name="made"))


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
    "put by threads": Operation(_nothing, _by_threads),
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
        world.mapped = _mapped()


def _end(world: World, name: str, times: int, leaked: list[str]) -> None:
    """Close, and say what was done and found."""
    world.kept.clear()
    world.store.close()
    del world.standing
    if world.look():
        leaked.append(f"after the close: {world.look()}")
    print((name, times, leaked))


def every_point(name: str) -> None:
    """Interrupt an operation at each point in turn, and verify after each."""
    world, operation = World(), OPERATIONS[name]
    leaked: list[str] = []
    n, reached = 0, True
    while reached:
        n += 1
        operation.ready(world)
        with Interrupter(n) as interrupter, contextlib.suppress(Interrupted):
            operation.deed(world)
        reached = interrupter.count >= n
        _found(world, interrupter.where, leaked)
    _end(world, name, n - 1, leaked)


def at_random(name: str) -> None:
    """Interrupt an operation by a timer at random moments, `STRIKES` times, and verify after each."""
    world, operation = World(), OPERATIONS[name]
    armed: list[bool] = []
    leaked: list[str] = []
    rng = random.Random(name)  # noqa: S311  the same each time

    def strike(number: int, frame: object) -> None:
        if armed:
            armed.clear()
            raise Interrupted

    signal.signal(signal.SIGALRM, strike)
    usual = []
    for _ in range(9):
        operation.ready(world)
        began = time.perf_counter()
        operation.deed(world)
        usual.append(time.perf_counter() - began)
        world.verify("no interruption")
    hits = rounds = 0
    while hits < STRIKES and rounds < 10 * STRIKES:
        rounds += 1
        operation.ready(world)
        try:
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, sorted(usual)[4]))
            operation.deed(world)
            armed.clear()
        except Interrupted:
            hits += 1
        armed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _found(world, "a timer", leaked)
    _end(world, name, hits, leaked)


def all_operations(way: Callable[[str], None]) -> None:
    """In a process of its own: go through all operations in one way."""
    sys.unraisablehook = _ignore_interruptions
    gc.disable()
    gc.collect()
    gc.freeze()
    for name in OPERATIONS:
        way(name)


@pytest.mark.parametrize(
    ("way", "least"), [(every_point, 15), (at_random, STRIKES // 2)], ids=["at every point", "at random"]
)
def test_an_interruption_leaves_nothing(way: Callable[[str], None], least: int) -> None:
    """A handler that raises: no descriptor, no mapping, no file but a whole named array; the store goes on, and can be closed."""
    for line in run_function(all_operations, way, timeout=100).expect().splitlines():
        name, times, leaked = ast.literal_eval(line)
        assert leaked == [], name
        assert times >= least, name
