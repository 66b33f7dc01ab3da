"""What the guardian watches, and what it does then.

Owns: the guardian's one loop. It is told by the kernel: of the owner's death by a pidfd, of every participant's by the end of
its lease on the control file. It looks as well from time to time, but what it removes it removes on proof (`reaper`).
The door for those who want a host is opened when it watches already.
Must not know: arrays, what a host serves.

It takes no part in the store itself: it holds no lease, so its own life keeps nothing alive.
"""

from __future__ import annotations

import contextlib
import select
import signal
import time
from typing import Any

from shmarray import reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._format.header import DamagedError
from shmarray._os import flocks, late, segments, watches, words

_LOOK = 5.0  # seconds between looks when nothing is reported; reports make it fast, looks make it sure
_LOOK_BLIND = 0.25  # the same where the kernel has no inotify left to report with
_REST = 0.05  # seconds between two sweeps at least, and
_SHARE = 20  # a sweep that takes t seconds of a processor is followed by at least 20 t of rest


class Guard:
    """One guardian at its store."""

    def __init__(self, path: str, uid: int, fd: segments.Descriptor, control: layout.Control) -> None:
        """Watch the control file open as `fd`."""
        self.path = path
        self.uid = uid
        self.fd = fd
        self.control = control
        self.key = names.StoreKey(uid, control.store)
        self.memory = segments.map_shared(fd, layout.SIZE)
        self.door: Any = None

    def state(self) -> int:
        """How the store stands."""
        return words.load(self.memory, layout.STATE_AT)

    def has_ended(self) -> bool:
        """Whether the store is closed or dead, and its control file gone: an open store goes on without, were it removed by hand."""
        return self.state() != layout.OPEN and segments.status(self.fd).st_nlink == 0

    def open_door(self) -> None:
        """Serve those who want a host. Only once it watches: this takes as long as all that a guardian does before."""
        if self.door is None:
            # With no descriptor or thread to be had there is no door for now, and the watch goes on; the next look tries again.
            with contextlib.suppress(OSError, RuntimeError):
                self.door = late.load("shmarray.guardian.server").Door(self.key, self.control.key)

    def shut_door(self) -> None:
        """End the host, which may take part in the store, and keeps it no longer."""
        if self.door is not None:
            self.door.keeper.end()

    def bury(self) -> None:
        """After the owner's death: no more arrays; every name goes, also that of the store."""
        if self.state() == layout.OPEN:
            words.store(self.memory, layout.STATE_AT, layout.DEAD)
        # Opened anew, so that the mark taken for it ends with it: this guardian's own descriptor stays open for long.
        try:
            fd = segments.open_existing(self.path)
        except FileNotFoundError:
            return
        try:
            reaper.release_name(fd, self.uid, self.control.name)
        finally:
            fd.close()

    def sweep(self) -> bool:
        """Remove what may be removed now; true when the store is gone and the guardian's work done."""
        if segments.status(self.fd).st_nlink == 0:
            # Finished by the last participant; or removed by hand, and then the owner's death still has to be waited for.
            if self.state() == layout.OPEN and flocks.is_marked(self.fd, layout.OWNER_MARK):
                return False
            reaper.remove_blocks(self.control.directory, self.key)
            return True
        if self.state() == layout.OPEN and not flocks.is_marked(self.fd, layout.OWNER_MARK):
            # The owner's process may go on while the owner has gone: it has called exec.
            self.bury()
        if self.state() == layout.OPEN:
            reaper.remove_unheld(self.control.directory, self.key)
            return False
        reaper.remove_blocks(self.control.directory, self.key)
        return self._is_deserted() and reaper.finish(self.path, self.uid).removed

    def _is_deserted(self) -> bool:
        """Ask through a read-only descriptor, whose closing is not reported back to this very guardian."""
        try:
            fd = segments.open_existing(self.path, write=False)
        except FileNotFoundError:
            return True
        try:
            return flocks.try_exclusive(fd)
        finally:
            fd.close()


def main(path: str, uid: int, pid: int, start: int) -> None:
    """Guard the store whose control file is `path` until it is gone; its owner is process `pid`, started at `start`.

    SIGINT, SIGTERM and SIGHUP are ignored already: see `__main__`.
    """
    try:
        fd = segments.open_existing(path)
    except OSError:
        return  # closed before we came up
    try:
        control, _ = layout.unpack(segments.read(fd, layout.SIZE + 1, 0))
    except DamagedError:
        return
    guard = Guard(path, uid, fd, control)
    flocks.mark(fd, layout.GUARDIAN_MARK)
    _watch(guard, pid, start)
    if guard.door is not None:
        guard.door.close()


def _watch(guard: Guard, pid: int, start: int) -> None:
    poll = select.poll()
    change = watches.letting_go(guard.path)
    if change is not None:
        poll.register(change, select.POLLIN)
    look = _LOOK_BLIND if change is None else _LOOK
    try:
        death = watches.death_of(pid, start)
    except OSError:
        death, look = None, _LOOK_BLIND  # no pidfd: the mark that the owner's mapping keeps has to do
    else:
        if death is None:
            guard.bury()
        else:
            poll.register(death, select.POLLIN)
    pause = look
    while True:
        # The processor's time and not the clock's: where others have the processor, or the machine stood still, a short sweep
        # takes long, and is no reason to leave the next end unseen for twenty times as long.
        began = time.thread_time()
        if guard.sweep():
            return
        rest = max(_REST, _SHARE * (time.thread_time() - began))
        if guard.state() == layout.OPEN:
            guard.open_door()
        else:
            guard.shut_door()
            # Only now, the blocks being gone: a SIGTERM to the whole group is meant for the owner and reaches us too.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The kernel reports just before it ends a lease, and those of one process one after the other: what a report is about
        # may still be held at the sweep that answers it. So after it come some looks, at growing distance.
        pause = min(look, max(rest, 2 * pause))
        reported = {number for number, _ in poll.poll(pause * 1000)}
        if death is None or death not in reported:
            if change not in reported or change is None:
                continue
            reported = _rest(guard, poll, change, rest)
            pause = 0.0
        if death in reported and death is not None:
            poll.unregister(death)
            guard.bury()


def _rest(guard: Guard, poll: select.poll, change: int, seconds: float) -> set[int]:
    """Let a burst of reports be answered by one sweep; the end of the owner or of the store waits for nothing."""
    watches.narrow(change, guard.fd.fileno(), to_links=True)
    watches.drain(change)
    reported = set() if guard.has_ended() else {number for number, _ in poll.poll(seconds * 1000)}
    watches.drain(change)
    watches.narrow(change, guard.fd.fileno(), to_links=False)
    return reported
