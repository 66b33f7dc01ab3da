"""Processes that hand small arrays to each other as fast as they can; importable, so that every start method finds them.

Owns: what a maker and a reader do. Whoever sees one byte that is not the array's, or gets none where there must be one, says so and ends.
Must not know: who is killed, and when.
"""

from __future__ import annotations

import os
import pickle
import random
from typing import TYPE_CHECKING, Any

import shmarray as sa
from tests.smalls.things import is_whole, pattern

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    Sent = list[tuple[int, bytes]]

MOST_HELD = 30


def words_of(serial: int) -> int:
    """Tell how long the array of that number is: three sizes of cells."""
    return (64, 500, 512, 900)[serial % 4]


class Keeper:
    """What a process has, each with its number, and how often it has looked at any."""

    def __init__(self, seed: int, tally: Any) -> None:
        """Have nothing."""
        self.dice = random.Random(seed)  # noqa: S311  the same each time
        self.held: list[tuple[int, Any]] = []
        self.tally = tally

    def look(self, serial: int, array: Any) -> None:
        """See that an array is what its number says."""
        if len(array) != words_of(serial) or not is_whole(array, serial):
            raise AssertionError(f"array {serial} is not what it was: {array.tolist()[:4]}")
        self.tally[0] += 1

    def take(self, sent: Sent) -> Sent:
        """Load what comes, look at it, and drop it, keep it or send it on; gives what is sent on."""
        on = []
        for serial, handle in sent:
            array = pickle.loads(handle)
            self.look(serial, array)
            roll = self.dice.random()
            if roll < 0.3:
                on.append((serial, pickle.dumps(array)))
            elif roll < 0.6:
                self.held.append((serial, array))
            del array
        return on

    def go_on(self) -> None:
        """Look at what is held, and drop some of it."""
        for number, array in self.held:
            self.look(number, array)
        while self.held and (len(self.held) > MOST_HELD or self.dice.random() < 0.7):
            # In place of the one that goes comes the last: no array stays in a variable.
            index = self.dice.randrange(len(self.held))
            self.held[index] = self.held[-1]
            self.held.pop()

    def fork(self) -> int:
        """Fork a child that looks at all that is held, and at what it makes of it; gives its pid."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            for serial, array in self.held:
                self.look(serial, array)
                sent = pickle.dumps(array)
                self.look(serial, pickle.loads(sent))
            status = 0
        finally:
            os._exit(status)


def make(store: sa.Store, serial: int) -> Any:
    """Make the array of that number."""
    return store.put(pattern(serial, words_of(serial)))


def play(store: sa.Store, calls: Connection, tally: Any, seed: int) -> None:
    """Be told handles and numbers: load these, make those, answer with handles; until None comes."""
    keeper = Keeper(seed, tally)
    children: list[int] = []
    while (message := calls.recv()) is not None:
        sent, numbers = message
        try:
            on = keeper.take(sent)
            for serial in numbers:
                array = make(store, serial)
                keeper.look(serial, array)
                on.append((serial, pickle.dumps(array)))
                if keeper.dice.random() < 0.2:
                    keeper.held.append((serial, array))
                del array
            for _ in range(4):  # and some that nobody else sees
                keeper.look(0, make(store, 0))
            keeper.go_on()
            if keeper.dice.random() < 0.02:
                children.append(keeper.fork())
            if len(children) > 2 and os.waitpid(children.pop(0), 0)[1]:
                message = "a forked child saw something else"
                raise AssertionError(message)
        except (AssertionError, sa.ShmArrayError, TimeoutError) as error:
            calls.send(f"{type(error).__name__}: {error}")
            return
        calls.send(on)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    calls.send([])
