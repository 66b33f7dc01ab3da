"""Warm memory and death: the owner is killed at any line, readers at any time; nobody ever sees another array's bytes."""

from __future__ import annotations

import functools
import os
import pickle
import random
import signal
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import contents
from tests.helpers import copies
from tests.helpers.leaks import shm_entries
from tests.helpers.processes import reap, wait_until
from tests.helpers.tracing import count_events, kill_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

N = 1000
FILES = (
    *("attachments.py", "blocks.py", "deletion.py", "drafts.py", "idling.py", "memories.py"),
    *("reclaim.py", "reserves.py", "resting.py", "roots.py", "warm.py"),
)


pytestmark = pytest.mark.usefixtures("small_is_kept")


def counts(filename: str) -> bool:
    """Say whether the lines of that file are to be died at."""
    return filename.endswith(FILES)


def free(store: sa.Store) -> None:
    """Free an anonymous array."""
    store.arrays.pop()  # type: ignore[attr-defined]  # put there by `prepared`


def free_shown(store: sa.Store) -> None:
    """Free one that others might have seen."""
    assert store.arrays[-1].lock is not None  # type: ignore[attr-defined]  # put there by `prepared`
    free(store)


def again(store: sa.Store) -> None:
    """Make one like that which was freed, and free it again."""
    store.arrays.append(store.full(N, 3.0))  # type: ignore[attr-defined]  # put there by `prepared`
    free(store)


def delete(store: sa.Store) -> None:
    """Delete a named one that is in use, and drop it."""
    del store["x"]
    store.named.pop()  # type: ignore[attr-defined]  # put there by `prepared`


def make(store: sa.Store) -> None:
    """Make one of what was freed."""
    store.arrays.append(store.full(N, 3.0, name="y"))  # type: ignore[attr-defined]  # put there by `prepared`


def give_up(store: sa.Store) -> None:
    """Give back what is kept."""
    store.trim()


def publish(store: sa.Store) -> None:
    """Publish under a name that has an array."""
    store["p"] = np.full(N, 4.0)


def forget(store: sa.Store) -> None:
    """Delete by name what nobody has."""
    del store["p"]


DEEDS: tuple[Callable[[sa.Store], None], ...] = (free, free_shown, again, delete, make, publish, forget, give_up)


def prepared(deed: Callable[[sa.Store], None]) -> sa.Store:
    """Open a store in which a deed can be done, with one array more, which others see."""
    store = sa.Store(warm=1 << 20)
    store.kept = store.full(N, 7.0, name="kept")  # type: ignore[attr-defined]  # kept with it
    store.arrays = [store.ones(N)]  # type: ignore[attr-defined]
    store.named = [store.ones(N, name="x")]  # type: ignore[attr-defined]
    store["p"] = np.full(N, 1.0)
    if deed in (again, make, publish, give_up):
        free(store)
        delete(store)
    return store


@pytest.mark.core
@pytest.mark.parametrize("deed", DEEDS)
def test_an_owner_killed_at_any_line_leaves_nothing_and_disturbs_nobody(
    deed: Callable[[sa.Store], None], request: pytest.FixtureRequest
) -> None:
    """The guardian removes all, and a view that another process has stays what it was."""
    with prepared(deed) as store:
        number = count_events(lambda: deed(store), counts)
        del store.kept, store.arrays, store.named  # type: ignore[attr-defined]
    every = 1 if request.config.getoption("--deep") else max(1, number // 12)
    assert number > 5
    for n in range(1, number + 1, every):
        said, go = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                store = prepared(deed)
                os.write(said[1], pickle.dumps((store.id, pickle.dumps(store.kept))))  # type: ignore[attr-defined]
                os.read(go[0], 1)
                with kill_at(n, counts):
                    deed(store)
            finally:
                os._exit(9)
        identity, handle = pickle.loads(os.read(said[0], 4096))
        view = pickle.loads(handle)
        os.write(go[1], b"!")
        assert reap(pid) == -signal.SIGKILL, f"line {n} of {number}"
        assert (view == 7.0).all()
        gone = functools.partial(is_gone, identity)
        wait_until(gone, message=f"killed at line {n} of {number}, something stays")
        assert (view == 7.0).all()
        del view
        for end in (*said, *go):
            os.close(end)


@pytest.fixture
def copied_by(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have so many threads share each copy."""
    with copies.all_shared(request.param):
        yield


def is_gone(identity: str) -> bool:
    """Say whether no block of a store is left."""
    return not [entry for entry in shm_entries() if f".{identity}." in entry and not entry.endswith(".ctl")]


def read(calls: Connection, tally: Any) -> None:
    """Attach what comes, and look at it again and again for as long as the next has not come: each is all one number."""
    held: list[tuple[float, Any]] = []
    looked = 0
    while True:
        while calls.poll():
            number, handle = calls.recv()
            if handle is None:
                calls.send(looked)
                return
            try:
                held.append((number, pickle.loads(handle)))
            except sa.ArrayNotFoundError:
                continue  # freed on its way, and perhaps another array by now
        for number, array in held:
            looked += 1
            tally[0] = looked  # what a killed one has seen counts too
            first, last = float(array.min()), float(array.max())
            if not first == last == number:
                calls.send((number, first, last))
                return
        del held[:-3]
        calls.poll(0.001)


@pytest.mark.usefixtures("copied_by")
@pytest.mark.parametrize("copied_by", [1, 3], indirect=True)
@pytest.mark.parametrize("rounds", [3000])
def test_readers_never_see_another_arrays_bytes_whoever_is_killed(rounds: int, request: pytest.FixtureRequest) -> None:
    """The owner makes and frees without pause, forks, and kills readers; each array is of one number, and stays so for who has it.

    So it is where several threads share each copy.
    """
    if request.config.getoption("--deep"):
        rounds *= 100
    context: Any = get_context("fork")
    dice = random.Random(11)  # noqa: S311  the same each time
    again = 0
    with sa.Store(warm=1 << 20) as store:
        tally = store.zeros(3 + rounds // 200 + 1, "i8")
        readers = [_start(context, tally[n : n + 1]) for n in range(3)]
        files: set[int] = set()
        mine: list[tuple[float, Any]] = []
        for turn in range(rounds):
            number = float(turn)
            array = store.full(N, number) if turn % 2 else store.put(np.full(N, number), name=f"n{turn}")
            file = contents.inode_of(array)
            again += file in files
            files.add(file)
            for _, calls in readers:
                if dice.random() < 0.3:
                    _send(calls, (number, pickle.dumps(array)))
            if not turn % 2:
                del store[f"n{turn}"]
            mine.append((number, array))
            del array
            view: Any
            for kept, view in mine:
                assert view[0] == view[-1] == kept
            del mine[: max(dice.randrange(3), len(mine) - 20)]  # no more than what is kept can be used again
            if turn % 250 == 100:
                _crossing(mine)
            if turn % 200 == 50:
                process, calls = readers.pop(dice.randrange(len(readers)))
                process.kill()
                process.join()
                calls.close()
                readers.append(_start(context, tally[3 + turn // 200 : 4 + turn // 200]))
        mine.clear()
        view = None
        for process, calls in readers:
            _finish(process, calls)
        looks = int(tally.sum())
        del tally
        store.release_unclaimed()
        wait_until(lambda: store.check(fix=True) == [], message="something is wrong with the store")
        assert store.stats().anonymous == 0
    assert again > rounds // 10, "hardly any memory was used again"
    assert looks > rounds // 10, "hardly anything was looked at"


def _start(context: Any, tally: Any) -> tuple[Any, Any]:
    mine, theirs = context.Pipe()
    process = context.Process(target=read, args=(theirs, tally), daemon=True)
    process.start()
    theirs.close()
    return process, mine


def _send(calls: Any, what: tuple[float, bytes | None]) -> None:
    if calls.poll():
        raise AssertionError(f"a reader saw {calls.recv()}")
    calls.send(what)


def _crossing(mine: list[tuple[float, Any]]) -> None:
    """Fork a child that looks at what it has."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all((view == number).all() for number, view in mine) else 1)
    assert reap(pid) == 0


def _finish(process: Any, calls: Any) -> None:
    calls.send((0.0, None))
    answer = calls.recv()
    assert isinstance(answer, int), f"a reader saw {answer}"
    process.join(30)
    assert process.exitcode == 0
    calls.close()
