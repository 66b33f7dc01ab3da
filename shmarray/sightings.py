"""Who sees which cells, as the maker of a slab finds out.

Owns: reading the bytes in the seats of a slab, and whose they are; which handles are in flight.
Must not know: what is done with a cell that nobody sees (`stocks`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmarray import seats
from shmarray._format import names
from shmarray._format import slab as form
from shmarray._os import segments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmarray.membership import Membership
    from shmarray.slabwords import Slab

    Place = tuple[Slab, int]


def seen(member: Membership, places: Iterable[Place]) -> set[Place]:
    """Tell which of these cells somebody looks at: a living process's byte is in its seat, or one without a seat has been there."""
    rows: dict[Slab, dict[int, bytes]] = {}
    for slab in {slab for slab, _ in places}:
        places_of, count = slab.layout, slab.layout.count
        table = bytes(slab.bytes[places_of.seats : places_of.seats + form.SEATS * count])
        there = [index for index in range(form.SEATS) if table.count(0, index * count, (index + 1) * count) < count]
        rows[slab] = {index: table[index * count : (index + 1) * count] for index in there}
    # After the bytes were read: who has sat down since looks at nothing without having waited for the answer.
    alive = seats.alive(member, {index for found in rows.values() for index in found})
    found_there = set()
    for slab, cell in places:
        looked_at = any(row[cell] and row[cell] == alive.get(index) for index, row in rows[slab].items())
        if looked_at or slab.word(cell, form.PINNED):
            found_there.add((slab, cell))
    return found_there


def in_flight(member: Membership, places: Iterable[Place]) -> set[Place]:
    """Tell to which of these cells there is a handle in flight, or kept in a block."""
    try:
        found = {slab for slab, _ in places if slab.links() > 1}
    except FileNotFoundError:
        return set(places)  # the store has ended
    if not found:
        return set()
    prefix = member.key.prefix + names.IN_FLIGHT
    entries = segments.entries(member.control.directory, prefix)
    there = {entry[len(prefix) :].partition(".")[0] for entry in entries}
    return {(slab, cell) for slab, cell in places if f"{slab.word(cell, form.NUMBER):016x}" in there}
