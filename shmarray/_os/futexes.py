"""Waiting for a 32-bit word in shared memory to change.

Owns: the futex system call: waits without using the processor, wakes across processes, is ended early by any signal; until when a
wait lasts that a user has given a timeout.
Must not know: what the word means.
"""

from __future__ import annotations

import ctypes
import platform
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238, "armv7l": 240, "i686": 240}
NUMBER = _NUMBERS.get(platform.machine(), 98)
_WAIT, _WAKE = 0, 1
EVERYONE = 0x7FFF_FFFF


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_ARGUMENTS = (
    *(ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32),
    *(ctypes.POINTER(_Timespec), ctypes.c_void_p, ctypes.c_int),
)
_wait = ctypes.CDLL(None, use_errno=True)["syscall"]  # releases the GIL
_wake = ctypes.PyDLL(None)["syscall"]  # keeps it: this never waits
_wait.argtypes = _wake.argtypes = _ARGUMENTS  # said once, and not for each call


def deadline_of(timeout: Any) -> float | None:
    """Turn seconds from now into a moment of `time.monotonic`; negative seconds are now, None is never.

    Raises `TypeError` for what is no number, `ValueError` for NaN, which no moment is after.
    """
    if timeout is None:
        return None
    try:
        moment: float = time.monotonic() + max(0.0, timeout)
    except TypeError:
        message = f"timeout must be a number of seconds, or None to wait without end, not {timeout!r}"
        raise TypeError(message) from None
    if timeout != timeout:  # noqa: PLR0124  NaN alone is not itself
        message = "timeout must be a number of seconds, or None to wait without end, not NaN"
        raise ValueError(message)
    return moment


def wait(address: int, value: int, seconds: float) -> None:
    """Sleep while the word at `address` is `value`, at most that long. May return for no reason: look again."""
    _wait(NUMBER, address, _WAIT, value, _Timespec(int(seconds), int(seconds % 1 * 1e9)), None, 0)


def wake(address: int, count: int = EVERYONE) -> None:
    """Wake up to `count` sleepers on the word at `address`, in every process."""
    _wake(NUMBER, address, _WAKE, count, None, None, 0)


def sleeper(address: int, seconds: float) -> Callable[[int], None]:
    """Make a `wait` on one word, always at most that long: all that can be said beforehand is."""
    limit = _Timespec(int(seconds), int(seconds % 1 * 1e9))

    def sleep(value: int) -> None:
        _wait(NUMBER, address, _WAIT, value, limit, None, 0)

    return sleep


def waker(address: int, count: int = EVERYONE) -> Callable[[], None]:
    """Make a `wake` on one word, likewise."""

    def rouse() -> None:
        _wake(NUMBER, address, _WAKE, count, None, None, 0)

    return rouse
