"""Systems without robust mutexes, or without waits by the monotonic clock: what shmarray does there."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from tests.guards import libraries
from tests.helpers.processes import run_command, run_script

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("survival")  # once; the kinds of guard are those of the processes that are started
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

OPEN = """
import os
import shmarray as sa
with sa.Store() as store:
    print(store.guard, "guard='multiprocessing'" in repr(store))
    a = store.zeros(3)
    with a.write():
        pid = os.fork()
        if not pid:
            os._exit(a.lock.acquire(timeout=0.06))
        print(os.waitpid(pid, 0)[1])
    with a.read():
        print(a.lock.holder())
try:
    sa.Store(guard="robust").close()
except sa.GuardError as error:
    print(error)
"""


@pytest.mark.parametrize("reason", libraries.NOT_ROBUST)
def test_without_robust_mutexes_a_store_has_plain_locks_and_says_so(reason: str, tmp_path: Path) -> None:
    """Import works, `Store()` takes the plain kind by itself and shows it; asked for, robust ones are refused with reason and remedy."""
    said = run_script(OPEN, env=libraries.seen(libraries.NOT_ROBUST[reason], tmp_path / "site")).expect().splitlines()
    assert said[:3] == ["multiprocessing True", "0", "None"]
    assert reason in said[3]
    assert "multiprocessing" in said[4]
    assert len(said) == 5


@pytest.mark.core
def test_a_store_says_which_kind_of_guard_it_has() -> None:
    """`store.guard` is what was asked for, by default the robust kind; the plain one is seen in the repr as well."""
    with sa.Store(guard=None) as store, sa.Store(guard="multiprocessing") as plain:
        assert (store.guard, plain.guard) == ("robust", "multiprocessing")
        assert "guard" not in repr(store)
        assert repr(plain).endswith(" open, guard='multiprocessing'>")


@pytest.mark.parametrize("reason", libraries.NOT_ROBUST)
def test_the_doctor_tells_that_a_killed_holder_is_not_survived(reason: str, tmp_path: Path) -> None:
    """A finding of its own, a warning, with the reason and a remedy; the other experiments go on."""
    command = [sys.executable, "-m", "shmarray", "doctor", "--json"]
    done = run_command(command, env=libraries.seen(libraries.NOT_ROBUST[reason], tmp_path / "site"))
    found = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    finding = found["no-robust-mutexes"]
    assert finding["level"] == "warning"
    assert finding["text"].startswith("no robust mutexes: a killed holder is not survived")
    assert reason in finding["text"]
    assert finding["remedy"]
    assert "pidfd" in found["kernel"]["facts"]["works"]


JOIN = """
import sys
import numpy as np
import shmarray as sa
store = sa.connect(sys.argv[1])
a, lock, queue = store["a"], store["lock"], store["queue"]
print(a.sum(), a.lock.holder(), store.guard)
for use in (a.write().__enter__, a.read().__enter__, a.lock.acquire, lock.acquire, queue.get_nowait, lambda: store.put(np.ones(3))):
    try:
        use()
    except sa.GuardError as error:
        print(error.remedy)
"""


def test_a_process_without_robust_mutexes_reads_a_store_that_has_them_and_enters_no_guard(tmp_path: Path) -> None:
    """Joining and looking work; every use of a guard, and making what has one, is a GuardError with a remedy, and harms nobody."""
    with sa.Store("guards-join") as store:
        a = store.ones(3, name="a")
        kept: list[Any] = [store.Lock(name="lock"), store.Queue(name="queue")]
        library = libraries.NOT_ROBUST["no pthread_mutexattr_setrobust"]
        said = run_script(JOIN, "guards-join", env=libraries.seen(library, tmp_path / "site")).expect().splitlines()
        assert said[0] == "3.0 None robust"
        assert len(said) == 7
        assert len(set(said[1:])) == 1
        assert "guard='multiprocessing'" in said[1]
        with a.write(timeout=5), kept[0]:
            pass


DATE = """
import ctypes, threading, time
import shmarray as sa
from shmarray._os import mutexes
for guard in ("robust", "multiprocessing"):
    with sa.Store(guard=guard) as store:
        lock = store.Lock()
        lock.acquire()
        waited = []
        def wait(seconds=0.06):
            address, began = lock._guard._lock, time.monotonic()
            if guard == "robust":
                in_time = mutexes.mutex_wait(address, seconds) != mutexes.TIMED_OUT
            else:
                function, arguments = mutexes.semaphore_wait(address, seconds)
                in_time = function(*arguments) == 0
            waited.append((in_time, time.monotonic() - began >= seconds, lock.acquire(timeout=seconds)))
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        print(store.guard, hasattr(ctypes.CDLL(None), "pthread_mutex_clocklock"), waited)
"""


def test_where_waits_go_by_the_date_alone_guards_are_as_robust_and_as_patient(tmp_path: Path) -> None:
    """Without `pthread_mutex_clocklock` and `sem_clockwait` a store still has robust mutexes, and a wait takes its time."""
    said = run_script(DATE, env=libraries.seen(libraries.NO_CLOCKS, tmp_path / "site")).expect().splitlines()
    assert said == [f"{guard} False [(False, True, False)]" for guard in ("robust", "multiprocessing")]


RUNS = {
    "plain": (libraries.NOT_ROBUST["no pthread_mutexattr_setrobust"], "multiprocessing"),
    "by the date": (libraries.NO_CLOCKS, "exclusive or together or starved or waits or killed or ctrl_c or lost"),
}


@pytest.mark.parametrize("how", RUNS)
def test_the_tests_of_guards_pass_there_too(how: str, tmp_path: Path) -> None:
    """Without robust mutexes all of the plain kind; without waits by the monotonic clock those of both kinds that wait."""
    library, only = RUNS[how]
    tests = os.path.join(HERE, "test_guards.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", only, tests]
    done = run_command(command, env=libraries.seen(library, tmp_path / "site"), cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.describe()
