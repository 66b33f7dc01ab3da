"""Founding a store.

Owns: making a store's control file, its claim on a directory and its name, in the order that leaves nothing half-made whoever
dies: control file, claim, name. Each is complete and locked before it can be seen.
Must not know: blocks.
"""

from __future__ import annotations

import os
import time

from shmarray import absences, controls, exhaustion, leasing, reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._os import flocks, mutexes, processes, segments
from shmarray.errors import GuardError, StoreExistsError
from shmarray.membership import Membership


def found(
    name: str | None,
    directory: str,
    capacity: int | None,
    guard: str | None = None,
    small: int = 0,
    copy_threads: int | None = None,
    warm: int | None = None,
) -> Membership:
    """Open a store as its owner; first removes what dead stores of this user left.

    `guard` is the kind of its locks, None for the best that there is; `small` bounds the arrays that share files,
    `copy_threads` the threads that share a copy, `warm` the bytes of freed memory that are kept.
    Raises `StoreExistsError` when a store of that name is alive, `StoreFullError`,
    `GuardError` where there are no locks of that kind.
    """
    kind = _guard_kind(guard)
    uid = os.geteuid()
    absences.tidy()
    reaper.collect(uid, directory)
    key = names.StoreKey(uid, int.from_bytes(os.urandom(8), "little"))
    control = layout.Control(
        store=key.store,
        name=name,
        directory=directory,
        capacity=capacity,
        owner=processes.me(),
        boot=processes.boot_id(),
        born=time.time_ns(),
        key=os.urandom(16).hex(),
        guard=kind,
        small=small,
        copy_threads=copy_threads,
        warm=warm,
    )
    path = reaper.control_path(key)
    leases: list[segments.Segment] = []
    try:
        leases.append(_make(segments.SHM_DIRECTORY, key, layout.pack(control), path, uid, owner=True))
        if directory != segments.SHM_DIRECTORY:
            claim = reaper.claim_path(directory, key)
            leases.append(_make(directory, key, bytes(leasing.CLAIM_SIZE), claim, uid, owner=False))
        if name is not None:
            _claim_name(path, uid, name)
        member = Membership(key, control, tuple(leases), founder=os.getpid())
    except BaseException:
        leases.clear()  # the traceback keeps this frame: what was founded ends now and not with the exception
        raise
    member.enter()
    return member


def _guard_kind(wanted: str | None) -> str:
    """Choose the kind of locks: robust ones where the system has them, unless others are wanted."""
    if wanted == "robust" and mutexes.NOT_ROBUST:
        raise GuardError(
            f"no robust mutexes here ({mutexes.NOT_ROBUST}): no lock can survive the death of its holder",
            remedy="Leave guard= out, or say guard='multiprocessing': plain locks, which stay taken when their holder is killed.",
            guard=wanted,
        )
    return wanted or ("multiprocessing" if mutexes.NOT_ROBUST else "robust")


def _make(directory: str, key: names.StoreKey, content: bytes, path: str, uid: int, *, owner: bool) -> segments.Segment:
    """Make a control file or claim that is complete and locked before it has a name. Raises `StoreFullError`."""
    with exhaustion.explained(directory, len(content)):
        fd, temporary = segments.create_leased(directory, lambda: names.draft(key, os.urandom(8).hex()))
        try:
            if owner:
                flocks.mark(fd, layout.OWNER_MARK)
            segments.write(fd, content, 0)
            segment = leasing.lease(fd, len(content), path if owner else "", uid)
            segments.publish(fd, path, temporary)
        except BaseException:
            if temporary is not None:
                segments.unlink(temporary)
            raise
        finally:
            fd.close()
        return segment


def _claim_name(path: str, uid: int, name: str) -> None:
    """Give the control file its second link; takes the name over from a store that is closed or dead."""
    wanted = reaper.name_path(uid, name)
    while True:
        try:
            segments.link(path, wanted)
        except FileExistsError:
            _free_name(wanted, uid, name)
        else:
            return


def _free_name(wanted: str, uid: int, name: str) -> None:
    """Take the name from a store that is dead, or in which there are still processes but no owner; raise if it has one."""
    try:
        fd = controls.open_file(wanted, write=True)
    except FileNotFoundError:
        return
    try:
        control, state = controls.read_file(fd, wanted, uid)
        if reaper.finish(wanted, uid).removed:
            return
        if state == layout.OPEN and flocks.is_marked(fd, layout.OWNER_MARK):
            here = control.owner == processes.me()
            raise StoreExistsError(
                f"a store called {name!r} is open in {'this process' if here else f'process {control.owner[0]}'}",
                remedy=f"{'Close it first, join' if here else 'Join'} it with shmarray.connect({name!r}), or choose another name.",
                name=name,
                owner=control.owner[0],
            )
        flocks.wait_mark(fd, layout.NAME_MARK)
        reaper.release_name(fd, uid, name)
    finally:
        fd.close()
