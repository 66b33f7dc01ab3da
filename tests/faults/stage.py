"""A stage for deaths: actor processes that do what the test says, one step at a time, and a look at what they leave.

Owns: making actors (a fork of the test process, or a fresh interpreter whose workers come by any start method), telling them
what to do, killing and reaping them, also those whose parent was killed, and what they said on standard error.
Must not know: which deaths are tried, and what must hold after them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import TYPE_CHECKING, Any, Self

from tests.helpers import leaks
from tests.helpers.processes import environment, is_running, reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray import Store

DEADLINE = 30.0
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_libc = ctypes.CDLL(None, use_errno=True)


class World:
    """What one actor has: a store, views by name, and whatever else its steps keep."""

    store: Store

    def __init__(self) -> None:
        """Begin with nothing."""
        self.views: dict[str, Any] = {}
        self.kept: dict[str, Any] = {}

    def clear(self) -> None:
        """Let go of the store and of every view."""
        self.views.clear()
        self.kept.clear()
        self.__dict__.pop("store", None)


def serve(connection: Connection, world: World) -> None:
    """Be an actor: do one step after the other until told to leave, or until the test is gone."""
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        if order is None:
            return
        connection.send(_step(world, order))


def _step(world: World, order: tuple[Callable[..., Any], tuple[Any, ...]]) -> tuple[bool, Any]:
    step, args = order
    try:
        return True, step(world, *args)
    except BaseException:  # noqa: BLE001  whatever it was is the test's to hear
        return False, traceback.format_exc()


def enter(address: str, world: World, role: str) -> None:
    """Connect to the stage at `address`, and be an actor there until told to leave."""
    with Client(f"\0{address}", "AF_UNIX") as connection:
        connection.send((os.getpid(), role))
        serve(connection, world)


class Actor:
    """One process of the play, as the test sees it."""

    def __init__(self, stage: Stage, pid: int, connection: Connection) -> None:
        """Stand for process `pid`, which serves at the other end of `connection`."""
        self._stage = stage
        self.pid = pid
        self.connection = connection
        self._watch = os.pidfd_open(pid)

    def tell(self, step: Callable[..., Any], *args: Any) -> None:
        """Begin a step; `answer` ends it."""
        self.connection.send((step, args))

    def answer(self, timeout: float = DEADLINE) -> Any:
        """Return what the step gave; fails with what the actor said when it failed, died or did not end."""
        heard = self._hear(timeout)
        assert heard is not None, f"actor {self.pid} died\n{self._stage.said()}"
        return heard[0]

    def outlives(self, step: Callable[..., Any], *args: Any, timeout: float = DEADLINE) -> bool:
        """Do a step that may be the actor's death; say whether it came through alive."""
        self.tell(step, *args)
        return self._hear(timeout) is not None

    def _hear(self, timeout: float) -> tuple[Any] | None:
        """Wait for what a step gave; None if the actor died."""
        assert self.connection.poll(timeout), f"actor {self.pid} did not answer\n{self._stage.said()}"
        try:
            well, value = self.connection.recv()
        except (EOFError, ConnectionError):
            return None
        assert well, f"actor {self.pid}:\n{value}{self._stage.said()}"
        return (value,)

    def do(self, step: Callable[..., Any], *args: Any, timeout: float = DEADLINE) -> Any:
        """Do a step and return what it gave."""
        self.tell(step, *args)
        return self.answer(timeout)

    def kill(self) -> None:
        """Send SIGKILL, and do not wait."""
        os.kill(self.pid, signal.SIGKILL)

    def gone(self, timeout: float = DEADLINE) -> None:
        """Wait for the end of the process, whoever its parent is."""
        ended = wait([self._watch], timeout)
        assert ended, f"actor {self.pid} did not end within {timeout:g} s\n{self._stage.said()}"

    def leave(self) -> None:
        """Tell it to end in the ordinary way."""
        self.connection.send(None)

    def close(self) -> None:
        """Drop what this side holds."""
        self.connection.close()
        os.close(self._watch)


class Stage:
    """Where actors play; a context manager that leaves no process behind.

    Orphans of killed actors become children of the test process meanwhile, so that it learns how they ended.
    """

    def __init__(self) -> None:
        """Prepare an address to which actors come, and a file for what they say on standard error."""
        self._scratch = tempfile.TemporaryDirectory(prefix="stage-")
        self._errors = os.path.join(self._scratch.name, "stderr")
        with open(self._errors, "wb"):
            pass
        self.address = f"shmarray-stage-{secrets.token_hex(8)}"
        self._listener = Listener(f"\0{self.address}", "AF_UNIX")
        self.actors: list[Actor] = []
        self._was_reaper = ctypes.c_int()
        self._known: set[int] = set()
        self.statuses: dict[int, int] = {}

    def __enter__(self) -> Self:
        """Adopt from now on."""
        _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(self._was_reaper), 0, 0, 0)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._known = leaks.descendants(os.getpid())
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Kill and reap whatever still runs; fail if that was needed in a test that went well."""
        left = []
        try:
            if kind is None:
                left = self._wait_for_the_end()
            self._kill_all()
        finally:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, self._was_reaper.value, 0, 0, 0)
            self._listener.close()
            for actor in self.actors:
                actor.close()
            self._scratch.cleanup()
        assert not left, f"processes left: {left}"

    def _running(self) -> set[int]:
        """Processes of this play that still run; those that ended are reaped."""
        mine = leaks.descendants(os.getpid()) - self._known
        table = leaks.parents()
        for pid in mine:
            if table.get(pid) == os.getpid() and not is_running(pid):
                self.status(pid)
        return {pid for pid in mine if is_running(pid)}

    def _wait_for_the_end(self) -> list[str]:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self._running(), DEADLINE)
        return [f"{pid}: {' '.join(leaks.command_line(pid))}" for pid in self._running()]

    def _kill_all(self) -> None:
        while running := self._running():
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(is_running(pid) for pid in running), DEADLINE)

    def status(self, pid: int, timeout: float = DEADLINE) -> int:
        """Reap a child of the test process, born or adopted; returns its exit code as `subprocess` has it."""
        if pid not in self.statuses:
            self.statuses[pid] = reap(pid, timeout)
        return self.statuses[pid]

    def status_if_known(self, pid: int) -> int | None:
        """The same of a process that ended; None if it was another's child."""
        return self.status(pid) if pid in self.statuses or leaks.parents().get(pid) == os.getpid() else None

    def said(self) -> str:
        """All that actors wrote to standard error so far."""
        with open(self._errors, encoding="utf-8", errors="replace") as file:
            return file.read()

    def fork(self) -> Actor:
        """Make an actor by a fork of the test process, which costs some milliseconds."""
        ours, theirs = multiprocessing.Pipe()

        def play() -> None:
            ours.close()
            serve(theirs, World())

        pid = self.fork_process(play)
        theirs.close()
        return self._cast(Actor(self, pid, ours))

    def fork_process(self, function: Callable[[], None]) -> int:
        """Fork the test process; the child runs `function` and ends without the interpreter's own clearing up."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            gc.freeze()  # what it inherited is no garbage of its, and looking at it would copy the memory of the test process
            for actor in self.actors:
                actor.connection.close()
            errors = os.open(self._errors, os.O_WRONLY | os.O_APPEND)
            os.dup2(errors, 1)
            os.dup2(errors, 2)
            os.close(errors)
            function()
            status = 0
        except BaseException:  # noqa: BLE001  it would go on as a second test process
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def dismiss(self, actor: Actor) -> None:
        """Forget an actor that has ended."""
        self.actors.remove(actor)
        actor.close()

    def others(self) -> set[int]:
        """Processes of this play that run and are no actors: guardians, above all."""
        return self._running() - {actor.pid for actor in self.actors}

    def interpreter(self, source: str, *args: str) -> subprocess.Popen[bytes]:
        """Start a fresh interpreter in a process group of its own with `source` as its main script.

        Its first argument is the stage's address.
        """
        script = os.path.join(self._scratch.name, f"script{len(self.actors)}.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(source)
        with open(self._errors, "ab") as errors:
            process = subprocess.Popen(
                [sys.executable, script, self.address, *args],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=environment(),
                cwd=self._scratch.name,
                start_new_session=True,
            )
        # Reaped by pid like every other process of the play.
        process.returncode = 0
        return process

    def expect(self, count: int) -> list[tuple[str, Actor]]:
        """Wait until that many actors have entered; gives their roles with them."""
        entered = []
        for _ in range(count):
            assert wait([self._socket()], DEADLINE), f"an actor did not enter\n{self.said()}"
            connection = self._listener.accept()
            pid, role = connection.recv()
            entered.append((role, self._cast(Actor(self, pid, connection))))
        return entered

    def _socket(self) -> Any:
        listener: Any = self._listener
        return listener._listener._socket  # there is no public way to wait for it

    def _cast(self, actor: Actor) -> Actor:
        self.actors.append(actor)
        return actor


def files_of(store: str, directory: str = leaks.SHM) -> set[str]:
    """Names of a store's files, without the part that all of them share."""
    mark = f".{store}."
    return {name.partition(mark)[2] for name in leaks.shm_entries(directory=directory) if mark in name}


def stores_opened_by(pid: int) -> set[str]:
    """Identities of the stores whose control file says that process `pid` is the owner."""
    found = set()
    for name in leaks.shm_entries():
        if name.endswith(".ctl"):
            with contextlib.suppress(FileNotFoundError), open(os.path.join(leaks.SHM, name), "rb") as file:
                if b'"owner": [%d,' % pid in file.read():
                    found.add(name.split(".")[2])
    return found


def guardians_of(store: str) -> set[int]:
    """Guardians of a store that run."""
    return {guardian.pid for guardian in leaks.guardians() if f".{store}." in guardian.control}
