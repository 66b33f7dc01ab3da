"""Programs as users write them: an owner that starts workers by some start method and gives them a store and arrays.

Owns: the owner's and the workers' main functions, and what they do on the stage besides the operations.
Must not know: who is killed.
"""

from __future__ import annotations

import multiprocessing
import threading
import traceback
from typing import Any

import shmarray as sa
from tests.faults import witnesses
from tests.faults.stage import World, enter
from tests.faults.witnesses import STABLE, whole

OWNER = """
import json, sys
from tests.faults import cast

if __name__ == "__main__":
    cast.own(sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
"""


def own(address: str, method: str, workers: int, options: dict[str, Any]) -> None:
    """Be the owner: open a store, start workers, play until told to leave, join them, and leave the store to the exit."""
    world = World()
    witnesses.open_store(world, options)
    context: Any = multiprocessing.get_context(method)
    for number in range(workers):
        handed = world.store.full(witnesses.SIZE, STABLE)
        args = (address, number, world.store, world.store["stable"], handed)
        process = context.Process(target=work, args=args)
        process.start()
        world.kept[f"process{number}"] = process
    enter(address, world, "owner")
    for number in range(workers):
        world.kept[f"process{number}"].join()


def work(address: str, number: int, store: sa.Store, stable: Any, handed: Any) -> None:
    """Be a worker: hold what was given and something of one's own, and play."""
    world = World()
    world.store = store
    world.views |= {"stable": stable, "handed": handed, "mine": store.full(witnesses.SIZE, STABLE)}
    enter(address, world, f"worker{number}")


# -- steps -------------------------------------------------------------------------------------------------------------


def address_of_store(world: World) -> tuple[str, int | None]:
    """Identity of the store and its guardian."""
    return world.store.id, world.store.guardian_pid


def block_of_mine(world: World) -> str:
    """File name of one's own anonymous array, as it is in the listing of the store's files."""
    return str(world.views["mine"].block_name).partition(f".{world.store.id}.")[2]


def exit_codes(world: World, number: int) -> int | None:
    """As the owner: how a worker ended."""
    process = world.kept[f"process{number}"]
    process.join(witnesses.DEADLINE)
    code: int | None = process.exitcode
    return code


def enter_guard(world: World) -> None:
    """Begin to write the array "stable", and stay in it."""
    world.kept["inside"] = world.views["stable"].write(timeout=witnesses.DEADLINE)
    world.kept["inside"].__enter__()


def find_poisoned(world: World) -> int:
    """Enter the guard whose holder was killed: it says so; give the pid it names, and put things right."""
    try:
        with world.store["stable"].write(timeout=witnesses.DEADLINE):
            pass
    except sa.PoisonedError as error:
        with world.store["stable"].write(timeout=witnesses.DEADLINE, heal=True) as inside:
            whole(inside, STABLE)
        return int(error.pid)
    message = "nobody was told that the writer died"
    raise AssertionError(message)


class _Toil(threading.Thread):
    """Reads and writes the views of an actor until told that it is enough."""

    def __init__(self, views: list[Any]) -> None:
        super().__init__(daemon=True)
        self.views = views
        self.enough = threading.Event()
        self.rounds = 0
        self.wrong: str | None = None

    def run(self) -> None:
        """Toil."""
        try:
            while not self.enough.is_set():
                for view in self.views:
                    whole(view, STABLE)
                    view[:] = STABLE
                self.rounds += 1
        except BaseException:  # noqa: BLE001  told by `rest`
            self.wrong = traceback.format_exc()


def toil(world: World) -> None:
    """Begin to use all views without a pause, in a thread."""
    world.kept["toil"] = thread = _Toil([view for name, view in world.views.items() if name != "stable"])
    thread.start()


def still_toils(world: World) -> int:
    """Say how many rounds it has done; fails if anything was wrong."""
    thread: _Toil = world.kept["toil"]
    assert thread.wrong is None, thread.wrong
    return thread.rounds


def rest(world: World) -> None:
    """End that; all was well to the last."""
    thread: _Toil = world.kept.pop("toil")
    thread.enough.set()
    thread.join()
    assert thread.wrong is None, thread.wrong
    for name, view in world.views.items():
        whole(view, STABLE)
        assert view.is_shared, name
