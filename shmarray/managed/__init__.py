"""Dicts, lists and namespaces, as a `multiprocessing.Manager` makes them, in shared memory and without a manager.

Owns: `SharedDict`, `SharedList`, `Namespace`.
Must not know: how blocks live, how a guard survives a death.
"""

from shmarray.managed.dicts import Namespace, SharedDict
from shmarray.managed.lists import SharedList

__all__ = ["Namespace", "SharedDict", "SharedList"]
