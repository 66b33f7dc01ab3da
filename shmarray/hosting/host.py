"""The life of a host process.

Owns: what a host does from its first module on: it is tied to its guardian, prepared as a spawned process is, serves, and ends in
order when it is told to.
Must not know: which types it serves.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from multiprocessing import process, spawn
from typing import TYPE_CHECKING, Any, NoReturn

from shmarray._format import names
from shmarray._os import processes, ties
from shmarray.hosting import mains
from shmarray.hosting.server import HostServer

if TYPE_CHECKING:
    from types import FrameType


def address(key: names.StoreKey) -> str:
    """Address for a new host: no other host ever had it, so no proxy takes one host for another."""
    return f"\0shmarray.{key.uid}.{key.store:016x}.host.{os.getpid()}.{processes.me().start}"


def main(preparation: dict[str, Any]) -> None:
    """Serve until SIGTERM comes, the store's end; the guardian's death ends the process at once."""
    ties.die_with_writer(ties.take_standard_input())
    signal.signal(signal.SIGTERM, _stop)
    with ties.take_standard_output() as answer:
        try:
            hosted, main_module = _prepare(preparation)
        except Exception as error:  # noqa: BLE001  all of it goes to the process that asked, and this one ends
            pickle.dump((False, f"{type(error).__name__}: {error}"), answer)
            return
        network = hosted.beside.address if hosted.beside is not None else None
        pickle.dump((True, {"address": hosted.address, "network": network}), answer)
    try:
        main_module.run()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough: exit handlers run undisturbed
        hosted.shared_memory_context.unlink()


def _prepare(preparation: dict[str, Any]) -> tuple[HostServer, mains.MainModule]:
    spawn.prepare({key: value for key, value in preparation.items() if not key.startswith("init_main")})
    main_module = mains.MainModule(preparation)
    hosted = HostServer(address(names.StoreKey(*preparation["store"])), bytes.fromhex(preparation["key"]))
    if "network" in preparation:
        hosted.registry.update(pickle.loads(preparation["served"]))  # noqa: S301  from a process that knows the key
        where, authkey = preparation["network"]
        hosted.beside = HostServer(where, authkey, hosted)
    # By this a standard proxy that comes back here is known for what it is.
    process.current_process()._manager_server = hosted.beside or hosted  # type: ignore[attr-defined]
    processes.after_fork_in_child(hosted.abandon)
    return hosted, main_module


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(mains.STOP)
