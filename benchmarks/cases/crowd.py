"""Processes at the ends of streams, as the cases about streams need them.

Owns: starting senders and receivers, opening their ends (receivers first), asking all at once and hearing all.
Must not know: what they do; a case gives functions that take an `End`.
"""

from __future__ import annotations

import functools
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Self

from benchmarks.peer import Peer, PeerError

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Sequence

    from benchmarks.rivals.interface import Adapter
    from benchmarks.rivals.streaming import Form

_PATIENCE = 60.0


class End:
    """What a process at the ends of streams has: an adapter, and one end of each stream by its key."""

    def __init__(self, kind: type[Adapter], lines: dict[str, tuple[Form, Any]], number: int, tag: str) -> None:
        """Begin without an end; `lines` has each stream's form and line."""
        self.adapter: Any = kind(tag)
        self.number = number
        self.lines = lines
        self.ends: dict[str, Any] = {}

    def form(self, key: str) -> Form:
        """Tell what a stream carries."""
        return self.lines[key][0]

    def leave(self) -> None:
        """Let go of all ends; the process ends."""
        self.ends.clear()
        self.adapter.leave()


def _open(end: End, key: str, *, sends: bool) -> None:
    form, line = end.lines[key]
    make = end.adapter.sender if sends else end.adapter.receiver
    end.ends[key] = make(line, form, end.number)


class Crowd:
    """So many senders and receivers, each in a process of its own, on the streams that `lay` has made."""

    def __init__(self, adapter: Any, cleanup: contextlib.ExitStack, senders: int, receivers: int) -> None:
        """Begin without streams; the processes end with `cleanup`."""
        self._adapter = adapter
        self._cleanup = cleanup
        self._lines: dict[str, tuple[Form, Any]] = {}
        self._widths: dict[str, tuple[int, int]] = {}
        self._counts = senders, receivers
        self.senders: list[Peer] = []
        self.receivers: list[Peer] = []

    def lay(self, key: str, form: Form, senders: int, receivers: int) -> bool:
        """Make a stream between the first so many of each; tells whether the contender can have as many."""
        adapter = self._adapter
        receivers = min(receivers, adapter.receivers) if adapter.receivers == 0 else receivers
        if senders > adapter.senders or receivers > adapter.receivers:
            return False
        self._lines[key] = form, adapter.lay(form, senders, receivers)
        self._widths[key] = senders, receivers
        return True

    @property
    def keys(self) -> list[str]:
        """The streams there are."""
        return list(self._lines)

    def start(self) -> Self:
        """Start the processes that are needed, and open every end: first those of receivers, then those of senders."""
        for sends, peers in ((False, self.receivers), (True, self.senders)):
            for number in range(self._counts[not sends]):
                lines = {key: self._lines[key] for key in self._lines if number < self._widths[key][not sends]}
                if lines:
                    kind = type(self._adapter)
                    make = functools.partial(End, kind, lines, number)
                    peers.append(self._cleanup.enter_context(Peer(make, f"{self._adapter.tag}-{sends:d}{number}")))
        for key in self._lines:
            senders, receivers = self.of(key)
            for peer in receivers:
                peer.call(functools.partial(_open, sends=False), key)
            for peer in senders:
                peer.ask(functools.partial(_open, sends=True), key)
            for peer in senders:
                peer.answer()
        return self

    def of(self, key: str) -> tuple[list[Peer], list[Peer]]:
        """Give senders and receivers of a stream."""
        senders, receivers = self._widths[key]
        return self.senders[:senders], self.receivers[:receivers]


def ask_all(peers: list[Peer], function: Callable[..., Any], *args: Any) -> None:
    """Ask all for the same, and wait for nothing."""
    for peer in peers:
        peer.ask(function, *args)


def answers(peers: list[Peer], others: Sequence[Peer] = ()) -> list[Any]:
    """Hear all, whoever answers first; so what failed in one is raised at once, and nobody waits for those who wait for that one.

    `others` have been asked too, and do not answer yet: one that does has failed.
    """
    found: dict[Peer, Any] = {}
    while not found.keys() >= set(peers):
        ready = wait([peer.pipe for peer in (*peers, *others) if peer not in found], _PATIENCE)
        if not ready:
            raise PeerError(f"the processes of a stream have not answered for {_PATIENCE:.0f} s")
        for peer in (*peers, *others):
            if peer.pipe in ready:
                found[peer] = peer.answer()
    return [found[peer] for peer in peers]


def look(item: Any) -> Any:
    """Read the first and the last element of an item, which must be the same."""
    first = item.item(0)
    if item.item(-1) != first:
        message = f"an item begins with {first} and ends with {item.item(-1)}: it is torn"
        raise RuntimeError(message)
    return first
