"""Who dies, who looks on, and what must hold after each death.

Owns: the plays in which a worker, an owner or a guardian is killed again and again, one line later each time.
Must not know: pytest.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from typing import TYPE_CHECKING, Any

from tests.faults import operations
from tests.faults.operations import NUMBERS, OPERATIONS
from tests.faults.stage import Actor, Stage, World, files_of, guardians_of, stores_opened_by
from tests.helpers import leaks
from tests.helpers.processes import is_running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

BY_NAME = {"publish": "x", "unlink a named array": "made", "delete by name": "made"}
_SOON = 10.0
_STUCK = 0.3


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
        self.blob, self.store, guardian = self.owner.do(operations.open_store, options)
        os.kill(guardian, signal.SIGKILL)
        stage.status(guardian)
        self.survivor = stage.fork()
        self.survivor.do(operations.join, self.blob)

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
                self.survivor.do(operations.hold, BY_NAME[self.operation.name])
            killed += self._kill(ticket, n, related=related) == -signal.SIGKILL
            self._after(n)
            assert self.files() == base, f"left after a death at line {n} of {total}: {self.files() ^ base}"
        assert killed >= 0.6 * len(chosen), f"only {killed} of {len(chosen)} died"

    def _rehearse(self, *, related: bool) -> int:
        """Do the operation once, whole, and count its lines."""
        ticket = self.owner.do(operations.prepare, self.number, 0)
        if related:
            return int(self.owner.do(operations.in_a_child, operations.count, self.number, ticket, self.deep)[1])
        actor = self.stage.fork()
        if not self.operation.joins:
            actor.do(operations.come, self.blob)
        total = actor.do(operations.count, self.number, ticket, self.deep)
        actor.leave()
        assert self.stage.status(actor.pid) == 0
        self.stage.dismiss(actor)
        return int(total)

    def _kill(self, ticket: Any, n: int, *, related: bool) -> int:
        """Let a victim die at line n; returns how it ended."""
        if related:
            step = (operations.die_in, self.number, ticket, n, self.deep)
            return int(self.owner.do(operations.in_a_child, *step)[0])

        def victim() -> None:
            world = World()
            if not self.operation.joins:
                world.store = pickle.loads(self.blob)
            operations.die_in(world, self.number, ticket, n, self.deep)

        return self.stage.status(self.stage.fork_process(victim))

    def _after(self, n: int) -> None:
        """Let the others go on; what the death left is whole, and mended without a rest."""
        self.survivor.do(operations.go_on)
        if n and self.operation.name in BY_NAME:
            self.survivor.do(operations.unlink_old, BY_NAME[self.operation.name])
        self.owner.do(operations.mend)
        if self.operation.handles:
            self.owner.do(operations.release)

    def files(self) -> set[str]:
        """What the file system shows of the store."""
        return files_of(self.store, self.directory) | files_of(self.store)

    def end(self) -> None:
        """Close the store with nobody left in it: nothing stays, and nobody has complained."""
        self.survivor.leave()
        assert self.stage.status(self.survivor.pid) == 0
        self.owner.do(operations.close)
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
        _, self._beside, _ = self.bystander.do(operations.open_store, {})

    def open(self, *, guest: bool = True) -> tuple[Actor, str, int]:
        """Open a store in a new owner; gives the owner, the store's identity and its guardian."""
        owner = self.stage.fork()
        blob, store, guardian = owner.do(operations.open_store, self.options)
        if guest:
            self.guest.do(operations.join, blob)
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
        wait_until(lambda: self.guest.do(operations.work_is_refused), _SOON, "the store still takes work")
        self.guest.do(operations.part)
        wait_until(lambda: not self.files(store), _SOON, lambda: f"left: {sorted(self.files(store))}")
        assert self.stage.status(guardian) == 0
        self.bystander.do(operations.go_on)

    def end(self) -> None:
        """All who lived have come through, and nobody has complained."""
        self.bystander.do(operations.mend)
        self.bystander.do(operations.close)
        for actor in (self.guest, self.bystander):
            actor.leave()
            assert self.stage.status(actor.pid) == 0
        assert not self.stage.said(), self.stage.said()


def watches(pid: int) -> bool:
    """Say whether a guardian has come so far that it watches its store."""
    return "anon_inode:inotify" in leaks.descriptors(pid).values()


class EndPlay:
    """A store ends while processes stand at every line of an operation in it; then they go on."""

    def __init__(self, stage: Stage, operation: str, *, deep: bool, **options: Any) -> None:
        """Open the store."""
        self.stage = stage
        self.number = NUMBERS[operation]
        self.operation = OPERATIONS[self.number]
        self.deep = deep
        self.owner = stage.fork()
        self.blob, self.store, self.guardian = self.owner.do(operations.open_store, options)

    def run(self, most: int, *, kill: bool) -> None:
        """Let about that many processes pause; end the store by killing its owner, or by closing it."""
        ticket = self.owner.do(operations.prepare, self.number, 0)
        rehearsal = self.stage.fork()
        if not self.operation.joins:
            rehearsal.do(operations.come, self.blob)
        total = rehearsal.do(operations.count, self.number, ticket, self.deep)
        rehearsal.leave()
        assert self.stage.status(rehearsal.pid) == 0
        self.stage.dismiss(rehearsal)
        # All tickets first: whoever pauses may hold a lock that the owner needs for the next.
        tickets = {n: self.owner.do(operations.prepare, self.number, n) for n in points(total, most, deep=self.deep)}
        paused = [self._pause(n, ticket) for n, ticket in tickets.items()]
        self._wait_for_pauses(paused)
        if kill:
            self.owner.kill()
            assert self.stage.status(self.owner.pid) == -signal.SIGKILL
        else:
            self.owner.do(operations.close)
        wait_until(lambda: files_of(self.store) <= {"ctl"}, _SOON, lambda: f"left: {sorted(files_of(self.store))}")
        # Nobody sweeps after them: what they publish now they have to take back themselves.
        os.kill(self.guardian, signal.SIGSTOP)
        while not all(pid in self.stage.statuses for pid in paused):
            for pid in paused:
                # Whoever was kept from coming to its pause may come to it only now.
                if _is_stopped(pid):
                    os.kill(pid, signal.SIGCONT)
                elif not is_running(pid):
                    self.stage.status(pid)
        assert {self.stage.status(pid) for pid in paused} == {0}, self.stage.said()
        assert files_of(self.store) <= {"ctl"}, f"published after the end: {sorted(files_of(self.store))}"
        os.kill(self.guardian, signal.SIGCONT)
        wait_until(lambda: not files_of(self.store), _SOON, lambda: f"left: {sorted(files_of(self.store))}")
        assert self.stage.status(self.guardian) == 0
        if not kill:
            self.owner.leave()
            assert self.stage.status(self.owner.pid) == 0
        assert not self.stage.said(), self.stage.said()

    def _pause(self, n: int, ticket: Any) -> int:
        return self.stage.fork_process(lambda: operations.pause_in(self.blob, self.number, ticket, n, self.deep))

    def _wait_for_pauses(self, pids: list[int]) -> None:
        """Wait until all pause, or have ended; but one that holds a lock of the store keeps others from coming so far."""
        before, since = -1, time.monotonic()
        while (now := sum(_is_stopped(pid) or not is_running(pid) for pid in pids)) < len(pids):
            if now != before:
                before, since = now, time.monotonic()
            elif now > len(pids) / 3 and time.monotonic() - since > _STUCK:
                return
            assert time.monotonic() - since < _SOON, f"only {now} of {len(pids)} come to pause"
            time.sleep(0.005)


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (FileNotFoundError, ProcessLookupError):
        return False


def leave_dead_store(stage: Stage, guest: Actor | None = None, **options: Any) -> str:
    """Open a store, kill its guardian and then its owner: it stays until someone else finds it. `guest` takes part in it."""
    owner = stage.fork()
    blob, store, guardian = owner.do(operations.open_store, options)
    if guest is not None:
        guest.do(operations.join, blob)
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
        files = operations.opens_stores if rival is None else operations.lines(self.deep)
        rehearsal = self.stage.fork()
        total = rehearsal.do(operations.count_opening, self.options, files)
        rehearsal.leave()
        assert self.stage.status(rehearsal.pid) == 0
        self.stage.dismiss(rehearsal)
        left, killed = 0, 0
        chosen = points(total, most, deep=self.deep)
        for n in chosen:
            if rival is not None:
                self.guest.do(operations.part)
                rival()
            owner = self.stage.fork()
            pid = owner.pid
            killed += self.kill(owner, operations.die_opening, self.options, n, files)
            left += self._removed_by_the_next(pid)
        # What else this user has in shared memory at that time is looked at too, so the lines are more or fewer.
        assert killed >= 0.5 * len(chosen), f"only {killed} of {len(chosen)} died"
        assert rival or 0 < left < len(chosen), "only a death between the first name and the guardian leaves anything"
        self.guest.do(operations.part)
        self.end()

    def _removed_by_the_next(self, pid: int) -> bool:
        """Wait for the guardian if there is one, then let someone else come; says whether anything was left."""
        mine = guardians_of(self._beside)
        wait_until(lambda: not self.stage.others() - mine, _SOON, "its guardian did not end")
        left = stores_opened_by(pid)
        if "name" in self.options:
            heir, store, guardian = self.open(guest=False)
            assert not stores_opened_by(pid)
            heir.do(operations.close)
            heir.leave()
            assert self.stage.status(heir.pid) == 0
            self.stage.dismiss(heir)
            assert self.stage.status(guardian) == 0
            assert not self.files(store)
        else:
            self.guest.do(operations.collect, self.directory)
            assert not stores_opened_by(pid)
        self.bystander.do(operations.go_on)
        return bool(left)


class GuardianPlay(OwnerPlay):
    """One guardian after the other is killed."""

    def after_the_owner(self, n: int) -> bool:
        """Kill the owner, and its guardian at the n-th line of clearing up after it; says whether that died.

        The guest keeps its views; when it has left, or when the next looks, all is gone.
        """
        owner = self.stage.fork()
        blob, store, guardian = owner.do(operations.open_under_traced_guardian, self.options, n, "bury")
        self.guest.do(operations.join, blob)
        owner.do(operations.make_garbage)
        owner.kill()
        assert self.stage.status(owner.pid) == -signal.SIGKILL
        self.stage.dismiss(owner)
        # It is killed, or it waits for the guest: then the blocks are gone.
        wait_until(
            lambda: not is_running(guardian) or self.files(store) <= {"ctl", "dir"}, _SOON, "it did not clear up"
        )
        self.guest.do(operations.look_at_mine)
        self.guest.do(operations.part)
        wait_until(lambda: not is_running(guardian), _SOON, "the guardian did not end")
        self.guest.do(operations.collect, self.directory)
        assert not self.files(store), sorted(self.files(store))
        self.bystander.do(operations.go_on)
        return self.stage.status(guardian) == -signal.SIGKILL

    def beside_the_owner(self, n: int, function: str) -> bool:
        """Kill a guardian at the n-th line of what it does for a living store; says whether it died.

        The owner and the guest go on, and the owner closes as ever.
        """
        owner = self.stage.fork()
        blob, store, guardian = owner.do(operations.open_under_traced_guardian, self.options, n, function)
        self.guest.do(operations.join, blob)
        wait_until(lambda: not is_running(guardian) or watches(guardian), _SOON, "it did not begin to watch")
        owner.do(operations.make_garbage)
        self.guest.do(operations.go_on)
        owner.do(operations.mend)
        self.guest.do(operations.part)
        owner.do(operations.mend)
        owner.do(operations.close)
        assert not self.files(store), sorted(self.files(store))
        owner.leave()
        assert self.stage.status(owner.pid) == 0
        self.stage.dismiss(owner)
        self.bystander.do(operations.go_on)
        return self.stage.status(guardian) == -signal.SIGKILL

    def sweep(self, case: Callable[[int], bool], step: int, last: int = 1000) -> int:
        """Take n = 1, 1 + step, ... until the guardian lives through it, or to `last`; returns how many died."""
        died = 0
        while 1 + died * step <= last and case(1 + died * step):
            died += 1
        return died
