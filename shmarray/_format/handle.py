"""The words of a handle: what stands in a pickle instead of an array.

Owns: the tuple that names a block and a view into it. A handle is small whatever it stands for.
Must not know: how a handle is claimed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shmarray._format.names import IN_FLIGHT, StoreKey, entry_of


class BlockKey(NamedTuple):
    """One block of one store; `name` is None for an anonymous one.

    `claim` is what the name of a link in flight ends with: something random, and where the handle lies if it is kept in a block.
    """

    uid: int
    store: int
    block: int
    name: str | None
    claim: str | None

    @property
    def store_key(self) -> StoreKey:
        """The store of the block."""
        return StoreKey(self.uid, self.store)

    @property
    def entry(self) -> str:
        """File name of the block without the prefix of its store."""
        return entry_of(self.block, self.name)

    @property
    def claim_entry(self) -> str | None:
        """File name of the link in flight without the prefix of its store."""
        return None if self.claim is None else f"{IN_FLIGHT}{self.block:016x}.{self.claim}"


class ViewSpec(NamedTuple):
    """A view into the data of a block: offset and strides in bytes; `dtype` is None when it is the block's own."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: Any
    writeable: bool
