"""Who dies, who looks on, and what must hold after each death.

Owns: the plays in which a worker, an owner or a guardian is killed again and again, one line later each time.
Must not know: pytest.
"""

from __future__ import annotations

import os
import pickle
import signal
from typing import TYPE_CHECKING, Any

from tests.faults import deaths, operations, witnesses
from tests.faults.operations import NUMBERS, OPERATIONS
from tests.faults.stage import Actor, Stage, World, files_of, guardians_of, stores_opened_by
from tests.helpers import leaks
from tests.helpers.processes import is_running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

BY_NAME = {"publish": "x", "unlink a named array": "made", "delete by name": "made"}
_SOON = 10.0


def points(total: int, most: int, *, deep: bool) -> range:
    """All of 1..total if they are few or `deep` is asked for, else about `most` of them, evenly spread, the same each time."""
    return range(1, total + 1, 1 if deep else max(1, round(total / most)))


class WorkerPlay:
    """An owner, a survivor, and one victim after the other, in a store without a guardian: nobody but they can repair."""

    def __init__(self, stage: Stage, operation: str, *, deep: bool, **options: Any) -> None:
        """Open the store and let the survivor join it."""
        self.stage = stage
        self.number = NUMBERS[operation]
        self.operation = OPERATIONS[self.number]
        self.deep = deep
        self.directory = options.get("directory", leaks.SHM)
        self.owner = stage.fork()
        self.blob, self.store, guardian = self.owner.do(witnesses.open_store, options)
        os.kill(guardian, signal.SIGKILL)
        stage.status(guardian)
        self.survivor = stage.fork()
        self.survivor.do(witnesses.join, self.blob)

    def run(self, most: int, *, related: bool = False) -> None:
        """Kill victims at about that many points; `related` ones are forked from the owner and inherit its mappings."""
        self.kill_all(most, related=related)
        self.end()

    def kill_all(self, most: int, *, related: bool = False) -> None:
        """The same, and leave the store open."""
        total = self._rehearse(related=related)
        self._after(0)
        base = self.files()
        chosen = points(total, most, deep=self.deep)
        killed = 0
        for n in chosen:
            ticket = self.owner.do(operations.prepare, self.number, n)
            if self.operation.name in BY_NAME:
                self.survivor.do(witnesses.hold, BY_NAME[self.operation.name])
            killed += self._kill(ticket, n, related=related) == -signal.SIGKILL
            self._after(n)
            assert self.files() == base, f"left after a death at line {n} of {total}: {self.files() ^ base}"
        assert killed >= 0.6 * len(chosen), f"only {killed} of {len(chosen)} died"

    def _rehearse(self, *, related: bool) -> int:
        """Do the operation once, whole, and count its lines."""
        ticket = self.owner.do(operations.prepare, self.number, 0)
        if related:
            return int(self.owner.do(deaths.in_a_child, deaths.count, self.number, ticket, self.deep)[1])
        actor = self.stage.fork()
        if not self.operation.joins:
            actor.do(witnesses.come, self.blob)
        total = actor.do(deaths.count, self.number, ticket, self.deep)
        actor.leave()
        assert self.stage.status(actor.pid) == 0
        self.stage.dismiss(actor)
        return int(total)

    def _kill(self, ticket: Any, n: int, *, related: bool) -> int:
        """Let a victim die at line n; returns how it ended."""
        if related:
            step = (deaths.die_in, self.number, ticket, n, self.deep)
            return int(self.owner.do(deaths.in_a_child, *step)[0])

        def victim() -> None:
            world = World()
            if not self.operation.joins:
                world.store = pickle.loads(self.blob)
            deaths.die_in(world, self.number, ticket, n, self.deep)

        return self.stage.status(self.stage.fork_process(victim))

    def _after(self, n: int) -> None:
        """Let the others go on; what the death left is whole, and mended without a rest."""
        self.survivor.do(witnesses.go_on)
        if n and self.operation.name in BY_NAME:
            self.survivor.do(witnesses.unlink_old, BY_NAME[self.operation.name])
        self.owner.do(witnesses.mend)
        if self.operation.handles:
            self.owner.do(witnesses.release)

    def files(self) -> set[str]:
        """What the file system shows of the store."""
        return files_of(self.store, self.directory) | files_of(self.store)

    def end(self) -> None:
        """Close the store with nobody left in it: nothing stays, and nobody has complained."""
        self.survivor.leave()
        assert self.stage.status(self.survivor.pid) == 0
        self.owner.do(witnesses.close)
        assert not self.files()
        self.owner.leave()
        assert self.stage.status(self.owner.pid) == 0
        assert not self.stage.said(), self.stage.said()


class OwnerPlay:
    """One owner after the other is killed; a guest takes part in each store and outlives its owner, the guardian clears up."""

    def __init__(self, stage: Stage, *, deep: bool, **options: Any) -> None:
        """Let the guest stand ready, and a store beside that nobody touches."""
        self.stage = stage
        self.deep = deep
        self.options = options
        self.directory = options.get("directory", leaks.SHM)
        self.guest = stage.fork()
        self.bystander = stage.fork()
        _, self._beside, _ = self.bystander.do(witnesses.open_store, {})

    def open(self, *, guest: bool = True) -> tuple[Actor, str, int]:
        """Open a store in a new owner; gives the owner, the store's identity and its guardian."""
        owner = self.stage.fork()
        blob, store, guardian = owner.do(witnesses.open_store, self.options)
        if guest:
            self.guest.do(witnesses.join, blob)
        return owner, store, guardian

    def kill(self, owner: Actor, step: Callable[..., Any], *args: Any) -> bool:
        """Let the owner do what it dies of, and see it off; one that came through alive is killed then. Says whether it died."""
        died = not owner.outlives(step, *args)
        if not died:
            owner.kill()
        assert self.stage.status(owner.pid) == -signal.SIGKILL
        self.stage.dismiss(owner)
        return died

    def files(self, store: str) -> set[str]:
        """What the file system shows of a store."""
        return files_of(store, self.directory) | files_of(store)

    def cleared_by(self, store: str, guardian: int) -> None:
        """See that the guardian unlinks all, leaves the guest its views, and ends when the guest has left."""
        only = {"ctl", "dir"}
        wait_until(lambda: self.files(store) <= only, _SOON, lambda: f"left: {sorted(self.files(store))}")
        wait_until(lambda: self.guest.do(witnesses.work_is_refused), _SOON, "the store still takes work")
        self.guest.do(witnesses.part)
        wait_until(lambda: not self.files(store), _SOON, lambda: f"left: {sorted(self.files(store))}")
        assert self.stage.status(guardian) == 0
        self.bystander.do(witnesses.go_on)

    def end(self) -> None:
        """All who lived have come through, and nobody has complained."""
        self.bystander.do(witnesses.mend)
        self.bystander.do(witnesses.close)
        for actor in (self.guest, self.bystander):
            actor.leave()
            assert self.stage.status(actor.pid) == 0
        assert not self.stage.said(), self.stage.said()


def watches(pid: int) -> bool:
    """Say whether a guardian has come so far that it watches its store."""
    return "anon_inode:inotify" in leaks.descriptors(pid).values()


def leave_dead_store(stage: Stage, guest: Actor | None = None, **options: Any) -> str:
    """Open a store, kill its guardian and then its owner: it stays until someone else finds it. `guest` takes part in it."""
    owner = stage.fork()
    blob, store, guardian = owner.do(witnesses.open_store, options)
    if guest is not None:
        guest.do(witnesses.join, blob)
    os.kill(guardian, signal.SIGKILL)
    assert stage.status(guardian) == -signal.SIGKILL
    owner.kill()
    assert stage.status(owner.pid) == -signal.SIGKILL
    stage.dismiss(owner)
    return str(store)


class OpeningPlay(OwnerPlay):
    """One process after the other is killed while it opens a store."""

    def run(self, most: int, *, rival: Callable[[], object] | None = None) -> None:
        """Die at about that many points; `rival` sets up anew, before each, what is in the way of opening."""
        if rival is not None:
            rival()
        files = deaths.opens_stores if rival is None else deaths.lines(self.deep)
        rehearsal = self.stage.fork()
        total = rehearsal.do(deaths.count_opening, self.options, files)
        rehearsal.leave()
        assert self.stage.status(rehearsal.pid) == 0
        self.stage.dismiss(rehearsal)
        left, killed = 0, 0
        chosen = points(total, most, deep=self.deep)
        for n in chosen:
            if rival is not None:
                self.guest.do(witnesses.part)
                rival()
            owner = self.stage.fork()
            pid = owner.pid
            killed += self.kill(owner, deaths.die_opening, self.options, n, files)
            left += self._removed_by_the_next(pid)
        # What else this user has in shared memory at that time is looked at too, so the lines are more or fewer.
        assert killed >= 0.5 * len(chosen), f"only {killed} of {len(chosen)} died"
        assert rival or 0 < left < len(chosen), "only a death between the first name and the guardian leaves anything"
        self.guest.do(witnesses.part)
        self.end()

    def _removed_by_the_next(self, pid: int) -> bool:
        """Wait for the guardian if there is one, then let someone else come; says whether anything was left."""
        mine = guardians_of(self._beside)
        wait_until(lambda: not self.stage.others() - mine, _SOON, "its guardian did not end")
        left = stores_opened_by(pid)
        if "name" in self.options:
            heir, store, guardian = self.open(guest=False)
            assert not stores_opened_by(pid)
            heir.do(witnesses.close)
            heir.leave()
            assert self.stage.status(heir.pid) == 0
            self.stage.dismiss(heir)
            assert self.stage.status(guardian) == 0
            assert not self.files(store)
        else:
            self.guest.do(witnesses.collect, self.directory)
            assert not stores_opened_by(pid)
        self.bystander.do(witnesses.go_on)
        return bool(left)


class GuardianPlay(OwnerPlay):
    """One guardian after the other is killed."""

    def after_the_owner(self, n: int) -> bool:
        """Kill the owner, and its guardian at the n-th line of clearing up after it; says whether that died.

        The guest keeps its views; when it has left, or when the next looks, all is gone.
        """
        owner = self.stage.fork()
        blob, store, guardian = owner.do(deaths.open_under_traced_guardian, self.options, n, "bury")
        self.guest.do(witnesses.join, blob)
        owner.do(witnesses.make_garbage)
        owner.kill()
        assert self.stage.status(owner.pid) == -signal.SIGKILL
        self.stage.dismiss(owner)
        # It is killed, or it waits for the guest: then the blocks are gone.
        wait_until(
            lambda: not is_running(guardian) or self.files(store) <= {"ctl", "dir"}, _SOON, "it did not clear up"
        )
        self.guest.do(witnesses.look_at_mine)
        self.guest.do(witnesses.part)
        wait_until(lambda: not is_running(guardian), _SOON, "the guardian did not end")
        self.guest.do(witnesses.collect, self.directory)
        assert not self.files(store), sorted(self.files(store))
        self.bystander.do(witnesses.go_on)
        return self.stage.status(guardian) == -signal.SIGKILL

    def beside_the_owner(self, n: int, function: str) -> bool:
        """Kill a guardian at the n-th line of what it does for a living store; says whether it died.

        The owner and the guest go on, and the owner closes as ever.
        """
        owner = self.stage.fork()
        blob, store, guardian = owner.do(deaths.open_under_traced_guardian, self.options, n, function)
        self.guest.do(witnesses.join, blob)
        wait_until(lambda: not is_running(guardian) or watches(guardian), _SOON, "it did not begin to watch")
        owner.do(witnesses.make_garbage)
        self.guest.do(witnesses.go_on)
        owner.do(witnesses.mend)
        self.guest.do(witnesses.part)
        owner.do(witnesses.mend)
        owner.do(witnesses.close)
        assert not self.files(store), sorted(self.files(store))
        owner.leave()
        assert self.stage.status(owner.pid) == 0
        self.stage.dismiss(owner)
        self.bystander.do(witnesses.go_on)
        return self.stage.status(guardian) == -signal.SIGKILL

    def sweep(self, case: Callable[[int], bool], step: int, last: int = 1000) -> int:
        """Take n = 1, 1 + step, ... until the guardian lives through it, or to `last`; returns how many died."""
        died = 0
        while 1 + died * step <= last and case(1 + died * step):
            died += 1
        return died
