"""The guardian on a machine that has much else to do, or nothing left: whatever comes late, or too early, or fails."""

from __future__ import annotations

import fcntl
import os
import select

from shmarray._os import watches
from tests.faults import cast, deaths, witnesses
from tests.faults.plays import watches as watches_its_store
from tests.faults.stage import Stage, files_of
from tests.helpers.leaks import SHM
from tests.helpers.processes import wait_until

_SOON = 20.0


def test_a_guardian_that_was_held_up_in_its_sweep_does_not_rest_for_the_longer() -> None:
    """Rest is in proportion to what it worked, not to how long others had the processor: the next death is seen at once."""
    with Stage() as stage:
        owner, guest = stage.fork(), stage.fork()
        blob, store, guardian = owner.do(deaths.open_under_odd_guardian, {}, "held up")
        guest.do(witnesses.join, blob)
        its_own = guest.do(cast.block_of_mine)
        guest.kill()
        wait_until(lambda: its_own not in files_of(store), _SOON, "it rests")
        owner.do(witnesses.close)
        owner.leave()
        assert stage.status(owner.pid) == 0
        assert stage.status(guardian) == 0
        assert stage.said() == ""


def test_a_lease_that_ends_after_its_report_is_seen_to_have_ended() -> None:
    """The kernel reports before it drops the lock, and the locks of one process one after the other: one look is not enough."""
    with Stage() as stage:
        owner, guest = stage.fork(), stage.fork()
        blob, store, guardian = owner.do(deaths.open_under_odd_guardian, {}, "never looks")
        guest.do(witnesses.join, blob)
        path = f"{SHM}/shmarray.{os.geteuid()}.{store}.{guest.do(cast.block_of_mine)}"
        # A lease whose end is not reported: of a description that cannot write.
        silent = os.open(path, os.O_RDONLY)
        fcntl.flock(silent, fcntl.LOCK_SH)
        looks = watches.letting_go(path)
        assert looks is not None
        guest.kill()
        guest.gone()
        watches.drain(looks)  # its mapping has ended
        assert select.select([looks], [], [], _SOON)[0], "the guardian was not told"
        assert os.path.exists(path)
        os.close(silent)
        wait_until(lambda: not os.path.exists(path), _SOON, "the guardian does not look again")
        os.close(looks)
        owner.do(witnesses.close)
        owner.leave()
        assert stage.status(owner.pid) == 0
        assert stage.status(guardian) == 0
        assert stage.said() == ""


def test_a_guardian_at_rest_ends_when_the_store_does() -> None:
    """Rest is for bursts of reports; the end of the store is no such report."""
    with Stage() as stage:
        owner, guest = stage.fork(), stage.fork()
        blob, _, guardian = owner.do(deaths.open_under_odd_guardian, {}, "always rests")
        guest.do(witnesses.join, blob)
        owner.do(witnesses.meet_guardian)
        guest.do(witnesses.part)  # is reported
        owner.do(witnesses.close)
        assert stage.status(guardian, _SOON) == 0
        for actor in (owner, guest):
            actor.leave()
            assert stage.status(actor.pid) == 0
        assert stage.said() == ""


def test_a_guardian_that_cannot_open_its_door_watches_all_the_same() -> None:
    """It is of no use for a host then, until it can; the rest of its work needs no door."""
    with Stage() as stage:
        owner, guest = stage.fork(), stage.fork()
        blob, store, guardian = owner.do(deaths.open_under_odd_guardian, {}, "has no door at first")
        guest.do(witnesses.join, blob)
        wait_until(lambda: watches_its_store(guardian), _SOON, "it does not watch")
        guest.do(witnesses.part)  # a look follows
        owner.do(witnesses.meet_guardian)
        owner.kill()
        wait_until(lambda: not files_of(store), _SOON, lambda: f"left: {sorted(files_of(store))}")
        assert stage.status(guardian) == 0
        guest.leave()
        assert stage.status(guest.pid) == 0
        assert stage.said() == ""


def test_nothing_that_is_promised_waits_for_a_look() -> None:
    """The owner's death, and the end of the last who takes part, are told: a guardian that never looks unasked is as soon as any."""
    with Stage() as stage:
        owner, first, second = (stage.fork() for _ in range(3))
        blob, store, guardian = owner.do(deaths.open_under_odd_guardian, {}, "never looks")
        for guest in (first, second):
            guest.do(witnesses.join, blob)
        owner.kill()
        wait_until(lambda: files_of(store) <= {"ctl"}, _SOON, lambda: f"left: {sorted(files_of(store))}")
        assert first.do(witnesses.work_is_refused)
        first.leave()
        first.gone()
        assert files_of(store) == {"ctl"}
        second.kill()
        wait_until(lambda: not files_of(store), _SOON, "the control file stays")
        assert stage.status(guardian) == 0
        assert stage.said() == ""
