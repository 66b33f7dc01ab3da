"""Reading a channel of which this process is no part.

Owns: that its words are read from the file and not mapped, with no lock: nobody waits for it, nothing is kept alive by it, and a file that
is cut off meanwhile is no SIGBUS.
Must not know: what the words mean (`channels.statistics`), how a channel is shown.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from shmarray._format import channel as form
from shmarray._os import processes, segments
from shmarray.channels import statistics
from shmarray.channels.bindings import MOST_SLOTS
from shmarray.channels.forms import Form
from shmarray.inspection.records import Channel, Item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmarray.channels.statistics import ChannelStats
    from shmarray.contents import Description

_AT_ONCE = 4 << 20
"""Bytes of records that are read for the sake of one word in each; where there are more, each word is read by itself."""
_MOST_PIDS = 1 << 22
_WORD = 8


def read(fd: segments.Descriptor, content: Description, nbytes: int, *, elsewhere: bool) -> Channel:
    """Read the channel in an open block that describes itself so, and has so many bytes of data.

    `elsewhere`: pids are those of another pid namespace. Raises `ValueError` or one of its kin for what is no channel.
    """
    now = time.time()
    form_of_items = Form.described(content.tree)
    (_, place), (_, slots) = content.leaves
    words = _words(fd, place.offset, form.RECORDS)
    geometry = form.Geometry(words[form.SLOTS], words[form.RECORD_WORDS])
    sound = (
        1 <= geometry.slots <= MOST_SLOTS
        and slots.shape == (geometry.slots, words[form.STRIDE])
        and geometry.record_words >= form.LENGTHS
        and geometry.words <= place.shape[0]
        and place.offset + place.nbytes <= nbytes
        and words[form.MODE] in form.MODES.values()
        and words[form.FULL] in form.POLICIES.values()
    )
    if not sound:
        message = "its words are not those of a channel that this version knows"
        raise ValueError(message)
    stats = statistics.of(words, _states(fd, place.offset, geometry))
    return Channel(
        items=tuple(Item(field.name, field.lengths, field.bounds, str(field.dtype)) for field in form_of_items.fields),
        item_bytes=form_of_items.nbytes,
        read_at=now,
        gone=() if elsewhere else _gone(stats),
        latencies=tuple(statistics.latencies(words).items()),
        stats=stats,
    )


def _words(fd: segments.Descriptor, at: int, count: int) -> tuple[int, ...]:
    data = segments.read(fd, _WORD * count, at)
    try:
        return struct.unpack(f"<{count}q", data)
    except struct.error:
        message = "it was cut off"
        raise ValueError(message) from None


def _states(fd: segments.Descriptor, at: int, geometry: form.Geometry) -> Sequence[int]:
    """Read the state of every slot."""
    if _WORD * geometry.slots * geometry.record_words <= _AT_ONCE:
        records = _words(fd, at + _WORD * form.RECORDS, geometry.slots * geometry.record_words)
        return records[form.STATE :: geometry.record_words]
    places = (at + _WORD * (geometry.record(slot) + form.STATE) for slot in range(geometry.slots))
    return [_words(fd, place, 1)[0] for place in places]


def _gone(stats: ChannelStats) -> tuple[int, ...]:
    """Name the processes that have provably ended, and of which no one has taken notice yet."""
    named = {*stats.producers, *stats.consumers, *(pid for _, _, pid in stats.held)}
    named |= {subscriber.pid for subscriber in stats.subscribers}
    return tuple(sorted(pid for pid in named if 0 < pid <= _MOST_PIDS and _is_gone(pid)))


def _is_gone(pid: int) -> bool:
    # When it started was not written down: one that has the pid now may be another, and proves nothing.
    identity = processes.Identity(pid, processes.start_time(pid), processes.pid_namespace())
    return processes.is_provably_gone(identity)
