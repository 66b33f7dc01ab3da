"""Who holds the objects of a host.

Owns: the references to each object: of every process that has proxies of it, and of every pickle on its way; and the line to each
process, whose end drops what the process held. The kernel reports that end through any death.
Must not know: what the objects are.

A line carries short messages, `VERB TAG WORDS...`, whole or not at all:

    take TAG OBJECT TICKET   one reference more; if the pickle with that ticket is still on its way, its reference, taken over
    lend TAG OBJECT TICKET   one reference for a pickle, which outlives the process that pickled
    ping TAG
    drop OBJECT, undo TAG, fork NAME (with a descriptor)

The first three are answered: `TAG yes` or `TAG no`. A forked child's line is opened by its parent, before the fork, and holds from
the start what the parent holds; so no reference of the one depends on what the other does next.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE = 256


class Holder:
    """One process that has proxies: its line, and how many of each object it holds."""

    def __init__(self, name: str, wire: socket.socket, held: Counter[str]) -> None:
        """Be known by the name that the process chose."""
        self.name = name
        self.wire = wire
        self.held = held
        self.ended = False
        self.granted = ("", "", "")  # tag, object and ticket of the last request, as long as it can be undone


class Holders:
    """The books of a host: every reference to every object."""

    def __init__(self, mutex: threading.Lock, objects: dict[str, Any], counts: dict[str, int]) -> None:
        """Keep the books in the tables of a server of `multiprocessing.managers`, under its lock."""
        self._mutex = mutex
        self._objects = objects
        self._counts = counts
        self._holders: dict[str, Holder] = {}
        self._tickets: dict[str, str] = {}
        self._waste: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        # A destructor is user code and may take its time, or for ever: it holds up nothing but other destructors.
        threading.Thread(target=self._dispose, daemon=True).start()

    def find(self, name: str) -> Holder | None:
        """Give the holder of that name."""
        return self._holders.get(name)

    def wires(self) -> list[socket.socket]:
        """All lines."""
        return [holder.wire for holder in list(self._holders.values())]

    def follow(self, name: str, wire: socket.socket, held: Counter[str] | None = None) -> None:
        """Take on a new holder, and follow what it says in a thread of its own."""
        holder = self._holders[name] = Holder(name, wire, held or Counter())
        threading.Thread(target=self._follow, args=(holder,), daemon=True).start()

    def add(self, ident: str, entry: tuple[Any, ...], holder: Holder | None) -> None:
        """Enter a new object, with one reference: the holder's, or that of a client that counts for itself."""
        with self._mutex:
            self._objects[ident] = entry
            self._counts[ident] = 1
            if holder is not None:
                holder.held[ident] += 1
                if holder.ended:
                    self._let_go(holder)

    def release(self, ident: str) -> None:
        """Take one reference away; with the last one the object goes."""
        with self._mutex:
            self._release(ident, 1)

    def _release(self, ident: str, times: int) -> None:
        if ident in self._counts:
            self._counts[ident] -= times
            if self._counts[ident] <= 0:
                del self._counts[ident]
                self._waste.put([self._objects.pop(ident, None)])

    def _dispose(self) -> None:
        while True:
            self._waste.get().clear()

    def _let_go(self, holder: Holder) -> None:
        for ident, times in holder.held.items():
            self._release(ident, times)
        holder.held.clear()

    def _follow(self, holder: Holder) -> None:
        try:
            while True:
                text, fds, _, _ = socket.recv_fds(holder.wire, MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
                if not text:
                    return
                verb, *words = text.decode().split()
                if verb == "fork":
                    with self._mutex:
                        held = +holder.held
                        for ident, times in held.items():
                            self._counts[ident] += times
                    self.follow(words[0], socket.socket(fileno=fds[0]), held)
                elif verb in _ANSWERED:
                    good = _ANSWERED[verb](self, holder, *words[1:])
                    holder.granted = (
                        (words[0], words[1], words[2] if verb == "lend" else "") if good and words[1:] else ("", "", "")
                    )
                    holder.wire.send(f"{words[0]} {'yes' if good else 'no'}".encode())
                elif verb == "drop":
                    self._drop(holder, words[0])
                elif verb == "undo":
                    self._undo(holder, words[0])
        except OSError:
            return  # it ended while it was being answered
        finally:
            with self._mutex:
                holder.ended = True
                self._holders.pop(holder.name, None)
                self._let_go(holder)
            holder.wire.close()

    def _take(self, holder: Holder, ident: str, ticket: str) -> bool:
        with self._mutex:
            if ident not in self._counts:
                return False
            if self._tickets.pop(ticket, None) is None:
                self._counts[ident] += 1
            holder.held[ident] += 1
            return True

    def _lend(self, _: Holder, ident: str, ticket: str) -> bool:
        with self._mutex:
            if ident not in self._counts:
                return False
            self._counts[ident] += 1
            self._tickets[ticket] = ident
            return True

    def _ping(self, _: Holder) -> bool:
        return True

    def _drop(self, holder: Holder, ident: str) -> None:
        with self._mutex:
            if holder.held[ident] > 0:
                holder.held[ident] -= 1
                self._release(ident, 1)

    def _undo(self, holder: Holder, tag: str) -> None:
        granted, ident, ticket = holder.granted
        holder.granted = ("", "", "")
        if granted == tag and not ticket:
            self._drop(holder, ident)
        elif granted == tag:
            with self._mutex:
                if self._tickets.pop(ticket, None) is not None:
                    self._release(ident, 1)


_ANSWERED: dict[str, Callable[..., bool]] = {"take": Holders._take, "lend": Holders._lend, "ping": Holders._ping}
