"""The words of one slab, as this process maps it.

Owns: what is known of a mapped slab, and reading and writing what stands in it; whether the process that made it is there.
Must not know: how a slab comes to be mapped, and when that ends (`slabmaps`), what its cells are used for (`cells`, `stocks`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmarray._format import slab as form
from shmarray._os import flocks, processes, segments

if TYPE_CHECKING:
    from shmarray import memories

MAKER_MARK = 0
"""Which byte of the file its maker has locked, as long as it maps it."""


class Slab:
    """One mapped slab. `words` and `bytes` are its data; `views` has, by cell, what this process looks at."""

    __slots__ = (
        *("_records", "bytes", "layout", "maker", "memory", "number", "numbers", "path", "segment", "uid", "views"),
        *("forms", "free", "is_ready", "pending", "stock", "words", "worn"),
    )

    def __init__(
        self,
        number: int,
        path: str,
        uid: int,
        places: form.Layout,
        segment: segments.Segment,
        maker: processes.Identity,
    ) -> None:
        """Stand for a mapping."""
        self.maker = maker
        self.memory: memories.Memory | None = None  # by what its lease is let go of, and taken again, around an absence
        self.number = number
        self.path = path
        self.uid = uid
        self.layout = places
        self._records = places.records
        # By cell: which of the slab's words is the first of its record, its number.
        self.numbers = range(places.records >> 3, places.seats >> 3, form.RECORD >> 3)
        self.segment = segment
        self.bytes = memoryview(segment)
        self.words = self.bytes.cast("Q")
        self.views: dict[int, Any] = {}
        self.stock: Any = None
        # The maker's: cells that are free; by cell, what its record says behind number and state, where that is known; how many are free no
        # more, for their numbers would recur; those it has dropped and others may see; whether it is on the stock's list.
        self.free: list[int] = []
        self.forms: list[Any] = []
        self.worn = 0
        self.pending: set[int] = set()
        self.is_ready = False

    @property
    def is_mine(self) -> bool:
        """Whether this process has made it: a child that was forked in the midst of a call goes on with its parent's."""
        return bool(self.forms) and self.maker == processes.me()

    @property
    def is_empty(self) -> bool:
        """To its maker: whether no array is in it."""
        return len(self.free) + self.worn == self.layout.count

    def word(self, cell: int, offset: int) -> int:
        """Read a word of a cell's record."""
        return self.words[(self._records + form.RECORD * cell + offset) >> 3]  # `index`, without the call

    def set_word(self, cell: int, offset: int, value: int) -> None:
        """Write a word of a cell's record."""
        self.words[(self._records + form.RECORD * cell + offset) >> 3] = value

    def index(self, cell: int, offset: int) -> int:
        """Tell which of the slab's words that is."""
        return (self._records + form.RECORD * cell + offset) >> 3

    def describe(self, cell: int, words: bytes) -> None:
        """Write what a cell's record says behind number and state, while no array is there."""
        at = self._records + form.RECORD * cell + form.DESCRIBED
        self.bytes[at : at + len(words)] = words

    def has_maker(self) -> bool:
        """Whether the process that made it is there, as far as can be known. Raises `OSError`."""
        if processes.is_provably_gone(self.maker):
            return False  # a child that it had forked has the mark still
        try:
            fd = segments.open_existing(self.path, write=False)
        except FileNotFoundError:
            return False
        try:
            return flocks.is_marked(fd, MAKER_MARK)
        finally:
            fd.close()

    def links(self) -> int:
        """How many names the file has: one, and one for each handle in flight. Raises `FileNotFoundError`."""
        return segments.status_of(self.path).st_nlink
