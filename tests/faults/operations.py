"""What can be done to a store, in pieces: what is made ready before, the deed itself, and what others look at after it.

Owns: the operations during which a process is killed, and the checks that those who live make afterwards.
Must not know: how anyone is killed.

Everything here runs inside an actor (`stage.World`). The owner's part of an operation is `prepare`, which gives a ticket; the
victim's are `ready`, at leisure, and `act`, at whose every line it may die.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import shmarray as sa
from shmarray import reaper
from shmarray._format import control
from shmarray.guardian import launch
from tests.faults import traced_guardian
from tests.faults.stage import World
from tests.helpers.processes import reap, wait_until
from tests.helpers.tracing import count_events, in_package, kill_at, package_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from shmarray.membership import Membership

SIZE = 1000
DEADLINE = 20.0
STABLE = 7.0
FIRST, MADE, MADE_ANEW = 1.0, 5.0, 6.0

#: What `check` may find after a death: `fix=True` removes it. Anything else is damage.
MENDABLE = (
    "a block that was never finished; its maker is gone",
    "nobody holds it, and no handle to it is in flight",
    "a handle in flight to a block that was deleted",
)


class Operation(NamedTuple):
    """One deed.

    `handles`: a handle that nobody will load may be left by a death, for `release_unclaimed`. `joins`: the victim takes no part in
    the store before.
    """

    name: str
    act: Callable[[World, Any], object]
    prepare: Callable[[World, int], Any]
    ready: Callable[[World, Any], object]
    handles: bool = False
    joins: bool = False


def _nothing(world: World, _: Any) -> None:
    """Do nothing."""


def whole(array: Any, *values: float) -> float:
    """Return the one value that fills an array or every array of a tree; fails if there are two, or it is not expected."""
    leaves = [np.asarray(leaf) for leaf in array.values()] if isinstance(array, sa.SharedTree) else [np.asarray(array)]
    found = sorted({float(value) for leaf in leaves for value in np.unique(leaf)})
    assert len(found) == 1, f"half of one and half of another: {found}"
    assert not values or found[0] in values, f"{found[0]} where only {values} may be"
    return found[0]


# -- the owner, and others who live ------------------------------------------------------------------------------------


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


def hold_made(world: World) -> None:
    """Hold the array "made" if there is one."""
    world.views.pop("held", None)
    if "made" in world.store:
        world.views["held"] = world.store["made"]


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


# -- the operations ----------------------------------------------------------------------------------------------------


def _new_handle(world: World, _: int) -> bytes:
    """Pickle an anonymous array whose only holder from now on is the handle."""
    return pickle.dumps(world.store.full(SIZE, MADE))


def _named_handle(world: World, _: int) -> bytes:
    return pickle.dumps(world.store["stable"])


def _make(world: World, _: Any = None) -> None:
    world.store["made"] = np.full(SIZE, MADE)


def _hold_anonymous(world: World, _: Any) -> None:
    world.views["held"] = world.store.full(SIZE, MADE)


def _hold_in_flight(world: World, _: Any) -> None:
    _hold_anonymous(world, None)
    world.kept["handle"] = pickle.dumps(world.views["held"])


def _keep(world: World, made: Any) -> None:
    world.views["new"] = made


def _tree(world: World, _: Any) -> None:
    leaf = np.full(100, MADE)
    _keep(world, world.store.put({"a": leaf, "b": np.full((3, 4), MADE), "c": leaf[::2]}, name="made"))


def _publish(world: World, version: Any) -> None:
    world.store["x"] = np.full(SIZE, version)


def _next_version(_: World, n: int) -> float:
    return 10.0 + n


def _scope(world: World, _: Any) -> None:
    with world.store.full(SIZE, MADE) as array:
        whole(array, MADE)


def _delete(world: World, _: Any) -> None:
    del world.store["made"]


def _unlink(world: World, _: Any) -> None:
    world.views["held"].unlink()


def _strided(world: World, _: Any) -> None:
    source = np.full((SIZE, 2), MADE)[:, 0]
    _keep(world, world.store.put(source, name="made"))


def _plant(world: World, _: Any) -> None:
    """Leave what a death leaves: an anonymous block that nobody holds."""
    child = os.fork()
    if not child:
        block = world.store.full(10, MADE)
        os._exit(0 if block.is_shared else 1)
    assert reap(child) == 0


def _leave(world: World, _: Any) -> None:
    world.store.close()
    world.clear()


def _address(world: World, _: Any) -> bytes:
    return pickle.dumps(world.store)


def _connect(world: World, name: str) -> None:
    world.store = sa.connect(name)


def _write(world: World, _: Any) -> None:
    with world.views["held"].write(timeout=DEADLINE) as inside:
        inside[:] = STABLE


def _read(world: World, _: Any) -> None:
    with world.views["held"].read(timeout=DEADLINE) as inside:
        whole(inside, STABLE)


def _hold_stable(world: World, _: Any) -> None:
    hold(world, "stable")


OPERATIONS = (
    Operation("create anonymous", lambda w, _: _keep(w, w.store.full(SIZE, MADE)), _nothing, _nothing),
    Operation("create named", lambda w, _: _keep(w, w.store.full(SIZE, MADE, name="made")), _nothing, _nothing),
    Operation("put", lambda w, _: _keep(w, w.store.put(np.full(SIZE, MADE), name="made")), _nothing, _nothing),
    Operation("put strided", _strided, _nothing, _nothing),
    Operation("put a tree", _tree, _nothing, _nothing),
    Operation("publish", _publish, _next_version, _nothing),
    Operation("attach by name", lambda w, _: _keep(w, w.store["stable"]), _nothing, _nothing),
    Operation("load an anonymous handle", lambda w, t: _keep(w, pickle.loads(t)), _new_handle, _nothing, handles=True),
    Operation("load a named handle", lambda w, t: _keep(w, pickle.loads(t)), _named_handle, _nothing),
    Operation("pickle a handle", lambda w, _: pickle.dumps(w.views["held"]), _nothing, _hold_anonymous, handles=True),
    Operation("drop the last view", lambda w, _: drop(w), _nothing, _hold_anonymous),
    Operation("unlink a named array", _unlink, _make, lambda w, _: hold(w, "made")),
    Operation("unlink an anonymous array", _unlink, _nothing, _hold_in_flight, handles=True),
    Operation("delete by name", _delete, _make, _nothing),
    Operation("a scope", _scope, _nothing, _nothing),
    Operation("check and fix", lambda w, _: w.store.check(fix=True), _plant, _nothing),
    Operation("release unclaimed", lambda w, _: w.store.release_unclaimed(), _new_handle, _nothing, handles=True),
    Operation("leave", _leave, _nothing, _hold_anonymous),
    Operation("join", come, _address, _nothing, joins=True),
    Operation("connect", _connect, lambda w, _: w.store.name, _nothing, joins=True),
    Operation("write under the guard", _write, _nothing, _hold_stable),
    Operation("read under the guard", _read, _nothing, _hold_stable),
)
LOOKING = ("attach by name", "load an anonymous handle", "load a named handle", "pickle a handle", "delete by name")
NUMBERS = {operation.name: number for number, operation in enumerate(OPERATIONS)}


def prepare(world: World, number: int, n: int) -> Any:
    """As the owner: make ready for an operation; gives its ticket."""
    return OPERATIONS[number].prepare(world, n)


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
    _plant(world, None)
    place = world.store.stats().directory
    draft = os.path.join(place, f"shmarray.{os.geteuid()}.{world.store.id}.t.{os.urandom(8).hex()}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


# -- dying -------------------------------------------------------------------------------------------------------------

_OPENING = ("membership.py", "store.py", "guardian/launch.py")
_PURE = ("_format/", "_os/words.py", "_os/limits.py", "errors.py", "exhaustion.py", "arrays.py", "trees.py", "locks.py")


def touches_files(filename: str) -> bool:
    """Say whether that source file is of those whose lines lie between two changes that others can see.

    To die anywhere else is to die before the next line of one of these.
    """
    return in_package(filename) and not os.path.relpath(os.path.realpath(filename), package_directory()).startswith(
        _PURE
    )


def opens_stores(filename: str) -> bool:
    """The same for opening a store, without the look at all other stores, which are more or fewer each time."""
    return in_package(filename) and os.path.relpath(os.path.realpath(filename), package_directory()) in _OPENING


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
    """Join and do an operation, with a pause before its n-th line, in which the store ends.

    Then what is left of it is refused, or is of no consequence.
    """
    world, operation = World(), OPERATIONS[number]
    try:
        if not operation.joins:
            come(world, blob)
        operation.ready(world, ticket)
        with _StopAt(n, lines(every)):
            operation.act(world, ticket)
    except (sa.StoreClosedError, sa.StoreNotFoundError):
        return
    except sa.ArrayExistsError:
        assert operation.name == "create named"  # by another that pauses
    except sa.ArrayNotFoundError:
        # The names go one after the other: whoever looks for one meanwhile may be told that it is gone.
        assert operation.name in LOOKING


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
    usual = launch.command

    def traced(member: Membership) -> list[str]:
        words = usual(member)
        script = next(position for position, word in enumerate(words) if word.endswith("__main__.py"))
        return [*words[:script], traced_guardian.__file__, str(n), function, *words[script:]]

    launch.command = traced
    try:
        return open_store(world, options)
    finally:
        launch.command = usual


# -- a reader that never rests -----------------------------------------------------------------------------------------


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
