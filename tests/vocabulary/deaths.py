"""Deaths and interruptions at every step of a deed, one after the other.

Owns: doing a deed in a forked child that is killed at its n-th line, for every n; raising out of a signal handler at its n-th step.
Must not know: what the deed is, and what must hold then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from typing import TYPE_CHECKING

from tests.helpers import leaks
from tests.helpers.processes import reap
from tests.helpers.tracing import Interrupted, Interrupter, in_package, kill_at, package_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    import shmarray as sa

_OURS = ("keepers.py", "guards.py", "queues/", "managed/", "memory.py", "keeping.py")


def of_keepers(filename: str) -> bool:
    """Say whether a source file is of those that change what a queue, a dict or a list is made of."""
    return in_package(filename) and os.path.relpath(os.path.realpath(filename), package_directory()).startswith(_OURS)


def in_child(deed: Callable[[], object]) -> int:
    """Do a deed in a forked child; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        deed()
        status = 0
    except BaseException:  # noqa: BLE001  it would go on as a second test process
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def sweep(
    ready: Callable[[], object], deed: Callable[[], object], verify: Callable[[str], object], step: int = 1
) -> int:
    """Kill a child before each line of a deed in turn; make ready before, and verify after. Returns how many deaths there were."""
    n, deaths = 1, 0
    while True:
        ready()

        def die(n: int = n) -> None:
            with kill_at(n, of_keepers):
                deed()

        status = reap(in_child(die))
        assert status in (0, -signal.SIGKILL), f"line {n}: {status}"
        verify(f"killed at line {n}" if status else "not killed")
        if not status:
            return deaths
        deaths += 1
        n += step


def interrupt_everywhere(
    ready: Callable[[], object], deed: Callable[[], object], verify: Callable[[str], object], step: int = 1
) -> int:
    """Interrupt a deed at each `step`-th point in turn; make ready before, and verify after. Returns at how many points."""
    n = interruptions = 0
    while True:
        n += step
        ready()
        with Interrupter(n, of_keepers) as interrupter, contextlib.suppress(Interrupted):
            deed()
        verify(interrupter.where or "not interrupted")
        if interrupter.count < n:
            return interruptions
        interruptions += 1


def files_of(store: sa.Store) -> set[str]:
    """Files of a store, as seen from outside, but for the control file."""
    return {entry for entry in leaks.shm_entries() if f".{store.id}." in entry and not entry.endswith(".ctl")}
