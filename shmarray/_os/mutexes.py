"""Locks in shared memory: robust mutexes, and plain semaphores.

Owns: the calls of the C library on a mutex or semaphore that lies in a mapping, the bytes of a fresh one, and whether this system
has robust mutexes at all. A *robust* mutex knows its holder: when that thread ends with the mutex held, by whatever death, the
kernel wakes a waiter with `EOWNERDEAD` (robust futexes, see `get_robust_list(2)`). A semaphore knows nobody and is lost with its holder.
Must not know: what is guarded. Never unmap a mutex this process holds: the kernel's list of held mutexes leads through it.
"""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from typing import Any, NamedTuple

ROOM = 64
"""Bytes to keep for one mutex or semaphore; 40 to 48 and 32 are in use."""

FREE, OWNER_DIED, BUSY, TIMED_OUT = 0, errno.EOWNERDEAD, errno.EBUSY, errno.ETIMEDOUT
_SHARED, _ROBUST, _ERRORCHECK, _MONOTONIC = 1, 1, 2, 1
_TID_MASK = 0x3FFF_FFFF
_NEEDED = ("pthread_mutexattr_setrobust", "pthread_mutex_consistent", "pthread_mutex_timedlock")


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


_waiting = ctypes.CDLL(None, use_errno=True)  # releases the GIL: for calls that wait
_quick = ctypes.PyDLL(None)  # keeps the GIL: half the cost, for calls that never wait
_Moment = ctypes.POINTER(_Timespec)


def _call(name: str) -> Any:
    """Give a function of the C library that takes an address; one that answers `ENOSYS` where there is none of that name."""
    try:
        function = getattr(_quick, name)
    except AttributeError:
        return _nothing
    function.argtypes = (ctypes.c_void_p,)
    return function


def _nothing(*arguments: object) -> int:
    del arguments
    return errno.ENOSYS


mutex_trylock = _call("pthread_mutex_trylock")
mutex_unlock = _call("pthread_mutex_unlock")
mutex_consistent = _call("pthread_mutex_consistent")
semaphore_trywait = _call("sem_trywait")
semaphore_post = _call("sem_post")


class _Wait(NamedTuple):
    """A call that waits: what stands between the address and the moment, and by which clock that moment is."""

    function: Any
    between: tuple[int, ...]
    clock: int

    def arguments(self, address: int, seconds: float) -> tuple[Any, ...]:
        moment = time.clock_gettime_ns(self.clock) + int(seconds * 1e9)
        return (address, *self.between, _Timespec(moment // 1_000_000_000, moment % 1_000_000_000))


def _wait(by_clock: str, by_date: str) -> _Wait:
    """Give a wait that ends at a moment of the monotonic clock, or of the date where the C library has only that.

    `pthread_mutex_clocklock` and `sem_clockwait` came with glibc 2.30, and other libraries have them later or not at all.
    """
    if hasattr(_waiting, by_clock):
        function = getattr(_waiting, by_clock)
        function.argtypes = (ctypes.c_void_p, ctypes.c_int, _Moment)
        return _Wait(function, (_MONOTONIC,), time.CLOCK_MONOTONIC)
    # When somebody sets the clock, such a wait is that much longer or shorter. Callers wait in short slices and measure their time by
    # the monotonic clock, so it is one slice that is; and whoever lets go still ends it at once.
    function = getattr(_waiting, by_date, _nothing)
    function.argtypes = (ctypes.c_void_p, _Moment)
    return _Wait(function, (), time.CLOCK_REALTIME)


_mutex = _wait("pthread_mutex_clocklock", "pthread_mutex_timedlock")
_semaphore = _wait("sem_clockwait", "sem_timedwait")


def mutex_wait(address: int, seconds: float) -> int:
    """Wait for a mutex, at most that long: `FREE`, `OWNER_DIED` (either: it is held now) or `TIMED_OUT`.

    A signal does not end the wait, so callers that want their handlers to run wait in slices.
    """
    return int(_mutex.function(*_mutex.arguments(address, seconds)))


def semaphore_wait(address: int, seconds: float) -> tuple[Any, tuple[Any, ...]]:
    """Give the call, and its arguments, that waits for a semaphore, at most that long: it answers 0 when it has taken it.

    To be made by the caller, who has to see to it that the answer is not lost. A signal ends the wait early.
    """
    return _semaphore.function, _semaphore.arguments(address, seconds)


def fresh_mutex() -> bytes:
    """Give the bytes of an unlocked mutex, shared between processes, robust, and refusing to be locked twice.

    A mutex that was never locked is plain data, so these bytes may be copied into any mapping. Raises `OSError`, which says what is
    missing, where the system has no such mutexes.
    """
    for name in _NEEDED:
        if not hasattr(_quick, name):
            raise OSError(errno.ENOSYS, f"the C library has no {name}")
    attributes = ctypes.create_string_buffer(ROOM)
    mutex = ctypes.create_string_buffer(ROOM)
    for name, *arguments in (
        ("pthread_mutexattr_init", attributes),
        ("pthread_mutexattr_setpshared", attributes, _SHARED),
        ("pthread_mutexattr_setrobust", attributes, _ROBUST),
        ("pthread_mutexattr_settype", attributes, _ERRORCHECK),
        ("pthread_mutex_init", mutex, attributes),
    ):
        code = getattr(_quick, name)(*arguments)
        if code:
            raise OSError(code, f"{name} answers {errno.errorcode.get(code, code)}")
    return mutex.raw


def fresh_semaphore() -> bytes:
    """Give the bytes of a semaphore of value 1, shared between processes."""
    semaphore = ctypes.create_string_buffer(ROOM)
    if _quick.sem_init(semaphore, 1, 1):
        raise OSError(errno.ENOSYS, "this C library makes no shared semaphores")
    return semaphore.raw


def _try_out() -> tuple[str, int]:
    """Lock a mutex and see which of its words then says by whom: why there are no robust mutexes, "" if there are; and where."""
    try:
        mutex = ctypes.create_string_buffer(fresh_mutex(), ROOM)
    except OSError as error:
        return str(error.strerror), 0
    code = mutex_trylock(ctypes.addressof(mutex))
    if code:
        return f"pthread_mutex_trylock answers {errno.errorcode.get(code, code)}", 0
    words = [word & _TID_MASK for word in (ctypes.c_uint32 * (ROOM // 4)).from_buffer(mutex)]
    mutex_unlock(ctypes.addressof(mutex))
    me = threading.get_native_id()
    return ("", 4 * words.index(me)) if me in words else ("a mutex does not say who holds it", 0)


NOT_ROBUST, _owner_at = _try_out()
"""Why this system has no robust mutexes; empty if it has."""


def mutex_owner(address: int) -> int:
    """Thread identity of the holder of a robust mutex; 0 if it is free."""
    return int(ctypes.c_uint32.from_address(address + _owner_at).value) & _TID_MASK
