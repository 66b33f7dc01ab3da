"""What a channel should do: plain Python, one thread, a `deque`.

Owns: the model. An answer is what `hands.Hand.do` gives for the same deed.
Must not know: shmarray.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

Item = tuple[int, int]
"""Number and length of an item, as it was made."""


@dataclass(eq=False)
class Reader:
    """A subscription: the next item it comes to, that which it holds; `told` is the item up to which misses were told of."""

    cursor: int
    held: int | None = None
    missed: int = 0
    seen: int = 0
    told: int = 0


@dataclass(eq=False)
class User:
    """An object of the channel."""

    process: int
    closed: bool = False
    dropped: bool = False
    reader: Reader | None = None


@dataclass(eq=False)
class Model:
    """A channel."""

    mode: str
    full: str
    slots: int
    stay: bool
    items: deque[tuple[int, Item]] = field(default_factory=deque)
    """Published and still in a slot, that nobody has in hand; of a broadcast, all that are in a slot."""
    tail: int = 0
    loans: int = 0
    taken: int = 0
    received: int = 0
    dropped: int = 0
    undone: int = 0
    ended: bool = False
    produced: bool = False
    consumed: bool = False
    producers: list[User] = field(default_factory=list)
    consumers: list[User] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    gone: list[Reader] = field(default_factory=list)
    """Subscriptions that were dropped unclosed: what they would have had may be in a slot until that is needed."""

    @property
    def broadcasts(self) -> bool:
        """Whether each reader gets every item."""
        return self.mode == "broadcast"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be put."""
        return self.ended or (self.produced and not self.stay and not self.producers)

    def in_use(self) -> int:
        """How many slots are not free, but for what only readers have that are gone."""
        self._prune()
        return len(self.items) + self.loans + self.taken

    def _prune(self) -> None:
        if self.broadcasts:
            self.items = deque(
                (number, item)
                for number, item in self.items
                if any(reader.cursor <= number or reader.held == number for reader in self.readers)
            )

    # -- putting

    def claim(self, user: User) -> Any:
        """Ask for a slot; the answer if there is none, else None."""
        if user.closed:
            return "closed"
        if user not in self.producers:
            self.producers.append(user)
            self.produced = True
        if self.ended:
            return "closed"
        if self.in_use() < self.slots or (self.full == "drop-oldest" and self._evict()):
            return None
        if self.full == "drop-new":
            self.dropped += 1
            return False
        if not self.broadcasts and self.consumed and not self.stay and not self.consumers:
            return "closed"
        return "full"

    def _evict(self) -> bool:
        held = {reader.held for reader in self.readers}
        number = next((number for number, _ in self.items if number not in held), None)
        if number is None:
            return False
        for reader in self.readers:
            reader.missed += max(0, number + 1 - reader.cursor)
            reader.cursor = max(reader.cursor, number + 1)
        self.items = deque(pair for pair in self.items if pair[0] != number)
        self._prune()
        self.dropped += 1
        return True

    def publish(self, item: Item) -> None:
        """Put into a slot that was claimed."""
        self.items.append((self.tail, item))
        self.tail += 1

    # -- taking

    def reader(self, user: User) -> Reader | str:
        """Subscribe an object of a broadcast if it has not yet been."""
        if user.closed:
            return "closed"
        if user.reader is None:
            user.reader = self.subscribe()
        return user.reader

    def subscribe(self) -> Reader:
        """Subscribe."""
        reader = Reader(self.tail, told=self.tail)
        self.readers.append(reader)
        return reader

    def consume(self, user: User) -> str | None:
        """Be a consumer of a queue; the answer if that cannot be."""
        if user.closed:
            return "closed"
        if user not in self.consumers:
            self.consumers.append(user)
            self.consumed = True
        return None

    def take(self) -> Any:
        """Take the next item of a queue: its number in the channel and itself, or the answer."""
        if self.items:
            self.received += 1
            return self.items.popleft()
        return "closed" if self.is_over else "empty"

    def take_by(self, reader: Reader) -> Any:
        """Take the next item of a broadcast, to be held: its number, itself, how many were missed before it; or the answer."""
        if reader not in self.readers:
            return "closed"
        if reader.held is not None:
            return "in hand"
        self._prune()
        found = next((pair for pair in self.items if pair[0] >= reader.cursor), None)
        if found is None:
            return "closed" if self.is_over else "empty"
        number, item = found
        assert number == reader.cursor, "the model lost an item"
        missed = number - reader.told
        reader.held, reader.cursor, reader.told = number, number + 1, number + 1
        return number, item, missed

    def give_back(self, reader: Reader | None, number: int) -> None:
        """Be done with an item."""
        if reader is None:
            self.taken -= 1
        elif reader in self.readers and reader.held == number:
            reader.held = None
            reader.seen += 1
            self.received += 1

    def leave(self, reader: Reader) -> None:
        """End a subscription."""
        if reader in self.readers:
            self.readers.remove(reader)

    def close(self, user: User) -> None:
        """Close an object."""
        user.closed = True
        self.drop(user)
        if user.reader is not None:
            self.leave(user.reader)

    def drop(self, user: User) -> None:
        """Take the roles from an object that is closed; with it go those of objects of its process that were dropped unclosed."""
        for roles in (self.producers, self.consumers):
            if user in roles:
                roles[:] = [
                    each for each in roles if each is not user and not (each.dropped and each.process == user.process)
                ]

    # -- looks

    def is_drained(self) -> bool:
        """Whether all was taken and dealt with."""
        if self.undone or self.taken:
            return False
        if self.broadcasts:
            return all(reader.cursor == self.tail and reader.held is None for reader in self.readers)
        return not self.items

    def behind(self, reader: Reader) -> int:
        """How many items a reader has before it."""
        return self.tail - reader.cursor
