"""CPython's own tests of `multiprocessing`, run against what a store makes: what they expect is what users expect.

Each of their methods is a test here, in a process of its own. Without `--deep` those run that take a moment, do not depend on how
quick the machine is, and by `fork`; a few also by `spawn`. With `--deep` all of them run, by every start method.
"""

from __future__ import annotations

import os
import re
from multiprocessing import sharedctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.project.test_readme import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip(
    "test._test_multiprocessing", reason="this Python comes without its own tests", exc_type=ImportError
)

from shmarray import queues
from tests.contract import cpython

GUIDE = os.path.join(ROOT, "docs", "from-multiprocessing.md")
LONGEST = 60.0  # seconds; one that takes longer hangs

DEEP = re.compile(
    r"""
    Condition\.test_(notify|wait_result)            # they assert what has happened after a tenth of a second
    | Barrier\.test_(timeout|default_timeout|thousand)
    | Poll\.test_(boundaries|strings)
    | Process\.(?!test_(process|args_argument|parent_process)$)
    | ManagedPool\.(?!test_(map|map_unplicklable|make_pool)$)
    | ManagedMyManager\.(?!test_mymanager$)
    | Hosted(?!Containers\.test_(dict|list)$)
    | Plain(Hosted|SyncManagerTypes\.test_pool$)
    """,
    re.VERBOSE,
)
"""What runs with `--deep` alone: it takes more than a moment, or fails where the machine has no time for it."""

SPAWNED = re.compile(
    r"""
    Queue\.test_fork$ | Value\.test_value$ | Connection\.test_spawn_close$ | PicklingConnections\.test_access$
    """,
    re.VERBOSE,
)
"""What runs by `spawn` also without `--deep`."""

BY_FORK_ALONE = {
    "SharedMemory.test_shared_memory_across_processes": "a spawned process attaches by the standard class, whose tracker then warns",
    "PlainIgnoreEINTR.test_ignore": "a large message does not wait in `send`, so its sender may be gone, which a zombie does not show",
    "PlainStdinBadfiledescriptor.test_queue_in_process": "its function makes the queue itself, by the module's names",
}
"""Tests that are about ours under `fork` alone, each with the reason."""


def _say_a_descriptor() -> None:
    connection: Any = queues.Connection
    connection.fileno = lambda end: 0


def _make_structures_by_the_standard() -> None:
    theirs: Any = cpython.theirs
    ours = theirs.Value

    def make(kind: Any, *args: Any, lock: Any) -> Any:
        return sharedctypes.Value(kind, *args, lock=lock) if kind is theirs._Foo else ours(kind, *args, lock=lock)

    theirs.Value = make


def _expect_from_a_host(error: type[Exception]) -> None:
    cpython.theirs.RemoteError = error


def _number_blocks_alike() -> None:
    """Have all numbers of blocks take as many bytes in a pickle: the test compares the lengths of two handles."""
    drawn = os.urandom
    os.urandom = lambda size: drawn(size - 1) + b"\x7f"


class Difference(NamedTuple):
    """A sentence of the guide; what the test says when it fails for that reason; what lets the rest of the test run."""

    why: str
    says: str
    around: Callable[[], None] | None = None


_NO_FEEDER = "What cannot be pickled is an error of `put`: there is no feeder thread, and no `_on_queue_feeder_error`."
_ALWAYS_LOCKED = "A `Value` or `Array` always has a lock, also with `lock=False`."
_ONE_TUPLE = "A structured `Value` takes one tuple, and has no attribute for each field."
_NO_DESCRIPTOR = "A pipe has no descriptor: `fileno()` is an `OSError`, and descriptors cannot be sent through it."
_ONE_MOMENT = (
    "A loop over a dict or a list goes over what was there when it began; changes meanwhile neither show nor raise."
)
_NO_READER = "Queues have no `_reader` and no `_writer`."
_FREE_AGAIN = "The lock of a process that has ended is free; releasing it on that one's behalf is `GuardError`."
_OWN_ERRORS = "What fails in the host of pools and custom types is raised as it is, and not as `RemoteError`."

DIFFERENCES = {
    "Queue.test_queue_feeder_donot_stop_onexc": Difference(_NO_FEEDER, "raise AttributeError"),
    "Queue.test_queue_feeder_on_queue_feeder_error": Difference(_NO_FEEDER, "SafeQueue"),
    "Value.test_getobj_getlock": Difference(_ALWAYS_LOCKED, "hasattr.*'get_lock'"),
    "Array.test_getobj_getlock_obj": Difference(_ALWAYS_LOCKED, "hasattr.*'get_lock'"),
    "SharedCTypes.test_sharedctypes": Difference(_ONE_TUPLE, "Value.*_Foo, 3, 2", _make_structures_by_the_standard),
    "SharedCTypes.test_synchronize": Difference(_ONE_TUPLE, "Value.*_Foo, 3, 2", _make_structures_by_the_standard),
    "Connection.test_connection": Difference(_NO_DESCRIPTOR, "no descriptor", _say_a_descriptor),
    "Connection.test_fd_transfer": Difference(_NO_DESCRIPTOR, "no descriptor"),
    "Connection.test_large_fd_transfer": Difference(_NO_DESCRIPTOR, "no descriptor"),
    "Connection.test_missing_fd_transfer": Difference(_NO_DESCRIPTOR, "no descriptor"),
    "ManagedContainers.test_dict_iter": Difference(_ONE_MOMENT, "RuntimeError not raised by next"),
    "ManagedContainers.test_list_iter": Difference(_ONE_MOMENT, "0 != 100"),
    "PlainSimpleQueue.test_closed": Difference(_NO_READER, "'_reader'"),
    "PlainSyncManagerTypes.test_lock": Difference(_FREE_AGAIN, "GuardError"),
    **dict.fromkeys(
        ("ManagedPool.test_make_pool", "HostedPool.test_make_pool"),
        Difference(_OWN_ERRORS, "ValueError: Number of processes", lambda: _expect_from_a_host(ValueError)),
    ),
    **dict.fromkeys(
        (f"ManagedMyManager.test_mymanager{how}" for how in ("", "_context", "_context_prestarted")),
        Difference(_OWN_ERRORS, "AttributeError: '_h'", lambda: _expect_from_a_host(AttributeError)),
    ),
}
"""The tests that fail against ours, knowingly; keep this short."""

AROUND = {
    "SharedMemory.test_shared_memory_ShareableList_pickling": _number_blocks_alike,
    **{name: difference.around for name, difference in DIFFERENCES.items() if difference.around is not None},
}
"""What is done first, so that a test says what it has to say beside something that is not promised, or is a known difference."""


def _names() -> list[str]:
    return [f"{case}.{method}" for case in cpython.CASES for method in cpython.methods(case)]


def _runs(*, deep: bool) -> Iterator[tuple[str, str]]:
    for name in _names():
        if name in DIFFERENCES and name not in AROUND:
            continue
        if deep or not DEEP.match(name):
            yield name, "fork"
        if name not in BY_FORK_ALONE:
            if deep or SPAWNED.match(name):
                yield name, "spawn"
            if deep:
                yield name, "forkserver"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose by `--deep` which of their methods are tests of ours."""
    if "start_method" in metafunc.fixturenames:
        runs = list(_runs(deep=metafunc.config.getoption("--deep")))
        metafunc.parametrize(("name", "start_method"), runs, ids=["-".join(run) for run in runs])


def test_a_test_of_cpython_passes(name: str, start_method: str) -> None:
    """What users of `multiprocessing` may expect, in CPython's own words, holds for ours."""
    outcome = cpython.run(name, start_method, LONGEST, AROUND.get(name))
    if outcome.how == "skipped":
        pytest.skip(f"CPython's own skip: {outcome.said}")
    assert outcome.how == "passed", outcome.said


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_known_difference_is_still_one(name: str, request: pytest.FixtureRequest) -> None:
    """It fails, for the reason that is given; so nothing stays in the list, and in the guide, that has been mended."""
    if name not in _names():
        pytest.skip("CPython's tests of this version do not have it")
    if DEEP.match(name) and not request.config.getoption("--deep"):
        pytest.skip("only with --deep: it starts a process that takes a moment")
    outcome = cpython.run(name, "fork", LONGEST)
    assert outcome.how == "failed", outcome.said
    assert re.search(DIFFERENCES[name].says, outcome.said), outcome.said


def test_the_guide_has_every_known_difference() -> None:
    """Word for word; and every name that is excused here is one of a test that some version of CPython has."""
    with open(GUIDE, encoding="utf-8") as file:
        section = file.read().partition("## Known differences\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^- (.*)$", section, re.MULTILINE)) == {
        difference.why for difference in DIFFERENCES.values()
    }
