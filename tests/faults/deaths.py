"""Deaths and pauses: an operation, and the line before which its process is killed or stands still.

Owns: counting the lines of an operation, and dying or pausing at one, as steps of an actor.
Must not know: what must hold then.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

import shmarray as sa
from shmarray.guardian import launch
from tests.faults import odd_guardian, traced_guardian
from tests.faults.operations import GUARDED, LOOKING, OPERATIONS
from tests.faults.stage import World
from tests.faults.witnesses import come, open_store, whole
from tests.helpers.processes import reap
from tests.helpers.tracing import count_events, in_package, kill_at, within_package

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from shmarray.membership import Membership

_OPENING = ("membership.py", "store.py", "guardian/launch.py")
_PURE = ("_format/", "_os/words.py", "_os/limits.py", "errors.py", "exhaustion.py", "arrays.py", "trees.py", "locks.py")


def touches_files(filename: str) -> bool:
    """Say whether that source file is of those whose lines lie between two changes that others can see.

    To die anywhere else is to die before the next line of one of these.
    """
    path = within_package(filename)
    return bool(path) and not path.startswith(_PURE)


def opens_stores(filename: str) -> bool:
    """The same for opening a store, without the look at all other stores, which are more or fewer each time."""
    return within_package(filename) in _OPENING


def lines(every: bool) -> Callable[[str], bool]:  # noqa: FBT001  sent as it is
    """Give the files whose lines count."""
    return in_package if every else touches_files


def count(world: World, number: int, ticket: Any, every: bool) -> int:  # noqa: FBT001  sent as it is
    """How many lines there are to be killed at in an operation; `every` counts all of the package."""
    operation = OPERATIONS[number]
    operation.ready(world, ticket)
    return count_events(lambda: operation.act(world, ticket), lines(every))


def die_in(world: World, number: int, ticket: Any, n: int, every: bool) -> None:  # noqa: FBT001  sent as it is
    """Do an operation, and be killed at its n-th line."""
    operation = OPERATIONS[number]
    operation.ready(world, ticket)
    with kill_at(n, lines(every)):
        operation.act(world, ticket)


class _StopAt:
    """Stops this process (SIGSTOP) before its n-th line in chosen files; it goes on when it is told to (SIGCONT)."""

    def __init__(self, n: int, files: Callable[[str], bool]) -> None:
        self.left = n
        self.files = files

    def __enter__(self) -> None:
        sys.settrace(self._enter)

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        return self._step if self.files(frame.f_code.co_filename) else None

    def _step(self, _frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line":
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGSTOP)
        return self._step


def pause_in(blob: bytes, number: int, ticket: Any, n: int, every: bool) -> None:  # noqa: FBT001  as the others
    """Join and do an operation, with a pause before its n-th line.

    If the store ends meanwhile, what is left of the operation is refused, or is of no consequence. A guard is not refused.
    """
    world, operation = World(), OPERATIONS[number]
    try:
        if not operation.joins:
            come(world, blob)
        operation.ready(world, ticket)
    except (sa.StoreClosedError, sa.ArrayNotFoundError):
        return  # so late that the store had ended before
    refusals = () if operation.name in GUARDED else (sa.StoreClosedError, sa.StoreNotFoundError)
    try:
        with _StopAt(n, lines(every)):
            operation.act(world, ticket)
    except refusals:
        assert not hasattr(world, "store") or world.store.closed
    except sa.ArrayExistsError:
        assert operation.name in ("create named", "put a tree")  # by another that pauses
    except sa.ArrayNotFoundError:
        # The names of a store that ends go one after the other. In one that lives, only one of all can delete.
        assert operation.name in LOOKING
        assert world.store.closed or operation.name == "delete by name"
        return
    for view in world.views.values():
        whole(view)


def in_a_child(world: World, step: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Do a step in a forked child of this actor; gives how the child ended, and what the step gave if it came so far."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child:
        theirs.close()
        status = reap(child)
        with ours:
            return status, ours.recv() if ours.poll() and not status else None
    status = 1
    try:
        theirs.send(step(world, *args))
        status = 0
    except BaseException:  # noqa: BLE001  it would go on as a second owner
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def count_opening(_: World, options: dict[str, Any], files: Callable[[str], bool]) -> int:
    """How many lines there are to be killed at in opening a store; it is closed again."""
    opened: list[sa.Store] = []
    found = count_events(lambda: opened.append(sa.Store(**options)), files)
    opened[0].close()
    return found


def die_opening(world: World, options: dict[str, Any], n: int, files: Callable[[str], bool]) -> None:
    """Open a store, and be killed at the n-th line of that."""
    with kill_at(n, files):
        world.store = sa.Store(**options)


def count_closing(world: World, every: bool) -> int:  # noqa: FBT001  sent as it is
    """How many lines there are to be killed at in closing a store."""
    return count_events(world.store.close, lines(every))


def die_closing(world: World, n: int, every: bool) -> None:  # noqa: FBT001  sent as it is
    """Close the store, and be killed at the n-th line of that."""
    with kill_at(n, lines(every)):
        world.store.close()


def open_under_traced_guardian(world: World, options: dict[str, Any], n: int, function: str) -> tuple[bytes, str, int]:
    """Open a store whose guardian dies at its n-th line, counted from the first call of `function`."""
    return _open_under(world, options, traced_guardian.__file__, str(n), function)


def open_under_odd_guardian(world: World, options: dict[str, Any], twist: str) -> tuple[bytes, str, int]:
    """Open a store whose guardian runs with that twist (`odd_guardian`)."""
    return _open_under(world, options, odd_guardian.__file__, twist)


def _open_under(world: World, options: dict[str, Any], *before: str) -> tuple[bytes, str, int]:
    """Open a store whose guardian's script is run by another, which has these words before it."""
    usual = launch.command

    def changed(member: Membership) -> list[str]:
        words = usual(member)
        script = next(position for position, word in enumerate(words) if word.endswith("__main__.py"))
        return [*words[:script], *before, *words[script:]]

    launch.command = changed
    try:
        return open_store(world, options)
    finally:
        launch.command = usual
