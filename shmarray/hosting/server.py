"""The server of a host.

Owns: making objects, calling their methods, and what goes back; the types that can be made by their names alone.
Must not know: when the host ends, who holds what (`holders`).

It speaks the protocol of `multiprocessing.managers`, so that a plain `BaseManager` can be its client; clients of this package say
`make` instead of `create`, which brings the type along, and hold their references by a line.
"""

from __future__ import annotations

import itertools
import pickle
import socket
import sys
import threading
import time
import traceback
import weakref
from multiprocessing import resource_tracker
from multiprocessing.managers import RemoteError, SharedMemoryServer, Token
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from shmarray.errors import HostError
from shmarray.hosting import holders, pools, standard

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection, Listener

_SHARED = (
    "registry",
    "id_to_obj",
    "id_to_refcount",
    "id_to_local_proxy_obj",
    "mutex",
    "stop_event",
    "holders",
    "numbers",
)
_PAUSE = 0.05
_BY_NAME: dict[str, Callable[[Any], Any]] = {"__repr__": repr, "__str__": str, "#GETVALUE": lambda value: value}


class HostServer(SharedMemoryServer):
    """One door of a host; with `beside`, another door to the same objects."""

    # No client shuts a host down: it ends with the store.
    public = [*(verb for verb in SharedMemoryServer.public if verb != "shutdown"), "make", "hold"]  # noqa: RUF012  as in the base class
    registry: dict[str, tuple[Any, ...]]
    mutex: threading.Lock
    id_to_refcount: dict[str, int]
    listener: Listener
    shared_memory_context: Any

    def __init__(self, where: Any, authkey: bytes, beside: HostServer | None = None) -> None:
        """Listen at `where` for those who know the key, and serve in threads."""
        registry = dict(standard.REGISTRY)
        registry["Pool"] = (pools.make, *registry["Pool"][1:])
        super().__init__(registry, where, authkey, "pickle")
        self.stop_event = threading.Event()
        if beside is None:
            self.numbers = itertools.count(1)
            self.holders = holders.Holders(self.mutex, self.id_to_obj, self.id_to_refcount)
        else:
            vars(self).update({name: getattr(beside, name) for name in (*_SHARED, "shared_memory_context")})
        self.beside: HostServer | None = None
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._thread = threading.local()
        threading.Thread(target=self.accepter, daemon=True).start()

    # -- making ----------------------------------------------------------------------------------------------------------

    def create(self, _c: Any, typeid: str, /, *args: Any, **kwds: Any) -> tuple[str, Any]:
        """Make an object: for a standard client, or as what a method gave. Returns its identity and what it exposes."""
        holder: holders.Holder | None = getattr(self._thread, "holder", None)
        ident, exposed, proxytype = self._make(holder, typeid, args, kwds)
        return (ident, exposed) if holder is None else (ident, (exposed, proxytype))

    def make(self, _c: Any, name: str, request: bytes) -> tuple[Any, ...] | BaseException:
        """Make an object for the holder of that name; returns identity, exposed methods and type of the proxy, or what failed."""
        try:
            holder = self.holders.find(name)
            if holder is None:
                raise HostError(
                    "the process that asked for an object has ended", remedy="There is nobody to read this."
                )
            types, typeid, args, kwds = pickle.loads(request)  # noqa: S301  from a client that knows the key
            self.registry.update(types)
            return self._make(holder, typeid, args, kwds)
        except Exception as error:  # noqa: BLE001  user code: all of it goes to the client
            return _portable(error)

    def _make(
        self, holder: holders.Holder | None, typeid: str, args: Any, kwds: Any
    ) -> tuple[str, tuple[str, ...], Any]:
        # Not under the lock, as the standard server does it: what is made may itself be a client of this host.
        function, exposed, method_to_typeid, proxytype = self.registry[typeid]
        if function is not None:
            made = function(*args, **kwds)
        elif kwds or len(args) != 1:
            message = f"the type {typeid!r} is registered without a callable: give the one object it stands for"
            raise TypeError(message)
        else:
            made = args[0]
        names = tuple(
            dict.fromkeys([*(standard.public_methods(made) if exposed is None else exposed), *(method_to_typeid or ())])
        )
        # A number of its own, and not its address: another object that comes to lie there is not the same.
        ident = f"{next(self.numbers):x}"
        self.holders.add(ident, (made, set(names), method_to_typeid), holder)
        return ident, names, None if proxytype is standard.AutoProxy else proxytype

    def decref(self, _c: Any, ident: str) -> None:
        """Take back a reference of a standard client."""
        self.holders.release(ident)

    # -- lines, connections --------------------------------------------------------------------------------------------

    def hold(self, c: Connection, name: str) -> None:
        """Take the line of a client process, a socket it sends along."""
        with socket.fromfd(c.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            _, fds, _, _ = socket.recv_fds(wire, 1, 1, socket.MSG_CMSG_CLOEXEC)
        self.holders.follow(name, socket.socket(fileno=fds[0]))

    def accepter(self) -> None:
        """Take connections, each into a thread of its own."""
        while True:
            try:
                connection = self.listener.accept()
            except OSError:
                # Out of descriptors, most likely: until a client hangs up, there is nothing to be told by.
                time.sleep(_PAUSE)
                continue
            threading.Thread(target=self.handle_request, args=(connection,), daemon=True).start()

    def handle_request(self, conn: Connection) -> None:
        """Deal with a new connection."""
        self._connections.add(conn)
        super().handle_request(conn)

    def accept_connection(self, c: Any, name: str, holder: str | None = None) -> None:
        """Serve calls from one thread of a client; what methods make belongs to the client's holder."""
        self._thread.holder = self.holders.find(holder) if holder else None
        super().accept_connection(c, name)

    def abandon(self) -> None:
        """In a child that user code forked: close what is the host's, whose end must be seen when the host ends."""
        for server in (self, self.beside):
            if server is not None:
                server.listener.close()
                for connection in list(server._connections):
                    connection.close()
                for wire in server.holders.wires():
                    wire.close()

    # -- calling ---------------------------------------------------------------------------------------------------------

    def serve_client(self, conn: Connection) -> None:
        """Answer calls until the client hangs up. No object, result or argument stays in this frame while it waits."""
        while not self.stop_event.is_set():
            try:
                conn.send_bytes(self._answer(conn.recv_bytes()))
            except (EOFError, OSError):
                break
        sys.exit(0)  # as the standard server ends such a thread

    def _answer(self, request: bytes) -> Any:
        try:
            message = self._call(*pickle.loads(request))  # noqa: S301  from a client that knows the key
        except Exception as error:  # noqa: BLE001  user code: all of it goes to the client
            message = ("#ERROR", _portable(error))
        except BaseException:  # noqa: BLE001  `sys.exit` in a method ends neither the host nor the client
            message = ("#TRACEBACK", traceback.format_exc())
        try:
            return ForkingPickler.dumps(message)
        except Exception:  # noqa: BLE001  pickling runs code of the value's own
            return ForkingPickler.dumps(("#UNSERIALIZABLE", traceback.format_exc()))

    def _call(self, ident: str, method: str, args: Any, kwds: Any) -> tuple[str, Any]:
        entry = self.id_to_obj.get(ident)
        if entry is None:
            raise HostError("the object of this proxy is gone", remedy="It went with its last proxy; make a new one.")
        target, exposed, method_to_typeid = entry
        if method not in exposed and method in _BY_NAME:
            return "#RETURN", _BY_NAME[method](target)
        if method not in exposed:
            message = f"{method!r} of {type(target).__name__!r} objects is not exposed; exposed are {', '.join(sorted(exposed))}"
            raise AttributeError(message)
        result = getattr(target, method)(*args, **kwds)
        typeid = method_to_typeid and method_to_typeid.get(method)
        if not typeid:
            return "#RETURN", result
        made, names = self.create(None, typeid, result)
        return "#PROXY", (names, Token(typeid, self.address, made))

    # -- segments of a SharedMemoryManager -------------------------------------------------------------------------------

    def track_segment(self, c: Any, segment_name: str) -> None:
        """Take over a segment; should this process be killed, its resource tracker removes it."""
        super().track_segment(c, segment_name)
        resource_tracker.register(f"/{segment_name}", "shared_memory")


def _portable(error: Exception) -> Exception:
    """Give the error itself if it survives the way to the client, else its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  made here
    except Exception:  # noqa: BLE001  runs code of the error's own
        return RemoteError("".join(traceback.format_exception(error)))
    return error
