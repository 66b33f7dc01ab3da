"""Who dies, and what becomes of hosts: nothing stays, nobody waits for ever, the store goes on."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.helpers import leaks
from tests.helpers.processes import Child, is_running, run_script, wait_until
from tests.hosting.things import Things

if TYPE_CHECKING:
    from collections.abc import Callable

OWNER = """
import sys, threading
from tests.helpers.processes import report
from tests.hosting.things import Things, Thing, pid_of_worker, busy
if __name__ == "__main__":
    store = Things("hosting-deaths")
    store["x"] = [1, 2]
    thing = store.Thing(store.ones(3))
    pool = store.Pool(1)
    report("ready", [store.id, store.guardian_pid, thing.where()[0], pool.apply(pid_of_worker, [0])])
    for line in sys.stdin:
        exec(line)
"""


class Calling:
    """A call in a thread, for it does not return before somebody dies."""

    def __init__(self, call: Callable[[], object]) -> None:
        """Begin the call."""
        self.result: list[object] = []
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            self.result.append(call())
        except sa.HostError as error:
            self.result.append(error)

    def error(self) -> sa.HostError:
        """Wait for the end, which must be a `HostError`."""
        self._thread.join(10)
        assert self.result, "the call did not return"
        error = self.result.pop()
        assert isinstance(error, sa.HostError)
        return error


def all_gone(pids: list[int]) -> None:
    """Wait until none of these processes runs. Orphans are reaped by the machine's first process, in its own time."""
    wait_until(lambda: not [pid for pid in pids if is_running(pid)], message=f"one of {pids} runs on")


@pytest.mark.core
@pytest.mark.parametrize("how", ["killed", "exits"])
def test_after_a_hosts_death_the_next_object_gets_a_new_host(how: str, store: Things) -> None:
    """Its proxies say what is so and what to do, the guardian and arrays go on, the dead one is reaped, another serves."""
    array = store.ones(3, name="x")
    thing, waiting = store.Thing(array), store.Thing()
    first = thing.where()[0]
    calling = Calling(waiting.wait)
    if how == "killed":
        os.kill(first, signal.SIGKILL)
    else:
        with pytest.raises(sa.HostError):
            thing.die()
    assert "new host" in calling.error().remedy
    with pytest.raises(ConnectionError, match="does not answer"):
        thing.get()
    wait_until(lambda: not os.path.exists(f"/proc/{first}"), message="nobody reaped the host that died")
    second = store.Thing(5)
    assert second.get() == 5
    assert second.where()[0] != first
    assert second.where()[1] == store.guardian_pid
    with pytest.raises(sa.HostError):
        thing.get()
    assert store["x"].sum() == 3
    assert store.manager().list([1])[:] == [1]


def test_an_error_of_the_host_survives_a_pickle(store: Things) -> None:
    """The `HostError` is a `ConnectionError`, and crosses a process boundary whole."""
    thing = store.Thing()
    with pytest.raises(sa.HostError) as caught:
        thing.die()
    assert isinstance(caught.value, ConnectionError)
    again = store.Thing(caught.value).get()
    assert (str(again), again.store) == (str(caught.value), caught.value.store)


def test_with_its_guardian_a_host_ends_and_none_is_started() -> None:
    """The guardian is killed: the kernel ends the host; making objects says why it cannot, arrays go on, closing works."""
    with Things() as store:
        thing = store.Thing(1)
        host, guardian = thing.where()
        os.kill(guardian, signal.SIGKILL)
        all_gone([host])
        with pytest.raises(sa.HostError):
            thing.get()
        with pytest.raises(sa.HostError, match="guardian does not answer"):
            store.Thing(2)
        store["x"] = np.ones(3)
        assert store["x"].sum() == 3


@pytest.mark.parametrize(
    ("victims", "state"),
    [
        ("owner", "idle"),
        ("owner", "busy"),
        ("guardian", "busy"),
        ("owner and guardian", "busy"),
        ("group and guardian", "idle"),
    ],
)
def test_nothing_is_left_of_a_host_whoever_is_killed(victims: str, state: str, tmp_path: Any) -> None:
    """Owner, guardian or all of them are killed, with workers of a pool idle or stuck in C: host and workers are gone."""
    with Child(OWNER) as owner:
        identity, guardian, host, *workers = owner.wait_for("ready")
        if state == "busy":
            said = str(tmp_path / "busy")
            owner.tell(f"later = pool.map_async(busy, [{said!r}]); report('mapped')")
            owner.wait_for("mapped")  # the call has its answer: only its task is under way
            wait_until(lambda: os.path.exists(said))
        if "guardian" in victims:
            os.kill(guardian, signal.SIGKILL)
        if "group" in victims:
            owner.kill_group()
        elif "owner" in victims:
            owner.kill()
        all_gone([host, *workers])
        if "owner" not in victims and "group" not in victims:
            owner.tell("store.close()")
            owner.finish().expect()
    sa.Store().close()  # which removes what a group that was killed has left
    wait_until(lambda: not leaks.shm_entries(f"shmarray.{os.geteuid()}.{identity}."))


def test_an_owner_that_exits_takes_the_host_along() -> None:
    """Without `close`, by the end of the program, with a pool that works and proxies that are alive; in silence."""
    with Child(OWNER) as owner:
        _, guardian, host, *workers = owner.wait_for("ready")
        owner.finish().expect()
        all_gone([host, *workers, guardian])


INTERRUPTED = """
import os, signal
from tests.helpers.processes import report
from tests.hosting.things import Things
with Things() as store:
    thing, other = store.Thing(1), store.Thing(2)
    host = thing.where()[0]
    try:
        report("waits", host)
        thing.wait()
    except KeyboardInterrupt:
        report("interrupted", [other.get(), thing.get()])
"""


def test_ctrl_c_reaches_the_owner_alone() -> None:
    """SIGINT to the owner's whole group while it waits for the host: the call ends, the host serves on, no answer is mixed up."""
    with Child(INTERRUPTED) as owner:
        host = owner.wait_for("waits")
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.wait_for("interrupted") == [2, 1]
        owner.finish().expect()
        all_gone([host])


@pytest.mark.parametrize("how", ["wait", "spin", "stop"])
def test_a_type_that_hangs_does_not_keep_the_store_from_ending(how: str) -> None:
    """A method waits for ever, hogs the interpreter, or stops the whole process: closing is not held up, nothing stays."""
    with Things() as store:
        thing = store.Thing(store.ones(3))
        host = thing.where()[0]
        calling = Calling(getattr(thing, how))
        wait_until(lambda: how == "wait" or _cpu(host) > 20 or _state(host) == "T")
    calling.error()
    all_gone([host])
    assert not leaks.shm_entries(f"shmarray.{os.geteuid()}.{store.id}.n")


def _stat(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()


def _cpu(pid: int) -> int:
    return int(_stat(pid)[11])


def _state(pid: int) -> str:
    return _stat(pid)[0]


def test_a_host_ends_in_order(tmp_path: Any) -> None:
    """When the store closes, exit handlers of the user's code run in the host, before it is gone."""
    path = str(tmp_path / "said")
    with Things() as store:
        thing = store.Thing()
        thing.say_at_exit(path)
        host = thing.where()[0]
    all_gone([host])
    with open(path, encoding="ascii") as file:
        assert file.read() == "ended"


def test_a_host_that_takes_part_does_not_keep_the_store(tmp_path: Any) -> None:
    """Its objects hold arrays, it has the store itself too: after closing every name goes, within a moment, the guardian as well."""
    with Things() as store:
        thing = store.Thing([store, store.ones(1000), store.put({"a": np.ones(5)}, name="tree")])
        host, guardian = thing.where()
        prefix = f"shmarray.{os.geteuid()}.{store.id}."
    all_gone([host, guardian])
    assert leaks.shm_entries(prefix) == set()
    with pytest.raises(sa.HostError):
        thing.get()
    with pytest.raises(sa.StoreClosedError):
        store.Thing()


def test_a_child_that_user_code_forks_hides_no_death(store: Things) -> None:
    """A forked child of the host outlives it: callers still see the host's death at once, and a new host can be had."""
    thing, waiting = store.Thing(), store.Thing()
    child = thing.fork()
    host = thing.where()[0]
    try:
        calling = Calling(waiting.wait)
        os.kill(host, signal.SIGKILL)
        calling.error()
        assert store.Thing(3).get() == 3
        assert is_running(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_closed_store_makes_no_objects() -> None:
    """Registered types, pools and managers of a closed store raise `StoreClosedError`, and start nothing."""
    store = Things()
    store.close()
    for make in (store.Thing, store.Pool, store.manager):
        with pytest.raises(sa.StoreClosedError):
            make()


def test_a_program_that_uses_a_host_is_silent_at_its_end() -> None:
    """Proxies in globals, a manager, a segment of it and a connected store at exit: nothing is written, nothing is left."""
    source = """
    from tests.hosting.things import Things
    store = Things()
    manager = store.manager()
    things = [store.Thing(n) for n in range(3)]
    shared, segment = manager.dict(a=things[0]), manager.SharedMemory(100)
    print(shared["a"].get())
    """
    assert run_script(textwrap.dedent(source), flags=("-X", "dev", "-W", "error")).expect() == "0\n"
