"""Joining a store: for the first time, or again.

Owns: how this process comes to take part in a running store, and what it says where that cannot be.
Must not know: what a process does there.
"""

from __future__ import annotations

import os

from shmarray import absences, controls, exhaustion, leasing, membership, reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._os import flocks
from shmarray.errors import CorruptBlockError, StoreClosedError
from shmarray.membership import Membership

_before: dict[names.StoreKey, None] = {}
"""Stores that this process has joined: who joins one again may do so many times."""
_REMEMBERED = 64


def join(key: names.StoreKey) -> Membership:
    """Take part in a running store; the same `Membership` as long as something in this process uses it.

    Raises `StoreClosedError` when the store has ended, `CorruptBlockError` when its control file is not one.
    """
    return membership.joined(key) or _join(key)


def _back(key: names.StoreKey) -> Membership | None:
    """Take part again in a store from which this process was absent; None if there is none."""
    absence = absences.resume(key)
    if absence is None:
        return None
    member = _with(absence)
    if not member.leases:
        return None  # this is a child by now, forked in the midst by a signal handler
    if absence.idle is not None:
        member.idle = absence.idle
        member.idle.belong_to(member)
    member.seat = absence.seat
    return membership.entered(member)


def _with(absence: absences.Absence) -> Membership:
    member = Membership(absence.key, absence.control, absence.leases)
    absences.watch(member, absence)
    return member


def _take_part(key: names.StoreKey, control: layout.Control) -> Membership:
    """Take the leases, so that they can be let go of and taken again if this is not the first time. Raises `FileNotFoundError`."""
    if key in _before:
        try:
            member = _with(absences.Absence(key, control))
            if member.leases:  # else this is a child by now, as above
                return member
        except FileNotFoundError:
            raise
        except OSError:
            pass  # there is no descriptor to spare: it takes part all the same
    _before[key] = None
    while len(_before) > _REMEMBERED:
        _before.pop(next(iter(_before), key), None)
    return Membership(key, control, leasing.take_all(key, control))


@exhaustion.explaining
def _join(key: names.StoreKey) -> Membership:
    member = _back(key)
    if member is not None:
        return member
    absences.tidy()
    path = reaper.control_path(key)
    if key.uid != os.geteuid():
        raise CorruptBlockError(
            f"the store {key.store:016x} belongs to user {key.uid}, and this process runs as user {os.geteuid()}",
            remedy="A store is one user's: run both processes as the same user.",
            path=path,
            owner=key.uid,
        )
    try:
        fd = controls.open_file(path)
    except FileNotFoundError:
        raise _gone(key) from None
    try:
        control, state = controls.read_file(fd, path, key.uid)
        if state == layout.OPEN and not flocks.is_marked(fd, layout.OWNER_MARK):
            state = layout.DEAD
    finally:
        fd.close()
    if state != layout.OPEN:
        raise _gone(key, control.name, dead=state == layout.DEAD)
    try:
        member = _take_part(key, control)
    except FileNotFoundError:
        raise _gone(key, control.name) from None
    return membership.entered(member)


def _gone(key: names.StoreKey, name: str | None = None, *, dead: bool = False) -> StoreClosedError:
    label = repr(name) if name else f"{key.store:016x}"
    return StoreClosedError(
        f"the store {label} {'is gone: the process that opened it has died' if dead else 'is closed'}",
        remedy="Keep the store open for as long as its arrays travel; open a new one.",
        store=name or f"{key.store:016x}",
        dead=dead,
    )
