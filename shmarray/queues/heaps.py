"""Records in the order of their values.

Owns: a binary heap of the places of records, as in `heapq`. All with the guard of the keeper held.
Must not know: who waits.

Records stand one behind the other in an arena, as in `shelves`; the heap grows towards them from the arena's end. A change is
worked out first, which runs the code of the values' classes and may raise; then written down as a note; then one store makes the note
valid; then it is carried out. Whoever finds a valid note after a death carries it out once more, which changes nothing twice.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from shmarray.errors import ArrayNotFoundError
from shmarray.queues import shelves
from shmarray.queues.shelves import HEAD, room

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmarray.keepers import Arena

_END, _COUNT, _NOTED, _NEW_COUNT, _NEW_END, _LEAVES = range(1, 7)
_GONE = 0xFFFF_FFFF
_KIND = struct.Struct("<I")
_KIND_AT = 4
_ENTRY = struct.Struct("<Q")
_CHANGE = struct.Struct("<QQ")
_NOTE_SIZE = 1024  # room for the 64 changes that a heap of 2**64 could need; records begin behind it


class _Note(NamedTuple):
    """What is to become of the heap: new entries, how many entries, where records end, and whose record leaves (0: none, else place)."""

    changes: list[tuple[int, int]]
    length: int
    end: int
    leaves: int


class _Lost:
    """Stands for a value that cannot be loaded any more: less than every other, so that it is taken next, once."""

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        """Be less."""
        return True

    def __gt__(self, other: object) -> bool:
        """Be less."""
        return False


class Heap(shelves.Shelf):
    """The least first. A value that cannot be loaded, for an array in it was deleted, stops no other: whoever takes it hears of it."""

    __slots__ = ()

    def records(self) -> Iterator[tuple[int, int]]:
        """See `Shelf`."""
        arena = self.arena()
        at = _NOTE_SIZE
        while arena is not None and at < arena.words[_END]:
            length, kind, number = HEAD.unpack_from(arena.memory, arena.HEAD + at)
            if kind != _GONE:
                yield at, number
            at += room(length)

    def mend(self) -> None:
        """Carry out what was noted, and count the records."""
        arena = self.arena()
        if arena is not None and arena.words[_NOTED]:
            self._carry_out(arena)
        super().mend()

    # -- entries of the heap -------------------------------------------------------------------------------------------

    def _place_of(self, arena: Arena, index: int) -> int:
        place: int = _ENTRY.unpack_from(arena.memory, arena.HEAD + arena.size - 8 * (index + 1))[0]
        return place

    def _value(self, arena: Arena, place: int) -> Any:
        _, kind, data = self._read(arena, place)
        try:
            return self._keeper.show(kind, data)
        except (ArrayNotFoundError, AttributeError, ImportError):
            return _Lost()

    def _rise(self, arena: Arena, place: int, value: Any) -> list[tuple[int, int]]:
        """Tell which entries change when a record comes in."""
        index = arena.words[_COUNT]
        changes = []
        while index:
            parent = (index - 1) // 2
            above = self._place_of(arena, parent)
            if not value < self._value(arena, above):
                break
            changes.append((index, above))
            index = parent
        return [*changes, (index, place)]

    def _sink(self, arena: Arena) -> list[tuple[int, int]]:
        """Tell which entries change when the first leaves: the last moves there, and down to its place."""
        count = arena.words[_COUNT] - 1
        last = self._place_of(arena, count)
        if not count:
            return []
        value, index, changes = self._value(arena, last), 0, []
        while (child := 2 * index + 1) < count:
            place = self._place_of(arena, child)
            least = self._value(arena, place)
            if child + 1 < count:
                other = self._place_of(arena, child + 1)
                rival = self._value(arena, other)
                if rival < least:
                    child, place, least = child + 1, other, rival
            if not least < value:
                break
            changes.append((index, place))
            index = child
        return [*changes, (index, last)]

    # -- changes -------------------------------------------------------------------------------------------------------

    def _do(self, arena: Arena, note: _Note) -> None:
        for index, change in enumerate(note.changes):
            _CHANGE.pack_into(arena.memory, arena.HEAD + _CHANGE.size * index, *change)
        words = arena.words
        words[_NEW_COUNT], words[_NEW_END], words[_LEAVES] = note.length, note.end, note.leaves
        words[_NOTED] = len(note.changes) + 1
        self._carry_out(arena)

    def _carry_out(self, arena: Arena) -> None:
        words = arena.words
        for index in range(words[_NOTED] - 1):
            at, place = _CHANGE.unpack_from(arena.memory, arena.HEAD + _CHANGE.size * index)
            _ENTRY.pack_into(arena.memory, arena.HEAD + arena.size - 8 * (at + 1), place)
        if words[_LEAVES]:
            _KIND.pack_into(arena.memory, arena.HEAD + words[_LEAVES] + _KIND_AT, _GONE)
        words[_COUNT], words[_END] = words[_NEW_COUNT], words[_NEW_END]
        words[_NOTED] = 0

    def add(self, kind: int, data: bytes | memoryview) -> None:
        """See `Shelf`. Raises what comparing raises."""
        arena = self.arena()
        need = room(len(data))
        if arena is None or arena.words[_END] + need + 8 * (arena.words[_COUNT] + 1) > arena.size:
            arena = self._move(arena, need + 8)
        place = arena.words[_END]
        changes = self._rise(arena, place, self._keeper.show(kind, bytes(data)))
        self._write(arena, place, kind, data)
        self._do(arena, _Note(changes, arena.words[_COUNT] + 1, place + need, 0))
        self._words[self._base + shelves.PUT] += 1

    def take(self) -> tuple[int, bytes]:
        """See `Shelf`. Raises what comparing raises."""
        arena = self.arena_in_use()
        place = self._place_of(arena, 0)
        changes = self._sink(arena)
        _, kind, data = self._read(arena, place)
        self._do(arena, _Note(changes, arena.words[_COUNT] - 1, arena.words[_END], place))
        self._words[self._base + shelves.TAKEN] += 1
        return kind, data

    def _move(self, arena: Arena | None, need: int) -> Arena:
        """Move what is there to an arena with room for `need` bytes more."""
        if arena is None:
            larger = self._keeper.make_arena(shelves.FIRST_SIZE, _NOTE_SIZE + need)
            larger.words[_END] = _NOTE_SIZE
        else:
            places = [self._place_of(arena, index) for index in range(arena.words[_COUNT])]
            used = sum(room(HEAD.unpack_from(arena.memory, arena.HEAD + at)[0]) + 8 for at in places)
            larger = self._keeper.make_arena(shelves.FIRST_SIZE, _NOTE_SIZE + used + need)
            position = _NOTE_SIZE
            for index, at in enumerate(places):
                _ENTRY.pack_into(larger.memory, larger.HEAD + larger.size - 8 * (index + 1), position)
                position = self._copy(larger, position, arena, at)
            larger.words[_END], larger.words[_COUNT] = position, len(places)
        self.move_in(larger)
        return larger
