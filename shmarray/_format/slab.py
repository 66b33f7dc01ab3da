"""A slab: one block in whose data many small arrays lie, each in a cell.

Owns: where everything lies in the data of a slab (`docs/format.md` has the table), the numbers of cells, the sizes there are:

    0          the cells, `count` of them, `size` bytes each
    records    128 bytes for each cell: what is in it, and how it stands
    seats      for each seat `count` bytes, one for each cell: who looks at what

The byte of a seat and a cell is 0, or that of the process which has the seat and views of the array in the cell: each process writes in
its own seat alone. A cell has a new number for each array, so a handle to one that is gone is never taken for one to the next. The words of
a record: the number; how the cell stands; bytes of data; whether its maker is asking just now who sees it; whether a process without a
seat has seen it, so that it is never used again; whether it was given a guard, which is a file of its own; when it was made.
Must not know: files, processes; NumPy.
"""

from __future__ import annotations

import json
import struct
from typing import NamedTuple

from shmarray._format import control

KIND = "slab"
SEATS = control.SEATS
RECORD = 128
ALIGN = 64
MOST_CELLS = 1 << 12

#: In a record: words at these offsets, then the description, whose length stands before it.
NUMBER, STATE, NBYTES, ASKED, PINNED, GUARDED, BORN, LENGTH, META = 0, 8, 16, 24, 32, 40, 48, 56, 64
MOST_META = RECORD - META
DESCRIBED = NBYTES
"""Where that begins which is written while no array is in the cell."""

#: States of a cell, far apart in bits.
FREE = 0
LIVE = 0x6C69_7665_6C69_7665
DELETED = 0x6465_6C65_7465_6421

_CELL_BITS, _GENERATION_BITS, _SLAB_AT = 12, 20, 32
_A_CELL = 1 << 63
LAST_GENERATION = (1 << _GENERATION_BITS) - 1
A_GENERATION = 1 << _CELL_BITS
"""What is added to the number of the array before."""
WORN = LAST_GENERATION << _CELL_BITS
"""The bits of a number that are all set in the last one of a cell: the next would recur."""
_FINEST = 64
_STEPS = 8  # sizes between one power of two and the next


class Cell(NamedTuple):
    """What a record says. `number` names the array, sizes in bytes, `born` in nanoseconds since the epoch."""

    number: int
    state: int
    nbytes: int
    born: int
    meta: bytes


def is_cell(number: int) -> bool:
    """Say whether that is the number of an array in a slab, or of a slab, and not of a block that is one array."""
    return number >> 63 == 1


def slab_number(token: int) -> int:
    """Give the number of a slab from 31 random bits."""
    return _A_CELL | (token & 0x7FFF_FFFF) << _SLAB_AT


def slab_of(number: int) -> int:
    """Tell which slab a cell's number is of."""
    return number >> _SLAB_AT << _SLAB_AT


def cell_of(number: int) -> int:
    """Tell which cell of its slab a number means."""
    return number & (MOST_CELLS - 1)


def number_of(slab: int, cell: int, generation: int) -> int:
    """Give the number of the array that is the `generation`-th in a cell."""
    return slab | generation << _CELL_BITS | cell


def size_class(nbytes: int) -> int:
    """Give the size of the cells in which arrays of that size lie: at most an eighth more, above half a KiB."""
    if nbytes <= _FINEST * _STEPS:
        return max(_FINEST, -(-nbytes // _FINEST) * _FINEST)
    step = 1 << ((nbytes - 1).bit_length() - 1 - (_STEPS.bit_length() - 1))
    return -(-nbytes // step) * step


class Layout:
    """Where everything lies in the data of a slab with `count` cells of `size` bytes."""

    __slots__ = ("count", "nbytes", "records", "seats", "size")

    def __init__(self, size: int, count: int) -> None:
        """Lay it out."""
        self.size, self.count = size, count
        self.records = -(-size * count // ALIGN) * ALIGN
        self.seats = self.records + RECORD * count
        self.nbytes = self.seats + SEATS * count

    def seat(self, index: int) -> int:
        """Where the bytes of a seat are."""
        return self.seats + self.count * index


def described(nbytes: int, born: int, meta: bytes) -> bytes:
    """Write what a record says of a new array, from `DESCRIBED` on: nobody asks, it is not pinned, it has no guard."""
    return _DESCRIPTION.pack(nbytes, 0, 0, 0, born, len(meta)) + meta


def layout_from(meta: bytes, nbytes: int) -> Layout:
    """Read from the description of a block of that much data where everything lies in a slab. Raises `ValueError` for what is none."""
    fields = json.loads(meta)
    if not isinstance(fields, dict) or fields.get("kind") != KIND:
        message = "it is no slab"
        raise ValueError(message)
    size, count = fields.get("size"), fields.get("count")
    if type(size) is not int or type(count) is not int or not (0 < count <= MOST_CELLS and 0 < size <= nbytes):
        message = "the sizes in its description are none"
        raise ValueError(message)
    places = Layout(size, count)
    if size % ALIGN or places.nbytes != nbytes:
        message = "the sizes in its description contradict each other"
        raise ValueError(message)
    return places


def namespace_from(meta: bytes) -> int:
    """Read in which pid namespace the maker is of whom the header tells; 0 if that is not said."""
    namespace = json.loads(meta).get("namespace")
    return namespace if type(namespace) is int else 0


_RECORD = struct.Struct("<QQQQQQQQ")
_DESCRIPTION = struct.Struct("<QQQQQQ")


def unpack(record: bytes) -> Cell:
    """Read a record. Raises `ValueError` for one that makes no sense."""
    number, state, nbytes, _, _, _, born, length = _RECORD.unpack_from(record)
    if state not in (FREE, LIVE, DELETED) or length > MOST_META or (number and not is_cell(number)):
        message = "the record of one of its cells is none"
        raise ValueError(message)
    return Cell(number, state, nbytes, born, record[META : META + length])


def occupied(records: bytes) -> dict[int, Cell]:
    """Read the records of a slab, one behind the other: by cell, the arrays that are there. Raises `ValueError`."""
    found = {at // RECORD: unpack(records[at : at + RECORD]) for at in range(0, len(records), RECORD)}
    return {cell: record for cell, record in found.items() if record.state == LIVE}


def seat_byte(epoch: int) -> int:
    """What a process writes into its seat's bytes: the seat's epoch in eight bits, never 0."""
    return epoch % 255 + 1
