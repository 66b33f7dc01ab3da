"""Reading the control file of any store.

Owns: opening a control file, checking that it is one and this user's, and finding a running store by its name.
Must not know: taking part.
"""

from __future__ import annotations

import errno
import os

from shmarray import exhaustion, reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._format.header import DamagedError
from shmarray._os import flocks, segments
from shmarray.errors import CorruptBlockError, StoreNotFoundError

NOT_A_FILE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EISDIR)


def open_file(path: str, *, write: bool = False) -> segments.Descriptor:
    """Open a control file; raises `CorruptBlockError` for what is no file or may not be opened."""
    try:
        return segments.open_existing(path, write=write)
    except OSError as error:
        if error.errno not in NOT_A_FILE:
            raise
        raise _unusable(path, os.strerror(error.errno)) from None


def _unusable(path: str, reason: str) -> CorruptBlockError:
    return CorruptBlockError(
        f"{path} cannot be used: {reason}",
        remedy="Look at it with `python -m shmarray doctor`; remove the file yourself if you know what it is.",
        path=path,
    )


def read_file(fd: segments.Descriptor, path: str, uid: int) -> tuple[layout.Control, int]:
    """Read a control file; raises `CorruptBlockError` for what is none, or another user's."""
    info = segments.status(fd)
    try:
        if info.st_uid != uid or not segments.is_regular(info):
            message = f"it belongs to user {info.st_uid}, not {uid}"
            raise DamagedError(message)
        return layout.unpack(segments.read(fd, layout.SIZE + 1, 0))
    except DamagedError as error:
        raise _unusable(path, str(error)) from None


@exhaustion.explaining
def find(name: str) -> names.StoreKey:
    """Tell the identity of the running store of that name; raises `StoreNotFoundError`."""
    uid = os.geteuid()
    path = reaper.name_path(uid, name)
    try:
        fd = open_file(path)
    except FileNotFoundError:
        raise _no_store(name) from None
    try:
        control, state = read_file(fd, path, uid)
        if state != layout.OPEN or not flocks.is_marked(fd, layout.OWNER_MARK):
            raise _no_store(name)
    finally:
        fd.close()
    return names.StoreKey(uid, control.store)


def _no_store(name: str) -> StoreNotFoundError:
    return StoreNotFoundError(
        f"no store called {name!r} is running",
        remedy=f"Open it first with shmarray.Store({name!r}) as the same user; `python -m shmarray ls` shows what runs.",
        name=name,
    )
