"""Who a process is, and what it maps.

Owns: the identity of a process, which a pid alone is not (pid + start time, in one pid namespace, in one boot), reading
`/proc`, and the hook that runs in a forked child.
Must not know: why anyone asks. Doubt means alive.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


_ENDED = ("Z", "X")
_FIELDS = 6  # of a line of /proc/PID/maps that names a file


class Identity(NamedTuple):
    """One process, for ever: `start` is its start time in clock ticks since boot, `namespace` its pid namespace."""

    pid: int
    start: int
    namespace: int


class MappedFile(NamedTuple):
    """One line of `/proc/PID/maps` that names a file."""

    device: int
    inode: int
    path: str


def _state(pid: int) -> tuple[str, int]:
    """State letter and start time of a process, from `/proc/PID/stat`; ("", 0) if it is not there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return "", 0
    return fields[0].decode(), int(fields[19])


def start_time(pid: int) -> int:
    """Clock ticks since boot at which `pid` started; 0 if it is not there."""
    return _state(pid)[1]


def pid_namespace() -> int:
    """Identity of the pid namespace of this process; 0 if the kernel does not say."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


_me: list[Identity] = []


def me() -> Identity:
    """Identity of this process; it never changes, but for a child that is forked off."""
    if not _me:
        pid = os.getpid()
        _me.append(Identity(pid, start_time(pid), pid_namespace()))
    return _me[0]


os.register_at_fork(after_in_child=_me.clear)


def boot_id() -> str:
    """Identity of this boot of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def is_provably_gone(identity: Identity) -> bool:
    """Say whether that process has certainly ended. A process of another pid namespace is never provably gone."""
    if identity.namespace != pid_namespace():
        return False
    try:
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    letter, now = _state(identity.pid)
    # One that has ended and was not waited for yet still has its pid, and nothing else.
    return (letter in _ENDED and not _has_threads(identity.pid)) or now not in (0, identity.start)


def _has_threads(pid: int) -> bool:
    """Whether threads of a process are left beside its first, which may end before them: they have all that it had."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False  # waited for meanwhile


def pids() -> list[int]:
    """All processes that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command(pid: int) -> str:
    """Command line of a process, words joined by spaces; empty if it is not there."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def mapped_files(pid: int, prefix: str) -> list[MappedFile]:
    """List the files below `prefix` that a process maps now, deleted ones included; empty if it may not be asked."""
    found = []
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if prefix not in line:
                    continue
                fields = line.rstrip("\n").split(maxsplit=5)
                if len(fields) == _FIELDS and fields[5].startswith(prefix):
                    major, minor = fields[3].split(":")
                    device = os.makedev(int(major, 16), int(minor, 16))
                    found.append(MappedFile(device, int(fields[4]), fields[5].removesuffix(" (deleted)")))
    except OSError:
        return []
    return found


def around_fork(before: Callable[[], object], after: Callable[[], object]) -> None:
    """Run `before` and `after` in this process around each fork by `os.fork` or `multiprocessing`; other threads go on in between."""
    os.register_at_fork(before=before, after_in_parent=after)


def after_fork_in_child(function: Callable[[], None]) -> None:
    """Run `function` in every child that `os.fork` or `multiprocessing` makes from now on."""
    os.register_at_fork(after_in_child=function)
