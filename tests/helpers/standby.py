"""An interpreter that has imported a program and stands by: each run of the program is a fork of it, and costs no start.

Owns: that process, the door to it, and one run with its output and deadline.
Must not know: which program, and what it is expected to say.

A run is a process with a session, an environment, a working directory and standard streams of its own; it runs the module as
`python -m` does, and ends as an interpreter ends. What is not its own is what was imported: the start itself is for other tests.
"""

from __future__ import annotations

import contextlib
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
from typing import IO, TYPE_CHECKING, Any, Self

from tests.helpers.processes import Finished, environment

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST = 1 << 20
_SOURCE = "import sys; from tests.helpers.standby import stand_by; stand_by(int(sys.argv[1]), *sys.argv[2:])"


class Standby:
    """A module ready to be run; a context manager that ends the interpreter which stands by."""

    def __init__(self, module: str, uses: str) -> None:
        """Start an interpreter for runs of `module`, and let it import what that uses."""
        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LONGEST)
            self._door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SOURCE, str(theirs.fileno()), module, uses],
                stdin=subprocess.DEVNULL,
                env=environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the test process
            )

    def run(self, *args: str, timeout: float = 30, env: Mapping[str, str] | None = None) -> Finished:
        """Run the module with arguments in an empty directory and wait for its end; see `processes.run_command`."""
        with (
            tempfile.TemporaryDirectory(prefix="standby-") as empty,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            order = json.dumps([args, environment(env), empty]).encode()
            socket.send_fds(self._door, [order], [out.fileno(), err.fileno()])
            pid = self._hear(60)
            assert pid is not None, "the interpreter that stands by has ended or does not answer"
            status = self._hear(timeout)
            if status is None:
                # Every thread's stack goes to standard error, as PYTHONFAULTHANDLER is set; then the rest of its session.
                for number in (signal.SIGABRT, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, number)
                    status = self._hear(5) if status is None else status
                message = f"{args} did not end within {timeout:g} s; {_finished(status or 0, out, err).describe()}"
                raise AssertionError(message)
            return _finished(status, out, err)

    def _hear(self, timeout: float) -> int | None:
        if not select.select([self._door], [], [], timeout)[0]:
            return None
        answer = self._door.recv(100)
        return int(answer) if answer else None

    def __enter__(self) -> Self:
        """Nothing more to do: it is starting."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self._door.close()
        self._process.wait(10)


def _finished(status: int, *files: IO[bytes]) -> Finished:
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
    return Finished(status, *texts)


def stand_by(number: int, module: str, uses: str) -> None:
    """In the interpreter that stands by: do one run after the other until nobody is at the other end any more."""
    importlib.import_module(uses)
    door = socket.socket(fileno=number)
    while True:
        order, files, _, _ = socket.recv_fds(door, _LONGEST, 2)
        if not order:
            return
        pid = os.fork()
        if not pid:
            door.close()
            break
        for file in files:
            os.close(file)
        with contextlib.suppress(BrokenPipeError):
            door.send(b"%d" % pid)
            door.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    _become(files, *json.loads(order))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _become(files: list[int], args: list[str], env: dict[str, str], directory: str) -> None:
    """In the fork: have all that a process has of its own."""
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(env)
    for standard, file in enumerate(files, start=1):
        os.dup2(file, standard)
        os.close(file)
    streams: Any = sys
    streams.stdout = open(1, "w", closefd=False)  # noqa: SIM115  they are the interpreter's own
    streams.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv[1:] = args
