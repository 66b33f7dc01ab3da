"""Barriers, as in `multiprocessing`, that break when a process that takes part is killed.

Owns: `Barrier`.
Must not know: how a guard survives a death.
"""

from __future__ import annotations

import functools
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Any, Self

from shmarray import guards, objects
from shmarray._format import control
from shmarray._os import late
from shmarray.sync import rolls

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing import util

    import numpy as np

    from shmarray.membership import Membership


class Barrier(rolls.Roll):
    """A `multiprocessing.Barrier` that travels through any queue, and breaks when a process that takes part is killed.

    A process takes part from its first `wait` until it ends; one that ends normally just leaves. `action` runs in one of the
    processes when all have come, and must be picklable. Raises `threading.BrokenBarrierError`.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     barrier = store.Barrier(1)
    ...     print(barrier.wait(), barrier.broken)
    0 False
    """

    __slots__ = ("_action", "_leaving", "_timeout")
    _kind = "Barrier"
    _parties, _count, _generation, _broken, _spoilt, _turn = range(6)
    _first = 6

    @classmethod
    def make(
        cls,
        member: Membership,
        parties: int,
        action: Any = None,
        timeout: float | None = None,
        name: str | None = None,
    ) -> Self:
        """Make a barrier for `parties` threads or processes; `ValueError` if that is less than one, `TypeError` for a wrong action."""
        objects.deadline_of(timeout)  # raises now and not in the first wait
        if action is not None and not callable(action):
            message = f"action must be callable, not {action!r}"
            raise TypeError(message)
        if parties < 1:
            message = f"a barrier needs at least one party, not {parties}"
            raise ValueError(message)

        def fill(memory: np.ndarray[Any, Any]) -> None:
            memory[cls._parties] = parties
            memory[cls._spoilt] = -1

        barrier = cls._create(member, cls._first + control.SLOTS, name, fill)
        barrier._action, barrier._timeout = action, timeout
        return barrier

    def _attached(self) -> None:
        super()._attached()
        self._action: Callable[[], Any] | None = None
        self._timeout: float | None = None
        self._leaving: tuple[int, util.Finalize[None]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a handle, with action and default timeout."""
        attach, arguments = super().__reduce__()
        return _attach_barrier, (attach, arguments, self._action, self._timeout)

    @property
    def parties(self) -> int:
        """How many have to come."""
        count: int = self._words[self._parties]
        return count

    @property
    def n_waiting(self) -> int:
        """How many wait now; none at a broken barrier."""
        count: int = 0 if self.broken else self._words[self._count]
        return count

    @property
    def broken(self) -> bool:
        """Whether the barrier is broken."""
        return bool(self._words[self._broken])

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all have come; returns this one's number, from 0 to parties - 1.

        After `timeout` seconds, or if a process that takes part is killed, the barrier breaks for all. Who is interrupted has not come.
        """
        deadline = objects.deadline_of(self._timeout if timeout is None else timeout)
        came: list[int] = []
        try:
            index = self._come(came, deadline)
            if came:
                self._wait_for_others(came[0], deadline)
        except BaseException:
            if came:
                self._go(came[0])
            raise
        return index

    def _come(self, came: list[int], deadline: float | None) -> int:
        try:
            return self._within(functools.partial(self._arrive, came), deadline, BrokenBarrierError)
        except BrokenBarrierError:
            self._break()
            raise

    def _go(self, generation: int) -> None:
        """After an exception: be counted no more, if that barrier has neither opened nor broken."""

        def uncount() -> None:
            if self._words[self._generation] == generation and not self._words[self._broken]:
                self._words[self._count] -= 1

        try:
            self._within(uncount, objects.deadline_of(0), BrokenBarrierError)
        except BrokenBarrierError:
            self._break()  # as `abort`

    def _arrive(self, came: list[int]) -> int:
        """With the guard held: be counted; the last one runs the action and opens. Who has to wait finds in `came` for which opening."""
        words = self._words
        if words[self._broken]:
            raise BrokenBarrierError
        if (words[self._count] == 0 and self.dead()) or self._follows_a_dead_one():
            # Who was killed while nobody waited is missed by those who wait from now on.
            self._break()
            raise BrokenBarrierError
        self._take_part()
        index: int = words[self._count]
        generation = words[self._generation]
        is_last = index + 1 >= words[self._parties]
        try:
            words[self._count] = index + 1
            if not is_last:
                came.append(generation)
                return index
            if self._action is not None:
                self._action()
            self._open()
        except BaseException:
            came.clear()
            if words[self._generation] == generation:
                words[self._count] = index
                if is_last:
                    self._break()
            raise
        return index

    def _follows_a_dead_one(self) -> bool:
        """Whether this process's entry still is that of a process that was killed, and had the slot before."""
        me = self.me()
        return me is not None and bool(self._words[me[0]] & rolls.COUNT) and not self.entry_of(*me)

    def _take_part(self) -> None:
        me = self.me()
        if me is None:
            return
        self._words[me[0]] = me[1] | 1
        if self._leaving is None or self._leaving[0] != guards.generation():
            leaving = late.load("multiprocessing.util").Finalize(
                self, _clear, args=(self._words, me[0], self._array), exitpriority=0
            )
            self._leaving = (guards.generation(), leaving)

    def _wait_for_others(self, generation: int, deadline: float | None) -> None:
        words = self._words
        while words[self._generation] == generation and not words[self._broken]:
            turn = words[self._turn]
            if words[self._generation] != generation:
                break
            in_time = self._wait_change(self._turn, turn, deadline)
            if words[self._generation] == generation and (not in_time or self.dead()):
                self.abort()
        if words[self._spoilt] == generation or (words[self._broken] and words[self._generation] == generation):
            raise BrokenBarrierError

    def _open(self) -> None:
        self._words[self._count] = 0
        self._words[self._generation] += 1
        self._words[self._turn] += 1
        self._wake(self._turn)

    def _break(self) -> None:
        self._words[self._broken] = 1
        self._words[self._turn] += 1
        self._wake(self._turn)

    def __repr__(self) -> str:
        """Show how many have come, of how many."""
        return f"<Barrier {'broken' if self.broken else f'{self.n_waiting} of {self.parties}'}>"

    def abort(self) -> None:
        """Break the barrier: all who wait, and all who come, get `BrokenBarrierError` until `reset`."""
        try:
            self._within(self._break, objects.deadline_of(0), BrokenBarrierError)
        except BrokenBarrierError:
            self._break()  # without the guard, which one has who was stopped: it is one store

    def reset(self) -> None:
        """Make the barrier whole and empty; those who wait get `BrokenBarrierError`."""
        self._within(self._renew)

    def _renew(self) -> None:
        if self._words[self._count]:
            self._words[self._spoilt] = self._words[self._generation]
        for index, _ in self.dead():
            self._words[index] = 0
        self._words[self._broken] = 0
        self._open()


def _clear(words: Any, index: int, keep: object) -> None:
    """At the normal end of a process, or of its last barrier object: take part no more. `keep` keeps the memory mapped."""
    del keep
    words[index] = 0


def _attach_barrier(
    attach: Callable[..., Barrier], arguments: tuple[Any, ...], action: Callable[[], Any] | None, timeout: float | None
) -> Barrier:
    barrier = attach(*arguments)
    barrier._action, barrier._timeout = action, timeout
    return barrier
