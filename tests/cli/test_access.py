"""Who has access to a block, who waits for it and who died inside, as `ls` and `doctor` tell it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmarray as sa
from shmarray import inspection
from shmarray._format import guard as form
from shmarray._format import header
from shmarray._os import segments, sleepers
from shmarray.cli import doctor
from shmarray.inspection.access import Accesses
from tests.cli.places import IS_ROOT, NOBODY, facts, forked, shmarray, store_facts, waiting
from tests.helpers.processes import kill_and_reap, reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STORE = "access"


@pytest.fixture(params=["robust", "multiprocessing"])
def array(request: pytest.FixtureRequest) -> Iterator[sa.SharedArray]:
    """A named array in a store of either kind of guard."""
    with sa.Store(STORE, guard=request.param) as store:
        yield store.zeros(4, name="a")


@pytest.fixture
def robust() -> Iterator[sa.SharedArray]:
    """A named array whose guard survives its holder."""
    with sa.Store(STORE) as store:
        yield store.zeros(4, name="a")


def block(name: str | None = "a") -> inspection.Block:
    """The block of that name in the store of these tests."""
    (store,) = [store for store in inspection.survey().stores if store.name == STORE]
    (found,) = [entry for entry in store.blocks if entry.name == name]
    return found


def guard(name: str | None = "a") -> inspection.Guard:
    """The guard of that block."""
    found = block(name).guard
    assert found is not None
    return found


def findings(name: str) -> list[doctor.Finding]:
    """What the doctor finds in the stores under that id."""
    return [finding for finding in doctor._order(inspection.survey()) if finding.id == name]


def writes(array: sa.SharedArray) -> Callable[[Callable[[], None]], None]:
    """Work that stays inside `write()`."""

    def work(here: Callable[[], None]) -> None:
        with array.write():
            here()

    return work


def reads(array: sa.SharedArray) -> Callable[[Callable[[], None]], None]:
    """Work that stays inside `read()`."""

    def work(here: Callable[[], None]) -> None:
        with array.read():
            here()

    return work


def backdate(file: str, seconds: int) -> None:
    """Write into a guard that its holder has had it for longer."""
    with open(file, "r+b") as opened:
        opened.seek(header.GUARD_AT + form.SINCE - header.SIZE, os.SEEK_END)
        opened.write(struct.pack("<Q", time.time_ns() - seconds * 10**9))


def test_who_writes_is_shown_since_when(array: sa.SharedArray) -> None:
    """The holder of a guard is told with the moment it entered, in `--json` and below the row of the block."""
    before = time.time()
    with forked(writes(array)) as pid:
        found = store_facts(STORE)["blocks"][0]["guard"]
        assert found["holder"] == {"pid": pid, "alive": True}
        assert before <= found["since"] <= time.time()
        assert (found["readers"], found["waiters"], found["poisoned"]) == (0, [], None)
        assert f"\n    held by {pid} for " in shmarray("ls", STORE).expect()


def test_a_guard_that_nobody_holds_says_nothing(array: sa.SharedArray) -> None:
    """Without anyone inside there is no line below the row; `--json` says that there is nobody."""
    kind = "robust" if array.lock._guard._robust else "multiprocessing"
    assert guard() == inspection.Guard(kind, None, None, 0, (), None)
    lines = shmarray("ls", STORE).expect().splitlines()
    assert lines[-1].startswith("  a ")


def test_readers_are_counted_and_the_dead_are_not(array: sa.SharedArray) -> None:
    """Each process that reads counts once, and no longer than it lives, though its entry stays in the table."""
    with forked(reads(array)), forked(reads(array)) as second, array.read():
        assert guard().readers == 3
        assert "read by 3 processes" in shmarray("ls", STORE).expect()
        kill_and_reap(second)
        assert guard().readers == 2


def test_waiters_are_named(array: sa.SharedArray) -> None:
    """Processes that wait for a guard, to write, to read or for its lock, are told by their pids."""

    def lock(here: Callable[[], None]) -> None:
        with array.lock:
            here()

    with (
        forked(writes(array)) as holder,
        waiting(writes(array)) as (first, _),
        waiting(reads(array)) as (second, _),
        waiting(lock) as (third, _),
    ):
        expected = tuple(sorted((first, second, third)))
        wait_until(lambda: guard().waiters == expected, message=lambda: f"{guard()} and not {expected}")
        found = guard()
        assert found.holder == inspection.Process(holder, alive=True)

        def told() -> bool:
            return f"waiting: {first}, {second}, {third}\n" in shmarray("ls", STORE).expect()

        wait_until(told, message="not shown")


def test_a_writer_that_waits_for_readers_is_a_waiter(array: sa.SharedArray) -> None:
    """Who has the mutex and waits for the readers to leave holds nothing yet."""
    with forked(reads(array)), waiting(writes(array)) as (pid, _):
        wait_until(lambda: guard().waiters == (pid,), message=lambda: f"{guard()}")
        found = guard()
        assert (found.readers, found.holder) == (1, None)


def test_who_waits_for_another_block_is_not_named(robust: sa.SharedArray) -> None:
    """A process that sleeps on a word of one block is no waiter of another that it maps too."""
    with sa.connect(STORE) as store:
        event = store.Event(name="e")
        with waiting(lambda _: event.wait()) as (pid, _):
            wait_until(lambda: guard("e").waiters == (pid,))
            assert pid in block().holders
            assert guard().waiters == ()


def _queue(store: sa.Store, _stack: contextlib.ExitStack) -> tuple[Any, Callable[[], object]]:
    shared = store.Queue(name="s")
    return shared, shared.get


def _event(store: sa.Store, _stack: contextlib.ExitStack) -> tuple[Any, Callable[[], object]]:
    shared = store.Event(name="s")
    return shared, shared.wait


def _semaphore(store: sa.Store, _stack: contextlib.ExitStack) -> tuple[Any, Callable[[], object]]:
    shared = store.Semaphore(0, name="s")
    return shared, shared.acquire


def _barrier(store: sa.Store, _stack: contextlib.ExitStack) -> tuple[Any, Callable[[], object]]:
    shared = store.Barrier(2, name="s")
    return shared, shared.wait


def _lock(store: sa.Store, stack: contextlib.ExitStack) -> tuple[Any, Callable[[], object]]:
    shared = store.Lock(name="s")
    stack.enter_context(shared)
    return shared, shared.acquire


@pytest.mark.parametrize("make", [_queue, _event, _semaphore, _barrier, _lock], ids=lambda make: make.__name__[1:])
def test_who_waits_for_a_shared_object_is_named(make: Callable[..., tuple[Any, Callable[[], object]]]) -> None:
    """Waiting for an item, an event, a permit, the others or a lock is waiting for that object."""
    with sa.Store(STORE) as store, contextlib.ExitStack() as stack:
        kept, wait = make(store, stack)
        with waiting(lambda _: wait()) as (pid, _):
            wait_until(lambda: guard("s").waiters == (pid,), message=lambda: f"{guard('s')} and not {pid}")
        wait_until(lambda: guard("s").waiters == ())
        del kept


@pytest.mark.core
def test_a_dead_writer_is_told_before_and_after_someone_comes(robust: sa.SharedArray) -> None:
    """First the kernel's note says that the holder died; who enters next writes down the poison; `heal` ends it."""
    with forked(writes(robust)) as pid:
        since = guard().since
        kill_and_reap(pid)
    found = guard()
    assert (found.holder, found.since) == (inspection.Process(pid, alive=False), since)
    assert f"process {pid} died inside, and nobody has entered since" in shmarray("ls", STORE).expect()
    assert [finding.level for finding in findings("dead-holder")] == ["note"]
    assert findings("poisoned") == []
    with pytest.raises(sa.PoisonedError):
        robust.read().__enter__()
    assert since is not None
    assert guard() == inspection.Guard("robust", None, None, 0, (), inspection.Poison(pid, since))
    assert f"\n    poisoned: process {pid} died inside, which it entered " in shmarray("ls", STORE).expect()
    (finding,) = findings("poisoned")
    assert (finding.level, finding.facts["name"], finding.facts["poisoned"]["pid"]) == ("problem", "a", pid)
    assert "with store['a'].write(heal=True)" in finding.remedy
    assert [entry["id"] for entry in facts("doctor", returncode=1)["findings"] if entry["level"] == "problem"] == [
        "poisoned"
    ]
    with robust.write(heal=True):
        pass
    assert guard().poisoned is None
    assert findings("poisoned") == findings("dead-holder") == []


def test_a_death_with_a_semaphore_is_a_problem() -> None:
    """A plain semaphore stays taken when its holder is killed: the doctor says that nobody can enter any more."""
    with sa.Store(STORE, guard="multiprocessing") as store:
        array = store.zeros(4, name="a")
        with forked(writes(array)) as pid:
            assert findings("dead-holder") == []
            kill_and_reap(pid)
        assert guard().holder == inspection.Process(pid, alive=False)
        assert [finding.level for finding in findings("dead-holder")] == ["problem"]


def test_objects_that_put_themselves_right_are_no_finding() -> None:
    """A lock whose holder died is free for the next: `ls` tells of the death, the doctor has nothing to say."""
    with sa.Store(STORE) as store:
        lock = store.Lock(name="l")

        def work(here: Callable[[], None]) -> None:
            with lock:
                here()

        with forked(work) as pid:
            kill_and_reap(pid)
        with lock:
            pass
        assert findings("poisoned") == findings("dead-holder") == []
        assert f"    process {pid} died inside" in shmarray("ls", STORE).expect()


def test_a_long_hold_is_a_finding_when_others_wait(robust: sa.SharedArray) -> None:
    """More than a minute inside while others wait is a warning that names both; without waiters it is nobody's business."""
    with forked(writes(robust)) as holder:
        backdate(block().file, 120)
        assert findings("long-wait") == []
        with waiting(reads(robust)) as (waiter, _):
            (finding,) = wait_until(lambda: findings("long-wait"))
            assert finding.level == "warning"
            assert f"process {holder} has had exclusive access" in finding.text
            assert finding.text.endswith(f"for 2 min; waiting: {waiter}")
            assert finding.remedy.endswith(f"kill {holder}")
            backdate(block().file, 30)
            assert findings("long-wait") == []


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_who_may_not_be_asked_is_not_said_to_wait_for_nothing(robust: sa.SharedArray) -> None:
    """Where the kernel does not let us see what a process does, waiters are unknown, not none."""

    def look(here: Callable[[], None]) -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        assert sleepers.waited_for(os.getppid()) is None
        here()

    with forked(look):
        assert sleepers.waited_for(os.getpid()) == []


def test_an_unseen_process_leaves_the_waiters_unknown(robust: sa.SharedArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a process that maps the block may not be asked, or cannot be seen at all, `waiters` is null."""
    monkeypatch.setattr(sleepers, "waited_for", lambda _pid: None)
    assert guard().waiters is None
    monkeypatch.undo()
    monkeypatch.setattr(inspection.holders.Holders, "_look", lambda _self: None)
    monkeypatch.setattr(inspection.holders.Holders, "of", lambda *_: ())
    assert guard().waiters is None
    robust.unlink()


def test_a_thread_that_sleeps_on_private_memory_waits_for_no_file() -> None:
    """Only words of mapped files count; a process that has ended sleeps on nothing."""
    with waiting(lambda here: here()) as (pid, said):
        os.read(said, 1)
        assert sleepers.waited_for(pid) == []
    assert sleepers.waited_for(pid) == []


@given(st.binary(min_size=header.GUARD_SIZE, max_size=header.GUARD_SIZE), st.sampled_from([None, 1, 2]))
def test_no_bytes_of_a_guard_break_the_look(
    tmp_path_factory: pytest.TempPathFactory, room: bytes, kind: int | None
) -> None:
    """Whatever was written over a guard, reading it raises nothing and gives what JSON can carry."""
    path = _written(
        tmp_path_factory.getbasetemp() / "guard", room if kind is None else struct.pack("<Q", kind) + room[8:]
    )
    fd = segments.open_existing(path, write=False)
    try:
        found = Accesses(None, elsewhere=False).of(fd, header.SIZE, (), ())
    finally:
        fd.close()
    assert (found is None) == (kind is None)
    if found is not None:
        json.dumps([found.since, found.holder and found.holder.pid, found.readers])


def _written(path: Path, room: bytes) -> str:
    path.write_bytes(bytes(header.GUARD_AT) + room)
    return str(path)


def test_the_lines_about_access_fit_the_terminal(robust: sa.SharedArray) -> None:
    """What stands below a row is broken between words, like everything else."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(forked(writes(robust)))
        text = shmarray("ls", STORE, env={"COLUMNS": "20"}).expect()
        assert "    held by" in text
        start = text.index("    held by")
        assert all(len(line) <= 20 for line in text[start:].splitlines())


def test_a_child_that_ended_is_reaped_once() -> None:
    """The helper of these tests kills and reaps a child, also one that the test has reaped."""
    with forked(lambda here: here()) as pid:
        os.kill(pid, 9)
        assert reap(pid) == -9
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
