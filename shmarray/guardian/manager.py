"""The manager that a guardian is: `SharedMemoryManager` and `SyncManager` in one.

Owns: the class, its address (an abstract socket: no file to leave behind, no path to be too long) and its server.
Must not know: arrays; when the guardian ends.

Nothing on the way to an array asks it anything, and nothing is lost when it dies.
"""

from __future__ import annotations

import threading
from multiprocessing import process
from multiprocessing.managers import BaseManager, Server, SharedMemoryManager, SyncManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmarray._format.names import StoreKey


class GuardianManager(SharedMemoryManager, SyncManager):
    """Serves `dict`, `list`, `Namespace`, `Queue`, `Event`, `Barrier`... to every process of a store, as proxies.

    A proxy lives as long as the guardian does; each use is a round trip to it (tens of microseconds).
    """

    def __init__(self, address: str, authkey: bytes) -> None:
        """Stand for the manager at `address`; `connect` or `get_server` comes next."""
        # SharedMemoryManager's own constructor would start a resource tracker, which unlinks what others still use.
        BaseManager.__init__(self, address, authkey)


# A registry of our own: the base classes share theirs, and whoever registers a type with one would change ours.
GuardianManager._registry = dict(SyncManager._registry)  # type: ignore[attr-defined]


def address(key: StoreKey) -> str:
    """Address of the guardian of a store, in the abstract socket namespace."""
    return f"\0shmarray.{key.uid}.{key.store:016x}"


def serve(where: str, key: str) -> Any:
    """Serve in threads of this process; returns the server."""
    server: Server = GuardianManager(where, bytes.fromhex(key)).get_server()
    # What Server.serve_forever does, without taking this thread and without waking up every second.
    server.stop_event = threading.Event()  # type: ignore[attr-defined]
    process.current_process()._manager_server = server  # type: ignore[attr-defined]
    threading.Thread(target=server.accepter, daemon=True).start()
    return server
