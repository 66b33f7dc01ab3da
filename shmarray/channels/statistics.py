"""How a channel stands.

Owns: `ChannelStats`, read from the words of a channel without any lock: each number is right for one moment, together they may be of
several.
Must not know: how the numbers come about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shmarray._format import channel as form

if TYPE_CHECKING:
    from shmarray.channels.slots import Slots

_PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
_HANDS = {form.LOANED: "loan", form.TAKEN: "receive"}


@dataclass(frozen=True, slots=True)
class SubscriberStats:
    """One subscription: the pid of its process, how many items are to come, how many it received and missed."""

    pid: int
    depth: int
    received: int
    missed: int


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """A channel at one moment.

    `depth` items can be taken (of a broadcast: are held by at least one subscription that has not had them), in `slots` slots. Since it was
    made, `sent` items were published and `received` taken (of a broadcast: by all subscriptions together); `dropped` for want of a slot,
    before or after they were published; `missed` by subscriptions that were late; `lost` with a consumer that died; `redelivered` to
    another.
    `producers`, `consumers` are pids; `waiting_to_send`, `waiting_to_receive` count threads. `held` has (slot, "loan" or "receive", pid)
    for each
    slot in hand. `latency` is from publishing to taking, in seconds, of every sixteenth item: "p50", "p90", "p99", "max", each rounded up
    by a quarter at most; None if none was measured.
    """

    mode: str
    full: str
    slots: int
    depth: int
    sent: int
    received: int
    dropped: int
    missed: int
    lost: int
    redelivered: int
    producers: tuple[int, ...]
    consumers: tuple[int, ...]
    subscribers: tuple[SubscriberStats, ...]
    waiting_to_send: int
    waiting_to_receive: int
    held: tuple[tuple[int, str, int], ...]
    latency: dict[str, float] | None
    ended: bool


def look(words: Any, slots: Slots) -> ChannelStats:
    """Read the words of a channel."""
    broadcasts = words[form.MODE] == form.BROADCAST
    subscribers = tuple(_subscriber(words, slots, entry) for entry in slots.subscribers.entries())
    states = slots.states()
    dropped_late = words[form.DROPPED]
    return ChannelStats(
        mode=_name(form.MODES, words[form.MODE]),
        full=_name(form.POLICIES, words[form.FULL]),
        slots=words[form.SLOTS],
        depth=sum(state & form.KIND == form.READY for state in states) if broadcasts else slots.depth(),
        sent=words[form.TAIL],
        received=words[form.RECEIVED] if broadcasts else _received(words),
        dropped=words[form.REFUSED] + dropped_late,
        missed=sum(subscriber.missed for subscriber in subscribers),
        lost=words[form.LOST],
        redelivered=words[form.AGAIN],
        producers=tuple(map(slots.parties.pid_of, slots.parties.producers())),
        consumers=tuple(map(slots.parties.pid_of, slots.parties.consumers())),
        subscribers=subscribers,
        waiting_to_send=words[form.PUTTERS],
        waiting_to_receive=words[form.GETTERS],
        held=tuple(_held(words, slots, states)),
        latency=_latency(words[form.LATENCY : form.LATENCY + form.BUCKETS]),
        ended=bool(words[form.ENDED]),
    )


def _received(words: Any) -> int:
    """What consumers of a queue have had or have in hand."""
    gone = words[form.DROPPED] + words[form.LOST] + words[form.RETURNED_COUNT]
    return max(0, int(words[form.HEAD]) - int(gone))


def _name(names: dict[str, int], number: int) -> str:
    return next((name for name, each in names.items() if each == number), "?")


def _subscriber(words: Any, slots: Slots, entry: int) -> SubscriberStats:
    return SubscriberStats(
        pid=slots.parties.pid_of(words[entry]) if words[entry] != form.GONE else 0,
        depth=slots.subscribers.depth(entry),
        received=words[entry + form.SEEN],
        missed=words[entry + form.MISSED],
    )


def _held(words: Any, slots: Slots, states: list[int]) -> list[tuple[int, str, int]]:
    held = [
        (slot, _HANDS[state & form.KIND], slots.parties.pid_of(state & form.REST))
        for slot, state in enumerate(states)
        if state & form.KIND in _HANDS
    ]
    held += [
        (words[entry + form.HELD] - 1, "receive", slots.parties.pid_of(words[entry]))
        for entry in slots.subscribers.entries()
        if words[entry + form.HELD] and words[entry] != form.GONE
    ]
    return sorted(held)


def _latency(histogram: list[int]) -> dict[str, float] | None:
    total = sum(histogram)
    if not total:
        return None
    found, passed = {}, 0
    wanted = list(_PERCENTILES)
    for index, count in enumerate(histogram):
        passed += count
        while wanted and passed >= wanted[0][1] * total:
            found[wanted.pop(0)[0]] = form.bucket_top(index)
    return found
