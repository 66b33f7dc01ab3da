"""Small arrays driven from several processes, beside plain lists as their model.

After each step contents and counts are those of the model; the handles in flight and the guards, seen from outside, are those that must
be there, and no array has a file of its own; when all is dropped and given back nothing is left.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

import shmarray as sa
from tests.helpers.processes import wait_until
from tests.property import fleet
from tests.smalls.things import files

VALUES = st.lists(st.integers(-(1 << 40), 1 << 40), min_size=1, max_size=5)
WORKERS = 3
workers = st.integers(0, WORKERS - 1)


class _Array:
    """One array in the model."""

    def __init__(self, values: list[int]) -> None:
        self.values = values
        self.deleted = False
        self.poisoned = False
        self.guarded = False
        self.flying = 0
        """Handles that were pickled and never loaded."""


class _Handle:
    """One handle in the model."""

    def __init__(self, array: _Array, data: bytes) -> None:
        self.array = array
        self.data = data
        self.is_new = True


class SmallsMachine(RuleBasedStateMachine):
    """The machine; its subclasses say how the workers are started."""

    method: ClassVar[str] = "fork"
    arrays = Bundle("arrays")
    handles = Bundle("handles")

    def __init__(self) -> None:
        """Open a store and start the workers."""
        super().__init__()
        self.context = multiprocessing.get_context(self.method)
        self.store = sa.Store()
        self.workers = [fleet.Worker(self.context, self.store) for _ in range(WORKERS)]
        self.all: list[_Array] = []
        self.slots = itertools.count()

    # -- rules: who does what ------------------------------------------------------------------------------------------

    @rule(target=arrays, worker=workers, values=VALUES)
    def put(self, worker: int, values: list[int]) -> Any:
        """A worker makes an array of these values."""
        slot = next(self.slots)
        self.workers[worker].do("create", slot, None, values)
        return self._held(worker, slot, _Array(values))

    @rule(target=arrays, worker=workers, length=st.integers(1, 40))
    def zeros(self, worker: int, length: int) -> Any:
        """A worker makes an array of zeros, whatever was in its cell before."""
        slot = next(self.slots)
        self.workers[worker].do("zeros", slot, length)
        return self._held(worker, slot, _Array([0] * length))

    @rule(target=handles, source=arrays)
    def send(self, source: tuple[int, int]) -> Any:
        """A worker pickles what it holds; what was deleted cannot be pickled."""
        array = self._at(source)
        if array is None:
            return multiple()
        outcome, data = self.workers[source[0]].ask("send", source[1])
        if array.deleted:
            assert (outcome, data) == ("error", "ArrayNotFoundError")
            return multiple()
        assert outcome == "ok", data
        array.flying += 1
        return _Handle(array, data)

    @rule(target=arrays, handle=handles, worker=workers)
    def receive(self, handle: _Handle, worker: int) -> Any:
        """A worker loads a handle, perhaps not as the first: that works as long as there is the array."""
        array, slot = handle.array, next(self.slots)
        there = not array.deleted and self._lives(array)
        outcome, answer = self.workers[worker].ask("receive", slot, handle.data)
        if not there:
            assert (outcome, answer) == ("error", "ArrayNotFoundError")
            return multiple()
        assert outcome == "ok", answer
        array.flying -= handle.is_new
        handle.is_new = False
        return self._held(worker, slot, array)

    @rule(source=arrays, value=st.integers(-100, 100))
    def write(self, source: tuple[int, int], value: int) -> None:
        """What one writes, all read; also to an array that was deleted."""
        array = self._at(source)
        if array is not None:
            self.workers[source[0]].do("write", source[1], value)
            array.values = [value] * len(array.values)

    @rule(source=arrays, value=st.integers(-100, 100))
    def write_guarded(self, source: tuple[int, int], value: int) -> None:
        """A worker writes with the guard held; who finds that a writer has died inside is told, and heals."""
        array = self._at(source)
        if array is None:
            return
        outcome, answer = self.workers[source[0]].ask("guarded write", source[1], value)
        array.guarded = True
        if array.poisoned:
            assert (outcome, answer) == ("error", "PoisonedError")
            self.workers[source[0]].do("heal", source[1])
            array.poisoned = False
        else:
            assert outcome == "ok", answer
            array.values = [value] * len(array.values)

    @rule(source=consumes(arrays))
    def drop(self, source: tuple[int, int]) -> None:
        """A worker drops a view."""
        if self._at(source) is not None:
            self.workers[source[0]].do("drop", source[1])
            del self.workers[source[0]].held[source[1]]

    @rule(source=arrays)
    def unlink(self, source: tuple[int, int]) -> None:
        """A worker deletes an array: no handle to it is good, and views stay."""
        array = self._at(source)
        if array is not None:
            self.workers[source[0]].do("unlink", source[1])
            array.deleted = True

    @rule(worker=workers)
    def kill(self, worker: int) -> None:
        """A worker is killed, and another takes its place."""
        self._kill(worker)

    @rule(source=arrays)
    def die_inside(self, source: tuple[int, int]) -> None:
        """A worker is killed while it writes."""
        array = self._at(source)
        if array is not None and not array.poisoned:
            self.workers[source[0]].do("stay inside", source[1])
            array.poisoned = array.guarded = True
            self._kill(source[0])

    @rule(worker=workers)
    def fork(self, worker: int) -> None:
        """A worker forks; the child uses what its parent holds, and ends. Then the parent goes on, in another seat."""
        assert self.workers[worker].do("fork") == 0
        slot = next(self.slots)
        self.workers[worker].do("zeros", slot, 3)
        self.workers[worker].do("drop", slot)

    @rule(worker=workers)
    def trim(self, worker: int) -> None:
        """A worker gives back what it keeps."""
        self.workers[worker].do("trim")

    def _at(self, source: tuple[int, int]) -> _Array | None:
        """What a worker still holds in a slot: it may have been replaced since."""
        return self.workers[source[0]].held.get(source[1])

    def _held(self, worker: int, slot: int, array: _Array) -> tuple[int, int]:
        self.workers[worker].held[slot] = array
        if array not in self.all:
            self.all.append(array)
        return worker, slot

    def _lives(self, array: _Array) -> bool:
        return array.flying > 0 or any(array in worker.held.values() for worker in self.workers)

    def _kill(self, worker: int) -> None:
        os.kill(self.workers[worker].process.pid, signal.SIGKILL)
        self.workers[worker].process.join(30)
        self.workers[worker].line.close()
        self.workers[worker] = fleet.Worker(self.context, self.store)

    # -- what must hold after each step ---------------------------------------------------------------------------------

    @invariant()
    def contents_are_the_models(self) -> None:
        """Every worker reads what the model says."""
        for worker in self.workers:
            for slot, array in worker.held.items():
                assert worker.do("read", slot) == array.values

    @invariant()
    def counts_and_files_are_what_they_must_be(self) -> None:
        """Judged by the store's own count, and from outside: handles, guards, and no file that is one array's."""
        alive = [array for array in self.all if not array.deleted and self._lives(array)]
        stats = self.store.stats()
        flying = sum(array.flying for array in alive)
        assert (stats.anonymous, stats.in_flight) == (len(alive), flying)
        assert len(files(self.store, "h.")) == flying
        guards = len(files(self.store, "g."))
        assert sum(array.guarded for array in alive) <= guards <= sum(array.guarded for array in self.all)
        assert not files(self.store, "a.")
        assert self.store.check() == []

    def teardown(self) -> None:
        """The store goes on while all is dropped: then nothing is left but what may be used again, and that can be given back."""
        try:
            for worker in self.workers:
                for slot in worker.held:
                    worker.do("drop", slot)
            self.store.release_unclaimed()
            for _ in range(2):  # the first asks, where others have not let go yet
                for worker in self.workers:
                    worker.do("trim")
            wait_until(lambda: not files(self.store), 10, lambda: f"left: {files(self.store)}")
            for worker in self.workers:
                worker.do("stop")
                worker.process.join(30)
                assert worker.process.exitcode == 0
                worker.line.close()
        finally:
            for worker in self.workers:
                if worker.process.is_alive():
                    worker.process.kill()
                worker.process.join(30)
            self.store.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_small_arrays_do_what_their_model_does(method: str) -> None:
    """Random programs of several processes, some of them killed, never part from the model."""
    machine: Any = type(f"{method.title()}Machine", (SmallsMachine,), {"method": method})
    run = machine.TestCase
    deep = settings.get_current_profile_name() == "deep"
    examples, steps = (200, 60) if deep else (5, 25) if method == "fork" else (2, 12)
    run.settings = settings(max_examples=examples, stateful_step_count=steps)
    run("runTest").runTest()
