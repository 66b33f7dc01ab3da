"""The control file of a store: one page that says what the store is, and how it stands.

Owns: the layout: a fixed part with checksum, a description (JSON) of what never changes, and the words that do.
Must not know: files, locks, processes.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any, NamedTuple

from shmarray._format.header import DamagedError

SIZE = 8192
_MAGIC = b"SHMSTORE"
VERSION = 1
_FIXED = struct.Struct("<8sHHIQQ")  # magic, version, zero, checksum, store, length of the description
_DESCRIPTION_AT = 2048
_WORDS = struct.Struct("<QQQQ")

#: Words that change, each eight bytes, at these offsets.
STATE_AT = 256
GUARDIAN_AT = 264
USED_AT = 272
CHANGES_AT = 280
"""Counts changes of what names lead to: odd while one is being made, or since one was cut short by a death."""
#: One word for each slot of the tables of readers: how often the slot has been taken.
EPOCHS_AT = 512
SLOTS = 104
#: One word for each seat in the tables of slabs (`slab`): how often the seat has been taken.
SEAT_EPOCHS_AT = EPOCHS_AT + 8 * SLOTS
SEATS = 64
_IN_USE_TO = SEAT_EPOCHS_AT + 8 * SEATS

OPEN = 0x6F70_656E_6F70_656E
CLOSED = 0x636C_6F73_6564_2121
DEAD = 0x6465_6164_6465_6164
STATES = {OPEN: "open", CLOSED: "closed", DEAD: "dead"}

#: Marks (kernel locks on one byte) of a control file.
OWNER_MARK = 0
GUARDIAN_MARK = 1
NAME_MARK = 2
CHANGE_MARK = 3
CAPACITY_MARK = 4
SLOT_MARK = 16
"""The first of `SLOTS` marks: who holds one has that slot in every table of readers of the store."""
SEAT_MARK = SLOT_MARK + SLOTS
"""The first of `SEATS` marks: who holds one has that seat in every slab of the store."""

SHARED_MARK = 1 << 32
"""The first of very many: all who may use a certain thing, which a random number names, share one of these."""


class Control(NamedTuple):
    """What never changes about a store.

    `directory` holds its blocks, `capacity` bounds their bytes together, `owner` is (pid, start time, pid namespace), `born`
    is in nanoseconds since the epoch, `key` opens the guardian's door, `guard` is the kind of its locks, `small` the size in bytes up to
    which anonymous arrays share a file, `copy_threads` how many threads of a process share a large copy, None as many as it has cores,
    `warm` how many bytes of freed memory may be kept, None as many as seem right.
    """

    store: int
    name: str | None
    directory: str
    capacity: int | None
    owner: tuple[int, int, int]
    boot: str
    born: int
    key: str
    guard: str = "robust"
    small: int = 0
    copy_threads: int | None = None
    warm: int | None = None


def pack(control: Control) -> bytes:
    """Lay out the control file of an open store."""
    description = json.dumps(control._asdict(), ensure_ascii=False).encode("utf-8", "surrogateescape")
    if len(description) > SIZE - _DESCRIPTION_AT:
        message = f"a control file of {SIZE} bytes cannot hold {len(description)} bytes of description"
        raise ValueError(message)
    page = bytearray(SIZE)
    page[_DESCRIPTION_AT : _DESCRIPTION_AT + len(description)] = description
    _FIXED.pack_into(page, 0, _MAGIC, VERSION, 0, 0, control.store, len(description))
    crc = zlib.crc32(description, zlib.crc32(page[: _FIXED.size]))
    _FIXED.pack_into(page, 0, _MAGIC, VERSION, 0, crc, control.store, len(description))
    _WORDS.pack_into(page, STATE_AT, OPEN, 0, 0, 0)
    return bytes(page)


def unpack(page: bytes) -> tuple[Control, int]:
    """Read and check a control file: what it says, and the state the store is in. Raises `DamagedError`."""
    if len(page) != SIZE or page[:8] != _MAGIC:
        message = "it is not the control file of a store"
        raise DamagedError(message)
    magic, version, zero, crc, store, length = _FIXED.unpack_from(page)
    if version != VERSION:
        message = f"its layout is version {version}, this shmarray reads version {VERSION}"
        raise DamagedError(message)
    description = page[_DESCRIPTION_AT : _DESCRIPTION_AT + length]
    unused = page[_FIXED.size : STATE_AT] + page[CHANGES_AT + 8 : EPOCHS_AT] + page[_IN_USE_TO:_DESCRIPTION_AT]
    if (unused + page[_DESCRIPTION_AT + length :]).strip(b"\0"):
        message = "bytes of its control file that are not in use are not zero"
        raise DamagedError(message)
    fixed = _FIXED.pack(magic, version, zero, 0, store, length)
    if zero or len(description) != length or zlib.crc32(description, zlib.crc32(fixed)) != crc:
        message = "the checksum of its control file is wrong"
        raise DamagedError(message)
    state = _WORDS.unpack_from(page, STATE_AT)[0]
    if state not in STATES:
        message = f"its state is {state:#x}, which is none"
        raise DamagedError(message)
    fields: dict[str, Any] = json.loads(description.decode("utf-8", "surrogateescape"))
    fields["owner"] = tuple(fields["owner"])
    return Control(**fields), state
