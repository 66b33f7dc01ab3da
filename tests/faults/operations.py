"""What can be done to a store, in pieces: what is made ready before, and the deed itself.

Owns: the operations during which a process is killed, or pauses.
Must not know: how anyone is killed, and what must hold then.

Everything here runs inside an actor (`stage.World`). The owner's part of an operation is `prepare`, which gives a ticket; the
victim's are `ready`, at leisure, and `act`, at whose every line it may die.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import shmarray as sa
from tests.faults.witnesses import DEADLINE, MADE, SIZE, STABLE, come, drop, hold, leave_unheld, whole
from tests.helpers import copies

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.stage import World


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


def _new_handle(world: World, _: int) -> bytes:
    """Pickle an anonymous array whose only holder from now on is the handle."""
    return pickle.dumps(world.store.full(SIZE, MADE))


def _share(world: World, n: int) -> bytes:
    """Pickle an anonymous array that stays held here."""
    world.kept[f"shared{n}"] = world.store.full(SIZE, MADE)
    return pickle.dumps(world.kept[f"shared{n}"])


def _one_of_many(world: World, n: int) -> str:
    """Make an array for one alone; gives its name."""
    world.store[f"many/{n}"] = np.full(SIZE, MADE)
    return f"many/{n}"


def _share_once(world: World, _: int) -> bytes:
    """The same for everyone."""
    if "handle" not in world.kept:
        world.kept["handle"] = _share(world, -1)
    handle: bytes = world.kept["handle"]
    return handle


def _load_held(world: World, blob: bytes) -> None:
    world.views["held"] = pickle.loads(blob)


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


def _by_threads(world: World, _: Any) -> None:
    with copies.all_shared():
        _keep(world, world.store.put(np.full(SIZE, MADE), name="made"))


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
    Operation("put by threads", _by_threads, _nothing, _nothing),
    Operation("put strided", _strided, _nothing, _nothing),
    Operation("put a tree", _tree, _nothing, _nothing),
    Operation("publish", _publish, _next_version, _nothing),
    Operation("attach what changes", lambda w, _: _keep(w, w.store["x"]), _nothing, _nothing),
    Operation("attach by name", lambda w, _: _keep(w, w.store["stable"]), _nothing, _nothing),
    Operation("load an anonymous handle", lambda w, t: _keep(w, pickle.loads(t)), _new_handle, _nothing, handles=True),
    Operation("load a named handle", lambda w, t: _keep(w, pickle.loads(t)), _named_handle, _nothing),
    Operation("pickle a handle", lambda w, _: pickle.dumps(w.views["held"]), _nothing, _hold_anonymous, handles=True),
    Operation("drop the last view", lambda w, _: drop(w), _nothing, _hold_anonymous),
    Operation("load what others load", lambda w, t: _keep(w, pickle.loads(t)), _share_once, _nothing),
    Operation("unlink what changes", _unlink, _one_of_many, hold),
    Operation("drop what another holds", lambda w, _: drop(w), _share, _load_held, handles=True),
    Operation("unlink a named array", _unlink, _make, lambda w, _: hold(w, "made")),
    Operation("unlink an anonymous array", _unlink, _nothing, _hold_in_flight, handles=True),
    Operation("delete by name", _delete, _make, _nothing),
    Operation("a scope", _scope, _nothing, _nothing),
    Operation("check and fix", lambda w, _: w.store.check(fix=True), lambda w, _: leave_unheld(w), _nothing),
    Operation("release unclaimed", lambda w, _: w.store.release_unclaimed(), _new_handle, _nothing, handles=True),
    Operation("leave", _leave, _nothing, _hold_anonymous),
    Operation("join", come, _address, _nothing, joins=True),
    Operation("connect", _connect, lambda w, _: w.store.name, _nothing, joins=True),
    Operation("write under the guard", _write, _nothing, _hold_stable),
    Operation("read under the guard", _read, _nothing, _hold_stable),
)
LOOKING = (
    "attach by name",
    "attach what changes",
    "load an anonymous handle",
    "load a named handle",
    "pickle a handle",
    "delete by name",
)
GUARDED = ("write under the guard", "read under the guard")
NUMBERS = {operation.name: number for number, operation in enumerate(OPERATIONS)}


def prepare(world: World, number: int, n: int) -> Any:
    """As the owner: make ready for an operation; gives its ticket."""
    return OPERATIONS[number].prepare(world, n)
