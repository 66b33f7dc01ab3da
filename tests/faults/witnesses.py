"""What those who live do on the stage: the owner, survivors, guests, whoever comes after a death.

Owns: opening, joining and leaving a store, a little of every work, and the checks of what a death left.
Must not know: during what anyone is killed.

Everything here is a step of an actor (`stage.World`).
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

import shmarray as sa
from shmarray import reaper
from shmarray._format import control
from tests.helpers.processes import reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.stage import World

SIZE = 1000
DEADLINE = 20.0
STABLE = 7.0
FIRST, MADE, MADE_ANEW = 1.0, 5.0, 6.0
#: What `check` may find after a death: `fix=True` removes it. Anything else is damage.
MENDABLE = (
    "a block that was never finished; its maker is gone",
    "nobody holds it, and no handle to it is in flight",
    "a handle in flight to a block that was deleted, or that lay in one",
)


def whole(array: Any, *values: float) -> float:
    """Return the one value that fills an array or every array of a tree; fails if there are two, or it is not expected."""
    leaves = [np.asarray(leaf) for leaf in array.values()] if isinstance(array, sa.SharedTree) else [np.asarray(array)]
    found = sorted({float(value) for leaf in leaves for value in np.unique(leaf)})
    assert len(found) == 1, f"half of one and half of another: {found}"
    assert not values or found[0] in values, f"{found[0]} where only {values} may be"
    return found[0]


def open_store(world: World, options: dict[str, Any] | None = None) -> tuple[bytes, str, int]:
    """Open a store with the arrays that every play has; gives its pickle, identity and guardian."""
    world.store = store = sa.Store(**(options or {}))
    store.put(np.full(SIZE, STABLE), name="stable")
    store["x"] = np.full(SIZE, FIRST)
    world.views["mine"] = store.full(SIZE, STABLE)
    # The pid as it was noted: it may have died already.
    return pickle.dumps(store), store.id, _noted_guardian(store)


def _noted_guardian(store: sa.Store) -> int:
    with open(f"/dev/shm/shmarray.{os.geteuid()}.{store.id}.ctl", "rb") as file:
        pid = int.from_bytes(file.read()[control.GUARDIAN_AT : control.GUARDIAN_AT + 8], "little")
    assert pid > 1
    return pid


def join(world: World, blob: bytes) -> None:
    """Join the store and hold views: of a named array, and of an anonymous one of one's own."""
    world.store = pickle.loads(blob)
    world.views["stable"] = world.store["stable"]
    world.views["mine"] = world.store.full(SIZE, STABLE)


def come(world: World, blob: bytes) -> None:
    """Join the store and hold nothing of it."""
    world.store = pickle.loads(blob)


def hold(world: World, name: str) -> None:
    """Attach the array of that name as it is now."""
    world.views["held"] = world.store[name]


def drop(world: World, name: str = "held") -> None:
    """Let go of a view."""
    world.views.pop(name, None)


def part(world: World) -> None:
    """Let go of everything."""
    world.clear()
    gc.collect()


def go_on(world: World) -> None:
    """Do a little of everything, as if nothing had happened."""
    store = world.store
    whole(world.views["mine"], STABLE)
    whole(store["stable"], STABLE)
    # Whoever was killed inside has left the array poisoned, and nobody waits for the dead.
    with store["stable"].write(timeout=DEADLINE, heal=True) as inside:
        whole(inside, STABLE)
    own = f"own/{os.getpid()}"
    store[own] = np.full(SIZE, 2.0)
    store[own] = np.full(SIZE, 3.0)
    whole(store[own], 3.0)
    handle = pickle.dumps(store.full(10, 4.0))
    whole(pickle.loads(handle), 4.0)
    del store[own]
    assert own not in store


def mend(world: World) -> int:
    """As the owner: what a death left is whole or mendable, and mending leaves nothing; returns how much was to be mended."""
    store = world.store
    go_on(world)
    for name in set(store) - {"stable", "x"}:
        assert name == "made", f"who made {name!r}?"
        whole(store[name], MADE, MADE_ANEW)
        del store[name]
    found = store.check(fix=True)
    assert all(problem.reason in MENDABLE for problem in found), found
    assert store.check() == []
    return len(found)


def close(world: World) -> None:
    """As the owner: end the store while views are held, then let go of them."""
    world.store.close()
    whole(world.views["mine"], STABLE)
    world.clear()


def release(world: World) -> int:
    """As the owner: give up handles that nobody will load."""
    return world.store.release_unclaimed()


def version(world: World, *values: float) -> float:
    """As the owner: the array "x" is there, whole; returns what fills it."""
    return whole(world.store["x"], *values)


def unlink_old(world: World, name: str) -> None:
    """Unlink a held array that has been deleted or replaced: the array that has its name now stays, whole."""
    if name not in world.store:
        world.store[name] = np.full(SIZE, MADE_ANEW)
    now = whole(world.store[name])
    old = world.views.pop("held")
    if whole(old) != now:
        old.unlink()
        assert name in world.store, f"unlinking an old array removed the new {name!r}"
        whole(world.store[name], now)


def look_at_mine(world: World) -> None:
    """The view of one's own array is as good as ever."""
    whole(world.views["mine"], STABLE)
    world.views["mine"][:] = STABLE


def work_is_refused(world: World) -> bool:
    """After the end of the store: views are as good as ever; whether making, attaching and pickling are refused by now."""
    mine = world.views["mine"]
    whole(mine, STABLE)
    mine[:] = STABLE
    deeds: dict[str, Callable[[], object]] = {
        "create": lambda: world.store.zeros(3),
        "attach": lambda: world.store["stable"],
        "publish": lambda: world.store.put(np.zeros(3), name="late"),
        "pickle": lambda: pickle.dumps(mine),
    }
    for name, deed in deeds.items():
        try:
            deed()
        except sa.StoreClosedError:
            continue
        except (sa.ArrayNotFoundError, sa.ArrayExistsError):
            # The owner has ended and the guardian is at it: names go one after the other.
            assert name != "create"
        return False
    return True


def collect(_: World, directory: str) -> None:
    """As anyone of that user: remove what is dead."""
    reaper.collect(os.geteuid(), directory)


def is_refused_the_name(_: World, name: str) -> bool:
    """Say whether opening a store of that name fails because one is alive."""
    try:
        sa.Store(name).close()
    except sa.StoreExistsError:
        return True
    return False


def connects_to(_: World, name: str, store: str) -> None:
    """The name leads to that store."""
    assert sa.connect(name).id == store


def meet_guardian(world: World) -> None:
    """Wait until the guardian serves."""
    assert list(world.store.manager().list([1])) == [1]


def change(world: World, times: int) -> None:
    """Replace the array "x" that many times."""
    for number in range(times):
        world.store["x"] = np.full(SIZE, 100.0 + number)


def check_and_fix(world: World) -> None:
    """Remove whatever seems dead."""
    world.store.check(fix=True)


def check(world: World) -> list[str]:
    """What is wrong in the store."""
    return [f"{problem.path}: {problem.reason}" for problem in world.store.check()]


def drop_all(world: World) -> None:
    """Let go of what was handed to others."""
    world.kept.clear()


def replace_many(world: World, numbers: list[int]) -> None:
    """Replace the arrays that were made for one alone."""
    for number in numbers:
        world.store[f"many/{number}"] = np.full(SIZE, MADE_ANEW)


def delete_many(world: World, numbers: list[int]) -> None:
    """See that the new ones are there, and delete them."""
    for number in numbers:
        whole(world.store[f"many/{number}"], MADE_ANEW)
        del world.store[f"many/{number}"]


def make_many(world: World, number: int) -> None:
    """Make that many small named arrays."""
    for index in range(number):
        world.store.zeros(3, name=f"many/{index}")


def fork_beside_threads(world: World, number: int) -> None:
    """Fork while threads work in the store; they go on with the children alive, which are then killed."""
    store, enough, children = world.store, threading.Event(), []
    rounds = [0, 0, 0]

    def busy(index: int) -> None:
        while not enough.is_set():
            store[f"own/{index}"] = np.zeros(3)
            store[f"own/{index}"] = np.ones(3)
            del store[f"own/{index}"]
            rounds[index] += 1

    threads = [threading.Thread(target=busy, args=(index,), daemon=True) for index in range(len(rounds))]
    for thread in threads:
        thread.start()
    for _ in range(number):
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
        children.append(child)
    try:
        before = list(rounds)
        wait_until(lambda: all(now > then + 5 for now, then in zip(rounds, before, strict=True)), DEADLINE, "they hang")
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            reap(child)
        enough.set()
        for thread in threads:
            thread.join(DEADLINE)


def make_garbage(world: World) -> None:
    """As the owner: leave what a sweep removes: an anonymous block nobody holds, and a draft whose maker is gone."""
    leave_unheld(world)
    place = world.store.stats().directory
    draft = os.path.join(place, f"shmarray.{os.geteuid()}.{world.store.id}.t.{os.urandom(8).hex()}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def watch(world: World, name: str) -> None:
    """Begin to read the array of that name over and over, in a thread."""
    world.kept["watch"] = watcher = _Watcher(world.store, name)
    watcher.start()


def watched(world: World) -> int:
    """End that; returns how often it read. Fails if it ever saw no array, half of one, or an older one after a newer."""
    watcher: _Watcher = world.kept.pop("watch")
    watcher.enough.set()
    watcher.join()
    assert watcher.wrong is None, watcher.wrong
    return watcher.reads


class _Watcher(threading.Thread):
    """Reads until told that it is enough, or until something is wrong."""

    def __init__(self, store: sa.Store, name: str) -> None:
        super().__init__(daemon=True)
        self.store = store
        self.name = name  # of the array; a thread may be called so as well
        self.enough = threading.Event()
        self.reads = 0
        self.wrong: str | None = None

    def run(self) -> None:
        """Read."""
        last = 0.0
        try:
            while not self.enough.is_set():
                now = whole(self.store[self.name])
                assert now >= last, f"version {now} after {last}"
                last = now
                self.reads += 1
        except BaseException:  # noqa: BLE001  told by `watched`
            self.wrong = traceback.format_exc()


def leave_unheld(world: World) -> None:
    """Leave what a death leaves: an anonymous block that nobody holds."""
    child = os.fork()
    if not child:
        block = world.store.full(10, MADE)
        os._exit(0 if block.is_shared else 1)
    assert reap(child) == 0
