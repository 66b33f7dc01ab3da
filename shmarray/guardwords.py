"""The words of a block's guard, as this process sees them.

Owns: reaching each word of the guard's room in a mapped block, and what can be read there without holding anything.
Must not know: the protocol by which the words change (`guards`).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from shmarray._format import guard as form
from shmarray._format import header, kinds
from shmarray._os import segments

if TYPE_CHECKING:
    from shmarray.attachments import Block


class GuardWords:
    """The words of one guard. They are reached by address: valid as long as the mapping is, which this keeps alive for nobody."""

    __slots__ = (
        "_address",
        "_draining",
        "_entries",
        "_holder",
        "_lock",
        "_meta",
        "_poison",
        "_poisoned_at",
        "_robust",
        "_since",
        "_table",
        "_turn",
        "key",
        "member",
    )

    def __init__(self, segment: segments.Segment) -> None:
        """Find the words in a mapped block."""
        block: Block = segment.tag
        # Not the block, which keeps this object: no cycle.
        self.member, self.key, self._meta = block.member, block.key, block.meta
        base = segments.address_of(segment) + block.file_size - header.SIZE + header.GUARD_AT
        self._address = base
        self._lock = base + form.LOCK
        self._robust = ctypes.c_uint64.from_address(base + form.KIND).value == form.ROBUST
        self._holder = ctypes.c_uint64.from_address(base + form.HOLDER)
        self._since = ctypes.c_uint64.from_address(base + form.SINCE)
        self._poison = ctypes.c_uint64.from_address(base + form.POISON)
        self._poisoned_at = ctypes.c_uint64.from_address(base + form.POISONED_AT)
        self._turn = ctypes.c_uint32.from_address(base + form.TURN)
        self._draining = ctypes.c_uint32.from_address(base + form.DRAINING)
        self._entries = (ctypes.c_uint16 * form.SLOTS).from_address(base + form.TABLE)
        self._table = (ctypes.c_char * (2 * form.SLOTS)).from_address(base + form.TABLE)

    def holder(self) -> tuple[int, float] | None:
        """Who has exclusive access, and since when (seconds since the epoch); None if nobody."""
        since, pid = self._since.value, self._holder.value
        return (pid, since / 1e9) if pid else None

    def is_poisoned(self) -> bool:
        """Whether someone died at work, and nobody has healed the data since."""
        return self._poison.value != 0

    def poison(self) -> tuple[int, float] | None:
        """Who died at work and when that work began; None if the data are sound."""
        pid = self._poison.value
        return (pid, self._poisoned_at.value / 1e9) if pid else None

    def spoil(self) -> None:
        """With exclusive access, note that the data are not sound: whoever enters next puts them right, or is told."""
        self._poisoned_at.value = self._since.value
        self._poison.value = self._holder.value

    def heal(self) -> None:
        """Declare the data sound, with exclusive access."""
        self._poison.value = 0

    @property
    def noun(self) -> str:
        """What is guarded: "array", "tree", "Lock", ...; found out when it is asked for."""
        return kinds.noun(self._meta)

    @property
    def label(self) -> str:
        """What messages call what it guards."""
        return f"the {self.noun} {self.key.name!r}" if self.key.name is not None else f"this anonymous {self.noun}"
