"""Mappings that stay: exceptions, failures and deaths between any two steps, and an owner that uses the memory again in the midst."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import idling
from tests.helpers.processes import Child, reap
from tests.helpers.sweeps import interrupters
from tests.helpers.tracing import Interrupted, Interrupter, count_events, kill_at
from tests.warm.test_idling import BYTES, File, N, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = ("arrays.py", "attachments.py", "idling.py", "memories.py", "reclaim.py", "roots.py")

pytestmark = pytest.mark.usefixtures("small_is_kept")


def ours(filename: str) -> bool:
    """Say whether that is a file of which each step counts here."""
    return filename.endswith(FILES)


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store whose owner is another process, which keeps nothing."""
    with Child(OWNER, "0") as owner:
        opened: sa.Store = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        yield opened
        opened.trim()
        del opened
        owner.finish().expect()


OWNER = f"""
import pickle, sys
import numpy as np, shmarray as sa
from tests.helpers.processes import report
with sa.Store(warm=int(sys.argv[1])) as store:
    store.ones({N}, name="x")
    report("ready", pickle.dumps(store).hex())
    for line in sys.stdin:
        exec(line)
        report("done")
"""


def descriptors() -> set[str]:
    """Which files this process has open."""
    return set(os.listdir("/proc/self/fd"))


DEEDS: dict[str, Callable[[list[Any], Any, bytes], object]] = {
    "let go": lambda held, _store, _handle: held.clear(),
    "load again": lambda held, _store, handle: held.append(pickle.loads(handle)),
    "look up again": lambda held, store, _handle: held.append(store["x"]),
}


@pytest.mark.core
@pytest.mark.parametrize("deed", DEEDS)
def test_an_interruption_at_any_step_leaves_neither_descriptor_nor_lease(
    deed: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was under way is undone, or done, and the array is attached again after it as ever."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    handle = pickle.dumps(store["x"])
    held: list[Any] = []
    with File(store["x"]) as file:
        store.trim()
        before = descriptors()
        for interrupter in interrupters(ours):
            held.extend(pickle.loads(handle) for _ in range(3))
            if deed != "let go":
                held.clear()
            with interrupter, contextlib.suppress(Interrupted):
                DEEDS[deed](held, store, handle)
            assert all((view == 1.0).all() and view.name == "x" for view in held), interrupter.where
            held.clear()
            store.release_unclaimed()
            assert not file.is_leased(), interrupter.where
            store.trim()
            assert descriptors() == before, interrupter.where


@pytest.mark.parametrize("deed", DEEDS)
def test_a_kill_at_any_line_leaves_no_lease_and_nothing_of_the_store(
    deed: str, store: sa.Store, request: pytest.FixtureRequest
) -> None:
    """The kernel lets go of all that the process had."""
    handle = pickle.dumps(store["x"])

    def ready() -> list[Any]:
        held = [pickle.loads(handle) for _ in range(3)]
        if deed != "let go":
            held.clear()
        return held

    with File(store["x"]) as file:
        held = ready()
        number = count_events(lambda: DEEDS[deed](held, store, handle), ours)
        held.clear()
        assert number > 10
        every = 1 if request.config.getoption("--deep") else max(1, number // 12)
        for n in range(1, number + 1, every):
            pid = os.fork()
            if pid == 0:
                try:
                    held = ready()
                    with kill_at(n, ours):
                        DEEDS[deed](held, store, handle)
                finally:
                    os._exit(9)
            assert reap(pid) == -signal.SIGKILL, f"line {n} of {number}"
            assert not file.is_leased(), f"line {n} of {number}"
        assert (store["x"] == 1.0).all()


STEPS = ("_pread", "_flock", "_look")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("change", ["del store['x']", "store['x'] = np.full({n}, 9.0)", "store.close()"])
def test_what_is_deleted_or_used_again_in_the_midst_of_attaching_it_again_is_never_taken_for_it(
    change: str,
    step: str,
    before: bool,  # noqa: FBT001  a parameter of a test
) -> None:
    """The old array, whole, or the new one, whole, or none at all."""
    with Child(OWNER, str(1 << 30), env={"SHMARRAY_SMALLEST_WARM": "4096"}) as owner:
        store: Any = pickle.loads(bytes.fromhex(owner.wait_for("ready")))
        handle = pickle.dumps(store["x"])
        for _ in range(2):
            assert (pickle.loads(handle) == 1.0).all()
        found = load_while(lambda: tell(owner, change), handle, step, before=before)
        if change != "store.close()":
            tell(owner, f"other = store.full({N}, 5.0, name='y'); another = store.full({N}, 6.0)")
            assert (store["y"] == 5.0).all()
        assert found is None or (found == 1.0).all()
        found = None
        with contextlib.suppress(sa.ArrayNotFoundError, sa.StoreClosedError):
            found = store["x"]
        assert found is None or (found == 9.0).all()
        del found, store
        owner.finish().expect()


def tell(owner: Child, change: str) -> None:
    """Have the owner run a line, and wait until it has."""
    owner.tell(change.format(n=N))
    owner.wait_for("done")


def load_while(change: Callable[[], object], handle: bytes, step: str, *, before: bool) -> Any:
    """Load a handle of what is mapped idly, with a change just before or after that step of it; None if there is no such array then."""
    real = getattr(idling, step)
    turns: list[int] = []

    def changed(*args: Any) -> Any:
        turns.append(1)
        if len(turns) == 1 and before:
            change()
        result = real(*args)
        if len(turns) == 1 and not before:
            change()
        return result

    found: Any = None
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(sa.ArrayNotFoundError, sa.StoreClosedError):
        patch.setattr(idling, step, changed)
        found = pickle.loads(handle)
    assert turns
    return found


@pytest.mark.parametrize("step", ["_pread", "_flock"])
def test_a_system_call_that_fails_means_that_it_is_attached_anew(
    step: str, store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays of what was idle."""
    assert (store["x"] == 1.0).all()
    store.trim()
    before = descriptors()
    assert (store["x"] == 1.0).all()

    def fail(*_: object) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(idling, step, fail)
    with File(store["x"]) as file:
        view = store["x"]
        assert (view == 1.0).all()
        with open("/proc/self/maps") as maps:
            assert sum(line.split()[4] == str(file.inode) for line in maps if "/dev/shm/" in line) == 1
        del view
        monkeypatch.undo()
        store.trim()
        assert not file.is_leased()
    assert descriptors() == before


class Passing(Interrupter):
    """Instead of raising an exception another thread attaches the array."""

    def __init__(self, n: int, handle: bytes) -> None:
        """Have that happen at point `n`."""
        super().__init__(n, ours)
        self.handle = handle
        self.found: list[Any] = []

    def _event(self, frame: Any, event: str, _arg: Any) -> None:
        if event in ("call", "c_return") and self.files(frame.f_code.co_filename):
            self.count += 1
            if self.count == self.n:
                other = threading.Thread(target=lambda: self.found.append(pickle.loads(self.handle)))
                other.start()
                other.join()


@pytest.mark.core
def test_who_gets_the_mapping_while_it_is_let_go_of_has_the_lease(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that finds it in a table just before that finds it with its lease, or attaches it anew."""
    handle = pickle.dumps(store["x"])
    for _ in range(3):
        assert (pickle.loads(handle) == 1.0).all()
    with File(store["x"]) as file:
        for n in range(1, 40):
            view = pickle.loads(handle)
            with Passing(n, handle) as passing:
                del view
            if passing.count < n:
                break
            (found,) = passing.found
            assert (found == 1.0).all()
            assert found.name == "x"
            assert file.is_leased(), n
            passing.found.clear()
            del found
            assert not file.is_leased(), n
        assert n > 5


def test_arrays_come_and_go_under_one_name_while_others_attach_them_again_and_again() -> None:
    """What is attached is whole, each time, from whatever memory: none shows a mixture, and none shows what it was not."""
    with sa.Store(warm=1 << 30) as store:
        store["x"] = np.full(N, 0.0)
        with Reader(store) as one, Reader(store) as other:
            for reader in (one, other):
                reader.tell(LOOK)
            for turn in range(1, 400):
                if turn % 3:
                    store["x"] = np.full(N, float(turn))
                else:
                    del store["x"]
                    store.full(N, float(turn), name="x")
            store["stop"] = np.zeros(1)
            for reader in (one, other):
                looks, wrong = reader.wait_for("done")
                assert wrong == []
                assert looks > 0
                reader.finish().expect()
        store.trim()
        assert store.check() == []
        assert BYTES <= store.stats().nbytes < 3 * BYTES


LOOK = (
    "answer = [0, []]; "
    "exec('''\\nwhile 'stop' not in store:\\n"
    "    try:\\n        a = store['x']\\n    except sa.ArrayNotFoundError:\\n        continue\\n"
    "    first, last = float(a.min()), float(a.max())\\n    answer[0] += 1\\n"
    "    if first != last:\\n        answer[1].append([first, last])\\n    del a\\n''')"
)
