"""Locks in shared memory: robust mutexes, and plain semaphores.

Owns: the calls of the C library on a mutex or semaphore that lies in a mapping, and the bytes of a fresh one. A *robust*
mutex knows its holder: when that thread ends with the mutex held, by whatever death, the kernel wakes a waiter with
`EOWNERDEAD` (robust futexes, see `get_robust_list(2)`). A semaphore knows nobody and is lost with its holder.
Must not know: what is guarded. Never unmap a mutex this process holds: the kernel's list of held mutexes leads through it.
"""

from __future__ import annotations

import ctypes
import errno
import time

ROOM = 64
"""Bytes to keep for one mutex or semaphore; 40 to 48 and 32 are in use."""

FREE, OWNER_DIED, BUSY, TIMED_OUT = 0, errno.EOWNERDEAD, errno.EBUSY, errno.ETIMEDOUT
_SHARED, _ROBUST, _ERRORCHECK, _MONOTONIC = 1, 1, 2, 1
_TID_MASK = 0x3FFF_FFFF


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


_waiting = ctypes.CDLL(None, use_errno=True)  # releases the GIL: for calls that wait
_quick = ctypes.PyDLL(None)  # keeps the GIL: half the cost, for calls that never wait

mutex_trylock = _quick.pthread_mutex_trylock
mutex_unlock = _quick.pthread_mutex_unlock
mutex_consistent = _quick.pthread_mutex_consistent
semaphore_trywait = _quick.sem_trywait
semaphore_post = _quick.sem_post
for _function in (mutex_trylock, mutex_unlock, mutex_consistent, semaphore_trywait, semaphore_post):
    _function.argtypes = (ctypes.c_void_p,)
_clocklock = _waiting.pthread_mutex_clocklock
_clocklock.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec))
_clockwait = _waiting.sem_clockwait
_clockwait.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec))


def _until(seconds: float) -> _Timespec:
    moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * 1e9)
    return _Timespec(moment // 1_000_000_000, moment % 1_000_000_000)


def mutex_wait(address: int, seconds: float) -> int:
    """Wait for a mutex, at most that long: `FREE`, `OWNER_DIED` (either: it is held now) or `TIMED_OUT`.

    A signal does not end the wait, so callers that want their handlers to run wait in slices.
    """
    return int(_clocklock(address, _MONOTONIC, _until(seconds)))


def mutex_owner(word: int) -> int:
    """Thread identity of the holder, from the first four bytes of a mutex; 0 if it is free."""
    return word & _TID_MASK


def semaphore_wait(address: int, seconds: float) -> int:
    """Wait for a semaphore, at most that long: `FREE` or `TIMED_OUT`. A signal ends the wait early, as `TIMED_OUT`."""
    return FREE if _clockwait(address, _MONOTONIC, _until(seconds)) == 0 else TIMED_OUT


def fresh_mutex() -> bytes:
    """Give the bytes of an unlocked mutex, shared between processes, robust, and refusing to be locked twice.

    A mutex that was never locked is plain data, so these bytes may be copied into any mapping.
    """
    attributes = ctypes.create_string_buffer(ROOM)
    mutex = ctypes.create_string_buffer(ROOM)
    steps = (
        _quick.pthread_mutexattr_init(attributes),
        _quick.pthread_mutexattr_setpshared(attributes, _SHARED),
        _quick.pthread_mutexattr_setrobust(attributes, _ROBUST),
        _quick.pthread_mutexattr_settype(attributes, _ERRORCHECK),
        _quick.pthread_mutex_init(mutex, attributes),
    )
    for code in steps:
        if code:
            raise OSError(code, "this C library makes no robust mutexes")
    return mutex.raw


def fresh_semaphore() -> bytes:
    """Give the bytes of a semaphore of value 1, shared between processes."""
    semaphore = ctypes.create_string_buffer(ROOM)
    if _quick.sem_init(semaphore, 1, 1):
        raise OSError(errno.ENOSYS, "this C library makes no shared semaphores")
    return semaphore.raw
