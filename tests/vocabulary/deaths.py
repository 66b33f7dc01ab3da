"""Deaths and interruptions at every step of what is done with a queue, a dict, a list or a pipe.

Owns: which steps those are.
Must not know: how a process is killed there (`tests.helpers.sweeps`), what the deed is, and what must hold then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers import leaks, sweeps
from tests.helpers.sweeps import in_child
from tests.helpers.tracing import within_package

if TYPE_CHECKING:
    from collections.abc import Callable

    import shmarray as sa

_OURS = ("keepers.py", "guards.py", "queues/", "managed/", "memory.py", "keeping.py")


def of_keepers(filename: str) -> bool:
    """Say whether a source file is of those that change what a queue, a dict or a list is made of."""
    return within_package(filename).startswith(_OURS)


def sweep(
    ready: Callable[[], object], deed: Callable[[], object], verify: Callable[[str], object], step: int = 1
) -> int:
    """Kill a child before each `step`-th line of a deed; see `sweeps.sweep`."""
    return sweeps.sweep(ready, deed, verify, of_keepers, step=step)


def interrupt_everywhere(
    ready: Callable[[], object], deed: Callable[[], object], verify: Callable[[str], object], step: int = 1
) -> int:
    """Interrupt a deed at each `step`-th point; see `sweeps.interrupt_everywhere`."""
    return sweeps.interrupt_everywhere(ready, deed, verify, of_keepers, first=step, step=step)


def files_of(store: sa.Store) -> set[str]:
    """Files of a store, as seen from outside, but for the control file and what this process keeps for the next small arrays."""
    if not store.closed:
        store.trim()
    return {entry for entry in leaks.shm_entries() if f".{store.id}." in entry and not entry.endswith(".ctl")}


__all__ = ["files_of", "in_child", "interrupt_everywhere", "of_keepers", "sweep"]
