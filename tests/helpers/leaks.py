"""What is left behind, as the kernel sees it from outside.

Owns: reading `/dev/shm`, `/proc/PID/maps`, `/proc/PID/fd` and the table of processes, and comparing two such looks.
Must not know: any counter or record of shmarray's own; what it says of itself is what is being tested.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import select
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SHM = "/dev/shm"
RUN = "SHMARRAY_TEST_RUN"
"""Environment variable that marks the processes which descend from one run of the tests."""

_SCRIPT = "shmarray/guardian/__main__.py"
_KERNEL_THREAD = 0x200000  # among the flags of a process
_not_ours: set[int] = set()
"""The kernel's threads, and processes older than this one, that were seen, and listed at every look since: they are not read again."""
_PARENT, _FLAGS, _BEGIN = 1, 6, 19  # fields of `stat`, counted behind the program's name
_PIECE = 1 << 16
_UNNAMED = re.compile(r"#\d+")  # what the kernel calls a file made without a name, even after it was given one
_STORE = re.compile(r"shmarray\.\d+\.[0-9a-f]{16}\.")
_HELPERS = ("from multiprocessing.forkserver import", "from multiprocessing.resource_tracker import")


class Mapping(NamedTuple):
    """One mapped range of a file; `path` is without the kernel's remark that the name is gone."""

    device: int
    inode: int
    path: str
    deleted: bool


class Guardian(NamedTuple):
    """A guardian process: its pid, the control file it was started for, and the pid of that store's owner."""

    pid: int
    control: str
    owner: int


def shm_entries(prefix: str = "shmarray.", directory: str | os.PathLike[str] = SHM) -> set[str]:
    """Names in a directory that start with `prefix`."""
    return {name for name in os.listdir(directory) if name.startswith(prefix)}


def mappings(pid: int | None = None, prefix: str = "shmarray.") -> list[Mapping]:
    """Mapped files of a process (this one by default) whose base name starts with `prefix`, removed ones included.

    Files made without a name count too, wherever they are: the kernel calls them `#INODE` for those who mapped them then.
    """
    found = []
    try:
        with open(f"/proc/{pid or 'self'}/maps", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line for line in file if prefix in line or "#" in line]
    except OSError:  # it ended, or is another user's
        return []
    for line in lines:
        fields = line.rstrip("\n").split(maxsplit=5)
        if len(fields) < 6:
            continue
        path = fields[5].removesuffix(" (deleted)")
        name = os.path.basename(path)
        if name.startswith(prefix) or _UNNAMED.fullmatch(name):
            major, minor = fields[3].split(":")
            device = os.makedev(int(major, 16), int(minor, 16))
            found.append(Mapping(device, int(fields[4]), path, path != fields[5]))
    return found


def descriptors(pid: int | None = None) -> dict[int, str]:
    """Open descriptors of a process (this one by default) and what each leads to."""
    place = f"/proc/{pid or 'self'}/fd"
    found = {}
    for name in _listing(place):
        try:
            found[int(name)] = os.readlink(f"{place}/{name}")
        except OSError:  # closed since: that of the listing itself
            continue
    return found


def _listing(place: str) -> list[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []


def pids() -> list[int]:
    """All processes that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_line(pid: int) -> list[str]:
    """Words of a process's command line; none if it has ended."""
    return [os.fsdecode(word) for word in _read(pid, "cmdline").split(b"\0")[:-1]]


def _read(pid: int, name: str) -> bytes:
    """What the kernel says of a process; nothing if it has ended. A look reads some hundred of these: by plain calls."""
    said = b""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return said
    try:
        while piece := os.read(fd, _PIECE):
            said += piece
            if len(piece) < _PIECE:  # the kernel gives all it has
                break
    except OSError:
        return b""
    finally:
        os.close(fd)
    return said


def guardians(among: Iterable[int] | None = None) -> list[Guardian]:
    """All guardian processes of this machine that have not ended, or those among some processes."""
    found = []
    for pid in pids() if among is None else among:
        words = command_line(pid)
        for position, word in enumerate(words):
            if word.endswith(_SCRIPT):
                control, _, owner = [*words[position + 1 :], "", "", "0"][:3]
                if owner.isdigit():  # or it is somebody's editor, with this file among others
                    found.append(Guardian(pid, control, int(owner)))
    return found


def parents() -> dict[int, int]:
    """Parent of each process that is no older than this one, so of all that can be below it."""
    found = {}
    listed = pids()
    _not_ours.intersection_update(listed)
    begin = int(_fields(os.getpid())[_BEGIN])
    for pid in listed:
        if pid in _not_ours:
            continue
        fields = _fields(pid)
        if not fields:
            continue
        if int(fields[_FLAGS]) & _KERNEL_THREAD or int(fields[_BEGIN]) < begin:
            _not_ours.add(pid)
        else:
            found[pid] = int(fields[_PARENT])
    return found


def _fields(pid: int) -> list[bytes]:
    """What `/proc/PID/stat` says behind the program's name; nothing if the process has ended."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def descendants(pid: int, table: dict[int, int] | None = None) -> set[int]:
    """All processes below `pid`, those that ended and were not reaped included; `table` is that of the parents."""
    table = parents() if table is None else table
    found: set[int] = set()
    layer = {pid}
    while layer:
        layer = {child for child, parent in table.items() if parent in layer} - found
        found |= layer
    return found


def is_ours(pid: int, table: dict[int, int] | None = None) -> bool:
    """Say whether a process belongs to this run of the tests: below it, in its process group, or marked by it."""
    mark = os.environ.get(RUN)
    if mark and f"{RUN}={mark}".encode() in _read(pid, "environ").split(b"\0"):
        return True
    try:
        if os.getpgid(pid) == os.getpgid(0):
            return True
    except ProcessLookupError:
        return False
    return pid == os.getpid() or pid in descendants(os.getpid(), table)


def foreign_stores(entries: set[str], directory: str = SHM) -> set[str]:
    """Those of `entries` whose store a process of some other run maps: another user of this machine is at work."""
    prefixes = {match[0] for entry in entries if (match := _STORE.match(entry))}
    owners: dict[tuple[int, int], str] = {}
    for prefix in prefixes:
        for name in shm_entries(prefix, directory):
            try:
                info = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            owners[info.st_dev, info.st_ino] = prefix
    foreign = set()
    for pid in pids() if owners else []:
        held = {owners[key] for mapping in mappings(pid) if (key := (mapping.device, mapping.inode)) in owners}
        if held and not is_ours(pid):
            foreign |= held
    return {entry for entry in entries if entry.startswith(tuple(foreign))} if foreign else set()


@dataclass(frozen=True)
class Look:
    """What is there at one moment that a test could leave behind."""

    entries: frozenset[str]
    mapped: Counter[Mapping]
    open: frozenset[tuple[int, str]]
    processes: frozenset[int]

    @classmethod
    def now(cls) -> Look:
        """Look, after reaping the children of multiprocessing that have ended."""
        multiprocessing.active_children()
        table = parents()
        below = descendants(os.getpid(), table) - _standing_helpers(table)
        watching = {guardian.pid for guardian in guardians(table) if is_ours(guardian.pid, table)}
        return cls(
            frozenset(shm_entries()),
            Counter(mappings()),
            frozenset(descriptors().items()),
            frozenset(below | watching),
        )

    def ending_since(self, before: Look) -> frozenset[Guardian]:
        """Guardians that were not there before and whose store is gone: they have nothing left to do but to end."""
        begun = guardians(self.processes - before.processes)
        return frozenset(guardian for guardian in begun if not os.path.exists(guardian.control))

    def leaked_since(self, before: Look, excused: Iterable[Guardian] = ()) -> list[str]:
        """What is here and was not there before, one line for each; what other runs on this machine own is left out."""
        entries = set(self.entries - before.entries)
        entries -= foreign_stores(entries)
        lines = [f"name {SHM}/{entry}" for entry in sorted(entries)]
        lines += [f"mapping of {mapping.path} (x{n})" for mapping, n in sorted((self.mapped - before.mapped).items())]
        lines += [f"descriptor {fd} -> {target}" for fd, target in sorted(self.open - before.open)]
        for pid in sorted(self.processes - before.processes - {guardian.pid for guardian in excused}):
            words = " ".join(command_line(pid)) or "(ended, not reaped)"
            lines.append(f"process {pid}: {words}")
        return lines


def _standing_helpers(table: dict[int, int]) -> set[int]:
    """The two processes that multiprocessing keeps for the whole run; what these start is no helper."""
    children = [pid for pid, parent in table.items() if parent == os.getpid()]
    return {pid for pid in children if any(helper in word for word in command_line(pid) for helper in _HELPERS)}


def wait_for_an_end(processes: Iterable[int], seconds: float) -> None:
    """Wait until one of these processes has ended, or so long."""
    watching = select.poll()
    with contextlib.ExitStack() as opened:
        for pid in processes:
            try:
                watch = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            opened.callback(os.close, watch)
            watching.register(watch, select.POLLIN)
        watching.poll(seconds * 1000)
