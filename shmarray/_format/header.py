"""The header of a block, which stands behind its data.

Owns: where everything lies in a block's file, byte by byte (`docs/format.md` has the table):

    0           the data, so that whoever maps the file by other means finds them at the start
    meta_at     the description (UTF-8 JSON)
    size - 512  the header: fixed fields, guarded by a checksum together with the description; then words that change; from
                byte 192 on, the room of the guard

Must not know: what the description says; files; NumPy.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

VERSION = 1
SIZE = 512
ALIGN = 64
PAGE = 4096

MAGIC = b"SHMARRAY"
#: magic, version, flags, checksum, meta length, file size, data size, meta offset, store, block, pid, start, born
_FIXED = struct.Struct("<8sHHIQQQQQQQQQ")
_CRC_AT = 12
_SIZES, _SIZES_AT = struct.Struct("<QQ"), 24  # of the file and of the data
_IMMUTABLE = 128
BLOCK_AT = 56
STATE_AT = 128
_STATE, _WORDS = struct.Struct("<Q"), struct.Struct("<QQQQ")
EXPOSED_AT = STATE_AT + _STATE.size
AGAIN_AT = EXPOSED_AT + _STATE.size
"""When an array was made again in a block that rested, as `born`, and the same with all bits turned over; 0 both if none was."""
_STATE_END = AGAIN_AT + 2 * _STATE.size
_ALL = (1 << 64) - 1
GUARD_AT = 192
GUARD_SIZE = SIZE - GUARD_AT

#: Far apart in bits, so that no single flipped bit or byte turns one into the other.
LIVE = 0x6C69_7665_6C69_7665
DELETED = 0x6465_6C65_7465_6421
RESTING = 0x7265_7374_5A5A_5A2E
"""There is no array in it: its maker keeps it for the next one of the same kind."""
_STATES = (LIVE, DELETED, RESTING)
EXPOSED = 0x6578_706F_7365_6421
"""The name of the file was given out, and with it a way to map it without a lease."""
KEEPER_MARK = 1
"""Mark (kernel lock on one byte) of a block's file: who has it will use the memory again when nobody sees the block any more."""
_NO_CRC = bytes(4)
_UNUSED = bytes(GUARD_AT - _STATE_END)
_EXPOSURES = (bytes(8), EXPOSED.to_bytes(8, "little"))


class DamagedError(ValueError):
    """These bytes are not the header of a block."""


class TooShortError(DamagedError):
    """More of the file has to be read."""


class TornError(DamagedError):
    """The state was read while it was being written, or is damaged: the next look tells."""


class Header(NamedTuple):
    """What the header of a block says. Sizes in bytes; `born` in nanoseconds since the epoch; `pid` made it."""

    file_size: int
    nbytes: int
    store: int
    block: int
    pid: int
    start: int
    born: int
    state: int
    meta: bytes


def file_size(nbytes: int, meta_size: int) -> int:
    """Size of the file of a block with that much data and description: whole pages."""
    least = -(-nbytes // ALIGN) * ALIGN + meta_size + SIZE
    return -(-least // PAGE) * PAGE


def state_offset(size: int) -> int:
    """Where the state word lies in a file of that size."""
    return size - SIZE + STATE_AT


def exposed_offset(size: int) -> int:
    """Where the word lies that says whether the name of the file was given out."""
    return size - SIZE + EXPOSED_AT


def pack(header: Header, guard: bytes = b"") -> tuple[int, bytes]:
    """Lay out description, header and guard: the offset in the file where the bytes belong, and the bytes to its end."""
    meta_at = header.file_size - SIZE - len(header.meta)
    fields = [MAGIC, VERSION, 0, 0, len(header.meta), header.file_size, header.nbytes, meta_at]
    fields += [header.store, header.block, header.pid, header.start, header.born]
    fixed = _FIXED.pack(*fields).ljust(_IMMUTABLE, b"\0")
    checksum = zlib.crc32(header.meta, zlib.crc32(fixed)).to_bytes(4, "little")
    state = _STATE.pack(header.state) + bytes(_STATE_END - EXPOSED_AT) + _UNUSED
    return meta_at, b"".join(
        (header.meta, fixed[:_CRC_AT], checksum, fixed[_CRC_AT + 4 :], state, guard.ljust(GUARD_SIZE, b"\0"))
    )


def meta_size(tail: bytes) -> int:
    """Tell from the last `SIZE` bytes of a file how long its description claims to be."""
    if len(tail) < SIZE or tail[-SIZE : -SIZE + 8] != MAGIC:
        message = "no header of shmarray stands at its end"
        raise DamagedError(message)
    return int(_FIXED.unpack_from(tail, len(tail) - SIZE)[4])


def unpack(tail: bytes, size: int) -> Header:
    """Read and check the header of a file of `size` bytes from its last bytes, which must hold the whole description.

    Raises `DamagedError` for anything that `pack` did not write: `TooShortError` where the description begins before these bytes.
    """
    at = len(tail) - SIZE
    if tail[at : at + 8] != MAGIC or at < 0:
        meta_size(tail)  # raises, and says why
    fixed = tail[at : at + _IMMUTABLE]
    (_, version, flags, crc, length, told_size, nbytes, meta_at, store, block, pid, start, born) = _FIXED.unpack_from(
        fixed
    )
    if version != VERSION:
        message = f"its layout is version {version}, this shmarray reads version {VERSION}"
        raise DamagedError(message)
    if told_size != size:
        message = f"it is {size} bytes long and its header says {told_size}"
        raise DamagedError(message)
    if at < length <= size - SIZE:
        message = f"its description of {length} bytes is not all here"
        raise TooShortError(message)
    if length > at or meta_at != size - SIZE - length or nbytes > meta_at:
        message = "the fields of its header contradict each other"
        raise DamagedError(message)
    meta = tail[at - length : at]
    checked = zlib.crc32(fixed[_CRC_AT + 4 :], zlib.crc32(_NO_CRC, zlib.crc32(fixed[:_CRC_AT])))
    if flags or zlib.crc32(meta, checked) != crc:
        message = "the checksum of its header is wrong"
        raise DamagedError(message)
    if tail[at + _STATE_END : at + GUARD_AT] != _UNUSED or tail[at + EXPOSED_AT : at + AGAIN_AT] not in _EXPOSURES:
        message = "bytes of its header that are not in use are not zero"
        raise DamagedError(message)
    state, _, again, turned = _WORDS.unpack_from(tail, at + STATE_AT)
    # While it is written, the block rests still.
    if state != RESTING and (again ^ turned not in (0, _ALL) or (again and again == turned)):
        message = "the time in its header is none"
        raise TornError(message)
    if state not in _STATES:
        message = f"its state is {state:#x}, which is none"
        raise TornError(message)
    return Header(size, nbytes, store, block, pid, start, again or born, state, meta)


def unseen(header: bytes) -> int:
    """Read from a header how many bytes of data nobody may see who has no lease; 0 if the file's name was given out, or it is no header."""
    if header[: len(MAGIC)] != MAGIC or header[EXPOSED_AT : EXPOSED_AT + _STATE.size] != _EXPOSURES[0]:
        return 0
    size, nbytes = _SIZES.unpack_from(header, _SIZES_AT)
    return int(nbytes) if nbytes <= size else 0


def again(now: int) -> tuple[int, int]:
    """Give the two words that say that an array was made again, at that time.

    >>> [word.bit_count() for word in again(3)]
    [2, 62]
    """
    return now, now ^ _ALL
