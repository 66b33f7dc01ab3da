"""What every test gets: a leak guard, hypothesis profiles, start methods, a directory for blocks."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import time
from multiprocessing import forkserver
from typing import TYPE_CHECKING, cast

import hypothesis
import pytest

from shmarray import absences
from tests.helpers import forks, leaks, tracing
from tests.helpers.processes import Child, wait_until

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from multiprocessing.context import SpawnContext

_PROFILE = "SHMARRAY_HYPOTHESIS_PROFILE"
_DEADLINE = 5.0  # seconds; a guardian that is just exiting, a worker whose end is not yet seen
_AT_ONCE = 3  # guardians that may be ending while the tests go on
_failed = pytest.StashKey[bool]()
_ending: dict[leaks.Guardian, tuple[float, str]] = {}
"""Guardians that no test has waited for: since when their store is gone, and the test that had it."""

hypothesis.settings.register_profile(
    "ci", derandomize=True, max_examples=25, stateful_step_count=20, deadline=None, print_blob=True
)
hypothesis.settings.register_profile("deep", max_examples=1000, stateful_step_count=60, deadline=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options that make the suite longer."""
    parser.addoption("--deep", action="store_true", help="random examples, many of them (hypothesis profile `deep`)")
    parser.addoption("--soak", action="store_true", help="also run the tests marked `soak`, which take minutes")


def pytest_configure(config: pytest.Config) -> None:
    """Mark this run's processes and choose how hard hypothesis looks."""
    os.environ[leaks.RUN] = f"{os.getpid()}-{os.urandom(4).hex()}"
    # Started in the background by a shell, a process ignores Ctrl-C, and so would every process that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Thousands of processes are started: let them find what the first of them has compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # For each further core NumPy's BLAS starts a thread when it is imported, which spins for as long as the whole import takes.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    hypothesis.settings.load_profile("deep" if config.getoption("--deep") else os.environ.get(_PROFILE, "ci"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the soak tests out unless they were asked for; what takes minutes gets no deadline of two."""
    for item in items:
        if "soak" not in item.keywords:
            if config.getoption("--deep") and item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(0))
            continue
        if not config.getoption("--soak"):
            item.add_marker(pytest.mark.skip(reason="only with --soak"))
        elif item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(0))


def pytest_runtest_call(item: pytest.Item) -> None:
    """Where minutes are expected, have no stacks printed after one: that looks at running frames without the GIL, and may crash."""
    timeout = item.get_closest_marker("timeout")
    if timeout is not None and timeout.args == (0,):
        faulthandler.cancel_dump_traceback_later()


def pytest_collection_finish() -> None:
    """Take the tests themselves, which stay to the end, out of the way of the collector, which the leak guard often calls, and of forks."""
    tracing.remember_files()
    gc.collect()
    gc.freeze()
    forks.make_cheap()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember failures: a traceback keeps its frames' arrays alive, which the leak guard must not report on top."""
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(scope="session", autouse=True)
def _standing_helpers() -> Iterator[None]:
    """Start the fork server and the resource tracker now: multiprocessing keeps them, and their pipes, for the whole run.

    The fork server has NumPy, which takes most of the start of a process that uses shmarray; that itself comes in each of them.
    """
    multiprocessing.set_forkserver_preload(["numpy"])
    forkserver.ensure_running()
    yield
    _await_guardians(at_most=0)


def _await_guardians(at_most: int) -> None:
    """Wait until no more guardians than that are ending; fail, naming its test, if one takes longer than it may."""

    def left() -> set[int]:
        running = set(leaks.guardians({guardian.pid for guardian in _ending}))
        for guardian in _ending.keys() - running:
            del _ending[guardian]
        return {guardian.pid for guardian in _ending}

    while pids := left():
        first, (since, test) = min(_ending.items(), key=lambda item: item[1])
        remaining = since + _DEADLINE - time.monotonic()
        if remaining < 0:
            del _ending[first]  # said once
            message = (
                f"the guardian of a store that {test} had runs on, {_DEADLINE:g} s after the store has gone: {first}"
            )
            raise AssertionError(message)
        if len(pids) <= at_most:
            return
        leaks.wait_for_an_end(pids, remaining)


@pytest.fixture(autouse=True)
def _leak_guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a name, a mapping, a descriptor or a process behind, naming each.

    A guardian whose store is gone ends while the next tests run, and the one that finds it too late fails: to wait for it here
    takes longer than a short test.
    """
    _await_guardians(_AT_ONCE)
    before = leaks.Look.now()
    yield
    if request.node.stash.get(_failed, False):
        Child.end_all()
        return
    left: list[str] = []
    running: set[int] = set()
    request.node.funcargs.clear()  # pytest keeps what fixtures gave, arrays too, until the test is over for good

    def clean() -> bool:
        absences.tidy()  # as the next store that is opened or joined here would
        now = leaks.Look.now()
        ending = now.ending_since(before)
        left[:] = now.leaked_since(before, ending)
        if not left:
            _ending.update(dict.fromkeys(ending, (time.monotonic(), request.node.nodeid)))
        running.clear()
        running.update(now.processes - before.processes)
        return not left

    if clean():  # the collector, which takes most of the time of a short test, is not needed
        return
    gc.collect()
    # Most often a guardian is just ending: its end is an event, and a look costs more than the rest of a short test.
    wait_until(
        clean,
        _DEADLINE,
        lambda: "the test left behind:\n  " + "\n  ".join(left),
        lambda pause: leaks.wait_for_an_end(running, 0.05 if running else pause),
    )


@pytest.fixture
def each_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give small anonymous arrays files of their own, as large ones have, in this process and in those that it starts."""
    monkeypatch.setenv("SHMARRAY_SMALL", "0")


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> SpawnContext:
    """Context of `multiprocessing` for each way to start a process; all three have the attributes of the type named here."""
    return cast("SpawnContext", multiprocessing.get_context(request.param))


@pytest.fixture
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A directory for `Store(directory=...)`, in which no file of ours may be left."""
    directory = str(tmp_path_factory.mktemp("blocks"))
    yield directory
    if not leaks.shm_entries(directory=directory):  # the collector takes longer than a short test
        return
    gc.collect()
    wait_until(
        lambda: not leaks.shm_entries(directory=directory),
        _DEADLINE,
        lambda: f"left in {directory}: {sorted(leaks.shm_entries(directory=directory))}",
    )
