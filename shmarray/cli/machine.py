"""What this machine allows, and what it does to shared memory behind one's back.

Owns: reading settings of the system: systemd-logind's `RemoveIPC`, inotify, containers.
Must not know: what is good or bad.

Every function takes the root of the file system, so that tests can show it another machine.
"""

from __future__ import annotations

import configparser
import os
from typing import NamedTuple

_PLACES = ("etc", "run", "usr/local/lib", "usr/lib", "lib")  # of systemd's configuration, the strongest first
_TRUE = frozenset({"yes", "y", "true", "t", "on", "1"})
_MARKS = {"docker": ".dockerenv", "podman": "run/.containerenv"}
_LOGIND = frozenset({"systemd-logind", "elogind-daemon"})
_LAST_SYSTEM_USER = 999


class RemoveIPC(NamedTuple):
    """Whether systemd-logind removes a user's shared memory when the last session of that user ends.

    `runs`: logind is there; `enabled`: its setting (on unless set otherwise), said by `source`; `exempt`: the user is a
    system user or lingers.
    """

    runs: bool
    enabled: bool
    source: str
    exempt: bool

    @property
    def is_risk(self) -> bool:
        """Whether logging out removes what this user has in shared memory."""
        return self.runs and self.enabled and not self.exempt


def remove_ipc(uid: int, user: str, root: str = "/") -> RemoveIPC:
    """Find out about `RemoveIPC` for a user, as logind itself reads it: one main file, and all drop-ins after it."""
    enabled, source = True, "the built-in default"
    for path in _logind_files(root):
        value = _setting(path)
        if value is not None:
            enabled, source = value, path
    lingers = os.path.exists(os.path.join(root, "var/lib/systemd/linger", user))
    return RemoveIPC(_runs(_LOGIND, root), enabled, source, lingers or uid <= _LAST_SYSTEM_USER)


def _runs(programs: frozenset[str], root: str) -> bool:
    for name in os.listdir(os.path.join(root, "proc")):
        if name.isdigit():
            try:
                with open(os.path.join(root, "proc", name, "comm"), encoding="utf-8", errors="replace") as file:
                    if file.read().strip() in programs:
                        return True
            except OSError:
                continue
    return False


def _logind_files(root: str) -> list[str]:
    bases = [os.path.join(root, place, "systemd/logind.conf") for place in _PLACES]
    mains = [path for path in bases if os.path.isfile(path)][:1]
    drops: dict[str, str] = {}
    for base in reversed(bases):  # of two drop-ins of one name the stronger place counts
        folder = f"{base}.d"
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if name.endswith(".conf"):
                drops[name] = os.path.join(folder, name)
    return mains + [drops[name] for name in sorted(drops)]


def _setting(path: str) -> bool | None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            parser.read_file(file)
        value = parser.get("Login", "RemoveIPC", fallback="")
    except (OSError, configparser.Error):
        return None
    return value.strip().lower() in _TRUE if value.strip() else None


def container(root: str = "/") -> str:
    """Say what kind of container this is; empty if none is seen."""
    for kind, mark in _MARKS.items():
        if os.path.exists(os.path.join(root, mark)):
            return kind
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    return os.environ.get("container", "")  # noqa: SIM112  set by systemd-nspawn and others, in this spelling


def inotify_limit(root: str = "/") -> int | None:
    """How many inotify instances one user may have; None if unknown."""
    try:
        with open(os.path.join(root, "proc/sys/fs/inotify/max_user_instances"), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def inotify_used(uid: int, root: str = "/proc") -> int:
    """How many inotify instances the processes of a user have, as far as they can be seen."""
    used = 0
    for name in os.listdir(root):
        place = os.path.join(root, name)
        try:
            if not name.isdigit() or os.stat(place).st_uid != uid:
                continue
            for entry in os.listdir(f"{place}/fd"):
                used += _target(f"{place}/fd/{entry}") == "anon_inode:inotify"
        except OSError:
            continue
    return used


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
