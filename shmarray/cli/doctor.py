"""`doctor`: whether this machine is fit for shmarray, and whether anything is in disorder.

Owns: what is looked at, what is good, bad or dangerous about it, and the remedy.
Must not know: how facts are found out (`machine`, `probes`, `inspection`, `limits`).

Levels: ok; note (good to know); warning (it can go wrong); problem (it is wrong now). Only a problem makes the exit code 1.
"""

from __future__ import annotations

import os
import pwd
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from shmarray import inspection
from shmarray._os import limits, segments
from shmarray.cli import gc, ls, machine, probes, table
from shmarray.cli.answers import FINE, FOUND, Answer, as_json
from shmarray.cli.table import Screen, count
from shmarray.exhaustion import size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from shmarray.inspection import Block, Store, Survey

SUMMARY = "check this machine and what lies in its shared memory"
OK, NOTE, WARNING, PROBLEM = "ok", "note", "warning", "problem"
_LEVELS = (OK, NOTE, WARNING, PROBLEM)
_SHM = segments.SHM_DIRECTORY
_SMALL = 256 << 20  # bytes; what containers give by default is a quarter of it
_LONG_WAIT = 60.0  # seconds that one may have exclusive access while others wait, before it is told
_FEW_DESCRIPTORS = 256
_FEW_MAPPINGS = 65_530  # the kernel's own default
_ENLARGE = "docker run --shm-size=2g, or mount -o remount,size=2g /dev/shm; or use Store(directory=...)"
_ESSENTIAL = frozenset({"posix_fallocate", "linkat", "flock kept by a mapping"})
_WITHOUT = {
    "O_TMPFILE": "Nothing to do; a SIGKILL while an array is made leaves a draft, which the guardian or gc removes.",
    "posix_fallocate": "Put stores elsewhere with Store(directory=...): here a full file system ends processes by SIGBUS.",
    "linkat": "Mount /proc, and use a kernel and a file system that have hard links; arrays cannot be published here.",
    "flock kept by a mapping": "Do not use shmarray here: it could not tell the living from the dead.",
    "inotify": "Raise it: sysctl fs.inotify.max_user_instances=512. Until then guardians look 4 times a second.",
    "pidfd": "Use Linux 5.3 or later; until then a guardian notices the death of its owner within 0.25 s.",
    "robust mutex": "Make anew what a killed process had locked: its lock stays taken here. glibc and musl have robust mutexes.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `id` is stable, `facts` are its numbers, `remedy` is empty where none is needed."""

    id: str
    level: str
    text: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which arguments `doctor` takes."""
    parser.add_argument("--json", action="store_true", help="write JSON for programs")


def run(options: argparse.Namespace, where: Screen) -> Answer:
    """Examine."""
    findings = examine()
    worst = max((finding.level for finding in findings), key=_LEVELS.index)
    code = FOUND if worst == PROBLEM else FINE
    if options.json:
        return Answer(as_json("doctor", {"worst": worst, "findings": [asdict(finding) for finding in findings]}), code)
    text = []
    for finding in findings:
        text.append(table.wrap(finding.text, where, f"{finding.level:<9}", " " * 9))
        if finding.remedy:
            text.append(table.wrap(finding.remedy, where, f"{'':9}-> ", " " * 12))
    counts = [f"{count(sum(finding.level == level for finding in findings), level)}" for level in _LEVELS[1:]]
    return Answer("".join(text) + f"{', '.join(counts)}\n", code)


def examine() -> list[Finding]:
    """Look at everything, in the order in which it is told."""
    findings = [*_memory(), *_process_limits(), *_inotify(), _removal(), *_kernel(), _interpreter()]
    return findings + list(_order(inspection.survey()))


def _memory() -> Iterator[Finding]:
    if not os.path.isdir(_SHM):
        yield Finding("shared-memory", PROBLEM, f"there is no {_SHM}", "mount -t tmpfs tmpfs /dev/shm")
        return
    space, system = limits.space(_SHM), limits.file_system(_SHM)
    facts = {"total": space.total, "free": space.free, "file_system": system, "container": machine.container()}
    place = f" ({facts['container']})" if facts["container"] else ""
    text = f"{_SHM}{place}: {size_text(space.total)}, {size_text(space.free)} free, {system or 'unknown file system'}"
    if system not in ("tmpfs", "ramfs"):
        yield Finding("shared-memory", WARNING, f"{text}: that is no memory", "mount -t tmpfs tmpfs /dev/shm", facts)
    elif space.free < space.total // 100 or not space.files:
        remedy = f"See `python -m shmarray ls` for who holds it, run gc; or enlarge it: {_ENLARGE}"
        yield Finding("shared-memory", PROBLEM, f"{text}: it is full", remedy, facts)
    elif space.free < space.total // 10:
        remedy = f"See `python -m shmarray ls` for who holds it; or enlarge it: {_ENLARGE}"
        yield Finding("shared-memory", WARNING, f"{text}: it is nearly full", remedy, facts)
    elif space.total < _SMALL:
        yield Finding("shared-memory", WARNING, f"{text}: it is small", f"Enlarge it: {_ENLARGE}", facts)
    else:
        yield Finding("shared-memory", OK, text, facts=facts)
    limit, left = limits.memory_limit(), limits.memory_left()
    facts = {"limit": limit, "left": left}
    if limit is None:
        yield Finding("memory-limit", OK, "no memory limit of a control group is seen", facts=facts)
        return
    known = "" if left is None else f", {size_text(left)} left"
    text = f"the control group of this process may use {size_text(limit)}{known}; shared memory counts"
    remedy = "A store larger than that ends in a kill, not in an error: raise the limit, or use Store(directory=...)."
    scarce = left is not None and left < limit // 10
    if scarce or limit < space.total:
        yield Finding("memory-limit", WARNING if scarce else NOTE, text, remedy, facts)
    else:
        yield Finding("memory-limit", OK, text, facts=facts)


def _process_limits() -> Iterator[Finding]:
    soft, hard = limits.descriptors()
    text = f"a process may open {soft:,} files; arrays hold none of them, only their making takes one for a moment"
    few = soft < _FEW_DESCRIPTORS
    remedy = f"Raise it: ulimit -n {min(4096, hard)}" if few else ""
    yield Finding("descriptors", WARNING if few else OK, text, remedy, {"soft": soft, "hard": hard})
    most = limits.mappings()
    few = 0 < most < _FEW_MAPPINGS
    text = f"a process may map {most:,} blocks at once (vm.max_map_count)" if most else "vm.max_map_count is not known"
    remedy = (
        "Raise it: sysctl vm.max_map_count=262144; or put small arrays together with store.put({...})" if few else ""
    )
    yield Finding("mappings", WARNING if few else OK, text, remedy, {"limit": most})


def _inotify() -> Iterator[Finding]:
    most, used = machine.inotify_limit(), machine.inotify_used(os.geteuid())
    facts = {"limit": most, "used": used}
    if most is None:
        yield Finding("inotify-limit", NOTE, "the limit of inotify instances is not known", facts=facts)
        return
    text = f"{used:,} of {most:,} inotify instances are in use; the guardian of a store takes one"
    scarce = used >= most - most // 10
    yield Finding("inotify-limit", WARNING if scarce else OK, text, _WITHOUT["inotify"] if scarce else "", facts)


def _removal() -> Finding:
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    found = machine.remove_ipc(uid, user)
    facts = {**found._asdict(), "user": user}
    if found.is_risk:
        text = (
            f"systemd-logind removes all shared memory of {user} when the last session of {user} ends (RemoveIPC, by "
            f"{found.source}): a store under nohup, tmux or cron loses its arrays then"
        )
        remedy = (
            f"loginctl enable-linger {user}; or RemoveIPC=no in /etc/systemd/logind.conf; or use Store(directory=...)"
        )
        return Finding("remove-ipc", WARNING, text, remedy, facts)
    if not found.runs:
        return Finding("remove-ipc", OK, "no systemd-logind that could remove shared memory at logout", facts=facts)
    reason = f"RemoveIPC is off, by {found.source}" if not found.enabled else f"{user} is a system user or lingers"
    return Finding("remove-ipc", OK, f"systemd-logind leaves the shared memory of {user} alone: {reason}", facts=facts)


def _kernel() -> Iterator[Finding]:
    outcomes = probes.run()
    works = [outcome.feature for outcome in outcomes if not outcome.missing]
    if works:
        text = f"the kernel does what is needed, as tried out in {_SHM}: {', '.join(works)}"
        yield Finding("kernel", OK, text, facts={"works": works})
    for outcome in outcomes:
        if outcome.missing and outcome.feature == "robust mutex":
            text = f"no robust mutexes: a killed holder is not survived ({outcome.missing})"
            yield Finding("no-robust-mutexes", WARNING, text, _WITHOUT[outcome.feature], {"reason": outcome.missing})
        elif outcome.missing:
            level = PROBLEM if outcome.feature in _ESSENTIAL or not works else WARNING
            text = f"the kernel fails at {outcome.feature}: {outcome.missing}"
            yield Finding("kernel-missing", level, text, _WITHOUT[outcome.feature], {"feature": outcome.feature})


def _interpreter() -> Finding:
    path = sys.executable or ""
    facts = {"executable": path}
    if path and os.access(path, os.X_OK):
        return Finding("interpreter", OK, f"guardians are started with {path}", facts=facts)
    remedy = (
        "Set sys.executable to a Python before a store is opened; else nobody cleans up after a killed owner at once."
    )
    return Finding("interpreter", WARNING, "no Python interpreter is known that could be a guardian", remedy, facts)


def _order(found: Survey) -> Iterator[Finding]:
    """Say what is in disorder in the stores of this user."""
    living = [store for store in found.stores if store.state == "open"]
    size = sum(store.bytes for store in found.stores)
    text = f"{count(len(living), 'store')} of this user {'lives' if len(living) == 1 else 'live'}; all files take {size_text(size)}"
    yield Finding("stores", OK, text, facts={"living": len(living), "bytes": size})
    for store in found.stores:
        if store.removable:
            held = f"{count(len(store.blocks), 'block')}, {size_text(store.bytes)}"
            text = f"left by a dead process: {ls.label(store.name, store.id)}, {held}, in {store.directory}"
            yield Finding("leftover", PROBLEM, text, "python -m shmarray gc", {"store": store.id, "bytes": store.bytes})
        unguarded = store.guardian is None or not store.guardian.alive
        if store.state == "open" and unguarded:
            text = f"{ls.label(store.name, store.id)} has no guardian: if its owner is killed, nobody cleans up at once"
            yield Finding("no-guardian", WARNING, text, "Afterwards: python -m shmarray gc", {"store": store.id})
        for block in store.blocks:
            yield from _access(store, block)
    for item in gc.what_stays(found, foreseen=True):
        what = item.file if item.what in ("file", "block") else f"{ls.label(item.name, item.store)}, {item.what}"
        level = WARNING if item.what in ("file", "dead", "closed") else PROBLEM
        yield Finding(item.what, level, f"{what}: {item.reason}", item.remedy, asdict(item))
    if found.others:
        text = f"{count(found.others, 'file')} of other users in {_SHM}; they are theirs to look after"
        yield Finding("other-users", OK, text, facts={"files": found.others})


def _access(store: Store, block: Block) -> Iterator[Finding]:
    """Say what is in disorder with the guard of a block."""
    guard = block.guard
    if guard is None or block.state == "dead":
        return
    what = f"{block.kind} {ls.title(block)}" if block.name is not None else ls.title(block)
    what = f"{what} of {ls.label(store.name, store.id)}"
    facts = {"store": store.id, "name": block.name, "file": block.file, **asdict(guard)}
    mine = "array" if block.name is None else f"store[{block.name!r}]"
    if guard.poisoned is not None and block.kind in inspection.POISONABLE:
        text = f"{what} is poisoned: process {guard.poisoned.pid} died while it wrote; the data may be half old and half new"
        remedy = f"Put them right, which clears the mark: with {mine}.write(heal=True) as data: ..."
        yield Finding("poisoned", PROBLEM, text, remedy, facts)
    if guard.holder is None:
        return
    if guard.holder.alive is False:
        text = f"process {guard.holder.pid} died while it had exclusive access to {what}, and nobody has entered since"
        if guard.kind == "robust":
            yield Finding("dead-holder", NOTE, text, "Nothing to do: the next who enters is told.", facts)
        else:
            remedy = (
                "Delete it and make it anew; a semaphore stays taken. Store(guard='robust') has locks that survive."
            )
            yield Finding("dead-holder", PROBLEM, f"{text}; nobody can", remedy, facts)
        return
    held = 0.0 if guard.since is None else time.time() - guard.since
    if held > _LONG_WAIT and guard.waiters:
        pids = ", ".join(map(str, guard.waiters))
        text = f"process {guard.holder.pid} has had exclusive access to {what} for {table.age(held)}; waiting: {pids}"
        then = "the next gets it" if guard.kind == "robust" else "but then its lock is lost: a semaphore stays taken"
        remedy = f"See what it does; if it hangs, end it, {then}: kill {guard.holder.pid}"
        yield Finding("long-wait", WARNING, text, remedy, facts)
