"""Reading the files of slabs, as those do who take no part in them.

Owns: what a slab's file says of the arrays in it, read without any lock. What is free by now, or made since, it does not tell.
Must not know: who may remove what (`reaper`), how cells are given out.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from shmarray._format import header, names, slab
from shmarray._os import segments

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_TAIL = 1024  # one read fetches header and description of a slab


class Content(NamedTuple):
    """What is in a slab: by cell, the arrays; and the bytes of each seat in which any is set."""

    arrays: dict[int, slab.Cell]
    seats: dict[int, bytes]

    def in_use(self, alive: Mapping[int, int], handed: Collection[int | None]) -> int:
        """Count the arrays that somebody looks at (`alive`: what is written in which seat), or to which a handle was `handed` out."""
        rows = [(self.seats[index], byte) for index, byte in alive.items() if index in self.seats]
        return sum(
            record.number in handed or any(row[cell] == byte for row, byte in rows)
            for cell, record in self.arrays.items()
        )


def read(path: str) -> Content:
    """Read a slab. Raises `FileNotFoundError`, `OSError`, and `ValueError` for what is none."""
    fd = segments.open_existing(path, write=False)
    try:
        size = segments.status(fd).st_size
        tail = segments.read(fd, _TAIL, max(0, size - _TAIL))
        head = header.unpack(tail, size)
        places = slab.layout_from(head.meta, head.nbytes)
        records = segments.read(fd, slab.RECORD * places.count, places.records)
        table = segments.read(fd, slab.SEATS * places.count, places.seats)
    finally:
        fd.close()
    rows = [table[index * places.count : (index + 1) * places.count] for index in range(slab.SEATS)]
    return Content(slab.occupied(records), {index: row for index, row in enumerate(rows) if any(row)})


class LiveCells:
    """The arrays in the slabs of a store, each slab read once, and only if it is asked about."""

    def __init__(self, directory: str, key: names.StoreKey) -> None:
        """Have read none yet."""
        self._prefix = os.path.join(directory, key.prefix)
        self._read: dict[str, frozenset[int] | None] = {}

    def has_lost(self, kind: str) -> bool:
        """Say whether an entry, listed before, is a handle to an array in a slab that was deleted: for that was cut short."""
        number = names.number_of(kind)
        if not kind.startswith(names.IN_FLIGHT) or number is None or not slab.is_cell(number):
            return False
        entry = names.slab(number)
        if entry not in self._read:
            self._read[entry] = self._numbers(entry)
        live = self._read[entry]
        return live is not None and number not in live

    def _numbers(self, entry: str) -> frozenset[int] | None:
        """Read the numbers of all arrays in a slab; None where that cannot be known."""
        try:
            content = read(self._prefix + entry)
        except (OSError, ValueError):
            return None
        return frozenset(record.number for record in content.arrays.values())
