"""Whoever works with small arrays is killed at every line, and those who stay go on: nothing is lost, nothing stays, nobody waits.

By default at every seventh line, with `--deep` at every one.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import cells, membership, slabmaps
from tests.helpers.processes import reap, wait_until
from tests.helpers.sweeps import in_child
from tests.smalls import deaths
from tests.smalls.things import Partner, ask, files, is_whole, loading, made, next_serial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MENDABLE = (
    "a block that was never finished; its maker is gone",
    "nobody holds it, and no handle to it is in flight",
    "a handle in flight to a block that was deleted, or that lay in one",
    "the lock of a small array that is gone",
)


class Stand:
    """A store, what the parent has in it, and what the one who is killed has told."""

    def __init__(self, store: sa.Store) -> None:
        """Begin with nothing."""
        self.store = store
        self.kept: list[tuple[int, Any]] = []
        self.handles: list[tuple[int, bytes]] = []
        self.mine: list[tuple[int, Any]] = []
        self.pipe: tuple[int, int] = (-1, -1)

    def ready(self) -> None:
        """In the parent: have arrays, and handles to some of them; a pipe on which the other one tells."""
        self.kept = [(serial, made(self.store, serial)) for serial in (next_serial() for _ in range(3))]
        self.handles = [(serial, pickle.dumps(array)) for serial, array in self.kept]
        serial = next_serial()
        self.handles.append((serial, pickle.dumps(made(self.store, serial))))  # which nobody else has
        self.pipe = os.pipe()

    def tell(self, serial: int, array: Any) -> None:
        """In the other one: tell the parent of an array."""
        os.write(self.pipe[1], pickle.dumps((serial, pickle.dumps(array))))

    def told(self) -> list[tuple[int, bytes]]:
        """In the parent: what the other one told."""
        os.close(self.pipe[1])
        found = []
        with open(self.pipe[0], "rb") as said, contextlib.suppress(EOFError):
            while True:
                found.append(pickle.load(said))
        return found

    def verify(self, where: str, *, may_be_gone: bool = False) -> None:
        """Everything that was sent arrives, what is held is whole, and when all is dropped nothing is left."""
        for serial, handle in self.told():
            assert is_whole(pickle.loads(handle), serial), where
        for serial, array in self.kept:
            assert is_whole(array, serial), where
        for serial, handle in self.handles[: len(self.kept)]:
            with contextlib.suppress(*(sa.ArrayNotFoundError,) * may_be_gone):
                assert is_whole(pickle.loads(handle), serial), where
        with contextlib.suppress(sa.ArrayNotFoundError):  # whoever had taken it may have been killed
            serial, handle = self.handles[-1]
            assert is_whole(pickle.loads(handle), serial), where
        fresh = [(serial, made(self.store, serial)) for serial in (next_serial() for _ in range(40))]
        assert all(is_whole(array, serial) for serial, array in fresh + self.kept), where
        for _, array in self.kept:
            with array.write(timeout=20, heal=True):
                pass
        del fresh, array
        self.kept.clear()
        self.store.release_unclaimed()
        self.store.trim()
        found = self.store.check(fix=True)
        assert all(problem.reason in MENDABLE for problem in found), (where, found)
        assert self.store.check() == [], where
        left = files(self.store)
        assert left == set(), (where, left, found)
        assert self.store.stats().anonymous == self.store.stats().attached == 0, where


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Do something at whose lines nobody is killed."""
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


def make(stand: Stand) -> None:
    """Make a slab and arrays in it, and send them."""
    for _ in range(2):
        serial = next_serial()
        array = made(stand.store, serial)
        stand.tell(serial, array)


def make_and_drop(stand: Stand) -> None:
    """Make an array again in the cell of one that was dropped."""
    with unseen():
        array = made(stand.store, next_serial())
    del array
    made(stand.store, next_serial())


def attach(stand: Stand) -> None:
    """Load what the parent has, and what nobody has, and drop both."""
    for serial, handle in stand.handles[-2:]:
        array = pickle.loads(handle)
        with unseen():
            assert is_whole(array, serial)


def forward(stand: Stand) -> None:
    """Load, send on, drop."""
    serial, handle = stand.handles[0]
    array = pickle.loads(handle)
    stand.tell(serial, array)
    del array


def put_question(stand: Stand) -> None:
    """As a maker, ask who sees what was dropped."""
    with unseen():
        for step in range(7):
            serial = next_serial()
            array = made(stand.store, serial)
            if step % 2:
                stand.tell(serial, array)
            else:
                pickle.loads(pickle.dumps(array))
            if step == 6:
                array.unlink()
        del array
    ask(stand.store)
    made(stand.store, next_serial())


def trim(stand: Stand) -> None:
    """As a maker, give back."""
    with unseen():
        pickle.loads(pickle.dumps(stand.store.zeros(600)))
        serial = next_serial()
        stand.tell(serial, made(stand.store, serial))
    stand.store.trim()


def unlink(stand: Stand) -> None:
    """Delete what the parent has."""
    with unseen():
        array = pickle.loads(stand.handles[0][1])
        pickle.dumps(array)
    array.unlink()


def guard(stand: Stand) -> None:
    """Make the guard of what the parent has, and go in."""
    with unseen():
        array = pickle.loads(stand.handles[0][1])
    with array.write():
        pass


def after_fork(stand: Stand) -> None:
    """Go on after a fork, in another seat."""
    with unseen():
        array = pickle.loads(stand.handles[0][1])
        assert reap(in_child(int)) == 0
    other = made(stand.store, next_serial())
    del array, other


def leave(stand: Stand) -> None:
    """Have been a maker, and end the part in the store, while the parent has an array."""
    with unseen():
        serial = next_serial()
        stand.tell(serial, made(stand.store, serial))
    number = stand.store._open().key.store
    del membership._near[number]  # as when its object has ended
    slabmaps._left(slabmaps._parts[number])


DEEDS: tuple[Callable[[Stand], None], ...] = (
    *(make, make_and_drop, attach, forward, put_question, trim, unlink, guard, after_fork, leave),
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody wait for long, and soon look whether the one waited for is dead: after each death that is done for many cells."""
    monkeypatch.setattr(cells, "_PATIENCE", 3.0)
    monkeypatch.setattr(cells, "_LOOK_AFTER", 0.001)


@pytest.mark.parametrize("deed", DEEDS)
def test_others_go_on_when_one_is_killed_at_any_line(deed: Callable[[Stand], None], store: sa.Store, step: int) -> None:
    """What was sent arrives, what is held stays, a guard can be had; and all that the dead had comes back."""
    stand = Stand(store)

    def verify(where: str) -> None:
        stand.verify(where, may_be_gone=deed in (attach, forward, unlink, guard, after_fork))

    assert deaths.sweep(stand.ready, lambda: deed(stand), verify, step) > 2


@pytest.mark.parametrize("deed", [make, put_question])
def test_others_go_on_when_a_maker_is_killed_in_a_store_with_a_capacity(
    deed: Callable[[Stand], None], step: int
) -> None:
    """There what is being made has a name before."""
    with sa.Store(capacity=32 << 20) as store:
        stand = Stand(store)
        assert deaths.sweep(stand.ready, lambda: deed(stand), stand.verify, 3 * step) > 2


MAKER = """
import os, sys
from tests.helpers.tracing import kill_at
from tests.smalls.deaths import of_smalls
from tests.smalls.things import ask
n = {n}
sent = [made(store, 100 + serial) for serial in range(6)]
said = [pickle.dumps(array).hex() for array in sent]
"""


@pytest.mark.core
def test_others_go_on_when_a_maker_is_killed_asking(store: sa.Store, request: pytest.FixtureRequest) -> None:
    """Before each of the lines of that: handles in flight are loaded at once, what others have stays, and the slab goes with the last."""
    n, step, status = 1, 3 if request.config.getoption("--deep") else 40, -9
    while status == -9:
        with Partner() as maker:
            maker.do(f"store = {loading(pickle.dumps(store))}")
            handles = [bytes.fromhex(text) for text in maker.do(MAKER.format(n=n))]
            held = [pickle.loads(handle) for handle in handles[:3]]
            maker.do("del sent")
            maker.begin("with kill_at(n, of_smalls): ask(store); new = made(store, 1)")
            if (status := maker.finish().returncode) == -9:
                n += step
        arrays = held + [pickle.loads(handle) for handle in handles[3:]]
        assert all(is_whole(array, 100 + serial) for serial, array in enumerate(arrays)), n
        del arrays
        assert all(is_whole(array, 100 + serial) for serial, array in enumerate(held)), n
        del held
        store.check(fix=True)
        store.trim()
        # This process has the slab mapped still, for what may come.
        assert store.check() == [], n
        assert store.stats().anonymous == 0, n
    assert status == 0
    assert n > step


@pytest.mark.core
@pytest.mark.parametrize("what", ["held", "in flight"])
def test_what_a_killed_process_had_is_used_again(what: str, store: sa.Store) -> None:
    """Its seat is nobody's, or another's by then; a handle that it had made and not sent is found by nobody, and given up."""
    for turn in range(10):
        serials = [next_serial() for _ in range(100)]
        arrays = [made(store, serial) for serial in serials]
        with Partner() as reader:
            text = ", ".join(loading(pickle.dumps(array)) for array in arrays)
            del arrays
            reader.do(f"arrays = [{text}]")
            assert store.stats().anonymous == 100
            if what == "in flight":
                reader.do("handles = [pickle.dumps(array) for array in arrays]; del arrays")
            reader.kill()
        if what == "in flight":
            assert store.release_unclaimed() == 100
        wait_until(lambda: store.stats().anonymous == 0, message="they stay")
        assert sum(os.stat(f"/dev/shm/{entry}").st_size for entry in files(store, "s.")) < 2 << 20, turn
        assert store.check() == []
    store.trim()
    assert files(store) == set()
