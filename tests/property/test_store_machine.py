"""A store driven from several processes, beside plain dicts as its model.

After each step contents and names are those of the model; the files of the store, seen from outside, are those that must exist,
so that each block is made once and unlinked once; each process maps just what it holds, and has no descriptor of a block open.
Where what was let go of stays mapped, it has no lease: that is whose it is who holds the array.
"""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import os
import signal
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

import shmarray as sa
from shmarray import idling, warm
from shmarray._format import names
from tests.helpers import leaks
from tests.helpers.processes import wait_until
from tests.property import fleet

NAMES = st.sampled_from(["a", "b", "train/images/0", "Ω ü", "x" * 200])
VALUES = st.lists(st.integers(-(1 << 40), 1 << 40), min_size=0, max_size=5)
WORKERS = 3
workers = st.integers(0, WORKERS - 1)


class _Array:
    """One incarnation of an array in the model."""

    def __init__(self, name: str | None, values: list[int]) -> None:
        self.name = name
        self.values = values
        self.current = True
        """Not deleted, not replaced: handles to it can be loaded."""


class StoreMachine(RuleBasedStateMachine):
    """The machine; its subclasses say how the workers are started."""

    method: ClassVar[str] = "fork"
    stays: ClassVar[bool] = False
    """Whether named arrays stay mapped where they were let go of."""
    arrays = Bundle("arrays")
    handles = Bundle("handles")

    def __init__(self) -> None:
        """Open a store and start the workers."""
        super().__init__()
        self.context = multiprocessing.get_context(self.method)
        self.store = sa.Store()
        self.workers = [fleet.Worker(self.context, self.store) for _ in range(WORKERS)]
        self.named: dict[str, _Array] = {}
        self.flying: list[_Array] = []
        """Arrays of handles that were pickled and never loaded; an anonymous one lives as long as it has one."""
        self.slots = itertools.count()
        self.guarded = True

    # -- rules: who does what ------------------------------------------------------------------------------------------

    @rule(target=arrays, worker=workers, name=st.none() | NAMES, values=VALUES)
    def create(self, worker: int, name: str | None, values: list[int]) -> Any:
        """A worker makes an array; a name that is taken is refused."""
        slot = next(self.slots)
        outcome, answer = self.workers[worker].ask("create", slot, name, values)
        if name in self.named:
            assert (outcome, answer) == ("error", "ArrayExistsError")
            return multiple()
        assert outcome == "ok", answer
        array = _Array(name, values)
        if name is not None:
            self.named[name] = array
        self.workers[worker].held[slot] = array
        return worker, slot

    @rule(worker=workers, name=NAMES, values=VALUES)
    def replace(self, worker: int, name: str, values: list[int]) -> None:
        """A worker publishes under a name, whatever is there."""
        self.workers[worker].do("replace", name, values)
        if name in self.named:
            self.named[name].current = False
        self.named[name] = _Array(name, values)

    @rule(target=arrays, worker=workers, name=NAMES)
    def attach(self, worker: int, name: str) -> Any:
        """A worker attaches by name, and holds what has the name now."""
        slot = next(self.slots)
        outcome, answer = self.workers[worker].ask("attach", slot, name)
        if name not in self.named:
            assert (outcome, answer) == ("error", "ArrayNotFoundError")
            return multiple()
        assert outcome == "ok", answer
        self.workers[worker].held[slot] = self.named[name]
        return worker, slot

    @rule(target=handles, source=arrays)
    def send(self, source: tuple[int, int]) -> Any:
        """A worker pickles what it holds; what was deleted or replaced cannot be pickled."""
        array = self._held(source)
        if array is None:
            return multiple()
        outcome, handle = self.workers[source[0]].ask("send", source[1])
        if not array.current:
            assert (outcome, handle) == ("error", "ArrayNotFoundError")
            return multiple()
        assert outcome == "ok", handle
        self.flying.append(array)
        return array, handle

    @rule(target=arrays, handle=consumes(handles), worker=workers)
    def receive(self, handle: tuple[_Array, bytes], worker: int) -> Any:
        """A worker loads a handle that its sender may long have forgotten."""
        array, data = handle
        slot = next(self.slots)
        outcome, answer = self.workers[worker].ask("receive", slot, data)
        self.flying.remove(array)
        if not array.current:
            assert (outcome, answer) == ("error", "ArrayNotFoundError")
            return multiple()
        assert outcome == "ok", answer
        self.workers[worker].held[slot] = array
        return worker, slot

    @rule(source=arrays, value=st.integers(-100, 100))
    def write(self, source: tuple[int, int], value: int) -> None:
        """What one writes, all read; also to an array that was deleted or replaced."""
        array = self._held(source)
        if array is not None:
            self.workers[source[0]].do("write", source[1], value)
            array.values = [value] * len(array.values)

    @rule(source=consumes(arrays))
    def drop(self, source: tuple[int, int]) -> None:
        """A worker drops a view."""
        if self._held(source) is not None:
            self.workers[source[0]].do("drop", source[1])
            del self.workers[source[0]].held[source[1]]

    @rule(source=arrays)
    def unlink(self, source: tuple[int, int]) -> None:
        """A worker deletes an array it holds; a name that leads to a newer one stays."""
        array = self._held(source)
        if array is not None:
            self.workers[source[0]].do("unlink", source[1])
            self._delete(array)

    @rule(worker=workers, name=NAMES)
    def delete(self, worker: int, name: str) -> None:
        """A worker deletes a name."""
        outcome, answer = self.workers[worker].ask("delete", name)
        if name in self.named:
            assert outcome == "ok", answer
            self._delete(self.named[name])
        else:
            assert (outcome, answer) == ("error", "ArrayNotFoundError")

    @rule(worker=workers)
    def kill(self, worker: int) -> None:
        """A worker is killed, and another takes its place."""
        os.kill(self.workers[worker].process.pid, signal.SIGKILL)
        self.workers[worker].process.join(30)
        self.workers[worker].line.close()
        self.workers[worker] = fleet.Worker(self.context, self.store)

    @rule(target=arrays, worker=workers, values=VALUES)
    def create_tree(self, worker: int, values: list[int]) -> Any:
        """A worker puts a nested structure: one block, however many arrays; the model sees its first."""
        slot = next(self.slots)
        self.workers[worker].do("create tree", slot, values)
        self.workers[worker].held[slot] = _Array(None, values)
        return worker, slot

    @precondition(lambda self: self.guarded)
    @rule()
    def kill_guardian(self) -> None:
        """The guardian is killed: from now on who is killed is cleaned up after by `check(fix=True)`."""
        pid = self.store.guardian_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.store.guardian_pid is None, 10, "the guardian does not end")
        self.guarded = False

    @rule(worker=workers)
    def fork(self, worker: int) -> None:
        """A worker forks; the child uses what its parent holds, and ends: nothing of the parent's goes with it."""
        assert self.workers[worker].do("fork") == 0

    def _held(self, source: tuple[int, int]) -> _Array | None:
        """What a worker still holds in a slot: it may have been replaced since."""
        return self.workers[source[0]].held.get(source[1])

    def _delete(self, array: _Array) -> None:
        array.current = False
        if array.name is not None and self.named.get(array.name) is array:
            del self.named[array.name]

    # -- what must hold after each step ---------------------------------------------------------------------------------

    @invariant()
    def names_and_contents_are_the_models(self) -> None:
        """Every worker reads what the model says, by name and through what it holds."""
        for worker in self.workers:
            assert worker.do("names") == sorted(self.named)
            for slot, array in worker.held.items():
                assert worker.do("read", slot) == array.values
        for name, array in self.named.items():
            assert self.workers[0].do("look up", name) == array.values

    @invariant()
    def files_mappings_and_descriptors_are_what_they_must_be(self) -> None:
        """Judged from outside: what exists, who maps how many blocks, and that no block is held by a descriptor."""
        anonymous = {
            id(array)
            for worker in self.workers
            for array in worker.held.values()
            if array.name is None and array.current
        }
        anonymous |= {id(array) for array in self.flying if array.name is None and array.current}
        flying = sum(array.name is None and array.current for array in self.flying)
        expected = (len(self.named), len(anonymous), flying)
        if not self.guarded:
            self.store.check(fix=True)
        # A killed worker's blocks are found by the guardian, which is told by the kernel and takes a moment.
        wait_until(lambda: self._files() == expected, 10, lambda: f"files {self._files()}, expected {expected}")
        for worker in self.workers:
            blocks = len({id(array) for array in worker.held.values()})
            pid = worker.process.pid
            own = {mapping.inode for mapping in leaks.mappings(pid)} - worker.inherited
            open_files = [path for path in leaks.descriptors(pid).values() if "shmarray." in path]
            more = 2 * idling.MOST if self.stays else 0
            assert blocks + 1 <= len(own) <= blocks + 1 + more, "a worker maps the control file and the blocks it holds"
            assert len(open_files) <= blocks + more
        if self.stays:
            held = {id(array) for worker in self.workers for array in worker.held.values()}
            assert self._leased() == {name for name, array in self.named.items() if id(array) in held}

    def _leased(self) -> set[str]:
        """Names of arrays whose blocks somebody has the lease of."""
        found = set()
        for name in self.named:
            entry = f"shmarray.{os.geteuid()}.{self.store.id}.n.{names.encode(name)}"
            with open(os.path.join(leaks.SHM, entry), "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.add(name)
        return found

    def _files(self) -> tuple[int, int, int]:
        kinds = [name.split(".")[3] for name in leaks.shm_entries(f"shmarray.{os.geteuid()}.{self.store.id}.")]
        return kinds.count("n"), kinds.count("a"), kinds.count("h")

    def teardown(self) -> None:
        """The store closes while workers still hold arrays: no name stays, and they can still read."""
        try:
            self.store.close()
            assert self._files() == (0, 0, 0)
            for worker in self.workers:
                for slot, array in worker.held.items():
                    assert worker.do("read", slot) == array.values
                worker.do("stop")
                worker.process.join(30)
                assert worker.process.exitcode == 0
                worker.line.close()
        finally:
            for worker in self.workers:
                if worker.process.is_alive():
                    worker.process.kill()
                worker.process.join(30)
        if not self.guarded:
            # The workers of multiprocessing end by `os._exit`, without letting go; so the next store removes what is dead.
            sa.Store().close()
        wait_until(
            lambda: not leaks.shm_entries(f"shmarray.{os.geteuid()}.{self.store.id}."), 10, "the control file stays"
        )


@pytest.mark.parametrize(
    ("method", "stays"), [("fork", False), ("spawn", False), ("forkserver", False), ("fork", True)]
)
def test_a_store_does_what_its_model_does(
    method: str,
    stays: bool,  # noqa: FBT001  a parameter of a test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random programs of several processes, some of them killed, never part from the model."""
    if stays:
        monkeypatch.setattr(warm, "SMALLEST", 4096)
    machine: Any = type(f"{method.title()}Machine", (StoreMachine,), {"method": method, "stays": stays})
    run = machine.TestCase
    deep = settings.get_current_profile_name() == "deep"
    examples, steps = (200, 60) if deep else (6, 25) if method == "fork" else (2, 15)
    run.settings = settings(max_examples=examples, stateful_step_count=steps)
    run("runTest").runTest()
