"""Every system call of ours made to fail once, in every operation: it succeeds or says so, and nothing is lost or left.

No guardian runs here, so that nobody tidies up behind what is tested.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import pickle
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import shmarray as sa
from shmarray.guardian import launch
from tests.helpers import copies, leaks
from tests.helpers.tracing import Call, count_calls, fail_at, package_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 500
MENDABLE = (
    "a block that was never finished; its maker is gone",
    "nobody holds it, and no handle to it is in flight",
    "a handle in flight to a block that was deleted, or that lay in one",
)
#: Which calls can fail with which number; every call can fail with EIO.
MEMORY = {
    "os.open",
    "os.link",
    "os.rename",
    "os.posix_fallocate",
    "mmap.mmap",
    "libc.mmap",
    "open",
    "fcntl.flock",
    "fcntl.fcntl",
}
FITS = {
    errno.EIO: None,
    errno.EMFILE: {"os.open", "open", "os.listdir", "mmap.mmap", "os.pidfd_open"},
    errno.ENOSPC: {"os.open", "os.link", "os.rename", "os.pwrite", "os.posix_fallocate", "os.ftruncate"},
    errno.ENOMEM: MEMORY,
    errno.EINTR: {
        "os.open",
        "os.pwrite",
        "os.pread",
        "os.posix_fallocate",
        "os.ftruncate",
        "fcntl.flock",
        "fcntl.fcntl",
    },
}
KINDS = ("memory", "capacity", "disk", "no unnamed files")


class World:
    """A store of one kind, what is always in it, and a look at it from outside."""

    def __init__(self, kind: str, directory: str) -> None:
        """Open a store with two arrays that stay, and note how it then looks."""
        self.directory = directory if kind == "disk" else leaks.SHM
        self.store = sa.Store(
            f"syscalls-{os.getpid()}",
            capacity=64 << 20 if kind == "capacity" else None,
            directory=directory if kind == "disk" else None,
        )
        self.kept: dict[str, Any] = {}
        self.store["x"] = np.full(SIZE, 1.0)
        self.standing = self.store.full(SIZE, 7.0)
        self.entries = self.look()
        self.open = leaks.descriptors()
        self.mapped = self.mappings()

    @property
    def prefix(self) -> str:
        """What the files of the store begin with."""
        return f"shmarray.{os.geteuid()}.{self.store.id}."

    def look(self) -> set[str]:
        """Files of the store, without the prefix."""
        found = leaks.shm_entries(self.prefix, self.directory) | leaks.shm_entries(self.prefix)
        return {entry.removeprefix(self.prefix) for entry in found}

    def mappings(self) -> int:
        """How many mappings of files in shared memory and in the store's directory this process has."""
        with open("/proc/self/maps", "rb") as file:
            maps = file.read()
        return sum(maps.count(f" {directory}/".encode()) for directory in {leaks.SHM, self.directory})

    def verify(self, where: object) -> None:
        """After a failure: nothing open, nothing mapped, nothing half-made, and the store works."""
        self.kept.clear()
        assert leaks.descriptors() == self.open, where
        store = self.store
        if "made" in store:
            made: Any = store["made"]
            leaves: list[Any] = [made["a"], made["b"][0]] if isinstance(made, Mapping) else [made]
            assert {float(value) for leaf in leaves for value in np.unique(leaf)} in ({5.0}, {0.0}), where
            del made, leaves
            del store["made"]
        assert store["x"][0] in (1.0, 2.0), where
        assert (store["x"] == store["x"][0]).all(), where
        store["x"] = np.full(SIZE, 1.0)
        assert (self.standing == 7).all(), where
        own = store.full(9, 3.0)
        handle = pickle.dumps(own)
        del own
        assert pickle.loads(handle).sum() == 27, where
        store.release_unclaimed()
        problems = store.check(fix=True)
        assert all(problem.reason in MENDABLE and problem.fixed for problem in problems), (where, problems)
        assert store.check() == [], where
        assert self.look() == self.entries, where
        assert self.mappings() == self.mapped, where


class Operation(NamedTuple):
    """What is made ready, with no failure, and the deed in which one call fails."""

    ready: Callable[[World], object]
    deed: Callable[[World], object]


def _nothing(world: World) -> None:
    """Make nothing ready."""


def _keep(world: World, value: Any) -> None:
    world.kept["made"] = value


def _anonymous(world: World) -> None:
    _keep(world, world.store.full(SIZE, 5.0))


def _named(world: World) -> None:
    world.store["made"] = np.full(SIZE, 5.0)


def _held(world: World) -> None:
    _named(world)
    _keep(world, world.store["made"])


def _in_flight(world: World) -> None:
    _anonymous(world)
    world.kept["handle"] = pickle.dumps(world.kept["made"])


def _sent(world: World) -> None:
    _in_flight(world)
    del world.kept["made"]


def _named_handle(world: World) -> None:
    _held(world)
    world.kept["handle"] = pickle.dumps(world.kept.pop("made"))


def _unlink(world: World) -> None:
    world.kept["made"].unlink()


def _delete(world: World) -> None:
    del world.store["made"]


def _by_threads(world: World) -> None:
    """Copy in with the help of other threads."""
    with copies.all_shared():
        _keep(world, world.store.put(np.full(SIZE, 5.0), name="made"))


def _replace(world: World) -> None:
    world.store["x"] = np.full(SIZE, 2.0)


def _scope(world: World) -> None:
    with world.store.full(SIZE, 5.0, name="made") as array:
        array[:] = 5


def _tree(world: World) -> None:
    _keep(world, world.store.put({"a": np.full(SIZE, 5.0), "b": [np.full((3, 4), 5.0).T, 7, None]}, name="made"))


def _strided(world: World) -> None:
    _keep(world, world.store.put(np.full((SIZE, 2), 5.0)[:, 0], name="made"))


OPERATIONS = {
    "create anonymous": Operation(_nothing, lambda w: _keep(w, w.store.full(SIZE, 5.0))),
    "create named": Operation(_nothing, lambda w: _keep(w, w.store.zeros(SIZE, name="made"))),
    "put": Operation(_nothing, lambda w: _keep(w, w.store.put(np.full(SIZE, 5.0), name="made"))),
    "put strided": Operation(_nothing, _strided),
    "put a tree": Operation(_nothing, _tree),
    "put by threads": Operation(_nothing, _by_threads),
    "replace": Operation(_nothing, _replace),
    "attach": Operation(_named, lambda w: _keep(w, w.store["made"])),
    "offer": Operation(_anonymous, lambda w: pickle.dumps(w.kept["made"])),
    "claim": Operation(_sent, lambda w: _keep(w, pickle.loads(w.kept["handle"]))),
    "claim what is attached": Operation(_in_flight, lambda w: pickle.loads(w.kept["handle"])),
    "load a named handle": Operation(_named_handle, lambda w: _keep(w, pickle.loads(w.kept["handle"]))),
    "drop": Operation(_anonymous, lambda w: w.kept.clear()),
    "drop what is in flight": Operation(_in_flight, lambda w: w.kept.pop("made")),
    "unlink named": Operation(_held, _unlink),
    "unlink anonymous": Operation(_in_flight, _unlink),
    "delete": Operation(_named, _delete),
    "delete what is held": Operation(_held, _delete),
    "scope": Operation(_nothing, _scope),
    "release unclaimed": Operation(_sent, lambda w: w.store.release_unclaimed()),
    "count and check": Operation(_in_flight, lambda w: (w.store.stats(), w.store.check(fix=True), list(w.store))),
    "pickle the store": Operation(_nothing, lambda w: pickle.loads(pickle.dumps(w.store))["x"]),
}


@pytest.fixture(autouse=True)
def _no_guardian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launch", lambda _member: None)


@contextlib.contextmanager
def _way(kind: str) -> Iterator[str]:
    """Each way in which blocks are made."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "no unnamed files":
            patch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # the kernel then answers EISDIR
        yield kind


def _fits(number: int, call: Call) -> bool:
    allowed = FITS[number]
    # The functions of pthread do not fail so: what they answer is looked at in the tests of the guards.
    return call.function in allowed if allowed else not call.function.startswith("libc.pthread")


def _try(operation: Callable[[], object], n: int, number: int) -> tuple[list[Call], bool]:
    """Run with the n-th call failing; returns the calls, and whether an error came out. Any error but ours or the kernel's fails."""
    with _failing(n, number) as calls:
        try:
            operation()
        except (sa.ShmArrayError, OSError, MemoryError):
            return calls, True
    return calls, False


@contextlib.contextmanager
def _failing(n: int, number: int) -> Iterator[list[Call]]:
    """As `fail_at`; afterwards the injected error holds no frame any more, and so none of their locals."""
    made: list[OSError] = []

    def failure(call: Call) -> OSError:
        made.append(OSError(number, os.strerror(number)))
        return made[0]

    try:
        with fail_at(n, failure) as calls:
            yield calls
    finally:
        for error in made:
            error.__traceback__ = None


@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_call_fails_nothing_is_lost_or_left(
    name: str, store_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One call fails: success or a typed error; no descriptor, mapping or file stays; the store works and checks clean."""
    for kind in KINDS:
        with _way(kind):
            world = World(kind, store_dir)
            try:
                raised = _sweep(world, OPERATIONS[name], kind)
                assert raised or name.startswith("drop")
            finally:
                world.kept.clear()
                world.store.close()
            del world.standing
            assert world.look() == set()
    assert capfd.readouterr() == ("", "")


def _sweep(world: World, operation: Operation, kind: str) -> int:
    """Fail each call of an operation with each number that fits, and verify; returns how often an error came out."""
    operation.ready(world)
    expected = count_calls(lambda: operation.deed(world))
    world.verify("no failure")
    raised = tried = 0
    for number in FITS:
        for n, call in enumerate(expected, 1):
            if _fits(number, call):
                operation.ready(world)
                calls, error = _try(lambda: operation.deed(world), n, number)
                world.verify((kind, errno.errorcode[number], n, calls[n - 1 :][:1] or call))
                raised += error
                tried += 1
    assert tried
    return raised


@pytest.mark.parametrize("closing", [False, True], ids=["opening", "closing"])
def test_whatever_call_fails_nothing_is_left_of_the_store(
    closing: bool,  # noqa: FBT001  a parameter of the test
    store_dir: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A store that could not be opened has left nothing; one that could not be closed is gone after the next try."""
    name = f"syscalls-{os.getpid()}"
    before, there = leaks.descriptors(), leaks.shm_entries()
    mapped = len(leaks.mappings())
    fail = _fail_closing if closing else _fail_opening
    for kind in KINDS:
        options = {"directory": store_dir} if kind == "disk" else {"capacity": 1 << 20} if kind == "capacity" else {}
        with _way(kind):
            expected = fail(name, options, 0, errno.EIO)
            assert len(expected) > 8
            for number in FITS:
                for n, call in enumerate(expected, 1):
                    if not _fits(number, call):
                        continue
                    fail(name, options, n, number)
                    where = (kind, errno.errorcode[number], n, call)
                    assert leaks.descriptors() == before, where
                    assert len(leaks.mappings()) == mapped, where
                    if _new(there, store_dir):
                        sa.Store(name, **options).close()  # what could not be removed then is removed now
                        assert not _new(there, store_dir), where
    assert capfd.readouterr() == ("", "")


def _fail_opening(name: str, options: dict[str, Any], n: int, number: int) -> list[Call]:
    """Open a store with the n-th call failing, and close it if it opened; returns the calls."""
    store = None
    with _failing(n, number) as calls, contextlib.suppress(sa.ShmArrayError, OSError, MemoryError):
        store = sa.Store(name, **options)
    if store is not None:
        store["x"] = np.ones(3)
        store.close()
    return calls


def _fail_closing(name: str, options: dict[str, Any], n: int, number: int) -> list[Call]:
    """Close a store with the n-th call failing, then again; views stay; returns the calls."""
    store = sa.Store(name, **options)
    store["x"] = np.ones(3)
    view, loose = store["x"], store.ones(3)
    pickle.dumps(loose)
    with _failing(n, number) as calls, contextlib.suppress(sa.ShmArrayError, OSError, MemoryError):
        store.close()
    store.close()
    assert view.sum() + loose.sum() == 6
    assert store.closed
    return calls


def _new(there: set[str], directory: str) -> set[str]:
    """What is in shared memory or the directory that was not, and is not another run's."""
    found = leaks.shm_entries() - there
    found = {entry for entry in found - leaks.foreign_stores(found) if os.path.lexists(os.path.join(leaks.SHM, entry))}
    return found | leaks.shm_entries(directory=directory)


def test_every_system_call_that_our_sources_make_is_among_those_that_failed(store_dir: str) -> None:
    """The operations above reach every call that the floor of segments and locks makes."""
    written: set[str] = set()
    for module in ("segments", "flocks"):
        with open(os.path.join(package_directory(), "_os", f"{module}.py"), encoding="utf-8") as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
            ):
                written.add(f"{node.func.value.id}.{node.func.attr}")
    written &= {
        "os.open", "os.link", "os.unlink", "os.rename", "os.posix_fallocate", "os.pwrite", "os.pread", "os.fstat",
        "os.lstat", "os.ftruncate", "os.listdir", "fcntl.flock", "fcntl.fcntl",
    }  # fmt: skip
    reached: set[str] = set()
    for kind in ("memory", "capacity", "disk"):
        world = World(kind, store_dir)
        for operation in OPERATIONS.values():
            operation.ready(world)
            reached |= {call.function for call in count_calls(partial(operation.deed, world))}
            world.verify("no failure")
        world.store.close()
        del world
    assert written - reached == set()
    assert "os.statvfs" in reached
    assert reached & {"mmap.mmap", "libc.mmap"}
