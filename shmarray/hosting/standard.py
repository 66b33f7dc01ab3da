"""What this package takes from `multiprocessing` beyond its documented interface.

Owns: that these names are there, and what they are; should a Python change them, this is the place.
Must not know: what they are used for.
"""

from __future__ import annotations

from multiprocessing import managers, process
from typing import Any

_managers: Any = managers
_process: Any = process

AutoProxy: Any = _managers.AutoProxy
"""Stands as type of proxy for one that is made of the exposed methods."""
MakeProxyType: Any = _managers.MakeProxyType
"""Makes such a type of proxy of a name and names of methods."""
public_methods: Any = _managers.public_methods
"""Names of an object's methods that do not begin with an underscore."""
convert_to_error: Any = _managers.convert_to_error
"""Makes the exception to be raised of an answer that is none."""
AuthenticationString: Any = _process.AuthenticationString
"""Holds a key and refuses to be pickled."""
STARTED: Any = _managers.State.STARTED
"""State of a manager that is connected."""
REGISTRY: dict[str, tuple[Any, ...]] = dict(_managers.SyncManager._registry)
"""The types of a `SyncManager`: callable, exposed methods, types of what methods return, type of proxy."""
