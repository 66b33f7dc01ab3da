"""A process's line to a host.

Owns: the line over which this process takes and drops references to objects of a host (the protocol is at the head of
`holders`), the connections by which its threads call them, and what becomes of both in a fork.
Must not know: proxies.

A line lives as long as a proxy of this process. Its end, by whatever death, is what the host is told by.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
import weakref
from collections import deque
from multiprocessing import process, util
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from shmarray import joining
from shmarray._os import endings, ties
from shmarray.errors import HostError
from shmarray.hosting import reaching, standard

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from shmarray._format.names import StoreKey
    from shmarray.membership import Membership

_PATIENCE = 30
_MESSAGE = 64

_lines: weakref.WeakValueDictionary[str, Line] = weakref.WeakValueDictionary()
_places: dict[StoreKey, str] = {}
_opening = [threading.Lock()]  # in a list, for a forked child gets another
_forking = threading.local()  # the lines that this thread, which is about to fork, has prepared


def new_name() -> str:
    """Give a name that nobody else ever chose: of a holder, or of a ticket."""
    return os.urandom(8).hex()


class Line:
    """The line of this process to one host."""

    def __init__(self, key: StoreKey, address: str, authkey: bytes, label: str) -> None:
        """Open it. Raises `HostError` when no host is there."""
        self.key = key
        self.address = address
        self.authkey = authkey
        self.label = label
        self.name = new_name()
        self._lock = threading.Lock()
        self._tag = 0
        self._unsaid: deque[str] = deque()  # messages without an answer, from finalizers, which wait for nothing
        self._local = threading.local()
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._splitting = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._wires = [ours]
        weakref.finalize(self, _close_all, self._wires).atexit = False
        _be_patient(ours)
        try:
            with theirs, reaching.connect(address, authkey) as connection:
                connection.send((None, "hold", (self.name,), {}))
                with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as way:
                    socket.send_fds(way, [b"."], [theirs.fileno()])
                reaching.answer(connection)
        except (OSError, EOFError) as error:
            raise self.broken(error) from None

    def broken(self, reason: object) -> HostError:
        """Describe that the host is not there any more."""
        if isinstance(reason, HostError):
            return reason
        return HostError(
            f"the host of {self.label} does not answer ({str(reason) or 'it hung up'})",
            remedy="It was killed, or the store has ended, and its objects are gone. While the store is open, what is made next "
            "starts a new host.",
            store=self.label,
        )

    # -- references ------------------------------------------------------------------------------------------------------

    def take(self, ident: str, ticket: str) -> None:
        """Take a reference; that of a pickle, if it has not been taken yet. Raises `HostError` if the object is gone."""
        if not self._ask(f"take {{}} {ident} {ticket}"):
            raise HostError(
                f"an object in the host of {self.label} is gone",
                remedy="A pickle of a proxy can be loaded more than once only while other proxies of the object are alive.",
                store=self.label,
            )

    def lend(self, ident: str) -> str:
        """Take a reference for a pickle; returns its ticket."""
        ticket = new_name()
        if not self._ask(f"lend {{}} {ident} {ticket}"):
            raise self.broken("the object is gone")
        return ticket

    def drop(self, ident: str) -> None:
        """Give a reference back. Waits for nothing, takes no lock: the interpreter calls it at any moment, also in a fork."""
        self._unsaid.append(f"drop {ident}")
        if not self._splitting:
            self._say_unsaid()

    def _say_unsaid(self) -> None:
        try:
            # First taken, then sent: what an interruption loses here is given back with the line, and nothing is given back twice.
            while self._unsaid:
                message = self._unsaid.popleft()
                self._wires[0].send(message.encode(), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._unsaid.appendleft(message)  # the host is behind; with the next message, then
        except IndexError:
            return  # another thread has said the last
        except OSError:
            self._unsaid.clear()  # there is no host to be told

    def _ask(self, request: str) -> bool:
        tag = "0"
        try:
            with self._lock:
                self._say_unsaid()
                self._tag += 1
                tag = f"{self._tag}"
                self._wires[0].send(request.format(tag).encode())
                while True:
                    words = self._wires[0].recv(_MESSAGE).decode().split()
                    if not words:
                        raise ConnectionResetError("it has ended")
                    if words[0] == tag:  # an answer to a request that was interrupted is none to this one
                        return words[1] == "yes"
        except BaseException as error:
            self._unsaid.append(f"undo {tag}")  # it may have been granted, or will be, or was never sent
            if isinstance(error, OSError):
                raise self.broken(error) from None
            raise

    # -- calls -----------------------------------------------------------------------------------------------------------

    def make(self, request: bytes) -> tuple[str, tuple[str, ...], Any]:
        """Have an object made; returns its identity, exposed methods and type of proxy. Raises what its callable raises."""
        try:
            made = reaching.ask(self.address, self.authkey, "make", self.name, request)
        except (OSError, EOFError) as error:
            raise self.broken(error) from None
        if isinstance(made, BaseException):
            try:
                raise made
            finally:
                del made
        ident, exposed, proxytype = made
        return ident, exposed, proxytype

    def call(self, ident: str, method: str, args: Any, kwds: Any) -> tuple[bool, Any]:
        """Call a method; returns (True, what it returns) or (False, what describes a new object)."""
        request = ForkingPickler.dumps((ident, method, args, kwds))
        try:
            connection = self._connection()
            with request:  # released here and now: an error keeps this frame
                connection.send_bytes(request)
            reply = connection.recv_bytes()
        except (OSError, EOFError) as error:
            self._hang_up()
            raise self.broken(error) from None
        except BaseException:
            self._hang_up()  # the answer to this call must not be taken for that to the next
            raise
        kind, result = pickle.loads(reply)  # noqa: S301  from the host
        if kind in ("#RETURN", "#PROXY"):
            return kind == "#RETURN", result
        try:
            raise standard.convert_to_error(kind, result)
        finally:
            del result, reply  # no cycle of an error and this frame, which would keep what came

    def _connection(self) -> Connection:
        """Give this thread's connection."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            self._ask("ping {}")  # so that the host knows the line of a child that was just forked
            connection = reaching.connect(self.address, self.authkey)
            self._connections.add(connection)
            name = f"{process.current_process().name}|{threading.current_thread().name}"
            connection.send((None, "accept_connection", (name, self.name), {}))
            reaching.answer(connection)
            self._local.connection = connection
        return connection

    def _hang_up(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            del self._local.connection
            connection.close()

    # -- forks -----------------------------------------------------------------------------------------------------------

    def split(self) -> tuple[str, socket.socket] | None:
        """Before a fork: open the child's line, which holds what this one holds. Messages are whole, so no lock is needed.

        What is dropped until the fork is said by both, for the child's line holds it too.
        """
        self._say_unsaid()
        self._splitting = True
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            name = new_name()
            with theirs:
                socket.send_fds(self._wires[0], [f"fork {name}".encode()], [theirs.fileno()])
        except OSError:
            return None  # no host, or no descriptor: the child's proxies say so
        return name, ours

    def stay_parent(self, offer: tuple[str, socket.socket] | None) -> None:
        """After a fork, in the parent: the child's line is the child's."""
        if offer is not None:
            offer[1].close()
        self._splitting = False
        self._say_unsaid()

    def become_child(self, offer: tuple[str, socket.socket] | None) -> None:
        """After a fork, in the child: take over the line that was opened for it, and leave the parent's alone."""
        self._lock, self._local = threading.Lock(), threading.local()
        for connection in list(self._connections):
            connection.close()
        self._wires[0].close()
        if offer is not None:
            self.name, ours = offer
            self._wires[0] = ours
            _be_patient(ours)
        self._splitting = False
        self._say_unsaid()


def _be_patient(wire: socket.socket) -> None:
    """Have the kernel give up waiting at some time. A time-out of Python's would make finalizers wait as well."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        wire.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _PATIENCE, 0))


def _close_all(wires: list[socket.socket]) -> None:
    for wire in wires:
        wire.close()


def _close_at_exit() -> None:
    """Close the lines when the process ends: after all that may still pickle a proxy, such as the threads of queues."""
    util.Finalize(None, _close_lines, exitpriority=-110)


def _close_lines() -> None:
    for line in endings.living(_lines):
        _close_all(line._wires)


_close_at_exit()


def _before_fork() -> None:
    _forking.lines = [(line, line.split()) for line in endings.living(_lines)]


def _after_in_parent() -> None:
    for line, offer in _forking.__dict__.pop("lines", ()):
        line.stay_parent(offer)


def _after_in_child() -> None:
    _opening[0] = threading.Lock()
    for line, offer in _forking.__dict__.pop("lines", ()):
        line.become_child(offer)
    _close_at_exit()  # that of the parent is not the child's


ties.around_fork(_before_fork, _after_in_parent, _after_in_child)


def reach(key: StoreKey, address: str) -> Line:
    """Give the line to the host at an address that came with a pickle. Raises `HostError`, `StoreClosedError`."""
    line = _lines.get(address)
    return _open(joining.join(key), address) if line is None else line


def reach_host(member: Membership) -> Line:
    """Give the line to the store's host; it is started if none runs. Raises `HostError`, `StoreClosedError`."""
    member.require_open()
    known = _places.get(member.key)
    if known is not None:
        try:
            line = _open(member, known)
            line._ask("ping {}")
        except HostError:
            _places.pop(member.key, None)
        else:
            return line
    address = _places[member.key] = reaching.have_host(member, lost=known).address
    return _open(member, address)


def _open(member: Membership, address: str) -> Line:
    with _opening[0]:
        line = _lines.get(address)
        if line is None:
            line = _lines[address] = Line(member.key, address, bytes.fromhex(member.control.key), member.label)
        return line
