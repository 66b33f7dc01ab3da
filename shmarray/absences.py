"""Stores that this process has left and may come back to.

A worker that is sent an array, works on it and lets go of it, task after task, would join the store and leave it for each of them, and
lose with the last thing by which it took part what stays for the next one: idle mappings (`idling`), slabs (`slabmaps`), its seat in them
(`seats`), memory of its results (`recycling`). So a process that joins a store for the second time keeps the descriptor through which it
takes the lease; when it leaves again, it keeps its mapping of the control file too, and lets go of the lease. It is *absent* then: it takes
no part, it keeps no array and no guardian, and the store ends without it. To come back it takes the lease again, by the same descriptor,
and then looks whether the store is still open.

Owns: the leases of what is absent; that they are let go of only where nobody in this process can still rely on them.
Must not know: how one joins at first (`joining`), what the mappings are of that stay meanwhile.

Why it is safe: as in `idling`. The lease is let go of when the `Membership` is taken apart, if nobody refers to the mapping, and no fork
came while it was held. A store that has ended meanwhile says so in its control page, which is mapped; its file has no name then. A
SIGKILL leaves nothing.
"""

from __future__ import annotations

import atexit
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from shmarray import leasing, memories
from shmarray._format import control as layout
from shmarray._os import endings, flocks, processes, segments, words

if TYPE_CHECKING:
    from shmarray._format import names

_IS_UP = True  # first of the names that the interpreter's end takes away: from then on the kernel sees to what ends
MOST = 4
"""Stores from which a process is absent: each costs a descriptor."""


class Absence:
    """What one needs to come back: the leases, each with its descriptor, and what stays mapped; also while one takes part."""

    __slots__ = ("__weakref__", "control", "idle", "key", "leases", "memories", "recycler", "seat", "slabs")

    def __init__(self, key: names.StoreKey, control: layout.Control) -> None:
        """Take the leases of a process that joins. Raises `FileNotFoundError` when the store has ended."""
        self.key, self.control = key, control
        self.idle: Any = None
        self.seat: Any = None
        self.recycler: Any = None
        self.slabs: dict[int, Any] = {}
        taken = leasing.take_kept(key, control)
        self.leases = tuple(lease for lease, _ in taken)
        self.memories = [memory for _, memory in taken]
        _all[id(self)] = self

    def is_over(self) -> bool:
        """Whether the store has ended."""
        return not self.leases or words.load(self.leases[0], layout.STATE_AT) != layout.OPEN

    def has_crossed(self) -> bool:
        """Whether a child may have the same leases."""
        return any(one.has_crossed() for one in self.memories)

    def leave(self) -> bool:
        """Let go of the leases; false if that may not be, for others rely on them: then they end with their mappings."""
        kept = self.memories
        if memories.forking or self.is_over() or self.has_crossed() or _references(self) > _OURS:
            return False
        for one in kept:
            one.hold()  # from here on a fork in another thread leaves the descriptor alone; one before has closed it
        if not all(one.is_mine() for one in kept):
            return False
        for one in kept:
            flocks.unlock(one.fd)
            one.state = "idle"
        return True

    def forget(self) -> None:
        """Keep nothing."""
        for one in self.memories:
            one.close()  # before the mappings: their end looks whether they were the last that had the lease
        self.leases, self.memories, self.idle, self.seat = (), [], None, None
        self.slabs.clear()
        recycler, self.recycler = self.recycler, None
        if recycler is not None:
            recycler.close()

    def come_back(self) -> bool:
        """Take the leases again; false if the store has ended, or if that cannot be."""
        kept = self.memories
        if not all(one.take_lease_again() for one in kept):
            return False
        # The mark says that the owner's process is there: after its death the guardian may not have come to write it down yet.
        return not self.is_over() and flocks.is_marked(kept[0].fd, layout.OWNER_MARK)


class _Watch(weakref.ref[Any]):
    """A weak reference to the token of a `Membership` (`shields`), whose end is noted by a call into C and then seen to."""

    __slots__ = ("absence", "then")

    absence: Absence | None
    then: weakref.ref[Any]


_all: weakref.WeakValueDictionary[int, Absence] = weakref.WeakValueDictionary()
_pins: dict[int, _Watch] = {}
_absent: dict[names.StoreKey, Absence] = {}
_ended: deque[weakref.ref[Any]] = deque()
_at_exit: list[bool] = []  # not empty from then on: what is kept would end when our modules have gone


def _references(absence: Absence) -> int:
    """Count who refers to a lease, to the one to which most do. In one call into C: what another thread has in hand stays in a child."""
    return max(map(sys.getrefcount, absence.leases), default=0)


class _Alone:
    """As an absence has its leases, when the membership has none any more: what it held went before its token."""

    leases = (object(),)


_OURS = _references(_Alone)  # type: ignore[arg-type]


def watch(member: Any, absence: Absence) -> None:
    """Be told when a `Membership` ends that holds these leases, and has just begun."""
    member.absence, token = absence, member.token
    # What is registered last is called first: a call into C, which no signal handler's exception can come before.
    then = weakref.ref(token, _callbacks.give())
    noted = _Watch(token, _ended.append)
    noted.then, noted.absence = then, absence
    _pins[id(noted)] = noted


def settle() -> None:
    """See to all memberships that have ended. At any moment, in any thread: never raises, never waits."""
    if _IS_UP:
        endings.drain(_ended, _left)


_callbacks = endings.Callbacks(settle)


def _left(watch: weakref.ref[Any]) -> None:
    _pins.pop(id(watch), None)
    if not isinstance(watch, _Watch) or watch.absence is None:
        return
    absence, watch.absence = watch.absence, None
    try:
        left = absence.leave() and not _at_exit
    except (OSError, ValueError):
        left = False  # a descriptor was closed
    if left:
        _forget_absent(absence.key)
        _absent[absence.key] = absence
        # Last: a handler of this thread may have forked meanwhile, and given a child the same description; a later fork finds it there.
        left = not absence.has_crossed()
    if not left:
        _forget_absent(absence.key)
        absence.forget()
    tidy()


def _forget_absent(key: names.StoreKey) -> None:
    """Come back to that store no more."""
    absence = _absent.pop(key, None)
    if absence is not None:
        absence.forget()


def tidy() -> None:
    """Keep nothing of stores that have ended, nor of more than a few."""
    for key in list(_absent):
        known = _absent.get(key)
        if known is not None and (known.is_over() or len(_absent) > MOST):
            _forget_absent(key)


def resume(key: names.StoreKey) -> Absence | None:
    """Come back to a store from which this process is absent; None if it is not, or if that cannot be."""
    absence = _absent.pop(key, None)
    if absence is None:
        return None
    try:
        if absence.come_back():
            return absence
    except (OSError, ValueError):
        pass  # a descriptor was closed
    absence.forget()
    return None


def drop_all() -> bool:
    """Come back to none, where there is no descriptor or no room, and keep no slab for later; says whether there was any."""
    there = bool(_absent)
    for key in list(_absent):
        _forget_absent(key)
    for noted in list(_pins.values()):
        if (absence := noted.absence) is not None and absence.slabs:
            absence.slabs.clear()
            there = True
    return there


def _exit() -> None:
    _at_exit.append(True)
    for key in list(_absent):
        _forget_absent(key)


def _forget() -> None:
    """In a forked child: what was absent, and what may be, is the parent's. It takes leases of its own (`membership`)."""
    _absent.clear()
    for absence in endings.living(_all):
        absence.forget()  # also what another thread was about to leave or to come back by: it does not go on here


processes.after_fork_in_child(_forget)
segments.relieved_by(drop_all)
atexit.register(_exit)
