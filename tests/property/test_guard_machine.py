"""Random programs of entering, leaving and being killed, over several processes, against a model of the guard."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import shmarray as sa
from tests.property.actor import act

ACTORS = 4
SOON = 10.0
LEFT_FREE = 0.2  # seconds to try for, where the guard is free but for the dead, who have to be noticed
ways = st.sampled_from(("write", "read", "lock"))
actors = st.integers(0, ACTORS - 1)


class GuardMachine(RuleBasedStateMachine):
    """The model: who is inside and how, and who died at work."""

    method = "fork"

    @initialize()
    def begin(self) -> None:
        """Open a store, start the actors."""
        self.store = sa.Store()
        self.array = self.store.zeros(4)
        self.context: Any = get_context(self.method)
        self.processes: list[Any] = [None] * ACTORS
        self.lines: list[Any] = [None] * ACTORS
        self.inside: dict[int, str] = {}
        self.poisoned_by: int | None = None
        for number in range(ACTORS):
            self._start(number)

    def _start(self, number: int) -> None:
        mine, its = self.context.Pipe()
        process = self.context.Process(target=act, args=(self.array, its), daemon=True)
        process.start()
        its.close()
        self.processes[number], self.lines[number] = process, mine

    def _ask(self, number: int, verb: str, argument: float | None = None) -> Any:
        self.lines[number].send((verb, argument))
        assert self.lines[number].poll(SOON), f"actor {number} hangs in {verb}"
        return self.lines[number].recv()

    def _is_free_for(self, how: str) -> bool:
        exclusive = any(way != "read" for way in self.inside.values())
        return not exclusive if how == "read" else not self.inside

    @rule(number=actors, how=st.sampled_from(("write", "read", "lock", "heal")))
    def enter(self, number: int, how: str) -> None:
        """Enter if the model says that one can; be refused, told of the poison, or time out else."""
        free = self._is_free_for(how)
        answer = self._ask(number, how, LEFT_FREE if free else 0.01)
        if number in self.inside:
            assert answer == "refused"
        elif not free:
            assert answer is False
        elif self.poisoned_by is not None and how in ("write", "read"):
            assert answer == ("poisoned", self.poisoned_by)
        else:
            assert answer is True
            self.inside[number] = how

    @rule(number=actors)
    def leave(self, number: int) -> None:
        """Leave, whoever is inside; a clean exit of `heal` takes the poison away."""
        if number in self.inside:
            assert self._ask(number, "leave") is True
            if self.inside.pop(number) == "heal":
                self.poisoned_by = None

    @rule(number=actors)
    def kill(self, number: int) -> None:
        """Kill one with SIGKILL, wherever it is, and start another in its place."""
        pid = self.processes[number].pid
        os.kill(pid, signal.SIGKILL)
        self.processes[number].join(SOON)
        self.lines[number].close()
        if self.inside.pop(number, "read") != "read":
            self.poisoned_by = pid
            # It is found by the next who enters; let that be now, so that a later death is not taken for this one.
            lock = self.array.lock
            assert lock.acquire(timeout=SOON)
            lock.release()
        self._start(number)

    @precondition(lambda self: hasattr(self, "array"))
    @invariant()
    def the_holder_is_who_the_model_says(self) -> None:
        """`holder()` names the pid that is inside exclusively, and nobody else."""
        expected = [self.processes[number].pid for number, how in self.inside.items() if how != "read"]
        holder = self.array.lock.holder()
        assert ([holder[0]] if holder else []) == expected

    def teardown(self) -> None:
        """End everything."""
        if not hasattr(self, "store"):
            return
        for process, line in zip(self.processes, self.lines, strict=True):
            process.kill()
            process.join(SOON)
            line.close()
        self.store.close()
        del self.array


@pytest.mark.parametrize(("method", "share"), [("fork", 2), ("spawn", 8)])  # a spawned process is slow to start
def test_a_guard_does_what_its_model_does(method: str, share: int) -> None:
    """Readers together, a writer alone, the dead forgotten, poison told to all until it is healed."""
    machine = type("Machine", (GuardMachine,), {"method": method})
    run_state_machine_as_test(machine, settings=settings(max_examples=max(1, settings().max_examples // share)))
