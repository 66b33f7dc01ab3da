"""What the kernel can do, tried out.

Owns: one small experiment for each thing that shmarray's promises rest on, made with the very functions that it uses,
on a file that has no name and goes by itself. Only the last step of publishing needs a name, which is removed at once.
Must not know: what is said when one fails.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
from typing import TYPE_CHECKING, NamedTuple

from shmarray._format import names
from shmarray._os import flocks, mutexes, processes, segments, watches

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray._format.names import StoreKey

_DEADLINE = 1000  # milliseconds for an event that has happened already
_still_locked: list[object] = []


class Outcome(NamedTuple):
    """How one experiment went; `missing` says what the kernel did not do, empty if it did all."""

    feature: str
    missing: str


class _Bench:
    """One file to try things out on."""

    def __init__(self, directory: str, key: StoreKey) -> None:
        self.directory = directory
        self.fallback = names.draft(key, os.urandom(8).hex())
        self.published = os.path.join(directory, names.draft(key, os.urandom(8).hex()))
        self.fd, self.temporary = segments.create_leased(directory, lambda: self.fallback)

    def again(self) -> segments.Descriptor:
        """Open the file once more, as another process would."""
        return segments.open_existing(self.temporary or self.published)

    def close(self) -> None:
        self.fd.close()
        segments.unlink(self.published)
        if self.temporary is not None:
            segments.unlink(self.temporary)


def _unnamed(bench: _Bench) -> str:
    return "" if bench.temporary is None else "files without a name (O_TMPFILE): a name is used instead"


def _reserve(bench: _Bench) -> str:
    segments.reserve(bench.fd, 0, segments.PAGE)
    reserved = segments.status(bench.fd).st_blocks * 512
    return "" if reserved >= segments.PAGE else f"memory reserved (posix_fallocate): only {reserved} bytes are"


def _publish(bench: _Bench) -> str:
    # A second link to the temporary name, if there is one: its removal comes at the end.
    if bench.temporary is None:
        segments.publish(bench.fd, bench.published)
    else:
        segments.link(bench.temporary, bench.published)
    return "" if segments.exists(bench.published) else "a file given its name in one step (linkat)"


def _lease(bench: _Bench) -> str:
    """Keep a lease and a mark by a mapping alone, and see them go with it."""
    segments.resize(bench.fd, segments.PAGE)
    marked = flocks.mark(bench.fd, 0)
    memory = segments.map_shared(bench.fd, segments.PAGE)
    bench.fd.close()
    while_mapped = _free(bench), _marked(bench)
    del memory
    after = _free(bench), _marked(bench)
    if not marked or while_mapped != (False, True):
        return "locks (flock, F_OFD_SETLK) that a mapping keeps when its descriptor is closed"
    return "" if after == (True, False) else "locks (flock, F_OFD_SETLK) that end with the mapping"


def _free(bench: _Bench) -> bool:
    fd = bench.again()
    try:
        return flocks.try_exclusive(fd)
    finally:
        fd.close()


def _marked(bench: _Bench) -> bool:
    fd = bench.again()
    try:
        return flocks.is_marked(fd, 0)
    finally:
        fd.close()


def _inotify(bench: _Bench) -> str:
    watch = watches.letting_go(bench.published)
    if watch is None:
        return "an inotify instance (fs.inotify.max_user_instances is used up?)"
    try:
        bench.again().close()
        return "" if _readable(watch) else "an event (inotify) when a file is let go of"
    finally:
        os.close(watch)


def _pidfd(bench: _Bench) -> str:
    del bench
    me = processes.me()
    watch = watches.death_of(me.pid, me.start)
    if watch is None:
        return "a descriptor (pidfd) of a living process"
    os.close(watch)
    return ""


def _mutex(bench: _Bench) -> str:
    """Let a thread end with a mutex held, and be told so by the kernel."""
    del bench
    if mutexes.NOT_ROBUST:
        return mutexes.NOT_ROBUST
    mutex = ctypes.create_string_buffer(mutexes.fresh_mutex(), mutexes.ROOM)
    address = ctypes.addressof(mutex)
    thread = threading.Thread(target=mutexes.mutex_trylock, args=(address,))
    thread.start()
    thread.join()
    code = mutexes.mutex_wait(address, _DEADLINE / 1000)
    if code == mutexes.OWNER_DIED:
        mutexes.mutex_consistent(address)
    if code in (mutexes.OWNER_DIED, mutexes.FREE):
        mutexes.mutex_unlock(address)
    else:
        _still_locked.append(mutex)  # the kernel may yet write to it
    return "" if code == mutexes.OWNER_DIED else "the kernel does not tell of the death of a holder"


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(_DEADLINE))


_EXPERIMENTS: tuple[tuple[str, Callable[[_Bench], str]], ...] = (
    ("O_TMPFILE", _unnamed),
    ("posix_fallocate", _reserve),
    ("linkat", _publish),
    ("flock kept by a mapping", _lease),
    ("inotify", _inotify),
    ("pidfd", _pidfd),
    ("robust mutex", _mutex),
)


def run(directory: str = segments.SHM_DIRECTORY) -> list[Outcome]:
    """Try all of it in `directory`, one after the other, on one file. Nothing stays; raises nothing."""
    outcomes = _run_once(directory)
    if any(outcome.missing for outcome in outcomes):
        # Someone may have swept away the file, which looks like the draft of a dead process; hardly twice.
        outcomes = _run_once(directory)
    return outcomes


def _run_once(directory: str) -> list[Outcome]:
    key = names.StoreKey(os.geteuid(), int.from_bytes(os.urandom(8), "little"))
    try:
        bench = _Bench(directory, key)
    except OSError as error:
        return [Outcome("O_TMPFILE", f"no file can be made in {directory}: {error.strerror}")]
    try:
        return [Outcome(feature, _attempt(experiment, bench)) for feature, experiment in _EXPERIMENTS]
    finally:
        bench.close()


def _attempt(experiment: Callable[[_Bench], str], bench: _Bench) -> str:
    try:
        return experiment(bench)
    except (OSError, TimeoutError) as error:
        return f"{error.strerror or error}"
