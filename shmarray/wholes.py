"""Handles of whole named arrays, the short way.

Most handles that travel stand for all of a named array. Such a handle is one string of bytes and what the array looks like; loading it
where the array is mapped already is one look into a table and two words of memory, and elsewhere the block's description need not be read.
Owns: that string, and that table.
Must not know: how a block is found that is not in the table.

The table holds weak references, so it keeps nothing. An entry cannot be stale: it is of one block, and whether that one still has its
name and its store is open is read from their memory each time.
"""

from __future__ import annotations

import struct
import weakref
from typing import TYPE_CHECKING, Any

from shmarray import attachments
from shmarray._format import header as form
from shmarray._format.dtypes import encode_dtype
from shmarray._format.handle import BlockKey
from shmarray._os import segments

if TYPE_CHECKING:
    import numpy as np

_IDENTITY = struct.Struct("<IQQ")
CACHE = "whole"
"""In the cache of a block: what was noted of it."""
_SHOWN = "shown"


class Whole(weakref.ref[segments.Segment]):
    """A mapped named block, and what the array in it looks like."""

    __slots__ = ("arguments", "dtype", "shape", "state_at", "strides")
    arguments: tuple[bytes, str, tuple[int, ...], tuple[int, ...] | None]
    """What a handle says: identity of the block, dtype, shape, and strides unless in C order."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    state_at: int
    """Where the state word of the block is."""


_known: dict[bytes, Whole] = {}
find = _known.get
"""What was noted of the block of a handle. Whether the block is still mapped and good, the caller sees: no call more on that way."""
_tidy_at = [256]


def note(segment: segments.Segment, array: np.ndarray[Any, Any]) -> Whole | None:
    """Note what all of a block looks like, if it has a name and holds elements of a simple kind."""
    block: attachments.Block = segment.tag
    key, code = block.key, encode_dtype(array.dtype)
    # Of an anonymous one each handle is another; a structure's dtype is a new object each time.
    if key.name is None or not isinstance(code, str):
        return None
    token = _IDENTITY.pack(key.uid, key.store, key.block) + key.name.encode()
    whole = Whole(segment)
    whole.state_at = form.state_offset(block.file_size)
    whole.shape, whole.strides, whole.dtype = array.shape, array.strides, array.dtype
    whole.arguments = token, code, array.shape, None if array.flags.c_contiguous else array.strides
    if len(_known) >= _tidy_at[0]:
        attachments.forget_dead(_known)
        _tidy_at[0] = 2 * len(_known) + 256
    _known[token] = block.cache[CACHE] = whole
    return whole


def is_shown_again(segment: segments.Segment) -> bool:
    """Say whether a handle of this block was loaded before while it was mapped: then noting it pays."""
    cache: dict[str, object] = segment.tag.cache
    if _SHOWN in cache:
        return True
    cache[_SHOWN] = True
    return False


def of(segment: segments.Segment) -> Whole | None:
    """Give what was noted of a block."""
    return segment.tag.cache.get(CACHE)  # type: ignore[no-any-return]  # nothing else has that key


def key_of(token: bytes) -> BlockKey:
    """Read which block a handle stands for."""
    uid, store, block = _IDENTITY.unpack_from(token)
    return BlockKey(uid, store, block, token[_IDENTITY.size :].decode(), None)
