"""Modules that cost more to import than most programs would want to pay, loaded when they are first needed.

Owns: that they are loaded late: `import shmarray` must not cost what only some programs use.
Must not know: what they are used for.
"""

from __future__ import annotations

import importlib
from typing import Any

_LATE = frozenset(
    {
        *("hashlib", "multiprocessing", "multiprocessing.util", "multiprocessing.reduction", "subprocess"),
        *("shmarray.managed", "shmarray.memory", "shmarray.queues", "shmarray.sync", "shmarray.values"),
        *("asyncio", "shmarray.channels"),
        "shmarray.guardian.server",
        *("shmarray.loading", "shmarray.rawdata", "shmarray.saving"),
    }
)


def load(name: str) -> Any:
    """Give the module of that name, one of those that are loaded late."""
    if name not in _LATE:
        message = f"{name} is imported at the top of the module that needs it"
        raise ValueError(message)
    return importlib.import_module(name)


class Module:
    """Stands for a module that is loaded late; the first look at an attribute loads it."""

    def __init__(self, name: str) -> None:
        """Know which module it is."""
        self._name = name

    def __getattr__(self, name: str) -> Any:
        """Reached for every attribute of the module."""
        return getattr(load(self._name), name)
