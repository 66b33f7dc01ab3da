"""Seats: more processes than there are, processes that come and go, forks that hold them."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import cells, seats
from shmarray._format import control
from tests.helpers.leaks import SHM
from tests.helpers.processes import reap
from tests.helpers.sweeps import in_child
from tests.smalls.things import Partner, ask, files, is_whole, loading, made, next_serial, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MANY = control.SEATS + 2
LETTER = 1024


class Crowd:
    """Forked children that wait where they are until they are let go."""

    def __init__(self) -> None:
        """Begin with none."""
        self.told, self.go = os.pipe(), os.pipe()
        self.pids: list[int] = []

    def add(self, deed: Callable[[], object], after: Callable[[], object] = int) -> None:
        """Fork a child that does something, says so, waits, and does something else."""

        def act() -> None:
            deed()
            os.write(self.told[1], b".")
            os.close(self.go[1])
            os.read(self.go[0], 1)
            after()

        self.pids.append(in_child(act, collect=False))

    def wait(self) -> None:
        """Wait until one more has said so."""
        assert os.read(self.told[0], 1) == b"."

    def let_go(self) -> None:
        """Let all go on, and wait for their end."""
        os.close(self.go[1])
        self.go = (self.go[0], -1)
        assert [reap(pid) for pid in self.pids] == [0] * len(self.pids)
        self.pids.clear()

    def close(self) -> None:
        """End what is still there."""
        for pid in self.pids:
            os.kill(pid, 9)
            reap(pid)
        for end in (*self.told, *self.go):
            if end >= 0:
                os.close(end)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """A crowd, ended at the end."""
    made_crowd = Crowd()
    yield made_crowd
    made_crowd.close()


@pytest.mark.core
def test_more_processes_than_seats_look_at_arrays_and_make_some(store: sa.Store, crowd: Crowd) -> None:
    """Who gets no seat attaches all the same, and its cell is never used again; what it makes is a block of its own."""
    serial = next_serial()
    held: list[Any] = []
    mail = os.pipe()

    def come() -> None:
        held.append(pickle.loads(os.read(mail[0], LETTER)))
        held.append(made(store, 7))
        assert is_whole(held[0], serial)
        assert held[1].is_shared

    def look() -> None:
        assert is_whole(held[0], serial)
        assert is_whole(held[1], 7)
        sent = pickle.dumps(held[1])
        held.clear()
        assert is_whole(pickle.loads(sent), 7)

    # Before this process has a seat, which they would have too.
    for _ in range(MANY):
        crowd.add(come, look)
    array = made(store, serial)
    place = place_of(array)
    for _ in range(MANY):
        os.write(mail[1], pickle.dumps(array).ljust(LETTER))
        crowd.wait()
    for end in mail:
        os.close(end)
    assert files(store, "a."), "there was a seat for everyone"
    assert files(store, "h.") == set()
    del array
    for _ in range(3):
        ask(store)
        arrays = [(n, made(store, n)) for n in range(100, 140)]
        assert place not in [place_of(new) for _, new in arrays]
        assert all(is_whole(new, n) for n, new in arrays)
        del arrays
    assert store.check() == []
    crowd.let_go()
    assert store.stats().anonymous == 0
    assert store.check() == []
    arrays = [(n, made(store, n)) for n in range(100, 140)]
    assert place not in [place_of(new) for _, new in arrays]


@pytest.mark.core
def test_children_that_have_all_seats_cost_no_cell_for_each_array(store: sa.Store, crowd: Crowd) -> None:
    """After each fork the parent takes another seat, until there is none: what it makes then is freed as ever."""
    kept = made(store, 1)
    for _ in range(MANY):
        crowd.add(int)
        crowd.wait()
        made(store, next_serial())
    array = made(store, 2)
    assert cells.view_of(array) is None, "the parent has a seat of its own"
    del array
    before = sum(os.stat(os.path.join(SHM, entry)).st_size for entry in files(store))
    for n in range(300):
        array = made(store, n)
        sent = pickle.dumps(array)
        del array
        assert is_whole(pickle.loads(sent), n)
    assert sum(os.stat(os.path.join(SHM, entry)).st_size for entry in files(store)) <= before + 65536
    assert is_whole(kept, 1)
    crowd.let_go()
    assert cells.view_of(made(store, 3)) is not None
    del kept
    for _ in range(2):
        store.trim()
    assert store.stats().nbytes == 0


def test_processes_that_come_and_go_take_the_seats_of_the_dead(store: sa.Store) -> None:
    """What was written there before is nobody's: arrays are freed though the bytes stand there."""
    for turn in range(150):
        serial = next_serial()
        handle = pickle.dumps(made(store, serial))

        def die(handle: bytes = handle, serial: int = serial) -> None:
            array = pickle.loads(handle)
            assert is_whole(array, serial)
            os.kill(os.getpid(), 9)

        assert reap(in_child(die, collect=False)) == -9, turn
    assert store.stats().anonymous == 0
    store.trim()
    assert store.stats().nbytes == 0


def test_a_chain_of_forks_keeps_what_the_last_one_has(store: sa.Store) -> None:
    """Each child forks the next and ends; the last one looks."""
    serial = next_serial()
    arrays = [made(store, serial)]
    said, go = os.pipe(), os.pipe()

    def descend(depth: int) -> None:
        if depth:
            if depth % 2:
                made(store, 1)  # takes a seat of its own
            if os.fork() == 0:
                descend(depth - 1)
            os._exit(0)
        os.write(said[1], b".")
        os.read(go[0], 1)
        os.write(said[1], b"1" if is_whole(arrays[0], serial) else b"0")
        os._exit(0)

    assert reap(in_child(lambda: descend(6), collect=False)) == 0
    assert os.read(said[0], 1) == b"."
    arrays.clear()
    for _ in range(3):
        ask(store)
        more = [made(store, next_serial()) for _ in range(50)]
        del more
    os.write(go[1], b"!")
    assert os.read(said[0], 1) == b"1"
    for end in (*said, *go):
        os.close(end)


@pytest.mark.core
def test_a_stopped_process_stands_in_nobodys_way(store: sa.Store) -> None:
    """One that looks keeps what it looks at, and no more than that."""
    serial = next_serial()
    array = made(store, serial)
    with Partner() as reader:
        reader.do(f"array = {loading(pickle.dumps(array))}\nimport signal")
        del array
        reader.begin(f"os.kill(os.getpid(), signal.SIGSTOP); said = is_whole(array, {serial})")
        for _ in range(5):
            arrays = [(n, made(store, n)) for n in range(50)]
            handles = [(n, pickle.dumps(new)) for n, new in arrays]
            del arrays
            assert all(is_whole(pickle.loads(handle), n) for n, handle in handles)
        os.kill(reader.pid, 18)
        assert reader.wait_for("done") is True
        reader.finish().expect()


@pytest.mark.core
@pytest.mark.parametrize("how", ["count", "trim"])
def test_what_was_dropped_after_a_fork_is_gone_when_it_is_counted_or_given_back(how: str, store: sa.Store) -> None:
    """The child is gone, and the parent has made nothing since, for which it would have taken another seat."""
    array = made(store, next_serial())
    assert reap(in_child(int)) == 0
    del array
    if how == "count":
        assert store.stats().anonymous == 0
    store.trim()
    assert files(store) == set()


@pytest.mark.parametrize("has_one", [False, True])
def test_what_a_handler_loads_while_its_thread_takes_a_seat_stays(
    has_one: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taken for the first time, or anew after a fork: what is looked at by the handler stands in the seat that the process has then."""
    told, serial = os.pipe(), next_serial()
    loaded: list[Any] = []
    with sa.Store() as store:
        first = made(store, serial) if has_one else None

        def child() -> None:
            handle, real = os.read(told[0], 4096), seats.take

            def take(member: Any) -> Any:
                seat = real(member)
                if not loaded:
                    loaded.append(None)
                    loaded[0] = pickle.loads(handle)
                return seat

            monkeypatch.setattr(seats, "take", take)
            made(store, serial)
            view = cells.view_of(loaded[0])
            assert view is not None
            seat, places = view.member.seat, view.slab.layout
            assert view.slab.bytes[places.seat(seat.index) + view.cell] == seat.byte

        pid = in_child(child, collect=False)
        os.write(told[1], pickle.dumps(made(store, serial)))
        assert reap(pid) == 0
        del first
    for end in told:
        os.close(end)
