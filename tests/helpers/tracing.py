"""Injection: death at the n-th step of our code, failure of the n-th system call of ours.

Owns: counting the lines (or opcodes) that this process runs in the package, and the calls that `shmarray._os` makes to the
kernel; ending the process or raising at a chosen one. A test counts once and then sweeps all n.
Must not know: what the code under trace does.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import importlib.util
import itertools
import mmap
import os
import pkgutil
import signal
import sys
import threading
from contextlib import contextmanager
from functools import cache
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Files = Callable[[str], bool]

_FAILED = -1
_KERNEL = {
    "os": [
        *("open", "close", "read", "write", "pread", "pwrite", "link", "unlink", "remove", "rename", "replace", "stat"),
        *("lstat", "fstat", "ftruncate", "truncate", "fsync", "posix_fallocate", "fchmod", "fchown", "mkdir", "rmdir"),
        *("listdir", "scandir", "readlink", "symlink", "statvfs", "fstatvfs", "kill", "pidfd_open", "memfd_create"),
        *("dup", "dup2", "pipe", "pipe2", "copy_file_range", "sendfile", "sched_getaffinity", "eventfd"),
    ],
    "fcntl": ["fcntl", "flock", "lockf", "ioctl"],
    "resource": ["getrlimit", "setrlimit"],
    "mmap": ["mmap"],
    "select": ["select", "poll", "epoll"],
}


@cache
def package_directory() -> str:
    """Where the package under test is, without importing it."""
    spec = importlib.util.find_spec("shmarray")
    assert spec is not None
    assert spec.submodule_search_locations
    return os.path.realpath(next(iter(spec.submodule_search_locations)))


@cache
def within_package(filename: str) -> str:
    """Path of a source file from the package under test on, as `_os/words.py`; empty for any other file.

    It is asked of every line that is counted, so it is remembered; also by forks, of what was asked before.
    """
    inside = package_directory() + os.sep
    path = os.path.realpath(filename)
    return path.removeprefix(inside) if path.startswith(inside) else ""


def remember_files() -> None:
    """Look up all files that were imported, for the forks to come: each is looked up by every one that runs into it."""
    for module in list(sys.modules.values()):
        if isinstance(filename := getattr(module, "__file__", None), str):
            within_package(filename)


def in_package(filename: str) -> bool:
    """Say whether that is a source file of the package under test."""
    return bool(within_package(filename))


class _Tracer:
    """Counts steps of this process in chosen files, from its construction to `stop()`; a context manager for the same."""

    def __init__(self, files: Files, *, opcodes: bool, at: int = 0) -> None:
        self._files = cache(files)
        self._event = "opcode" if opcodes else "line"
        self._next = itertools.count(1).__next__  # one step even where threads run in parallel
        self._at = at
        self.count = 0
        self._before = (sys.gettrace(), threading.gettrace())
        if opcodes:
            sys._getframe().f_trace_opcodes = True  # 3.12 attends to it only if it was set somewhere before settrace
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def stop(self) -> None:
        """Trace no more in this thread and in threads started from now on."""
        sys.settrace(self._before[0])
        threading.settrace(self._before[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        if not self._files(frame.f_code.co_filename):
            return None
        if self._event == "opcode":
            frame.f_trace = self._step  # 3.13 attends to f_trace_opcodes only where there is a trace function already
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        return self._step

    def _step(self, _frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == self._event:
            self.count = self._next()
            if self.count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._step


def kill_at(n: int, files: Files = in_package, *, opcodes: bool = False) -> _Tracer:
    """SIGKILL this process before it runs its n-th line (or opcode) from now on, counted from 1, in the chosen files.

    Works until `stop()` or the end of the `with` block, in this thread and in those it starts; a forked child counts on by
    itself and kills itself.
    """
    return _Tracer(files, opcodes=opcodes, at=n)


def count_events(function: Callable[[], object], files: Files = in_package, *, opcodes: bool = False) -> int:
    """Run `function` under the trace of `kill_at`; returns how many places there are to be killed at."""
    with _Tracer(files, opcodes=opcodes) as tracer:
        function()
    return tracer.count


class Interrupted(BaseException):
    """What a signal handler raises, as `KeyboardInterrupt`."""


class Interrupter:
    """Raises at the n-th point, counted from 1, at which a handler could run within chosen files, by default those of the package."""

    error: type[Interrupted] = Interrupted

    def __init__(self, n: int, files: Files = in_package) -> None:
        """Stand ready to raise at point `n`, counted in those files."""
        self.n = n
        self.files = cache(files)
        self.count = 0
        self.where = ""

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_return") and self.files(frame.f_code.co_filename):
            self.count += 1
            if self.count == self.n:
                sys.setprofile(None)
                what = getattr(arg, "__qualname__", "") if event == "c_return" else ""
                self.where = f"{event} {what} in {frame.f_code.co_qualname}, line {frame.f_lineno}"
                self.interrupt()

    def interrupt(self) -> None:
        """Do what the handler does."""
        raise self.error

    def __enter__(self) -> Self:
        """Begin to count."""
        sys.setprofile(self._event)
        return self

    def __exit__(self, *exc: object) -> None:
        """Count no more."""
        sys.setprofile(None)


class Call(NamedTuple):
    """One call to the kernel: `os.link`, and the module and function of ours that makes it."""

    function: str
    caller: str

    def __str__(self) -> str:
        """As a test shows it."""
        return f"{self.function} in {self.caller}"


class _Recorder:
    """Counts calls and fails one of them."""

    def __init__(self, n: int, failure: Callable[[Call], BaseException]) -> None:
        self._n = n
        self._failure = failure
        self._lock = threading.Lock()
        self.calls: list[Call] = []

    def point(self, function: str, frame: FrameType) -> BaseException | None:
        """Note a call made from `frame`; returns the error it must fail with."""
        call = Call(function, f"{frame.f_globals['__name__'].rpartition('.')[2]}.{frame.f_code.co_name}")
        with self._lock:
            self.calls.append(call)
            mine = len(self.calls) == self._n
        return self._failure(call) if mine else None

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Make the stand-in for one function."""

        def stand_in(*args: Any, **options: Any) -> Any:
            error = self.point(name, sys._getframe(1))
            if error is None:
                return real(*args, **options)
            if name == "os.close":
                real(*args)  # a close(2) that fails on Linux has closed all the same
            try:
                raise error
            finally:
                del error  # the frame is in its traceback: a circle that would keep the locals of every caller

        return stand_in


class _Stand:
    """Stands in for a module of the kernel's functions within one of our modules."""

    def __init__(self, recorder: _Recorder, module: ModuleType) -> None:
        self._module = module
        names = [name for name in _KERNEL[module.__name__] if hasattr(module, name)]
        for name in names:
            setattr(self, name, recorder.wrap(f"{module.__name__}.{name}", getattr(module, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Library:
    """Stands in for the C library: a call that must fail says so by its value and `errno`."""

    def __init__(self, recorder: _Recorder, real: ctypes.CDLL) -> None:
        self._recorder = recorder
        self._real = real

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def stand_in(*args: Any) -> Any:
            error = self._recorder.point(f"libc.{name}", sys._getframe(1))
            if error is None:
                return getattr(self._real, name)(*args)
            if not isinstance(error, OSError) or error.errno is None:
                try:
                    raise error
                finally:
                    del error  # the frame is in its traceback: a circle that would keep the locals of every caller
            ctypes.set_errno(error.errno)
            return _FAILED

        return stand_in


def _constructor(recorder: _Recorder, real: type[mmap.mmap]) -> staticmethod[..., Any]:
    """Make the stand-in for `__new__` of a subclass of `mmap`: its construction is the call, and its type stays what it is."""

    def stand_in(*args: Any, **options: Any) -> Any:
        error = recorder.point("mmap.mmap", sys._getframe(1))
        if error is not None:
            try:
                raise error
            finally:
                del error  # the frame is in its traceback: a circle that would keep the locals of every caller
        return mmap.mmap.__new__(*args, **options)

    return staticmethod(stand_in)


def _stand_ins(recorder: _Recorder, module: ModuleType) -> list[tuple[object, str, object]]:
    """Everything through which one of our modules reaches the kernel: where it is, its name, its stand-in."""
    found: list[tuple[object, str, object]] = [(module, "open", recorder.wrap("open", builtins.open))]
    for name, value in vars(module).items():
        if isinstance(value, ModuleType) and value.__name__ in _KERNEL:
            found.append((module, name, _Stand(recorder, value)))
        elif isinstance(value, ctypes.CDLL):
            found.append((module, name, _Library(recorder, value)))
        elif isinstance(value, type) and issubclass(value, mmap.mmap) and value.__module__ == module.__name__:
            found.append((value, "__new__", _constructor(recorder, value)))
    return found


def kernel_modules(package: str = "shmarray._os") -> list[ModuleType]:
    """Every module of the floor that talks to the kernel, imported."""
    floor = importlib.import_module(package)
    return [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(floor.__path__)]


def die(call: Call) -> NoReturn:
    """Use as the failure of `fail_at` to be SIGKILLed before the n-th system call."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(call)


@contextmanager
def fail_at(
    n: int, failure: int | Callable[[Call], BaseException], package: str = "shmarray._os"
) -> Iterator[list[Call]]:
    """Make the n-th call to the kernel by `package`, counted from 1, fail: with that errno, or with what `failure` makes.

    Gives the list of the calls seen so far; 0 fails none. Only calls written in the modules of `package` are counted: the
    names through which they reach the kernel (`os`, `fcntl`, `open`, ...) are replaced there and nowhere else.
    """

    def of_errno(_: Call) -> BaseException:
        assert isinstance(failure, int)
        return OSError(failure, os.strerror(failure))

    recorder = _Recorder(n, of_errno if isinstance(failure, int) else failure)
    absent = object()
    undo: list[tuple[object, str, object]] = []
    try:
        for module in kernel_modules(package):
            for place, name, stand_in in _stand_ins(recorder, module):
                undo.append((place, name, vars(place).get(name, absent)))
                setattr(place, name, stand_in)
        yield recorder.calls
    finally:
        for place, name, value in reversed(undo):
            if value is absent:
                delattr(place, name)
            else:
                setattr(place, name, value)


def count_calls(function: Callable[[], object], package: str = "shmarray._os") -> list[Call]:
    """Run `function`; returns the calls to the kernel that `fail_at` could make fail."""
    with fail_at(0, 0, package) as calls:
        function()
    return list(calls)
