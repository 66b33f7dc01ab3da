"""Attempts to have a cell used again while somebody sees the array in it, or a handle to that is in flight; each one succeeded once."""

from __future__ import annotations

import contextlib
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import cells, seats, sightings, slabmaps
from shmarray._format import slab as form
from tests.helpers.processes import reap, wait_until
from tests.helpers.sweeps import in_child
from tests.smalls.things import Partner, ask, files, is_whole, loading, made, next_serial, place_of

if TYPE_CHECKING:
    from collections.abc import Callable

SHORTLY = 0.5
"""Seconds that another process gets to do what it must not be able to do: whoever waits for the answer does not do it."""


def done_shortly(other: Partner) -> bool:
    """Say whether the other one has done what it was told, or waits."""
    with contextlib.suppress(AssertionError):
        other.wait_for("done", timeout=SHORTLY)
        return True
    return False


def fill(store: sa.Store, count: int = 40) -> list[tuple[int, Any]]:
    """Make arrays, and have them."""
    serials = [next_serial() for _ in range(count)]
    return [(serial, made(store, serial)) for serial in serials]


def are_whole(arrays: list[tuple[int, Any]]) -> bool:
    """Say whether all of them are what they were made as."""
    return all(is_whole(array, serial) for serial, array in arrays)


@pytest.mark.core
def test_a_handle_made_while_the_maker_asks_keeps_its_array(store: sa.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made after the maker looked for handles, and its maker drops the array before it looks at the seats."""
    serial = next_serial()
    array = made(store, serial)
    handle = pickle.dumps(array)
    place = place_of(array)
    seen, in_flight = sightings.seen, sightings.in_flight
    turns: list[int] = []
    done: list[bool] = []
    with Partner() as other:

        def attach_after_the_first_look(*args: Any) -> Any:
            found = seen(*args)
            turns.append(1)
            if len(turns) == 1:
                other.do(f"array = {loading(handle)}")
            return found

        def offer_after_the_look_for_handles(*args: Any) -> Any:
            found = in_flight(*args)
            other.begin("said = pickle.dumps(array).hex(); del array")
            wait_until(lambda: files(store, "h."), message="no handle was made")
            done.append(done_shortly(other))
            return found

        monkeypatch.setattr(sightings, "seen", attach_after_the_first_look)
        monkeypatch.setattr(sightings, "in_flight", offer_after_the_look_for_handles)
        del array
        ask(store)
        monkeypatch.undo()
        assert done == [False], "nobody waited for the answer"
        late = bytes.fromhex(other.wait_for("done"))
        arrays = fill(store)
        assert place not in [place_of(new) for _, new in arrays]
        array = pickle.loads(late)
        assert is_whole(array, serial)
        other.finish().expect()


@pytest.mark.core
def test_who_takes_another_seat_while_the_maker_asks_is_seen(store: sa.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each time the table was read, and before it is asked who is alive behind the seats."""
    serial = next_serial()
    array = made(store, serial)
    place = place_of(array)
    alive = seats.alive
    with Partner() as other:
        other.do(f"array = {loading(pickle.dumps(array))}; store = {loading(pickle.dumps(store))}")

        def move(*args: Any) -> Any:
            other.begin(
                "pid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)\nlater = store.zeros(8); del later"
            )
            done_shortly(other)
            return alive(*args)

        monkeypatch.setattr(seats, "alive", move)
        del array
        ask(store)
        monkeypatch.undo()
        arrays = fill(store)
        assert place not in [place_of(new) for _, new in arrays]
        other.kill()


@pytest.mark.core
def test_a_stale_handle_loaded_by_the_maker_makes_no_cell_free_twice(store: sa.Store) -> None:
    """Else a slab would seem to have none but free cells while an array is in one of them, and would be given back."""
    array = made(store, next_serial())
    handle = pickle.dumps(array)
    loaded = pickle.loads(handle)
    del array, loaded
    ask(store)
    serial = next_serial()
    kept = None
    for _ in range(3):
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.loads(handle)
        ask(store)
        kept = kept or pickle.dumps(made(store, serial))
        store.trim()
        assert len(files(store, "s.")) == 1
    assert kept is not None
    arrays = fill(store)
    places = [place_of(new) for _, new in arrays]
    assert len(set(places)) == len(places)
    assert are_whole(arrays)
    assert is_whole(pickle.loads(kept), serial)


class Finalizer:
    """An object in a cycle: what it is to do happens in the midst of what somebody else does."""

    def __init__(self, deed: Callable[[], None]) -> None:
        """Wait for the end."""
        self.deed = deed

    def __del__(self) -> None:
        """Do it."""
        self.deed()


@pytest.mark.core
@pytest.mark.parametrize("way", ["trim", "make"])
def test_what_a_finalizer_makes_while_its_process_asks_is_its_own(
    way: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the answer was before it ran."""
    arrays = fill(store)
    handles = [pickle.dumps(array) for _, array in arrays]
    loaded = [pickle.loads(handle) for handle in handles]
    sent: list[tuple[int, bytes]] = []
    seen = sightings.seen
    turns: list[int] = []

    def look(*args: Any) -> Any:
        found = seen(*args)
        turns.append(1)
        if len(turns) == 2:
            sent.extend((serial, pickle.dumps(array)) for serial, array in fill(store, 100))
        return found

    del arrays, loaded
    monkeypatch.setattr(sightings, "seen", look)
    arrays = []
    if way == "trim":
        store.trim()
    while not sent:
        arrays += fill(store, 1)
    monkeypatch.undo()
    arrays += fill(store, 200) + [(serial, pickle.loads(handle)) for serial, handle in sent]
    places = [place_of(array) for _, array in arrays]
    assert len(set(places)) == len(places)
    assert are_whole(arrays)


@pytest.mark.core
@pytest.mark.parametrize("end", ["held", "sent on", "dropped"])
def test_what_a_finalizer_loads_while_its_process_asks_stays(
    end: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for itself, and the cell is not used again unless all is dropped."""
    serial = next_serial()
    array = made(store, serial)
    handle = pickle.dumps(array)
    place = place_of(array)
    had: list[Any] = []
    in_flight = sightings.in_flight

    def load(*args: Any) -> Any:
        found = in_flight(*args)
        if not had:
            loaded = pickle.loads(handle)
            assert is_whole(loaded, serial)
            had.append(loaded if end == "held" else pickle.dumps(loaded) if end == "sent on" else None)
        return found

    monkeypatch.setattr(sightings, "in_flight", load)
    monkeypatch.setattr(cells, "_PATIENCE", 0.2)
    del array
    ask(store)
    monkeypatch.undo()
    assert had
    arrays = fill(store)
    assert (place in [place_of(new) for _, new in arrays]) <= (end == "dropped")
    if end == "sent on":
        had.append(pickle.loads(had.pop()))
    assert end == "dropped" or is_whole(had.pop(), serial)


@pytest.mark.core
@pytest.mark.parametrize("child", [False, True])
def test_nobody_waits_for_a_maker_that_died_asking(child: bool, store: sa.Store) -> None:  # noqa: FBT001  a parameter of a test
    """Not even where a process that it had forked lives on, and has all that it had mapped."""
    serial = next_serial()
    with Partner() as maker:
        maker.do(f"store = {loading(pickle.dumps(store))}; first = store.ones(512)")
        fork = "said = os.fork()\nif not said:\n  import signal; signal.pause()" if child else "said = 0"
        forked = maker.do(fork)
        maker.do(f"array = made(store, {serial})")
        handle = bytes.fromhex(maker.do("said = pickle.dumps(array).hex()"))
        maker.do("del array\nfrom shmarray import stocks\nimport signal")
        maker.begin(
            "from shmarray import sightings; sightings.in_flight = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nstore.trim()"
        )
        assert maker.finish().returncode == -9
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cells, "_PATIENCE", 2.0)
            array = pickle.loads(handle)
        assert is_whole(array, serial)
        if forked:
            os.kill(forked, 9)
        del array


@pytest.mark.core
def test_the_last_who_drops_an_array_of_a_dead_maker_removes_the_slab(store: sa.Store) -> None:
    """A few slabs stay mapped for what may come; of all others the files go at once, without a sweep."""
    guardian = store.guardian_pid
    assert guardian is not None
    os.kill(guardian, 9)
    wait_until(lambda: store.guardian_pid is None, message="the guardian does not end")
    with Partner() as reader:
        reader.do(f"store = {loading(pickle.dumps(store))}")
        for _ in range(slabmaps._MOST_IDLE + 3):
            with Partner() as maker:
                maker.do(f"store = {loading(pickle.dumps(store))}; array = store.ones(100)")
                handle = bytes.fromhex(maker.do("said = pickle.dumps(array).hex()"))
                reader.do(f"array = {loading(handle)}")
                maker.kill()
            reader.do("assert array.sum() == 100; del array")
        assert len(files(store, "s.")) == slabmaps._MOST_IDLE
        reader.kill()
    store.check(fix=True)
    assert files(store) == set()


def test_a_process_whose_part_in_the_store_ends_with_its_last_array_removes_its_slabs(store: sa.Store) -> None:
    """It had nothing else of the store."""
    guardian = store.guardian_pid
    assert guardian is not None
    os.kill(guardian, 9)
    wait_until(lambda: store.guardian_pid is None, message="the guardian does not end")
    with Partner() as maker, Partner() as reader:
        maker.do(f"store = {loading(pickle.dumps(store))}; array = store.ones(100)")
        handle = bytes.fromhex(maker.do("said = pickle.dumps(array).hex()"))
        reader.do(f"array = {loading(handle)}")
        maker.kill()
        assert len(files(store, "s.")) == 1
        reader.do("del array")
        assert files(store) == set()
        reader.finish().expect()


def test_a_forked_child_that_has_an_array_keeps_it(store: sa.Store) -> None:
    """Whatever its parent does with the cells that are free: a child has its parent's seat until it takes its own."""
    arrays = fill(store, 20)
    go = os.pipe()

    def look() -> None:
        os.read(go[0], 1)
        assert are_whole(arrays)
        more = fill(store, 20)
        assert are_whole(more)
        assert are_whole(arrays)

    pid = in_child(look)
    arrays.clear()
    for _ in range(5):
        ask(store)
        more = fill(store, 30)
        assert are_whole(more)
        del more
    os.write(go[1], b"!")
    assert reap(pid) == 0
    for end in go:
        os.close(end)


def test_numbers_never_recur(store: sa.Store) -> None:
    """A cell whose numbers have run out stays out of use, and does not stand in the way of giving its slab back."""
    array = store.zeros(32 << 10, "u1")
    view = cells.view_of(array)
    assert view is not None
    slab = view.slab
    del array, view
    for cell in range(slab.layout.count):
        slab.set_word(cell, form.NUMBER, form.number_of(slab.number, cell, form.LAST_GENERATION - 3))
    numbers = set()
    for _ in range(100):
        array = store.zeros(32 << 10, "u1")
        view = cells.view_of(array)
        assert view is not None
        assert view.number not in numbers
        numbers.add(view.number)
        del array, view
    del slab
    store.trim()
    assert files(store) == set()


@pytest.mark.parametrize("capacity", [None, 32 << 20])
def test_a_slab_whose_number_is_taken_gets_another(capacity: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the one that has it stays what it is."""
    with sa.Store(capacity=capacity) as store:
        serial = next_serial()
        array = made(store, serial)
        (before,) = files(store, "s.")
        numbers = [place_of(array)[0], place_of(array)[0] ^ 1 << 40]
        monkeypatch.setattr(form, "slab_number", lambda _: numbers.pop(0) if len(numbers) > 1 else numbers[0])
        other = store.ones(700)
        assert files(store, "s.") > {before}
        assert place_of(other)[0] == numbers[0]
        assert is_whole(pickle.loads(pickle.dumps(array)), serial)
        assert other.sum() == 700
