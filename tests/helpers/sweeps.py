"""Deaths and interruptions at every step of a deed, one after the other.

Owns: doing a deed in a forked child that is killed at its n-th line, for every n; raising out of a signal handler at its n-th step.
Must not know: what the deed is, in which files the steps are, and what must hold then.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import traceback
from typing import TYPE_CHECKING, Any

from tests.helpers.processes import reap
from tests.helpers.tracing import Interrupted, Interrupter, kill_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def in_child(deed: Callable[[], object], *, collect: bool = True) -> int:
    """Do a deed in a forked child, without the cycle collector if that must not come in between; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if not collect:
            gc.disable()
        deed()
        status = 0
    except BaseException:  # noqa: BLE001  it would go on as a second test process
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def sweep(
    ready: Callable[[], object],
    deed: Callable[[], object],
    verify: Callable[[str], object],
    where: Callable[[str], bool],
    *,
    first: int = 1,
    step: int = 1,
    collect: bool = True,
) -> int:
    """Kill a child before every `step`-th line of a deed; make ready before, and verify after. Returns how many deaths there were.

    Counted are the lines of the files of which `where` says so.
    """
    n, deaths = first, 0
    while True:
        ready()

        def die(n: int = n) -> None:
            with kill_at(n, where):
                deed()

        status = reap(in_child(die, collect=collect))
        assert status in (0, -signal.SIGKILL), f"line {n}: {status}"
        verify(f"killed at line {n}" if status else "not killed")
        if not status:
            return deaths
        deaths += 1
        n += step


def interrupt_everywhere(
    ready: Callable[[], object],
    deed: Callable[[], object],
    verify: Callable[[str], object],
    where: Callable[[str], bool],
    *,
    first: int = 1,
    step: int = 1,
    interrupter: Callable[..., Any] = Interrupter,
) -> int:
    """Interrupt a deed at every `step`-th point in this process; make ready before, and verify after. Returns at how many points."""
    n, interruptions = first, 0
    while True:
        ready()
        with interrupter(n, where) as watch, contextlib.suppress(Interrupted):
            deed()
        try:
            verify(watch.where or "not interrupted")
        except BaseException as error:
            error.add_note(f"interrupted at point {n}: {watch.where}")
            raise
        if watch.count < n:
            return interruptions
        interruptions += 1
        n += step


def interrupters(files: Callable[[str], bool], at_least: int = 10) -> Iterator[Interrupter]:
    """Give one for the first point in these files, one for the second, and so on, up to one that is not reached.

    Each is entered once by who goes through them. The collector rests meanwhile, for what it calls back has steps of its own.
    """
    n, reached = 0, True
    gc.disable()
    try:
        while reached:
            n += 1
            interrupter = Interrupter(n, files)
            yield interrupter
            reached = interrupter.count >= n
    finally:
        gc.enable()
    assert n > at_least, f"only {n} points"
