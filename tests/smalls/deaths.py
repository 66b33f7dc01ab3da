"""Deaths and interruptions at every step of what is done with small arrays.

Owns: which steps those are.
Must not know: how a process is killed there (`tests.helpers.sweeps`), what the deed is, and what must hold then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers import sweeps
from tests.helpers.tracing import within_package

if TYPE_CHECKING:
    from collections.abc import Callable

_OURS = (
    "cells.py",
    "cellviews.py",
    "stocks.py",
    "sightings.py",
    "slabs.py",
    "slabmaps.py",
    "slabwords.py",
    "seats.py",
    "cellguards.py",
    "smalls.py",
    "drafts.py",
)


def of_smalls(filename: str) -> bool:
    """Say whether a source file is of those that change what small arrays are made of."""
    return within_package(filename).startswith(_OURS)


def sweep(
    ready: Callable[[], object], deed: Callable[[], object], verify: Callable[[str], object], step: int = 1
) -> int:
    """Kill a child before each `step`-th line of a deed; see `sweeps.sweep`."""
    return sweeps.sweep(ready, deed, verify, of_smalls, step=step, collect=False)


def interrupt_everywhere(
    ready: Callable[[], object], deed: Callable[[], object], verify: Callable[[str], object], step: int = 1
) -> int:
    """Interrupt a deed at each `step`-th point; see `sweeps.interrupt_everywhere`."""
    return sweeps.interrupt_everywhere(ready, deed, verify, of_smalls, step=step)
