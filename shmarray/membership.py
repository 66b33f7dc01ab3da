"""Taking part in a store.

Owns: the control file of a store while this process takes part in it: leaving, closing; which stores this process takes part in. It does so
exactly as long as it holds the lease (see `leasing`).
Must not know: blocks; how one joins (`joining`).

A forked child gets a lease of its own before it runs any of its code, so that parent and child live and die separately.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Any, NamedTuple

from shmarray import exhaustion, leasing, reaper, shields
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._os import flocks, processes, segments, words
from shmarray.errors import StoreClosedError, StoreFullError

_load = words.WORD_FORMAT.unpack_from
_NOTHING = dict[str, str]().clear  # a call into C that does nothing
_joined: weakref.WeakValueDictionary[names.StoreKey, Membership] = weakref.WeakValueDictionary()
# The same by the store's number, for the way to a first attach: no call of Python's on it.
_near: dict[int, weakref.ref[Membership]] = {}


class Places(NamedTuple):
    """Places that processes take in tables of a store: the first of their marks, where their epochs are, and their number."""

    mark: int
    epochs_at: int
    number: int


READERS = Places(layout.SLOT_MARK, layout.EPOCHS_AT, layout.SLOTS)
"""Places in the tables of readers of guards."""


class Section:
    """One thread's stay in a critical section; it ends with `close()`, which is a call into C, or with this object."""

    __slots__ = ("__weakref__", "close", "fd")

    def __init__(self, fd: segments.Descriptor | None) -> None:
        """Hold the descriptor with the lock; None inside a section of the same thread, where there is nothing to close."""
        self.fd = fd
        self.close = _NOTHING if fd is None else fd.close


class Membership:
    """This process's part in one store. Lives as long as anything in this process uses the store."""

    def __init__(
        self, key: names.StoreKey, control: layout.Control, leases: tuple[segments.Segment, ...], founder: int = 0
    ) -> None:
        """Take over the leases: that of the control file, then that of the claim, if any; `founder` is the owner's pid."""
        self.key = key
        self.control = control
        self.founder = founder
        self._hold(leases)
        self.pool: Any = None  # the memory that the owner keeps warm, see `warm`
        self.recycler: Any = None  # the memory that another process keeps warm, see `recycling`
        self.idle: Any = None  # what stays mapped here though nobody looks at it, see `idling`
        self.absence: Any = None  # by what it comes back when it has left, see `absences`
        self.seat: Any = None  # this process's place in the tables of slabs, see `seats`
        self._slot: tuple[int, int, segments.Segment] | None = None
        self._slot_lock = threading.RLock()
        self._inside: weakref.WeakValueDictionary[tuple[int, int], Section] = weakref.WeakValueDictionary()
        self.block_prefix = os.path.join(control.directory, key.prefix)
        self.token = shields.token()  # last, for so it ends last: see `absences`

    def _hold(self, leases: tuple[segments.Segment, ...]) -> None:
        """Take over leases; those before end with their last user. The last look at them must not come while a mapping is still there."""
        self.leases = leases
        self._shields = [shields.over(lease) for lease in leases]

    @property
    def is_owner(self) -> bool:
        """Whether this process is the one that opened the store."""
        return self.founder == os.getpid()

    @property
    def label(self) -> str:
        """What messages call the store."""
        return f"the store {self.control.name!r}" if self.control.name else f"the store {self.key.store:016x}"

    def state(self) -> int:
        """How the store stands: `OPEN`, `CLOSED`, `DEAD`."""
        leases = self.leases
        return words.load(leases[0], layout.STATE_AT) if leases else layout.CLOSED

    def is_open(self) -> bool:
        """Whether arrays can be made and attached."""
        leases = self.leases
        return bool(leases and _load(leases[0], layout.STATE_AT)[0] == layout.OPEN)

    def require_open(self) -> segments.Segment:
        """Return the mapped control file of an open store; hold it as long as something is being done to the store.

        Raises `StoreClosedError` when the store was closed or its owner died.
        """
        leases = self.leases
        if leases and _load(leases[0], layout.STATE_AT)[0] == layout.OPEN:
            return leases[0]
        raise self.closed_error()

    def closed_error(self) -> StoreClosedError:
        """Describe why nothing can be done with the store any more."""
        dead = self.state() == layout.DEAD
        reason = "is gone: the process that opened it has died" if dead else "is closed"
        return StoreClosedError(
            f"{self.label} {reason}",
            remedy="Open a new store; arrays already attached stay valid until you drop them.",
            store=self.control.name or f"{self.key.store:016x}",
            owner=self.control.owner[0],
            dead=dead,
        )

    def note_guardian(self, pid: int) -> None:
        """Write down who guards the store, for people to see."""
        leases = self.leases
        if leases:
            words.store(leases[0], layout.GUARDIAN_AT, pid)

    def open_control(self) -> segments.Descriptor:
        """Open the control file anew, for a kernel lock; the caller closes it."""
        with exhaustion.explained(self.control.directory, 0):
            try:
                return segments.open_existing(reaper.control_path(self.key))
            except FileNotFoundError:
                raise self.closed_error() from None

    def exclusively(self, mark: int) -> Section:
        """Enter a critical section of the whole store; the caller leaves it by `close()`. Death leaves it too.

        A thread inside gets in again: a finalizer or signal handler that runs there must not wait for its own thread.
        """
        me = (threading.get_ident(), mark)
        outer = self._inside.get(me)
        if outer is not None and outer.fd is not None and not outer.fd.closed:
            flocks.wait_mark(outer.fd, mark)
            return Section(None)  # the outer one's own description does not stand in its own way
        fd = self.open_control()
        section = self._inside[me] = Section(fd)
        try:
            flocks.wait_mark(fd, mark)
        except BaseException:
            section.close()
            raise
        return section

    def changing(self) -> Section:
        """Enter the critical section in which names come to lead elsewhere, and let all see that they may; see `changed`."""
        section = self.exclusively(layout.CHANGE_MARK)
        leases = self.leases
        if leases:
            # Odd from here on. Where the last one died inside, it was odd before.
            words.store(leases[0], layout.CHANGES_AT, (words.load(leases[0], layout.CHANGES_AT) | 1) + 2)
        return section

    def changed(self, section: Section) -> None:
        """Leave that section. Who had looked before looks again; should this process die before, everyone looks each time."""
        leases = self.leases
        if leases and section.fd is not None:  # inside another section of the same thread, that one is not over
            words.store(leases[0], layout.CHANGES_AT, words.load(leases[0], layout.CHANGES_AT) + 1)
        section.close()

    def reader_slot(self) -> tuple[int, int] | None:
        """Give this process's slot in the tables of readers and the slot's epoch; None if all slots are taken.

        The kernel vouches for it: a mark on the control file, kept by a mapping, says that the slot's process is alive.
        Raises `StoreClosedError`.
        """
        with self._slot_lock:
            if self._slot is None:
                taken = self.take_place(READERS)
                # A finalizer or signal handler of this thread may have come here meanwhile: what it was told stands.
                if self._slot is None:
                    self._slot = taken
            return None if self._slot is None else self._slot[:2]

    def take_place(self, places: Places) -> tuple[int, int, segments.Segment] | None:
        """Take a free place for this process: which, its epoch, and the mapping that keeps it; None if all are taken."""
        fd = self.open_control()
        try:
            start = os.getpid()
            for step in range(places.number):
                place = (start + step) % places.number
                if flocks.mark(fd, places.mark + place):
                    memory = segments.map_shared(fd, layout.SIZE)
                    at = places.epochs_at + place * words.WORD
                    epoch = words.load(memory, at) + 1
                    words.store(memory, at, epoch)
                    return place, epoch, memory
            return None
        finally:
            fd.close()

    def slots_alive(self, wanted: list[int]) -> dict[int, int]:
        """Tell which of these slots belong to a living process, and their epochs. Raises `StoreClosedError`."""
        return self.places_alive(READERS, wanted)

    def places_alive(self, places: Places, wanted: list[int]) -> dict[int, int]:
        """Tell which of these places belong to a living process, and their epochs. Raises `StoreClosedError`."""
        fd = self.open_control()
        try:
            page = segments.read(fd, layout.SIZE, 0)
            alive = [place for place in wanted if flocks.is_marked(fd, places.mark + place)]
        finally:
            fd.close()
        at = places.epochs_at
        return {place: int.from_bytes(page[at + 8 * place : at + 8 * place + 8], "little") for place in alive}

    def close(self) -> None:
        """End the store, as its owner: no more arrays, every block unlinked. Views stay valid. May be repeated, and interrupted.

        The order matters: whoever publishes looks at the mark after linking, so what this sweep misses they take back.
        """
        path = reaper.control_path(self.key)
        if not self.is_owner or not (self.leases or segments.exists(path)):
            return
        leases = self.leases
        if leases and words.load(leases[0], layout.STATE_AT) == layout.OPEN:
            words.store(leases[0], layout.STATE_AT, layout.CLOSED)
        del leases
        if self.pool is not None:
            self.pool.close()
        try:
            with exhaustion.explained(self.control.directory, 0):
                self._sweep()
        except StoreFullError:
            pass  # no descriptor to sweep with: the guardian is told by the lease's end, and sweeps
        finally:
            self.leave()
        with contextlib.suppress(OSError):
            if segments.exists(path):
                reaper.finish(path, self.key.uid)  # others take part in it; or an earlier close was interrupted

    def _sweep(self) -> None:
        try:
            fd = segments.open_existing(reaper.control_path(self.key))
        except FileNotFoundError:
            pass  # removed by hand; the blocks are ours all the same
        else:
            try:
                reaper.release_name(fd, self.key.uid, self.control.name)
            finally:
                fd.close()
        reaper.remove_blocks(self.control.directory, self.key)
        if not segments.exists(reaper.control_path(self.key)) and self.control.directory != segments.SHM_DIRECTORY:
            segments.unlink(reaper.claim_path(self.control.directory, self.key))

    def enter(self) -> None:
        """Be the one by which this process takes part."""
        _joined[self.key] = self
        _note_near(self)

    def leave(self) -> None:
        """Stop taking part; what this process has attached stays valid."""
        self._hold(())
        self._slot = self.idle = None
        if _joined.get(self.key) is self:
            del _joined[self.key]
            _near.pop(self.key.store, None)

    def rejoin(self) -> None:
        """In a forked child: take leases of its own, then drop the inherited ones, which are the parent's too."""
        # The slot is the parent's; the lock may be held by a thread that does not exist here.
        self._slot, self._slot_lock = None, threading.RLock()
        if not self.leases:
            return
        try:
            self._hold(leasing.take_all(self.key, self.control))
        except (OSError, TimeoutError):
            # The store has ended meanwhile, or there is no descriptor. The inherited lease, shared with the parent, stays:
            # that can only make the store seem alive for longer.
            return


def _rejoin_all() -> None:
    for membership in list(_joined.values()):
        membership.rejoin()


processes.after_fork_in_child(_rejoin_all)


def _note_near(membership: Membership) -> None:
    for number in list(_near):
        if (known := _near.get(number)) is not None and known() is None:
            _near.pop(number, None)
    _near[membership.key.store] = weakref.ref(membership)


def joined(key: names.StoreKey) -> Membership | None:
    """Give this process's part in a store that is open; None if it has none."""
    membership = _joined.get(key)
    return membership if membership is not None and membership.is_open() else None


def entered(membership: Membership) -> Membership:
    """Give that by which this process takes part: this one, unless another thread was faster."""
    membership = _joined.setdefault(membership.key, membership)
    _note_near(membership)
    return membership


def near(store: int) -> Membership | None:
    """Give this process's part in the store with that number, open or not; None if it has none."""
    known = _near.get(store)
    return None if known is None else known()
