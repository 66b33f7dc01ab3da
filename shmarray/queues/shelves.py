"""Records in an order: first in first out, last in first out.

Owns: how records lie in an arena, and which one store makes a record be there or not. All with the guard of the keeper held.
Must not know: what is in a record; who waits.

A record is a head (length, kind, number) and its bytes, at a multiple of 16. Three words of the keeper say: which arena, how many
records were put, how many taken. Two of the arena: where the first record begins and where the last one ends, counted on and on.
The single store that puts a record is that of the end; the single store that takes one is that of the beginning or the end. The two
counts follow, and are found again from the records when a process died in between.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from shmarray.keepers import signed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmarray.keepers import Arena, Keeper

ARENA, PUT, TAKEN = range(3)
"""Words of a shelf, from its first."""
WORDS = 3
FIRST_SIZE = 16 << 10
_BEGIN, _END = range(2)
_SKIP = 0xFFFF_FFFF
HEAD = struct.Struct("<IIQ")


def room(length: int) -> int:
    """How many bytes a record of that length takes."""
    return HEAD.size + (length + 15 & ~15)


class Shelf:
    """What all orders have in common."""

    __slots__ = ("_arena", "_base", "_keeper", "_words")

    def __init__(self, keeper: Keeper, base: int) -> None:
        """Use the words of `keeper` from `base` on."""
        self._keeper = keeper
        self._words = keeper._words
        self._base = base
        self._arena: Arena | None = None

    def __len__(self) -> int:
        """How many records there are; exact with the guard held."""
        count: int = self._words[self._base + PUT] - self._words[self._base + TAKEN]
        return max(0, count)

    @property
    def put_so_far(self) -> int:
        """How many records were ever put."""
        count: int = self._words[self._base + PUT]
        return count

    @property
    def arena_number(self) -> int:
        """Number of the arena, as a signed word; 0 before the first record."""
        number: int = self._words[self._base + ARENA]
        return number

    def arena(self) -> Arena | None:
        """The arena as it is now; None before the first record. Raises `ArrayNotFoundError`, `StoreClosedError`."""
        number = self._words[self._base + ARENA]
        if not number:
            return None
        if self._arena is None or signed(self._arena.number) != number:
            self._arena = self._keeper.find_arena(number)
        return self._arena

    def arena_in_use(self) -> Arena:
        """The arena, where there is a record. Raises as `arena` does, `IndexError` if there is none after all."""
        arena = self.arena()
        if arena is None:
            message = "there is no record"
            raise IndexError(message)
        return arena

    def move_in(self, arena: Arena) -> None:
        """Let that arena be the one, by one store. The one before is kept no more."""
        before = self._words[self._base + ARENA]
        self._words[self._base + ARENA] = signed(arena.number)
        self._arena = arena
        if before:
            self._keeper.drop_arena(before)

    def mend(self) -> None:
        """After a death: count the records anew."""
        arena = self.arena()
        count, number = 0, self.put_so_far
        for _, found in self.records() if arena is not None else ():
            count, number = count + 1, max(number, found + 1)
        self._words[self._base + PUT] = number
        self._words[self._base + TAKEN] = number - count

    def records(self) -> Iterator[tuple[int, int]]:
        """Go through the records that are there: where each begins in the arena's room, and its number."""
        raise NotImplementedError

    def add(self, kind: int, data: bytes | memoryview) -> None:
        """Put a record. Raises `StoreFullError`; nothing has changed then."""
        raise NotImplementedError

    def take(self) -> tuple[int, bytes]:
        """Take a record; there is one."""
        raise NotImplementedError

    def _write(self, arena: Arena, at: int, kind: int, data: bytes | memoryview) -> None:
        start = arena.HEAD + at
        HEAD.pack_into(arena.memory, start, len(data), kind, self._words[self._base + PUT])
        start += HEAD.size
        arena.memory[start : start + len(data)] = data

    def _read(self, arena: Arena, at: int) -> tuple[int, int, bytes]:
        """Length, kind and bytes of a record."""
        start = arena.HEAD + at
        length, kind, _ = HEAD.unpack_from(arena.memory, start)
        start += HEAD.size
        return length, kind, bytes(arena.memory[start : start + length])

    def _copy(self, target: Arena, at: int, source: Arena, where: int) -> int:
        """Copy a record as it is; returns where it ends."""
        length = HEAD.unpack_from(source.memory, source.HEAD + where)[0]
        size = room(length)
        target.memory[target.HEAD + at : target.HEAD + at + size] = source.memory[
            source.HEAD + where : source.HEAD + where + size
        ]
        return at + size


class Ring(Shelf):
    """First in, first out: a ring of records; where one does not fit before the end of the room, the rest is skipped."""

    __slots__ = ()

    def records(self) -> Iterator[tuple[int, int]]:
        """See `Shelf`."""
        arena = self.arena()
        if arena is None:
            return
        position, end = arena.words[_BEGIN], arena.words[_END]
        while position < end:
            at = position % arena.size
            length, _, number = HEAD.unpack_from(arena.memory, arena.HEAD + at)
            if length == _SKIP:
                position += arena.size - at
            else:
                yield at, number
                position += room(length)

    def add(self, kind: int, data: bytes | memoryview) -> None:
        """See `Shelf`."""
        arena = self.arena()
        need = room(len(data))
        if arena is None or (position := self._place(arena, need)) is None:
            arena = self._grow(arena, need)
            position = arena.words[_END]
        self._write(arena, position % arena.size, kind, data)
        arena.words[_END] = position + need
        self._words[self._base + PUT] += 1

    def used(self) -> int:
        """How many bytes the records take."""
        arena = self.arena()
        return 0 if arena is None else arena.words[_END] - arena.words[_BEGIN]

    def _place(self, arena: Arena, need: int) -> int | None:
        """Where a record of `need` bytes may begin; None if there is no room."""
        begin, end = arena.words[_BEGIN], arena.words[_END]
        at = end % arena.size
        left = arena.size - at
        if need > left:
            if end + left + need - begin > arena.size:
                return None
            HEAD.pack_into(arena.memory, arena.HEAD + at, _SKIP, 0, 0)
            end += left
        position: int = end
        return position if position + need - begin <= arena.size else None

    def _grow(self, arena: Arena | None, need: int) -> Arena:
        """Move to an arena in which there is room for `need` bytes more; back to a small one when nothing is kept."""
        used = 0 if arena is None or not len(self) else arena.words[_END] - arena.words[_BEGIN]
        larger = self._keeper.make_arena(FIRST_SIZE, used + need)
        position = 0
        if arena is not None and used:
            for at, _ in self.records():
                position = self._copy(larger, position, arena, at)
        larger.words[_END] = position
        self.move_in(larger)
        return larger

    def take(self) -> tuple[int, bytes]:
        """See `Shelf`."""
        arena = self.arena_in_use()
        position = arena.words[_BEGIN]
        at = position % arena.size
        if HEAD.unpack_from(arena.memory, arena.HEAD + at)[0] == _SKIP:
            position += arena.size - at
            at = 0
        length, kind, data = self._read(arena, at)
        arena.words[_BEGIN] = position + room(length)
        self._words[self._base + TAKEN] += 1
        return kind, data


class Stack(Shelf):
    """Last in, first out: records one above the other, each followed by its length."""

    __slots__ = ()
    _FOOT = 16

    def records(self) -> Iterator[tuple[int, int]]:
        """See `Shelf`."""
        arena = self.arena()
        at = 0
        while arena is not None and at < arena.words[_END]:
            length, _, number = HEAD.unpack_from(arena.memory, arena.HEAD + at)
            yield at, number
            at += room(length) + self._FOOT

    def add(self, kind: int, data: bytes | memoryview) -> None:
        """See `Shelf`."""
        arena = self.arena()
        need = room(len(data)) + self._FOOT
        if arena is None or arena.words[_END] + need > arena.size:
            arena = self._grow(arena, need)
        at = arena.words[_END]
        self._write(arena, at, kind, data)
        HEAD.pack_into(arena.memory, arena.HEAD + at + need - self._FOOT, len(data), 0, 0)
        arena.words[_END] = at + need
        self._words[self._base + PUT] += 1

    def _grow(self, arena: Arena | None, need: int) -> Arena:
        used = 0 if arena is None else arena.words[_END]
        larger = self._keeper.make_arena(FIRST_SIZE, used + need)
        if arena is not None:
            larger.memory[larger.HEAD : larger.HEAD + used] = arena.memory[arena.HEAD : arena.HEAD + used]
        larger.words[_END] = used
        self.move_in(larger)
        return larger

    def take(self) -> tuple[int, bytes]:
        """See `Shelf`."""
        arena = self.arena_in_use()
        end = arena.words[_END]
        length = HEAD.unpack_from(arena.memory, arena.HEAD + end - self._FOOT)[0]
        at = end - self._FOOT - room(length)
        _, kind, data = self._read(arena, at)
        arena.words[_END] = at
        self._words[self._base + TAKEN] += 1
        return kind, data
