"""`Store.Pool`: a `multiprocessing.Pool` in the host, used by a proxy."""

from __future__ import annotations

import gc
import math
import os
import signal
import textwrap
from multiprocessing import TimeoutError as PoolTimeoutError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from shmarray.errors import LostTaskError
from tests.helpers.processes import run_script, wait_until
from tests.hosting import things

if TYPE_CHECKING:
    from tests.hosting.things import Things


def gone(pid: int) -> bool:
    """Say whether a process is not there any more."""
    return not os.path.exists(f"/proc/{pid}")


def test_a_pool_has_the_methods_of_a_pool(store: Things) -> None:
    """`map`, `imap`, `starmap`, `apply` and their asynchronous forms, errors of the function, `with`, as from a manager."""
    with store.Pool(1, things.begin, (2.5,)) as pool:
        assert pool.map(math.factorial, [1, 2, 3]) == [1, 2, 6]
        assert list(pool.imap(math.factorial, [3, 4])) == [6, 24]
        assert sorted(pool.imap_unordered(math.factorial, [3, 4])) == [6, 24]
        assert pool.starmap(math.pow, [(2, 3)]) == [8]
        assert pool.apply(things.begun, [0]) == [2.5]
        assert pool.map_async(math.factorial, [5]).get(30) == [120]
        with pytest.raises(ValueError, match="factorial"):
            pool.apply(math.factorial, [-1])
        with pytest.raises(PoolTimeoutError):
            pool.apply_async(things.busy, [os.devnull]).get(0.01)
    with pytest.raises(ValueError, match="not running"):
        pool.map(math.factorial, [1])


def test_arrays_pass_as_handles_to_workers_and_back(store: Things) -> None:
    """A worker changes the very memory that it was given, returns it, and may make arrays of its own."""
    array = store.ones(1000)
    with store.Pool(1) as pool:
        back = pool.apply(things.scale, (array, 3))
        assert back.block_name == array.block_name
        assert array.sum() == 3000
        made = pool.apply(np.ones_like, (array,))
        assert made.sum() == 1000


def test_workers_end_with_the_last_proxy_of_their_pool(store: Things) -> None:
    """A pool that nobody terminates ends when its last proxy is dropped; another pool and the host go on."""
    pool, other = store.Pool(1), store.Pool(1)
    worker, stays = (each.apply(things.pid_of_worker, [0]) for each in (pool, other))
    del pool
    gc.collect()
    wait_until(lambda: gone(worker))
    assert other.apply(things.pid_of_worker, [0]) == stays
    other.terminate()
    other.join()


def test_a_pool_goes_on_without_the_process_that_made_it(start_method: Any, store: Things) -> None:
    """The proxy of a pool travels: another process gives it work."""
    with store.Pool(1) as pool:
        worker = start_method.Process(target=give_work, args=(pool, results := store.Queue()))
        worker.start()
        assert results.get(timeout=30) == [6, 24]
        worker.join()


def give_work(pool: Any, results: Any) -> None:
    """Use a pool from elsewhere."""
    results.put(pool.map(math.factorial, [3, 4]))


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_worker_that_dies_breaks_its_pool(state: str, store: Things, tmp_path: Any) -> None:
    """Idle or at work, a worker is killed: all who wait are told, the pool is closed, and another can be made."""
    with store.Pool(1) as pool:
        worker = pool.apply(things.pid_of_worker, [0])
        waiting = []
        if state == "busy":
            said = str(tmp_path / "said")
            waiting = [pool.map_async(things.busy, [said]), pool.apply_async(math.factorial, [3])]
            waiting.append(iterator := pool.imap(math.factorial, [3, 4]))
            wait_until(lambda: os.path.exists(said))
        os.kill(worker, signal.SIGKILL)
        for each in waiting:
            with pytest.raises(LostTaskError, match="exit status -9"):
                next(each) if each is iterator else each.get(30)
        wait_until(lambda: _refuses(pool))
        pool.join()
    with store.Pool(1) as pool:
        assert pool.apply(math.factorial, [3]) == 6


def test_a_failing_initializer_is_named(store: Things) -> None:
    """By whoever waits, and by whoever comes too late; not by an exit status, nor on standard error, again and again."""
    pool = store.Pool(2, things.refuse_to_begin, ("no such camera: front",))
    with pytest.raises(
        (LostTaskError, ValueError), match=r"initializer .* has failed: OSError: no such camera: front"
    ) as caught:
        pool.map(things.pid_of_worker, [0] * 10)
    assert str(caught.value).endswith("\nMend it, and make a new pool.")
    if isinstance(caught.value, LostTaskError):
        assert "in refuse_to_begin" in caught.value.traceback
        assert caught.value.status == 1
    wait_until(lambda: _refuses(pool))
    with pytest.raises(ValueError, match="no such camera"):
        pool.apply(math.factorial, [3])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("group", "ExceptionGroup: several (2 sub-exceptions)"),
        ("long", "ValueError: " + "x " * 144),
        ("lines", "ValueError: first"),
    ],
)
def test_any_failure_of_an_initializer_ends_the_pool_and_is_named(store: Things, what: str, says: str) -> None:
    """Whatever its traceback looks like: it must not be in the way of telling those who wait."""
    pool = store.Pool(1, things.fail_to_begin, (what,))
    with pytest.raises((LostTaskError, ValueError)) as caught:
        pool.map_async(math.factorial, [3]).get(30)
    assert str(caught.value).splitlines()[0] == f"the initializer of a pool's workers has failed: {says}"
    wait_until(lambda: _refuses(pool))
    pool.terminate()
    pool.join()


def _refuses(pool: Any) -> bool:
    try:
        pool.apply_async(math.factorial, [3])
    except ValueError:
        return True
    return False


def test_a_pool_needs_a_main_module_that_can_be_imported() -> None:
    """In a program without a guard a pool is refused with the remedy, instead of starting workers without end."""
    source = """
    import shmarray as sa
    store = sa.Store()
    try:
        store.Pool(1)
    except sa.HostError as error:
        print(error.remedy.split(",")[0])
    store.close()
    """
    said = run_script(textwrap.dedent(source)).expect()
    assert said == 'Guard what the program does by `if __name__ == "__main__":`\n'


def test_wrong_arguments_of_a_pool_are_refused(store: Things) -> None:
    """As by `multiprocessing`, and before a worker is started."""
    wrong: Any = 3
    with pytest.raises(TypeError, match="callable"):
        store.Pool(1, wrong)
    with pytest.raises(ValueError, match="at least 1"):
        store.Pool(0)
