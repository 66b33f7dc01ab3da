"""Making a channel.

Owns: what a new channel's words are; checking what it is asked to be.
Must not know: how a channel is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray import contents
from shmarray._format import channel as form
from shmarray._format import counts, flags, layouts
from shmarray.channels import latches
from shmarray.channels.bindings import MOST_SLOTS
from shmarray.channels.channel import Channel
from shmarray.channels.forms import Form

if TYPE_CHECKING:
    from shmarray.membership import Membership

_PAGE = 4096
_BYTES: np.dtype[Any] = np.dtype(np.uint8)
_WORD: np.dtype[Any] = np.dtype(np.int64)
_MOST_SPIN = 3600.0


def make(
    member: Membership,
    shape: Any,
    dtype: Any,
    *,
    max_shape: Any,
    slots: int,
    mode: str,
    full: str,
    meta_bytes: int,
    redeliver: bool,
    stay: bool,
    spin: float,
    name: str | None,
) -> Channel:
    """Make a channel; see `Store.channel`."""
    item = Form.of(shape, dtype, max_shape)
    count = counts.between(slots, "slots", 1, MOST_SLOTS)
    room = counts.between(meta_bytes, "meta_bytes", 0, 1 << 30)
    nap = int(_seconds("spin", spin, _MOST_SPIN) * 1e9)
    wishes = (form.REDELIVER if flags.check(redeliver, "redeliver") else 0) | (
        form.STAY if flags.check(stay, "stay") else 0
    )
    if redeliver and mode == "broadcast":
        message = "in a broadcast nobody else is given what a subscriber had: redeliver is for queues"
        raise ValueError(message)
    geometry = form.Geometry(count, form.record_words(item.varying, room))
    words = -(-geometry.words * _WORD.itemsize // _PAGE) * _PAGE // _WORD.itemsize
    unit = _PAGE if item.nbytes >= _PAGE else layouts.ALIGN
    stride = -(-item.nbytes // unit) * unit
    kinds = _choice("mode", mode, form.MODES), _choice("full", full, form.POLICIES)
    lock = np.frombuffer(latches.fresh(robust=member.control.guard == "robust"), _BYTES)

    def fill(memory: np.ndarray[Any, Any]) -> None:
        if memory.dtype == _WORD:
            memory[: form.SPIN + 1] = (*kinds, count, stride, wishes, geometry.record_words, room, nap)
            for at in (form.PUT_LOCK, form.GET_LOCK):
                memory.view(_BYTES)[8 * at : 8 * at + len(lock)] = lock

    leaves = [(_WORD, contents.layout_of(_WORD, (words,))), (_BYTES, contents.layout_of(_BYTES, (count, stride)))]
    return Channel._over(contents.create(member, name, leaves, fill=fill, tree=item.describe(), kind=Channel._kind))


def _seconds(what: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        message = f"{what} must be a number of seconds, not {value!r}"
        raise TypeError(message)
    if not 0 <= value <= most:
        message = f"{what} lies between 0 and {most}, and {value} does not"
        raise ValueError(message)
    return float(value)


def _choice(what: str, value: object, choices: dict[str, int]) -> int:
    if not isinstance(value, str) or value not in choices:
        message = f"{what} is one of {', '.join(map(repr, choices))}, not {value!r}"
        raise ValueError(message)
    return choices[value]
