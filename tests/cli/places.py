"""Places for the command line to look at: dead stores made by a real SIGKILL, foreign files, and the command itself.

Owns: running `python -m shmarray` from outside, killing an owner together with its guardian, children that stay where they are, and tidying
up after all of them.
Must not know: what is expected of the commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.helpers.leaks import SHM, mappings, shm_entries
from tests.helpers.processes import Child, Finished, is_running, kill_and_reap, run_command, run_script, wait_until
from tests.helpers.standby import ReadyChild, Standby

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


UID = os.geteuid()
IS_ROOT = UID == 0
NOBODY = 65534
WHOLE = {"COLUMNS": ""}  # as wide as it wants to be

OWNER = """
import json, os, sys
import numpy as np
import shmarray as sa
from tests.helpers.processes import report

store = sa.Store(**json.loads(sys.argv[1]))
kept = [store.put(np.arange(1000 * (i + 1)), name=f"array/{i}") for i in range(3)]
kept.append(store.ones(7, "i2"))
report("ready", [store.id, store.guardian_pid])
input()
"""
BLOCKS = 4

MEMBER = """
import sys
import shmarray as sa
from tests.helpers.processes import report

store = sa.connect(sys.argv[1])
view = store[sys.argv[2]] if len(sys.argv) > 2 else None
report("ready")
input()
"""


class Dead(NamedTuple):
    """A store whose owner and guardian were killed: what it left is still there."""

    id: str
    name: str | None
    owner: int
    directory: str

    @property
    def prefix(self) -> str:
        """What the names of its files begin with."""
        return f"shmarray.{UID}.{self.id}."

    @property
    def control(self) -> str:
        """Path of its control file."""
        return f"{SHM}/{self.prefix}ctl"

    def files(self) -> set[str]:
        """Paths of its blocks, the control file and the claim left out."""
        there = shm_entries(self.prefix, self.directory)
        return {os.path.join(self.directory, name) for name in there if not name.endswith((".ctl", ".dir"))}

    def bytes(self) -> int:
        """Bytes of its blocks."""
        return sum(os.stat(path).st_size for path in self.files())


def _has_namespaces() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and run_command([unshare, "--pid", "--fork", "--mount-proc", "true"]).returncode == 0


needs_namespaces = pytest.mark.skipif(not IS_ROOT or not _has_namespaces(), reason="needs namespaces of its own")


standby: Standby | None = None
"""Where the command is run without the start of an interpreter."""


def shmarray(*args: str, env: Mapping[str, str] | None = None, timeout: float = 30, fresh: bool = False) -> Finished:
    """Run `python -m shmarray` with these arguments; in a `fresh` interpreter, as a person does, where the start is a part of it."""
    env = {**WHOLE, **(env or {})}
    if fresh or standby is None or any(name.startswith("PYTHON") for name in env):
        return run_command([sys.executable, "-m", "shmarray", *args], env=env, timeout=timeout)
    return standby.run(*args, env=env, timeout=timeout)


def child_of(source: str, *args: str) -> Child:
    """Run `source` as the main script of another process, without the start of an interpreter."""
    return Child(source, *args) if standby is None else ReadyChild(standby, source, *args)


def facts(*args: str, returncode: int = 0) -> Any:
    """Run a command with `--json`, expect an exit code and an empty standard error, and read what it says."""
    return json.loads(shmarray(*args, "--json").expect(returncode))


_HASTY = """
import sys
from shmarray.cli import gc, main
gc._PATIENCE = 0.1
sys.exit(main())
"""


def hasty_gc(returncode: int) -> Any:
    """What `gc --json` says that does not wait two seconds for a change, where there is none to come."""
    run = run_script if standby is None else standby.run_script
    return json.loads(run(_HASTY, "gc", "--json", env=WHOLE).expect(returncode))


def elsewhere(*args: str, hasty: bool = False) -> Finished:
    """Run `python -m shmarray` in a pid namespace of its own, from which no other process can be seen; see `hasty_gc`."""
    program = ["-c", _HASTY] if hasty else ["-m", "shmarray"]
    return run_command(["unshare", "--pid", "--fork", "--mount-proc", sys.executable, *program, *args], env=WHOLE)


def store_facts(store: str) -> Any:
    """What `ls --json` says of one store, given by name or id; None if it is not there."""
    found = [entry for entry in facts("ls")["stores"] if store in (entry["name"], entry["id"])]
    return found[0] if found else None


def kill(pid: int) -> None:
    """SIGKILL a process that may not be our child, and wait until it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid), message=f"process {pid} did not end")


@contextlib.contextmanager
def owner(name: str | None = None, directory: str | None = None) -> Iterator[tuple[Child, Dead, int]]:
    """A child that has opened a store with four blocks: the child, what it will leave, and the pid of its guardian."""
    options = {key: value for key, value in (("name", name), ("directory", directory)) if value is not None}
    with child_of(OWNER, json.dumps(options)) as child:
        store, guardian = child.wait_for("ready")
        left = Dead(store, name, child.pid, directory or SHM)
        try:
            yield child, left, guardian
        finally:
            kill(guardian)
            child.kill()
            tidy(left)


@contextlib.contextmanager
def dead_store(name: str | None = None, directory: str | None = None) -> Iterator[Dead]:
    """What a store leaves whose owner and guardian are killed; all of it is gone afterwards."""
    with owner(name, directory) as (child, left, guardian):
        # The guardian first: it would clean up.
        kill(guardian)
        child.kill()
        yield left


@contextlib.contextmanager
def member(store: str, array: str | None = None) -> Iterator[Child]:
    """A child that has joined a store by its name, and attached an array of it."""
    with child_of(MEMBER, store, *([array] if array else [])) as child:
        child.wait_for("ready")
        yield child
        child.kill()


@contextlib.contextmanager
def forked(work: Callable[[Callable[[], None]], object]) -> Iterator[int]:
    """A forked child that does `work`, by its pid; SIGKILL ends it.

    Work is given a function by which it says "I am here" and then stays there. The block begins when that was said.
    """
    with waiting(work) as (pid, said):
        assert os.read(said, 1), "the child ended before it had come there"
        yield pid


@contextlib.contextmanager
def waiting(work: Callable[[Callable[[], None]], object]) -> Iterator[tuple[int, int]]:
    """As `forked`, for work that does not come there, for it waits: the block begins at once. Gives the pipe besides."""
    mine, its = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work(lambda: _stay(its))
        except BaseException:  # noqa: BLE001  nothing of pytest may run here
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(its)
    try:
        yield pid, mine
    finally:
        os.close(mine)
        with contextlib.suppress(ChildProcessError):  # the test has reaped it
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                kill_and_reap(pid)


def _stay(pipe: int) -> None:
    os.write(pipe, b"x")
    while True:
        signal.pause()


@contextlib.contextmanager
def file(name: str, content: bytes = b"", directory: str = SHM) -> Iterator[str]:
    """A file in shared memory, of any name; gone afterwards."""
    path = os.path.join(directory, name)
    with open(path, "wb") as made:
        made.write(content)
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def tidy(left: Dead) -> None:
    """Remove everything of a dead store, by name."""
    for directory in {SHM, left.directory}:
        for name in shm_entries(left.prefix, directory):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
    if left.name is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name_link(left.name))


def name_link(name: str) -> str:
    """Path of the second link to the control file of a named store; the name must need no escapes."""
    return f"{SHM}/shmarray.{UID}.name.{name}"


def inodes(pid: int) -> set[int]:
    """Inodes of the files of ours that a process maps."""
    return {mapping.inode for mapping in mappings(pid)}
