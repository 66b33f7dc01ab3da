"""A process is killed at every line of every operation, and those who live do not notice.

Each case forks a victim, which runs one operation under a trace that sends it SIGKILL at the n-th line, for every n. By default the
lines of those modules count whose work others can see, and where they are many a fixed part of them; with `--deep` it is every
line of the package.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.faults import deaths, operations, witnesses
from tests.faults.operations import NUMBERS
from tests.faults.plays import GuardianPlay, OpeningPlay, OwnerPlay, WorkerPlay, leave_dead_store, points
from tests.faults.stage import Stage
from tests.helpers.leaks import shm_entries
from tests.helpers.processes import wait_until

MAKING = ["create anonymous", "create named", "put a tree", "publish", "drop the last view", "delete by name", "leave"]
BY_OWNER = [
    "create anonymous",
    "put a tree",
    "publish",
    "drop the last view",
    "load an anonymous handle",
    "check and fix",
]
FOR_PAUSES = ("attach what changes", "drop what another holds", "load what others load", "unlink what changes")
ANY = [name for name in NUMBERS if name not in ("connect", *FOR_PAUSES)]


@pytest.fixture
def deep(request: pytest.FixtureRequest) -> bool:
    """Whether to die at every line of the package."""
    return bool(request.config.getoption("--deep"))


@pytest.mark.parametrize("operation", ANY)
def test_a_worker_killed_at_any_line_disturbs_nobody(operation: str, *, deep: bool) -> None:
    """The owner and another worker go on, all they see is whole, and `check(fix=True)` removes what the dead one left."""
    with Stage() as stage:
        WorkerPlay(stage, operation, deep=deep).run(10)


@pytest.mark.parametrize("operation", MAKING)
def test_a_worker_of_a_store_with_capacity_killed_at_any_line_disturbs_nobody(operation: str, *, deep: bool) -> None:
    """As without: what dead workers had entered into the account does not fill the store."""
    with Stage() as stage:
        WorkerPlay(stage, operation, deep=deep, capacity=200_000).run(5)


@pytest.mark.parametrize("operation", MAKING)
def test_a_worker_of_a_store_in_a_directory_killed_at_any_line_disturbs_nobody(
    operation: str, store_dir: str, *, deep: bool
) -> None:
    """As in shared memory, and nothing stays in the directory."""
    with Stage() as stage:
        WorkerPlay(stage, operation, deep=deep, directory=store_dir).run(5)


@pytest.mark.parametrize("operation", [name for name in ANY if name != "join"])
def test_a_forked_child_of_the_owner_killed_at_any_line_disturbs_nobody(operation: str, *, deep: bool) -> None:
    """It shares the owner's mappings and locks from birth, and its death takes none of them away."""
    with Stage() as stage:
        WorkerPlay(stage, operation, deep=deep).run(4, related=True)


def test_a_process_killed_while_it_connects_disturbs_nobody(*, deep: bool) -> None:
    """Looking for a store by its name, and joining it, changes nothing for others."""
    with Stage() as stage:
        WorkerPlay(stage, "connect", deep=deep, name=f"connect-{os.getpid()}").run(15)


def test_a_reader_sees_old_or_new_whole_while_publishers_are_killed(*, deep: bool) -> None:
    """The name leads to a whole array at every moment, and never back to an older one."""
    with Stage() as stage:
        play = WorkerPlay(stage, "publish", deep=deep)
        reader = stage.fork()
        reader.do(witnesses.join, play.blob)
        reader.do(witnesses.watch, "x")
        play.kill_all(30)
        assert reader.do(witnesses.watched) > 100
        reader.leave()
        assert stage.status(reader.pid) == 0
        play.end()


@pytest.mark.parametrize("variant", ["plain", "name", "capacity", "directory"])
def test_whoever_is_killed_opening_a_store_leaves_what_the_next_removes(
    variant: str, store_dir: str, *, deep: bool
) -> None:
    """Before its guardian runs, the next store of that user clears up; after that, the guardian does."""
    value: dict[str, dict[str, Any]] = {
        "plain": {},
        "name": {"name": f"kill-{os.getpid()}"},
        "capacity": {"capacity": 1 << 20},
        "directory": {"directory": store_dir},
    }
    with Stage() as stage:
        OpeningPlay(stage, deep=deep, **value[variant]).run({"plain": 30, "name": 8}.get(variant, 10))
    assert not shm_entries(f"shmarray.{os.geteuid()}.name.kill-{os.getpid()}")


def test_whoever_is_killed_removing_dead_stores_leaves_them_to_the_next(store_dir: str, *, deep: bool) -> None:
    """Opening a store removes what dead ones left; killed in that, the next goes on with it, and touches nothing alive."""
    with Stage() as stage:
        dead: list[str] = []
        play = OpeningPlay(stage, deep=deep, directory=store_dir)
        play.run(8, rival=lambda: dead.append(leave_dead_store(stage, directory=store_dir)))
        assert all(not play.files(store) for store in dead)


def test_whoever_is_killed_taking_over_the_name_of_a_dead_store_leaves_it_to_the_next(*, deep: bool) -> None:
    """The dead store has still a worker in it; the name goes to whoever opens next, and the worker's views stay."""
    name = f"takeover-{os.getpid()}"
    with Stage() as stage:
        play = OpeningPlay(stage, deep=deep, name=name)
        play.run(8, rival=lambda: leave_dead_store(stage, play.guest, name=name))


@pytest.mark.parametrize("operation", BY_OWNER)
def test_after_the_owner_is_killed_at_any_line_the_guardian_clears_up(operation: str, *, deep: bool) -> None:
    """A guest keeps its views and is refused new work; when it has left, nothing is there and no guardian either."""
    number = NUMBERS[operation]
    with Stage() as stage:
        play = OwnerPlay(stage, deep=deep)
        owner, store, guardian = play.open()
        total = owner.do(deaths.count, number, owner.do(operations.prepare, number, 0), deep)
        play.kill(owner, witnesses.part)
        play.cleared_by(store, guardian)
        for n in points(total, 5, deep=deep):
            owner, store, guardian = play.open()
            ticket = owner.do(operations.prepare, number, n)
            play.kill(owner, deaths.die_in, number, ticket, n, deep)
            play.cleared_by(store, guardian)
        play.end()


@pytest.mark.parametrize("variant", ["plain", "name", "directory"])
def test_after_the_owner_is_killed_closing_the_store_the_guardian_clears_up(
    variant: str, store_dir: str, *, deep: bool
) -> None:
    """Half of the names were gone: the rest goes too."""
    value: dict[str, dict[str, Any]] = {
        "plain": {},
        "name": {"name": f"close-{os.getpid()}"},
        "directory": {"directory": store_dir},
    }
    with Stage() as stage:
        play = OwnerPlay(stage, deep=deep, **value[variant])
        owner, store, guardian = play.open()
        total = owner.do(deaths.count_closing, deep)
        play.kill(owner, witnesses.part)
        play.cleared_by(store, guardian)
        for n in points(total, 6, deep=deep):
            owner, store, guardian = play.open()
            play.kill(owner, deaths.die_closing, n, deep)
            play.cleared_by(store, guardian)
        play.end()
    wait_until(lambda: not shm_entries(f"shmarray.{os.geteuid()}.name.close-{os.getpid()}"))


def test_a_guardian_killed_at_any_line_of_its_start_is_missed_by_nobody(*, deep: bool) -> None:
    """The owner goes on without it, and still unlinks everything at close."""
    with Stage() as stage:
        play = GuardianPlay(stage, deep=deep)
        assert play.sweep(lambda n: play.beside_the_owner(n, "main"), *((1, 300) if deep else (9, 90))) > 3
        play.end()


def test_a_guardian_killed_at_any_line_of_its_sweep_is_missed_by_nobody(*, deep: bool) -> None:
    """What it would have swept the owner finds by `check(fix=True)`."""
    with Stage() as stage:
        play = GuardianPlay(stage, deep=deep)
        assert play.sweep(lambda n: play.beside_the_owner(n, "remove_unheld"), *((1, 300) if deep else (9, 90))) > 3
        play.end()


@pytest.mark.parametrize("variant", ["name", "directory"])
def test_a_guardian_killed_at_any_line_after_its_owner_leaves_the_rest_to_the_next(
    variant: str, store_dir: str, *, deep: bool
) -> None:
    """Owner and guardian are dead: the last guest, or the next store of that user, removes what the guardian did not."""
    value: dict[str, dict[str, Any]] = {"name": {"name": f"bury-{os.getpid()}"}, "directory": {"directory": store_dir}}
    with Stage() as stage:
        play = GuardianPlay(stage, deep=deep, **value[variant])
        assert play.sweep(play.after_the_owner, 1 if deep else 29) > 5
        play.end()
    assert not shm_entries(f"shmarray.{os.geteuid()}.name.bury-{os.getpid()}")
