"""An interpreter that has imported a program and stands by: each run of the program is a fork of it, and costs no start.

Owns: that process, the door to it, and one run with its output and deadline.
Must not know: which program, and what it is expected to say.

A run is a process with a session, an environment, a working directory and standard streams of its own; it runs a module as
`python -m` does, or a script, and ends as an interpreter ends. What is not its own is what was imported: the start itself is for
other tests.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from typing import IO, TYPE_CHECKING, Any, Self

from tests.helpers import forks
from tests.helpers.processes import READY, Child, Finished, environment

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST = 1 << 20
_SOURCE = "import sys; from tests.helpers.standby import stand_by; stand_by(int(sys.argv[1]), *sys.argv[2:])"


class Run:
    """One run, with what `subprocess.Popen` has for a process that was started."""

    def __init__(self, line: socket.socket) -> None:
        """Wait until it has begun; on `line` it says its number, and the interpreter of which it is a fork says how it ended."""
        self._line = line
        self.stdin: IO[bytes] | None = None
        self.returncode: int | None = None
        pid = self._hear(60)
        assert pid is not None, "the interpreter that stands by has ended or does not answer"
        self.pid = pid

    def _hear(self, timeout: float | None) -> int | None:
        if not select.select([self._line], [], [], timeout)[0]:
            return None
        answer = self._line.recv(100)
        return int(answer) if answer else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns how it ended. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            self.returncode = self._hear(timeout)
            if self.returncode is None:
                raise subprocess.TimeoutExpired("a run", timeout or 0)
            self._line.close()
        return self.returncode

    def poll(self) -> int | None:
        """Say how it ended, if it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Standby:
    """Scripts, or a module, ready to be run; a context manager that ends the interpreter which stands by."""

    def __init__(self, uses: str, module: str = "") -> None:
        """Start an interpreter for runs of scripts, and of `module`, and let it import what these use."""
        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LONGEST)
            self._door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SOURCE, str(theirs.fileno()), uses, module],
                stdin=subprocess.DEVNULL,
                env=environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the test process
            )

    def run(self, *args: str, timeout: float = 30, env: Mapping[str, str] | None = None) -> Finished:
        """Run the module with arguments in an empty directory and wait for its end; see `processes.run_command`."""
        with tempfile.TemporaryDirectory(prefix="standby-") as empty:
            return self._run(None, list(args), empty, timeout, env)

    def run_script(
        self, source: str, *args: str, timeout: float = 30, env: Mapping[str, str] | None = None
    ) -> Finished:
        """Run `source` as the main script and wait for its end; see `processes.run_script`."""
        with tempfile.TemporaryDirectory(prefix="script-") as scratch:
            script, empty = os.path.join(scratch, "script.py"), os.path.join(scratch, "cwd")
            os.mkdir(empty)
            with open(script, "w", encoding="utf-8") as file:
                file.write(source)
            return self._run(script, list(args), empty, timeout, env)

    def _run(
        self, script: str | None, args: list[str], place: str, timeout: float, env: Mapping[str, str] | None
    ) -> Finished:
        with (
            open(os.devnull, "rb") as nothing,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            run = self.start(script, args, place, [nothing.fileno(), out.fileno(), err.fileno()], env)
            try:
                return _finished(run.wait(timeout), out, err)
            except subprocess.TimeoutExpired:
                # Every thread's stack goes to standard error, as PYTHONFAULTHANDLER is set; then the rest of its session.
                for number in (signal.SIGABRT, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(run.pid, number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        run.wait(5)
                message = f"{args} did not end within {timeout:g} s; {_finished(run.poll() or 0, out, err).describe()}"
                raise AssertionError(message) from None

    def start(
        self,
        script: str | None,
        args: list[str],
        place: str,
        files: list[int],
        env: Mapping[str, str] | None = None,
        passed: tuple[str, ...] = (),
    ) -> Run:
        """Start a script, or the module, in the directory `place`, with descriptors for its three standard streams.

        What more descriptors there are, it finds the numbers of in the environment, under the names in `passed`.
        """
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            order = json.dumps([script, args, environment(env), place, passed]).encode()
            socket.send_fds(self._door, [order], [theirs.fileno(), *files])
        return Run(mine)

    def __enter__(self) -> Self:
        """Nothing more to do: it is starting."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self._door.close()
        self._process.wait(10)


class ReadyChild(Child):
    """A child that is a fork of an interpreter which stands by; otherwise the same."""

    def __init__(self, standby: Standby, source: str, *args: str) -> None:
        """Run `source` as the main script."""
        self._standby = standby
        super().__init__(source, *args)

    def _started(
        self,
        script: str,
        args: tuple[str, ...],
        env: Mapping[str, str] | None,
        out: IO[bytes],
        err: IO[bytes],
        ready: int,
    ) -> Run:
        """Fork it."""
        theirs, mine = os.pipe()
        files = [theirs, out.fileno(), err.fileno(), ready]
        try:
            run = self._standby.start(script, list(args), self._path("cwd"), files, env, (READY,))
        finally:
            os.close(theirs)
        run.stdin = open(mine, "wb")  # noqa: SIM115  closed by who asked for it
        return run

    def _ends(self, timeout: float) -> bool:
        """Wait for the end, which its parent is told; says whether it came."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self._process.poll() is not None


def _finished(status: int, *files: IO[bytes]) -> Finished:
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
    return Finished(status, *texts)


def stand_by(number: int, uses: str, module: str) -> None:
    """In the interpreter that stands by: fork for each run, until nobody is at the other end any more."""
    importlib.import_module(uses)
    # What is imported stays: a fork does not look at it for garbage when it ends, which would copy the memory that it shares.
    gc.collect()
    gc.freeze()
    forks.make_cheap()
    door = socket.socket(fileno=number)
    runs: dict[int, tuple[int, socket.socket]] = {}
    while True:
        ready, _, _ = select.select([door.fileno(), *runs], [], [])
        for watch in runs.keys() & set(ready):
            pid, line = runs.pop(watch)
            os.close(watch)
            with contextlib.suppress(BrokenPipeError), line:
                line.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if door.fileno() not in ready:
            continue
        order, files, _, _ = socket.recv_fds(door, _LONGEST, 8)
        if not order:
            return
        line = socket.socket(fileno=files.pop(0))
        pid = os.fork()
        if not pid:
            break
        for file in files:
            os.close(file)
        runs[os.pidfd_open(pid)] = (pid, line)
    for watch, (_, other) in runs.items():
        os.close(watch)
        other.close()
    door.close()
    script, args, env, place, passed = json.loads(order)
    _become(files, args, env, place, passed)
    with line:
        line.send(b"%d" % os.getpid())
    if script is None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        _be_main(script)


def _be_main(path: str) -> None:
    """In the fork: run a script as the main module, which it stays until the interpreter has ended."""
    main = types.ModuleType("__main__")
    main.__file__ = path
    sys.modules["__main__"] = main
    sys.path[0] = os.path.dirname(path)
    sys.argv[0] = path
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    exec(code, main.__dict__)  # noqa: S102  a script is under test


def _become(files: list[int], args: list[str], env: dict[str, str], directory: str, passed: list[str]) -> None:
    """In the fork: have all that a process has of its own."""
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(env)
    for standard, file in enumerate(files[:3]):
        os.dup2(file, standard)
        os.close(file)
    for name, file in zip(passed, files[3:], strict=True):
        os.environ[name] = str(file)
    streams: Any = sys
    streams.stdin = open(0, closefd=False)  # noqa: SIM115  they are the interpreter's own
    streams.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    streams.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv[1:] = args
