"""The promise, row by row: who is killed, what must hold; with real signals, under every start method.

Each play is a program as a user writes it: an owner in a fresh interpreter, workers by `multiprocessing`. One worker uses its
views without a pause all the time, so that every death is also a death beside a view in use.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import cast, witnesses
from tests.faults.stage import Actor, Stage, files_of, guardians_of
from tests.helpers.leaks import shm_entries
from tests.helpers.processes import Child, is_running, wait_until
from tests.helpers.tracing import package_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

SECOND = 1.0
_SOON = 10.0

ENDINGS = """
import multiprocessing, os, pickle, signal, sys
import numpy as np
import shmarray as sa
from tests.helpers.processes import report

def end(how, tell):
    if how == "exception":
        raise RuntimeError("on purpose")
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        woken, waker = os.pipe()          # a signal that comes before `read` waits has written already; `pause` would miss it
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        tell()
        os.read(woken, 1)

def interruptible(function, *args):
    try:
        function(*args)
    except KeyboardInterrupt:
        sys.exit(130)

def work(how, store, named, anonymous, ready, go):
    mine = pickle.loads(pickle.dumps(store.full(1000, 2.0)))
    store["by/%d" % os.getpid()] = mine
    named += anonymous
    ready.release()
    go.acquire()
    end(how, ready.release)

def main(method, how):
    context = multiprocessing.get_context(method)
    ready, go = context.Semaphore(0), context.Semaphore(0)
    global store, views
    store = sa.Store()
    views = [store.zeros(1000, name="named"), store.ones(1000), store.put({"a": np.ones(3), "b": [np.ones(4), 5]})]
    arguments = (work, how, store, views[0], views[1], ready, go)
    workers = [context.Process(target=interruptible, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        ready.acquire()
    report("ready", store.id)
    input()               # until the names have been looked at
    for worker in workers:
        go.release()
    if how == "interrupt":
        for worker in workers:
            ready.acquire()
    else:
        for worker in workers:
            worker.join()
        report("codes", [worker.exitcode for worker in workers])
    if how != "return":   # then the exit of the interpreter closes the store
        with store:
            end(how, lambda: report("waits"))

if __name__ == "__main__":
    interruptible(main, *sys.argv[1:])
"""
CODES = {"return": 0, "exception": 1, "exit": 3, "interrupt": 130}


@pytest.mark.parametrize("how", list(CODES))
def test_an_ordinary_end_leaves_nothing_and_says_nothing(start_method: BaseContext, how: str) -> None:
    """Return, exception, `sys.exit`, Ctrl-C in parent and workers: all names go, no process stays, standard error is the user's."""
    with Child(ENDINGS, start_method.get_start_method(), how) as child:
        store = child.wait_for("ready")
        assert files_of(store) >= {"ctl", "n.named"}
        child.tell()
        if how == "interrupt":
            child.wait_for("waits")
            os.killpg(child.pid, signal.SIGINT)
        else:
            assert child.wait_for("codes") == [CODES[how]] * 2
        said = child.finish()
    assert said.returncode == CODES[how], said.describe()
    # Interrupted inside `with store`, it closes it while the workers are still ending: then the last of them, or the guardian,
    # takes the control file along.
    stays = {"ctl"} if how == "interrupt" else set()
    assert files_of(store) <= stays, "the owner itself has unlinked everything before it ended"
    wait_until(lambda: not files_of(store) and not guardians_of(store), _SOON, "control file or guardian stay")
    if how != "exception":
        assert said.stderr == ""
        return
    # One traceback each for parent and two workers, and no line of ours or of multiprocessing's besides.
    assert said.stderr.count("Traceback") == said.stderr.count("RuntimeError: on purpose") == 3, said.stderr
    assert package_directory() not in said.stderr
    for word in ("Exception ignored", "leaked", "Warning"):
        assert word not in said.stderr


class Play:
    """An owner with two workers, of which the second toils."""

    def __init__(self, stage: Stage, method: BaseContext, **options: Any) -> None:
        """Start them, and wait until all are there."""
        self.stage = stage
        self.process = stage.interpreter(cast.OWNER, method.get_start_method(), "2", json.dumps(options))
        entered: dict[str, Actor] = dict(stage.expect(3))
        self.owner, self.first, self.second = (entered[role] for role in ("owner", "worker0", "worker1"))
        self.store, guardian = self.owner.do(cast.address_of_store)
        assert guardian is not None
        self.guardian: int = guardian
        self.second.do(cast.toil)

    def kill_guardian(self) -> None:
        """Kill it and see it off."""
        os.kill(self.guardian, signal.SIGKILL)
        assert self.stage.status(self.guardian) == -signal.SIGKILL

    def goes_on_toiling(self) -> None:
        """Wait until the second worker has done another round since this was asked."""
        before = self.second.do(cast.still_toils)
        wait_until(lambda: self.second.do(cast.still_toils) > before + 1)

    def leave(self, *actors: Actor) -> None:
        """Tell actors to end in the ordinary way, and see that they do, with exit code 0.

        A worker of the fork server is the fork server's child even when the owner is dead; had it crashed, standard error would
        say so.
        """
        for actor in actors:
            actor.leave()
        for actor in actors:
            actor.gone()
            assert self.stage.status_if_known(actor.pid) in (0, None)

    def files(self) -> set[str]:
        """What the file system shows of the store."""
        return files_of(self.store)


def seconds_until(predicate: Callable[[], bool], message: Callable[[], str] | str) -> float:
    """Wait, and tell how long it took."""
    began = time.monotonic()
    wait_until(predicate, _SOON, message)
    return time.monotonic() - began


def test_a_killed_worker_is_missed_by_nobody(
    start_method: BaseContext, record_property: Callable[[str, object], None]
) -> None:
    """What it alone held is freed, its lock is recovered and says so, the others go on."""
    with Stage() as stage:
        play = Play(stage, start_method)
        its_own = play.first.do(cast.block_of_mine)
        assert its_own in play.files()
        play.first.do(cast.enter_guard)
        play.first.kill()
        play.first.gone()
        record_property("seconds until freed", seconds_until(lambda: its_own not in play.files(), "it was not freed"))
        assert play.second.do(cast.find_poisoned) == play.first.pid
        play.second.do(witnesses.go_on)
        play.owner.do(witnesses.mend)
        play.goes_on_toiling()
        assert play.owner.do(cast.exit_codes, 0) == -signal.SIGKILL
        play.second.do(cast.rest)
        play.leave(play.second)
        assert play.owner.do(cast.exit_codes, 1) == 0
        play.leave(play.owner)
        assert stage.status(play.owner.pid) == 0
        assert not play.files()
        assert stage.status(play.guardian) == 0
        assert stage.said() == ""


def test_after_the_owner_is_killed_the_guardian_unlinks_everything_within_a_second(
    start_method: BaseContext, record_property: Callable[[str, object], None]
) -> None:
    """Workers keep their views and are refused new work; the guardian ends when the last of them has."""
    with Stage() as stage:
        play = Play(stage, start_method)
        play.owner.kill()
        took = seconds_until(lambda: play.files() <= {"ctl"}, lambda: f"left: {sorted(play.files())}")
        record_property("seconds until unlinked", took)
        assert took < SECOND
        wait_until(lambda: play.first.do(witnesses.work_is_refused), SECOND)
        play.goes_on_toiling()
        play.leave(play.first)
        assert play.files() == {"ctl"}
        assert is_running(play.guardian)
        play.second.do(cast.rest)
        play.leave(play.second)
        assert seconds_until(lambda: not play.files(), "the control file stays") < SECOND
        assert stage.status(play.guardian) == 0
        assert stage.said() == ""


def test_a_killed_guardian_is_missed_by_nobody(start_method: BaseContext) -> None:
    """The owner goes on, allocates, hands over, and still unlinks everything at close."""
    with Stage() as stage:
        play = Play(stage, start_method)
        play.kill_guardian()
        for actor in (play.owner, play.first, play.second):
            actor.do(witnesses.go_on)
        assert play.owner.do(cast.address_of_store)[1] is None
        play.first.kill()
        play.first.gone()
        # A worker's rest is swept by the guardian, so now it is the owner's to find.
        assert play.owner.do(witnesses.mend) > 0
        play.goes_on_toiling()
        play.second.do(cast.rest)
        play.leave(play.second)
        play.leave(play.owner)
        assert stage.status(play.owner.pid) == 0
        assert not play.files()
        assert stage.said() == ""


@pytest.mark.parametrize("finder", ["the next store", "collect"])
def test_when_all_are_killed_at_once_the_next_removes_what_is_left(start_method: BaseContext, finder: str) -> None:
    """And does not touch a store beside it that is alive."""
    with Stage() as stage:
        play = Play(stage, start_method)
        beside = stage.fork()
        _, living, guardian = beside.do(witnesses.open_store, {})
        before = files_of(living)
        play.kill_guardian()
        for actor in (play.owner, play.first, play.second):
            actor.kill()
        for actor in (play.owner, play.first, play.second):
            actor.gone()
        stranger = stage.fork()
        if finder == "collect":
            stranger.do(witnesses.collect, "/dev/shm")
        else:
            _, other, other_guardian = stranger.do(witnesses.open_store, {})
            stranger.do(witnesses.close)
            assert not files_of(other)
            assert stage.status(other_guardian) == 0
        assert not play.files()
        assert files_of(living) == before
        beside.do(witnesses.mend)
        beside.do(witnesses.close)
        for actor in (beside, stranger):
            actor.leave()
            assert stage.status(actor.pid) == 0
        assert stage.status(guardian) == 0
        assert stage.said() == ""


@pytest.mark.parametrize("age", ["fresh", "settled"])
@pytest.mark.parametrize("delay", [0, 0.3, 1, 3, 10])
def test_a_stop_of_owner_and_guardian_together_leaves_nothing(age: str, delay: float) -> None:
    """As a service manager stops a service: SIGTERM to all, some milliseconds apart. The guardian's is not meant for it."""
    with Stage() as stage:
        owner = stage.fork()
        _, store, guardian = owner.do(witnesses.open_store, {})
        if age == "settled":
            owner.do(witnesses.make_many, 200)
            owner.do(witnesses.meet_guardian)
        os.kill(owner.pid, signal.SIGTERM)
        until = time.monotonic() + delay / 1000
        while time.monotonic() < until:
            pass
        os.kill(guardian, signal.SIGTERM)
        assert stage.status(owner.pid) == -signal.SIGTERM
        assert stage.status(guardian) in (0, -signal.SIGTERM)
        assert not files_of(store)


def test_an_owner_that_calls_exec_ends_its_store() -> None:
    """Its process lives on as another program, so no pidfd tells; the mark that its mapping kept has gone."""
    source = (
        "import os, sys, shmarray as sa\n"
        "from tests.helpers.processes import report\n"
        "store = sa.Store()\n"
        "array = store.zeros(3, name='x')\n"
        "report('open', store.id)\n"
        "os.execv(sys.executable, [sys.executable, '-c', 'input()'])\n"
    )
    with Child(source) as child:
        store = child.wait_for("open")
        wait_until(lambda: not files_of(store), _SOON, lambda: f"left: {sorted(files_of(store))}")
        wait_until(lambda: not guardians_of(store), _SOON, "the guardian stays")
        assert is_running(child.pid)
        child.tell()
        child.finish().expect()


def test_a_fork_beside_busy_threads_keeps_no_lock() -> None:
    """Children live on while the threads of their parent create, replace and delete: they hold nothing that others wait for."""
    with Stage() as stage:
        owner = stage.fork()
        _, store, guardian = owner.do(witnesses.open_store, {})
        owner.do(witnesses.fork_beside_threads, 40)
        owner.do(witnesses.mend)
        owner.do(witnesses.close)
        assert not files_of(store)
        owner.leave()
        assert stage.status(owner.pid) == 0
        assert stage.status(guardian) == 0
        assert stage.said() == ""


@pytest.mark.parametrize("with_guardian", [True, False], ids=["owner", "owner and guardian"])
def test_a_name_is_free_again_although_workers_of_the_dead_store_linger(
    start_method: BaseContext, *, with_guardian: bool
) -> None:
    """The next store takes the name at once; the old workers leave later, and take nothing of the new store with them."""
    name = f"again-{os.getpid()}"
    with Stage() as stage:
        play = Play(stage, start_method, name=name)
        heir = stage.fork()
        assert heir.do(witnesses.is_refused_the_name, name)
        if not with_guardian:
            play.kill_guardian()
        play.owner.kill()
        play.owner.gone()
        began = time.monotonic()
        _, new, guardian = heir.do(witnesses.open_store, {"name": name})
        assert time.monotonic() - began < 3 * SECOND
        heir.do(witnesses.connects_to, name, new)
        play.goes_on_toiling()
        if with_guardian:
            wait_until(lambda: play.first.do(witnesses.work_is_refused), SECOND)
        play.second.do(cast.rest)
        play.leave(play.first, play.second)
        if with_guardian:
            assert stage.status(play.guardian) == 0
        else:
            heir.do(witnesses.collect, "/dev/shm")
        assert not play.files()
        heir.do(witnesses.connects_to, name, new)
        heir.do(witnesses.mend)
        heir.do(witnesses.close)
        heir.leave()
        assert stage.status(heir.pid) == 0
        assert stage.status(guardian) == 0
        assert not files_of(new)
        assert stage.said() == ""
    assert not shm_entries(f"shmarray.{os.geteuid()}.name.{name}")
