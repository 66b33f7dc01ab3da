"""The order in which processors see each other's stores.

Owns: whether this kind of processor shows stores in the order in which they were made, and the fence that also puts a store before the
loads behind it, which no kind of processor does by itself.
Must not know: what is stored.
"""

from __future__ import annotations

import ctypes
import platform

from shmarray._os import mutexes

ORDERED = platform.machine() in ("x86_64", "AMD64", "i686", "s390x")
"""Whether another processor sees this one's stores in their order."""

_semaphore = ctypes.create_string_buffer(mutexes.fresh_semaphore(), mutexes.ROOM)
_address = ctypes.addressof(_semaphore)
_post, _take = mutexes.semaphore_post, mutexes.semaphore_trywait


def fence() -> None:
    """Let every store made before be seen before anything that is loaded from now on.

    Raising a semaphore is an atomic addition, which is such a fence where stores are `ORDERED`; it is this process's own, and is taken
    again at once.
    """
    _post(_address)
    _take(_address)
