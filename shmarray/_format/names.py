"""Names: of stores, arrays, and of the files that carry them.

Owns: which texts may name an array or a store, and the one place where a name becomes a file name and back. All files of
one store begin with `shmarray.UID.STORE.`, where STORE is its identity (16 hexadecimal digits), and go on with

    ctl            the control file
    dir            the claim: stands in for the control file in a directory outside shared memory
    n.NAME         a named block
    a.BLOCK        an anonymous block, BLOCK is its identity
    h.BLOCK.RANDOM a handle in flight: a second link to an anonymous block
    h.BLOCK.RANDOM.KEEPER
                   a handle that lies in another block, KEEPER is the number of that file's inode (hexadecimal)
    t.RANDOM       a block being made (only with a capacity, or on file systems without unnamed files)
    w.RANDOM       memory kept warm: what was a block, and may become one again
    s.SLAB         a slab: a block in which many small anonymous arrays lie; SLAB is the beginning of their identities
    g.BLOCK        the guard of an array that lies in a slab

`shmarray.UID.name.NAME` is a second link to the control file of a store that has a name.
Must not know: what is in any of the files.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple, TypeGuard

from shmarray._os import late
from shmarray.errors import ArrayNameError

MAX_NAME_BYTES = 255
_MAX_ENCODED = 160
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_HASHED = "%~"
_PLAIN_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{_MAX_ENCODED}}}", re.ASCII)
_CONTROL_FILE = re.compile(r"shmarray\.(\d+)\.([0-9a-f]{16})\.ctl\Z")
_STORE_FILE = re.compile(r"shmarray\.(\d+)\.([0-9a-f]{16})\.")
_PIECE = re.compile(r"%[0-9A-F]{2}|[A-Za-z0-9._-]+")

CONTROL = "ctl"
CLAIM = "dir"
NAMED = "n."
ANONYMOUS = "a."
IN_FLIGHT = "h."
TEMPORARY = "t."
WARM = "w."
SLAB = "s."
GUARD = "g."


class StoreKey(NamedTuple):
    """Identity of one store: the user who opened it, and 64 random bits."""

    uid: int
    store: int

    @property
    def prefix(self) -> str:
        """What the file names of this store begin with."""
        return f"shmarray.{self.uid}.{self.store:016x}."


def user_prefix(uid: int) -> str:
    """What the file names of this user begin with."""
    return f"shmarray.{uid}."


def check(name: object, what: str = "an array") -> str:
    """Return `name` if it can name an array or a store; else raise `ArrayNameError`."""
    if type(name) is str and _is_good(name):
        return name
    reason = _objection(name)
    if reason is None and isinstance(name, str):
        return name
    raise ArrayNameError(
        f"{name!r} cannot name {what}: {reason}",
        remedy=f"Use a non-empty text of at most {MAX_NAME_BYTES} bytes in UTF-8, without control characters.",
        name=name,
    )


def is_name(name: object) -> TypeGuard[str]:
    """Say whether `name` can name an array."""
    return isinstance(name, str) and _objection(name) is None


@functools.lru_cache(maxsize=1024)
def _is_good(name: str) -> bool:
    """Say whether a text can be a name; those that are used again and again are looked at once."""
    return _objection(name) is None


def _objection(name: object) -> str | None:
    if not isinstance(name, str):
        return f"it is of type {type(name).__name__}, not str"
    if not name:
        return "it is empty"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "it contains a control character"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it contains half of a surrogate pair"
    return f"it is {size} bytes long in UTF-8" if size > MAX_NAME_BYTES else None


@functools.lru_cache(maxsize=1024)
def encode(name: str) -> str:
    """Spell a checked name so that it may stand in a file name."""
    if _PLAIN_NAME.fullmatch(name):  # most are, and a process's first attach waits for this
        return name
    raw = name.encode()
    text = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)
    if len(text) <= _MAX_ENCODED:
        return text
    digest: str = late.load("hashlib").blake2b(raw, digest_size=16).hexdigest()
    return _HASHED + digest


def decode(text: str) -> str | None:
    """Undo `encode`; None when the text stands for a longer name that only the block itself tells.

    Raises `ValueError` when `encode` can not have made it.
    """
    if re.fullmatch(r"%~[0-9a-f]{32}", text):
        return None
    pieces = _PIECE.findall(text)
    if not text or "".join(pieces) != text or len(text) > _MAX_ENCODED:
        message = f"{text!r} is not the spelling of a name"
        raise ValueError(message)
    raw = b"".join(bytes([int(piece[1:], 16)]) if piece[0] == "%" else piece.encode() for piece in pieces)
    name = raw.decode()
    if encode(name) != text or _objection(name) is not None:
        message = f"{text!r} is not the spelling of a name"
        raise ValueError(message)
    return name


def keeper_of(kind: str) -> int | None:
    """Tell the inode of the block in which a handle lies; None if it is on its way, or `kind` is no handle."""
    if not kind.startswith(IN_FLIGHT):
        return None
    _, _, keeper = kind.removeprefix(IN_FLIGHT).partition(".")[2].partition(".")
    try:
        return int(keeper, 16) if keeper else None
    except ValueError:
        return None


def slab(number: int) -> str:
    """File name, without the prefix of the store, of the slab in which the array with this number lies."""
    return f"{SLAB}{number >> 32:08x}"


def guard(number: int) -> str:
    """File name, without the prefix of the store, of the guard of an array that lies in a slab."""
    return f"{GUARD}{number:016x}"


def entry_of(number: int, name: str | None) -> str:
    """File name, without the prefix of the store, of a block with this name or number, of a slab, or of the guard of a small array."""
    if name is not None:
        return NAMED + encode(name)
    if number >> 63:
        return guard(number) if number & 0xFFFF_FFFF else slab(number)
    return f"{ANONYMOUS}{number:016x}"


def aside_of(path: str) -> str | None:
    """Give the path to which the name of an anonymous block is moved while its memory is kept; None for one of any other kind.

    >>> aside_of("shmarray.0.0123456789abcdef.a.00000000000000ff")
    'shmarray.0.0123456789abcdef.w.00000000000000ff'
    """
    before, number = path[:-16], path[-16:]
    return before.removesuffix(ANONYMOUS) + WARM + number if before.endswith("." + ANONYMOUS) else None


def aside_of_file(prefix: str, inode: int) -> str:
    """Give the path to which the name of a named block is moved, or which it gets besides, while its memory is kept by another process.

    >>> aside_of_file("shmarray.0.0123456789abcdef.", 255)
    'shmarray.0.0123456789abcdef.w.00000000000000ff'
    """
    return f"{prefix}{WARM}{inode:016x}"


def number_of(kind: str) -> int | None:
    """Tell which array a handle or a guard is of, from its file name without the prefix of the store; None if that says none."""
    try:
        return int(kind[2:18], 16)
    except ValueError:
        return None


def holder_of(kind: str) -> str:
    """Tell the file name of what a handle, or a guard, leads to: an anonymous block, or the slab in which a small array lies."""
    number = number_of(kind)
    if number is not None and number >> 63:
        return slab(number)
    return ANONYMOUS + kind[2:].partition(".")[0]


def draft(key: StoreKey, token: str) -> str:
    """File name of a block in the making; `token` makes it the only one."""
    return f"{key.prefix}{TEMPORARY}{token}"


def store_link(uid: int, name: str) -> str:
    """File name of the second link to the control file of the store called `name`."""
    return f"shmarray.{uid}.name.{encode(name)}"


def control_file(entry: str) -> StoreKey | None:
    """Tell which store an entry is the control file of; None if it is none."""
    match = _CONTROL_FILE.match(entry)
    return StoreKey(int(match[1]), int(match[2], 16)) if match else None


def store_of(entry: str) -> StoreKey | None:
    """Tell which store an entry of a directory belongs to; None if to none."""
    match = _STORE_FILE.match(entry)
    return StoreKey(int(match[1]), int(match[2], 16)) if match else None
