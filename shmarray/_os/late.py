"""Modules of the standard library that cost more to import than this package, loaded when they are first needed.

Owns: that they are loaded late: `import shmarray` must not cost what only some programs use.
Must not know: what they are used for.
"""

from __future__ import annotations

import importlib
from typing import Any

_LATE = frozenset({"hashlib", "multiprocessing.util", "subprocess"})


def load(name: str) -> Any:
    """Give the module of that name, one of those that are loaded late."""
    if name not in _LATE:
        message = f"{name} is imported at the top of the module that needs it"
        raise ValueError(message)
    return importlib.import_module(name)
