"""The door of a guardian: one request, to have a host for the store.

Owns: its address (an abstract socket: no file to leave behind, no path to be too long) and its server, threads beside the watch.
Must not know: what a host serves; when the guardian ends.

Nothing on the way to an array asks it anything, and nothing is lost when it dies.
"""

from __future__ import annotations

import threading
from multiprocessing.managers import Server
from typing import TYPE_CHECKING, Any

from shmarray.guardian.keeper import Keeper

if TYPE_CHECKING:
    from multiprocessing.connection import Listener

    from shmarray._format.names import StoreKey


class GuardianServer(Server):
    """A server of `multiprocessing.managers` that serves no object, and knows one request more: `host`."""

    public = ["dummy", "host"]  # noqa: RUF012  as in the base class
    listener: Listener

    def __init__(self, where: str, key: bytes, keeper: Keeper) -> None:
        """Listen at `where` for those who know the key."""
        super().__init__({}, where, key, "pickle")
        self.keeper = keeper
        self.stop_event = threading.Event()
        # What Server.serve_forever does, without taking the thread and without waking up every second.
        threading.Thread(target=self.accepter, daemon=True).start()

    def host(self, _: Any, preparation: dict[str, Any]) -> tuple[bool, Any]:
        """Start the host unless it runs: (True, where it is), or (False, why there is none)."""
        return self.keeper.host(preparation)


def address(key: StoreKey) -> str:
    """Address of the guardian of a store, in the abstract socket namespace."""
    return f"\0shmarray.{key.uid}.{key.store:016x}"


class Door:
    """The server, with the keeper of the host behind it."""

    def __init__(self, key: StoreKey, secret: str) -> None:
        """Serve those who know the store's secret."""
        self.keeper = Keeper(secret)
        self._server = GuardianServer(address(key), bytes.fromhex(secret), self.keeper)

    def close(self) -> None:
        """End the host, wait for its end, and let nobody in any more."""
        self.keeper.end()
        self.keeper.join()
        self._server.listener.close()
