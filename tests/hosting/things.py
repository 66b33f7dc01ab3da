"""Types for hosts, at the top level of a module that a host can import."""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
from multiprocessing.managers import BaseProxy
from typing import Any

import numpy as np

import shmarray as sa


def refuse_to_begin(why: str) -> None:
    """Fail as the initializer of a pool."""
    raise OSError(why)


def fail_to_begin(what: str) -> None:
    """Fail so that the last lines of the traceback do not say what has failed."""
    if what == "group":
        raise ExceptionGroup("several", [ValueError("one"), OSError("two")])
    raise ValueError("x " * 5000 if what == "long" else "first\n  second\nthird")


class Thing:
    """Holds a value; can do what no object should do."""

    def __init__(self, value: Any = 0) -> None:
        """Keep a value; None is refused."""
        if value is None:
            raise ValueError("no value")
        self.value = value

    def get(self) -> Any:
        """Give the value."""
        return self.value

    def set(self, value: Any) -> None:
        """Take another value."""
        self.value = value

    def where(self) -> tuple[int, int]:
        """Pid of the process it lives in, and of that one's parent."""
        return os.getpid(), os.getppid()

    def place(self) -> str | None:
        """Name of the block that the value lies in."""
        return self.value.block_name if isinstance(self.value, sa.SharedArray) else None

    def following(self) -> Thing:
        """Give another one, of the next value."""
        return Thing(self.value + 1)

    def die(self) -> None:
        """End the process at once."""
        os._exit(3)

    def leave(self) -> None:
        """End the process as a program does."""
        sys.exit("left")

    def wait(self) -> None:
        """Never return, and let others run."""
        threading.Event().wait()

    def spin(self) -> None:
        """Never return from C, and let nobody run."""
        re.match(r"(a*)*b", "a" * 60)

    def stop(self) -> None:
        """Stop the whole process, as SIGSTOP does."""
        os.kill(os.getpid(), signal.SIGSTOP)
        self.wait()  # a thread may still run for a moment

    def say_at_exit(self, path: str) -> None:
        """Write a file when the process ends in order."""
        atexit.register(_write, path)

    def fork(self) -> int:
        """Fork a child that stays."""
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        return pid

    def fail(self) -> None:
        """Raise what does not survive a pickle."""
        raise StubbornError(1, 2)


def _write(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write("ended")


class StubbornError(Exception):
    """Pickles, and does not load."""

    def __init__(self, a: int, b: int) -> None:
        """Take two arguments and pass on one."""
        super().__init__(a + b)


class Clinging:
    """Its destructor does not end."""

    def __del__(self) -> None:
        """Wait for ever."""
        threading.Event().wait()


class ThingProxy(BaseProxy):
    """A proxy of a user's own."""

    _exposed_ = ("get", "following")
    _method_to_typeid_ = {"following": "Following"}  # noqa: RUF012  as in multiprocessing

    def get(self) -> Any:
        """Ask for the value."""
        return self._callmethod("get")

    def following(self) -> Any:
        """Ask for the next one."""
        return self._callmethod("following")

    def double(self) -> Any:
        """Do something here."""
        return 2 * self.get()


class Things(sa.Store):
    """A store with types of its own."""

    Thing: Any
    Own: Any
    Narrow: Any
    Chain: Any
    Clinging: Any
    Given: Any


Things.register("Thing", Thing)
Things.register("Own", Thing, proxytype=ThingProxy)
Things.register("Following", proxytype=ThingProxy, create_method=False)
Things.register("Narrow", Thing, exposed=["get"])
Things.register("Chain", Thing, method_to_typeid={"following": "Link"})
Things.register("Link", method_to_typeid={"following": "Link"}, create_method=False)
Things.register("Clinging", Clinging, exposed=["__repr__"])
Things.register("Given")


def scale(array: Any, factor: float) -> Any:
    """Change an array in place; runs in a worker of a pool."""
    array *= factor
    return array


_begun: list[float] = []


def begin(value: float) -> None:
    """Initialise a worker."""
    _begun.append(value)


def begun(_: object) -> list[float]:
    """Tell what this worker was initialised with."""
    return _begun


def pid_of_worker(_: object) -> int:
    """Tell which process this is."""
    return os.getpid()


def busy(path: str) -> None:
    """Run for ever in C, having said so by a file."""
    _write(path)
    re.match(r"(a*)*b", "a" * 60)


def total(values: Any) -> float:
    """Add up."""
    return float(np.sum(values))
