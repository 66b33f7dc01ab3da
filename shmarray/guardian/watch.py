"""What the guardian watches, and what it does then.

Owns: the guardian's one loop. It is told by the kernel: of the owner's death by a pidfd, of every participant's by the end of
its lease on the control file. It looks as well from time to time, but what it removes it removes on proof (`reaper`).
Must not know: arrays, what a host serves.

It takes no part in the store itself: it holds no lease, so its own life keeps nothing alive.
"""

from __future__ import annotations

import select
import signal
import time

from shmarray import reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._format.header import DamagedError
from shmarray._os import flocks, segments, watches, words
from shmarray.guardian import server
from shmarray.guardian.keeper import Keeper

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

    def state(self) -> int:
        """How the store stands."""
        return words.load(self.memory, layout.STATE_AT)

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
    keeper = Keeper(control.key)
    door = None
    if guard.state() == layout.OPEN:
        door = server.GuardianServer(server.address(guard.key), bytes.fromhex(control.key), keeper)
    _watch(guard, keeper, pid, start)
    keeper.end()
    keeper.join()
    if door is not None:
        door.listener.close()


def _watch(guard: Guard, keeper: Keeper, pid: int, start: int) -> None:
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
        if guard.state() != layout.OPEN:
            keeper.end()  # which may take part in the store, and keeps it no longer
            # Only now, the blocks being gone: a SIGTERM to the whole group is meant for the owner and reaches us too.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        rest = max(_REST, _SHARE * (time.thread_time() - began))
        # The kernel reports just before it ends a lease, and those of one process one after the other: what a report is about
        # may still be held at the sweep that answers it. So after it come some looks, at growing distance.
        pause = min(look, max(rest, 2 * pause))
        reported = {number for number, _ in poll.poll(pause * 1000)}
        if death is None or death not in reported:
            # Reports that come in a burst are answered by one sweep; the owner's death waits for nothing.
            if change not in reported or change is None:
                continue
            poll.unregister(change)
            reported = {number for number, _ in poll.poll(rest * 1000)}
            watches.drain(change)
            poll.register(change, select.POLLIN)
            pause = 0.0
        if death in reported and death is not None:
            poll.unregister(death)
            guard.bury()
