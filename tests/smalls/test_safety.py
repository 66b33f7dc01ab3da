"""Makers give cells out again as fast as they can while others look: nobody sees another array's byte, no array is lost."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
from collections import deque
from multiprocessing import get_context
from typing import Any

import pytest

import shmarray as sa
from tests.helpers.leaks import SHM
from tests.helpers.processes import wait_until
from tests.smalls.players import Keeper, make, play
from tests.smalls.things import files

PLAYERS, MAKERS = 5, 2
MOST_IN_FLIGHT = 60
LARGEST = 8 << 20


class Troupe:
    """Players that are killed and come anew; the first few make arrays, all look at them."""

    def __init__(self, method: str, store: sa.Store) -> None:
        """Start them."""
        self.context: Any = get_context(method)
        self.store = store
        self.tally = store.zeros(100_000, "i8")
        self.started = 0
        self.busy: set[int] = set()
        self.players = [self._start() for _ in range(PLAYERS)]

    def _start(self) -> tuple[Any, Any]:
        mine, theirs = self.context.Pipe()
        self.started += 1
        args = (self.store, theirs, self.tally[self.started : self.started + 1], self.started)
        process = self.context.Process(target=play, args=args)
        process.start()
        theirs.close()
        return process, mine

    def tell(self, index: int, sent: list[tuple[int, bytes]], numbers: list[int]) -> None:
        """Give a player something to do."""
        self.players[index][1].send((sent, numbers))
        self.busy.add(index)

    def answer(self, index: int) -> list[tuple[int, bytes]]:
        """Wait until it is done, and give what it sends; fails if it says that anything was wrong."""
        calls = self.players[index][1]
        assert calls.poll(60), "a player does not answer"
        self.busy.discard(index)
        found = calls.recv()
        assert isinstance(found, list), found
        return found

    def kill(self, index: int) -> None:
        """Kill a player, whatever it is about, and start another in its place."""
        process, calls = self.players[index]
        process.kill()
        process.join()
        calls.close()
        self.busy.discard(index)
        self.players[index] = self._start()

    def forget_what_was_on_its_way_to_the_dead(self, flying: deque[tuple[int, bytes]]) -> None:
        """Such handles keep their arrays, and a dead maker's slab, until they are given up."""
        for index in sorted(self.busy):
            flying.extend(self.answer(index))
        arrays = [(serial, pickle.loads(handle)) for serial, handle in flying]
        self.store.release_unclaimed()
        flying.clear()
        flying.extend((serial, pickle.dumps(array)) for serial, array in arrays)

    def end(self) -> None:
        """End them all."""
        for index in sorted(self.busy):
            self.answer(index)
        for index, (process, calls) in enumerate(self.players):
            calls.send(None)
            assert self.answer(index) == []
            process.join(60)
            assert process.exitcode == 0
            calls.close()


@pytest.mark.core
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_nobody_ever_sees_a_byte_of_another_array_and_none_is_lost(method: str, request: pytest.FixtureRequest) -> None:
    """Readers and makers in other processes, which fork and are killed, and this one, which makes and looks as well.

    Each byte tells its array. What one has sent, the other gets, whoever has died meanwhile. With `--deep` a million looks.
    """
    deep = request.config.getoption("--deep")
    dice = random.Random(5)  # noqa: S311  the same each time
    with sa.Store() as store:
        troupe = Troupe(method, store)
        mine = Keeper(0, troupe.tally[:1])
        flying: deque[tuple[int, bytes]] = deque()
        serial, turn = 0, 0
        while int(troupe.tally.sum()) < (1_000_000 if deep else 12_000) or turn < 300:
            turn += 1
            index = dice.randrange(PLAYERS)
            if index in troupe.busy:
                flying.extend(troupe.answer(index))
            numbers = [] if index >= MAKERS or len(flying) > MOST_IN_FLIGHT else list(range(serial, serial + 6))
            serial += len(numbers)
            troupe.tell(index, [flying.popleft() for _ in range(min(len(flying), 6))], numbers)
            if len(flying) < MOST_IN_FLIGHT:
                for _ in range(3):
                    array = make(store, serial)
                    flying.append((serial, pickle.dumps(array)))
                    serial += 1
                    del array
            flying.extend(mine.take([flying.popleft() for _ in range(min(len(flying), 3))]))
            mine.go_on()
            if turn % 75 == 0:
                troupe.kill(dice.randrange(PLAYERS))
            if turn % 300 == 0:
                troupe.forget_what_was_on_its_way_to_the_dead(flying)
                assert slab_bytes(store) < LARGEST
        for number, handle in flying:
            mine.look(number, pickle.loads(handle))
        flying.clear()
        troupe.end()
        mine.held.clear()
        del mine.tally, troupe.tally
        store.release_unclaimed()  # what was on its way to those who were killed
        wait_until(lambda: store.check(fix=True) == [], message="something is wrong with the store")
        assert store.stats().anonymous == 0
        store.trim()
        wait_until(lambda: store.check(fix=True) == [] and not files(store), message="something stays")


def slab_bytes(store: sa.Store) -> int:
    """Size of all slabs that are there now."""
    found = 0
    for entry in files(store, "s."):
        with contextlib.suppress(FileNotFoundError):
            found += os.stat(os.path.join(SHM, entry)).st_size
    return found
