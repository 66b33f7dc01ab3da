"""Processes under test: each with a deadline, none left behind.

Owns: running a script or a function in a fresh interpreter, a child that says over a pipe how far it is, killing and reaping by
pid, waiting for something to become true.
Must not know: shmarray.

No function here sleeps to let something happen: it waits for an event or polls a predicate, and a deadline only ever fails.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Result = TypeVar("Result")

READY = "SHMARRAY_TESTREADY_FD"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FORKS = "ignore:This process:DeprecationWarning"
"""From 3.12 on Python warns of forks beside other threads. One that was joined counts until the kernel, too, is done with it, and NumPy's
BLAS has some, which it ends in the fork: whether a script that forks is warned of is chance. `-W error` comes after it, and holds."""
_DYING = 5.0
_CALL = "import pickle, sys\nfunction, args = pickle.load(sys.stdin.buffer)\nfunction(*args)\n"


class Finished(NamedTuple):
    """What a process said, and how it ended: `returncode` is minus the signal's number where a signal ended it."""

    returncode: int
    stdout: str
    stderr: str

    def expect(self, returncode: int = 0, stderr: str = "") -> str:
        """Return standard output if the process ended as expected, else fail with all that it said."""
        assert (self.returncode, self.stderr) == (returncode, stderr), self.describe()
        return self.stdout

    def describe(self) -> str:
        """Exit status and output as text for a failing message."""
        return f"exit status {self.returncode}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}---"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for a fresh interpreter that finds the same shmarray and the same tests as this one."""
    places = [_ROOT]
    spec = importlib.util.find_spec("shmarray")
    if spec is not None and spec.submodule_search_locations:
        places.insert(0, os.path.dirname(next(iter(spec.submodule_search_locations))))
    result = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places)), "PYTHONFAULTHANDLER": "1"}
    result["PYTHONWARNINGS"] = ",".join(filter(None, [result.get("PYTHONWARNINGS"), FORKS]))
    result.update(extra or {})
    return result


def run_script(
    source: str,
    *args: str,
    timeout: float = 30,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: str | bytes | None = None,
    flags: tuple[str, ...] = (),
) -> Finished:
    """Run `source` as the main script of a fresh interpreter and wait for its end.

    It is a real file, so that spawn can import it again; the working directory is an empty one unless `cwd` is given. `env` is
    added to this process's environment. Past `timeout` seconds every thread's stack is written to standard error, the process
    group is killed, and the test fails with what was said until then.
    """
    with tempfile.TemporaryDirectory(prefix="script-") as scratch:
        script = os.path.join(scratch, "script.py")
        empty = os.path.join(scratch, "cwd")
        os.mkdir(empty)
        with open(script, "w", encoding="utf-8") as file:
            file.write(source)
        command = [sys.executable, *flags, script, *args]
        return run_command(command, timeout=timeout, env=env, cwd=cwd or empty, stdin=stdin)


def run_function(function: Callable[..., object], *args: object, timeout: float = 30) -> Finished:
    """Call a module-level function with picklable arguments in a fresh interpreter; its result is dropped."""
    return run_script(_CALL, timeout=timeout, stdin=pickle.dumps((function, args)))


def run_command(
    command: list[str],
    *,
    timeout: float = 30,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: str | bytes | None = None,
) -> Finished:
    """Run any command with a deadline, in a process group of its own; see `run_script`."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(given, timeout)
        except subprocess.TimeoutExpired:
            ended = process.poll()
            out, err = _end_group(process)
            what = "did not end" if ended is None else f"ended with {ended}, but another process holds its output"
            said = Finished(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
            message = f"{command} {what} within {timeout:g} s; {said.describe()}"
            raise AssertionError(message) from None
        except BaseException:
            _end_group(process)
            raise
    return Finished(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def _end_group(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Ask for the stacks of a process, then of the rest of its group, kill them all and collect what was said.

    The process goes first and alone: stacks written by two at once into one pipe are mixed line by line.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.send_signal(signal.SIGABRT)
        process.wait(_DYING)
    for number in (signal.SIGABRT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_DYING)
    return b"", b""  # a process that left the group holds the pipes


def report(name: str, value: object = None) -> None:
    """Say from inside a child that it has come to the point `name`, with a value that JSON can carry."""
    os.write(int(os.environ[READY]), json.dumps([name, value]).encode() + b"\n")


class Child:
    """A running interpreter that reports how far it is (`report`) and can be told to go on (`tell`, which it reads by `input()`).

    A context manager: leaving it kills and reaps what still runs.
    """

    _open: ClassVar[set[Child]] = set()

    def __init__(self, source: str, *args: str, env: Mapping[str, str] | None = None) -> None:
        """Start `source` as the main script of a fresh interpreter, in an empty working directory."""
        self._scratch = tempfile.TemporaryDirectory(prefix="child-")
        script = self._path("script.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(source)
        os.mkdir(self._path("cwd"))
        self._pipe, theirs = os.pipe()
        self._heard = b""
        self._hung_up = False
        with open(self._path("stdout"), "wb") as out, open(self._path("stderr"), "wb") as err:
            self._process = self._started(script, args, env, out, err, theirs)
        os.close(theirs)
        self.pid = self._process.pid
        self._open.add(self)

    def _started(
        self,
        script: str,
        args: tuple[str, ...],
        env: Mapping[str, str] | None,
        out: IO[bytes],
        err: IO[bytes],
        ready: int,
    ) -> Any:
        """Start a process that reports on `ready`; gives what `subprocess.Popen` gives, with a pipe to its standard input."""
        return subprocess.Popen(
            [sys.executable, script, *args],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env=environment({**(env or {}), READY: str(ready)}),
            cwd=self._path("cwd"),
            pass_fds=[ready],
            start_new_session=True,
        )

    def _path(self, name: str) -> str:
        return os.path.join(self._scratch.name, name)

    @property
    def _stdin(self) -> IO[bytes]:
        pipe: IO[bytes] | None = self._process.stdin
        assert pipe is not None
        return pipe

    def wait_for(self, name: str, timeout: float = 30) -> Any:
        """Return the value that the child reports at point `name`; fails when it ends first or reports something else."""
        line = self._line(time.monotonic() + timeout)
        if line is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_DYING if self._hung_up else 0)
            running = "it runs on" if self._process.poll() is None else "it has ended"
            message = f"the child did not report {name!r} and {running}; {self._so_far().describe()}"
            raise AssertionError(message)
        said, value = json.loads(line)
        assert said == name, f"the child reported {said!r} and not {name!r}"
        return value

    def _line(self, deadline: float) -> bytes | None:
        while b"\n" not in self._heard:
            readable, _, _ = select.select([self._pipe], [], [], max(0, deadline - time.monotonic()))
            piece = os.read(self._pipe, 65536) if readable else b""
            if not piece:
                self._hung_up = bool(readable)
                return None
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def tell(self, text: str = "") -> None:
        """Send one line, which the child reads by `input()`."""
        self._stdin.write(text.encode() + b"\n")
        self._stdin.flush()

    def kill(self, number: int = signal.SIGKILL) -> Finished:
        """Send a signal, wait for the end and reap."""
        self._process.send_signal(number)
        return self.finish()

    def kill_group(self) -> Finished:
        """SIGKILL the child and all that it started (a guardian has left the group), and reap the child."""
        os.killpg(self.pid, signal.SIGKILL)
        return self.finish()

    def finish(self, timeout: float = 30) -> Finished:
        """Close the child's standard input and wait for its end."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        if not self._ends(timeout):
            self._process.send_signal(signal.SIGABRT)
            self._process.wait(_DYING)
            message = f"the child did not end within {timeout:g} s; {self._so_far().describe()}"
            raise AssertionError(message)
        self._process.wait()
        return self._so_far()

    def _ends(self, timeout: float) -> bool:
        """Wait for the end; says whether it came. `Popen.wait` with a timeout looks from time to time, at most every 50 ms."""
        return self._process.poll() is not None or has_ended(self.pid, timeout)

    def _so_far(self) -> Finished:
        texts = []
        for name in ("stdout", "stderr"):
            with open(self._path(name), encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
        status = self._process.poll()
        return Finished(0 if status is None else status, *texts)

    def __enter__(self) -> Self:
        """Nothing more to do: it runs already."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill the group if any of it runs, reap the child, drop pipes and files."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._process.wait()
        if self in self._open:
            self._open.remove(self)
            os.close(self._pipe)
            self._scratch.cleanup()

    @classmethod
    def end_all(cls) -> None:
        """End every child whose block was never entered or left, as when a test fails between the two."""
        for child in list(cls._open):
            child.__exit__()


def kill_and_reap(pid: int, number: int = signal.SIGKILL) -> int:
    """Send a signal to a child made by `os.fork` and wait for its end; returns its exit code as `Finished` does."""
    os.kill(pid, number)
    return reap(pid)


def reap(pid: int, timeout: float = 30) -> int:
    """Wait for the end of a child made by `os.fork`; returns its exit code as `Finished` does."""
    assert has_ended(pid, timeout), f"process {pid} did not end within {timeout:g} s"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_ended(pid: int, timeout: float) -> bool:
    """Wait for the end of a process, of all its threads, for so many seconds at most; says whether it came. It must be unreaped."""
    watch = os.pidfd_open(pid)
    try:
        return bool(select.select([watch], [], [], timeout)[0])
    finally:
        os.close(watch)


def is_running(pid: int) -> bool:
    """Say whether a process is there and has not ended; one that nobody has reaped yet has ended."""
    try:
        # All threads of it: the first may be a zombie while another still has the files and their locks.
        return not has_ended(pid, 0)
    except ProcessLookupError:
        return False


def wait_until(
    predicate: Callable[[], Result],
    timeout: float = 10,
    message: str | Callable[[], str] = "it did not become true",
    pause_by: Callable[[float], object] = time.sleep,
) -> Result:
    """Poll until `predicate` gives something true and return that; fails with `message` after `timeout` seconds.

    Between two looks `pause_by` is called with the seconds it may take at most: it may wait for an event for so long.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not (result := predicate()):
        if time.monotonic() > deadline:
            text = message if isinstance(message, str) else message()
            raise AssertionError(f"{text} (waited {timeout:g} s)")
        pause_by(pause)
        pause = min(pause * 2, 0.02)
    return result
