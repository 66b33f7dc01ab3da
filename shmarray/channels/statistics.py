"""How a channel stands.

Owns: `ChannelStats`, read from the words of a channel without any lock: each number is right for one moment, together they may be of
several. The words may be a copy: `inspection` reads them from the file of a channel that this process has no part in.
Must not know: how the numbers come about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shmarray._format import channel as form
from shmarray._format import control

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shmarray.channels.slots import Slots

_PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
_HANDS = {form.LOANED: "loan", form.TAKEN: "receive"}
_NOBODY = (form.GONE, form.LEFT)
_ENTRIES = range(form.SUBSCRIBERS, form.RECORDS, form.SUBSCRIBER_WORDS)


@dataclass(frozen=True, slots=True)
class SubscriberStats:
    """One subscription: the pid of its process, how many items are to come, how many it received and missed.

    The pid is 0 of one that was dropped, and not yet cleared away, or left to children that may use it.
    """

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
    """Read the words of a channel that this process has."""
    return of(words, slots.states())


def of(words: Any, states: Sequence[int]) -> ChannelStats:
    """Read words, or a copy of those before the records, together with the state of every slot."""
    broadcasts = words[form.MODE] == form.BROADCAST
    entries = [entry for entry in _ENTRIES if words[entry]] if broadcasts else []
    subscribers = tuple(_subscriber(words, entry) for entry in entries)
    ready = sum(state & form.KIND == form.READY for state in states)
    ahead = words[form.TAIL] - words[form.HEAD] + words[form.RETURNED_COUNT]
    return ChannelStats(
        mode=_name(form.MODES, words[form.MODE]),
        full=_name(form.POLICIES, words[form.FULL]),
        slots=words[form.SLOTS],
        depth=ready if broadcasts else max(0, ahead),
        sent=words[form.TAIL],
        received=words[form.RECEIVED] if broadcasts else _received(words),
        dropped=words[form.REFUSED] + words[form.DROPPED],
        missed=sum(subscriber.missed for subscriber in subscribers),
        lost=words[form.LOST],
        redelivered=words[form.AGAIN],
        producers=_pids(words, form.PRODUCERS),
        consumers=_pids(words, form.CONSUMERS),
        subscribers=subscribers,
        waiting_to_send=words[form.PUTTERS],
        waiting_to_receive=words[form.GETTERS],
        held=tuple(_held(words, entries, states)),
        latency=percentiles(latencies(words)),
        ended=bool(words[form.ENDED]),
    )


def _pid(words: Any, party: int) -> int:
    pid: int = words[form.PIDS + form.slot_of(party)]
    return pid


def _pids(words: Any, first: int) -> tuple[int, ...]:
    """Pids of the processes in a table."""
    table = words[first : first + control.SLOTS]
    return tuple(words[form.PIDS + slot] for slot, word in enumerate(table) if word)


def _received(words: Any) -> int:
    """What consumers of a queue have had or have in hand."""
    left: int = words[form.HEAD] - words[form.DROPPED] - words[form.LOST] - words[form.RETURNED_COUNT]
    return max(0, left)


def _name(names: dict[str, int], number: int) -> str:
    return next((name for name, each in names.items() if each == number), "?")


def _subscriber(words: Any, entry: int) -> SubscriberStats:
    return SubscriberStats(
        pid=_pid(words, words[entry]) if words[entry] not in _NOBODY else 0,
        depth=max(0, words[form.TAIL] - words[entry + form.CURSOR]),
        received=words[entry + form.SEEN],
        missed=words[entry + form.MISSED],
    )


def _held(words: Any, entries: Iterable[int], states: Sequence[int]) -> list[tuple[int, str, int]]:
    held = [
        (slot, _HANDS[state & form.KIND], _pid(words, state & form.REST))
        for slot, state in enumerate(states)
        if state & form.KIND in _HANDS
    ]
    held += [
        (words[entry + form.HELD] - 1, "receive", _pid(words, words[entry]))
        for entry in entries
        if words[entry + form.HELD] > 0 and words[entry] not in _NOBODY
    ]
    return sorted(held)


def latencies(words: Any) -> dict[float, int]:
    """How many of the measured latencies were at most so many seconds, and more than the number before."""
    histogram = words[form.LATENCY : form.LATENCY + form.BUCKETS]
    return {form.bucket_top(index): count for index, count in enumerate(histogram) if count}


def percentiles(counts: Mapping[float, int]) -> dict[str, float] | None:
    """Read off what share of these latencies, in rising order, were at most how long; None if there are none."""
    total = sum(counts.values())
    found, passed = {}, 0
    wanted = list(_PERCENTILES)
    for seconds, count in counts.items():
        passed += count
        while wanted and passed >= wanted[0][1] * total:
            found[wanted.pop(0)[0]] = seconds
    return found or None
