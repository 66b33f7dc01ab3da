"""A process with small arrays, what it does with them, and what must hold whatever became of that.

Owns: the deeds during which something goes wrong.
Must not know: what goes wrong.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from typing import TYPE_CHECKING, Any

import shmarray as sa
from shmarray import cells, stocks
from shmarray._format import control
from shmarray._format import slab as form
from tests.helpers.processes import reap
from tests.helpers.sweeps import in_child
from tests.smalls.things import ask, files, is_whole, made, next_serial, place_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Stand:
    """A store with a few arrays in one slab, and what the deeds had."""

    def __init__(self, store: sa.Store) -> None:
        """Begin with no array."""
        self.store = store
        self.had: list[Any] = []
        self.handles: list[bytes] = []
        self.kept: list[tuple[int, Any]] = []

    def ready(self) -> None:
        """Have arrays: some held, of some a handle is in flight, some were dropped after others had them, some are free."""
        self.kept = [(serial, made(self.store, serial)) for serial in (next_serial() for _ in range(3))]
        self.handles = [pickle.dumps(array) for _, array in self.kept]
        for _ in range(3):
            array = made(self.store, next_serial())
            pickle.loads(pickle.dumps(array))
            del array

    def verify(self, where: str) -> None:
        """What was held is whole, what was in flight arrives, others can attach; and when all is dropped all cells come back."""
        for (serial, array), handle in zip(self.kept, self.handles, strict=True):
            assert is_whole(array, serial), where
            with contextlib.suppress(sa.ArrayNotFoundError):  # deleted, or the interrupted deed had taken it
                assert is_whole(pickle.loads(handle), serial), where
        del array
        fresh = [(serial, made(self.store, serial)) for serial in (next_serial() for _ in range(40))]
        places = {place_of(array) for _, array in [*fresh, *self.kept]}
        assert len(places) == len(fresh) + len(self.kept), where
        assert all(is_whole(array, serial) for serial, array in fresh), where
        del fresh
        self.had.clear()
        self.kept.clear()
        self.handles.clear()
        self.store.release_unclaimed()
        self.store.trim()
        assert all_zero(self.store), where
        left = files(self.store)
        assert left == set(), (where, left)
        assert self.store.stats().anonymous == self.store.stats().attached == 0, where
        assert not cells.ended, where
        assert elsewhere(is_lock_free), f"{where}: the lock is held"
        assert not stocks._busy, where


def is_lock_free() -> bool:
    """Say whether a thread can have the lock of all that is changed about cells."""
    free = cells.Here.lock.acquire(timeout=10)
    if free:
        cells.Here.lock.release()
    return free


def elsewhere(deed: Callable[[], Any]) -> Any:
    """Do something in another thread."""
    answer: list[Any] = []
    thread = threading.Thread(target=lambda: answer.append(deed()))
    thread.start()
    thread.join()
    return answer[0]


def all_zero(store: sa.Store) -> bool:
    """Say whether there is no cell in which anyone's byte is set, or about which somebody asks."""
    for (number, _), stock in stocks._stocks.items():
        for slab in stock._slabs if number == store._open().key.store else ():
            places = slab.layout
            if bytes(slab.bytes[places.seats : places.seats + control.SEATS * places.count]).strip(b"\0"):
                return False
            if any(slab.word(cell, form.ASKED) for cell in range(places.count)):
                return False
    return True


def make(stand: Stand) -> None:
    """Make an array in a slab that is there."""
    stand.had.append(stand.store.zeros(512))


def make_slab(stand: Stand) -> None:
    """Make an array of another size, for which there is no slab yet."""
    stand.had.append(stand.store.zeros(700))


def make_many(stand: Stand) -> None:
    """Make so many that they ask, and make another slab."""
    stand.had.extend(stand.store.empty(512) for _ in range(40))


def offer(stand: Stand) -> None:
    """Pickle."""
    stand.had.append(pickle.dumps(stand.kept[0][1]))


def attach(stand: Stand) -> None:
    """Load what this process has."""
    stand.had.append(pickle.loads(stand.handles[0]))


def attach_alone(stand: Stand) -> None:
    """Load what nobody has."""
    del stand.kept[1]
    stand.had.append(pickle.loads(stand.handles.pop(1)))
    stand.had.append(pickle.dumps(stand.had[-1]))


def attach_stale(stand: Stand) -> None:
    """Load what is gone."""
    handle = pickle.dumps(stand.store.zeros(512))
    pickle.loads(handle)
    with contextlib.suppress(sa.ArrayNotFoundError):
        pickle.loads(handle)


def drop(stand: Stand) -> None:
    """Drop what nobody was offered."""
    array = stand.store.zeros(512)
    del array


def drop_known(stand: Stand) -> None:
    """Drop what others were offered."""
    del stand.kept[0], stand.handles[0]


def put_question(stand: Stand) -> None:
    """Ask who sees what was dropped."""
    ask(stand.store)


def trim(stand: Stand) -> None:
    """Give back."""
    stand.store.trim()


def unlink(stand: Stand) -> None:
    """Delete."""
    stand.kept[0][1].unlink()


def guard(stand: Stand) -> None:
    """Make a guard, and go in."""
    with stand.kept[0][1].write():
        pass


def after_fork(stand: Stand) -> None:
    """Go on after a fork: another seat."""
    assert reap(in_child(int)) == 0
    stand.had.append(stand.store.zeros(512))


DEEDS: tuple[Callable[[Stand], None], ...] = (
    *(make, make_slab, make_many, offer, attach, attach_alone, attach_stale, drop, drop_known, put_question, trim),
    *(unlink, guard, after_fork),
)
